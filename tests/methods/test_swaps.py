"""Swaps: each change of the loss against recomputing it, and the last mask against trying every swap."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import observed

import minprune as mp
from minprune.methods import swaps as module

SETTINGS = settings(derandomize=True, max_examples=40, deadline=None)
swaps = mp.METHODS["swaps"]


def loss(w, keep, gram):
    """What one row loses if the weights that it keeps stay as they are."""
    lost = w * ~keep
    return float(lost @ gram @ lost)


def every_swap(w, keep, gram, m):
    """The loss after each single swap, by brute force; m: only within groups of m."""
    for p in range(len(w)):
        for u in range(len(w)):
            if keep[p] and not keep[u] and p // m == u // m:
                other = keep.clone()
                other[p], other[u] = False, True
                yield loss(w, other, gram)


@given(st.integers(2, 12), st.floats(0, 1), st.integers(0, 999))
@SETTINGS
def test_no_single_swap_improves_the_last_mask_and_the_loss_fell(d_in, sparsity, seed):
    W, stats = observed(4, d_in, seed=seed)
    start = mp.METHODS["wanda"](W, stats, mp.Unstructured(sparsity, "row"))
    result = swaps(W, stats, mp.Unstructured(sparsity, "row"), max_swaps=1000)
    assert torch.equal(result.keep.sum(1), start.keep.sum(1))
    assert torch.equal(result.weight, W * result.keep)
    for w, before, after in zip(W, start.keep, result.keep, strict=True):
        lowest = loss(w, after, stats.gram)
        assert lowest <= loss(w, before, stats.gram)
        assert torch.equal(before, after) or lowest < loss(w, before, stats.gram)
        assert all(other >= lowest * (1 - 1e-9) for other in every_swap(w, after, stats.gram, d_in))


@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 999))
@SETTINGS
def test_n_m_swaps_stay_within_their_group_and_end_where_none_improves(groups, m, seed):
    n = 1 + seed % (m - 1)
    W, stats = observed(3, groups * m, seed=seed)
    start = mp.METHODS["wanda"](W, stats, mp.NM(n, m)).keep
    result = swaps(W, stats, mp.NM(n, m), max_swaps=1000)
    assert (result.keep.view(-1, m).sum(1) == n).all()
    for w, before, after in zip(W, start, result.keep, strict=True):
        lowest = loss(w, after, stats.gram)
        assert lowest <= loss(w, before, stats.gram)
        assert all(other >= lowest * (1 - 1e-9) for other in every_swap(w, after, stats.gram, m))


@pytest.mark.parametrize("text", ["50%", "2:4"])
def test_one_swap_is_the_best_of_all_and_changes_the_loss_as_predicted(text):
    W, stats = observed(20, 12)
    pattern, gram = mp.pattern(text), stats.gram
    start = mp.METHODS["wanda"](W, stats, pattern).keep
    result = swaps(W, stats, pattern, max_swaps=1)
    assert ((start & ~result.keep).sum(1) <= 1).all() and not torch.equal(start, result.keep)
    g = (W * ~start) @ gram
    a, b = W**2 * gram.diagonal() + 2 * W * g, W**2 * gram.diagonal() - 2 * W * g
    for i, (w, before, after) in enumerate(zip(W, start, result.keep, strict=True)):
        lowest = min(every_swap(w, before, gram, 4 if text == "2:4" else 12))
        change = loss(w, after, gram) - loss(w, before, gram)
        assert change == pytest.approx(min(0.0, lowest - loss(w, before, gram)), rel=1e-9, abs=1e-12)
        if change:
            p, u = int((before & ~after).nonzero()), int((after & ~before).nonzero())
            assert change == pytest.approx(float(a[i, p] + b[i, u] - 2 * w[p] * w[u] * gram[p, u]), rel=1e-9)


@pytest.mark.parametrize("few", [1, 3])
def test_the_loss_falls_from_swap_to_swap_however_few_candidates_there_are(few, monkeypatch):
    monkeypatch.setattr(module, "_FEW", few)
    monkeypatch.setattr(module, "_NUMBERS", 1)  # one row at a time
    W, stats = observed(8, 20)
    losses = []
    for most in range(30):
        keep = swaps(W, stats, mp.pattern("50%"), max_swaps=most).keep
        losses.append([loss(w, k, stats.gram) for w, k in zip(W, keep, strict=True)])
    for earlier, later in pairwise(losses):
        assert all(y <= x for x, y in zip(earlier, later, strict=True))
    assert losses[0] != losses[1] and losses[-1] == losses[-2]  # it moved, and it came to rest
    assert torch.equal(
        swaps(W, stats, mp.pattern("50%"), max_swaps=0).keep, mp.METHODS["wanda"](W, stats, mp.pattern("50%")).keep
    )


@pytest.mark.parametrize("text", ["50%", "60%:layer", "2:4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_mask_can_be_improved_and_the_exact_weights_of_it_too(text, dtype):
    W, stats = observed(16, 64, dtype=dtype)
    pattern = mp.pattern(text)
    start = mp.METHODS["magnitude"](W, stats, pattern).keep
    before = start.clone()
    result = swaps(W, stats, pattern, keep=start)
    assert torch.equal(start, before) and torch.equal(result.keep.sum(1), start.sum(1))
    assert mp.layer_error(W, result.weight, stats.gram) < 0.7 * mp.layer_error(W, W * start, stats.gram)
    exact = mp.METHODS["exact"]
    errors = [
        mp.layer_error(W, exact(W, stats, pattern, keep=keep).weight, stats.gram) for keep in (start, result.keep)
    ]
    assert errors[1] < errors[0]


def test_rows_with_everything_or_nothing_kept_have_nothing_to_swap():
    W, stats = observed(5, 16)
    for text in ("0%", "100%", "1:1", "0:2"):
        result = swaps(W, stats, mp.pattern(text))
        assert result.keep.all() or not result.keep.any()


def test_blocks_are_refused_with_a_remedy():
    W, stats = observed(8, 16)
    for text in ("block4:50%", "50%:block"):
        with pytest.raises(mp.PruneError, match="50%:row"):
            swaps(W, stats, mp.pattern(text))
    with pytest.raises(mp.PruneError, match="negative"):
        swaps(W, stats, mp.pattern("50%"), max_swaps=-1)


def test_every_swap_lowers_the_loss_in_float64_also_where_inputs_are_equal_and_swaps_of_them_gain_only_rounding(
    generator,
):
    X, W = torch.randn(200, 12, generator=generator).repeat(1, 2), torch.randn(16, 12, generator=generator).repeat(1, 2)
    stats = mp.Statistics(24).update(X)

    def loss(keep):
        lost = W.double().masked_fill(keep, 0)
        return ((lost @ stats.gram.double()) * lost).sum(1)

    masks = [mp.METHODS["swaps"](W, stats, "50%:row", max_swaps=swaps).keep for swaps in range(8)]
    for before, after in pairwise(masks):
        changed = (before != after).any(1)
        assert (loss(after)[changed] < loss(before)[changed]).all()
    assert not torch.equal(masks[0], masks[1])
