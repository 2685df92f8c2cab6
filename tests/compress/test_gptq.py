"""GPTQ against the surgeon's own steps, written here with explicit inverses, and against rounding alone."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_tokens

import minprune as mp
from minprune.compress.gptq import gptq, rtn
from minprune.compress.grids import make_grid
from minprune.compress.quantize import QUANTIZERS
from minprune.models.checks import check_result

NONE = mp.pattern("0%")


def correlated(d_out=16, d_in=64, tokens=400, seed=0, dtype=torch.float32):
    seeds = torch.Generator().manual_seed(seed)
    mix = torch.randn(d_in // 4, d_in, generator=seeds, dtype=dtype)
    X = torch.randn(tokens, d_in // 4, generator=seeds, dtype=dtype) @ mix
    X += 0.1 * torch.randn(tokens, d_in, generator=seeds, dtype=dtype)
    X[:, 3] *= 30  # a loud channel
    W = torch.randn(d_out, d_in, generator=seeds, dtype=dtype)
    return W, X, mp.Statistics(d_in, dtype=dtype).update(X)


def loss(W, found, X):
    return float(((X @ (W - found).T).double() ** 2).sum())


def by_surgery(W, X, grid, order, damp, keep):
    """Optimal Brain Quantization in a fixed order, a row at a time: the inverse is taken anew for what is left."""
    H = X.T @ X
    H += damp * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    result = W.clone()
    for row in range(len(W)):
        w, left = W[row].clone(), list(order)
        while left:
            j = left[0]
            inverse = torch.linalg.inv(H[left][:, left])
            alone = w.expand(len(W), -1).contiguous()
            q = grid.round(alone)[row, j] if keep[row, j] else torch.zeros((), dtype=W.dtype)
            w[left] -= (w[j] - q) / inverse[0, 0] * inverse[0]
            result[row, j] = q
            left = left[1:]
    return result


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "minimum"])
@pytest.mark.parametrize("order", ["stored", "activation"])
@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_it_takes_the_surgeons_steps(kind, order, zeros):
    W, X, stats = correlated(4, 12, 60, seed=5, dtype=torch.float64)
    keep = torch.rand(4, 12, generator=torch.Generator().manual_seed(6)) >= zeros
    W = W * keep
    found = gptq(W, stats, NONE, bits=3, group=4, grid=kind, order=order, block_size=5)
    visit = range(12) if order == "stored" else sorted(range(12), key=lambda j: -float((X[:, j] ** 2).sum()))
    expected = by_surgery(W, X, make_grid(W, 3, 4, kind), list(visit), 0.01, keep)
    torch.testing.assert_close(found.weight, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [16, 0])
@pytest.mark.parametrize("order", ["stored", "activation"])
def test_it_loses_less_than_rounding_on_correlated_inputs(bits, group, order):
    W, X, stats = correlated()
    ours = loss(W, gptq(W, stats, NONE, bits=bits, group=group, order=order).weight, X)
    plain = loss(W, rtn(W, None, NONE, bits=bits, group=group).weight, X)
    assert ours < 0.7 * plain


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("group", [8, 32, 0])
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "minimum"])
@pytest.mark.parametrize("pruner", ["magnitude", "sparsegpt", "wanda"])
def test_pruned_weights_stay_exactly_zero(method, group, kind, pruner):
    W, _, stats = correlated(seed=1)
    W = mp.METHODS[pruner](W, stats, "2:4").weight
    found = QUANTIZERS[method](W, stats, "0%", bits=4, group=group, grid=kind).weight
    assert not found[W == 0].any() and not torch.signbit(found[found == 0]).any()


def test_without_the_mask_the_zeros_are_gone():
    W, X, _ = correlated(6, 16, 100, seed=2, dtype=torch.float64)
    W[:, ::2] = 0
    grid = make_grid(W, 4, 16, "asymmetric")
    found = by_surgery(W, X, grid, range(16), 0.01, torch.ones_like(W, dtype=torch.bool))
    assert int((found[:, ::2] != 0).sum()) > 10


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "minimum"])
@pytest.mark.parametrize("pattern", ["0%", "50%", "50%:row", "2:4"])
def test_every_value_is_on_the_grid_of_the_dense_matrix(method, kind, pattern):
    if method == "rtn" and pattern != "0%":
        return
    W, _, stats = correlated(seed=3)
    found = QUANTIZERS[method](W, stats, pattern, bits=3, group=16, grid=kind)
    grid = make_grid(W, 3, 16, kind)
    kept = found.weight[found.keep]
    assert torch.equal(kept, grid.round(found.weight)[found.keep]) and not found.weight[~found.keep].any()


@pytest.mark.parametrize("pattern", ["50%", "50%:row", "50%:layer", "2:4", "block4:50%"])
@pytest.mark.parametrize("order", ["stored", "activation"])
def test_the_joint_sweep_makes_the_zeros_of_its_pattern(pattern, order):
    W, _, stats = correlated(seed=4)
    W[0, :2] = 0
    found = gptq(W, stats, mp.pattern(pattern), bits=4, group=16, order=order)
    check_result(found.weight, W, mp.pattern(pattern).with_default("block"))
    assert not found.weight[0, :2].any()
    assert 0 <= int((~found.keep).sum()) - W.numel() // 2 <= 2  # whole blocks, and the two that were zero
    if pattern == "2:4":
        assert (found.keep.unflatten(1, (-1, 4)).sum(2) <= 2).all()


@pytest.mark.parametrize(("pattern", "first"), [("50%", 12), ("50%:row", 12), ("50%:layer", 12), ("2:4", 4)])
def test_the_joint_sweep_chooses_like_sparsegpt_and_then_takes_the_surgeons_steps(pattern, first):
    W, X, stats = correlated(4, 12, 60, seed=9, dtype=torch.float64)
    found = gptq(W, stats, mp.pattern(pattern), bits=3, group=4)
    theirs = mp.METHODS["sparsegpt"](W, stats, pattern)
    assert torch.equal(found.keep[:, :first], theirs.keep[:, :first])  # until something was rounded
    grid = make_grid(W, 3, 4, "asymmetric")
    expected = by_surgery(W, X, grid, range(12), 0.01, found.keep)
    torch.testing.assert_close(found.weight, expected, rtol=0, atol=1e-9)


def test_a_single_input_is_rounded_to_the_nearest_level():
    W, stats = torch.tensor([[0.9], [-0.2]]), mp.Statistics(1).update(torch.ones(3, 1))
    assert torch.equal(gptq(W, stats, NONE, bits=2, group=1).weight, rtn(W, None, NONE, bits=2, group=1).weight)


def test_uncorrelated_inputs_leave_nothing_to_make_up_for():
    W, _, _ = correlated()
    stats = mp.Statistics(64).update(torch.eye(64))
    assert torch.equal(gptq(W, stats, NONE, bits=3, group=8).weight, rtn(W, None, NONE, bits=3, group=8).weight)


def test_no_ambient_state_changes_the_result():
    W, _, stats = correlated(seed=7)
    expected = gptq(W, stats, NONE, bits=3, group=16).weight
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            found = gptq(W, stats, NONE, bits=3, group=16).weight
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, expected) and not found.is_inference()


def test_arguments_stay_as_they_are_and_an_input_that_is_always_zero_does_no_harm():
    W, X, _ = correlated(seed=8)
    X[:, 5] = 0
    stats = mp.Statistics(64).update(X)
    before, gram = W.clone(), stats.gram.clone()
    found = gptq(W, stats, mp.pattern("50%"), bits=4, group=16).weight
    assert found.isfinite().all() and torch.equal(W, before) and torch.equal(stats.gram, gram)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"order": "random"}, "unknown order 'random'"), ({"block_size": 0}, "block size 0"), ({"damp": -1.0}, "damping")],
)
def test_an_impossible_option_is_refused_with_its_value(options, said):
    W, _, stats = correlated()
    with pytest.raises(mp.PruneError, match=said):
        gptq(W, stats, NONE, **options)


def test_rounding_alone_chooses_no_zeros():
    with pytest.raises(mp.PruneError, match="pattern 50% asks for some: prune first"):
        rtn(torch.ones(2, 4), None, mp.pattern("50%"), group=4)


def test_a_level_beyond_the_range_of_the_type_is_refused_and_no_weight_is_infinite():
    """The scale of -65504 .. 65504 in 3 bits is rounded up to 21,840: three times that is no float16."""
    model = tiny_model("llama", torch.float16)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.finfo(torch.float16).max
    with pytest.raises(mp.PruneError, match=r"layers\.1\.mlp\.up_proj.*too large for torch.float16"):
        mp.quantize(model, None, bits=3, group=16, method="rtn", grid="symmetric")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("option", [{"recipe": "best"}, {"allocation": "owl"}, {"power": 1.0}])
def test_an_option_of_pruning_alone_is_refused_before_any_weight_moves(option):
    """The training of a recipe, for one, would leave the grid, and the report would still say "3 bits"."""
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(mp.PruneError, match=f"'gptq' does not know the option '{next(iter(option))}'"):
        mp.quantize(model, tiny_tokens(), bits=3, group=16, pattern="60%", **option)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("bits", [3, 4])
def test_the_parts_of_a_joint_sweep_are_those_of_the_sweep(bits, monkeypatch):
    """benchmarks/quantize.py: with its own mask and grid it is the joint sweep, with SparseGPT's it is one after the
    other, and a sweep that zeroes and rounds at once under a given mask is the same as two on one grid."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from quantize import by_parts

    W, X, stats = correlated(dtype=torch.float64)
    half, first = mp.pattern("50%"), mp.METHODS["sparsegpt"](W, stats, "50%")
    grid = make_grid(W, bits, 64, "asymmetric")
    at_once = by_surgery(W, X, grid, list(range(64)), 0.01, first.keep)
    expected = {
        (True, False): gptq(W, stats, half, bits=bits).weight,
        (False, True): gptq(first.weight, stats, NONE, bits=bits).weight,
        (False, False): at_once,
    }
    for (own_mask, later_grid), weight in expected.items():
        found = by_parts(W, stats, half, bits=bits, own_mask=own_mask, later_grid=later_grid)
        torch.testing.assert_close(found.weight, weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"group": 32}, r"layers\.0\.mlp\.down_proj: groups of 32 do not divide the 48"),
        ({"bits": 9, "group": 16}, "9 bits"),
    ],
)
def test_what_some_layer_cannot_be_is_refused_before_the_first_is_rounded(method, options, said):
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(mp.PruneError, match=said):
        mp.quantize(model, tiny_tokens(), method=method, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
