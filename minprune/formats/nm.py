"""N:M: of every M neighbouring inputs N values are stored, each with its place in the group. Chapter 19.

Bits per weight: N / M (b + ceil(log2 M)). For 2:4 that is b / 2 + 1, the layout of NVIDIA's sparse tensor cores (Mishra
et al. 2021): two 2-bit indices for each group of four. A group with fewer than N values is filled up with zeros.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.errors import PruneError
from minprune.formats.stored import (
    TILE_ROWS,
    SparseMatrix,
    as_bits,
    pack,
    packed_bytes,
    spare_bits_are_zero,
    stored_mask,
    unpack,
)


@dataclass(frozen=True, eq=False)
class NMPacked(SparseMatrix):
    """n values of every m neighbouring inputs, each with its place in the group.

    Parameters
    ----------
    shape : tuple of int
        (d_out, d_in).
    values : Tensor (d_out, d_in n / m)
        Group by group.
    codes : Tensor (d_out, bytes), uint8
        The places in the groups, ascending, packed: ceil(log2 m) bits each, the first in the lowest bits of the first
        byte.
    n, m : int
        How many are stored of how many, m at most 256.

    Examples
    --------
    >>> import torch
    >>> from minprune.formats import NMPacked
    >>> stored = NMPacked.from_dense(torch.tensor([[0.0, 2.0, 0.0, 8.0]]), n=2, m=4)
    >>> stored.values, stored.places().flatten()
    (tensor([[2., 8.]]), tensor([1, 3]))
    """

    name = "nm"
    codes: Tensor
    n: int
    m: int

    @classmethod
    @checked()
    def from_dense(cls, W: Tensor, keep: Tensor | None = None, n: int = 2, m: int = 4) -> Self:
        """As for every format; `PruneError` names the first group of m inputs that has more than n to store."""
        keep = stored_mask(W, keep)
        if not 0 <= n <= m or not 1 <= m <= 256 or W.shape[1] % m:
            raise PruneError(f"nm: {n}:{m} does not fit {W.shape[1]} inputs: N <= M <= 256, and M divides the inputs")
        groups = keep.unflatten(1, (W.shape[1] // m, m))  # (d_out, groups, m)
        if len(full := (groups.sum(2) > n).nonzero()):
            row, group = full[0].tolist()
            raise PruneError(
                f"nm: {len(full)} groups have more than {n} of {m} weights to store, the first is row {row}, inputs "
                f"{group * m} to {group * m + m - 1}: prune to {n}:{m} or choose another format"
            )
        # the kept ones come first, then the lowest of the others, to fill the group up
        places = (~groups).to(torch.uint8).argsort(dim=2, stable=True)[..., :n].sort(dim=2).values
        values = as_bits(W).unflatten(1, (W.shape[1] // m, m)).gather(2, places).flatten(1)
        return cls((W.shape[0], W.shape[1]), values.view(W.dtype), pack(places.flatten(1), code_bits(m)), n, m)

    def _check(self) -> None:
        d_out, d_in = self.shape
        if not (isinstance(self.n, int) and isinstance(self.m, int) and 0 <= self.n <= self.m and 1 <= self.m <= 256):
            self._refuse(f"{self.n!r}:{self.m!r} is not N:M with N <= M <= 256")
        if d_in % self.m:
            self._refuse(f"{self.m} does not divide {d_in} inputs")
        stored, bits = d_in // self.m * self.n, code_bits(self.m)
        if tuple(self.values.shape) != (d_out, stored):
            self._refuse(f"the values are {tuple(self.values.shape)}, not {(d_out, stored)}")
        if tuple(self.codes.shape) != (d_out, packed_bytes(stored, bits)) or self.codes.dtype != torch.uint8:
            self._refuse(
                f"the codes are {self.codes.dtype} {tuple(self.codes.shape)}, not {stored} of {bits} bits a row"
            )
        if not spare_bits_are_zero(self.codes, stored * bits):
            self._refuse("a bit is set behind the end of a row")
        places = self.places()
        if stored and int(places.max()) >= self.m:
            self._refuse(f"a place of {int(places.max())} is outside 0..{self.m - 1}")
        if self.n > 1 and bool((places.diff(dim=2) <= 0).any()):
            self._refuse("the places in a group are not ascending")

    @property
    def label(self) -> str:
        """ "nm 2:4"."""
        return f"{self.name} {self.n}:{self.m}"

    def places(self) -> Tensor:
        """The place in its group of each stored value: int64 (d_out, groups, n)."""
        return self._places(self.codes)

    def _places(self, codes: Tensor) -> Tensor:
        groups = self.shape[1] // self.m
        return unpack(codes, code_bits(self.m), groups * self.n).unflatten(1, (groups, self.n)).long()

    def tiles(self, rows: int = TILE_ROWS) -> Iterator[Tensor]:
        groups = self.shape[1] // self.m
        for values, codes in zip(as_bits(self.values).split(rows), self.codes.split(rows), strict=True):
            tile = values.new_zeros(len(values), groups, self.m)
            tile.scatter_(2, self._places(codes), values.unflatten(1, (groups, self.n)))
            yield tile.flatten(1).view(self.values.dtype)


def code_bits(m: int) -> int:
    """The bits of one place in a group of m."""
    return (m - 1).bit_length()
