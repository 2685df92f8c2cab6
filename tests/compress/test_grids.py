"""Grids: which values a rounded weight may have."""

from fractions import Fraction

import pytest
import torch

from minprune import PruneError
from minprune.compress.grids import BITS, GRIDS, make_grid
from minprune.compress.low_rank import low_rank

SIZES = [(bits, group, kind) for bits in BITS for group in (8, 32, 0) for kind in ("symmetric", "asymmetric")]


def weights(d_out=12, d_in=64, seed=0):
    return torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed)) ** 3


@pytest.mark.parametrize(("bits", "group", "kind"), SIZES)
def test_every_value_is_a_whole_multiple_of_its_groups_scale_in_range(bits, group, kind):
    W = weights()
    grid = make_grid(W, bits, group, kind)
    rounded = grid.round(W)
    for row in range(4):
        for col in range(W.shape[1]):
            number = row, col // (group or W.shape[1])
            level = Fraction(float(rounded[row, col])) / Fraction(float(grid.scales[number]))
            assert level.denominator == 1  # exactly, in rational arithmetic
            code = level + int(grid.zeros[number])
            assert (-(2 ** (bits - 1)) < code < 2 ** (bits - 1)) if kind == "symmetric" else (0 <= code < 2**bits)


@pytest.mark.parametrize(("bits", "group", "kind"), SIZES)
def test_no_level_is_nearer_than_the_one_taken_and_zero_stays_zero(bits, group, kind):
    W = weights(seed=1)
    W[:, ::3] = 0
    grid = make_grid(W, bits, group, kind)
    rounded, step = grid.round(W), grid.columns(W.shape[1])[0]
    assert not rounded[:, ::3].any()
    inside = (rounded != rounded.amax()) & (W - rounded).isfinite()
    levels = torch.arange(grid.lowest, grid.highest + 1, dtype=torch.float32)
    every = torch.stack([grid.values(torch.full_like(W, float(level))) for level in levels])
    nearest = (every - W).abs().amin(0)
    assert ((W - rounded).abs() <= nearest + 1e-5 * step)[inside].all()


def test_the_error_is_half_a_step_at_most_but_for_the_rounded_scale():
    W = weights(seed=2)
    for kind in ("symmetric", "asymmetric"):
        grid = make_grid(W, 4, 16, kind)
        step = grid.columns(W.shape[1])[0]
        assert ((W - grid.round(W)).abs() <= step * (1.0 if kind == "asymmetric" else 0.51)).all()


def test_a_grid_from_the_minimum_on_has_no_level_at_zero():
    W = torch.tensor([[0.0, 0.31, -0.2, 0.0]])
    assert make_grid(W, 2, 4, "minimum").round(W)[0, 0] != 0  # pruned weights would come back


def test_weights_of_q4_1_come_back_exactly_from_the_minimum_on_and_not_on_other_grids():
    seed = torch.Generator().manual_seed(3)
    d = (torch.rand(6, 4, 1, generator=seed) * 0.01 + 0.001).half().float()  # Q4_1: blocks of 32, w = d q + m
    m = (-torch.rand(6, 4, 1, generator=seed) * 0.1).half().float()
    q = torch.randint(16, (6, 4, 32), generator=seed)
    q[..., 0], q[..., 1] = 0, 15  # as the format chooses d and m
    W = (d * q + m).flatten(1)
    assert torch.equal(make_grid(W, 4, 32, "minimum").round(W), W)
    for bits, group, kind in ((4, 32, "asymmetric"), (4, 32, "symmetric"), (4, 64, "minimum")):
        assert not torch.allclose(make_grid(W, bits, group, kind).round(W), W, atol=1e-4)


def test_rounding_twice_is_rounding_once():
    W = weights(seed=4)
    for bits, group, kind in SIZES:
        once = make_grid(W, bits, group, kind).round(W)
        assert torch.equal(make_grid(W, bits, group, kind).round(once), once)


def test_a_group_of_zeros_has_a_scale():
    grid = make_grid(torch.zeros(2, 8), 4, 4, "symmetric")
    assert grid.scales.isfinite().all() and (grid.scales > 0).all() and not grid.round(torch.zeros(2, 8)).any()


@pytest.mark.parametrize(
    ("bits", "group", "kind", "said"),
    [
        (1, 8, "symmetric", "1 bits"),
        (9, 8, "symmetric", "9 bits"),
        (True, 8, "symmetric", "True bits"),
        (4, 7, "symmetric", "groups of 7 do not divide the 64"),
        (4, -1, "symmetric", "groups of -1"),
        (4, 2.0, "symmetric", "groups of 2.0"),
        (4, 8, "round", "unknown grid 'round'"),
    ],
)
def test_an_impossible_grid_is_refused_with_its_value(bits, group, kind, said):
    with pytest.raises(PruneError, match=said):
        make_grid(weights(), bits, group, kind)


@pytest.mark.parametrize("W", [torch.zeros(2, 0), torch.zeros(0, 4)])
def test_a_matrix_without_weights_has_no_grid_and_no_factors(W):
    for make in (lambda: make_grid(W, 4, 0, "symmetric"), lambda: low_rank(W, torch.eye(W.shape[1]), 1)):
        with pytest.raises(PruneError, match="1 x 1 or more"):
            make()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", GRIDS)
def test_a_range_that_is_none_has_no_grid(number, kind):
    with pytest.raises(PruneError, match="NaN or infinity"):
        make_grid(torch.tensor([[1.0, number]]), 4, 0, kind)
