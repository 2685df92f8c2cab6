"""Block sparse rows: CSR in which each value is a square block of weights. Chapter 19.

One index serves size^2 weights and costs next to nothing. In exchange every zero inside a stored block is stored.
Bits per weight when a share t of the blocks is not stored: (1 - t) (b + i / size^2) + p / (size d_in).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.errors import PruneError
from minprune.formats.csr import line_of_each, lines_problem
from minprune.formats.stored import TILE_ROWS, SparseMatrix, index_dtype, stored_mask


@dataclass(frozen=True, eq=False)
class BSR(SparseMatrix):
    """Block sparse rows: the kept square blocks, each with the index of its column.

    Parameters
    ----------
    shape : tuple of int
        (d_out, d_in).
    values : Tensor (blocks, size, size)
        The kept blocks, block row by block row.
    indices : Tensor (blocks,), whole numbers
        The block column of each, ascending in each block row.
    pointers : Tensor (d_out / size + 1,), whole numbers
        Block row i owns blocks pointers[i] to pointers[i + 1].
    size : int
        The side of a block.

    Examples
    --------
    >>> import torch
    >>> from minprune.formats import BSR
    >>> stored = BSR.from_dense(torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)), size=2)
    >>> stored.values.shape, stored.indices.tolist(), stored.pointers.tolist()
    (torch.Size([2, 2, 2]), [0, 1], [0, 1, 2])
    """

    name = "block"
    indices: Tensor
    pointers: Tensor
    size: int

    @classmethod
    @checked()
    def from_dense(cls, W: Tensor, keep: Tensor | None = None, size: int = 16) -> Self:
        """As for every format; size: the side of a block, which must divide both sides of W."""
        keep = stored_mask(W, keep)
        if size < 1 or W.shape[0] % size or W.shape[1] % size:
            raise PruneError(
                f"block: blocks of {size} do not divide {W.shape[0]} x {W.shape[1]}: choose another size or format"
            )
        used = tiled(keep, size).any(dim=3).any(dim=2)  # (block rows, block columns)
        places = used.nonzero()
        pointers = torch.cat([used.new_zeros(1, dtype=torch.int64), used.sum(1).cumsum(0)])
        return cls(
            (W.shape[0], W.shape[1]),
            tiled(W, size)[places[:, 0], places[:, 1]],
            places[:, 1].to(index_dtype(max(used.shape[1] - 1, 0))),
            pointers.to(index_dtype(len(places))),
            size,
        )

    def _check(self) -> None:
        d_out, d_in = self.shape
        if not isinstance(self.size, int) or self.size < 1 or d_out % self.size or d_in % self.size:
            self._refuse(f"blocks of {self.size!r} do not divide {d_out} x {d_in}")
        if self.values.ndim != 3 or tuple(self.values.shape[1:]) != (self.size, self.size):
            self._refuse(f"the values {tuple(self.values.shape)} are not blocks of {self.size} x {self.size}")
        lines, length = d_out // self.size, d_in // self.size
        if reason := lines_problem(self.indices, self.pointers, lines, length, len(self.values)):
            self._refuse(reason)

    @property
    def label(self) -> str:
        """ "block 16"."""
        return f"{self.name} {self.size}"

    def tiles(self, rows: int = TILE_ROWS) -> Iterator[Tensor]:
        yield from self.to_dense().split(rows)

    def to_dense(self) -> Tensor:
        dense = self.values.new_zeros(self.shape)
        tiled(dense, self.size)[line_of_each(self.pointers), self.indices.long()] = self.values
        return dense

    def _multiply(self, X: Tensor) -> Tensor:
        """One small dense product for each stored block, added to the outputs of its rows."""
        parts = X.unflatten(1, (-1, self.size)).transpose(0, 1)  # (block columns, tokens, size)
        products = parts[self.indices.long()] @ self.values.to(X.dtype).mT  # (blocks, tokens, size)
        out = X.new_zeros(self.shape[0] // self.size, len(X), self.size)
        out.index_add_(0, line_of_each(self.pointers), products)
        return out.transpose(0, 1).flatten(1)


def tiled(W: Tensor, size: int) -> Tensor:
    """A view of W (d_out, d_in) as its square tiles: (d_out / size, d_in / size, size, size)."""
    return W.unflatten(0, (W.shape[0] // size, size)).unflatten(2, (W.shape[1] // size, size)).transpose(1, 2)
