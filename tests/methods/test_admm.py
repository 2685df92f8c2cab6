"""ADMM: its limit on a fixed mask is exact least squares; its own masks have exact counts and beat SparseGPT's."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import correlated, statistics

import minprune as mp
from minprune.methods.admm import part_of, unit_diagonal
from minprune.methods.least_squares import least_squares

SETTINGS = settings(derandomize=True, max_examples=30, deadline=None)
PATTERNS = ["50%", "60%:row", "70%:block", "2:4", "1:4", "3:8", "1:1", "0:2", "block4:50%", "0%", "100%"]
admm = mp.METHODS["admm"]


@given(st.integers(1, 8), st.integers(1, 20), st.floats(0, 1), st.floats(0.3, 3), st.integers(0, 999))
@SETTINGS
def test_on_a_fixed_mask_it_converges_to_exact_least_squares(d_out, d_in, sparsity, rho, seed):
    W, X = correlated(d_out, d_in, seed=seed, sizes=True)
    stats = statistics(X)
    keep = torch.rand(d_out, d_in, generator=torch.Generator().manual_seed(seed)) >= sparsity
    exact = least_squares(W, stats, keep, damp=0.1)
    found = admm(W, stats, mp.pattern("50%"), keep=keep, steps=2000, rho=rho, damp=0.1)
    assert torch.equal(found.keep, keep)
    torch.testing.assert_close(found.weight, exact, rtol=1e-6, atol=1e-6)


def test_on_a_fixed_mask_it_comes_nearer_from_round_to_round():
    W, X = correlated(12, 64, sizes=True)
    stats = statistics(X)
    keep = mp.METHODS["wanda"](W, stats, mp.pattern("60%")).keep
    exact = least_squares(W, stats, keep)
    away = [
        float((admm(W, stats, mp.pattern("60%"), keep=keep, steps=n).weight - exact).norm()) for n in (5, 20, 80, 320)
    ]
    assert all(later < 0.7 * earlier for earlier, later in pairwise(away))


def test_two_rounds_by_the_published_recursion():
    W, X = correlated(6, 16, sizes=True)
    gram = X.T @ X
    H = gram + 0.01 * gram.diagonal().mean() * torch.eye(16, dtype=gram.dtype)
    D = H.diagonal().sqrt()
    G, V, rho = H / D / D[:, None], W * D, 0.7
    A, U = V, torch.zeros_like(V)
    for sparsity in (0.5 * (1 - (1 - 1 / 2) ** 3), 0.5):
        order = (A + U).abs().flatten().argsort()
        mask = torch.ones(6 * 16, dtype=torch.bool)
        mask[order[: round(sparsity * 96)]] = False
        mask = mask.view(6, 16)
        Z = mask * (A + U)
        U = U + A - Z
        A = torch.linalg.solve(G + rho * torch.eye(16, dtype=G.dtype), V @ G + rho * (Z - U), left=False)
    found = admm(W, statistics(X), mp.pattern("50%"), steps=2, gradual=2, rho=rho)
    assert torch.equal(found.keep, mask)
    torch.testing.assert_close(found.weight, mask * (A + U) / D, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["admm", "alps"])
@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_mask_is_the_patterns_and_only_kept_weights_are_left(method, text, dtype):
    W, X = correlated(12, 24, dtype=dtype, sizes=True)
    pattern = mp.pattern(text)
    result = mp.METHODS[method](W, statistics(X), pattern)
    some = pattern.with_default("layer").keep(torch.rand(12, 24, generator=torch.Generator().manual_seed(0)))
    assert int(result.keep.sum()) == int(some.sum())
    assert torch.equal(result.weight != 0, result.keep)
    if isinstance(pattern, mp.NM):
        assert (result.keep.view(-1, pattern.m).sum(1) == pattern.n).all()
    if text == "60%:row":
        assert ((~result.keep).sum(1) == round(0.6 * 24)).all()


@pytest.mark.parametrize("text", ["50%", "37%:row", "2:4", "1:4", "3:8", "block4:50%"])
def test_on_the_way_to_a_pattern_zeros_only_grow_in_number_and_n_m_never_loses_more_than_it_may(text):
    scores = torch.rand(12, 24, generator=torch.Generator().manual_seed(0))
    pattern = mp.pattern(text).with_default("layer")
    final = pattern.keep(scores)
    unit = pattern.size**2 if isinstance(pattern, mp.Block) else 1
    places = 12 if text.endswith("row") else 1  # groups in which the count is rounded
    for share in (0.0, 0.25, 0.5, 0.9, 1.0):
        keep = part_of(pattern, scores, share)
        zeros, target = int((~keep).sum()), share * int((~final).sum())
        assert abs(zeros - target) <= unit * places
        assert (keep | ~final).all()  # nothing goes that the pattern itself would keep
    assert torch.equal(keep, final)


def test_scaling_leaves_the_error_as_it_is_and_a_diagonal_of_ones():
    W, X = correlated(5, 12, sizes=True)
    gram = X.T @ X
    V, G, scale = unit_diagonal(W, gram, 0.1)
    H = gram + 0.1 * gram.diagonal().mean() * torch.eye(12, dtype=gram.dtype)
    torch.testing.assert_close(V @ G @ V.T, W @ H @ W.T)
    torch.testing.assert_close(V / scale, W)
    assert (G.diagonal() == 1).all()


def test_the_gradual_mask_beats_one_chosen_at_once_and_both_beat_sparsegpt():
    gradual, at_once = 0, 0
    for seed in range(20):
        W, X = correlated(24, 48, seed=seed, sizes=True)
        stats = statistics(X)
        sparsegpt = mp.METHODS["sparsegpt"](W, stats, mp.pattern("60%")).weight
        errors = [
            mp.layer_error(W, w, stats.gram)
            for w in (
                sparsegpt,
                admm(W, stats, mp.pattern("60%"), gradual=1).weight,
                admm(W, stats, mp.pattern("60%")).weight,
            )
        ]
        gradual += errors[2] < errors[1]
        at_once += errors[2] < errors[0]
    assert gradual >= 18 and at_once >= 18


def test_nothing_to_prune_leaves_the_weights_as_they_are():
    W, X = correlated(6, 16, sizes=True)
    for text in ("0%", "1:1"):
        torch.testing.assert_close(admm(W, statistics(X), mp.pattern(text)).weight, W, rtol=1e-12, atol=0)


@pytest.mark.parametrize("damp", [0.0, 0.01])
@pytest.mark.parametrize("text", ["50%", "2:4"])
def test_dead_inputs_and_too_few_tokens_need_no_more_damping(damp, text):
    W, X = correlated(8, 32, tokens=6, dtype=torch.float32, sizes=True)
    X[:, [0, 3, 17]] = 0
    result = admm(W, statistics(X), mp.pattern(text), damp=damp)
    assert result.weight.isfinite().all() and result.note == ""
    first = admm(W, statistics(X), mp.Unstructured(3 / 32, "layer"), damp=damp)
    assert not first.keep[:, [0, 3, 17]].any()  # nothing is lost with them
    some = admm(W, statistics(X), mp.Unstructured(1 / 32, "layer"), damp=damp)
    torch.testing.assert_close(some.weight[:, [0, 3, 17]], (W * some.keep)[:, [0, 3, 17]])


def test_options_that_make_no_sense_are_refused():
    W, X = correlated(8, 16, sizes=True)
    for options in ({"steps": 0}, {"gradual": 0}, {"rho": 0.0}, {"rho": float("nan")}):
        with pytest.raises(mp.PruneError, match="must be positive"):
            admm(W, statistics(X), mp.pattern("50%"), **options)
