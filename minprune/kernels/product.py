"""X W^T with a matrix that is stored with its zeros left out, by the C kernel. Chapter 20.

A `Packed` matrix holds the same arrays as a file: values, and a bit for each weight (or the codes of 2:4). It adds
where each row's values begin, which a file does not need.
"""

import ctypes
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from minprune.errors import PruneError
from minprune.formats.bitmask import Bitmask
from minprune.formats.integers import Integers
from minprune.formats.nm import NMPacked
from minprune.formats.stored import Dense, SparseMatrix, pack
from minprune.kernels.build import kernel

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_INT4 = 3
_SHARED = 8  # a scale belongs to a multiple of so many columns
_BESIDE = 16  # BESIDE of expand.c


class _Matrix(ctypes.Structure):
    """`matrix` of expand.c."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("bits", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("groups", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("codes", ctypes.c_int32),
    )


@dataclass(frozen=True, eq=False)
class Packed:
    """A matrix (d_out, d_in) as the kernel reads it. Made by `pack_for_kernel`; the tensors must not be changed.

    values (stored,): float32, bfloat16, int8, or uint8 with two int4 each. bits (d_out, ceil(d_in / 8)) uint8 or None
    for all. starts (d_out + 1,) int64. scales (d_out, groups) float32 or None. group: columns that share a scale.
    """

    shape: tuple[int, int]
    values: Tensor
    bits: Tensor | None
    starts: Tensor
    scales: Tensor | None = None
    group: int = 0
    kind: int = 0
    codes: bool = False

    @property
    def nbytes(self) -> int:
        """The bytes that a product reads."""
        parts = (self.values, self.bits, self.starts, self.scales)
        return sum(part.nbytes for part in parts if part is not None)

    def matmul(self, X: Tensor) -> Tensor:
        """X (..., d_in), floating -> X W^T (..., d_out) in the dtype of X, summed in float32.

        Integers meet inputs that are rounded to 2^-30 of their token's largest, where the processor has AVX-512.
        Raises `PruneError` if X does not fit, or if there is no kernel on this machine.
        """
        d_out, d_in = self.shape
        if X.shape[-1:] != (d_in,) or not X.is_floating_point() or X.device.type != "cpu":
            raise PruneError(
                f"inputs {tuple(X.shape)} of {X.dtype} on {X.device}: the product takes (..., {d_in}) on a CPU"
            )
        found, why = kernel()
        if found is None:
            raise PruneError(f"there is no compiled product ({why}): multiply with torch")
        wide, stride = X.float().contiguous(), d_in
        if d_in % 64:  # the kernel takes 64 columns at a time
            stride += -d_in % 64
            wide = torch.nn.functional.pad(wide, (0, stride - d_in))
        out = torch.empty(*X.shape[:-1], d_out)
        tokens = out.numel() // max(d_out, 1)
        room = torch.empty(tokens, stride + _BESIDE) if self.kind >= _KINDS[torch.int8] else None
        found.library.minprune_product(
            self._for_c,
            found.level,
            wide.data_ptr(),
            stride,
            tokens,
            out.data_ptr(),
            None if room is None else room.data_ptr(),
            torch.get_num_threads(),
        )
        return out if X.dtype == torch.float32 else out.to(X.dtype)

    def to_dense(self) -> Tensor:
        """The matrix (d_out, d_in), float32. Raises `PruneError` if there is no kernel on this machine."""
        found, why = kernel()
        if found is None:
            raise PruneError(f"there is no compiled product ({why}): multiply with torch")
        out = torch.empty(self.shape)
        found.library.minprune_dense(self._for_c, out.data_ptr(), torch.get_num_threads())
        return out

    @cached_property
    def _groups(self) -> Tensor | None:
        """Which of its row's scales each eight columns have, (d_in / 8, up to a multiple of 8), int32."""
        if self.scales is None:
            return None
        eights = torch.arange(-(-self.shape[1] // 64) * 8)
        return (eights * _SHARED // self.group).clamp(max=self.scales.shape[1] - 1).int()

    @cached_property
    def _for_c(self):
        """A pointer to the `matrix`, whose arrays this object keeps alive."""
        d_out, d_in = self.shape
        arrays = (self.values, self.bits, self.starts, self.scales, self._groups)
        pointers = [None if array is None else array.data_ptr() for array in arrays]
        row_bytes = 0 if self.bits is None else self.bits.shape[1]
        W = _Matrix(*pointers, d_out, d_in, row_bytes, self.group, self.kind, self.codes)
        return ctypes.pointer(W)

    def __reduce__(self):
        """A copy has arrays of its own, and so another pointer."""
        return Packed, tuple(getattr(self, field.name) for field in fields(self))


def pack_for_kernel(stored: SparseMatrix) -> Packed:
    """A stored matrix, in the format bitmask, nm 2:4, dense or integers, as the kernel reads it.

    Its arrays are used as they are, but for those of integers, which are packed anew: four bits each if they lie within
    -8..7, and eight within -128..127. Raises `PruneError` for other formats and for values that the kernel does not
    know.
    """
    d_out, d_in = stored.shape
    if isinstance(stored, Integers):
        return _pack_integers(stored)
    kind = _KINDS.get(stored.values.dtype)
    if kind is None:
        raise PruneError(f"no product with values of {stored.values.dtype}: store float32, bfloat16 or int8")
    values = stored.values.contiguous()
    if isinstance(stored, Bitmask):
        bits = stored.bits.contiguous()
        counts = np.bitwise_count(bits.numpy()).sum(1, dtype=np.int64)
        starts = torch.cat([torch.zeros(1, dtype=torch.long), torch.from_numpy(counts).cumsum(0)])
        return Packed(stored.shape, values, bits, starts, kind=kind)
    if isinstance(stored, NMPacked) and (stored.n, stored.m) == (2, 4) and d_in % 8 == 0:
        starts = torch.arange(d_out + 1) * (d_in // 2)
        return Packed(stored.shape, values, stored.codes.contiguous(), starts, kind=kind, codes=True)
    if isinstance(stored, Dense):
        return Packed(stored.shape, values, None, torch.arange(d_out + 1) * d_in, kind=kind)
    raise PruneError(f"no product with {stored.label} {stored.shape}: store it as bitmask, nm 2:4 or dense")


def _pack_integers(stored: Integers) -> Packed:
    d_in, groups = stored.shape[1], stored.values.shape[1]
    width = d_in // max(groups, 1)
    whole, kept = stored.whole()  # (d_out, d_in) each
    numbers, counts = whole[kept], kept.sum(1)
    low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
    if width % _SHARED or low < -128 or high > 127:
        raise PruneError(
            f"no product with {stored.label} from {low} to {high} in groups of {width} inputs: they have to lie within "
            f"-128..127, in groups of a multiple of {_SHARED}"
        )
    narrow = low >= -8 and high <= 7
    room = counts + counts % 2 if narrow else counts  # of each row: int4 begins at a whole byte
    starts = torch.cat([torch.zeros(1, dtype=torch.long), room.cumsum(0)])
    values = numbers.to(torch.int8)
    if narrow:
        gaps = (starts[:-1] - counts.cumsum(0) + counts).repeat_interleave(counts)  # left out before a number's row
        halves = torch.zeros(int(starts[-1]), dtype=torch.uint8)
        halves[torch.arange(len(numbers)) + gaps] = values.view(torch.uint8) & 15
        values = halves[::2] | halves[1::2] << 4
    bits = None if stored.layout == "dense" else pack(kept, 1)
    kind = _INT4 if narrow else _KINDS[torch.int8]
    return Packed(stored.shape, values, bits, starts, stored.values.float(), width, kind)
