"""RIA against its definition in plain Python, and where it must agree with others or with itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minprune as mp

SETTINGS = settings(derandomize=True, max_examples=40, deadline=None)
ria = mp.METHODS["ria"]


def scores_by_loop(W, X, power):
    """The published formula, one weight at a time."""
    d_out, d_in = len(W), len(W[0])
    norm = [math.sqrt(sum(x[j] ** 2 for x in X)) for j in range(d_in)]
    scores = [[0.0] * d_in for _ in range(d_out)]
    for i in range(d_out):
        for j in range(d_in):
            same_input = sum(abs(W[k][j]) for k in range(d_out))
            same_output = sum(abs(W[i][k]) for k in range(d_in))
            scores[i][j] = (abs(W[i][j]) / same_input + abs(W[i][j]) / same_output) * norm[j] ** power
    return scores


@given(
    st.integers(1, 6),
    st.integers(1, 8),
    st.integers(1, 6),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.5, 1.0, 2.5]),
    st.integers(0, 999),
)
@SETTINGS
def test_the_lowest_scores_of_the_published_formula_go(d_out, d_in, tokens, sparsity, power, seed):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    X = torch.randn(tokens, d_in, generator=generator, dtype=torch.float64)
    scores = scores_by_loop(W.tolist(), X.tolist(), power)
    stats = mp.Statistics(d_in, gram=False, dtype=torch.float64).update(X)
    places = sorted((score, i * d_in + j) for i, row in enumerate(scores) for j, score in enumerate(row))
    for group in (None, "layer"):  # its published default
        result = ria(W, stats, mp.Unstructured(sparsity, group), power=power)
        gone = {place for _, place in places[: round(sparsity * len(places))]}
        assert set((~result.keep).flatten().nonzero().flatten().tolist()) == gone
        assert torch.equal(result.weight, W * result.keep)


@pytest.mark.parametrize("text", ["50%", "50%:row", "2:4", "block4:50%"])
def test_rows_and_columns_of_zeros_go_first_and_make_no_nan(text, generator):
    W = torch.randn(8, 16, generator=generator)
    W[3], W[:, [2, 5]] = 0, 0
    stats = mp.Statistics(16, gram=False).update(torch.randn(30, 16, generator=generator))
    keep = ria(W, stats, mp.pattern(text)).keep
    assert int((~keep).sum()) == 64
    if ":" not in text:
        assert not keep[3].any() and not keep[:, [2, 5]].any()


def test_all_zero_weights_and_dead_inputs_are_only_ties(generator):
    stats = mp.Statistics(8, gram=False).update(torch.zeros(3, 8))
    for W in (torch.zeros(4, 8), torch.randn(4, 8, generator=generator)):
        keep = ria(W, stats, mp.pattern("25%")).keep
        assert keep.flatten().tolist() == [False] * 8 + [True] * 24


def test_scaling_the_weights_or_the_inputs_changes_no_choice(generator):
    W, X = torch.randn(8, 16, generator=generator), torch.randn(30, 16, generator=generator)
    plain = ria(W, mp.Statistics(16).update(X), mp.pattern("50%")).keep
    assert torch.equal(ria(64 * W, mp.Statistics(16).update(X), mp.pattern("50%")).keep, plain)
    assert torch.equal(ria(W, mp.Statistics(16).update(4 * X), mp.pattern("50%")).keep, plain)


def test_no_row_is_lost_because_it_is_small_as_it_is_by_magnitude(generator):
    W, X = torch.randn(8, 16, generator=generator), torch.randn(30, 16, generator=generator)
    W[2] /= 1000
    stats = mp.Statistics(16).update(X)
    assert not mp.METHODS["magnitude"](W, stats, mp.pattern("50%")).keep[2].any()
    assert ria(W, stats, mp.pattern("50%")).keep[2].sum() >= 3


def test_narrow_weights_are_scored_in_float32(generator):
    W, X = torch.randn(8, 16, generator=generator).to(torch.bfloat16), torch.randn(30, 16, generator=generator)
    stats = mp.Statistics(16).update(X)
    assert torch.equal(ria(W, stats, mp.pattern("50%")).keep, ria(W.float(), stats, mp.pattern("50%")).keep)


@pytest.mark.parametrize("power", [-0.5, math.inf, math.nan])
def test_a_useless_power_is_refused(power):
    with pytest.raises(mp.PruneError, match=f"power {power:g}"):
        ria(torch.ones(2, 4), mp.Statistics(4).update(torch.ones(1, 4)), mp.pattern("50%"), power=power)
