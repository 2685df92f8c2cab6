"""prune() on every family: tiny models with random weights, one pass and staged, three methods, three dtypes."""

import copy

import pytest
import torch
from test_checkpoint import write_tokenizer
from tiny import FAMILIES, HANDING_ON, LENGTH, ROUTED, SHARED, UNSUPPORTED_EXPERTS, WINDOWS, tiny_model, tiny_tokens
from torch import nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

import minprune as mp
from minprune.models.mixtures import routers

RECIPES = [("sparsegpt", "50%"), ("wanda", "2:4"), ("magnitude", "50%")]
BATCH = 2  # of 5 windows: the last batch is smaller


def assert_pruned_exactly(model, dense, text):
    """Every matrix of the blocks has exactly the pattern; every other tensor is as it was, bit for bit."""
    stored = {}  # name of a stored tensor -> its layers
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for layer in mp.find_layers(model):
        stored.setdefault(names[id(getattr(layer.module, layer.parameter))], []).append(layer)
        zeros = layer.weight == 0
        if text == "2:4":
            assert (zeros.reshape(-1, 4).sum(1) == 2).all(), layer.name
        else:
            assert int(zeros.sum()) == zeros.numel() // 2, layer.name
    untouched = 0
    others = dict(dense.state_dict())
    for name, value in model.state_dict().items():
        if name not in stored:
            assert torch.equal(value, others[name]), name
            untouched += 1
    assert untouched >= 3  # embeddings and norms at least


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method, text", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_pruned_exactly_and_nothing_else_changes(family, method, text, dtype):
    dense = tiny_model(family, dtype)
    for batch_size in (None, BATCH):
        model = copy.deepcopy(dense)
        report = mp.prune(model, tiny_tokens(), method, text, batch_size=batch_size)
        assert_pruned_exactly(model, dense, text)
        assert [row.note for row in report.layers] == [""] * len(report.layers)
        assert all(row.sparsity == 0.5 and 0 < row.error < 1 for row in report.layers)
        with torch.no_grad():
            assert model(tiny_tokens()).logits.isfinite().all()


@pytest.mark.parametrize("method, text", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_staged_equals_one_pass(family, method, text):
    """In float64, where only the order of the sums differs; in bfloat16 a batch size changes the activations."""
    model = tiny_model(family, torch.float64)
    staged = copy.deepcopy(model)
    reports = [
        mp.prune(model, tiny_tokens(), method, text),
        mp.prune(staged, tiny_tokens(), method, text, batch_size=2),
    ]
    for (name, parameter), value in zip(model.named_parameters(), staged.parameters(), strict=True):
        assert torch.equal(parameter == 0, value == 0), name
        torch.testing.assert_close(parameter, value, rtol=1e-9, atol=1e-11)
    for a, b in zip(*(report.layers for report in reports), strict=True):
        assert a.name == b.name and a.error == pytest.approx(b.error, rel=1e-2 if method != "sparsegpt" else 1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads_with_equal_logits(family, dtype, tmp_path):
    tiny_model(family, dtype).save_pretrained(tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=dtype).eval()
    mp.prune(model, tiny_tokens(), "sparsegpt", "50%")
    model.save_pretrained(tmp_path / "pruned")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype=dtype).eval()
    for (name, value), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    with torch.no_grad():
        same = torch.equal(loaded(tiny_tokens()).logits, model(tiny_tokens()).logits)
    assert same


@pytest.mark.parametrize("family", FAMILIES)
def test_sparsegpt_loses_less_of_the_layers_outputs_than_wanda_and_wanda_less_than_magnitude(family):
    errors = [
        mp.prune(tiny_model(family), tiny_tokens(16), method, "50%:row").error
        for method in ("sparsegpt", "wanda", "magnitude")
    ]
    assert 0 < errors[0] < errors[1] < errors[2] < 1


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_the_sliding_window_is_shorter_than_the_calibration_and_matters(family):
    """If the staged form replayed blocks with the wrong mask, its logits could not depend on the window."""
    narrow, wide = tiny_model(family), tiny_model(family, sliding_window=64)
    assert narrow.config.sliding_window < LENGTH
    with torch.no_grad():
        assert not torch.allclose(narrow(tiny_tokens()).logits, wide(tiny_tokens()).logits, atol=1e-3)
    weights = []
    for model in (narrow, wide):
        mp.prune(model, tiny_tokens(), "sparsegpt", "50%", batch_size=BATCH)
        weights.append(model.get_submodule("model.layers.1.mlp.down_proj").weight)
    assert not torch.equal(*weights)


def starved():
    """A Mixtral with five experts, whose router in block 0 never chooses expert 0.

    Its logits are 0, u, -u, v, -v for two directions u and v: two of the last four are positive for any token, and
    those are the two that are chosen.
    """
    model = tiny_model("mixtral", num_local_experts=5)
    rows = model.model.layers[0].mlp.gate.weight.data
    rows[0], rows[2], rows[4] = 0, -rows[1], -rows[3]
    return model


@pytest.mark.parametrize("batch_size", [None, BATCH])
@pytest.mark.parametrize("method", ["sparsegpt", "wanda", "magnitude"])
@pytest.mark.parametrize("sequential", [True, False])
def test_an_expert_that_receives_no_token_is_left_dense_and_said_so(method, batch_size, sequential):
    model, tokens = starved(), tiny_tokens()
    dense = copy.deepcopy(model)
    report = mp.prune(model, tokens, method, "50%", batch_size=batch_size, sequential=sequential)
    for row in report.layers:
        starving = row.name.startswith("model.layers.0.mlp.experts") and row.name.endswith(".0")
        assert row.sparsity == (0 if starving else 0.5), row.name
        assert ("no token" in row.note and "dense" in row.note) == starving
        assert (row.error is None) == starving
    for key in ("gate_up_proj", "down_proj"):
        before, after = (getattr(m.model.layers[0].mlp.experts, key) for m in (dense, model))
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, False, False, False]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def routed_inputs(model, tokens, expert):
    """The tokens that the router of block 0 sends to one expert, from the router's definition: (tokens, 32)."""
    seen = []
    mixture = model.model.layers[0].mlp
    handle = mixture.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    X = seen[0].reshape(-1, 32)
    chosen = (X @ mixture.gate.weight.T).topk(2, dim=1).indices  # (tokens, 2): the two largest logits
    return X[(chosen == expert).any(dim=1)]


@pytest.mark.parametrize("batch_size", [None, BATCH])
def test_each_expert_is_pruned_on_its_own_tokens(batch_size):
    model = tiny_model("mixtral", torch.float64)
    model.set_experts_implementation("eager")
    dense, tokens = copy.deepcopy(model), tiny_tokens()
    mp.prune(model, tokens, "sparsegpt", "50%", batch_size=batch_size)
    # the router and attention of block 0 as pruned, its experts still dense: what the experts saw
    half = copy.deepcopy(model)
    half.model.layers[0].mlp.load_state_dict(dense.model.layers[0].mlp.state_dict())
    counts = []
    for expert in range(4):
        X = routed_inputs(half, tokens, expert)
        counts.append(len(X))
        stats = mp.Statistics(32, dtype=torch.float64).update(X)
        W = dense.model.layers[0].mlp.experts.gate_up_proj.data[expert]
        gate_up = mp.METHODS["sparsegpt"](W, stats, mp.pattern("50%")).weight
        found = model.model.layers[0].mlp.experts
        torch.testing.assert_close(found.gate_up_proj.data[expert], gate_up, rtol=1e-9, atol=1e-11)
        gate, up = (X @ gate_up.T).chunk(2, dim=1)  # the second matrix sees what the pruned first one makes
        stats = mp.Statistics(48, dtype=torch.float64).update(torch.nn.functional.silu(gate) * up)
        W = dense.model.layers[0].mlp.experts.down_proj.data[expert]
        down = mp.METHODS["sparsegpt"](W, stats, mp.pattern("50%")).weight
        torch.testing.assert_close(found.down_proj.data[expert], down, rtol=1e-9, atol=1e-11)
    assert sum(counts) == 2 * WINDOWS * LENGTH and len(set(counts)) > 1


@pytest.mark.parametrize("batch_size", [None, BATCH])
def test_the_experts_implementation_set_before_matters_not_and_is_restored(batch_size):
    results = []
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        model = tiny_model("mixtral")
        model.set_experts_implementation(implementation)
        mp.prune(model, tiny_tokens(), "sparsegpt", "50%", batch_size=batch_size)
        assert model.config._experts_implementation == implementation
        results.append([parameter.detach() for parameter in model.parameters()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_excluding_experts_leaves_them_dense_and_prunes_the_rest():
    for family in ("mixtral", "gpt_oss", "llama4"):
        model = tiny_model(family)
        dense = copy.deepcopy(model)
        for batch_size in (None, BATCH):
            pruned = copy.deepcopy(model)
            report = mp.prune(pruned, tiny_tokens(), "wanda", "2:4", exclude=["*.experts.*"], batch_size=batch_size)
            assert report.sparsity == 0.5
            targets = {f"{row.name}.weight" for row in report.layers}
            assert targets
            for (name, before), after in zip(dense.named_parameters(), pruned.parameters(), strict=True):
                assert torch.equal(before, after) != (name in targets), name


def test_no_expert_is_watched_through_a_product_with_another_matrix():
    """Only the products that watch() claims to see are seen: one per expert and matrix that a token reaches."""
    model = tiny_model("mixtral")
    model.set_experts_implementation("eager")
    pointers = {p[e].data_ptr() for p in model.parameters() if p.ndim == 3 for e in range(4)}
    products = []

    class Counter(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is linear and args[1].data_ptr() in pointers:
                products.append(args[0].shape[0])
            return func(*args, **(kwargs or {}))

    with Counter(), torch.no_grad():
        model(tiny_tokens())
    assert len(products) == 2 * 2 * 4  # blocks, matrices, experts
    assert sum(products) == 2 * 2 * 2 * WINDOWS * LENGTH  # two experts for each token


ROUTERS = {  # the layers of a block that choose between experts or weigh them, read in the library's code
    "phimoe": ["mlp.router"],
    "hunyuan": ["mlp.gate.wg"],
    "qwen2_moe": ["mlp.shared_expert_gate"],
    "afmoe": ["mlp.router.gate"],
    "llama4": ["feed_forward.router"],
}


@pytest.mark.parametrize("family", ROUTERS)
def test_routers_and_gates_of_mixtures_stay_dense_and_that_is_said(family):
    model = tiny_model(family)
    dense = copy.deepcopy(model)
    exclude = [] if family in ROUTED else ["*.experts.*"]
    report = mp.prune(model, tiny_tokens(), "wanda", "50%:row", exclude=exclude)
    pruned = {row.name for row in report.layers}
    routers = [name for name, _ in model.named_modules() if any(name.endswith(f".{end}") for end in ROUTERS[family])]
    assert routers and not pruned & set(routers)
    for name in routers:
        for (key, value), other in zip(
            model.get_submodule(name).state_dict().items(), dense.get_submodule(name).state_dict().values(), strict=True
        ):
            assert torch.equal(value, other), (name, key)
    others = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)} - {"lm_head"}
    assert {name for name in pruned if "experts." not in name or "shared" in name} == others - set(routers)
    assert any(
        note.startswith(f"{len(routers)} routers and gates of mixtures were left dense") for note in report.notes
    )


@pytest.mark.parametrize("family", ROUTED)
def test_a_router_is_pruned_if_a_glob_names_nothing_else(family):
    model, end = tiny_model(family), ROUTERS[family][0]
    report = mp.prune(model, tiny_tokens(), "wanda", "50%:row", include=[f"*.{end}"])
    assert report.layers and all(row.name.endswith(end) and row.sparsity == 0.5 for row in report.layers)
    assert not report.notes
    for include in (["*"], ["*.mlp.*"], ["model.layers.1.*"]):
        assert not any(layer.router for layer in mp.find_layers(model, include=include))
    both = mp.find_layers(model, include=["*.q_proj", f"*.{end}"])
    assert {layer.router for layer in both} == {True, False}
    assert mp.find_layers(model, exclude=[f"*.{end}"])  # they are dense anyway


@pytest.mark.parametrize(
    ("child", "routes"),
    [
        (nn.Linear(32, 4), True),
        (nn.Linear(32, 5), True),  # "no expert" is one more
        (nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 4)), True),
        (nn.Linear(32, 6), False),
        (nn.Sequential(nn.Linear(32, 4), nn.Linear(4, 32)), False),  # puts out hidden states
    ],
)
def test_what_puts_out_a_number_for_each_of_the_experts_beside_it_is_a_router_whatever_it_is_called(child, routes):
    experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
    block = nn.ModuleDict({"mlp": nn.ModuleDict({"chooser": child, "experts": experts})})
    linear = {
        name for name, part in block.named_modules(prefix="b") if "chooser" in name and isinstance(part, nn.Linear)
    }
    assert routers("b", block, width=32) == (linear if routes else set())
    del block["mlp"]["experts"]
    assert routers("b", block, width=32) == set()


def test_a_gate_that_is_part_of_an_mlp_or_of_attention_is_no_router():
    for family, end in (("llama", "mlp.gate_proj"), ("qwen2_moe", "mlp.shared_expert.gate_proj")):
        names = [layer.name for layer in mp.find_layers(tiny_model(family))]
        assert sum(name.endswith(end) for name in names) == 2


def test_weights_in_several_blocks_are_one_layer_and_pruned_once():
    model = tiny_model("zamba2")
    layers = mp.find_layers(model)
    places = [layer.weight.data_ptr() for layer in layers]
    assert len(set(places)) == len(layers) == len({layer.name for layer in layers})
    report = mp.prune(model, tiny_tokens(), "wanda", "50%")
    assert all((row.sparsity == 0.5) != ("left dense" in row.note) for row in report.layers)
    shared = [layer for layer in layers if layer.aliases]
    assert any(note.startswith(f"{len(shared)} weights serve in several blocks") for note in report.notes)
    for layer in shared:
        for name in layer.aliases:
            assert torch.equal(model.get_submodule(name).weight, layer.weight)


@pytest.mark.parametrize("block", [1, 3])
def test_an_excluded_block_keeps_its_weights_also_if_another_block_uses_them(block):
    model = tiny_model("zamba2")
    dense = copy.deepcopy(model)
    report = mp.prune(model, tiny_tokens(), "wanda", "50%", exclude=[f"*.layers.{block}.*"])
    for (name, value), other in zip(model.named_parameters(), dense.parameters(), strict=True):
        assert torch.equal(value, other) or f"layers.{block}." not in name
    for (name, value), other in zip(
        model.model.layers[block].named_parameters(), dense.model.layers[block].parameters(), strict=True
    ):
        assert torch.equal(value, other), name
    assert any("were left dense in all of them" in note for note in report.notes)


def test_an_included_block_is_pruned_by_any_of_its_names():
    model = tiny_model("zamba2")
    first = mp.find_layers(model, include=["*.layers.1.shared_transformer.self_attn.q_proj"])
    second = mp.find_layers(model, include=["*.layers.3.shared_transformer.self_attn.q_proj"])
    assert [layer.name for layer in first] == [layer.name for layer in second] and len(first) == 1


@pytest.mark.parametrize("sequential", [True, False])
def test_a_layer_is_pruned_in_the_first_block_that_calls_it_by_whatever_name(sequential):
    """Zamba 2's second adapters stand in both hybrid blocks, and only the second one calls them."""
    one, two = tiny_model("zamba2", torch.float64), tiny_model("zamba2", torch.float64)
    first = mp.prune(one, tiny_tokens(), "wanda", sequential=sequential)
    second = mp.prune(two, tiny_tokens(), "wanda", sequential=sequential, batch_size=2)
    assert [(row.name, row.sparsity, row.note) for row in first.layers] == [
        (row.name, row.sparsity, row.note) for row in second.layers
    ]
    assert all(row.sparsity == 0.5 and not row.note for row in first.layers if "adapter_list.1" in row.name)
    for (name, value), other in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_blocks_that_share_weights_are_not_trained_and_not_pruned_from_disk_to_disk_unless_these_stay_dense(tmp_path):
    src, calib = write_tokenizer(tmp_path / "src"), tiny_tokens()
    model = tiny_model("zamba2")
    model.save_pretrained(src)
    dense = copy.deepcopy(model)
    shared = ["*.shared_transformer.*"]
    for exclude in ((), shared):  # its norms would be trained in both blocks
        with pytest.raises(mp.PruneError, match="Zamba2ForCausalLM share weights"):
            mp.prune(model, calib, recipe="best", exclude=exclude)
    with pytest.raises(mp.PruneError, match=r"layers\.1\.shared.* is model\.layers\.3\.shared.* exclude"):
        mp.prune_checkpoint(src, tmp_path / "out", calib, "wanda")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), dense.parameters(), strict=True))
    mp.prune_checkpoint(src, tmp_path / "out", calib, "wanda", exclude=shared)
    mp.prune(model, calib, "wanda", exclude=shared)
    found = mp.load_model(tmp_path / "out")[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), found.parameters(), strict=True))


@pytest.mark.parametrize("family", FAMILIES | HANDING_ON | ROUTED | SHARED | UNSUPPORTED_EXPERTS)
def test_a_tiny_model_of_a_family_has_the_same_weights_each_time_and_in_each_type(family):
    torch.manual_seed(1)
    one = dict(tiny_model(family).named_parameters())
    torch.manual_seed(2)
    for other in (tiny_model(family), tiny_model(family, torch.float64)):
        for name, parameter in other.named_parameters():
            torch.testing.assert_close(parameter.float(), one[name], rtol=1e-6, atol=1e-7, msg=name)
