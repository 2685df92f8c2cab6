"""Which format stores a matrix in the fewest bytes. Chapter 19."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.errors import PruneError, shown
from minprune.formats.bitmask import Bitmask
from minprune.formats.block import BSR
from minprune.formats.csr import CSC, CSR
from minprune.formats.integers import Integers
from minprune.formats.nm import NMPacked, code_bits
from minprune.formats.stored import Dense, SparseMatrix, index_dtype, packed_bytes, stored_mask

FORMATS: dict[str, type[SparseMatrix]] = {kind.name: kind for kind in (Dense, Bitmask, CSR, CSC, BSR, NMPacked)}
STORED_FORMATS: dict[str, type[SparseMatrix]] = FORMATS | {Integers.name: Integers}  # and that for quantised weights
LARGEST_GROUP = 32  # groups and blocks are powers of two
LARGEST_BLOCK = 64


@checked()
def store(
    W: Tensor, form: str = "auto", keep: Tensor | None = None, grid: tuple[int, int] | None = None
) -> SparseMatrix:
    """Store a matrix in the named format, with the settings (block size, N:M) that take the fewest bytes.

    Parameters
    ----------
    W : Tensor (d_out, d_in), any real dtype
        The weights, zeros included.
    form : str, default "auto"
        A name in `FORMATS`. "auto" takes the smallest of all; of formats of equal size it takes the simplest, in the
        order of `FORMATS`. "integers" is `Integers`, for weights on a grid.
    keep : Tensor (d_out, d_in), bool, optional
        Which weights to store, by default those that are not zero.
    grid : tuple of int, optional
        (bits, group) with which W was quantised. "auto" then takes `Integers` where W is on that grid and they take
        fewer bytes.

    Returns
    -------
    SparseMatrix

    Raises
    ------
    PruneError
        If the format is unknown, or is "nm" or "block" and the zeros of W are not of that kind, or is "integers" and W
        is on no such grid.

    Examples
    --------
    >>> import torch
    >>> from minprune.formats import store
    >>> stored = store(torch.tensor([[0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 8.0]]))
    >>> stored.name, stored.nbytes
    ('bitmask', 9)
    """
    check_form(form)
    if form == Integers.name:
        if grid is None:
            raise PruneError("integers: how these weights were quantised is not known: give bits and group as the grid")
        return Integers.from_dense(W, keep, *grid)
    sizes = predicted_bytes(stored_mask(W, keep), W.element_size())
    dense = sizes["dense", ()]
    if form in ("nm", "block"):
        sizes = {choice: size for choice, size in sizes.items() if choice[0] == form and size < dense}
        if not sizes:
            raise PruneError(
                f"the zeros of this {W.shape[0]} x {W.shape[1]} matrix make no {form} format pay: use auto"
            )
    elif form != "auto":
        sizes = {choice: size for choice, size in sizes.items() if choice[0] == form}
    name, settings = min(sizes, key=lambda choice: sizes[choice])
    made: Any = FORMATS[name]
    stored = made.from_dense(W, keep, **dict(settings))
    if form == "auto" and grid:
        with suppress(PruneError):  # a matrix that was left as it was
            return min(stored, Integers.from_dense(W, keep, *grid), key=lambda one: one.nbytes)
    return stored


def check_form(form: str) -> None:
    """Raise `PruneError` unless `form` is "auto" or the name of a format."""
    if form != "auto" and form not in STORED_FORMATS:
        raise PruneError(f"unknown format {form!r}: use auto, {', '.join(STORED_FORMATS)}")


@checked()
def predicted_bytes(keep: Tensor, value_bytes: int) -> dict[tuple[str, tuple[tuple[str, int], ...]], int]:
    """The bytes of all formats that can hold a matrix with this mask: what `nbytes` would say, from counts alone.

    Parameters
    ----------
    keep : Tensor (d_out, d_in), bool
        True where a weight is stored.
    value_bytes : int
        The size of one value: 2 for bfloat16.

    Returns
    -------
    dict
        Bytes by (name of the format, its settings).

    Raises
    ------
    PruneError
        If the mask is no matrix of bool, or a value has less than a byte.

    Examples
    --------
    >>> import torch
    >>> from minprune.formats import predicted_bytes
    >>> predicted_bytes(torch.eye(8, dtype=torch.bool), value_bytes=2)["bitmask", ()]
    24
    """
    if keep.ndim != 2 or keep.dtype != torch.bool or value_bytes < 1:
        raise PruneError(
            f"{value_bytes} bytes for each kept of {shown(keep)}: give a mask (d_out, d_in), bool, and 1 up"
        )
    d_out, d_in = keep.shape
    kept = int(keep.sum())
    sizes: dict[tuple[str, tuple[tuple[str, int], ...]], int] = {
        ("dense", ()): keep.numel() * value_bytes,
        ("bitmask", ()): kept * value_bytes + d_out * packed_bytes(d_in, 1),
        ("csr", ()): _lines_bytes(kept, value_bytes, d_out, d_in),
        ("csc", ()): _lines_bytes(kept, value_bytes, d_in, d_out),
    }
    used, size = keep, 1
    while used.shape[0] % 2 == used.shape[1] % 2 == 0 and size < LARGEST_BLOCK:
        used, size = used[::2] | used[1::2], 2 * size
        used = used[:, ::2] | used[:, 1::2]  # (d_out / size, d_in / size): whether a block holds anything
        blocks = int(used.count_nonzero())
        sizes["block", (("size", size),)] = _lines_bytes(blocks, size * size * value_bytes, *used.shape)
    counts, m = keep.to(torch.uint8), 1
    while d_in and counts.shape[1] % 2 == 0 and m < LARGEST_GROUP:
        counts, m = counts[:, ::2] + counts[:, 1::2], 2 * m  # (d_out, d_in / m): how many each group holds
        n = int(counts.max()) if len(counts) else 0
        stored = d_in // m * n
        sizes["nm", (("n", n), ("m", m))] = d_out * (stored * value_bytes + packed_bytes(stored, code_bits(m)))
    return sizes


def _lines_bytes(stored: int, value_bytes: int, lines: int, length: int) -> int:
    index, pointer = index_dtype(max(length - 1, 0)).itemsize, index_dtype(stored).itemsize
    return stored * (value_bytes + index) + (lines + 1) * pointer
