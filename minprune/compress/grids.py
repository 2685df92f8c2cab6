"""Uniform grids: which values a weight may have when it is stored as a whole number of a few bits.

Neighbouring weights of a row, `group` of them, share a grid of 2^bits levels:

    symmetric     w = s n,            n = -(2^(bits-1) - 1) .. 2^(bits-1) - 1,     s = max |w| / (2^(bits-1) - 1)
    asymmetric    w = s (q - z),      q = 0 .. 2^bits - 1, z whole,                s = (max - min) / (2^bits - 1)
    minimum       w = m + s q,        q = 0 .. 2^bits - 1, m any number (Q4_1 of llama.cpp)

The range of the first two holds 0, and 0 is a level of each: a pruned weight stays zero. The last fits the range best
and has no level at 0. Whole zero points are those of Jacob et al. 2018; SparseGPT fixes the grid in the same way, from
the dense matrix. Scales are rounded to 11 significant bits, those of a float16, so s n has at most 19 bits: exact in
float32, and the whole numbers can be had back from the weights alone.

Left out: a search for the scale that loses least, and grids that are not uniform.
"""

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.errors import PruneError
from minprune.formats.integers import round_scale
from minprune.methods.damping import check_finite
from minprune.selection import as_matrix

GRIDS = ("symmetric", "asymmetric", "minimum")
BITS = range(2, 9)


@dataclass(frozen=True)
class Grid:
    """The levels of each weight of a matrix: offset + scale * (code - zero), for codes from `lowest` to `highest`.

    Parameters
    ----------
    scales : Tensor (d_out, groups), floating
        The distance of two levels. Positive.
    zeros : Tensor (d_out, groups), of whole numbers
        The code of the value `offset`.
    offsets : Tensor (d_out, groups), floating
        All 0 but for a "minimum" grid.
    lowest, highest : int
        The range of the codes.

    Examples
    --------
    >>> import torch
    >>> from minprune.compress.grids import make_grid
    >>> W = torch.tensor([[-1.0, 0.0, 0.4, 2.0]])
    >>> grid = make_grid(W, bits=2, group=4, kind="asymmetric")
    >>> grid.round(W)
    tensor([[-1.,  0.,  0.,  2.]])
    """

    scales: Tensor
    zeros: Tensor
    offsets: Tensor
    lowest: int
    highest: int

    @checked()
    def codes(self, W: Tensor) -> Tensor:
        """The code of the level next to each weight of W (d_out, d_in), as whole numbers in the dtype of the scales."""
        return self.codes_at(W, *self._columns_of(W))

    def codes_at(self, w: Tensor, scales: Tensor, zeros: Tensor, offsets: Tensor) -> Tensor:
        """The same for weights of any shape, each with the scale, zero and offset in its place."""
        return ((w - offsets) / scales).round_().add_(zeros).clamp_(self.lowest, self.highest)

    @checked()
    def values(self, codes: Tensor) -> Tensor:
        """The weights of these codes (d_out, d_in)."""
        scales, zeros, offsets = self._columns_of(codes)
        return offsets + scales * (codes - zeros)

    @checked()
    def round(self, W: Tensor) -> Tensor:
        """The level next to each weight of W (d_out, d_in)."""
        return self.values(self.codes(W))

    def _columns_of(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d_out, groups = self.scales.shape
        if W.ndim != 2 or len(W) != d_out or W.shape[1] % max(groups, 1) or W.is_complex():
            raise PruneError(
                f"a grid of {d_out} rows of {groups} groups does not fit {W.dtype} {tuple(W.shape)}: give a matrix as "
                "large as its own"
            )
        return self.columns(W.shape[1])

    def columns(self, d_in: int) -> tuple[Tensor, Tensor, Tensor]:
        """scales, zeros and offsets of each weight: (d_out, d_in) each."""
        group = d_in // self.scales.shape[1]
        scales, zeros, offsets = (x.repeat_interleave(group, 1) for x in (self.scales, self.zeros, self.offsets))
        return scales, zeros, offsets


@checked("bits", "group")
def make_grid(W: Tensor, bits: int, group: int, kind: str) -> Grid:
    """The grids that hold the range of each group of W.

    Parameters
    ----------
    W : Tensor (d_out, d_in), floating
        The dense weights.
    bits : int
        From 2 to 8.
    group : int
        Neighbouring inputs of a row that share a grid, 0 for a whole row. It must divide d_in.
    kind : {"symmetric", "asymmetric", "minimum"}
        The levels of a group: scale times -L..L; scale times (codes minus a whole zero point), so that 0 is a level;
        or the least weight plus scale times the codes, where 0 need not be one.

    Returns
    -------
    Grid
        In float32, or float64 for such weights.

    Raises
    ------
    PruneError
        If there is no such grid, the groups do not fit the matrix, or it is empty or holds NaN or infinity.

    Examples
    --------
    >>> import torch
    >>> from minprune.compress.grids import make_grid
    >>> make_grid(torch.tensor([[-7.0, 3.5]]), bits=4, group=2, kind="symmetric").scales
    tensor([[1.]])
    """
    if not as_matrix(W, "weights").numel():
        raise PruneError(f"weights {tuple(W.shape)} have no range: give a matrix (d_out, d_in) of 1 x 1 or more")
    check_finite(W)
    check_fit(W.shape[1], bits=bits, group=group, grid=kind)
    width = group or W.shape[1]
    parts = W.to(torch.promote_types(W.dtype, torch.float32)).unflatten(1, (-1, width))  # (d_out, groups, width)
    low, high = parts.amin(2), parts.amax(2)  # (d_out, groups)
    levels, none = 2**bits - 1, torch.zeros_like(low)
    if kind == "symmetric":
        half = 2 ** (bits - 1) - 1
        return Grid(round_scale(torch.maximum(-low, high) / half), none, none, -half, half)
    if kind == "minimum":
        return Grid(round_scale((high - low) / levels), none, low, 0, levels)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scales = round_scale((high - low) / levels)
    return Grid(scales, (-low / scales).round_().clamp_(0, levels), none, 0, levels)


def check_fit(d_in: int, *, bits: int = 4, group: int = 64, grid: str = "asymmetric", **_: Any) -> None:
    """Raise `PruneError` unless there is such a grid for rows of d_in inputs. Other options are for others to check."""
    check_grid(bits, group, grid)
    if group and d_in % group:
        raise PruneError(
            f"groups of {group} do not divide the {d_in} inputs of a row: use a divisor, or 0 for whole rows"
        )


def check_grid(bits: int, group: int, kind: str) -> None:
    """Raise `PruneError` unless there is a grid of that many bits, groups of that size are possible, and so is kind."""
    if isinstance(bits, bool) or not isinstance(bits, Integral) or bits not in BITS:
        raise PruneError(f"{bits!r} bits are not from 2 to 8: use 4")
    if isinstance(group, bool) or not isinstance(group, Integral) or group < 0:
        raise PruneError(f"groups of {group!r} inputs are not possible: use 64, or 0 for whole rows")
    if kind not in GRIDS:
        raise PruneError(f"unknown grid {kind!r}: choose one of {', '.join(GRIDS)}")
