"""Whole numbers of a few bits with a scale for every group of them, in the places of another format. Chapter 21.

A quantised weight is s (q - z): its group's scale, its own code, its group's zero point. Bits per weight, with scales
of 16 bits for groups of g:

    dense      b + 16 / g                    4.25 for 4 bits, groups of 64
    bitmask    (1 - s) b + 1 + 16 / g        3.25 at half of the weights zero
    N:M        N / M (b + ceil(log2 M)) + 16 / g

and b / g more for the zero points, which are left out where all codes are symmetric around one. A model that was
rounded (chapter 21) holds floating-point numbers; scale and codes are had back from these alone, since the scales have
11 significant bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.errors import PruneError
from minprune.formats.bitmask import Bitmask
from minprune.formats.nm import NMPacked
from minprune.formats.stored import TILE_ROWS, SparseMatrix, pack, packed_bytes, stored_mask, unpack

LAYOUTS = ("dense", "bitmask", "nm")
_SIGNIFICANT = 2.0**11  # what the significand of a scale is a whole number of parts of


@dataclass(frozen=True, eq=False)
class Integers(SparseMatrix):
    """Codes of a few bits, a scale for each group of neighbouring inputs, and where the codes belong.

    Parameters
    ----------
    shape : tuple of int
        (d_out, d_in).
    values : Tensor (d_out, groups), float16 or float32
        The scales, positive.
    codes : Tensor (bytes,), uint8
        Of the kept weights, row by row, packed.
    zeros : Tensor (d_out, bytes), uint8
        The code of 0 of each group, packed; no bytes if it is 2^(bits-1) - 1 in all of them.
    places : Tensor (d_out, bytes), uint8
        As in the layout's own format; no bytes for "dense".
    bits : int
        Of a code, from 2 to 8.
    layout : {"dense", "bitmask", "nm"}
        Where the codes belong.
    n, m : int
        Of the layout "nm", else 0.
    dtype : str
        Of the weights, such as "float32".

    Examples
    --------
    >>> import torch
    >>> from minprune.formats import Integers
    >>> stored = Integers.from_dense(torch.tensor([[0.5, 0.0, -1.5, 0.0]]), bits=3, group=4)
    >>> stored.layout, stored.to_dense()
    ('dense', tensor([[ 0.5000,  0.0000, -1.5000,  0.0000]]))
    """

    name = "integers"
    codes: Tensor
    zeros: Tensor
    places: Tensor
    bits: int
    layout: str
    n: int
    m: int
    dtype: str

    @classmethod
    @checked()
    def from_dense(cls, W: Tensor, keep: Tensor | None = None, bits: int = 4, group: int = 64) -> Self:
        """As for every format, in the layout that takes the fewest bytes.

        W : Tensor (d_out, d_in), floating, each group of inputs on a uniform grid of 2^bits levels with one at 0.
        group : neighbouring inputs that share a grid, 0 for a whole row. Raises `PruneError` if W is on no such grid.
        """
        keep = stored_mask(W, keep)
        scales, whole = whole_numbers(W, bits, group)  # (d_out, groups), (d_out, groups, width)
        low, high = whole.amin(2).clamp(max=0), whole.amax(2).clamp(min=0)
        middle = 2 ** (bits - 1) - 1
        symmetric = int(torch.maximum(-low, high).max()) <= middle if whole.numel() else True
        zero = torch.full_like(low, middle) if symmetric else -low  # (d_out, groups)
        codes = (whole + zero[..., None]).flatten(1).to(torch.uint8)  # (d_out, d_in)
        zeros = pack(zero.to(torch.uint8), 0 if symmetric else bits)
        half = scales.half()
        kept = half if torch.equal(half.float(), scales.float()) else scales.float()
        fixed: dict[str, Any] = {"zeros": zeros, "bits": bits, "dtype": str(W.dtype).removeprefix("torch.")}
        return min((cls((W.shape[0], W.shape[1]), kept, **where, **fixed) for where in _layouts(codes, keep, bits)),
                   key=lambda made: made.nbytes)  # fmt: skip

    def _check(self) -> None:
        d_out, d_in = self.shape
        whole = all(type(number) is int for number in (self.bits, self.n, self.m))
        named = self.layout in LAYOUTS and self.dtype in list(_DTYPES)
        if not (whole and named and 2 <= self.bits <= 8):
            self._refuse(f"{self.bits!r} bits in the layout {self.layout!r} for {self.dtype!r} are not possible")
        if self.values.ndim != 2 or self.places.ndim != 2 or self.places.dtype != torch.uint8:
            self._refuse(
                f"the scales are {tuple(self.values.shape)}, the places {self.places.dtype} {tuple(self.places.shape)}"
            )
        groups = self.values.shape[1]
        if self.values.dtype not in (torch.float16, torch.float32) or tuple(self.values.shape) != (d_out, groups):
            self._refuse(f"the scales are {self.values.dtype} {tuple(self.values.shape)}")
        if d_in and (not groups or d_in % groups):
            self._refuse(f"{groups} groups do not divide {d_in} inputs")
        if not bool((self.values.isfinite() & (self.values > 0)).all()):
            self._refuse("a scale is not a positive number")
        if self.zeros.dtype != torch.uint8 or tuple(self.zeros.shape) not in {
            (d_out, 0), (d_out, packed_bytes(groups, self.bits)),
        }:  # fmt: skip
            self._refuse(f"the zero points are {self.zeros.dtype} {tuple(self.zeros.shape)}")
        stored = int(self._kept().sum())
        if self.codes.dtype != torch.uint8 or tuple(self.codes.shape) != (packed_bytes(stored, self.bits),):
            self._refuse(
                f"the codes are {self.codes.dtype} {tuple(self.codes.shape)}, not {stored} of {self.bits} bits"
            )

    @property
    def label(self) -> str:
        """ "integers of 4 bits, bitmask"."""
        where = f"nm {self.n}:{self.m}" if self.layout == "nm" else self.layout
        return f"{self.name} of {self.bits} bits, {where}"

    @property
    def weight_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]

    @checked()
    def astype(self, dtype: torch.dtype) -> Self:
        return replace(self, dtype=str(dtype).removeprefix("torch."))

    def _kept(self) -> Tensor:
        """Where a code is stored, (d_out, d_in) bool."""
        d_out, d_in = self.shape
        if self.layout == "dense":
            if self.places.numel():
                self._refuse("every weight is stored, and yet there are places")
            return torch.ones(d_out, d_in, dtype=torch.bool)
        if self.layout == "bitmask":  # each checks its own places
            marked = int(unpack(self.places, 1, 8 * self.places.shape[1]).sum())
            return Bitmask(self.shape, torch.ones(marked), self.places).mask()
        ones = torch.ones(d_out, d_in // max(self.m, 1) * max(self.n, 0), dtype=torch.uint8)
        return NMPacked(self.shape, ones, self.places, self.n, self.m).to_dense().bool()

    def whole(self) -> tuple[Tensor, Tensor]:
        """q - z of every weight (d_out, d_in), int16, and where one is stored (d_out, d_in), bool."""
        kept, groups = self._kept(), self.values.shape[1]
        codes = unpack(self.codes[None], self.bits, int(kept.sum()))[0]
        zero = torch.full(self.values.shape, 2 ** (self.bits - 1) - 1, dtype=torch.uint8)
        if self.zeros.shape[1]:
            zero = unpack(self.zeros, self.bits, groups)
        offsets = zero.short().repeat_interleave(self.shape[1] // max(groups, 1), 1)  # (d_out, d_in)
        whole = torch.zeros(self.shape, dtype=torch.int16)
        whole[kept] = codes.short() - offsets[kept]
        return whole, kept

    def tiles(self, rows: int = TILE_ROWS) -> Iterator[Tensor]:
        width = self.shape[1] // max(self.values.shape[1], 1)
        for scales, whole in zip(self.values.split(rows), self.whole()[0].split(rows), strict=True):
            yield (whole.float() * scales.float().repeat_interleave(width, 1)).to(self.weight_dtype)


_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def round_scale(scales: Tensor) -> Tensor:
    """Positive numbers with 11 significant bits, as a float16 has; 1 in the place of 0."""
    significand, exponent = torch.frexp(torch.where(scales > 0, scales, 1.0))
    return torch.ldexp((significand * _SIGNIFICANT).round_() / _SIGNIFICANT, exponent)


def whole_numbers(W: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Scales (d_out, groups) and whole numbers (d_out, groups, width) whose products are W (d_out, d_in), bit for bit.

    The smallest weight of a group that is not zero is 1, 2, ... steps from zero; the largest scale that explains all
    others is taken. Raises `PruneError` if there is none.
    """
    if not 2 <= bits <= 8:
        raise PruneError(f"integers: {bits} bits are not possible: choose from 2 to 8")
    width = group or W.shape[1]
    if W.dtype not in _DTYPES.values() or width < 1 or W.shape[1] % width:
        raise PruneError(f"integers: groups of {group} inputs do not fit a matrix of {W.dtype} {tuple(W.shape)}")
    parts = W.float().unflatten(1, (W.shape[1] // width, width))  # (d_out, groups, width)
    size = parts.abs()
    smallest = torch.where(size > 0, size, torch.inf).amin(2)
    scales, done = torch.ones_like(smallest), smallest.isinf()
    reach = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 9}[W.dtype]  # W may be a product that was rounded
    for steps in range(1, 2**bits):
        for ulps in sorted(range(-reach, reach + 1), key=abs):
            if bool(done.all()):
                break
            left = ~done
            tried = round_scale(smallest[left] / steps * (1 + ulps / _SIGNIFICANT))[:, None]  # (left, 1)
            whole = (parts[left] / tried).round_()
            spread = whole.amax(1).clamp(min=0) - whole.amin(1).clamp(max=0)
            fits = ((tried * whole).to(W.dtype).float() == parts[left]).all(1) & (spread < 2**bits)
            found = left.clone()
            found[left] = fits
            scales[found] = tried[fits, 0]
            done |= found
    if not bool(done.all()):
        row, place = (~done).nonzero()[0].tolist()
        raise PruneError(
            f"integers: {int((~done).sum())} groups are on no grid of {bits} bits with a level at 0, the first is row "
            f"{row}, inputs {place * width} to {place * width + width - 1}: quantise the model in groups of {group}"
        )
    return scales, (parts / scales[..., None]).round_().to(torch.int16)


def _layouts(codes: Tensor, keep: Tensor, bits: int) -> Iterator[dict[str, Any]]:
    """codes (d_out, d_in) in each layout that can hold them."""
    none, flat = codes.new_zeros(len(codes), 0), {"n": 0, "m": 0}
    yield {"layout": "dense", "codes": pack(codes.flatten()[None], bits)[0], "places": none, **flat}
    yield {"layout": "bitmask", "codes": pack(codes[keep][None], bits)[0], "places": pack(keep, 1), **flat}
    counts, m = keep.to(torch.uint8), 1
    while codes.shape[1] and counts.shape[1] % 2 == 0 and m < 32:
        counts, m = counts[:, ::2] + counts[:, 1::2], 2 * m
        n = int(counts.max()) if len(counts) else 0
        if n < m:
            held = NMPacked.from_dense(keep.to(torch.uint8), keep, n, m)
            rows, places = held.places().shape[0], held.places()  # (d_out, groups, n)
            taken = codes.unflatten(1, (-1, m)).gather(2, places).view(rows, -1)
            yield {"layout": "nm", "codes": pack(taken.flatten()[None], bits)[0], "places": held.codes, "n": n, "m": m}
