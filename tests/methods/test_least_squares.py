"""Exact least squares against NumPy row by row, stationarity, and everything that must not be better than it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import correlated, hessian, statistics

import minprune as mp
from minprune.methods import least_squares as module
from minprune.methods.least_squares import least_squares, solve_on_support

SETTINGS = settings(derandomize=True, max_examples=40, deadline=None)


def random_mask(d_out, d_in, sparsity, seed=0):
    return torch.rand(d_out, d_in, generator=torch.Generator().manual_seed(seed)) >= sparsity


def costs(W, W_pruned, H):
    """(d_out,): what each row loses."""
    return (((W - W_pruned) @ H) * (W - W_pruned)).sum(1)


@given(st.integers(1, 7), st.integers(1, 30), st.floats(0, 1), st.integers(0, 999))
@SETTINGS
def test_each_row_is_numpys_least_squares_on_the_kept_inputs(d_out, d_in, sparsity, seed):
    W, X = correlated(d_out, d_in, seed=seed)
    keep = random_mask(d_out, d_in, sparsity, seed)
    found = least_squares(W, statistics(X), keep, damp=0.01)
    ridge = float((0.01 * (X.T @ X).diagonal().mean()).sqrt())
    tall = np.vstack([X.numpy(), ridge * np.eye(d_in)])  # damping is d_in more tokens, one for each input
    for w, w_found, k in zip(W.numpy(), found.numpy(), keep.numpy(), strict=True):
        expected = np.zeros(d_in)
        expected[k] = np.linalg.lstsq(tall[:, k], tall @ w, rcond=None)[0]
        np.testing.assert_allclose(w_found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("damp", [0.0, 0.01, 1.0])
def test_the_gradient_is_zero_on_what_is_kept(sparsity, damp):
    W, X = correlated(20, 40)
    keep = random_mask(20, 40, sparsity)
    best = least_squares(W, statistics(X), keep, damp)
    H = hessian(X, damp)
    gradient = (W - best) @ H
    assert (best[~keep] == 0).all()
    assert float((gradient * keep).abs().max()) <= 1e-10 * float((W @ H).abs().max())


@given(st.integers(0, 999), st.sampled_from(["50%", "30%:layer", "80%:row", "2:4", "1:4"]), st.floats(1e-4, 1))
@SETTINGS
def test_no_other_weights_on_the_mask_are_better(seed, text, step):
    W, X = correlated(6, 16, seed=seed)
    stats, H = statistics(X), hessian(X, 0.01)
    keep = mp.METHODS["wanda"](W, stats, mp.pattern(text)).keep
    best = least_squares(W, stats, keep)
    lowest = costs(W, best, H)
    direction = torch.randn(W.shape, generator=torch.Generator().manual_seed(seed), dtype=W.dtype) * keep
    assert (costs(W, best + step * direction, H) > lowest)[direction.any(1)].all()
    assert (costs(W, W * keep, H) >= lowest * (1 - 1e-12)).all()
    for update in ("sparsegpt", *(name for name in ("admm", "alps") if name in mp.METHODS)):
        result = mp.METHODS[update](W, stats, mp.pattern(text), keep=keep)
        assert torch.equal(result.keep, keep)
        assert (costs(W, result.weight, H) >= lowest * (1 - 1e-12)).all(), update


@pytest.mark.parametrize("text", ["50%", "70%", "2:4"])
def test_it_improves_the_weights_of_every_method_on_that_methods_mask(text):
    W, X = correlated(12, 64)
    stats, H = statistics(X), hessian(X, 0.01)
    for method in ("magnitude", "wanda", "sparsegpt"):
        result = mp.METHODS[method](W, stats, mp.pattern(text))
        again = mp.METHODS["exact"](W, stats, mp.pattern(text), keep=result.keep)
        assert torch.equal(again.keep, result.keep)
        assert float(costs(W, again.weight, H).sum()) < 0.99 * float(costs(W, result.weight, H).sum())


def test_both_forms_and_any_memory_budget_give_the_same_weights(monkeypatch):
    W, X = correlated(30, 24)
    keep = random_mask(30, 24, 0.0)
    for row, k in zip(keep, range(30), strict=True):  # from nothing kept to everything kept, some twice
        row[:] = torch.arange(24) < min(k, 24)
    keep = keep[:, torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    H = hessian(X, 0.01)
    kept_form = W * keep + solve_on_support(H, keep, (W * ~keep) @ H)
    pruned_form = (W - solve_on_support(torch.linalg.inv(H), ~keep, W) @ torch.linalg.inv(H)) * keep
    torch.testing.assert_close(kept_form, pruned_form, rtol=1e-9, atol=1e-9)
    for budget in (1, 200, 2**24):
        monkeypatch.setattr(module, "_NUMBERS", budget)
        torch.testing.assert_close(least_squares(W, statistics(X), keep), kept_form, rtol=1e-9, atol=1e-9)


def test_rows_that_keep_all_are_untouched_and_rows_that_keep_nothing_are_zero():
    W, X = correlated(5, 16, dtype=torch.float32)
    keep = random_mask(5, 16, 0.5)
    keep[1], keep[3] = True, False
    best = least_squares(W, statistics(X), keep)
    assert torch.equal(best[1], W[1]) and not best[3].any() and not best.signbit()[3].any()


@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_weights_on_dead_inputs_stay_as_they_are_or_go(sparsity):
    W, X = correlated(8, 32)
    dead = torch.tensor([0, 3, 17, 31])
    X[:, dead] = 0
    keep = random_mask(8, 32, sparsity)
    best = least_squares(W, statistics(X), keep)
    torch.testing.assert_close(best[:, dead], (W * keep)[:, dead], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_gram_matrix_raises_the_damping_and_says_so(dtype):
    W, X = correlated(8, 64, tokens=8, dtype=dtype)  # fewer tokens than inputs
    result = mp.METHODS["exact"](W, statistics(X), mp.pattern("50%"), damp=0)
    assert result.note.startswith("damping raised from 0 to ") and result.weight.isfinite().all()
    bare = mp.METHODS["wanda"](W, statistics(X), mp.pattern("50%")).weight
    assert mp.layer_error(W, result.weight, X.T @ X) < 0.1 * mp.layer_error(W, bare, X.T @ X)


@pytest.mark.parametrize("sparsity", [0.3, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_is_wide_enough(dtype, sparsity):
    W, X = correlated(16, 128, dtype=torch.float32)
    W, keep = W.to(dtype), random_mask(16, 128, sparsity)
    best = least_squares(W, statistics(X), keep)
    assert best.dtype == dtype
    wide = least_squares(W.double(), statistics(X.double()), keep)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(best.double(), wide, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [name for name, method in mp.METHODS.items() if "keep" in method.options])
def test_masks_of_another_shape_or_dtype_are_refused_by_every_method_that_takes_one(name):
    W, X = correlated(8, 16)
    for keep in (torch.ones(8, 15, dtype=torch.bool), torch.ones(8, 16)):
        with pytest.raises(mp.PruneError, match="the mask is"):
            mp.METHODS[name](W, statistics(X), mp.pattern("50%"), keep=keep)
        with pytest.raises(mp.PruneError, match="the mask is"):
            least_squares(W, statistics(X), keep)


def test_without_a_mask_it_takes_wandas():
    W, X = correlated(8, 16)
    stats = statistics(X)
    for text in ("50%", "2:4", "block4:50%"):
        assert torch.equal(
            mp.METHODS["exact"](W, stats, mp.pattern(text)).keep, mp.METHODS["wanda"](W, stats, mp.pattern(text)).keep
        )
