"""Compressed sparse rows and columns: every stored value with its place in its line. Chapter 19.

CSR goes row by row: `indices` holds the column of each value, and row i owns values pointers[i] to pointers[i+1].
CSC is the same thing column by column. Bits per weight of a matrix with sparsity s, values of b and indices of i bits,
pointers of p bits, lines of length n: (1 - s) (b + i) + p / n.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.formats.stored import TILE_ROWS, UNSIGNED, SparseMatrix, index_dtype, stored_mask

_PRODUCTS = 2**22  # at a time


@dataclass(frozen=True, eq=False)
class Lines(SparseMatrix):
    """What `CSR` and `CSC` have in common: lines of stored values, the indices of each line ascending.

    Parameters
    ----------
    shape : tuple of int
        (d_out, d_in).
    values : Tensor (stored,)
        Line by line.
    indices : Tensor (stored,), whole numbers
        The place of each value in its line.
    pointers : Tensor (lines + 1,), whole numbers
        Line i owns values pointers[i] to pointers[i + 1].

    Indices and pointers have the narrowest of 8, 16, 32 (unsigned) and 64 bits, or the dtype that was asked for.
    """

    axis: ClassVar[int]  # of the shape, along which the lines are counted
    indices: Tensor
    pointers: Tensor

    @classmethod
    @checked()
    def from_dense(
        cls, W: Tensor, keep: Tensor | None = None, index: torch.dtype | None = None, pointer: torch.dtype | None = None
    ) -> Self:
        """As for every format; index, pointer: a wider dtype than necessary for the indices and the pointers."""
        keep = stored_mask(W, keep)
        lines, kept = (W, keep) if cls.axis == 0 else (W.T, keep.T)
        places = kept.nonzero()  # (stored, 2): line by line, ascending in each
        pointers = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
        return cls(
            (W.shape[0], W.shape[1]),
            lines[places[:, 0], places[:, 1]],
            places[:, 1].to(index or index_dtype(max(lines.shape[1] - 1, 0))),
            pointers.to(pointer or index_dtype(len(places))),
        )

    def _check(self) -> None:
        if self.values.ndim != 1:
            self._refuse(f"the values {tuple(self.values.shape)} are not in one line")
        if reason := lines_problem(self.indices, self.pointers, self._lines, self._length, len(self.values)):
            self._refuse(reason)

    @property
    def _lines(self) -> int:
        return self.shape[self.axis]

    @property
    def _length(self) -> int:
        return self.shape[1 - self.axis]

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """(row, column) of each stored value, int64 (stored,)."""
        both = line_of_each(self.pointers), self.indices.long()
        return both if self.axis == 0 else (both[1], both[0])

    def tiles(self, rows: int = TILE_ROWS) -> Iterator[Tensor]:
        yield from self.to_dense().split(rows)

    def to_dense(self) -> Tensor:
        dense = self.values.new_zeros(self.shape)
        dense[self.coordinates()] = self.values
        return dense

    def _multiply(self, X: Tensor) -> Tensor:
        """One product for each stored value and token, added to the output of its row."""
        rows, columns = self.coordinates()
        inputs = X.T.contiguous()  # (d_in, tokens)
        out = inputs.new_zeros(self.shape[0], len(X))
        step = max(1, _PRODUCTS // max(len(X), 1))
        for part in (slice(start, start + step) for start in range(0, len(rows), step)):
            out.index_add_(0, rows[part], self.values[part, None].to(X.dtype) * inputs[columns[part]])
        return out.T


class CSR(Lines):
    """Compressed sparse rows: each value with its column, row by row.

    Parameters
    ----------
    shape : tuple of int
        (d_out, d_in).
    values : Tensor (stored,)
        Row by row.
    indices : Tensor (stored,), whole numbers
        The column of each value, ascending in each row.
    pointers : Tensor (d_out + 1,), whole numbers
        Row i owns values pointers[i] to pointers[i + 1].

    Examples
    --------
    >>> import torch
    >>> from minprune.formats import CSR
    >>> stored = CSR.from_dense(torch.tensor([[0.0, 2.0], [3.0, 4.0]]))
    >>> stored.values.tolist(), stored.indices.tolist(), stored.pointers.tolist()
    ([2.0, 3.0, 4.0], [1, 0, 1], [0, 1, 3])
    """

    name = "csr"
    axis = 0


class CSC(Lines):
    """Compressed sparse columns: what a product with one token needs whose inputs are sparse, too.

    Parameters
    ----------
    shape : tuple of int
        (d_out, d_in).
    values : Tensor (stored,)
        Column by column.
    indices : Tensor (stored,), whole numbers
        The row of each value, ascending in each column.
    pointers : Tensor (d_in + 1,), whole numbers
        Column j owns values pointers[j] to pointers[j + 1].

    Examples
    --------
    >>> import torch
    >>> from minprune.formats import CSC
    >>> CSC.from_dense(torch.tensor([[0.0, 2.0], [3.0, 4.0]])).values.tolist()
    [3.0, 2.0, 4.0]
    """

    name = "csc"
    axis = 1


def line_of_each(pointers: Tensor) -> Tensor:
    """pointers (lines + 1,) -> the line of each stored value, int64 (stored,)."""
    counts = pointers.long().diff()
    return torch.arange(len(counts), device=pointers.device).repeat_interleave(counts)


def lines_problem(indices: Tensor, pointers: Tensor, lines: int, length: int, stored: int) -> str | None:
    """What is wrong with the indices (stored,) and pointers (lines + 1,) of lines of that length, or None."""
    for what, array, wanted in (("indices", indices, stored), ("pointers", pointers, lines + 1)):
        if tuple(array.shape) != (wanted,) or array.dtype not in UNSIGNED:
            return f"{wanted} {what} of whole numbers are needed, not {array.dtype} {tuple(array.shape)}"
    ends, places = pointers.long(), indices.long()
    inside = int(ends.min()) >= 0 and int(ends.max()) <= stored  # first: differences of huge numbers wrap around
    if not inside or int(ends[0]) != 0 or int(ends[-1]) != stored or bool((ends.diff() < 0).any()):
        return f"the pointers do not rise from 0 to the {stored} stored values"
    if stored and not 0 <= int(places.min()) <= int(places.max()) < length:
        return f"an index of {int(places.min())}..{int(places.max())} is outside 0..{length - 1}"
    owner = line_of_each(pointers)
    if bool(((places.diff() <= 0) & (owner.diff() == 0)).any()):
        return "the indices of a line are not ascending"
    return None
