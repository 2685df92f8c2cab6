"""Optimal Brain Damage and Surgeon against brute force over masks and exact solves, which share no code with them."""

import heapq
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import correlated, cost, exact, hessian, statistics

import minprune as mp
from minprune.methods import get_method
from minprune.methods.obs import surgery

SETTINGS = settings(derandomize=True, max_examples=30, deadline=None)
obd, obs = mp.METHODS["obd"], mp.METHODS["obs"]


def cost_without(w, H, gone):
    """What row w loses at the least if the weights `gone` are removed."""
    keep = torch.ones(1, len(w), dtype=torch.bool)
    keep[0, list(gone)] = False
    return cost(w[None], exact(w[None], H, keep), H)


def cheapest_first(w, H, steps, allowed=lambda gone, q: True):
    """Greedy surgery of one row by exact solves alone: [(column, increase of the loss), ...]."""
    gone, trace, before = [], [], 0.0
    for _ in range(steps):
        left = [q for q in range(len(w)) if q not in gone and allowed(gone, q)]
        after, q = min((cost_without(w, H, [*gone, q]), q) for q in left)
        trace.append((q, after - before))
        gone, before = [*gone, q], after
    return trace


def run_surgery(W, H, steps, width=None, zeros=None):
    inverse = torch.linalg.inv(H)
    width = width or W.shape[1]
    may_go = torch.ones_like(W, dtype=torch.bool)
    return surgery(W, inverse, inverse.diagonal(), may_go, width, zeros or width, steps)


# --- Optimal Brain Damage


@given(st.integers(1, 5), st.integers(1, 9), st.floats(0, 1), st.integers(0, 999))
@SETTINGS
def test_damage_removes_what_alone_and_without_repair_raises_the_loss_least(d_out, d_in, sparsity, seed):
    W, X = correlated(d_out, d_in, seed=seed)
    single = torch.zeros_like(W)
    for i, j in itertools.product(range(d_out), range(d_in)):
        without = W.clone()
        without[i, j] = 0
        single[i, j] = (X @ (W - without).T).square().sum()
    result = obd(W, statistics(X), mp.Unstructured(sparsity))
    gone = single.flatten().argsort()[: round(sparsity * W.numel())]
    assert set((~result.keep).flatten().nonzero().flatten().tolist()) == set(gone.tolist())
    assert torch.equal(result.weight, W * result.keep)


@pytest.mark.parametrize("text", ["50%:row", "30%:layer", "2:4", "3:8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_damage_ranks_as_wanda_does_because_its_score_is_half_wandas_squared(text, dtype):
    W, X = correlated(8, 32, dtype=torch.float32)
    W, stats = W.to(dtype), mp.Statistics(32, gram=False).update(X)
    assert torch.equal(obd(W, stats, mp.pattern(text)).keep, mp.METHODS["wanda"](W, stats, mp.pattern(text)).keep)


# --- Optimal Brain Surgeon: each step


@given(st.integers(1, 3), st.integers(1, 8), st.integers(0, 999))
@SETTINGS
def test_each_step_is_the_best_single_removal_and_costs_what_the_loss_rises_by(d_out, d_in, seed):
    W, X = correlated(d_out, d_in, seed=seed)
    H = hessian(X)
    _, keep, order, costs = run_surgery(W, H, d_in)
    assert not keep.any()
    for w, columns, rises in zip(W, order, costs, strict=True):
        expected = cheapest_first(w, H, d_in)
        assert columns.tolist() == [q for q, _ in expected]
        torch.testing.assert_close(rises, torch.tensor([rise for _, rise in expected], dtype=W.dtype))


@given(st.integers(2, 8), st.integers(0, 999))
@SETTINGS
def test_no_mask_at_all_beats_the_best_one_and_one_removal_is_the_best_one(d_in, seed):
    W, X = correlated(2, d_in, seed=seed)
    H = hessian(X)
    for zeros in range(1, d_in + 1):
        result = obs(W, statistics(X), mp.Unstructured(zeros / d_in))
        best = [min(cost_without(w, H, gone) for gone in itertools.combinations(range(d_in), zeros)) for w in W]
        found = [cost(w[None], p[None], H) for w, p in zip(W, result.weight, strict=True)]
        assert (~result.keep).sum(1).tolist() == [zeros, zeros]
        assert all(f >= b * (1 - 1e-9) for f, b in zip(found, best, strict=True))
        if zeros in (1, d_in):
            assert found == pytest.approx(best, rel=1e-9)


def test_greedy_is_not_always_optimal():
    gaps = []
    for seed in range(20):
        W, X = correlated(1, 8, seed=seed)
        H = hessian(X)
        found = cost(W, obs(W, statistics(X), mp.pattern("50%")).weight, H)
        gaps.append(found / min(cost_without(W[0], H, gone) for gone in itertools.combinations(range(8), 4)))
    assert min(gaps) == pytest.approx(1, rel=1e-9) and max(gaps) > 1.01


# --- the weights that are left


@pytest.mark.parametrize(
    "text", ["50%", "90%:row", "50%:layer", "50%:block", "2:4", "1:4", "3:8", "block4:50%", "100%"]
)
@pytest.mark.parametrize("damp", [0.01, 0.3])
def test_the_weights_are_the_exact_solve_on_their_mask(text, damp):
    W, X = correlated(12, 32)
    result = obs(W, statistics(X), mp.pattern(text), damp=damp)
    torch.testing.assert_close(result.weight, exact(W, hessian(X, damp), result.keep), rtol=1e-9, atol=1e-9)
    assert result.note == ""


@given(st.integers(1, 6), st.integers(1, 20), st.floats(0, 1), st.integers(0, 999))
@SETTINGS
def test_a_given_mask_gets_its_exact_weights_whatever_it_takes_of_each_row(d_out, d_in, sparsity, seed):
    W, X = correlated(d_out, d_in, seed=seed)
    keep = torch.rand(d_out, d_in, generator=torch.Generator().manual_seed(seed)) >= sparsity
    keep[0], before = True, keep.clone()
    result = obs(W, statistics(X), mp.pattern("2:4" if d_in % 4 == 0 else "50%"), keep=keep)
    assert torch.equal(result.keep, keep) and torch.equal(before[1:], keep[1:])
    torch.testing.assert_close(result.weight, exact(W, hessian(X), keep), rtol=1e-8, atol=1e-8)
    assert torch.equal(result.weight[0], W[0])  # nothing went, nothing moved


def test_the_order_of_the_removals_makes_no_difference(generator):
    W, X = correlated(1, 16)
    H = hessian(X)
    gone = torch.randperm(16, generator=generator)[:8].tolist()
    keep = torch.ones_like(W, dtype=torch.bool)
    keep[0, gone] = False
    expected = obs(W, statistics(X), mp.pattern("50%"), keep=keep).weight[0]
    for _ in range(5):
        w, inverse = W[0].clone(), torch.linalg.inv(H)
        for q in (gone[i] for i in torch.randperm(8, generator=generator).tolist()):  # as the formulas are written
            w -= w[q] / inverse[q, q] * inverse[q]
            inverse -= torch.outer(inverse[:, q], inverse[q]) / inverse[q, q]
        torch.testing.assert_close(w, expected, rtol=1e-9, atol=1e-9)


def test_sparsegpt_on_the_same_mask_is_never_better_and_here_worse():
    W, X = correlated(12, 32)
    H, keep = hessian(X), obs(W, statistics(X), mp.pattern("50%")).keep
    surgeon, columns = (mp.METHODS[m](W, statistics(X), mp.pattern("50%"), keep=keep) for m in ("obs", "sparsegpt"))
    assert cost(W, surgeon.weight, H) < 0.9 * cost(W, columns.weight, H)


def test_behind_a_plus_it_repairs_the_mask_of_another_method():
    W, X = correlated(12, 32)
    chained = get_method("wanda+obs")(W, statistics(X), mp.pattern("2:4"), damp=0.1, memory=1e5)
    mask = mp.METHODS["wanda"](W, statistics(X), mp.pattern("2:4")).keep
    assert torch.equal(chained.keep, mask)
    torch.testing.assert_close(chained.weight, exact(W, hessian(X, 0.1), mask), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("text", ["50%:row", "50%:layer", "2:4", "3:8"])
def test_a_diagonal_gram_matrix_makes_it_damage_and_updates_nothing(text):
    W, _ = correlated(8, 32)
    scales = torch.rand(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    stats = statistics(torch.diag(scales))
    result = obs(W, stats, mp.pattern(text), damp=0)
    assert torch.equal(result.keep, obd(W, stats, mp.pattern(text)).keep)
    torch.testing.assert_close(result.weight, W * result.keep, rtol=1e-12, atol=0)


# --- patterns


@given(st.integers(1, 5), st.integers(0, 5), st.integers(1, 4), st.integers(0, 999))
@SETTINGS
def test_in_n_m_a_weight_goes_only_while_its_group_has_more_than_n(m, n, groups, seed):
    n, d_in = min(n, m), m * groups
    W, X = correlated(2, d_in, seed=seed)
    result = obs(W, statistics(X), mp.NM(n, m))
    assert (result.keep.view(2, groups, m).sum(2) == n).all()

    def allowed(gone, q):
        return sum(other // m == q // m for other in gone) < m - n

    for w, kept in zip(W, result.keep, strict=True):
        expected = [q for q, _ in cheapest_first(w, hessian(X), groups * (m - n), allowed)]
        assert set((~kept).nonzero().flatten().tolist()) == set(expected)


@given(st.integers(1, 5), st.integers(1, 7), st.floats(0, 1), st.integers(0, 999))
@SETTINGS
def test_over_the_layer_the_row_whose_next_weight_is_cheapest_gives_it(d_out, d_in, sparsity, seed):
    W, X = correlated(d_out, d_in, seed=seed)
    traces = [cheapest_first(w, hessian(X), d_in) for w in W]
    expected = torch.ones(d_out, d_in, dtype=torch.bool)
    queue = [(trace[0][1], i, 0) for i, trace in enumerate(traces)]
    heapq.heapify(queue)
    for _ in range(round(sparsity * d_out * d_in)):
        _, i, step = heapq.heappop(queue)
        expected[i, traces[i][step][0]] = False
        if step + 1 < d_in:
            heapq.heappush(queue, (traces[i][step + 1][1], i, step + 1))
    assert torch.equal(obs(W, statistics(X), mp.Unstructured(sparsity, "layer")).keep, expected)


def test_a_removal_can_be_cheaper_than_the_one_before_it():
    falls = 0
    for seed in range(20):
        W, X = correlated(4, 8, seed=seed)
        costs = run_surgery(W, hessian(X), 8)[3]
        falls += int((costs.diff(dim=1) < 0).sum())
    assert falls > 0  # so the running maximum in "50%:layer" is needed


@pytest.mark.parametrize("text", ["50%:block", "25%:block", "block4:50%", "block8:25%"])
def test_blocks_are_chosen_at_the_start_by_the_cost_of_the_first_removal(text):
    W, X = correlated(16, 160)
    pivots = torch.linalg.inv(hessian(X)).diagonal()
    assert torch.equal(obs(W, statistics(X), mp.pattern(text)).keep, mp.pattern(text).keep(W**2 / pivots))


@pytest.mark.parametrize("text", ["50%", "50%:layer", "2:4", "50%:block"])
def test_the_memory_it_may_use_changes_nothing(text):
    W, X = correlated(11, 32)
    plain = obs(W, statistics(X), mp.pattern(text))
    for memory in (1, 3 * 16 * 32 * 8, 1e5, math.inf):
        other = obs(W, statistics(X), mp.pattern(text), memory=memory)
        assert torch.equal(other.keep, plain.keep)
        torch.testing.assert_close(other.weight, plain.weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [5, 6])
def test_in_float32_too_the_memory_changes_no_bit(rows):
    """A product of one row takes another path through the library than one of several, and rounds otherwise."""
    W, X = correlated(rows, 576)
    W, stats = W.float(), statistics(X.float())
    plain = obs(W, stats, mp.pattern("50%")).weight
    for at_once in (1, 2, 3, 4):
        assert torch.equal(obs(W, stats, mp.pattern("50%"), memory=at_once * 288 * 576 * 4).weight, plain)


def test_memory_bounds_the_rows_that_are_worked_on_at_a_time(monkeypatch):
    import minprune.methods.obs as module

    seen = []

    def spy(w, *arguments):
        seen.append(len(w))
        return surgery(w, *arguments)

    monkeypatch.setattr(module, "surgery", spy)
    W, X = correlated(11, 32)
    obs(W, statistics(X), mp.pattern("50%"), memory=4 * 16 * 32 * 8)  # four rows of 16 u's of 32 float64
    assert seen == [4, 4, 3]


# --- numbers


@pytest.mark.parametrize("text", ["50%", "80%:layer", "2:4"])
def test_float32_stays_close_to_float64_on_badly_conditioned_inputs(text):
    W, X = correlated(8, 192, tokens=64)  # fewer tokens than inputs: only the damping makes H definite
    X *= torch.logspace(0, 2, 192, dtype=torch.float64)
    wide = obs(W, statistics(X), mp.pattern(text))
    narrow = obs(W.float(), statistics(X.float()), mp.pattern(text))
    assert wide.note == narrow.note == ""
    assert (narrow.keep == wide.keep).double().mean() > 0.97
    H = hessian(X)
    assert cost(W, narrow.weight.double(), H) == pytest.approx(cost(W, wide.weight, H), rel=0.01)
    best = exact(W, H, narrow.keep)
    assert cost(W, narrow.weight.double(), H) <= 1.001 * cost(W, best, H)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_solved_in_float32_and_rounded_once(dtype):
    W, X = correlated(8, 64, dtype=torch.float32)
    W = W.to(dtype)
    result, wide = obs(W, statistics(X), mp.pattern("50%")), obs(W.float(), statistics(X), mp.pattern("50%"))
    assert torch.equal(result.keep, wide.keep) and torch.equal(result.weight, wide.weight.to(dtype))


def test_it_beats_sparsegpt_where_both_choose_in_each_row():
    W, X = correlated(12, 48)
    H = hessian(X)
    for text in ("50%:row", "70%:row", "2:4"):
        surgeon, columns = (mp.METHODS[m](W, statistics(X), mp.pattern(text)).weight for m in ("obs", "sparsegpt"))
        assert cost(W, surgeon, H) < cost(W, columns, H)


def test_a_singular_gram_matrix_raises_the_damping_and_says_so():
    W, X = correlated(8, 64, tokens=8)
    result = obs(W, statistics(X), mp.pattern("50%"), damp=0)
    assert result.note.startswith("damping raised from 0 to ") and result.weight.isfinite().all()


@pytest.mark.parametrize("text", ["12.5%", "12.5%:layer", "7:8", "50%", "2:4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_on_dead_inputs_go_first_and_move_no_other(text, dtype):
    W, X = correlated(8, 32, dtype=dtype)
    dead = torch.tensor([0, 9, 17, 31])  # one in each group of eight
    X[:, dead] = 0
    result = obs(W, statistics(X), mp.pattern(text))
    assert not result.keep[:, dead].any() and result.weight.isfinite().all()
    if text not in ("50%", "2:4"):
        assert torch.equal(result.weight, W.index_fill(1, dead, 0))


def test_large_weights_neither_overflow_nor_escape():
    W, X = correlated(8, 32, dtype=torch.float32)
    result = obs(W * 1e25, statistics(X), mp.pattern("50%"))
    assert (result.keep.sum(1) == 16).all() and torch.equal(result.keep, obs(W, statistics(X), mp.pattern("50%")).keep)


@pytest.mark.parametrize("memory", [0, -1e9, math.nan])
def test_useless_memory_is_refused(memory):
    W, X = correlated(4, 8)
    with pytest.raises(mp.PruneError, match=f"memory {memory:g} is not positive".replace("+", r"\+")):
        obs(W, statistics(X), mp.pattern("50%"), memory=memory)


def test_statistics_that_cannot_be_used_are_refused():
    W, X = correlated(4, 8)
    for stats, reason in [(mp.Statistics(8), "no input"), (mp.Statistics(8, gram=False).update(X), "gram=True")]:
        with pytest.raises(mp.PruneError, match=reason):
            obs(W, stats, mp.pattern("50%"))
