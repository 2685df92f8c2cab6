"""Shared values against every assignment there is."""

import itertools

import pytest
import torch

from minprune import PruneError
from minprune.compress.grids import make_grid
from minprune.compress.sharing import shared_values


def row(n, seed):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=random).double(), torch.rand(n, generator=random).double() + 0.1


def least(w, a, count, zero):
    """The lowest loss over all ways to give each weight one of `count` labels, label 0 held at 0."""
    losses = []
    for labels in itertools.product(range(count), repeat=len(w)):
        labels, loss = torch.tensor(labels), 0.0
        for label in range(count):
            x, share = w[labels == label], a[labels == label]
            center = 0.0 if zero and label == 0 else float((share * x).sum() / share.sum()) if len(x) else 0.0
            loss += float((share * (x - center) ** 2).sum())
        losses.append(loss)
    return min(losses)


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize(("n", "count", "seed"), [(7, 3, 0), (7, 3, 1), (8, 2, 2), (5, 4, 3), (6, 1, 4), (4, 6, 5)])
def test_no_assignment_of_so_many_values_loses_less(zero, n, count, seed):
    w, a = row(n, seed)
    found = shared_values(w, a, count, zero)
    assert len(torch.cat([found, torch.zeros(int(zero), dtype=found.dtype)]).unique()) <= count
    assert float((a * (w - found) ** 2).sum()) == pytest.approx(least(w, a, min(count, 5), zero), rel=1e-9, abs=1e-12)


def test_pruned_weights_stay_zero_whatever_their_inputs():
    w, a = row(60, 6)
    w[::2], a[::4] = 0, 0
    found = shared_values(w, a, 8)
    assert not found[::2].any() and len(found.unique()) <= 8


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_free_values_lose_less_than_a_uniform_grid_with_as_many(bits):
    w, a = row(200, 7)
    ours = shared_values(w, a, 2**bits)
    grid = make_grid(w[None], bits, 0, "asymmetric").round(w[None])[0]
    assert (a * (w - ours) ** 2).sum() < (a * (w - grid) ** 2).sum()


def test_arguments_stay_as_they_are_and_so_does_the_dtype():
    w, a = (part.float() for part in row(20, 8))
    before = w.clone()
    assert shared_values(w, a, 4).dtype == torch.float32 and torch.equal(w, before)


@pytest.mark.parametrize(("count", "a", "said"), [(0, torch.ones(3), "0 values"), (True, torch.ones(3), "True values"),
                                                  (4, torch.ones(2), "do not fit")])  # fmt: skip
def test_impossible_arguments_are_refused_with_their_value(count, a, said):
    with pytest.raises(PruneError, match=said):
        shared_values(torch.ones(3), a, count)


@pytest.mark.parametrize(
    ("w", "a", "said"),
    [
        (float("nan"), 1.0, "the weights contain NaN"),
        (1.0, float("nan"), "the importance contains NaN"),
        (1.0, float("inf"), "the importance contains NaN or infinity"),
        (1.0, -1.0, "an importance of -1 is negative"),
    ],
)
def test_numbers_that_have_no_best_values_are_refused(w, a, said):
    """A negative importance made every weight 0 without a word."""
    with pytest.raises(PruneError, match=said):
        shared_values(torch.tensor([w, 2.0, 3.0]), torch.tensor([a, 1.0, 1.0]), 2)
