"""recover(): it learns, its zeros stay, a killed run ends with the same bits, and distillation is what it says."""

import copy
import itertools
import multiprocessing
import os
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
import torch
from tiny import VOCABULARY, tiny_model, tiny_tokens
from torch.nn.utils import parametrizations, parametrize
from torch.testing import assert_close

import minprune as mp
from minprune.pipeline.recipes import Reconstruction
from minprune.training.distill import Distillation, language_loss
from minprune.training.masks import masks_of
from minprune.training.recover import Recipe, recover
from minprune.training.state import load_state, save_state


def pruned(family="llama", pattern="60%", **changes):
    model = tiny_model(family, **changes)
    mp.prune(model, None, method="magnitude", pattern=pattern)
    return model


def counting(windows=8, length=16):
    """Windows in which each token is followed by the next number: easily learnt."""
    starts = torch.arange(windows)[:, None] * 7
    return 3 + (starts + torch.arange(length)) % (VOCABULARY - 3)


def bits(model):
    return {name: value.detach().numpy().tobytes() for name, value in model.state_dict().items()}


SHORT = Recipe(steps=6, batch_size=2, lr=3e-3, warmup=2, weight_decay=0.1, evaluate=4, rank=2)


@pytest.mark.parametrize("way", ["full", "adapters"])
def test_it_learns_and_every_zero_stays(way):
    model, test = pruned(pattern="2:4"), {"counting": counting(3), "noise": tiny_tokens(3, 16)}
    zeros = {layer.name: layer.weight == 0 for layer in mp.find_layers(model)}
    names, before = list(model.state_dict()), copy.deepcopy(model)
    done = recover(model, counting(), Recipe(30, 4, 0.01, 3, mode=way, evaluate=10), test=test)
    assert done.zeros == 0.5 and [row["step"] for row in done.rows] == [0, 10, 20, 30]
    assert [row["tokens"] for row in done.rows] == [0, 640, 1280, 1920]
    first, last = done.rows[0]["perplexity"], done.rows[-1]["perplexity"]
    assert last["counting"] < 0.2 * first["counting"] and done.rows[-1]["loss"] < done.rows[1]["loss"]
    assert first == {name: mp.perplexity(before, windows) for name, windows in test.items()}
    assert last == {name: mp.perplexity(model, windows) for name, windows in test.items()}
    for layer in mp.find_layers(model):
        assert torch.equal(layer.weight == 0, zeros[layer.name]), layer.name
    assert list(model.state_dict()) == names and not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    frozen = "model.embed_tokens.weight"
    assert torch.equal(model.state_dict()[frozen], before.state_dict()[frozen]) == (way == "adapters")


def test_without_masks_it_is_a_plain_loop():
    """Two steps against a loop that is written out here."""
    model, reference, tokens = tiny_model("llama"), tiny_model("llama"), counting(4)
    recipe = Recipe(steps=2, batch_size=4, lr=0.01, warmup=0, clip=0.3, evaluate=9)
    recover(model, tokens, recipe, masks={})
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=0)
    order = [torch.randperm(4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    for step, rate in enumerate([0.01, 0.005]):  # half a cosine over two steps: (1 + cos 0) / 2, (1 + cos 90°) / 2
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        logits = reference(input_ids=tokens[order[step]]).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[order[step]][:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.3)
        optimizer.step()
    for name, value in reference.state_dict().items():
        assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_every_window_once_before_any_comes_again():
    recipe = Recipe(steps=10, batch_size=3)
    epochs = [torch.cat([recipe.windows(step, 11) for step in range(first, first + 3)]) for first in (0, 3)]
    assert all(len(set(epoch.tolist())) == 9 for epoch in epochs) and not torch.equal(*epochs)
    with pytest.raises(mp.PruneError, match="2 windows are too few for batches of 3"):
        recipe.windows(0, 2)


def interrupted(folder, family, changes, way, kill):
    """In a process of its own, on one thread: begin or go on, and die without warning after step `kill`."""

    def die(step):
        if step == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    torch.manual_seed(kill)
    recipe = replace(SHORT, mode=way)
    test = {"counting": counting(2)}
    model = pruned(family, **changes)
    recover(model, counting(), recipe, test=test, state=folder / "state", save_every=2, after_step=die)


HEAVY = [
    "pytest",
    "scipy.special",
    "minprune.pipeline.prune",
    "minprune.training.recover",
]  # imported once for all children
HEAVY += [f"transformers.models.{family}.modeling_{family}" for family in ("llama", "gpt2")]


@pytest.mark.parametrize(("family", "way"), [("gpt2", "full"), ("llama", "adapters")])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, one_thread, family, way):
    """GPT-2 has dropout: its random numbers must not depend on where the run was interrupted.

    The bits are the same for the same number of threads, which are set: a sum over two is taken in another order.
    """
    changes = {"attn_pdrop": 0.2, "resid_pdrop": 0.2} if family == "gpt2" else {}
    recipe, test, state = replace(SHORT, mode=way), {"counting": counting(2)}, tmp_path / "state"
    whole = pruned(family, **changes)
    expected = recover(whole, counting(), recipe, test=test)
    clean = multiprocessing.get_context("forkserver")  # a fork of this process would have its autograd half
    clean.set_forkserver_preload(HEAVY)
    for kill in (1, 3, 5):  # each continues what the one before it left
        child = clean.Process(target=interrupted, args=(tmp_path, family, changes, way, kill))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert state.exists() == (kill > 1)
    resumed, steps = pruned(family, **changes), []
    torch.manual_seed(99)
    found = recover(resumed, counting(), recipe, test=test, state=state, save_every=2, after_step=steps.append)
    assert steps == [5, 6]  # four steps are not done again
    assert bits(resumed) == bits(whole) and found.rows == expected.rows
    assert os.listdir(tmp_path) == ["state"]


def test_a_state_is_only_continued_by_its_own_run(tmp_path):
    state, tokens = tmp_path / "state", counting()

    def run(model=None, tokens=tokens, **changes):
        recipe = replace(SHORT, **changes)
        return recover(model or pruned(), tokens, recipe, state=state, save_every=2)

    run()
    for arguments, named in [
        ({"lr": 1e-3}, "with lr 0.003 instead of 0.001"),
        ({"steps": 7}, "with steps 6 instead of 7"),
        ({"tokens": counting(9)}, "with text trained on"),
        ({"model": pruned(seed=1)}, "with m"),
        ({"model": pruned(pattern="50%")}, "with m"),
    ]:
        with pytest.raises(mp.PruneError, match=named):
            run(**arguments)
    other = pruned()
    other.config.rms_norm_eps *= 2
    with pytest.raises(mp.PruneError, match="with model"):  # the same weights, which compute something else
        run(model=other)
    content = state.read_bytes()
    for damage in (content[: len(content) // 2], b"", b"nonsense" * 100):
        state.write_bytes(damage)
        with pytest.raises(mp.PruneError, match="state is damaged: delete it"):
            run()


def test_a_state_is_only_continued_with_its_own_teacher(tmp_path):
    state, tokens = tmp_path / "state", counting()
    teachers = [tiny_model("llama", seed=seed) for seed in (1, 2)]
    recover(pruned(), tokens, SHORT, teacher=Distillation(teachers[0]), state=state, save_every=2)
    for teacher in (Distillation(teachers[1]), None):
        with pytest.raises(mp.PruneError, match="belongs to another run, with teacher"):
            recover(pruned(), tokens, SHORT, teacher=teacher, state=state, save_every=2)


def test_a_state_with_one_wrong_bit_is_refused_or_the_same(tmp_path):
    """The same: where it is in the padding between the arrays of the file."""
    path, dice, refused = tmp_path / "state", random.Random(0), 0
    state = {"trained": [torch.randn(40, 50)], "optimizer": {"step": 3.0}, "step": 5, "rows": [{"loss": 1.5}]}
    save_state(path, {"lr": 0.1}, state)
    content = path.read_bytes()
    for place in [*dice.sample(range(len(content)), 300), *range(len(content) - 400, len(content))]:
        spoiled = bytearray(content)
        spoiled[place] ^= 1 << dice.randrange(8)
        path.write_bytes(spoiled)
        try:
            found = load_state(path, {"lr": 0.1})
            assert torch.equal(found["trained"].pop(), state["trained"][0]), place
            assert found == {**state, "trained": []}, place
        except mp.PruneError as error:
            assert "state is damaged: delete it" in str(error)
            refused += 1
    assert refused > 350


def test_nothing_in_a_state_is_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    save_state(tmp_path / "state", {}, {"trap": Trap()})
    with pytest.raises(mp.PruneError, match="damaged"):
        load_state(tmp_path / "state", {})
    assert os.listdir(tmp_path) == ["state"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "half"}, "unknown mode 'half'"),
        ({"steps": 0}, "steps 0 is less than 1"),
        ({"lr": 0.0}, "lr 0.0 is not a positive number"),
        ({"lr": float("nan")}, "lr nan"),
        ({"weight_decay": -1.0}, "weight_decay -1.0"),
        ({"seed": -1}, "seed -1 is less than 0"),
        ({"seed": 2**64}, "seed 18446744073709551616 is more than"),
        ({"steps": 2.5}, "steps is 2.5: it must be a whole number"),
        ({"steps": True}, "steps is True"),
        ({"lr": "high"}, "lr is 'high': it must be a number"),
        ({"bfloat16": "yes"}, "bfloat16 is 'yes': it must be True or False"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(mp.PruneError, match=message):
        Recipe(**({"steps": 5} | changes))


def test_settings_of_another_type_are_refused_wherever_they_stand():
    for make, message in [
        (lambda: Reconstruction(epochs=1.5), "epochs is 1.5: it must be a whole number"),
        (lambda: Reconstruction(lr="x"), "lr is 'x'"),
        (lambda: Reconstruction(bfloat16=1), "bfloat16 is 1: it must be True, False or None"),
        (lambda: Distillation(pruned(), share="all"), "share is 'all': it must be a number"),
    ]:
        with pytest.raises(mp.PruneError, match=message):
            make()
    assert Reconstruction(epochs=np.int64(1), lr=np.float32(0.5)).epochs == 1


def test_a_state_that_could_not_be_kept_is_refused_before_the_first_step(tmp_path):
    """A folder is no damaged state: nobody should be told to delete it."""
    for changes, message in [
        ({"state": tmp_path / "nowhere" / "state"}, "there is no folder"),
        ({"state": tmp_path}, "is a folder, not a regular file"),
        ({"state": tmp_path / "state", "save_every": 0}, "after every 0 steps"),
    ]:
        with pytest.raises(mp.PruneError, match=message):
            recover(pruned(), counting(), SHORT, after_step=lambda step: pytest.fail("it began"), **changes)


def test_mistakes_are_told_and_the_model_is_as_it_was():
    model = pruned()
    with pytest.raises(mp.PruneError, match="the loss became"):
        recover(model, counting(), Recipe(steps=30, batch_size=2, lr=1e30, warmup=0, evaluate=99))
    assert not model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    for rate in (1e9, 1e30):
        with pytest.raises(mp.PruneError, match=r"after step \d: use a lower lr"):  # measured before the next loss
            recover(pruned(), counting(), Recipe(5, 2, rate, 0, evaluate=1), test={"counting": counting(2)})
    with pytest.raises(mp.PruneError, match="windows of 1 token"):
        recover(model, counting()[:, :1], SHORT)
    with pytest.raises(mp.PruneError, match=r"bfloat16.*float\(\)"):
        recover(pruned().bfloat16(), counting(), SHORT)
    mixture = pruned("mixtral", "2:4")
    with pytest.raises(mp.PruneError, match="experts"):
        recover(mixture, counting(), Recipe(steps=2, mode="adapters"))
    assert all(p.requires_grad for p in mixture.parameters())
    with pytest.raises(mp.PruneError, match="nothing can be trained"):
        recover(pruned(), counting(), Recipe(steps=2, mode="adapters"), masks={})
    with pytest.raises(mp.PruneError, match="nothing can be trained"):
        recover(pruned().requires_grad_(False), counting(), SHORT)


@pytest.mark.parametrize("way", ["full", "adapters"])
def test_masks_of_another_model_are_refused(way):
    model, recipe = pruned(), replace(SHORT, mode=way)
    copied, before = copy.deepcopy(model), bits(model)
    with pytest.raises(mp.PruneError, match=r"q_proj: its mask .* the model has not got"):
        recover(copied, counting(), recipe, masks=masks_of(mp.find_layers(model)))
    assert bits(copied) == bits(model) == before


def test_zeros_are_counted_after_training():
    layers = mp.find_layers(model := pruned())
    expected = sum(int((layer.weight == 0).sum()) for layer in layers[1:]) / sum(x.weight.numel() for x in layers)

    def spoil(step):
        layers[0].weight.fill_(1.0)

    done = recover(model, counting(), SHORT, after_step=spoil)
    assert done.zeros == pytest.approx(expected)
    assert recover(pruned(), counting(), SHORT, masks={}).zeros == 0


@pytest.mark.parametrize("way", ["full", "adapters"])
def test_products_in_bfloat16_leave_weights_and_zeros_as_they_are(way):
    model, test = pruned(pattern="2:4"), {"counting": counting(3)}
    zeros = {layer.name: layer.weight == 0 for layer in mp.find_layers(model)}
    recipe = Recipe(30, 4, 0.01, 3, mode=way, evaluate=30, bfloat16=True)
    done = recover(model, counting(), recipe, test=test)
    before, after = (row["perplexity"]["counting"] for row in done.rows)
    assert after < 0.3 * before
    assert after == pytest.approx(mp.perplexity(model, test["counting"]), rel=0.05)  # measured in float32
    assert after != mp.perplexity(model, test["counting"])
    for layer in mp.find_layers(model):
        assert layer.weight.dtype == torch.float32 and torch.equal(layer.weight == 0, zeros[layer.name]), layer.name


@pytest.mark.parametrize("way", ["full", "adapters"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_callers_autocast_changes_nothing(way, bfloat16):
    """Autocast remembers the weights it has rounded until it ends: steps inside one would all see the first ones."""
    recipe, found = replace(SHORT, mode=way, bfloat16=bfloat16), []
    for inside in (False, True):
        model = pruned()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            recover(model, counting(), recipe, test={"counting": counting(2)})
        found.append(bits(model))
    assert found[0] == found[1]


@pytest.mark.parametrize("way", ["full", "adapters"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_checkpoints_of_activations_save_memory_and_change_nothing(way, reentrant, bfloat16, monkeypatch):
    """What is computed anew in the backward pass is computed as it was: in widened products, too."""
    monkeypatch.setattr("minprune.pipeline.precision.cpu_multiplies", lambda kind: False)
    found = []
    for checkpoints in (False, True):
        model = pruned()
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        recover(model, counting(), replace(SHORT, mode=way, bfloat16=bfloat16))
        assert model.is_gradient_checkpointing == checkpoints
        found.append(bits(model))
    assert found[0] == found[1]


@pytest.mark.parametrize("flags", [{"return_dict": False}, {"output_hidden_states": True, "use_cache": True}])
def test_what_a_configuration_has_a_model_answer_changes_nothing_and_stays(flags):
    found = []
    for changes in ({}, flags):
        model = pruned(**changes)
        recover(model, counting(), SHORT)
        assert all(getattr(model.config, key) == value for key, value in changes.items())
        found.append(bits(model))
    assert found[0] == found[1]


UNFIT = {
    "on no device": (lambda m: m.to("meta"), r"embed_tokens\.weight is elsewhere"),
    "a head on no device": (lambda m: m.lm_head.to("meta"), r"lm_head\.weight is elsewhere"),
    "a parametrised matrix": (
        lambda m: parametrizations.spectral_norm(m.model.layers[1].mlp.up_proj),
        r"layers\.1\.mlp\.up_proj: its weight is computed by a parametrisation",
    ),
    "a head of inference mode": (
        lambda m: torch.inference_mode()(
            lambda: setattr(m.lm_head, "weight", torch.nn.Parameter(m.lm_head.weight.clone(), requires_grad=False))
        )(),
        r"lm_head\.weight was made under torch\.inference_mode",
    ),
}


@pytest.mark.parametrize("way", ["full", "adapters"])
@pytest.mark.parametrize("what", UNFIT)
def test_numbers_that_cannot_change_are_refused_by_name(what, way):
    change, said = UNFIT[what]
    model = pruned(tie_word_embeddings=False)
    change(model)
    with pytest.raises(mp.PruneError, match=said):
        recover(model, counting(), replace(SHORT, mode=way))


def test_ctrl_c_while_adapters_are_put_in_leaves_an_ordinary_model(monkeypatch):
    model, register, count = pruned(), parametrize.register_parametrization, itertools.count()
    before, learnable = bits(model), [p.requires_grad for p in model.parameters()]

    def stopped(*given):
        if next(count) == 3:
            raise KeyboardInterrupt
        return register(*given)

    monkeypatch.setattr(parametrize, "register_parametrization", stopped)
    with pytest.raises(KeyboardInterrupt):
        recover(model, counting(), replace(SHORT, mode="adapters"))
    assert bits(model) == before and [p.requires_grad for p in model.parameters()] == learnable
    assert not any(map(parametrize.is_parametrized, model.modules()))


# --- distillation


def test_the_loss_is_the_divergence_that_numpy_finds():
    teacher, student, tokens = tiny_model("llama"), pruned(), tiny_tokens(2, 9)
    T = 2.0
    with torch.no_grad():
        p, q = (
            scipy.special.log_softmax(m(input_ids=tokens).logits.numpy().astype(np.float64) / T, axis=-1)
            for m in (teacher, student)
        )
        logq = scipy.special.log_softmax(student(input_ids=tokens).logits.numpy().astype(np.float64), axis=-1)
        h, g = (
            [x.numpy() for x in m(input_ids=tokens, output_hidden_states=True).hidden_states]
            for m in (student, teacher)
        )
        found = float(Distillation(teacher, share=0.75, temperature=T, hidden=0.5)(student, tokens))
    divergence = (np.exp(p) * (p - q)).sum(-1).mean()
    text = -np.take_along_axis(logq[:, :-1], tokens[:, 1:, None].numpy(), -1).mean()
    apart = np.mean([((a - b) ** 2).sum() / (b**2).sum() for a, b in zip(h, g, strict=True)])
    assert found == pytest.approx(0.75 * T**2 * divergence + 0.25 * text + 0.5 * apart, rel=1e-4)
    with torch.no_grad():
        assert float(Distillation(teacher, hidden=1.0)(teacher, tokens)) == pytest.approx(0, abs=1e-6)
        assert float(Distillation(teacher, share=0)(student, tokens)) == pytest.approx(
            float(language_loss(student, tokens))
        )


@pytest.mark.parametrize("hidden", [0.0, 1.0])
def test_a_student_comes_closer_to_its_teacher_which_does_not_move(hidden):
    teacher, student, tokens = tiny_model("llama"), pruned(), tiny_tokens(8, 16)
    before, masks = bits(teacher), masks_of(mp.find_layers(student))
    from minprune.evaluation.perplexity import divergence

    first = divergence(student, teacher, tokens).kl
    recipe = Recipe(steps=25, batch_size=8, lr=5e-3, warmup=2, evaluate=99)
    recover(student, tokens, recipe, teacher=Distillation(teacher, hidden=hidden))
    assert divergence(student, teacher, tokens).kl < 0.5 * first
    assert bits(teacher) == before and all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(layer.weight != 0, keep) for layer, keep in masks.items())


@pytest.mark.parametrize(
    "wrong",
    [{"share": 1.5}, {"temperature": 0.0}, {"temperature": 1e-40}, {"temperature": float("inf")}, {"hidden": -1.0}],
)
def test_distillations_that_cannot_be_are_refused(wrong):
    with pytest.raises(mp.PruneError, match=next(iter(wrong))):
        Distillation(torch.nn.Identity(), **wrong)


@pytest.mark.parametrize("way", ["full", "adapters"])
def test_in_inference_mode_it_learns_what_it_learns_outside_and_the_weights_stay_ordinary(way):
    models = [pruned() for _ in range(2)]
    recover(models[0], counting(), replace(SHORT, mode=way))
    with torch.inference_mode():
        recover(models[1], counting(), replace(SHORT, mode=way))
    assert bits(models[0]) == bits(models[1])
    assert not any(parameter.is_inference() for parameter in models[1].parameters())


def test_a_callers_autocast_forgets_the_weights_before_training():
    model = pruned()
    with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
        before = model(tiny_tokens()).logits
        recover(model, counting(), SHORT)
        after = model(tiny_tokens()).logits
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert torch.equal(model(tiny_tokens()).logits, after) and not torch.equal(before, after)


def test_too_few_windows_are_told_before_anything_is_measured(monkeypatch):
    measured = []
    monkeypatch.setattr("minprune.training.recover.perplexity", lambda *given: measured.append(given) or 1.0)
    with pytest.raises(mp.PruneError, match="3 windows are too few for batches of 4"):
        recover(pruned(), counting(3), replace(SHORT, batch_size=4), test={"same": counting(3)})
    assert measured == []


def test_a_teacher_says_the_same_each_time_and_keeps_its_mode():
    teacher = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    teacher.transformer.ln_f.eval()
    student, tokens = tiny_model("gpt2", seed=1), tiny_tokens()
    losses = {float(Distillation(teacher)(student, tokens).detach()) for _ in range(3)}
    assert losses == {float(Distillation(copy.deepcopy(teacher).eval())(student, tokens).detach())}
    assert teacher.training and not teacher.transformer.ln_f.training
