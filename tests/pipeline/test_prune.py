"""prune and its staged form against sequential loops written by hand, which share no code with them."""

import copy
import json
import math

import pytest
import torch
import transformers as hf
from tiny import _COMMON, VOCABULARY, loud_model, loud_tokens, tiny_model, tiny_tokens
from torch import nn

import minprune as mp
from minprune.models.causality import check_causal
from minprune.pipeline import layer_pruner

TIGHT = {"rtol": 1e-9, "atol": 1e-11}  # float64 models: all that differs is the order of the sums
STEPS = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]  # of a Llama block


def pruned(model, method="sparsegpt", pattern="50%", calib=None, **options):
    """A pruned copy of the model, and the report."""
    model = copy.deepcopy(model)
    return model, mp.prune(model, tiny_tokens() if calib is None else calib, method, pattern, **options)


def input_of(model, module, tokens):
    """What one module gets when the model reads the tokens, (tokens, d_in)."""
    seen = []
    handle = module.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])


def statistics(X, gram=True):
    return mp.Statistics(X.shape[1], gram=gram, dtype=X.dtype).update(X)


def by_hand(model, tokens, method, pattern, steps, **options):
    """Prune a Llama in place, step by step; before each step the whole model runs again for the step's inputs."""
    errors = {}
    for index, block in enumerate(model.model.layers):
        named = {name.split(".")[-1]: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
        for step in steps:
            inputs = {name: input_of(model, named[name], tokens) for name in step}
            for name, X in inputs.items():
                W = named[name].weight.data
                result = mp.METHODS[method](W, statistics(X), mp.pattern(pattern), **options)
                lost = (X @ (W - result.weight).T).square().sum() / (X @ W.T).square().sum()
                errors[index, name] = float(lost)
                named[name].weight.data = result.weight
    return errors


def assert_same_weights(model, other, **tolerance):
    for (name, parameter), value in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter == 0, value == 0), name
        torch.testing.assert_close(parameter, value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


METHODS_AND_PATTERNS = [("sparsegpt", "50%"), ("sparsegpt", "2:4"), ("wanda", "50%"), ("wanda", "2:4")]


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 5, 100])
@pytest.mark.parametrize("method, pattern", METHODS_AND_PATTERNS)
def test_any_batch_size_equals_the_sequential_loop_written_by_hand(method, pattern, batch_size):
    model = tiny_model("llama", torch.float64)
    expected = copy.deepcopy(model)
    errors = by_hand(expected, tiny_tokens(), method, pattern, STEPS)
    found, report = pruned(model, method, pattern, batch_size=batch_size)
    assert_same_weights(found, expected, **TIGHT)
    for row, error in zip(report.layers, errors.values(), strict=True):
        assert row.error == pytest.approx(error, rel=1e-8), row.name


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5])
@pytest.mark.parametrize("method, pattern", METHODS_AND_PATTERNS)
def test_not_sequential_equals_the_published_loop_over_dense_blocks(method, pattern, batch_size):
    model = tiny_model("llama", torch.float64)
    expected = copy.deepcopy(model)
    by_hand(expected, tiny_tokens(), method, pattern, [[name for step in STEPS for name in step]])
    found, _ = pruned(model, method, pattern, batch_size=batch_size, sequential=False)
    assert_same_weights(found, expected, **TIGHT)
    one_pass, _ = pruned(model, method, pattern)
    assert not torch.equal(one_pass.model.layers[0].mlp.down_proj.weight, found.model.layers[0].mlp.down_proj.weight)


def test_options_reach_the_method():
    model = tiny_model("llama", torch.float64)
    expected = copy.deepcopy(model)
    by_hand(expected, tiny_tokens(), "sparsegpt", "50%", STEPS, block_size=8, damp=0.5)
    found, report = pruned(model, block_size=8, damp=0.5)
    assert_same_weights(found, expected, **TIGHT)
    assert report.options == {"block_size": 8, "damp": 0.5}


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("family, groups", [("llama", 4), ("gpt2", 4), ("olmo2", 4), ("phi", 4)])
def test_layers_that_read_one_tensor_share_one_gram_matrix(monkeypatch, family, groups, batch_size, sequential):
    made, updates = [], []

    class Counting(mp.Statistics):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

        def update(self, X):
            updates.append(X)
            return super().update(X)

    monkeypatch.setattr(layer_pruner, "Statistics", Counting)
    # Two blocks. In Phi attention and MLP run side by side on one normalised tensor, but its readers do not arrive one
    # after the other: the output projection of attention comes in between, so that tensor's Gram matrix is built twice.
    pruned(tiny_model(family), batch_size=batch_size, sequential=sequential)
    batches = 1 if batch_size is None else 3
    assert len(made) == 2 * groups
    assert len(updates) == 2 * groups * batches


class Reused(nn.Module):
    """A block that feeds two layers different contents in one tensor, changed in place in between."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)

    def forward(self, hidden, *args, **kwargs):
        buffer = hidden.clone()
        out = self.first(buffer)
        buffer.mul_(torch.linspace(0, 3, 32, dtype=buffer.dtype))  # the same object, other contents
        return out + self.second(buffer)


class Freed(nn.Module):
    """A block whose layers read different tensors, each freed before the next is made: addresses come again."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)

    def forward(self, hidden, *args, **kwargs):
        out = self.first(hidden * 2)
        return out + self.second(hidden * torch.linspace(0, 3, 32, dtype=hidden.dtype))


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("block", [Reused, Freed])
def test_inputs_are_recognised_by_identity_and_contents_not_by_address(block, batch_size):
    model = tiny_model("llama")
    model.model.layers = nn.ModuleList([block(), block()])
    model.double()
    tokens = tiny_tokens()
    expected = copy.deepcopy(model)
    scale = torch.linspace(0, 3, 32, dtype=torch.float64)
    with torch.no_grad():
        hidden = expected.model.embed_tokens(tokens)
        for layer in expected.model.layers:
            X = (hidden if block is Reused else hidden * 2).reshape(-1, 32)
            for linear, inputs in ((layer.first, X), (layer.second, hidden.reshape(-1, 32) * scale)):
                linear.weight.data = mp.METHODS["sparsegpt"](
                    linear.weight.data, statistics(inputs), mp.pattern("50%")
                ).weight
            hidden = layer(hidden)
    found, _ = pruned(model, batch_size=batch_size)
    assert_same_weights(found, expected, **TIGHT)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("method, pattern", [("sparsegpt", "60%"), ("wanda", "2:4"), ("magnitude", "block4:50%")])
def test_every_target_has_exactly_the_pattern_and_the_rest_is_bit_identical(method, pattern, batch_size):
    model = tiny_model("llama", tie_word_embeddings=False)
    include = ["*.self_attn.*", "*.down_proj"]
    found, report = pruned(model, method, pattern, include=include, batch_size=batch_size)
    names = {layer.name for layer in mp.find_layers(model, include)}
    assert {row.name for row in report.layers} == names
    for (name, before), after in zip(model.named_parameters(), found.parameters(), strict=True):
        if name.removesuffix(".weight") in names:
            zeros = after == 0
            if pattern == "2:4":
                assert (zeros.view(-1, 4).sum(1) == 2).all()
            elif pattern == "60%":
                assert int(zeros.sum()) == round(0.6 * zeros.numel())
            else:
                tiles = zeros.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).sum(dim=(1, 3))
                assert set(tiles.unique().tolist()) == {0, 16}
                assert int((tiles == 16).sum()) == tiles.numel() // 2
        else:
            assert torch.equal(before, after), name


def test_an_allocation_gives_each_layer_its_own_sparsity_and_the_report_the_average():
    model = tiny_model("llama")
    table = {"*": 0.5, "*.mlp.*": 0.25, "model.layers.1.mlp.down_proj": 0.75}
    found, report = pruned(model, "wanda", "10%:layer", allocation=table)
    zeros = total = 0
    for row in report.layers:
        weight = found.get_submodule(row.name).weight
        asked = 0.75 if row.name == "model.layers.1.mlp.down_proj" else 0.25 if ".mlp." in row.name else 0.5
        assert int((weight == 0).sum()) == round(asked * weight.numel())
        assert row.sparsity == pytest.approx(asked)
        zeros, total = zeros + int((weight == 0).sum()), total + weight.numel()
    assert report.sparsity == pytest.approx(zeros / total)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_an_untied_output_head_is_pruned_on_what_the_final_norm_gives_it(family, sequential, batch_size):
    model = tiny_model(family, torch.float64, tie_word_embeddings=False)
    include = ["lm_head", "*.0.*"]
    found, report = pruned(model, include=include, sequential=sequential, batch_size=batch_size)
    assert report.layers[-1].name == "lm_head"
    X = input_of(found, found.lm_head, tiny_tokens())  # pruning the head itself does not change its input
    expected = mp.METHODS["sparsegpt"](model.lm_head.weight.data, statistics(X), mp.pattern("50%"))
    torch.testing.assert_close(found.lm_head.weight.data, expected.weight, **TIGHT)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert-decoder"])
def test_a_head_that_changes_hidden_states_first_is_pruned_on_what_its_matrix_reads(family, sequential, batch_size):
    config = hf.AutoConfig.for_model(family, **_COMMON, **({} if "modern" in family else {"is_decoder": True}))
    config.tie_word_embeddings, config.head_bias = False, True
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).double().eval()
    name = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    include = [name, mp.find_layers(model)[0].name]
    found, report = pruned(model, include=include, sequential=sequential, batch_size=batch_size)
    assert report.layers[-1].name == name
    X = input_of(found, found.get_output_embeddings(), tiny_tokens())
    expected = mp.METHODS["sparsegpt"](model.get_submodule(name).weight.data, statistics(X), mp.pattern("50%"))
    torch.testing.assert_close(found.get_submodule(name).weight.data, expected.weight, **TIGHT)


def test_the_head_alone_may_be_asked_for():
    model = tiny_model("llama", torch.float64, tie_word_embeddings=False)
    for batch_size in (None, 2):
        found, report = pruned(model, "wanda", "50%", include=["lm_head"], batch_size=batch_size)
        assert [row.name for row in report.layers] == ["lm_head"]
        assert int((found.lm_head.weight == 0).sum()) == VOCABULARY * 16


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_head_that_was_asked_for_costs_no_logits(batch_size):
    """They would be the largest tensor of all: tokens times vocabulary."""
    model, products = tiny_model("llama", tie_word_embeddings=False), []
    with torch.no_grad():
        mp.perplexity(model, tiny_tokens())  # causality is tried once for a model, with logits
        check_causal(model, tiny_tokens().shape[1])
    model.lm_head.register_forward_hook(lambda module, args, out: products.append(out.shape[:-1].numel()))
    mp.prune(model, tiny_tokens(), "wanda", include=["lm_head"], batch_size=batch_size)
    assert max(products, default=0) <= 8 * 8  # of a check on a few tokens, if any


def test_a_tied_output_head_is_refused_before_anything_is_pruned():
    model = tiny_model("gemma2")
    before = copy.deepcopy(model)
    for batch_size in (None, 2):
        with pytest.raises(mp.PruneError, match="tied"):
            mp.prune(model, tiny_tokens(), include=["*"], batch_size=batch_size)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_magnitude_needs_no_calibration_and_is_the_same_with_it(batch_size):
    model = tiny_model("opt")  # its ReLU leaves some inputs at zero
    plain = copy.deepcopy(model)
    report = mp.prune(plain, None, "magnitude", "50%")
    assert all(row.error is None for row in report.layers) and report.calibration == {}
    calibrated, report = pruned(model, "magnitude", "50%", batch_size=batch_size)
    assert all(row.error > 0 for row in report.layers)
    for layer in mp.find_layers(model):
        expected = mp.METHODS["magnitude"](layer.weight, None, mp.pattern("50%")).weight
        for other in (plain, calibrated):
            assert torch.equal(other.get_submodule(layer.name).weight, expected)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_method_that_needs_calibration_says_so(method):
    with pytest.raises(mp.PruneError, match=f"'{method}' needs calibration"):
        mp.prune(tiny_model("llama"), None, method)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", mp.METHODS)
def test_bad_weights_are_refused_by_name_before_anything_is_pruned(method, value):
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = value
    before = copy.deepcopy(model)
    with pytest.raises(mp.PruneError, match=r"model\.layers\.1\.mlp\.up_proj: .*NaN or infinity"):
        mp.prune(model, tiny_tokens(), method)
    for parameter, value in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter.nan_to_num(), value.nan_to_num())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", mp.METHODS)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_bad_activations_are_refused_by_the_name_of_the_first_layer_they_reach(method, value, batch_size):
    model = tiny_model("llama")
    model.model.layers[1].post_attention_layernorm.weight.data[5] = value
    with pytest.raises(mp.PruneError, match=r"model\.layers\.1\.mlp\.gate_proj: .*NaN or infinity"):
        mp.prune(model, tiny_tokens(), method, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("method", mp.METHODS)
def test_a_layer_whose_inputs_are_all_zero_is_pruned_as_if_they_were_equally_large_and_said_so(method, batch_size):
    model = tiny_model("llama")
    model.model.layers[0].post_attention_layernorm.weight.data.zero_()
    found, report = pruned(model, method, "25%", batch_size=batch_size)
    rows = {row.name: row for row in report.layers}
    for name in ("gate_proj", "up_proj", "down_proj"):
        row = rows[f"model.layers.0.mlp.{name}"]
        W = model.get_submodule(row.name).weight.data
        expected = mp.METHODS[method](W, statistics(torch.eye(W.shape[1])), mp.pattern("25%")).weight
        assert torch.equal(found.get_submodule(row.name).weight, expected)
        assert ("inputs were zero" in row.note) == (method != "magnitude") and row.error is None
    assert rows["model.layers.1.mlp.up_proj"].note == "" and rows["model.layers.1.mlp.up_proj"].error > 0
    assert all(row.sparsity == 0.25 for row in report.layers)


@pytest.mark.parametrize("method", mp.METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen2"])
@pytest.mark.parametrize("pattern", ["100%", "0:4"])
def test_everything_is_pruned_if_asked_for_though_the_layers_behind_see_only_zeros(family, method, pattern):
    model = tiny_model(family)
    if method == "swaps" and pattern == "100%":
        pattern = "100%:row"
    report = mp.prune(model, tiny_tokens(), method, pattern)
    starved = [row for row in report.layers if "no token" in row.note]  # a router that sees only zeros prefers some
    assert all(row.sparsity == 1 for row in report.layers if row not in starved)
    assert family == "mixtral" or not starved


@pytest.mark.parametrize("method", mp.METHODS)
def test_outputs_that_overflow_are_refused_by_the_name_of_the_layer_that_makes_them(method):
    model = tiny_model("llama")
    model.model.layers[0].mlp.down_proj.weight.data *= 1e36  # the next norm squares its outputs and makes zeros of them
    with pytest.raises(mp.PruneError, match=r"model\.layers\.0\.mlp\.down_proj: .*too large"):
        mp.prune(model, tiny_tokens(), method)


def state_of(model):
    """What must not be left behind: hooks and replaced forwards, for every module."""
    return [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks), module.__dict__.get("forward"))
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"sequential": False}, {"batch_size": 2, "damp": math.inf}])
@pytest.mark.parametrize("training", [True, False])
def test_hooks_forwards_config_and_mode_are_restored_also_after_an_error(options, training):
    model = tiny_model("mixtral").train(training)
    model.model.layers[1].forward = model.model.layers[1].forward  # as accelerate does when it moves weights
    config, state = model.config.to_dict(), state_of(model)
    usual = model.get_experts_implementation()
    try:
        mp.prune(model, tiny_tokens(), "sparsegpt", "50%", **options)
        failed = False
    except mp.PruneError:
        failed = True
    assert failed == ("damp" in options)
    assert model.config.to_dict() == config
    assert state_of(model) == state
    assert model.training == training and all(module.training == training for module in model.modules())
    assert model.get_experts_implementation() == usual


def test_dropout_is_off_while_pruning():
    model = tiny_model("gpt2", torch.float64)
    expected, _ = pruned(model)
    found, _ = pruned(model.train())
    assert_same_weights(found, expected, rtol=0, atol=0)


def test_nothing_depends_on_or_changes_the_global_random_state():
    model = tiny_model("llama")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, _ = pruned(model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, _ = pruned(model)
    assert_same_weights(first, second, rtol=0, atol=0)


def test_the_report_lists_layers_in_the_order_of_the_model_and_survives_json(tmp_path):
    model = tiny_model("mixtral")
    for batch_size in (None, 2):
        _, report = pruned(model, pattern="2:4", batch_size=batch_size)
        layers = mp.find_layers(model)
        assert [row.name for row in report.layers] == [layer.name for layer in layers]
        assert [row.shape for row in report.layers] == [tuple(layer.weight.shape) for layer in layers]
        report.to_json(tmp_path / "report.json")
        read = json.loads((tmp_path / "report.json").read_text())
        assert read["method"] == "sparsegpt" and read["pattern"] == "2:4" and read["sparsity"] == report.sparsity
        assert read["calibration"]["windows"] == 5 and read["calibration"]["length"] == 24
        rows = [mp.LayerRow(**{**row, "shape": tuple(row["shape"])}) for row in read["layers"]]
        assert rows == report.layers
        assert set(read["versions"]) >= {"python", "torch", "transformers", "minprune"}


def test_errors_are_those_of_the_weights_that_were_replaced_also_for_transposed_ones():
    """GPT-2 stores its matrices as (d_in, d_out); the driver sees them through a transposed view."""
    for family in ("gpt2", "llama"):
        model = tiny_model(family, torch.float64)
        for method in ("sparsegpt", "wanda", "magnitude"):
            found, report = pruned(model, method)
            first = mp.find_layers(found)[0]
            X = input_of(found, first.module, tiny_tokens())
            W, W_pruned = mp.find_layers(model)[0].weight, first.weight
            expected = (X @ (W - W_pruned).T).norm() ** 2 / (X @ W.T).norm() ** 2
            assert report.layers[0].error == pytest.approx(float(expected), rel=1e-8), (family, method)


@pytest.mark.parametrize("options", [{}, {"batch_size": 24}, {"sequential": False}], ids=["whole", "parts", "two-pass"])
@pytest.mark.parametrize("loud", [30, 128, 500])
@pytest.mark.parametrize("method", mp.METHODS)
def test_the_error_of_every_method_is_that_of_all_tokens_also_where_the_first_position_is_loud(method, loud, options):
    """64 windows of 40 tokens: the first positions are a fortieth of the tokens and most of the energy."""
    model, tokens = loud_model(loud), loud_tokens(64, 40)
    found, report = pruned(model, method, calib=tokens, include=["model.layers.0.self_attn.[qo]_proj"], **options)
    X = input_of(model, model.model.layers[0].self_attn.q_proj, tokens)
    energy = X.square().sum(1)
    assert len(X) > 2048 and float(energy[::40].mean()) > 5 * float(energy.mean())
    reader = model if options.get("sequential") is False else found  # whose attention makes the inputs of o_proj
    inputs = X, input_of(reader, reader.model.layers[0].self_attn.o_proj, tokens)
    for row, x in zip(report.layers, inputs, strict=True):
        W, W_pruned = (m.get_submodule(row.name).weight.data for m in (model, found))
        expected = (x @ (W - W_pruned).T).square().sum() / (x @ W.T).square().sum()
        assert row.error == pytest.approx(float(expected), rel=1e-6), row.name


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"method": "guess"}, "unknown method 'guess'"),
        ({"method": 5}, "a method is one of magnitude, .*, not 5"),
        ({"method": lambda W, stats, pattern: W}, "a method is one of .*, or a Method, not <function"),
        ({"allocation": {5: 0.5}}, "the allocation's 5 matches no layer"),
        ({"pattern": "half"}, "unknown pattern 'half'"),
        ({"pattern": "3:5"}, r"model\.layers\.0\.self_attn\.q_proj: 3:5 .* 32"),
        ({"pattern": "block32:50%"}, r"model\.layers\.0\.self_attn\.k_proj: block32:50% .* 16 x 32"),
        ({"damping": 1}, "'damping'"),
        ({"batch_size": 0}, "batch size 0"),
        ({"batch_size": -1, "method": "magnitude"}, "batch size -1"),
        ({"batch_size": 1.5}, "batch size 1.5"),
        ({"batch_size": "all"}, "batch size 'all'"),
        ({"damp": "x"}, "damp is 'x': it must be a number"),
        ({"damp": None}, "damp is None: it must be a number"),
        ({"block_size": 64.5}, "block_size is 64.5: it must be a whole number"),
        ({"calib": tiny_tokens().to("meta")}, "tokens are a torch.strided on meta"),
        ({"calib": tiny_tokens().to_sparse()}, "tokens are a torch.sparse_coo on cpu"),
        ({"include": ["*.w1"]}, r"\*\.w1"),
        ({"exclude": ["*.w1"]}, r"\*\.w1"),
        ({"allocation": {"*.w1": 0.5}}, r"\*\.w1"),
        ({"allocation": {"*": 0.5}, "pattern": "2:4"}, "2:4"),
        ({"calib": torch.full((2, 8), VOCABULARY)}, "vocabulary"),
        ({"calib": tiny_tokens(2, 65)}, "64 positions"),
        ({"calib": tiny_tokens().float()}, "int64"),
        ({"calib": tiny_tokens().tolist()}, "tokens are a list"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_pruned(options, reason):
    model = tiny_model("llama")
    before = copy.deepcopy(model)
    with pytest.raises(mp.PruneError, match=reason):
        mp.prune(model, **{"calib": tiny_tokens(), **options})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_layer_that_is_used_twice_is_pruned_once_on_its_first_inputs(batch_size):
    model = tiny_model("llama", torch.float64)
    first, second = model.model.layers
    second.mlp.up_proj = first.mlp.up_proj
    found, report = pruned(model, batch_size=batch_size)
    assert [row.name for row in report.layers].count("model.layers.0.mlp.up_proj") == 1
    assert "model.layers.1.mlp.up_proj" not in [row.name for row in report.layers]
    weight = found.model.layers[0].mlp.up_proj.weight
    assert weight is found.model.layers[1].mlp.up_proj.weight
    assert int((weight == 0).sum()) == weight.numel() // 2


@pytest.mark.parametrize("make", [lambda: tiny_model("llama").base_model, lambda: nn.Linear(4, 4), lambda: "smollm2"])
def test_what_is_no_causal_language_model_is_refused(make):
    with pytest.raises(mp.PruneError, match="is no Hugging Face causal language model"):
        mp.prune(make(), tiny_tokens())
