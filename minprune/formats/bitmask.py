"""One bit for each weight says whether it is stored, and the stored values follow each other. Chapter 19.

Bits per weight: (1 - s) b + 1. It pays if s > 1 / b. Around 50 % no format for arbitrary zeros does much better: the
mask of a random half has one bit of information for each weight.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.formats.stored import (
    TILE_ROWS,
    SparseMatrix,
    pack,
    packed_bytes,
    spare_bits_are_zero,
    stored_mask,
    unpack,
)


@dataclass(frozen=True, eq=False)
class Bitmask(SparseMatrix):
    """The kept values one after the other, and one bit for each weight.

    Parameters
    ----------
    shape : tuple of int
        (d_out, d_in).
    values : Tensor (stored,)
        Row by row.
    bits : Tensor (d_out, ceil(d_in / 8)), uint8
        Bit j of byte k of a row is column 8 k + j.

    Examples
    --------
    >>> import torch
    >>> from minprune.formats import Bitmask
    >>> stored = Bitmask.from_dense(torch.tensor([[0.0, 2.0, 0.0, 8.0]]))
    >>> stored.values, stored.bits
    (tensor([2., 8.]), tensor([[10]], dtype=torch.uint8))
    """

    name = "bitmask"
    bits: Tensor

    @classmethod
    @checked()
    def from_dense(cls, W: Tensor, keep: Tensor | None = None) -> Self:
        keep = stored_mask(W, keep)
        return cls((W.shape[0], W.shape[1]), W[keep], pack(keep, 1))

    def _check(self) -> None:
        d_out, d_in = self.shape
        if tuple(self.bits.shape) != (d_out, packed_bytes(d_in, 1)) or self.bits.dtype != torch.uint8:
            self._refuse(f"the bits are {self.bits.dtype} {tuple(self.bits.shape)}, not one for each of {self.shape}")
        if not spare_bits_are_zero(self.bits, d_in):
            self._refuse("a bit is set behind the end of a row")
        marked = sum(int((self.bits >> bit & 1).sum()) for bit in range(8))
        if self.values.ndim != 1 or len(self.values) != marked:
            self._refuse(f"the mask has {marked} bits set and the values are {tuple(self.values.shape)}")

    def mask(self) -> Tensor:
        """The keep mask (d_out, d_in), bool."""
        return unpack(self.bits, 1, self.shape[1]).bool()

    def tiles(self, rows: int = TILE_ROWS) -> Iterator[Tensor]:
        seen = 0
        for bits in self.bits.split(rows):
            keep = unpack(bits, 1, self.shape[1]).bool()
            tile, count = self.values.new_zeros(keep.shape), int(keep.sum())
            tile[keep] = self.values[seen : seen + count]
            seen += count
            yield tile
