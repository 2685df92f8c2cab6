"""Optimal Brain Surgeon: which weight costs least, and how the others make up for it. Chapter 03; obd.py beside it.

Of one output row w, with H = gram + damping, the loss is (w - w') H (w - w')^T. Removing weight q alone

    and leaving the others as they are     costs  H_qq w_q^2 (/ 2: LeCun et al. 1990),
    and moving the others as is best       costs  w_q^2 / [H^-1]_qq   with   w  <-  w - w_q / [H^-1]_qq * [H^-1]_q:
                                                                                        (Hassibi and Stork 1993).

OBS repeats this until enough weights are pruned (exact and greedy, row by row: Frantar and Alistarh 2022). After each
removal the inverse for the remaining weights follows by one elimination step,

    H^-1  <-  H^-1 - u u^T    with    u = [H^-1]_:q / sqrt([H^-1]_qq),

which would touch d_in^2 numbers of every row. But the next step reads only one column and the diagonal of it, so
here all rows share the first inverse, each remembers its own u's, and a column is brought up to date when its weight
is chosen: after t removals that takes t * d_in numbers. The u's are a Cholesky factor whose pivots each row picks.
"""

import math

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError
from minprune.methods.columns import cheapest_columns
from minprune.methods.damping import check_hours, checked_gram
from minprune.methods.result import Result
from minprune.methods.sparsegpt import inverse_factor
from minprune.patterns import NM, Lines, Pattern, Unstructured, keep_largest
from minprune.statistics import Statistics

_PACE, _CALLS = 8e9, 2e-4  # for an estimate: bytes a second that a few cores read, seconds for the calls of a step


@checked()
@exact_arithmetic()
def obs(
    W: Tensor,
    stats: Statistics,
    pattern: Pattern,
    *,
    damp: float = 0.01,
    memory: float | None = None,
    hours: float = 1.0,
    keep: Tensor | None = None,
) -> Result:
    """Prune W weight by weight, the cheapest of each row first. The others make up for each.

    Plain "50%" removes the same number from each row. "50%:layer" follows every row down to nothing and then takes the
    cheapest removals of all rows; a cheap one behind a costly one counts as costly. In N:M a weight may go while its
    group has more than N. A column block or a square block is chosen at the start by w^2 / [H^-1]_qq.

    Parameters
    ----------
    W : Tensor (d_out, d_in), floating
    stats : Statistics, with a Gram matrix
    pattern : Pattern
    damp : float, default 0.01
        Fraction of mean(diag(gram)) added to the diagonal, raised tenfold (and noted) until it can be factorised.
    memory : float or None, default None
        Bytes to work in, two rows' at least; None: 1e8 (more does not help a CPU), on a GPU a quarter of what is free.
    hours : float, default 1.0
        A layer that is estimated to take longer is refused.
    keep : Tensor (d_out, d_in), bool, optional
        A given mask instead. The result is the exact optimum on it: the order in which weights go makes no difference.

    Returns
    -------
    Result

    Raises
    ------
    PruneError
        If pattern or statistics do not fit, an option is out of range, or it would take longer than `hours`.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> stats = mp.Statistics(2).update(torch.ones(3, 2))
    >>> mp.METHODS["obs"](torch.tensor([[1.0, 2.0]]), stats, "50%", damp=1e-4).weight.round(decimals=2)
    tensor([[0., 3.]])
    """
    pattern = pattern.with_default("row")
    pattern.check(*W.shape)
    if memory is None:
        memory = max(1e8, torch.cuda.mem_get_info(W.device)[0] / 4) if W.device.type == "cuda" else 1e8
    if not memory > 0:
        raise PruneError(f"memory {memory:g} is not positive: it is the number of bytes to work in, such as 1e8")
    gram, d_in = checked_gram(W, stats, damp, keep), W.shape[1]  # (d_in, d_in)
    if keep is None and isinstance(pattern, Lines) and pattern.axis == "columns":
        weight, kept, note = cheapest_columns(W, gram, pattern, damp)
        return Result(weight.to(W.dtype), kept.expand(W.shape).clone(), note)
    U, note = inverse_factor(gram, damp)
    inverse = U.T @ U  # (d_in, d_in)
    pivots = inverse.diagonal().clone()  # (d_in,)
    pivots[gram.diagonal() == 0] = float("inf")  # an input that is always 0: its weights cost nothing, go first
    if keep is None and not isinstance(pattern, NM) and getattr(pattern, "group", None) not in ("row", "layer"):
        keep = pattern.keep(W.to(inverse.dtype).square() / pivots)

    def run(keep: Tensor | None, width: int, zeros: int) -> list[Tensor]:
        """`surgery` in batches of rows, each of which loses `zeros` of every `width` columns, or what `keep` says."""
        may_go = torch.ones_like(W, dtype=torch.bool) if keep is None else ~keep
        steps = d_in // width * zeros if keep is None else int(may_go.sum(1).max())
        size = max(steps, 1) * d_in * inverse.element_size()  # of a row's u's, half of which a step reads
        rows = max(1, min(len(W), memory / size))
        parts = min(math.ceil(len(W) / int(rows)), max(1, len(W) // 2))  # products of a single row round otherwise
        reading = len(W) * steps * size / 2 / (_PACE if W.device.type == "cpu" else 100 * _PACE)
        check_hours("obs", reading + parts * steps * _CALLS, hours)
        done = [
            surgery(w.to(inverse.dtype), inverse, pivots, allowed, width, zeros, steps)
            for w, allowed in zip(W.tensor_split(parts), may_go.tensor_split(parts), strict=True)
        ]
        return [torch.cat(part) for part in zip(*done, strict=True)]

    if keep is None and isinstance(pattern, Unstructured) and pattern.group == "layer":
        _, _, order, costs = run(None, d_in, d_in)
        later = keep_largest(costs.cummax(1).values.view(1, -1), round(pattern.sparsity * W.numel())).view(W.shape)
        keep = torch.empty_like(later).scatter_(1, order, later)  # a row loses its first so many, as costs only rise
    if keep is None and isinstance(pattern, NM):
        weight, kept, _, _ = run(None, pattern.m, pattern.m - pattern.n)
    else:
        weight, kept, _, _ = run(keep, d_in, round(pattern.sparsity * d_in) if keep is None else d_in)
    return Result(weight.to(W.dtype), kept, note)


def surgery(
    w: Tensor, inverse: Tensor, pivots: Tensor, may_go: Tensor, width: int, zeros: int, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Remove the cheapest weight of each row, let the others make up for it, and again, `steps` times.

    w (rows, d_in), inverse (d_in, d_in) = H^-1, pivots (d_in,) its diagonal (infinite: costs nothing and moves no
    other), may_go (rows, d_in) bool; at most `zeros` of every `width` neighbours go. Returns the weights, the keep
    mask, and for each step the column it removed and by how much that raised the loss, both (rows, steps): infinity
    where a row had nothing left to remove.
    """
    rows, d_in = w.shape
    each = torch.arange(rows, device=w.device)
    w, may_go, pivots = w.clone(), may_go.clone(), pivots.repeat(rows, 1)
    keep = torch.ones_like(may_go)
    left = torch.full((rows, d_in // width), zeros, device=w.device)  # how many more may go of each group
    order, costs = torch.empty(rows, steps, dtype=torch.long, device=w.device), w.new_empty(rows, steps)
    U = w.new_empty(rows, steps, d_in)
    for t in range(steps):
        lowest, q = (w.abs() / pivots.sqrt()).masked_fill_(~may_go, float("inf")).min(1)  # the root of the cost
        costs[:, t], order[:, t], going = lowest.square(), q, lowest < float("inf")
        column = inverse[q][:, None].baddbmm_(U[each, :t, q][:, None], U[:, :t], alpha=-1)[:, 0]  # (rows, d_in)
        root = pivots[each, q].sqrt().where(going, float("inf"))  # (rows,)
        u = U[:, t] = column / root[:, None]
        w -= (w[each, q] / root)[:, None] * u
        pivots -= u.square()
        keep[each, q] &= ~going
        may_go[each, q] = False
        if zeros < steps:  # else no group is full before the last step
            left[each, q // width] -= 1
            full = left[each, q // width] == 0
            may_go.view(rows, -1, width)[each, q // width] &= ~full[:, None]
    return w.masked_fill_(~keep, 0), keep, order, costs
