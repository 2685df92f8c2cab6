"""ALPS: conjugate gradients end at exact least squares, masks have exact counts, and the errors fall as published."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import observed

import minprune as mp
from minprune.methods.admm import unit_diagonal
from minprune.methods.alps import conjugate_gradients
from minprune.methods.least_squares import least_squares

SETTINGS = settings(derandomize=True, max_examples=30, deadline=None)
alps = mp.METHODS["alps"]


@given(st.integers(1, 8), st.integers(1, 16), st.floats(0, 1), st.integers(0, 999))
@SETTINGS
def test_conjugate_gradients_end_at_exact_least_squares_on_a_given_mask(d_out, d_in, sparsity, seed):
    W, stats = observed(d_out, d_in, seed=seed, sizes=True)
    keep = torch.rand(d_out, d_in, generator=torch.Generator().manual_seed(seed)) >= sparsity
    found = alps(W, stats, mp.pattern("50%"), keep=keep, refine=3 * d_in, damp=0.1)
    assert torch.equal(found.keep, keep)
    torch.testing.assert_close(found.weight, least_squares(W, stats, keep, damp=0.1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_conjugate_gradient_step_lowers_every_rows_error(dtype):
    W, stats = observed(10, 64, dtype=dtype, sizes=True)
    V, G, _ = unit_diagonal(W, stats.gram, 0.01)
    keep = mp.pattern("60%:row").keep(V.square())
    costs = []
    for steps in range(12):
        E = V - conjugate_gradients(V, G, V, keep, steps)
        costs.append(((E @ G) * E).sum(1))
    costs = torch.stack(costs)  # (steps, d_out)
    assert (costs[1:] < costs[:-1]).all()


@given(st.integers(4, 48), st.floats(0.05, 1.1), st.integers(0, 999), st.sampled_from([1, 10, 40, 100]))
@SETTINGS
def test_conjugate_gradients_of_a_singular_gram_matrix_stop_where_only_rounding_is_left(d_in, share, seed, steps):
    """Fewer tokens than inputs and no damping: what follows the last meaningful step divides rounding by rounding."""
    W, stats = observed(6, d_in, tokens=max(1, round(share * d_in)), seed=seed, dtype=torch.float32, sizes=True)
    V, G, _ = unit_diagonal(W, stats.gram, 0.0)
    keep = torch.rand(6, d_in, generator=torch.Generator().manual_seed(seed)) >= 0.5
    found = conjugate_gradients(V, G, V, keep, steps)
    before, after = ((E @ G.double() * E).sum(1) for E in ((V - A).double() for A in (V * keep, found)))
    whole = (V.double() @ G.double() * V.double()).sum(1)
    assert (after <= before + 1e-5 * whole).all()


@pytest.mark.parametrize("text", ["60%", "60%:row", "2:4"])
def test_alps_beats_admm_and_admm_beats_sparsegpt_on_most_layers(text):
    methods = ("sparsegpt", "admm", "alps")
    first = second = 0
    for seed in range(20):
        W, stats = observed(24, 48, seed=seed, sizes=True)
        errors = [mp.layer_error(W, mp.METHODS[m](W, stats, mp.pattern(text)).weight, stats.gram) for m in methods]
        first += errors[1] < errors[0]
        second += errors[2] < errors[1]
    assert first >= 18 and second >= 18


def test_refinement_closes_most_of_the_gap_to_the_exact_weights_of_its_mask():
    W, stats = observed(24, 96, sizes=True)
    H = stats.gram + 0.01 * stats.gram.diagonal().mean() * torch.eye(96, dtype=W.dtype)
    results = [alps(W, stats, mp.pattern("60%"), refine=steps) for steps in (0, 10, 300)]
    assert torch.equal(results[0].keep, results[1].keep)
    exact = least_squares(W, stats, results[0].keep)
    none, some, many, best = (float((((W - w) @ H) * (W - w)).sum()) for w in (*(r.weight for r in results), exact))
    assert best < some < best + 0.3 * (none - best)
    assert many == pytest.approx(best, rel=1e-8)


@pytest.mark.parametrize("text", ["50%", "2:4"])
def test_a_diagonal_gram_matrix_leaves_what_is_kept_as_it_is(text):
    W = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = torch.rand(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    stats = mp.Statistics(16, dtype=torch.float64).update(torch.diag(sizes))
    result = alps(W, stats, mp.pattern(text), damp=0)
    torch.testing.assert_close(result.weight, W * result.keep)


@pytest.mark.parametrize("damp", [0.0, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dead_inputs_go_first_and_too_few_tokens_do_no_harm(damp, dtype):
    W, stats = observed(8, 32, tokens=6, dtype=dtype, sizes=True)
    dead = torch.tensor([0, 3, 17])
    X = torch.randn(40, 32, generator=torch.Generator().manual_seed(0), dtype=dtype)
    X[:, dead] = 0
    assert alps(W, stats, mp.pattern("50%"), damp=damp).weight.isfinite().all()
    assert alps(W, stats, mp.pattern("2:4"), damp=damp).weight.isfinite().all()
    dead_stats = mp.Statistics(32, dtype=dtype).update(X)
    result = alps(W, dead_stats, mp.Unstructured(3 / 32, "layer"), damp=damp)
    assert not result.keep[:, dead].any()


def test_nothing_to_prune_leaves_the_weights_as_they_are():
    W, stats = observed(6, 16, sizes=True)
    for text in ("0%", "1:1"):
        torch.testing.assert_close(alps(W, stats, mp.pattern(text)).weight, W, rtol=1e-12, atol=0)


def test_options_that_make_no_sense_are_refused():
    W, stats = observed(8, 16, sizes=True)
    for options in ({"steps": 0}, {"refine": -1}, {"rho": 0.0}, {"rho": float("nan")}):
        with pytest.raises(mp.PruneError, match="out of range"):
            alps(W, stats, mp.pattern("50%"), **options)


@pytest.mark.parametrize("rho", [10.0, 1e3, 1e4])
def test_a_penalty_too_stiff_for_the_mask_to_move_is_loosened_until_it_does(rho):
    """Otherwise the mask stays that of the largest weights, and only the weights on it are refined."""
    (W, stats), pattern = observed(16, 48, dtype=torch.float32), mp.pattern("50%")
    first = mp.METHODS["alps"](W, stats, pattern, keep=mp.METHODS["obd"](W, stats, pattern).keep)
    stiff = mp.METHODS["alps"](W, stats, pattern, rho=rho)
    assert mp.layer_error(W, stiff.weight, stats.gram) < 0.95 * mp.layer_error(W, first.weight, stats.gram)
