"""Channel permutation for N:M: which inputs share a group is a choice, and a good one keeps more. Chapter 06.

N:M keeps the best N of every M neighbours. If a group happens to hold M important inputs, some are lost; so reorder
the inputs first (Pool and Yu 2021). The search here is that of RIA (Zhang et al. 2024), in two stages:

1. Sort the columns by total score, cut them into M bands, and deal each band out, one column to each group, back and
   forth like a snake, so that no group gets the best of every band.
2. For each of the M places of a group in turn: take that column out of every group, compute what each group would
   retain with each of them, and hand them out anew in the best way there is (a linear assignment).

A reordered layer computes the same only if its inputs arrive in the new order. `fold_permutation` sees to that at no
cost, where the layers before produce the inputs one by one, as in a Llama MLP: the rows of gate_proj and up_proj and
the columns of down_proj change places together. It is not so for the residual stream, nor across attention heads.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError
from minprune.methods.result import Result
from minprune.patterns import NM, Pattern
from minprune.selection import as_matrix
from minprune.statistics import Statistics


def retained(scores: Tensor, pattern: Pattern) -> float:
    """The sum of the scores that the pattern keeps, in float64. scores (d_out, d_in)."""
    return float((S := _double(scores))[pattern.keep(S)].sum())


@checked()
@exact_arithmetic()
def channel_permutation(scores: Tensor, pattern: Pattern, *, passes: int = 1) -> Tensor:
    """An order of the inputs in which N:M retains more: scores[:, order] is the reordered matrix. Never a worse one.

    Parameters
    ----------
    scores : Tensor (d_out, d_in), floating
        Finite and not negative, such as |W| * ||X_j|| or `ria_scores`.
    pattern : Pattern
        An N:M pattern.
    passes : int, default 1
        How often stage 2 goes over the M places. It ends early when a pass gains nothing.

    Returns
    -------
    Tensor (d_in,), int64

    Raises
    ------
    PruneError
        For a pattern that is not N:M, M that does not divide d_in, scores that are negative or not finite, or passes
        below 0.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> from minprune.methods.channel_permutation import channel_permutation
    >>> scores = torch.tensor([[9.0, 8.0, 7.0, 6.0, 1.0, 1.0, 1.0, 1.0]])
    >>> scores[:, channel_permutation(scores, mp.pattern("2:4"))].view(2, 4).gt(5).sum(1)
    tensor([2, 2])
    """
    if not isinstance(pattern, NM):
        raise PruneError(f"the order of the inputs matters to N:M patterns such as 2:4, not to {pattern}")
    pattern.check(*as_matrix(scores).shape)
    if not bool((scores >= 0).all() & scores.isfinite().all()):
        raise PruneError("the scores hold negative numbers, NaN or infinity: use sizes such as |W| * ||X_j||")
    if passes < 0:
        raise PruneError(f"passes {passes} is negative: 1 is the published one")
    S = _double(scores)
    order, best = snake_deal(S, pattern.m), -1.0
    for _ in range(passes):
        for place in range(pattern.m):
            order = assign_place(S, order, pattern, place)
        if best >= (best := retained(S[:, order], pattern)):
            break
    better = retained(S[:, order], pattern) > retained(S, pattern)
    return (order if better else torch.arange(S.shape[1])).to(scores.device)


def _double(scores: Tensor) -> Tensor:
    """The scores in float64; on the CPU if their device has no such numbers."""
    return scores.cpu().double() if scores.device.type == "mps" else scores.double()


def snake_deal(scores: Tensor, m: int) -> Tensor:
    """Stage 1: scores (d_out, d_in) -> order (d_in,); place p of each group comes from the p-th best band."""
    bands = scores.sum(0).argsort(descending=True, stable=True).view(m, -1)  # (m, groups), best first
    bands[1::2] = bands[1::2].flip(1)
    return bands.T.reshape(-1)


def assign_place(scores: Tensor, order: Tensor, pattern: NM, place: int) -> Tensor:
    """Stage 2 for one place: the columns that hold it in `order` handed out anew; what is retained never falls.

    scores (d_out, d_in) float64, order (d_in,) -> order (d_in,). Among the M - 1 others of a group let t be the
    N-th best of a row. A column x adds max(0, x - t) to what the group retains of that row, and
    max(0, x - t) = (|x - t| + x - t) / 2: the distances are one call, the rest does not depend on the pairing.
    """
    if pattern.n in (0, pattern.m):
        return order  # nothing or everything is retained in any order
    groups = order.view(-1, pattern.m).clone()  # (groups, m)
    taken = groups[:, place]  # (groups,)
    others = torch.cat([groups[:, :place], groups[:, place + 1 :]], dim=1)  # (groups, m - 1)
    t = scores[:, others].topk(pattern.n, dim=2).values[..., -1]  # (d_out, groups)
    gain = torch.cdist(t.T.contiguous(), scores[:, taken].T.contiguous(), p=1)  # (groups, columns)
    _, columns = linear_sum_assignment(gain.cpu().numpy(), maximize=True)  # the rows come back in order
    groups[:, place] = taken[torch.from_numpy(columns).to(taken.device)]
    return groups.view(-1)


@checked()
@exact_arithmetic()
def permuted(
    method: Callable[..., Result], W: Tensor, stats: Statistics | None, pattern: Pattern, order: Tensor, **options: Any
) -> Result:
    """Run a method on the inputs in another order and put its result back into the order of W.

    The mask has the pattern only in that order: result.keep[:, order] is N:M, result.keep is not. A given `keep`
    is in the order of W, too. Raises `PruneError` if `order` is not an order of the d_in inputs.
    """
    _check_order(order, W.shape[1])
    if options.get("keep") is not None:
        options["keep"] = options["keep"][:, order]
    result = method(W[:, order], stats and stats.permuted(order), pattern, **options)
    return Result(result.weight[:, back := order.argsort()], result.keep[:, back], result.note)


@checked()
@exact_arithmetic()
def fold_permutation(producers: Sequence[Tensor], readers: Sequence[Tensor], order: Tensor) -> None:
    """Put the d channels between two layers into another order, in place, so that the model computes the same.

    producers: everything that makes the channels one by one: weights (d, ...) and biases (d,). readers: every
    matrix (d_out, d) that reads them. What stands between must act on each channel alone, as an activation or a
    product of two producers does. Afterwards the readers' columns are W[:, order], and an N:M method that prunes
    them stores real N:M groups. Raises `PruneError` if a size does not fit; nothing is changed then.
    """
    _check_order(order, d := len(order))
    for kind, size, tensors in (("produces", 0, producers), ("reads", -1, readers)):
        for tensor in tensors:
            if (found := tensor.shape[size] if tensor.ndim else 0) != d:
                raise PruneError(f"a tensor {tuple(tensor.shape)} {kind} {found} channels, not {d}")
    for tensor in producers:
        tensor.copy_(tensor[order])
    for tensor in readers:
        tensor.copy_(tensor[:, order])
    torch.clear_autocast_cache()  # a caller's autocast may remember the old order


def _check_order(order: Tensor, d: int) -> None:
    if order.dtype not in (torch.int64, torch.int32) or order.sort().values.tolist() != list(range(d)):
        raise PruneError(f"the order does not hold each of the {d} channels once")
