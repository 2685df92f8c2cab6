"""Which pattern the zeros of a weight matrix follow: the way back from a mask to `minprune.pattern`."""

import torch
from torch import Tensor

_SLACK = 0.01  # the share of zeros that may be chance: a kept weight can be zero, a trained matrix holds a few


def detect_pattern(W: Tensor) -> str:
    """The strictest pattern that the zeros of W (d_out, d_in) follow.

    "dense" (less than 1 % zeros), "all zero", "N:M" for the smallest M up to 32, "block16" for zeros in whole square
    tiles, "per row" if every row has the same number of zeros, else "unstructured". Up to 1 % of the zeros may lie
    beside an N:M or block pattern, because a weight that was kept can happen to be zero.
    """
    zero = W == 0
    zeros = int(zero.sum())
    if zeros == zero.numel():
        return "all zero"
    if zeros < _SLACK * zero.numel():
        return "dense"
    for m in range(2, 33):
        if n := _kept_of(zero, m):
            return f"{n}:{m}"
    for size in (64, 32, 16, 8, 4, 2):
        if _in_tiles(zero, size, zeros):
            return f"block{size}"
    in_row = zero.sum(1)
    return "per row" if len(in_row) > 1 and bool((in_row == in_row[0]).all()) else "unstructured"


def _kept_of(zero: Tensor, m: int) -> int:
    """n if the zeros are those of n:m, else 0."""
    if zero.shape[1] % m:
        return 0
    few = zero[:: max(1, len(zero) // 8)]  # a look at some rows rules out nearly every m
    for part, slack in ((few, 0.25), (zero, _SLACK)):
        in_group = part.reshape(-1, m).sum(1, dtype=torch.int32)
        least = int(in_group.min())
        if least == 0 or int(in_group.sum()) > (1 + slack) * least * len(in_group):
            return 0
    return m - least


def _in_tiles(zero: Tensor, size: int, zeros: int) -> bool:
    if zero.shape[0] % size or zero.shape[1] % size:
        return False
    tiles = zero.unflatten(0, (-1, size)).unflatten(2, (-1, size)).all(1).all(2)  # (rows, columns)
    return int(tiles.sum()) * size * size >= (1 - _SLACK) * zeros
