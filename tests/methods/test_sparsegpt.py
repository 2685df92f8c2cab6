"""SparseGPT against column-by-column optimal brain surgeon with explicit inverses, and against the exact optimum."""

import gc
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import correlated, cost, exact, hessian, statistics

import minprune as mp
from minprune.methods.damping import triangular_inverse
from minprune.methods.sparsegpt import inverse_factor
from minprune.methods.sparsegpt_block import Block

SETTINGS = settings(derandomize=True, max_examples=40, deadline=None)
sparsegpt = mp.METHODS["sparsegpt"]


def surgeon(W, H, choose):
    """Optimal brain surgeon, column by column, with the inverse of the Hessian of the columns not yet visited.

    choose(q, w, costs, keep) is called before column q; it may fill in the mask for q and later columns, given the
    weights as updated so far and what [H_q:^-1]_qq is for each column.
    """
    w, d_in = W.clone(), W.shape[1]
    inverses = [torch.linalg.inv(H[q:, q:]) for q in range(d_in)]
    pivots = torch.stack([inverse[0, 0] for inverse in inverses])  # (d_in,)
    keep = torch.ones(W.shape, dtype=torch.bool)
    for q, inverse in enumerate(inverses):
        choose(q, w, pivots, keep)
        gone = ~keep[:, q]
        w[gone, q:] -= torch.outer(w[gone, q] / inverse[0, 0], inverse[0])
        w[gone, q] = 0
    return w, keep


def given_mask(mask):
    def choose(q, w, pivots, keep):
        keep[:, q] = mask[:, q]

    return choose


def lowest_of_each(width, zeros, by_row):
    """Choose when a run of `width` columns begins: the lowest w^2 / [H^-1]_qq of the run, or of each row of it."""

    def choose(q, w, pivots, keep):
        if q % width == 0:
            costs = w[:, q : q + width] ** 2 / pivots[q : q + width]
            groups = costs if by_row else costs.reshape(1, -1)
            mask = torch.ones_like(groups, dtype=torch.bool)
            for row, order in zip(mask, groups.argsort(1), strict=True):
                row[order[: zeros(groups.shape[1])]] = False
            keep[:, q : q + width] = mask.view(costs.shape)

    return choose


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 50), st.floats(0, 1), st.integers(0, 999))
@SETTINGS
def test_a_given_mask_and_any_block_size_equal_column_by_column_surgery(d_out, d_in, block_size, sparsity, seed):
    W, X = correlated(d_out, d_in, seed=seed)
    keep = torch.rand(d_out, d_in, generator=torch.Generator().manual_seed(seed)) >= sparsity
    expected, _ = surgeon(W, hessian(X, 0.01), given_mask(keep))
    result = sparsegpt(W, statistics(X), mp.pattern("50%"), keep=keep, block_size=block_size)
    assert torch.equal(result.keep, keep)
    torch.testing.assert_close(result.weight, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("d_in, block_size", [(300, 128), (128, 128), (129, 128), (100, 128), (96, 32), (50, 16)])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_its_own_choice_is_the_published_one_block_by_block(d_in, block_size, sparsity):
    W, X = correlated(9, d_in)
    expected, keep = surgeon(
        W, hessian(X, 0.01), lowest_of_each(block_size, lambda size: round(sparsity * size), by_row=False)
    )
    result = sparsegpt(W, statistics(X), mp.Unstructured(sparsity), block_size=block_size)
    assert torch.equal(result.keep, keep)
    torch.testing.assert_close(result.weight, expected, rtol=1e-8, atol=1e-8)


@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 6), st.integers(1, 40), st.integers(0, 999))
@SETTINGS
def test_n_m_is_chosen_when_a_group_is_reached_for_any_n_m_and_block_size(m, n, groups, block_size, seed):
    n = min(n, m)
    W, X = correlated(5, m * groups, seed=seed)
    expected, keep = surgeon(W, hessian(X, 0.01), lowest_of_each(m, lambda size: size - n, by_row=True))
    result = sparsegpt(W, statistics(X), mp.NM(n, m), block_size=block_size)
    assert torch.equal(result.keep, keep)
    torch.testing.assert_close(result.weight, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("text", ["50%:row", "50%:layer", "block4:50%"])
def test_other_groups_are_chosen_at_the_start_with_the_same_cost(text):
    W, X = correlated(8, 24)
    H = hessian(X, 0.01)
    pivots = torch.stack([torch.linalg.inv(H[q:, q:])[0, 0] for q in range(24)])
    keep = mp.pattern(text).keep(W**2 / pivots)
    expected, _ = surgeon(W, H, given_mask(keep))
    result = sparsegpt(W, statistics(X), mp.pattern(text))
    assert torch.equal(result.keep, keep)
    torch.testing.assert_close(result.weight, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("text", ["50%", "50%:row", "50%:layer", "2:4", "3:8"])
def test_a_diagonal_gram_matrix_updates_nothing_and_agrees_with_wanda(text):
    W, _ = correlated(8, 32)
    scales = torch.rand(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    stats = statistics(torch.diag(scales))
    result = sparsegpt(W, stats, mp.pattern(text), damp=0)
    torch.testing.assert_close(result.weight, W * result.keep, rtol=1e-12, atol=0)
    wanda_group = "50%:layer" if text == "50%" else text  # one block of columns is the whole layer here
    assert torch.equal(result.keep, mp.METHODS["wanda"](W, stats, mp.pattern(wanda_group)).keep)


@pytest.mark.parametrize("method", mp.METHODS)
@pytest.mark.parametrize("text", ["50%", "70%:row", "2:4"])
@pytest.mark.parametrize("damp", [0.01, 0.3])
def test_no_method_beats_the_exact_solve_on_its_own_mask(method, text, damp):
    W, X = correlated(10, 32)
    options = {"damp": damp} if method == "sparsegpt" else {}
    result = mp.METHODS[method](W, statistics(X), mp.pattern(text), **options)
    H = hessian(X, damp)
    optimum = cost(W, exact(W, H, result.keep), H)
    assert cost(W, result.weight, H) >= optimum * (1 - 1e-10)
    assert optimum > 0


@pytest.mark.parametrize("text", ["50%", "70%:row", "2:4"])
def test_the_updates_lower_the_error_of_its_own_mask(text):
    W, X = correlated(10, 32)
    stats = statistics(X)
    result = sparsegpt(W, stats, mp.pattern(text))
    updated, bare = (mp.layer_error(W, w, stats.gram) for w in (result.weight, W * result.keep))
    assert updated < 0.8 * bare


def test_pruning_only_the_first_column_is_the_exact_solve():
    W, X = correlated(6, 20)
    keep = torch.ones(6, 20, dtype=torch.bool)
    keep[:, 0] = False  # all other columns are still to come, so nothing limits the repair
    result = sparsegpt(W, statistics(X), mp.pattern("50%"), keep=keep)
    torch.testing.assert_close(result.weight, exact(W, hessian(X, 0.01), keep), rtol=1e-9, atol=1e-9)


def test_nothing_to_prune_returns_the_weights_bit_for_bit():
    W, X = correlated(6, 150)
    for text in ("0%", "0%:row", "1:1", "3:3", "50:50"):
        result = sparsegpt(W, statistics(X), mp.pattern(text))
        assert torch.equal(result.weight, W) and result.keep.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_solved_in_float32_and_rounded_once(dtype):
    W, X = correlated(8, 64, dtype=torch.float32)
    W = W.to(dtype)
    result = sparsegpt(W, statistics(X), mp.pattern("50%"))
    wide = sparsegpt(W.float(), statistics(X), mp.pattern("50%"))
    assert torch.equal(result.keep, wide.keep)
    assert torch.equal(result.weight, wide.weight.to(dtype))


@pytest.mark.parametrize("damp", [0.0, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("text", ["50%", "2:4"])
def test_a_singular_gram_matrix_raises_the_damping_and_says_so(damp, dtype, text):
    W, X = correlated(8, 64, tokens=8, dtype=dtype)  # fewer tokens than inputs
    result = sparsegpt(W, statistics(X), mp.pattern(text), damp=damp)
    assert result.note.startswith(f"damping raised from {damp:g} to ")
    assert result.weight.isfinite().all()
    bare = mp.METHODS["magnitude"](W, None, mp.pattern(text)).weight
    assert mp.layer_error(W, result.weight, X.T @ X) < mp.layer_error(W, bare, X.T @ X)


def test_sufficient_damping_is_used_as_it_is_and_without_a_note():
    W, X = correlated(8, 64, tokens=8)
    assert sparsegpt(W, statistics(X), mp.pattern("50%"), damp=0.01).note == ""


@pytest.mark.parametrize("damp", [0.0, 1e-8, 0.01])
def test_weights_on_dead_inputs_go_first_where_damping_is_small(damp):
    W, X = correlated(8, 32)
    dead = torch.tensor([0, 3, 17, 31])
    X[:, dead] = 0
    result = sparsegpt(W, statistics(X), mp.Unstructured(4 / 32), damp=damp)
    expected = W.clone()
    expected[:, dead] = 0
    torch.testing.assert_close(result.weight, expected, rtol=0, atol=1e-12)
    assert result.note.startswith("damping raised from 0 ") == (damp == 0)


@pytest.mark.parametrize("text", ["50%", "50%:row", "2:4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dead_inputs_neither_receive_nor_send_updates(text, dtype):
    W, X = correlated(8, 32, dtype=dtype)
    dead = torch.tensor([0, 3, 17, 31])
    X[:, dead] = 0
    result = sparsegpt(W, statistics(X), mp.pattern(text))
    assert torch.equal(result.weight[:, dead], W[:, dead] * result.keep[:, dead])
    other = W.clone()
    other[:, dead] *= -3
    again = sparsegpt(other, statistics(X), mp.pattern(text), keep=result.keep)
    alive = torch.ones(32, dtype=torch.bool).index_fill(0, dead, False)
    torch.testing.assert_close(again.weight[:, alive], result.weight[:, alive])


def test_statistics_that_cannot_be_used_are_refused():
    W, X = correlated(8, 16)
    nan = X.clone()
    nan[3, 4] = math.nan
    infinite = X.clone()
    infinite[3, 4] = math.inf
    for stats, reason in [
        (mp.Statistics(16), "no input"),
        (statistics(torch.zeros_like(X)), "zeros"),
        (statistics(nan), "NaN"),
        (statistics(infinite), "NaN|infinit"),
        (mp.Statistics(16, gram=False).update(X), "gram=True"),
    ]:
        with pytest.raises(mp.PruneError, match=reason):
            sparsegpt(W, stats, mp.pattern("50%"))


def test_infinite_weights_and_useless_block_sizes_are_refused():
    W, X = correlated(8, 16)
    with pytest.raises(mp.PruneError, match="block size"):
        sparsegpt(W, statistics(X), mp.pattern("50%"), block_size=0)
    W[1, 2] = math.inf
    with pytest.raises(mp.PruneError, match="infinity"):
        sparsegpt(W, statistics(X), mp.pattern("50%"))


def test_a_given_mask_is_not_changed_and_needs_no_pattern_that_fits():
    W, X = correlated(8, 16)
    keep = torch.rand(8, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    before = keep.clone()
    result = sparsegpt(W, statistics(X), mp.pattern("2:4"), keep=keep)
    assert torch.equal(keep, before) and torch.equal(result.keep, before)


@pytest.mark.parametrize("text", ["50%", "2:4", "4:8", "8:16", "50%:row"])
def test_tensors_of_another_device_take_the_same_steps_as_numpy_views(text, monkeypatch):
    """What runs on a GPU, as far as a machine without one can try it: the block's tensors themselves, not NumPy's."""
    W, X = correlated(24, 208)
    usual = sparsegpt(W, statistics(X), mp.pattern(text))
    monkeypatch.setattr(Block, "as_numpy", lambda block: block)
    other = sparsegpt(W, statistics(X), mp.pattern(text))
    assert torch.equal(other.keep, usual.keep)
    torch.testing.assert_close(other.weight, usual.weight, rtol=1e-9, atol=1e-12)


@given(st.integers(1, 30), st.integers(0, 999))
@SETTINGS
def test_the_factor_is_upper_triangular_and_its_square_is_the_inverse(d_in, seed):
    _, X = correlated(1, d_in, seed=seed)
    U, note = inverse_factor(X.T @ X, 0.01)
    assert torch.equal(U, U.triu()) and (U.diagonal() > 0).all() and note == ""
    torch.testing.assert_close(U.T @ U, torch.linalg.inv(hessian(X, 0.01)), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("n", [1, 255, 256, 257, 600])
def test_the_triangular_inverse_by_halves_times_its_matrix_is_the_identity(n):
    _, X = correlated(1, n)
    L = torch.linalg.cholesky(hessian(X, 0.1))
    inverse = triangular_inverse(L)
    assert torch.equal(inverse, inverse.tril())
    torch.testing.assert_close(inverse @ L, torch.eye(n, dtype=L.dtype), rtol=0, atol=1e-9)


@pytest.mark.parametrize("pattern", ["50%", "2:4"])
def test_nothing_but_the_result_stays_in_memory(pattern):
    """Without the collector of cycles, which may come late: a large model would have many layers' copies by then."""

    def tensors():
        return sum(type(o) is torch.Tensor for o in gc.get_objects())

    W, X = correlated(8, 16)
    stats = statistics(X)
    mp.METHODS["sparsegpt"](W, stats, mp.pattern(pattern))  # whatever is made once is made
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        result = mp.METHODS["sparsegpt"](W, stats, mp.pattern(pattern))
        assert tensors() - before == 2 and result.keep.shape == W.shape
    finally:
        gc.enable()
