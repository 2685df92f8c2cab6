"""reconstruction.py: what it may change, what it may not, and what it is for, on tiny models of several families."""

import copy

import pytest
import torch
from tiny import tiny_model, tiny_tokens

import minprune as mp
from minprune.pipeline.recipes import Recipe
from minprune.pipeline.reconstruction import Reconstruction

CALIB = tiny_tokens(windows=12)
SHORT = Reconstruction(epochs=3, batch_size=3, bfloat16=False)
FAMILIES = ("llama", "gpt2", "mixtral", "gemma2", "phi")  # transposed matrices, experts, norms after, one norm for both


def pruned(model, how=SHORT, method="wanda", pattern="50%", **options):
    """A pruned copy of the model, and the report."""
    model = copy.deepcopy(model)
    return model, mp.prune(model, CALIB, pattern=pattern, recipe=Recipe(method, reconstruction=how), **options)


def after_block(model, index, tokens):
    """What block `index` of a Llama hands on when the model reads the tokens, (windows, length, d_model)."""
    seen = []
    handle = model.model.layers[index].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    return seen[0]


def block_error(model, dense, index, tokens):
    """The mean over tokens of the relative error after block `index`."""
    got, wanted = after_block(model, index, tokens), after_block(dense, index, tokens)
    return float(((got - wanted).square().sum(-1) / wanted.square().sum(-1)).mean())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", ["50%", "2:4"])
def test_the_first_block_keeps_the_mask_that_the_method_chose_and_no_layer_loses_a_zero(family, pattern):
    """The first block's inputs are the same with and without reconstruction, so its masks are, too."""
    model = tiny_model(family)
    trained, report = pruned(model, pattern=pattern)
    plain, _ = pruned(model, how=None, pattern=pattern)
    moved = 0
    layers = list(zip(mp.find_layers(trained), mp.find_layers(plain), strict=True))
    for layer, other in layers:
        assert int(layer.weight.count_nonzero()) == int(other.weight.count_nonzero()), layer.name
        if layer.name.split(".layers.")[-1].startswith("0.") or ".h.0." in layer.name:
            assert torch.equal(layer.weight != 0, other.weight != 0), layer.name
            moved += not torch.equal(layer.weight, other.weight)
        if pattern == "2:4":
            assert int((layer.weight.unflatten(1, (-1, 4)) != 0).sum(-1).max()) == 2
    assert moved >= 4  # a test of nothing otherwise
    assert report.sparsity == pytest.approx(0.5)


def test_each_block_comes_closer_to_the_dense_model_on_new_text_too():
    """Judged by what the whole model's own forward pass shows, also on windows that were not trained on."""
    model, other = tiny_model("llama"), tiny_tokens(windows=12, seed=7)
    trained, report = pruned(model, Reconstruction(epochs=10, batch_size=2, bfloat16=False))
    plain, _ = pruned(model, how=None)
    for index in range(2):
        for tokens, share in ((CALIB, 0.8), (other, 0.9)):
            assert block_error(trained, model, index, tokens) < share * block_error(plain, model, index, tokens)
    assert all(errors[-1] < errors[0] for errors in report.reconstruction["errors"].values())


def test_the_reported_error_is_that_of_the_block_against_the_dense_model():
    """With one step the only error is measured before it, so it is that of the plain method."""
    model = tiny_model("llama")
    only = {"include": ["model.layers.1.*"]}
    _, report = pruned(model, Reconstruction(epochs=1, batch_size=len(CALIB), bfloat16=False), **only)
    plain, _ = pruned(model, how=None, **only)
    assert report.reconstruction["errors"]["model.layers.1"][0] == pytest.approx(
        block_error(plain, model, 1, CALIB), rel=1e-4
    )
    assert len(report.reconstruction["errors"]) == 1


def test_the_target_is_the_dense_models_state_and_not_the_dense_block_on_drifted_inputs():
    """The first block is damaged beyond what the second could be asked to ignore: only a second block that aims at the
    dense model's state undoes some of it."""
    model = tiny_model("llama")
    table = {"model.layers.0.*": 0.8, "model.layers.1.*": 0.0}
    long = Reconstruction(epochs=20, batch_size=2, min_sparsity=0, bfloat16=False)
    trained, _ = pruned(model, long, allocation=table)
    first = copy.deepcopy(trained)  # the trained first block before a second block that is as it was: dense
    first.model.layers[1].load_state_dict(model.model.layers[1].state_dict())
    assert block_error(trained, model, 1, CALIB) < 0.8 * block_error(first, model, 1, CALIB)


def test_no_epoch_is_the_plain_method_bit_for_bit():
    model = tiny_model("llama")
    for method in ("wanda", "sparsegpt", "admm"):
        none, report = pruned(model, Reconstruction(epochs=0, bfloat16=False), method)
        plain, _ = pruned(model, None, method)
        assert all(torch.equal(a, b) for a, b in zip(none.parameters(), plain.parameters(), strict=True)), method
        assert report.reconstruction["errors"] == {}


def test_a_seed_makes_it_deterministic_and_another_seed_another_order():
    model = tiny_model("llama")
    one, two, other = (pruned(model, Reconstruction(2, batch_size=3, seed=s, bfloat16=False))[0] for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_what_is_left_out_embeddings_and_head_stay_as_they_were():
    model = tiny_model("llama")
    trained, _ = pruned(model, exclude=["*.k_proj", "model.layers.1.*"])
    for (name, now), before in zip(trained.named_parameters(), model.parameters(), strict=True):
        same = "k_proj" in name or "layers.1." in name or "layers" not in name
        assert torch.equal(now, before) == same, name


def test_it_leaves_gradients_mode_and_freezing_as_they_were():
    model = tiny_model("llama").train()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    trained, _ = pruned(model)
    assert trained.training
    assert all(p.grad is None for p in trained.parameters())
    assert [p.requires_grad for p in trained.parameters()] == [p.requires_grad for p in model.parameters()]


def test_gradients_that_a_caller_has_do_not_count_in_the_training_and_stay():
    """They would be added to those of a block's first step."""
    with_gradients, without = tiny_model("llama"), tiny_model("llama")
    with_gradients(tiny_tokens()).logits.square().sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in with_gradients.named_parameters()}
    for model in (with_gradients, without):
        mp.prune(model, tiny_tokens(), recipe=Recipe("wanda", reconstruction=Reconstruction(epochs=1)), pattern="60%")
    for (name, value), other in zip(with_gradients.named_parameters(), without.parameters(), strict=True):
        assert torch.equal(value, other) and torch.equal(value.grad, before[name]), name


def test_batches_of_calibration_windows_change_nothing_but_rounding():
    """In float64, and with windows that do not divide evenly into steps or batches."""
    model = tiny_model("llama", dtype=torch.float64)
    whole, _ = pruned(model, Reconstruction(2, batch_size=5, bfloat16=False))
    parts, _ = pruned(model, Reconstruction(2, batch_size=5, bfloat16=False), batch_size=7)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_models_and_narrow_products_learn_about_as_much(dtype):
    """Steps are summed up in float32 whatever the model's own type: none is lost by rounding."""
    wide = pruned(tiny_model("llama"), SHORT)[1].reconstruction["errors"]
    narrow, report = pruned(tiny_model("llama", dtype=dtype), Reconstruction(3, batch_size=3, bfloat16=True))
    assert all(p.dtype == dtype for p in narrow.parameters())
    got = report.reconstruction["errors"]
    assert got.keys() == wide.keys()
    assert all(got[block] == pytest.approx(wide[block], rel=0.05) for block in wide)


def test_where_little_is_pruned_nothing_is_trained_and_the_report_says_so():
    model = tiny_model("llama")
    for pattern, trains in (("40%", False), ("1:4", True), ("50%", True)):
        some, report = pruned(model, SHORT, pattern=pattern)
        plain, _ = pruned(model, None, pattern=pattern)
        same = all(torch.equal(a, b) for a, b in zip(some.parameters(), plain.parameters(), strict=True))
        assert same is not trains and bool(report.reconstruction["errors"]) is trains
        said = "40% zeros are too few for reconstruction to pay: no block was reconstructed"
        assert (said in report.notes) is not trains
    _, report = pruned(model, Reconstruction(3, batch_size=3, min_sparsity=0, bfloat16=False), pattern="40%")
    assert report.reconstruction["errors"] and not any("too few" in note for note in report.notes)


INVALID = [("epochs", -1), ("batch_size", 0), ("lr", 0.0), ("lr", float("inf")), ("min_sparsity", -0.1)]


@pytest.mark.parametrize(("name", "value"), [*INVALID, ("min_sparsity", 2.0)])
def test_an_invalid_setting_is_refused(name, value):
    with pytest.raises(mp.PruneError, match="cannot be trained"):
        Reconstruction(**{name: value})


def test_a_rate_that_blows_up_is_refused_with_the_name_of_a_layer():
    with pytest.raises(mp.PruneError, match=r"model\.layers\.0\..*lower rate than 1e\+30"):
        pruned(tiny_model("llama"), Reconstruction(lr=1e30, bfloat16=False))


@pytest.mark.parametrize(("unit", "expected"), [("amx_bf16", True), ("avx512_bf16", True), ("avx512_f", False)])
def test_products_are_taken_in_bfloat16_where_the_processor_has_a_unit_for_them(monkeypatch, unit, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, unit: True})
    _, report = pruned(tiny_model("llama"), Reconstruction(epochs=1))
    assert report.reconstruction["bfloat16"] is expected
