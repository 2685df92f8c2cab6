"""Magnitude pruning, and what holds for every method: arguments, dtypes, counts and errors."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.prune import l1_unstructured

import minprune as mp
from minprune.methods import get_method

SETTINGS = settings(derandomize=True, max_examples=40, deadline=None)
PATTERNS = ["50%", "30%:row", "70%:layer", "25%:block", "2:4", "1:4", "3:8", "1:1", "0:2", "block4:50%", "0%", "100%"]
DEFAULT_GROUP = {
    "magnitude": "layer", "wanda": "row", "sparsegpt": "block", "obd": "layer", "obs": "row", "ria": "layer",
}  # fmt: skip


def layer(d_out=12, d_in=24, tokens=60, dtype=torch.float32, seed=0):
    """(W, statistics of correlated inputs)."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens, d_in, generator=generator) @ torch.randn(d_in, d_in, generator=generator)
    W = torch.randn(d_out, d_in, generator=generator)
    return W.to(dtype), mp.Statistics(d_in, dtype=torch.promote_types(dtype, torch.float32)).update(X)


def zeros_asked_for(text, d_out, d_in, default):
    """How many weights a pattern prunes, counted group by group."""
    pattern = mp.pattern(text)
    if isinstance(pattern, mp.Unstructured):
        group = pattern.group or default
        sizes = {
            "row": [d_in] * d_out,
            "layer": [d_out * d_in],
            "block": [d_out * min(128, d_in - start) for start in range(0, d_in, 128)],
        }[group]
        return sum(round(pattern.sparsity * size) for size in sizes)
    if isinstance(pattern, mp.NM):
        return d_out * d_in // pattern.m * (pattern.m - pattern.n)
    blocks = d_out * d_in // pattern.size**2
    return round(pattern.sparsity * blocks) * pattern.size**2


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("method, default", DEFAULT_GROUP.items())
def test_every_method_prunes_exactly_the_number_asked_for(method, default, text):
    for d_out, d_in in ((12, 24), (20, 136)):
        W, stats = layer(d_out, d_in)
        result = mp.METHODS[method](W, stats, mp.pattern(text))
        asked = zeros_asked_for(text, d_out, d_in, default)
        assert int((~result.keep).sum()) == asked
        assert int((result.weight == 0).sum()) == asked  # no weight of W is zero, and no update lands on zero
        assert torch.equal(result.weight != 0, result.keep)


@pytest.mark.parametrize("method", mp.METHODS)
@pytest.mark.parametrize("text", ["50%", "2:4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_has_the_weights_dtype_and_no_nan_and_no_negative_zero(method, text, dtype):
    W, stats = layer(dtype=dtype)
    W[0, 0], W[1] = -0.0, 0.0
    result = mp.METHODS[method](W, stats, mp.pattern(text))
    assert result.weight.dtype == dtype and result.weight.shape == W.shape and result.weight.isfinite().all()
    assert result.keep.dtype == torch.bool
    assert not result.weight[~result.keep].signbit().any()


@pytest.mark.parametrize("method", mp.METHODS)
@pytest.mark.parametrize("text", ["50%", "50%:row", "2:4", "block4:50%"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("stored", ["row by row", "column by column"])
def test_a_method_never_changes_its_arguments(method, text, dtype, stored):
    W, stats = layer(dtype=dtype)
    if stored == "column by column":
        W = W.T.contiguous().T  # as in GPT-2, whose weight is seen through a transposed view
    stats.gram  # noqa: B018  (mirrors the matrix once; nothing may change afterwards)
    W_before, stats_before = W.clone(), copy.deepcopy(vars(stats))
    result = None
    if method == "swaps" and text == "block4:50%":  # no swap of two weights keeps a block whole
        with pytest.raises(mp.PruneError, match="block4:50%"):
            mp.METHODS[method](W, stats, mp.pattern(text))
    else:
        result = mp.METHODS[method](W, stats, mp.pattern(text))
    assert torch.equal(W, W_before)
    for name, value in vars(stats).items():
        same = (
            torch.equal(value, stats_before[name]) if isinstance(value, torch.Tensor) else value == stats_before[name]
        )
        assert same, name
    assert result is None or result.weight.untyped_storage().data_ptr() != W.untyped_storage().data_ptr()


@pytest.mark.parametrize("method", mp.METHODS)
@pytest.mark.parametrize("text", ["50%", "2:4"])
def test_views_and_trainable_parameters_give_the_same_result(method, text):
    W, stats = layer()
    expected = mp.METHODS[method](W, stats, mp.pattern(text))
    wide = torch.cat([W, W], dim=1)
    for other in (W.T.contiguous().T, wide[:, 24:], nn.Parameter(W.clone())):
        found = mp.METHODS[method](other, stats, mp.pattern(text))
        assert torch.equal(found.keep, expected.keep)
        torch.testing.assert_close(found.weight.detach(), expected.weight)


@pytest.mark.parametrize("method", mp.METHODS)
@pytest.mark.parametrize("text", ["50%:row", "50%:layer", "50%", "2:4"])
def test_permuting_the_outputs_permutes_the_result(method, text, generator):
    W, stats = layer(dtype=torch.float64)
    order = torch.randperm(len(W), generator=generator)
    plain, permuted = (mp.METHODS[method](w, stats, mp.pattern(text)) for w in (W, W[order]))
    assert torch.equal(permuted.keep, plain.keep[order])
    torch.testing.assert_close(permuted.weight, plain.weight[order])


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
@pytest.mark.parametrize("text", ["50%:row", "30%:layer"])
def test_permuting_the_inputs_permutes_the_result_where_no_column_order_is_used(method, text, generator):
    X = torch.randn(50, 24, generator=generator) * torch.rand(24, generator=generator)
    W = torch.randn(12, 24, generator=generator)
    order = torch.randperm(24, generator=generator)
    plain = mp.METHODS[method](W, mp.Statistics(24).update(X), mp.pattern(text))
    permuted = mp.METHODS[method](W[:, order], mp.Statistics(24).update(X[:, order]), mp.pattern(text))
    assert torch.equal(permuted.keep, plain.keep[:, order])
    assert torch.equal(permuted.weight, plain.weight[:, order])


@pytest.mark.parametrize("method", mp.METHODS)
def test_nan_weights_and_patterns_that_do_not_fit_are_refused(method):
    W, stats = layer()
    for text in ("50%", "2:4", "50%:row"):
        bad = W.clone()
        bad[3, 5] = math.nan
        with pytest.raises(mp.PruneError, match="NaN"):
            mp.METHODS[method](bad, stats, mp.pattern(text))
    with pytest.raises(mp.PruneError, match="5"):
        mp.METHODS[method](W, stats, mp.pattern("2:5"))


def test_unknown_methods_and_options_are_refused_with_the_known_ones():
    with pytest.raises(mp.PruneError, match=r"'random'.*magnitude, wanda, sparsegpt"):
        get_method("random")
    with pytest.raises(mp.PruneError, match=r"'sparsegpt'.*'damping'.*block_size, damp"):
        get_method("sparsegpt").check_options("sparsegpt", {"damp": 0.1, "damping": 0.1})
    with pytest.raises(mp.PruneError, match=r"'magnitude'.*'damp'.*no options"):
        get_method("magnitude").check_options("magnitude", {"damp": 0.1})


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.sampled_from(["row", "layer"]), st.integers(0, 999))
@SETTINGS
def test_magnitude_keeps_the_largest_weights_as_they_are(d_out, d_in, sparsity, group, seed):
    W = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed))
    result = mp.METHODS["magnitude"](W, None, mp.Unstructured(sparsity, group))
    for weights, kept in [(W, result.keep)] if group == "layer" else zip(W, result.keep, strict=True):
        sizes = sorted(abs(w) for w in weights.flatten().tolist())
        pruned = sorted(abs(w) for w in weights[~kept].tolist())
        assert pruned == sizes[: round(sparsity * len(sizes))]
    assert torch.equal(result.weight, W * result.keep)


def test_magnitude_agrees_with_torchs_own_pruning_where_there_are_no_ties(generator):
    linear = nn.Linear(40, 30)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(30, 40, generator=generator))
    W = linear.weight.detach().clone()
    l1_unstructured(linear, "weight", amount=0.37)
    assert torch.equal(mp.METHODS["magnitude"](W, None, mp.pattern("37%")).weight, linear.weight.detach())


def test_a_pattern_prunes_infinite_scores_last():
    scores = torch.tensor([[math.inf, 1.0, 2.0, math.inf]])
    assert mp.pattern("2:4").keep(scores).tolist() == [[True, False, False, True]]


def test_a_method_behind_a_plus_works_on_the_mask_of_the_one_before_it():
    W, stats = layer()
    chain, pattern = get_method("wanda+sparsegpt"), mp.pattern("50%")
    mask = mp.METHODS["wanda"](W, stats, pattern).keep
    expected = mp.METHODS["sparsegpt"](W, stats, pattern, keep=mask, damp=0.1)
    found = chain(W, stats, pattern, damp=0.1)
    assert torch.equal(found.keep, mask) and torch.equal(found.weight, expected.weight)
    assert chain.needs == "gram" and set(chain.options) == {"block_size", "damp"}
    with pytest.raises(mp.PruneError, match="wanda cannot work on a given mask, only sparsegpt"):
        get_method("magnitude+wanda")
    with pytest.raises(mp.PruneError, match="'keep'"):
        chain.check_options("wanda+sparsegpt", {"keep": mask})
