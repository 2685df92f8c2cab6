"""Pairwise swaps: improve a mask by exchanging one kept weight for one pruned weight of the same row. Chapter 07.

SparseSwaps 2025. For one row w with r = w on what is pruned and 0 elsewhere, the loss is r G r^T. Pruning p and
restoring u adds w_p to r_p and takes w_u off r_u, so with g = r G the loss changes by

    a_p + b_u - 2 w_p w_u G_pu,     a_p = 2 w_p g_p + w_p^2 G_pp,     b_u = -2 w_u g_u + w_u^2 G_uu.

The best pair is exchanged while that lowers the loss. A row is done when no single swap does, or after `max_swaps`.
Each row keeps its number of zeros, and with N:M each group. The weights stay as they are; "wanda+swaps+exact" then
finds the best ones.

All rows take their next swap together. Most good pairs join one of the lowest a_p and one of the lowest b_u, so only
those are tried at first. When these no longer help a row, all of its pairs are tried.
"""

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError
from minprune.methods.damping import checked_gram
from minprune.methods.result import Result
from minprune.methods.wanda import wanda
from minprune.patterns import NM, Block, Lines, Pattern, Unstructured
from minprune.statistics import Statistics

_FEW = 16  # candidates on each side of a swap
_NUMBERS = 2**23  # pairs that are in memory together
_Best = tuple[Tensor, Tensor, Tensor]  # per row: by how much its best swap changes the loss, the p and the u of it


@checked()
@exact_arithmetic()
def swaps(
    W: Tensor, stats: Statistics, pattern: Pattern, *, max_swaps: int = 100, keep: Tensor | None = None
) -> Result:
    """Refine a mask by swaps: `keep`, or Wanda's (plain "50%" per row). The weights stay as they are.

    Parameters
    ----------
    W : Tensor (d_out, d_in), floating
    stats : Statistics, with a Gram matrix
    pattern : Pattern
        With N:M only weights of one group change places.
    max_swaps : int, default 100
        At most so many for each row.
    keep : Tensor (d_out, d_in), bool, optional
        A given mask to begin with.

    Returns
    -------
    Result

    Raises
    ------
    PruneError
        For a pattern of blocks or one that counts its zeros in blocks of columns, which swaps would break; if the
        pattern does not fit the shape, or the statistics cannot be used.

    Examples
    --------
    Inputs 0 and 1 cancel each other out. Wanda prunes 0 and 2; to lose 0 and 1 together is better.

    >>> import torch, minprune as mp
    >>> X = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    >>> W = torch.tensor([[1.5, 1.9, 1.6, 3.0]])
    >>> mp.METHODS["swaps"](W, mp.Statistics(4).update(X), "50%").keep
    tensor([[False, False,  True,  True]])
    """
    if isinstance(pattern, Block | Lines) or (isinstance(pattern, Unstructured) and pattern.group == "block"):
        raise PruneError(f"swaps within a row would break the blocks of {pattern}: use 50%, 50%:row or 2:4")
    if max_swaps < 0:
        raise PruneError(f"max_swaps {max_swaps} is negative: 0 changes nothing")
    pattern.check(*W.shape)
    gram = checked_gram(W, stats, 0, keep)
    keep = wanda(W, stats, pattern).keep if keep is None else keep.clone()
    w = W.to(gram.dtype)
    g = w.masked_fill(keep, 0) @ gram  # (d_out, d_in)
    enough = torch.finfo(w.dtype).eps ** 0.75  # a gain below this share of the row's loss may be rounding
    rows = torch.arange(len(w), device=w.device)  # those that are not done
    for _ in range(max_swaps):
        w_, keep_, g_ = w[rows], keep[rows], g[rows]  # (rows, d_in)
        least = -enough * (w_.masked_fill(keep_, 0) * g_).sum(1).clamp_min(0)  # (rows,)
        change, p, u = _best_swap(w_, g_, keep_, gram, pattern, least)
        better = change < least
        rows, p, u = rows[better], p[better], u[better]
        if not len(rows):
            break
        keep[rows, p], keep[rows, u] = False, True
        g[rows] += w[rows, p, None] * gram[p] - w[rows, u, None] * gram[u]
    return Result(W.masked_fill(~keep, 0), keep)


def _best_swap(w: Tensor, g: Tensor, keep: Tensor, gram: Tensor, pattern: Pattern, least: Tensor) -> _Best:
    """The best swap of each row: w, g, keep (rows, d_in); a row whose change is not below `least` (rows,) has none."""
    alone = w.square() * gram.diagonal()
    a = (alone + 2 * w * g).masked_fill_(~keep, float("inf"))  # what it costs to prune p
    b = (alone - 2 * w * g).masked_fill_(keep, float("inf"))  # what it costs to restore u: often negative
    if isinstance(pattern, NM):
        return _within_groups(w, a, b, gram, pattern.m)
    change, p, u = _among_few(w, a, b, gram)
    stuck = (change >= least).nonzero().squeeze(1)
    for some in stuck.split(max(1, _NUMBERS // len(gram) ** 2)):
        change[some], p[some], u[some] = _among_all(w[some], a[some], b[some], gram)
    return change, p, u


def _among_few(w: Tensor, a: Tensor, b: Tensor, gram: Tensor) -> _Best:
    """The best swap between the `_FEW` lowest a and the `_FEW` lowest b of each row."""
    few = min(_FEW, w.shape[1])
    (a, p), (b, u) = (cost.topk(few, largest=False, sorted=False) for cost in (a, b))  # (rows, few)
    both = w.gather(1, p)[:, :, None] * w.gather(1, u)[:, None, :] * gram[p[:, :, None], u[:, None, :]]
    change, place = (a[:, :, None] + b[:, None, :] - 2 * both).flatten(1).min(1)
    return change, p.gather(1, place[:, None] // few).squeeze(1), u.gather(1, place[:, None] % few).squeeze(1)


def _among_all(w: Tensor, a: Tensor, b: Tensor, gram: Tensor) -> _Best:
    """The best of all swaps of each row."""
    both = (w[:, :, None] * gram).mul_(w[:, None, :])  # (rows, d_in, d_in)
    change, place = both.mul_(-2).add_(a[:, :, None]).add_(b[:, None, :]).flatten(1).min(1)
    return change, place // w.shape[1], place % w.shape[1]


def _within_groups(w: Tensor, a: Tensor, b: Tensor, gram: Tensor, m: int) -> _Best:
    """The best swap of each row between two weights of one group of m consecutive inputs."""
    blocks = gram.unflatten(0, (-1, m)).unflatten(2, (-1, m)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    w, a, b = (x.unflatten(1, (-1, m)) for x in (w, a, b))  # (rows, groups, m); blocks (groups, m, m)
    change = a[..., :, None] + b[..., None, :] - 2 * w[..., :, None] * w[..., None, :] * blocks
    change, place = change.flatten(1).min(1)
    group, pair = place // m**2 * m, place % m**2
    return change, group + pair // m, group + pair % m
