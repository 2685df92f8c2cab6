"""Which zeros are allowed: a pattern turns scores into a keep mask, and nothing else in minprune does.

A score says how much a weight is worth; the lowest scores are pruned. Every pattern prunes an exact number of
weights in each comparison group. Ties are broken by index, lowest first, so the same scores give the same mask on every
machine. Masks are boolean and True means *kept*.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from minprune.arguments import check_fields
from minprune.errors import PruneError
from minprune.selection import FEW, as_matrix, column_blocks, keep_of_few, refuse_nan
from minprune.selection import keep_largest as keep_largest

GROUPS = ("row", "layer", "block")
_COMPARISONS = 2**17  # of N:M at a time, so that they stay in the cache


@dataclass(frozen=True)
class Unstructured:
    """Any weight may go: the lowest `round(sparsity * size)` scores of each comparison group do.

    It raises `PruneError` for a sparsity outside 0..1 or an unknown group.

    Parameters
    ----------
    sparsity : float
        The fraction of weights pruned, 0 to 1.
    group : {"row", "layer", "block"} or None, default None
        "row" compares the weights of one output, "layer" those of the whole matrix, "block" those of `block_size`
        neighbouring columns, all rows together. None leaves the choice to the method's published default.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> mp.Unstructured(0.5, "row").keep(torch.tensor([[1.0, 4.0], [2.0, 3.0]]))
    tensor([[False,  True],
            [False,  True]])
    """

    sparsity: float
    group: str | None = None

    def __post_init__(self) -> None:
        _check_sparsity(self)
        if self.group is not None and self.group not in GROUPS:
            raise PruneError(f"unknown comparison group {self.group!r}: use one of {', '.join(GROUPS)}")

    def __str__(self) -> str:
        return _percent(self.sparsity) + (f":{self.group}" if self.group else "")

    def check(self, d_out: int, d_in: int) -> None:
        """Every shape can be pruned unstructured."""

    def with_default(self, group: str) -> "Unstructured":
        """This pattern with its comparison group filled in, if the user left it open."""
        return self if self.group else replace(self, group=group)

    def keep(self, scores: Tensor, block_size: int = 128) -> Tensor:
        """scores (d_out, d_in), any floating dtype -> keep mask (d_out, d_in), bool."""
        if self.group == "row":
            return keep_largest(scores, round(self.sparsity * as_matrix(scores).shape[1]))
        if self.group == "layer":
            flat = as_matrix(scores).reshape(1, -1)  # (1, d_out * d_in)
            return keep_largest(flat, round(self.sparsity * flat.shape[1])).view(scores.shape)
        if self.group == "block":
            parts = column_blocks(scores, block_size)
            return torch.cat([replace(self, group="layer").keep(columns) for columns in parts], dim=1)
        raise PruneError(f"pattern {self} has no comparison group: say {self}:row, {self}:layer or {self}:block")


@dataclass(frozen=True)
class NM:
    """n weights are kept of every m consecutive inputs. This is NVIDIA's sense: 2:4 is half zeros, 1:4 three quarters.

    Parameters
    ----------
    n, m : int
        How many are kept, and of how many, 0 <= n <= m; it raises `PruneError` for others.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> mp.NM(2, 4).keep(torch.tensor([[1.0, 4.0, 2.0, 3.0]]))
    tensor([[False,  True, False,  True]])
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.n <= self.m or self.m < 1:
            raise PruneError(f"{self.n}:{self.m} is not N:M with 0 <= N <= M: N counts the weights kept of M")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        return 1 - self.n / self.m

    def check(self, d_out: int, d_in: int) -> None:
        """Raise `PruneError` if m does not divide the number of inputs."""
        if d_in % self.m:
            raise PruneError(
                f"{self} needs a number of inputs that {self.m} divides, not {d_in}: exclude the layer or change M"
            )

    def with_default(self, group: str) -> "NM":
        return self

    def keep(self, scores: Tensor, block_size: int = 128) -> Tensor:
        """scores (d_out, d_in), d_in a multiple of m -> keep mask (d_out, d_in), bool."""
        self.check(*as_matrix(scores).shape)
        groups = refuse_nan(scores).reshape(-1, self.m).T  # (m, groups)
        if self.m > FEW:
            return self.keep_places(groups).T.reshape(scores.shape)
        parts = groups.contiguous().split(max(1, _COMPARISONS // self.m**2), dim=1)  # one long row for each place
        return torch.cat([self.keep_places(part) for part in parts], dim=1).T.reshape(scores.shape)

    def keep_places(self, scores: Any) -> Any:
        """scores (m, groups) without NaN, one group a column, tensor or NumPy array -> keep (m, groups), bool."""
        return keep_of_few(scores, self.n)


@dataclass(frozen=True)
class Block:
    """Square blocks of size x size weights go as a whole. A block's score is the sum of its weights' scores.

    Parameters
    ----------
    size : int
        The side of a block, from 1 up, which must divide both sides of a matrix.
    sparsity : float
        The fraction of blocks pruned, 0 to 1; it raises `PruneError` for others.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> mp.Block(2, 0.5).keep(torch.tensor([[1.0, 2.0, 3.0, 0.0], [1.0, 2.0, 3.0, 4.0]]))
    tensor([[False, False,  True,  True],
            [False, False,  True,  True]])
    """

    size: int
    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity(self)
        if self.size < 1:
            raise PruneError(f"block size {self.size} is not positive: write block16:50%")

    def __str__(self) -> str:
        return f"block{self.size}:{_percent(self.sparsity)}"

    def check(self, d_out: int, d_in: int) -> None:
        """Raise `PruneError` if the block size does not divide both sides."""
        if d_out % self.size or d_in % self.size:
            raise PruneError(
                f"{self} needs sides that {self.size} divides, not {d_out} x {d_in}: exclude the layer or use "
                "smaller blocks"
            )

    def with_default(self, group: str) -> "Block":
        return self

    def keep(self, scores: Tensor, block_size: int = 128) -> Tensor:
        """scores (d_out, d_in), both multiples of size -> keep mask (d_out, d_in), bool."""
        self.check(*as_matrix(scores).shape)
        tiles = scores.unflatten(0, (-1, self.size)).unflatten(2, (-1, self.size))  # (rows, size, columns, size)
        worth = tiles.to(torch.promote_types(tiles.dtype, torch.float32)).sum(dim=(1, 3))  # (rows, columns)
        keep = keep_largest(worth.view(1, -1), round(self.sparsity * worth.numel())).view(worth.shape)
        return keep.repeat_interleave(self.size, 0).repeat_interleave(self.size, 1)


@dataclass(frozen=True)
class Lines:
    """Whole rows or columns go, `width` neighbours as one unit; a unit's score is the sum of its weights' scores.

    axis: "rows" (outputs) or "columns" (inputs). parts: the units are split into so many equal stretches, each of
    which loses the same number: with one stretch for each key and value head, every group keeps as many query heads.
    """

    axis: str
    sparsity: float
    width: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        _check_sparsity(self)
        if self.axis not in ("rows", "columns") or self.width < 1 or self.parts < 1:
            raise PruneError(f"{self.axis}, {self.width} together, in {self.parts} parts: write columns:25%")

    def __str__(self) -> str:
        width, parts = self.width if self.width > 1 else "", f":{self.parts}" * (self.parts > 1)
        return f"{self.axis}{width}:{_percent(self.sparsity)}{parts}"

    def check(self, d_out: int, d_in: int) -> None:
        """Raise `PruneError` if the lines cannot be divided into units and parts."""
        lines, unit = d_out if self.axis == "rows" else d_in, self.width * self.parts
        if lines % unit:
            raise PruneError(
                f"{self} needs a number of {self.axis} that {unit} divides, not {lines}: exclude the layer"
            )

    def with_default(self, group: str) -> "Lines":
        return self

    def zeros(self, lines: int) -> int:  # units that each part loses
        return round(self.sparsity * lines / (self.width * self.parts))

    def keep(self, scores: Tensor, block_size: int = 128) -> Tensor:
        """scores (d_out, d_in) -> keep mask (d_out, d_in), bool."""
        self.check(*as_matrix(scores).shape)
        rows = scores if self.axis == "rows" else scores.T  # (lines, across)
        worth = rows.to(torch.promote_types(rows.dtype, torch.float32)).sum(1)  # (lines,)
        units = worth.view(self.parts, -1, self.width).sum(2)  # (parts, units of a part)
        kept = keep_largest(units, self.zeros(len(rows))).view(-1)  # (units,)
        keep = kept.repeat_interleave(self.width)[:, None].expand_as(rows)
        return (keep if self.axis == "rows" else keep.T).clone(memory_format=torch.contiguous_format)


Pattern = Unstructured | NM | Block | Lines


def pattern(text: "str | Pattern") -> Pattern:
    """Read a pattern from its text.

    Parameters
    ----------
    text : str or Pattern
        "50%", "50%:row", "50%:layer", "50%:block", "2:4" (two kept of four), "block16:50%", "rows:25%", "columns:25%"
        (whole ones), "columns64:25%" (64 neighbours together), or "columns64:33.3%:3" (as many of each third).
        A pattern is returned as it is.

    Returns
    -------
    Unstructured, NM, Block or Lines

    Raises
    ------
    PruneError
        If the text is none of these, the sparsity is outside 0..100 %, or N > M.

    Examples
    --------
    >>> import minprune as mp
    >>> mp.pattern("50%:row")
    Unstructured(sparsity=0.5, group='row')
    >>> mp.pattern("2:4").sparsity
    0.5
    """
    if isinstance(text, Pattern):
        return text
    if not isinstance(text, str):
        raise PruneError(f"a pattern is a text like 50%, 2:4 or block16:50%, not {text!r}")
    try:
        found = _read(text)
    except PruneError as error:
        raise PruneError(f"pattern {text!r}: {error}") from None
    if found is None:
        known = "50%, 50%:row, 50%:layer, 50%:block, 2:4, block16:50%, rows:25% or columns:25%"
        raise PruneError(f"unknown pattern {text!r}: write {known}")
    return found


def _read(text: str) -> Pattern | None:
    if match := re.fullmatch(r"(\d+):(\d+)", text, re.ASCII):
        return NM(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"block(\d+):(-?[\d.]+)%", text, re.ASCII):
        return Block(int(match[1]), _fraction(match[2]))
    if match := re.fullmatch(r"(rows|columns)(\d*):(-?[\d.]+)%(?::(\d+))?", text, re.ASCII):
        return Lines(match[1], _fraction(match[3]), int(match[2] or 1), int(match[4] or 1))
    if match := re.fullmatch(r"(-?[\d.]+)%(?::(\w+))?", text, re.ASCII):
        return Unstructured(_fraction(match[1]), match[2])
    return None


def _check_sparsity(pattern: Unstructured | Block | Lines) -> None:
    check_fields(pattern)
    if not 0 <= (share := pattern.sparsity) <= 1:
        raise PruneError(f"sparsity {share:g} is outside 0..1: it is the fraction of weights pruned (0% to 100%)")


def _fraction(digits: str) -> float:
    try:
        return float(digits) / 100
    except ValueError:
        raise PruneError(f"{digits!r} is not a number") from None


def _percent(sparsity: float) -> str:
    return f"{100 * sparsity:.10g}%"
