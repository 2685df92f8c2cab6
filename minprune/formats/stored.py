"""What all formats have in common: one weight matrix, kept as a few arrays from which it can be had back.

Stored weights come back bit by bit, NaN and its payload included. The others come back as +0.0. A keep mask says which
weights are stored, by default those that are not zero. -0.0 then counts as a zero: masking by a product leaves it in
the place of every negative weight that was pruned.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.errors import PruneError

UNSIGNED = {torch.uint8: 2**8 - 1, torch.uint16: 2**16 - 1, torch.uint32: 2**32 - 1, torch.int64: 2**63 - 1}
TILE_ROWS = 256  # decoded at a time


@dataclass(frozen=True, eq=False)
class SparseMatrix(ABC):
    """One weight matrix (d_out, d_in) in some format. Making one checks it, so that no index points outside.

    The tensors among the fields are what is stored. The other fields, and the values' dtype, describe them.

    Parameters
    ----------
    shape : tuple of int
        (d_out, d_in).
    values : Tensor
        The stored weights, in the format's order.

    Raises
    ------
    PruneError
        If the arrays belong to no matrix; it says what is wrong with them.

    Examples
    --------
    >>> import torch
    >>> from minprune.formats import Bitmask, SparseMatrix
    >>> W = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    >>> isinstance(Bitmask.from_dense(W), SparseMatrix), torch.equal(Bitmask.from_dense(W).to_dense(), W)
    (True, True)
    """

    name: ClassVar[str]
    shape: tuple[int, int]
    values: Tensor

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or not all(isinstance(side, int) and side >= 0 for side in self.shape):
            self._refuse(f"the shape {self.shape!r} is not that of a matrix")
        self._check()

    @classmethod
    @abstractmethod
    def from_dense(cls, W: Tensor, keep: Tensor | None = None) -> Self:
        """Store a matrix in this format.

        Parameters
        ----------
        W : Tensor (d_out, d_in), real
            In any dtype but the unsigned ones above 8 bits, in which torch does not scatter.
        keep : Tensor (d_out, d_in), bool, optional
            Which weights to store, by default those that are not zero.

        Returns
        -------
        SparseMatrix

        Raises
        ------
        PruneError
            If W is no matrix, has other values than zero outside the mask, or does not fit the format.
        """

    @abstractmethod
    def _check(self) -> None:
        """Raise `PruneError` unless the arrays belong to a matrix of this shape."""

    @abstractmethod
    def tiles(self, rows: int = TILE_ROWS) -> Iterator[Tensor]:
        """The dense matrix, `rows` rows at a time from the top: (at most rows, d_in) each."""

    def to_dense(self) -> Tensor:
        """The matrix (d_out, d_in), in the dtype of the weights."""
        return torch.cat(list(self.tiles()))

    @checked()
    def matmul(self, X: Tensor) -> Tensor:
        """The product X W^T.

        What is not stored counts as the zero that it is: zero times infinity or NaN is NaN, as in the dense product.

        Parameters
        ----------
        X : Tensor (..., d_in), floating
            The inputs.

        Returns
        -------
        Tensor (..., d_out)
            In the dtype of X, summed in float32 or wider.

        Raises
        ------
        PruneError
            If X does not fit the matrix, or holds whole numbers.
        """
        if X.ndim < 1 or X.shape[-1] != self.shape[1]:
            self._refuse(f"inputs {tuple(X.shape)} do not fit a weight {self.shape}: their last side is d_in")
        if not X.is_floating_point():
            self._refuse(f"inputs of {X.dtype} would round the outputs to whole numbers: pass X.float()")
        wide = torch.float32
        for dtype in (X.dtype, self.weight_dtype):
            wide = torch.promote_types(wide, dtype) if dtype.itemsize > 1 else wide  # torch promotes no 8-bit floats
        flat = X.reshape(math.prod(X.shape[:-1]), self.shape[1]).to(wide)  # (tokens, d_in)
        out, odd = self._multiply(flat), ~flat.isfinite().all(dim=1)  # (tokens, d_out), (tokens,)
        if odd.any():  # where a product that is left out would not have been zero
            out[odd] = SparseMatrix._multiply(self, flat[odd])
        return out.to(X.dtype).reshape(*X.shape[:-1], self.shape[0])

    def _multiply(self, X: Tensor) -> Tensor:
        """X (tokens, d_in), wide -> (tokens, d_out): here tile by tile, so that the dense matrix is never whole."""
        return torch.cat([X @ tile.to(X.dtype).T for tile in self.tiles()], dim=1)

    @classmethod
    def parts(cls) -> tuple[list[str], list[str]]:
        """The names of the arrays, and those of the settings: all fields."""
        names = [[f.name for f in fields(cls) if (f.type is Tensor) == wanted] for wanted in (True, False)]
        return names[0], names[1]

    def arrays(self) -> dict[str, Tensor]:
        """Everything that is stored, by name."""
        return {name: getattr(self, name) for name in self.parts()[0]}

    def settings(self) -> dict[str, Any]:
        """What is needed beside the arrays to read them: the shape, and the numbers that some formats have."""
        return {name: getattr(self, name) for name in self.parts()[1]}

    @property
    def weight_dtype(self) -> torch.dtype:
        """Of the weights that come back."""
        return self.values.dtype

    @checked()
    def astype(self, dtype: torch.dtype) -> Self:
        """The same matrix with its weights in another dtype."""
        return replace(self, values=self.values.to(dtype))

    @property
    def label(self) -> str:
        """The name of the format with its settings."""
        return self.name

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays together."""
        return sum(array.nbytes for array in self.arrays().values())

    def _refuse(self, reason: str) -> NoReturn:
        raise PruneError(f"{self.name}: {reason}")


@dataclass(frozen=True, eq=False)
class Dense(SparseMatrix):
    """Every weight, zeros included: what all other formats have to beat.

    Parameters
    ----------
    shape : tuple of int
        (d_out, d_in).
    values : Tensor (d_out, d_in)
        The weights.

    Examples
    --------
    >>> import torch
    >>> from minprune.formats import Dense
    >>> Dense.from_dense(torch.zeros(4, 8)).nbytes
    128
    """

    name = "dense"

    @classmethod
    @checked()
    def from_dense(cls, W: Tensor, keep: Tensor | None = None) -> Self:
        stored_mask(W, keep)
        return cls((W.shape[0], W.shape[1]), W.contiguous())

    def _check(self) -> None:
        if tuple(self.values.shape) != self.shape:
            self._refuse(f"the values are {tuple(self.values.shape)}, not {self.shape}")

    def tiles(self, rows: int = TILE_ROWS) -> Iterator[Tensor]:
        yield from self.values.split(rows)


def stored_mask(W: Tensor, keep: Tensor | None) -> Tensor:
    """Which weights of W (d_out, d_in) a format stores: those of `keep`, or those that are not zero."""
    if W.ndim != 2:
        raise PruneError(f"a format stores a matrix (d_out, d_in), not a tensor {tuple(W.shape)}")
    if W.is_complex() or W.dtype in (torch.uint16, torch.uint32, torch.uint64):
        raise PruneError(f"no format stores values of {W.dtype}: convert them to a real, signed or floating type")
    used = W != 0
    if keep is None:
        return used
    if keep.dtype != torch.bool or keep.shape != W.shape:
        raise PruneError(f"the keep mask must be bool {tuple(W.shape)}, not {keep.dtype} {tuple(keep.shape)}")
    if left := int((used & ~keep).sum()):
        raise PruneError(f"{left} weights outside the keep mask are not zero: multiply the weights by the mask first")
    return keep


def as_bits(values: Tensor) -> Tensor:
    """The same memory as whole numbers: torch's gather and scatter change the payload of some NaN in float16."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return values.contiguous().view(whole[values.element_size()])


def index_dtype(largest: int) -> torch.dtype:
    """The narrowest dtype for indices 0..largest: one of 8, 16 or 32 bits without sign, else int64."""
    return next(dtype for dtype, limit in UNSIGNED.items() if largest <= limit)


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes (rows, n), whole numbers below 2^bits, at most 8 bits -> uint8 (rows, ceil(n * bits / 8)).

    The first code is in the lowest bits of the first byte; each row begins a new byte, and its last one ends in zeros.
    """
    rows, n = codes.shape
    if not bits or not n:
        return torch.zeros(rows, 0, dtype=torch.uint8, device=codes.device)
    single = codes.to(torch.uint8)[..., None] >> _steps(bits, codes.device) & 1  # (rows, n, bits)
    stream = torch.nn.functional.pad(single.flatten(1), (0, -n * bits % 8))
    return _weighed(stream, 8)


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """uint8 (rows, ceil(n * bits / 8)) -> codes (rows, n), uint8: the way back from `pack`."""
    if not bits or not n:
        return torch.zeros(packed.shape[0], n, dtype=torch.uint8, device=packed.device)
    stream = (packed[..., None] >> _steps(8, packed.device) & 1).flatten(1)[:, : n * bits]
    return _weighed(stream, bits)


def _weighed(stream: Tensor, bits: int) -> Tensor:
    """Every `bits` neighbouring digits of stream (rows, n * bits), the lowest first, as one number: (rows, n)."""
    numbers = stream[:, ::bits].clone()
    for digit in range(1, bits):
        numbers |= stream[:, digit::bits] << digit
    return numbers


def packed_bytes(n: int, bits: int) -> int:
    """The bytes of one packed row of n codes."""
    return -(-n * bits // 8)


def spare_bits_are_zero(packed: Tensor, used: int) -> bool:
    """Whether the bits behind the first `used` of each row of `packed` (rows, bytes) are zero."""
    spare = 8 * packed.shape[1] - used
    return not spare or not bool((packed[:, -1] >> (8 - spare)).any())


def _steps(bits: int, device: torch.device) -> Tensor:
    return torch.arange(bits, dtype=torch.uint8, device=device)
