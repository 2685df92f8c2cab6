"""Which scores are the largest: an exact number in each group. Ties are broken by index, lowest pruned first.

`keep_largest` finds the threshold of a long row, `keep_of_few` compares all pairs of a small group. Both give the same
mask on every machine.
"""

from functools import cache
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minprune.errors import PruneError, shown

_AT_ONCE = 1 << 16  # scores whose ties are counted at a time: counting takes sixteen bytes a score
FEW = 32  # places of a group up to which all pairs are compared: it takes m**2 / 2 comparisons a group


def keep_largest(scores: Tensor, zeros: int) -> Tensor:
    """Prune exactly `zeros` weights of every row: the lowest scores. Ties are broken by index, lowest first.

    scores (groups, size) -> keep (groups, size), bool. Finding the threshold is a selection, not a sort: linear
    in the number of weights. Ties at the threshold, which `scores > threshold` would get wrong, are counted out.
    Raises `PruneError` for NaN scores, which no order contains.
    """
    size = scores.shape[1]
    if zeros in (0, size):
        refuse_nan(scores)
        return torch.full_like(scores, zeros == 0, dtype=torch.bool)
    threshold = _kth_smallest(scores, zeros)  # (groups, 1)
    keep = scores > threshold
    ties = keep.sum(1) != size - zeros  # (groups,)
    if not bool(ties.any()):
        return keep
    refuse_nan(scores)
    if not bool(ties.all()):  # few rows as a rule
        scores, threshold = scores[ties], threshold[ties]
    to_prune = zeros - (scores < threshold).sum(1, keepdim=True)  # (rows, 1): how many of the tied must go
    chosen, counted = keep[ties], torch.zeros_like(to_prune)
    step = max(1, _AT_ONCE // len(scores))
    for start in range(0, size, step):
        tied = scores[:, start : start + step] == threshold
        number = counted + tied.cumsum(1)  # of each tied score in its row, from 1
        chosen[:, start : start + step] |= tied & (number > to_prune)
        counted = number[:, -1:]
    keep[ties] = chosen
    return keep


def _kth_smallest(scores: Tensor, k: int) -> Tensor:
    """The k-th smallest (k from 1) of every row: (groups, size) -> (groups, 1)."""
    if scores.device.type == "cpu":  # NumPy's vectorised quickselect is about ten times faster than kthvalue there
        values = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        kth = np.partition(values.detach().numpy(), k - 1, axis=1)[:, k - 1 : k]
        return torch.from_numpy(np.ascontiguousarray(kth)).to(scores.dtype)
    return scores.sort(dim=1).values[:, k - 1 : k]  # CUDA's kthvalue gives a row to one of its many processors


def refuse_nan(scores: Tensor) -> Tensor:
    """The scores; `PruneError` if one is NaN."""
    if bool(scores.isnan().any()):
        raise PruneError("the scores contain NaN: look for NaN or infinity in the weights and in the inputs")
    return scores


def as_matrix(scores: Any, what: str = "scores") -> Tensor:
    """The scores; `PruneError` unless they are a matrix of real numbers that is dense and in memory."""
    if isinstance(scores, Tensor) and scores.ndim == 2 and scores.layout is torch.strided and not scores.is_meta:
        narrow = scores.dtype.is_floating_point and scores.dtype.itemsize == 1  # such numbers are not compared
        if not (narrow or scores.dtype.is_complex):
            return scores
    raise PruneError(f"{what} are {shown(scores)}: they must be a dense matrix (d_out, d_in) of real numbers in memory")


def column_blocks(scores: Tensor, block_size: int) -> tuple[Tensor, ...]:
    """The scores (d_out, d_in) in blocks of so many columns, of which the last may be narrower."""
    if not isinstance(block_size, Integral) or isinstance(block_size, bool) or block_size < 1:
        raise PruneError(f"block size {shown(block_size)} is not a positive whole number: 128 is the published one")
    return as_matrix(scores).split(int(block_size), dim=1)


def check_order(order: Any, d_in: int) -> None:
    """Raise `PruneError` unless an order (d_in,) names each of so many columns once."""
    plain = isinstance(order, Tensor) and order.layout is torch.strided and not order.is_meta
    if not (plain and order.ndim == 1 and order.dtype == torch.int64 and sorted(order.tolist()) == list(range(d_in))):
        raise PruneError(f"order is {shown(order)}: it must name each of the {d_in} inputs once, in int64")


def keep_of_few(scores: Any, n: int) -> Any:
    """Keep the n largest of each group: scores (m, groups) without NaN, one group a column -> keep (m, groups), bool.

    Scores are a tensor, or a NumPy array, and so is the mask. A weight is pruned when fewer than m - n others of
    its group go before it. Every two places are compared in long rows, and a small matrix product counts, which
    beats sorting a million tiny groups. In large groups the threshold is found as for a row.
    """
    is_numpy, m = isinstance(scores, np.ndarray), len(scores)
    if m > FEW:
        keep = keep_largest(torch.from_numpy(scores).T if is_numpy else scores.T, m - n).T
        return keep.numpy() if is_numpy else keep
    first, second, count, enough = _counting(n, m, None if is_numpy else scores.device)
    ordered = scores[first] <= scores[second]  # (pairs, groups)
    return count @ (ordered.astype(np.float32) if is_numpy else ordered.float()) >= enough


@cache
def _counting(n: int, m: int, device: torch.device | None) -> tuple[Any, Any, Any, Any]:
    """The pairs i < j of places (pairs,), (pairs,); count (m, pairs) and enough (m, 1); as NumPy arrays without device.

    i goes before j if s_i <= s_j, else j goes before i, so that ties are broken by index. A place starts with all later
    ones before it, and loses one of them for each that it goes before. count @ (s_i <= s_j) is how many more there are
    than at the start; if it is at least `enough`, there are m - n.
    """
    first, second = torch.triu_indices(m, m, 1, device="cpu")
    places = torch.arange(m, device="cpu")[:, None]
    count = (places == second).float() - (places == first).float()
    made = first, second, count, places - n + 1.0  # (m - n) - (m - 1 - place)
    return tuple(part.numpy() if device is None else part.to(device) for part in made)  # type: ignore[return-value]
