"""Wanda against its definition, term by term, and against magnitude where the two must agree."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minprune as mp

SETTINGS = settings(derandomize=True, max_examples=40, deadline=None)


@given(st.integers(1, 6), st.integers(1, 10), st.integers(1, 8), st.floats(0, 1), st.integers(0, 999))
@SETTINGS
def test_each_row_loses_the_weights_whose_removal_alone_costs_least(d_out, d_in, tokens, sparsity, seed):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    X = torch.randn(tokens, d_in, generator=generator, dtype=torch.float64)
    result = mp.METHODS["wanda"](W, mp.Statistics(d_in, gram=False).update(X), mp.Unstructured(sparsity))
    for w, kept in zip(W, result.keep, strict=True):
        cost = []
        for j in range(d_in):  # the squared output error if weight j alone is set to zero
            without = w.clone()
            without[j] = 0
            cost.append(float((X @ w - X @ without).square().sum()))
        order = sorted(range(d_in), key=lambda j: cost[j])
        assert set((~kept).nonzero().flatten().tolist()) == set(order[: round(sparsity * d_in)])
    assert torch.equal(result.weight, W * result.keep)


@pytest.mark.parametrize("text", ["50%", "33%", "2:4", "1:8"])
def test_identity_inputs_make_wanda_row_wise_magnitude(text, generator):
    W = torch.randn(20, 32, generator=generator)
    stats = mp.Statistics(32, gram=False).update(torch.eye(32))
    row_wise = text if ":" in text else f"{text}:row"
    expected = mp.METHODS["magnitude"](W, None, mp.pattern(row_wise))
    assert torch.equal(mp.METHODS["wanda"](W, stats, mp.pattern(text)).weight, expected.weight)


def test_scaling_all_inputs_or_one_row_of_weights_changes_no_choice(generator):
    W, X = torch.randn(8, 16, generator=generator), torch.randn(30, 16, generator=generator)
    plain = mp.METHODS["wanda"](W, mp.Statistics(16).update(X), mp.pattern("50%")).keep
    assert torch.equal(mp.METHODS["wanda"](W, mp.Statistics(16).update(4 * X), mp.pattern("50%")).keep, plain)
    W[2] *= 64
    assert torch.equal(mp.METHODS["wanda"](W, mp.Statistics(16).update(X), mp.pattern("50%")).keep, plain)


def test_a_gram_matrix_is_neither_needed_nor_used(generator):
    W, X = torch.randn(8, 16, generator=generator), torch.randn(30, 16, generator=generator)
    results = [mp.METHODS["wanda"](W, mp.Statistics(16, gram).update(X), mp.pattern("50%")) for gram in (True, False)]
    assert torch.equal(results[0].weight, results[1].weight)


def test_weights_on_dead_inputs_go_first(generator):
    X = torch.randn(30, 16, generator=generator)
    dead = [1, 5, 6, 12]
    X[:, dead] = 0
    W = torch.randn(8, 16, generator=generator)
    W[:, dead] *= 1000
    keep = mp.METHODS["wanda"](W, mp.Statistics(16, gram=False).update(X), mp.pattern("25%")).keep
    assert torch.equal((~keep).nonzero()[:, 1].view(8, 4), torch.tensor(dead).expand(8, 4))


def test_bfloat16_weights_are_scored_in_float32():
    # in bfloat16 the two scores would both round to 1.0, and the tie would prune the first instead of the second
    W = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)
    stats = mp.Statistics(2, gram=False).update(torch.tensor([[1.001, 1.0]]))
    assert mp.METHODS["wanda"](W, stats, mp.pattern("50%")).keep.tolist() == [[True, False]]


def test_infinite_inputs_are_refused_where_they_make_nan():
    stats = mp.Statistics(2, gram=False).update(torch.tensor([[math.inf, 1.0]]))
    with pytest.raises(mp.PruneError, match="NaN"):
        mp.METHODS["wanda"](torch.tensor([[0.0, 1.0]]), stats, mp.pattern("50%"))
