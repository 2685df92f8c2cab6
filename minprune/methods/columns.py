"""Optimal Brain Surgeon for whole inputs: which columns cost least, and how the others make up for them. Chapter 13.

Without its inputs S a matrix W loses least, of the loss tr((W - W') H (W - W')^T) with H = gram + damping, if

    W'  =  W - W_S ([H^-1]_SS)^-1 [H^-1]_S:        and that costs    tr(W_S ([H^-1]_SS)^-1 W_S^T).

With a diagonal H a single column costs ||W_:j||^2 H_jj, Wanda's squared scores added up; with H = I its magnitude. The
surgeon takes the cheapest unit of columns, updates W and H^-1, and again: all rows lose the same inputs, so one inverse
serves them all. At the end the kept columns are solved for once more, from the first W and in float64: in exact
arithmetic that changes nothing, and in float32 it takes out what the steps have gathered.

Left out: looking back. A unit that is gone stays gone, and the best set of n units may not hold the best one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minprune.methods.damping import damped_cholesky, more_damping
from minprune.patterns import Lines


def cheapest_columns(W: Tensor, gram: Tensor, pattern: Lines, damp: float) -> tuple[Tensor, Tensor, str]:
    """Remove whole columns of W (d_out, d_in), cheapest first, until `pattern` is reached; gram (d_in, d_in).

    Returns the weights in the dtype of gram, which columns are kept, (d_in,) bool, and a note on the damping if it had
    to be raised. Of equal costs the lower index goes first; an input that is always zero costs nothing.
    """

    def remove(taken: float) -> tuple[Tensor, Tensor]:
        keep = _cheapest(W, gram, pattern, taken)
        return refit(W, gram, keep, taken), keep

    (weight, keep), note = _damped_enough(remove, gram, damp)
    return weight, keep, note


def refitted(W: Tensor, gram: Tensor, keep: Tensor, damp: float) -> tuple[Tensor, str]:
    """`refit`, and a note if it took more damping."""
    return _damped_enough(lambda taken: refit(W, gram, keep, taken), gram, damp)


def _damped_enough(solve: Callable[[float], Any], gram: Tensor, damp: float) -> tuple[Any, str]:
    """What `solve` gives with the damping with which there are all factors, and a note if that is more than `damp`."""
    _, taken, note = damped_cholesky(gram, damp)
    while True:
        try:
            return solve(taken), note
        except torch.linalg.LinAlgError:  # of a part: rounding made it singular
            taken, note = more_damping(damp, taken)


def _cheapest(W: Tensor, gram: Tensor, pattern: Lines, damp: float) -> Tensor:
    """Which columns the surgeon keeps, (d_in,) bool."""
    d_in, size = W.shape[1], pattern.width
    zeros, of_a_part = pattern.zeros(d_in), d_in // size // pattern.parts
    L, _, _ = damped_cholesky(gram, damp)
    inverse, w = torch.cholesky_inverse(L), W.to(gram.dtype, copy=True)
    dead = (gram.diagonal() == 0).view(-1, size).all(1)  # (units,)
    open_ = torch.full((d_in // size,), zeros > 0, device=W.device)  # which units may still go
    left = [zeros] * pattern.parts
    keep = torch.ones(d_in, dtype=torch.bool, device=W.device)
    for _ in range(zeros * pattern.parts):
        costs = unit_costs(w, inverse, size).masked_fill(dead, 0).masked_fill(~open_, float("inf"))
        unit = int(costs.argmin())
        S = slice(unit * size, (unit + 1) * size)
        factor = torch.linalg.solve(inverse[S, S], inverse[S])  # (size, d_in): ([H^-1]_SS)^-1 [H^-1]_S:
        w -= w[:, S] @ factor
        inverse -= inverse[:, S] @ factor
        inverse[S, S] = torch.eye(size, dtype=w.dtype, device=w.device)  # zero but for rounding; now it has a solution
        keep[S], open_[unit] = False, False
        part = unit // of_a_part
        left[part] -= 1
        if not left[part]:
            open_[part * of_a_part : (part + 1) * of_a_part] = False
    return keep


def unit_costs(w: Tensor, inverse: Tensor, size: int) -> Tensor:
    """tr(W_S ([H^-1]_SS)^-1 W_S^T) of each unit S of `size` neighbours: w (d_out, d_in) -> (units,)."""
    if size == 1:
        return w.square().sum(0) / inverse.diagonal()
    units = w.shape[1] // size
    squares = inverse.view(units, size, units, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (units, size, size)
    columns = w.view(len(w), units, size).permute(1, 2, 0)  # (units, size, d_out)
    return (torch.linalg.solve(squares, columns) * columns).sum((1, 2))


def refit(W: Tensor, gram: Tensor, keep: Tensor, damp: float) -> Tensor:
    """The best W' whose columns outside `keep` (d_in,) are zero: W'_K = W_K + W_S H_SK (H_KK)^-1, in float64.

    W (d_out, d_in), gram (d_in, d_in) -> W' in the dtype of gram. damp: fraction of mean(diag(gram)).
    """
    H = gram.double()
    H.diagonal().add_(damp * H.diagonal().mean())
    best = torch.zeros_like(W, dtype=torch.float64)
    L = torch.linalg.cholesky(H[keep][:, keep])  # a principal part of what has a factor has one
    lost = W[:, ~keep].double() @ H[~keep][:, keep]  # (d_out, kept)
    best[:, keep] = W[:, keep].double() + torch.cholesky_solve(lost.T, L).T
    return best.to(gram.dtype)
