"""Blocks that hand each other more than hidden states: the same weights in every form of the driver.

The forms are compared with one pass, which is the model's own forward pass with hooks, and with plain hooks.
"""

import copy
from functools import partial

import pytest
import torch
from odd_blocks import ALONE, KINDS, OddConfig, OddForCausalLM
from safetensors.torch import load_file
from test_checkpoint import stop_after, stopped, write_tokenizer
from tiny import HANDING_ON, tiny_model, tiny_tokens

import minprune as mp
from minprune.allocation.budget import group_layers
from minprune.allocation.sensitivity import sensitivity, trial
from minprune.models import memory
from minprune.models.blocks import decoder_blocks
from minprune.models.forward import BlockwiseForward
from minprune.models.leftovers import Leftovers
from minprune.models.passes import record_calls
from minprune.pipeline import staged as stages
from minprune.pipeline.recipes import Recipe
from minprune.pipeline.reconstruction import Reconstruction

CASES = [*KINDS, *HANDING_ON]
LEARNERS = [case for case in CASES if case != "in place"]
QUICK = ("four axes", "scaled state", "shared dict", "object", "gemma4")  # these always, all others with the slow tests


def mostly_slow(cases):
    return [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in cases]


LEARNING = Recipe("wanda", reconstruction=Reconstruction(epochs=2, batch_size=2, bfloat16=False))


def made(case, dtype=torch.float64):
    """A random model of a hand-made kind or of a family."""
    if case in HANDING_ON:
        return tiny_model(case, dtype)
    model = OddForCausalLM(OddConfig(case)).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def pruned(model, *args, calib=None, **options):
    model = copy.deepcopy(model)
    calib = tiny_tokens() if calib is None else calib
    report = mp.prune(model, calib, *args, **options)
    return model, report


def assert_close(model, other):
    for (name, value), found in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(value == 0, found == 0), name
        torch.testing.assert_close(value, found, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", CASES)
def test_any_batch_size_gives_the_weights_of_one_batch(case):
    """In float64, where only the order of the sums differs; batches of 2, 2 and 1 windows."""
    model = made(case)
    one, _ = pruned(model, "sparsegpt", "50%")
    some, _ = pruned(model, "sparsegpt", "50%", batch_size=2)
    assert_close(one, some)


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"sequential": False}, {"recipe": LEARNING}])
def test_a_layer_that_is_called_with_a_named_argument_is_pruned_as_any_other(options):
    method = None if "recipe" in options else "sparsegpt"
    found, _ = pruned(made("by name"), method, "50%", **options)
    expected, report = pruned(made("by position"), method, "50%", **options)
    assert_close(found, expected)
    assert all(row.error for row in report.layers)


def hooked_inputs(model, block, tokens):
    """layer -> what a hook on it sees while the model itself reads the tokens, (tokens, d_in)."""
    seen = {layer: [] for layer in block}

    def see(layer, module, args):
        seen[layer].append(args[0].reshape(-1, args[0].shape[-1]))

    handles = [layer.module.register_forward_pre_hook(partial(see, layer)) for layer in block]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return {layer: torch.cat(inputs) for layer, inputs in seen.items()}


@pytest.mark.parametrize("case", CASES)
def test_two_passes_are_the_published_loop_written_with_hooks(case):
    """Block by block, with hooks on the layers of the dense block, but for two kinds that a hook sees otherwise."""
    model = made(case)
    odd = {"mamba": ["*.dt_proj"], "gemma3n": ["*.altup.*"]}.get(case, [])
    found, expected = copy.deepcopy(model), copy.deepcopy(model)
    mp.prune(found, tiny_tokens(), "sparsegpt", "50%", sequential=False, batch_size=2, exclude=odd)
    for block in group_layers(mp.find_layers(expected, exclude=odd)).values():
        for layer, X in hooked_inputs(expected, block, tiny_tokens()).items():
            stats = mp.Statistics(X.shape[-1], dtype=X.dtype).update(X)
            layer.weight.copy_(mp.METHODS["sparsegpt"](layer.weight, stats, mp.pattern("50%")).weight)
    assert_close(found, expected)


@pytest.mark.parametrize("windows", [2, 5])
@pytest.mark.parametrize(
    "options",
    [{"batch_size": 1}, {"batch_size": 2, "sequential": False}, {"recipe": LEARNING}],
    ids=["staged", "two passes", "reconstructed"],
)
def test_what_blocks_leave_in_the_model_and_read_again_is_refused_in_parts_and_pruned_in_one_batch(options, windows):
    """Two windows are one batch of each walk of a reconstruction, and the walks disturb each other."""
    calib, method = tiny_tokens(windows), None if "recipe" in options else "wanda"
    if options.get("batch_size", 0) >= windows:
        options = options | {"batch_size": 1}
    with pytest.raises(mp.PruneError, match=r"block [123] of OddForCausalLM reads .*store\.keys.*in one batch"):
        pruned(made("left behind"), method, "50%", calib=calib, **options)
    model, _ = pruned(made("left unread"), method, "50%", calib=calib, **options)
    other, _ = pruned(made("tensor"), method, "50%", calib=calib, **options)
    assert_close(model, other)
    _, report = pruned(made("left behind"), "wanda", "50%", calib=calib)
    assert report.sparsity == 0.5 and all(row.error for row in report.layers)


def test_what_blocks_leave_in_the_model_is_refused_from_disk_to_disk(tmp_path):
    made("left behind", torch.float32).save_pretrained(write_tokenizer(tmp_path / "src"))
    with pytest.raises(mp.PruneError, match=r"reads .*store\.keys"):
        mp.prune_checkpoint(tmp_path / "src", tmp_path / "out", tiny_tokens(), "wanda", "50%")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", mostly_slow(CASES))
@pytest.mark.parametrize("options", [{"batch_size": 2}, {"recipe": LEARNING}], ids=["wanda", "reconstructed"])
def test_from_disk_to_disk_stopped_and_resumed_is_bit_for_bit_the_same(case, options, tmp_path, monkeypatch):
    if case == "in place" and "recipe" in options:
        return  # refused: see below
    src = write_tokenizer(tmp_path / "src")
    made(case, torch.float32).save_pretrained(src)
    model = mp.load_model(src)[0]
    test, calib = tiny_tokens(3, seed=7), tiny_tokens()
    options = {"calib": calib, "method": "wanda", **options}
    expected = mp.prune(model, **options)
    report = mp.prune_checkpoint(src, tmp_path / "plain", test=test, **options)
    found = mp.load_model(tmp_path / "plain")[0]
    for (name, value), other in zip(model.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert [row.error for row in report.layers] == [row.error for row in expected.layers]
    assert report.perplexity["after"] == pytest.approx(mp.perplexity(model, test), rel=1e-6)
    stopped(src, tmp_path / "out", 1, monkeypatch, test=test, **options)
    begun = stop_after(None, monkeypatch)
    again = mp.prune_checkpoint(src, tmp_path / "out", test=test, resume=True, **options)
    assert begun == list(range(1, model.config.num_hidden_layers))
    for path in (tmp_path / "plain").glob("*.safetensors"):
        resumed = load_file(tmp_path / "out" / path.name)
        assert all(torch.equal(value, resumed[name]) for name, value in load_file(path).items())
    assert again.perplexity == report.perplexity
    assert again.reconstruction.get("errors") == report.reconstruction.get("errors")


def block_outputs(model, tokens):
    """The hidden states that each block returns, from plain hooks."""
    seen = []
    _, blocks = decoder_blocks(model)

    def keep(module, args, out):
        kind = model.config.kind if isinstance(model.config, OddConfig) else ""
        if kind in ("object", "loss first"):
            out = out.hidden if kind == "object" else out[1]
        seen.append((out if isinstance(out, torch.Tensor) else out[0]).clone())

    handles = [block.register_forward_hook(keep) for block in blocks]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("case", mostly_slow(LEARNERS))
def test_reconstruction_learns_from_what_reaches_the_block_in_the_pruned_model(case):
    """Of the last block, whose first error is measured before any step: it is that of the plain method, by hooks."""
    model = made(case)
    prefix, blocks = decoder_blocks(model)
    last = f"{prefix}.{len(blocks) - 1}"
    one_step = Recipe("wanda", reconstruction=Reconstruction(epochs=1, batch_size=5, min_sparsity=0, bfloat16=False))
    some = {"include": [f"{prefix}.0.*", f"{last}.*"]}
    trained, report = pruned(model, pattern="50%", recipe=one_step, **some)
    half = copy.deepcopy(trained)  # the trained first block, and the last one as wanda leaves it
    half.load_state_dict({k: v for k, v in model.state_dict().items() if f"{prefix}.0." not in k}, strict=False)
    mp.prune(half, tiny_tokens(), "wanda", "50%", include=[f"{last}.*"])
    got, wanted = block_outputs(half, tiny_tokens())[-1], block_outputs(model, tiny_tokens())[-1]
    error = float(((got - wanted).square().sum(-1) / wanted.square().sum(-1)).mean())
    assert report.reconstruction["errors"][last][0] == pytest.approx(error, rel=1e-6)


def test_blocks_that_no_gradient_comes_through_are_refused_by_name_before_any_work(tmp_path):
    model = made("in place")
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(mp.PruneError, match=r"blocks of OddForCausalLM cannot be reconstructed.*inplace"):
        mp.prune(model, tiny_tokens(), pattern="50%", recipe=LEARNING)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("case", mostly_slow(LEARNERS))
def test_reconstruction_in_batches_changes_nothing_but_rounding(case):
    model = made(case)
    one, _ = pruned(model, pattern="50%", recipe=LEARNING)
    some, _ = pruned(model, pattern="50%", recipe=LEARNING, batch_size=3)
    for (name, value), found in zip(one.named_parameters(), some.named_parameters(), strict=True):
        torch.testing.assert_close(value, found[1], rtol=1e-5, atol=1e-6, msg=name)


@torch.no_grad()
def divergence(dense, other, windows):
    p, q = (model(windows).logits.double().softmax(-1) for model in (dense, other))
    return float((p * (p / q).log()).sum(-1).mean())


@pytest.mark.parametrize("case", CASES)
def test_the_cost_of_a_block_is_that_of_a_model_in_which_it_is_pruned(case):
    model, calib = made(case), tiny_tokens(8, 16)
    rows = sensitivity(model, calib, "50%:row")
    layers = mp.find_layers(model)
    with trial(model, layers, calib) as running:
        norms = {layer.name: running.norms[layer] for layer in layers}
    for row, name in zip(rows, group_layers(layers), strict=True):
        other = copy.deepcopy(model)
        for layer in mp.find_layers(other, include=[f"{name}.*"]):
            layer.weight.copy_(mp.METHODS["wanda"](layer.weight, norms[layer.name], mp.pattern("50%:row")).weight)
        assert row.cost == pytest.approx(divergence(model, other, calib[-2:]), rel=1e-5), name


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_are_known_to_travel_alone_where_they_do(case):
    model = made(case)
    _, blocks = decoder_blocks(model)
    with torch.no_grad():
        alone = record_calls(model, blocks, tiny_tokens().split(2)) is not None
    assert alone == (case in ALONE or case in ("bamba", "gpt1", "mamba"))


@pytest.mark.parametrize("case", ["tensor", "shared dict", "cache"])
def test_a_rehearsal_leaves_no_trace(case):
    model = made(case)
    with torch.no_grad():
        walk, other = (BlockwiseForward(model, tiny_tokens().split(3)) for _ in range(2))
        for index in range(len(walk.blocks)):
            first, again = walk.rehearse(index, 0), walk.rehearse(index, 0)
            assert torch.equal(first, again)
            found = walk.run_block(index, keep=True)
            assert torch.equal(first, found[0])
            assert all(torch.equal(*pair) for pair in zip(found, other.run_block(index, keep=True), strict=True))


@pytest.mark.parametrize("case", QUICK)
def test_the_models_forwards_are_as_they_were(case):
    found, _ = pruned(made(case), "wanda", batch_size=2)
    assert not any("forward" in vars(module) for module in found.modules())


def test_blocks_called_in_another_order_are_refused_before_any_work():
    model = made("tensor")
    model.model.layers = torch.nn.ModuleList(list(model.model.layers))
    real = model.model.forward

    def twice(input_ids, **more):
        blocks = model.model.layers
        hidden = model.model.embed(input_ids)
        for block in (blocks[1], *blocks):
            hidden = block(hidden)
        return real.__globals__["hf"].modeling_outputs.BaseModelOutput(last_hidden_state=model.model.norm(hidden))

    model.model.forward = twice
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(mp.PruneError, match=r"OddForCausalLM does not call its blocks once each in their order"):
        mp.prune(model, tiny_tokens(), "wanda", batch_size=2)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_a_family_whose_forward_pass_changes_its_weights_is_refused_by_name_before_any_work():
    """RWKV halves some weights of its blocks from the seventh on, and again after a saved model is loaded."""
    model = tiny_model("rwkv", num_hidden_layers=7)
    before = [parameter.clone() for parameter in model.parameters()]
    for work in (partial(mp.prune, model, tiny_tokens(), "wanda"), partial(sensitivity, model, tiny_tokens(8, 16))):
        with pytest.raises(mp.PruneError, match=r"RwkvForCausalLM .* rescale_every"):
            work()
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    model.config.rescale_every = 0
    assert mp.prune(model, tiny_tokens(), "wanda", batch_size=2).sparsity == 0.5


def test_the_same_masks_and_positions_are_stored_once():
    model = tiny_model("gemma2", attn_implementation="eager")
    _, blocks = decoder_blocks(model)
    with torch.no_grad():
        calls = record_calls(model, blocks, tiny_tokens(7).split(2))
    masks = [[parts["attention_mask"] for parts in batch] for batch in calls.others]
    assert len({id(mask) for batch in masks[:3] for mask in batch}) == len({id(mask) for mask in masks[0]}) == 2
    assert masks[3][0].shape[0] == 1 and masks[0][0].shape[0] == 2


def test_starting_at_the_changed_block_runs_only_the_blocks_behind_it():
    model, calib, ran = made("tensor"), tiny_tokens(8, 16), []
    layers = mp.find_layers(model)
    with trial(model, layers, calib) as running:
        for index, block in enumerate(model.model.layers):
            block.up.register_forward_hook(partial(lambda i, *_: ran.append(i), index))
        running.cost(dict.fromkeys([layer for layer in layers if ".2." in layer.name], mp.pattern("50%")))
    assert set(ran) == {2, 3}


class InPlace(torch.nn.Module):
    """In the place of a Llama's MLP: its second layer reads the tensor of the first after that has changed it."""

    def __init__(self, mlp):
        super().__init__()
        self.first, self.second = torch.nn.Linear(32, 32, bias=False), torch.nn.Linear(32, 32, bias=False)
        self.first.weight.data = mlp.up_proj.weight.data[:32].clone()
        self.second.weight.data = mlp.gate_proj.weight.data[:32].clone()

    def forward(self, x):
        x = x.clone()
        x.add_(self.first(x))
        return self.second(x)


def test_a_layer_that_reads_a_tensor_after_an_earlier_layer_has_changed_it_sees_that_layer_pruned():
    model = tiny_model("llama", torch.float64)
    for block in model.model.layers:
        block.mlp = InPlace(block.mlp)
    one, _ = pruned(model, "sparsegpt", "50%")
    some, _ = pruned(model, "sparsegpt", "50%", batch_size=2)
    assert_close(one, some)


@pytest.mark.parametrize("kept, most", [(1, 1), (2 * 8 * 32**2, 2), (2**32, 4)])
def test_experts_are_pruned_alike_however_few_gram_matrices_are_kept_at_once(kept, most, monkeypatch):
    model = tiny_model("mixtral", torch.float64)
    expected, report = pruned(model, "sparsegpt", "50%", batch_size=2)
    real, counts = stages._Group._observe, []

    def observe(group, layer, X):
        real(group, layer, X)
        if layer.expert_index is not None:
            counts.append(len(group.observed))

    monkeypatch.setattr(stages, "_EXPERTS_GRAMS", kept)
    monkeypatch.setattr(stages._Group, "_observe", observe)
    found, again = pruned(model, "sparsegpt", "50%", batch_size=2)
    assert_close(expected, found)
    assert [row.error for row in report.layers] == [row.error for row in again.layers]
    assert max(counts) == most


@pytest.mark.parametrize("method", ["sparsegpt", "wanda", "magnitude"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_weight_that_is_used_without_its_module_is_pruned_on_what_it_is_multiplied_with(method, batch_size):
    """Mamba's dt_proj: the inputs are the first columns of what x_proj gives."""
    model = tiny_model("mamba", torch.float64)
    found, report = pruned(model, method, "50%", batch_size=batch_size)
    assert all(row.sparsity == 0.5 and row.note == "" for row in report.layers)
    mixer, dense = found.backbone.layers[0].mixer, model.backbone.layers[0].mixer
    seen = []
    handle = mixer.x_proj.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        found(tiny_tokens())
    handle.remove()
    X = seen[0][..., : mixer.time_step_rank].reshape(-1, mixer.time_step_rank)
    stats = mp.Statistics(X.shape[1], dtype=X.dtype).update(X)
    expected = mp.METHODS[method](dense.dt_proj.weight, stats, mp.pattern("50%")).weight
    torch.testing.assert_close(mixer.dt_proj.weight.data, expected, rtol=1e-9, atol=1e-11)


MODES = {
    "linear": lambda x, w: torch.nn.functional.linear(x, w),
    "linear by name": lambda x, w: torch.nn.functional.linear(input=x, weight=w),
    "weight by name": lambda x, w: torch.nn.functional.linear(x, weight=w),
    "matmul": lambda x, w: torch.matmul(x, w.T),
    "matmul by name": lambda x, w: torch.matmul(input=x, other=w.T),
    "operator": lambda x, w: x @ w.mT,
    "weight first": lambda x, w: (w @ x.mT).mT,
    "mm": lambda x, w: torch.mm(x.flatten(0, 1), w.t()).unflatten(0, x.shape[:2]),
}


class Uncalled(torch.nn.Module):
    """In the place of a Llama's MLP: one layer, whose module is called or whose weight is used in one of the WAYS."""

    def __init__(self, mlp, way):
        super().__init__()
        self.layer, self.way = torch.nn.Linear(32, 32, bias=False), way
        self.layer.weight.data = mlp.up_proj.weight.data[:32].clone()

    def forward(self, x):
        return MODES[self.way](x, self.layer.weight) if self.way else self.layer(x)


def with_use(way, **options):
    model = tiny_model("llama", torch.float64)
    for block in model.model.layers:
        block.mlp = Uncalled(block.mlp, way)
    return pruned(model, "sparsegpt", "50%", **options)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("way", MODES)
def test_products_with_a_weight_are_seen_in_every_way_they_are_written(way, batch_size):
    found, report = with_use(way, batch_size=batch_size)
    assert [row.note for row in report.layers] == [""] * len(report.layers)
    assert_close(with_use(None)[0], found)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_weight_whose_use_cannot_be_seen_is_left_dense_with_a_note_that_says_so(batch_size, monkeypatch):
    monkeypatch.setitem(MODES, "unseen", lambda x, w: torch.einsum("bti,oi->bto", x, w))
    _, report = with_use("unseen", batch_size=batch_size)
    for row in report.layers:
        assert ("used without it" in row.note) == ("mlp" in row.name) == (row.sparsity == 0)


def test_what_fits_into_memory_goes_through_at_once_and_the_report_says_how_many(monkeypatch):
    model, tokens = tiny_model("llama", torch.float64), tiny_tokens()
    one, report = pruned(model, "wanda")
    assert report.batch_size == len(tokens) and report.notes == []
    each = memory.bytes_per_window(model, mp.find_layers(model), tokens.shape[1])
    for free, size in ((4 * each, 2), (6.5 * each, 3), (0, 1), (1e12, 5)):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: int(free))
        found, report = pruned(model, "wanda")
        assert report.batch_size == report.as_dict()["batch_size"] == size
        assert any(f"{size} at a time" in note for note in report.notes) == (size < 5)
        assert_close(one, found)
        assert pruned(model, "wanda", batch_size=4)[1].batch_size == 4


def test_sixty_four_windows_of_the_bundled_model_are_one_batch_on_24_gigabytes(smollm2, monkeypatch):
    model, _ = smollm2
    monkeypatch.setattr(memory, "free_memory", lambda device: int(6e9))  # three quarters of them in use
    calib = torch.zeros(64, 512, dtype=torch.long)
    assert memory.windows_at_once(model, mp.find_layers(model), calib) == 64


def test_a_run_that_goes_on_keeps_the_number_that_was_chosen(tmp_path, monkeypatch):
    src = write_tokenizer(tmp_path / "src")
    model = made("pair", torch.float32)
    model.save_pretrained(src)
    options = {"calib": tiny_tokens(), "method": "wanda"}
    each = memory.bytes_per_window(model, mp.find_layers(model), 24)
    monkeypatch.setattr(memory, "free_memory", lambda device: 4 * each)
    mp.prune_checkpoint(src, tmp_path / "plain", **options)
    stopped(src, tmp_path / "out", 2, monkeypatch, **options)
    monkeypatch.setattr(memory, "free_memory", lambda device: 100 * each)
    report = mp.prune_checkpoint(src, tmp_path / "out", resume=True, **options)
    assert report.batch_size == 2
    for path in (tmp_path / "plain").glob("*.safetensors"):
        resumed = load_file(tmp_path / "out" / path.name)
        assert all(torch.equal(value, resumed[name]) for name, value in load_file(path).items())


def test_what_is_left_in_a_model_is_as_it_was_after_a_block_that_breaks_down_on_anything_else():
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.place = torch.zeros(1, dtype=torch.long)

    model, rows = Counting(), torch.randn(3, 2)
    left = Leftovers(model)
    for batch in range(2):
        model.place = torch.tensor([batch])
        left.after(0)
    assert left.varying == {".place"}
    model.place = torch.tensor([2])  # the last row there is
    with pytest.raises(mp.PruneError, match=r"reads \.place"):
        left.check(0, lambda: rows[int(model.place)] if int(model.place) < 3 else rows.view(7))
    assert model.place.tolist() == [2]
