"""A smaller model computes what the larger one with zeros does, and is what its own configuration describes."""

import copy
import re
from contextlib import nullcontext

import psutil
import pytest
import torch
from tiny import FAMILIES, tiny_model, tiny_tokens
from torch.nn.utils import prune as torch_prune
from transformers import AutoModelForCausalLM

import minprune as mp
from minprune.structured.cut import Cut, apply_cut
from minprune.structured.depth import angular_distance, block_influence, choose_blocks, refit, stream_of, without
from minprune.structured.removals import removal
from minprune.structured.shrink import shrink
from minprune.structured.units import heads, neurons

REMOVALS = ("neurons:25%", "heads:1/2", "blocks:1")
# in DiffLlama heads work in pairs, those of one half with those of the other: whose partner is gone does something else
REFUSED = {("mixtral", "neurons:25%"), ("bloom", "neurons:25%"), ("diffllama", "heads:1/2")} | {
    (family, "heads:1/2") for family in ("opt", "gpt2", "gpt_neox", "falcon", "bloom", "gptj", "olmo2")
}


@pytest.mark.parametrize("what", REMOVALS)
@pytest.mark.parametrize("family", [*FAMILIES, "diffllama"])
def test_a_smaller_model_is_saved_and_loaded_by_transformers_alone(family, what, tmp_path):
    model, tokens = tiny_model(family), tiny_tokens()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if (family, what) in REFUSED:
        with pytest.raises(mp.PruneError, match=type(model).__name__):
            shrink(model, tokens, what)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        return
    shrink(model, tokens, what)
    assert model.num_parameters() < sum(value.numel() for value in before.values())
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(tokens).logits
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(again(tokens).logits, expected)
    assert again.config.to_dict() == AutoModelForCausalLM.from_pretrained(tmp_path).config.to_dict()
    assert model.generate(tokens[:1], max_new_tokens=3, do_sample=False).shape == (1, tokens.shape[1] + 3)


@pytest.mark.parametrize("what", ["neurons:25%", "heads:1/2"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi", "gpt2", "starcoder2", "cohere", "diffllama"])
def test_cutting_changes_nothing_that_pruning_whole_inputs_has_not_changed(family, what):
    if (family, what) in REFUSED:
        pytest.skip("refused, see above")
    model, tokens = tiny_model(family, torch.float64), tiny_tokens()
    twin = copy.deepcopy(model)
    units = (neurons(twin)[2] if what.startswith("neurons") else heads(twin)[1]) if twin else []
    shape = heads(twin)[0] if what.startswith("heads") else None
    parts = "" if not shape or shape.groups == shape.queries else f":{shape.groups}"
    pattern = "columns:25%" if not shape else f"columns{shape.width}:50%{parts}"
    mp.prune(twin, tokens, "obs", pattern, include=[unit.reader.name for unit in units])
    shrink(model, tokens, what)
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, twin(tokens).logits, atol=1e-9)


DEEP = {  # four blocks; whether all blocks of a family are alike, or depend on their number
    "llama": {"num_hidden_layers": 4},
    "gemma3": {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt2": {"n_layer": 4, "scale_attn_by_inverse_layer_idx": True},
    "diffllama": {"num_hidden_layers": 4},
    "bamba": {"num_hidden_layers": 4},
    "gemma3n": {},
    "gemma4": {},
    "zamba2": {},
}


@pytest.mark.parametrize("family", DEEP)
def test_the_loss_that_greedy_has_seen_is_that_of_the_model_which_is_left(family, tmp_path):
    """The numbers of blocks matter in DiffLlama and here in GPT-2; keys and values are shared in the Gemmas."""
    model, tokens = tiny_model(family, **DEEP[family]), tiny_tokens()
    depth, refused = model.config.num_hidden_layers, "cannot be cut"
    losses = {}
    for block in range(depth):
        smaller = copy.deepcopy(model)
        try:
            apply_cut(smaller, Cut(blocks=[b for b in range(depth) if b != block]))
        except mp.PruneError:
            continue
        smaller.save_pretrained(tmp_path / str(block))
        losses[block] = mp.perplexity(AutoModelForCausalLM.from_pretrained(tmp_path / str(block)), tokens)
    if not losses:
        with pytest.raises(mp.PruneError, match=refused):
            shrink(model, tokens, "blocks:1", "greedy")
        return
    shrink(model, tokens, "blocks:1", "greedy", repair="none")
    assert mp.perplexity(model, tokens) == pytest.approx(min(losses.values()), rel=1e-6)


@pytest.mark.parametrize(("family", "told"), [("llama", []), ("gemma3", []), ("gpt2", [2, 3]), ("diffllama", [2, 3])])
def test_blocks_that_compute_something_else_under_another_number_are_named(family, told):
    """GPT-2 may divide attention by the block's number, DiffLlama takes a constant from it."""
    model, tokens = tiny_model(family, **DEEP[family]), tiny_tokens()
    with torch.no_grad():
        for layer in mp.find_layers(model):
            if ".1." in layer.name:  # so that block 1 goes
                layer.weight.mul_(1e-3)
    report = shrink(model, tokens, "blocks:1", "influence", repair="none")
    assert report.notes[0] == "blocks 1 of 4 removed"
    said = [note for note in report.notes if "under its new number" in note]
    assert [note.split(" computes")[0] for note in said] == ([f"block {', '.join(map(str, told))}"] if told else [])


@pytest.mark.parametrize("repair", ["refit", "none"])
@pytest.mark.parametrize("what", ["neurons:25%", "heads:1/2", "blocks:1", "hidden:25%"])
def test_a_pruned_model_that_loses_zeros_is_told_how_many(what, repair):
    model, tokens = tiny_model("llama", num_hidden_layers=3), tiny_tokens()
    mp.prune(model, tokens, "wanda", "50%")
    report = shrink(model, tokens, what, repair=repair)
    weights = [layer.weight for layer in mp.find_layers(model)]
    left = sum(int((W == 0).sum()) for W in weights) / sum(W.numel() for W in weights)
    said = [note for note in report.notes if "were zero" in note]
    assert bool(said) == (left <= 0.49) and all(f"{left:.1%} are" in note for note in said)


def test_without_leaves_the_model_as_it_was():
    model, tokens = tiny_model("llama", num_hidden_layers=4), tiny_tokens()
    config = model.config.to_dict()
    with torch.no_grad():
        expected = model(tokens).logits
        with pytest.raises(ZeroDivisionError), without(model, {1, 2}):
            assert model.config.num_hidden_layers == len(model.model.layers) == 2
            raise ZeroDivisionError
        assert torch.equal(model(tokens).logits, expected) and model.config.to_dict() == config


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_a_refit_reaches_the_dense_stream_through_whatever_follows_the_matrix(factor):
    """Granite multiplies what a block adds by a number: with w times as large matrices it is the same model."""
    tokens, found = tiny_tokens(40, 24), []
    for multiplier in (1.0, factor):
        model = tiny_model("granite", torch.float64, num_hidden_layers=4, residual_multiplier=multiplier)
        with torch.no_grad():
            for block in model.model.layers:
                block.self_attn.o_proj.weight /= multiplier
                block.mlp.down_proj.weight /= multiplier
        shrink(model, tokens, "blocks:1", "influence")
        with torch.no_grad():
            found.append(model(tokens).logits)
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("family", [*FAMILIES, "hunyuan", "afmoe", "mamba", "diffllama"])
def test_a_refit_never_leaves_the_stream_farther_from_the_dense_one(family):
    changes = {"n_layer": 4} if family in ("gpt2", "gptj", "bloom") else {"num_hidden_layers": 4}
    changes |= DEEP.get(family, {})
    dense, tokens = tiny_model(family, **changes), tiny_tokens(16)
    target, errors = stream_of(dense, tokens)[-1], {}
    for repair in ("none", "refit"):
        model = copy.deepcopy(dense)
        report = shrink(model, tokens, "blocks:1", "influence", repair)
        errors[repair] = float((stream_of(model, tokens)[-1] - target).square().sum())
    stays = any("stays as it was" in note for note in report.notes)
    assert errors["refit"] == errors["none"] if stays else errors["refit"] <= errors["none"]


def test_greedy_takes_the_block_whose_absence_costs_least():
    model, tokens = tiny_model("llama", num_hidden_layers=4), tiny_tokens()
    losses = []
    for block in range(4):
        with without(model, {block}):
            losses.append(mp.perplexity(model, tokens))
    assert choose_blocks(model, tokens, 1, "greedy") == [b for b in range(4) if b != losses.index(min(losses))]


def test_trying_blocks_under_a_callers_autocast_keeps_no_weights_of_what_was_tried():
    """Each model that is tried has casts of its own weights, 12 MB a block here; a kept one would be found by size."""
    size = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6}
    model, tokens, process = tiny_model("llama", **size), tiny_tokens(2, 8), psutil.Process()
    with torch.autocast("cpu", torch.bfloat16):
        choose_blocks(model, tokens, 1, "loss")
        before = process.memory_info().rss
        for _ in range(3):
            choose_blocks(model, tokens, 1, "loss")
        assert process.memory_info().rss - before < 60e6  # 18 models of 40 MB


def test_a_block_that_adds_nothing_has_no_influence_and_goes_first():
    model, tokens = tiny_model("llama", num_hidden_layers=4), tiny_tokens()
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.get_submodule(f"model.layers.2.{name}").weight.zero_()
        expected = model(tokens).logits
    streams = stream_of(model, tokens)
    assert block_influence(streams[2], streams[3]) == pytest.approx(0, abs=1e-6)
    assert angular_distance(streams[2], streams[3]) == pytest.approx(0, abs=1e-3)
    for how in ("influence", "angle"):  # greedy may prefer another: random tokens are easier for a broken model
        smaller = copy.deepcopy(model)
        shrink(smaller, tokens, "blocks:1", how)
        with torch.no_grad():
            assert torch.allclose(smaller(tokens).logits, expected, atol=1e-5), how


def test_a_refit_before_the_cut_brings_the_stream_nearer_to_the_dense_one():
    tokens = tiny_tokens(40, 24)
    dense = tiny_model("llama", num_hidden_layers=4)
    target = stream_of(dense, tokens)[-1]
    errors = {}
    for repair in ("none", "refit"):
        model = copy.deepcopy(dense)
        shrink(model, tokens, "blocks:2", "influence", repair)
        errors[repair] = float((stream_of(model, tokens)[-1] - target).square().sum())
    assert errors["refit"] < 0.9 * errors["none"]


@pytest.mark.parametrize(
    "text",
    [
        "neurons",
        "neurons:100%",
        "neurons:0%",
        "heads:1/0",
        "blocks:-1",
        "blocks:2",
        "blocks:0",
        "layers:1",
        "heads:1/3",
    ],
)
def test_what_cannot_be_removed_is_refused_in_a_line_and_changes_nothing(text):
    model, tokens = tiny_model("llama"), tiny_tokens()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(mp.PruneError) as caught:
        shrink(model, tokens, text)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("what", ["neurons:25%", "blocks:1", "hidden:25%"])
@pytest.mark.parametrize(
    "options",
    [{"dampp": 1.0}, {"include": ["*"]}, {"damp": -1.0}, {"damp": float("nan")}, {"damp": float("inf")}, {"damp": "x"}],
)
def test_an_option_that_cannot_be_is_refused_for_every_kind_of_removal(what, options):
    """A damping of NaN went round for ever: nothing is more than it."""
    model, tokens = tiny_model("llama", num_hidden_layers=3), tiny_tokens()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(mp.PruneError, match=r"damp|include"):
        shrink(model, tokens, what, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_shares_and_numbers_are_read():
    assert removal("neurons:25%").of(48) == 12
    assert removal("heads:1/3").of(9) == 3
    assert removal("blocks:4").of(30) == 4


@pytest.mark.parametrize("what", ["blocks:0", "heads:00", "neurons:0%", "groups:0/3", "hidden:100%", "heads:3/3"])
def test_what_removes_nothing_or_everything_is_refused_when_it_is_read(what):
    with pytest.raises(mp.PruneError, match="removes nothing or everything"):
        removal(what)


AROUND = {
    "train mode": nullcontext,
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("how", ["influence", "angle", "greedy"])
@pytest.mark.parametrize("around", AROUND)
def test_what_is_set_around_the_removal_of_blocks_changes_nothing(around, how):
    """GPT-2 has dropout, which in train mode would change what the refit is made of."""
    models = [tiny_model("gpt2", n_layer=4) for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if around == "autocast" else nullcontext():
        shrink(models[0], tiny_tokens(), "blocks:1", how)
    models[1].train(around == "train mode")
    with AROUND[around]():
        if around == "autocast":
            with torch.enable_grad():
                models[1](tiny_tokens())  # which leaves the weights in autocast's cache
        shrink(models[1], tiny_tokens(), "blocks:1", how)
    assert models[1].training == (around == "train mode")
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other) and not other.is_inference()


@pytest.mark.parametrize("precision", ["medium", "high"])
def test_a_refit_is_solved_in_the_arithmetic_of_its_dtype(precision):
    W = torch.zeros(32, 48)
    generator = torch.Generator().manual_seed(0)
    Z, R = (torch.randn(5, 24, d, generator=generator) for d in (48, 32))
    expected = W.double()
    refit(expected, Z.double(), R.double(), torch.zeros(5, 24, 32).double(), 0.01)
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            refit(W, Z, R, torch.zeros(5, 24, 32), 0.01)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (W - expected).abs().max() < 1e-5 * expected.abs().max()
    wide = Z.double().reshape(-1, 48)
    gram = wide.T @ wide
    gram += 0.01 * gram.diagonal().mean() * torch.eye(48).double()
    byhand = torch.linalg.solve(gram, wide.T @ R.double().reshape(-1, 32)).T
    torch.testing.assert_close(expected, byhand, rtol=1e-9, atol=1e-12)  # float64 was not narrowed


@pytest.mark.parametrize("what", ["neurons:25%", "blocks:1", "hidden:25%"])
def test_what_is_no_model_or_computes_its_weights_is_refused_with_the_remedy(what):
    model = tiny_model("llama", num_hidden_layers=3)
    torch_prune.l1_unstructured(model.model.layers[1].mlp.down_proj, "weight", 0.5)
    damaged = tiny_model("llama", num_hidden_layers=3)
    damaged.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    for one, said in [
        (model, r"layers\.1\.mlp\.down_proj.*torch\.nn\.utils\.prune\.remove"),
        (damaged, r"layers\.1\.mlp\.down_proj: its weights hold NaN"),
        (torch.nn.Linear(4, 4), "Linear is no Hugging Face causal language model"),
        (None, "NoneType is no Hugging Face"),
    ]:
        with pytest.raises(mp.PruneError, match=said):
            shrink(one, tiny_tokens(), what, repair="none")


@pytest.mark.parametrize("what", ["neurons:25%", "blocks:1"])
def test_a_loss_that_no_token_has_is_no_reason_to_choose(what):
    """The mean over no tokens is NaN, and so were all scores."""
    with pytest.raises(mp.PruneError, match="windows of 1 token predict nothing"):
        shrink(tiny_model("llama"), tiny_tokens(8, 1), what, "taylor")


@pytest.mark.parametrize("family", ["rwkv", "mamba"])
def test_a_family_without_heads_is_refused_in_a_line(family):
    with pytest.raises(mp.PruneError, match="remove neurons or blocks"):
        shrink(tiny_model(family), tiny_tokens(), "heads:1/2")


def test_blocks_of_a_model_that_sees_the_future_are_not_removed():
    model = tiny_model("llama", num_hidden_layers=4)
    model.model.layers[1].register_forward_hook(lambda module, args, out: out + out.mean(1, keepdim=True))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(mp.PruneError, match="not causal"):
        shrink(model, tiny_tokens(), "blocks:1")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("remove", ["neurons:25%", "blocks:1", "hidden:25%", "neurons:25% blocks:1"])
def test_modules_that_a_caller_keeps_in_eval_mode_stay_in_it_under_their_new_names(remove):
    model = tiny_model("llama", num_hidden_layers=4).train()
    for index, block in enumerate(model.model.layers):
        block.self_attn.train(index % 2 == 0)
    model.model.norm.eval()
    report = shrink(model, tiny_tokens(), remove.split())
    gone = re.findall(r"blocks (\d) of 4 removed", " ".join(report.notes))
    kept = [index for index in range(4) if str(index) not in gone]
    assert len(gone) == ("blocks" in remove) and len(kept) == len(model.model.layers)
    for index, block in zip(kept, model.model.layers, strict=True):
        attention = list(block.self_attn.modules())
        assert block.training and block.mlp.training
        assert [module.training for module in attention] == [index % 2 == 0] * len(attention)
    assert model.training and model.lm_head.training and not model.model.norm.training


@pytest.mark.parametrize("remove", ["neurons:25%", "blocks:1", "hidden:25%"])
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_frozen_stays_so_under_its_new_name(remove, tied):
    model = tiny_model("llama", num_hidden_layers=3, tie_word_embeddings=tied)
    model.model.embed_tokens.requires_grad_(False)
    for index, block in enumerate(model.model.layers):
        block.requires_grad_(index != 1)
    report = shrink(model, tiny_tokens(), remove)
    gone = re.findall(r"blocks (\d) of 3 removed", " ".join(report.notes))
    kept = [index for index in range(3) if str(index) not in gone]
    for index, block in zip(kept, model.model.layers, strict=True):
        assert {parameter.requires_grad for parameter in block.parameters()} == {index != 1}
    assert not model.model.embed_tokens.weight.requires_grad and model.model.norm.weight.requires_grad
    assert model.lm_head.weight.requires_grad == (not tied)


@pytest.mark.parametrize("family", ["llama", "gpt2", "diffllama"])
def test_a_callers_random_numbers_go_on_as_if_nothing_had_been_removed(family):
    """Some families draw parameters of their own where a model is only described."""
    model = tiny_model(family)
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    shrink(model, tiny_tokens(), "neurons:25%")
    shrink(model, tiny_tokens(), "blocks:1")
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    "what, method", [("neurons:25%", "taylor"), ("blocks:1", "taylor"), ("hidden:25%", "outputs"), ("blocks:1", "loss")]
)
def test_windows_that_were_made_in_inference_mode_are_windows_like_others(what, method):
    with torch.inference_mode():
        tokens = tiny_tokens().clone()
    assert tokens.is_inference()
    found, expected = tiny_model("llama"), tiny_model("llama")
    shrink(found, tokens, what, method)
    shrink(expected, tiny_tokens(), what, method)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    "what, method",
    [*(("blocks:1", how) for how in ("influence", "attention", "angle", "taylor", "loss", "greedy")),
     *(("hidden:25%", how) for how in ("slicegpt", "outputs", "channels")), ("neurons:25%", "taylor")],
)  # fmt: skip
def test_nothing_is_chosen_by_numbers_that_are_none(what, method):
    model = tiny_model("llama", num_hidden_layers=3)
    with torch.no_grad():
        model.model.embed_tokens.weight[int(tiny_tokens()[0, 0])] = float("nan")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(mp.PruneError, match="NaN"):
        shrink(model, tiny_tokens(), what, method)
    assert all(
        torch.equal(value.nan_to_num(7), before[name].nan_to_num(7)) for name, value in model.state_dict().items()
    )
