"""Exact least squares: the best weights that a given mask allows. Chapter 07.

For one row w, with H = gram + damping, S the weights it keeps and P those it loses, minimise

    (w - w') H (w - w')^T     over all w' that are zero on P.

The gradient vanishes on S. That is one linear system, and it can be written for either side, whichever is smaller:

    kept:    w'_S = w_S + H_SS^-1 H_SP w_P             by setting the gradient on S to zero
    pruned:  w'   = w   - w_P ([H^-1]_PP)^-1 [H^-1]_P:     optimal brain surgeon, all of P at once

Every row has its own S, so every row has its own matrix to factorise: d_out * min(k, p)^3 / 6 multiplications and as
many additions. No update of the weights on this mask can have a lower error; what is left is the mask's.
"""

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import exact_arithmetic
from minprune.methods.damping import check_hours, checked_gram, damped, damped_cholesky, more_damping
from minprune.methods.result import Result
from minprune.methods.wanda import wanda
from minprune.patterns import Pattern
from minprune.statistics import Statistics

_PACE = 3e10  # multiplications a second, with as many additions, of a few processor cores: for an estimate
_NUMBERS = 2**24  # of all the matrices that are in memory together: 64 MB of float32


@checked()
@exact_arithmetic()
def exact(
    W: Tensor,
    stats: Statistics,
    pattern: Pattern,
    *,
    damp: float = 0.01,
    hours: float = 1.0,
    keep: Tensor | None = None,
) -> Result:
    """Keep the mask and find the best weights for it; without one, on Wanda's mask (plain "50%" per row).

    Parameters
    ----------
    W : Tensor (d_out, d_in), floating
    stats : Statistics, with a Gram matrix
    pattern : Pattern
    damp : float, default 0.01
        Fraction of mean(diag(gram)) added to the diagonal, raised tenfold (and noted) until it can be factorised.
    hours : float, default 1.0
        A layer that is estimated to take longer is refused. The memory is that of about five Gram matrices.
    keep : Tensor (d_out, d_in), bool, optional
        A given mask instead of the pattern.

    Returns
    -------
    Result

    Raises
    ------
    PruneError
        If the pattern does not fit the shape, the statistics cannot be used, an option is out of range, or the layer
        would take longer than `hours`.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> stats = mp.Statistics(2).update(torch.ones(3, 2))
    >>> mp.METHODS["exact"](torch.tensor([[1.0, 2.0]]), stats, "50%", damp=1e-4).weight.round(decimals=2)
    tensor([[0., 3.]])
    """
    gram = checked_gram(W, stats, damp, keep)
    keep = wanda(W, stats, pattern).keep if keep is None else keep.clone()
    kept = keep.sum(1).double()
    operations = float(kept.minimum(keep.shape[1] - kept).pow(3).sum() / 3)
    check_hours("exact", operations / (_PACE if W.device.type == "cpu" else 100 * _PACE), hours)
    weight, note = _best_weights(W, gram, keep, damp)
    return Result(weight, keep, note)


@checked()
@exact_arithmetic()
def least_squares(W: Tensor, stats: Statistics, keep: Tensor, damp: float = 0.01) -> Tensor:
    """The weights W', zero where not kept, with the smallest tr((W - W') H (W - W')^T), H = gram + damping.

    W (d_out, d_in), any floating dtype; keep (d_out, d_in) bool, rows may keep different numbers -> W' (d_out, d_in)
    in the dtype of W, solved in float32 or wider. damp: fraction of mean(diag(gram)), raised if H has no Cholesky
    factor. Raises `ValueError` if the mask does not have the shape of W or the statistics cannot be used.
    """
    return _best_weights(W, checked_gram(W, stats, damp, keep), keep, damp)[0]


def _best_weights(W: Tensor, gram: Tensor, keep: Tensor, damp: float) -> tuple[Tensor, str]:
    """The weights, and a note if more damping was needed, for the whole matrix or for the part of one row."""
    first, note = damp, ""
    while True:
        try:
            best, damp = _solve(W.to(gram.dtype), gram, keep, damp)
        except torch.linalg.LinAlgError:  # of a part: rounding made it singular
            damp, note = more_damping(first, damp)
            continue
        if damp > first:
            note = f"damping raised from {first:g} to {damp:g}"
        return best.to(W.dtype), note


def _solve(w: Tensor, gram: Tensor, keep: Tensor, damp: float) -> tuple[Tensor, float]:
    """The best weights with that damping, or more if the whole Gram matrix needs it, and the damping that it took."""
    best = w.masked_fill(~keep, 0)
    few_kept = keep.sum(1) <= keep.shape[1] // 2  # (d_out,)
    L, damp, _ = damped_cholesky(gram, damp)
    if not bool(few_kept.all()):
        H_inv = torch.cholesky_inverse(L)
        del L
        pruned = ~keep[~few_kept]
        multipliers = solve_on_support(H_inv, pruned, w[~few_kept])  # (rows, d_in), zero outside P
        best[~few_kept] = (w[~few_kept] - multipliers @ H_inv).masked_fill_(pruned, 0)
        del H_inv
    if bool(few_kept.any()):
        with damped(gram, damp * gram.diagonal().mean()):  # H
            lost = w[few_kept] - best[few_kept]  # (rows, d_in): w on P
            best[few_kept] += solve_on_support(gram, keep[few_kept], lost @ gram)
    return best, damp


def solve_on_support(A: Tensor, support: Tensor, right: Tensor) -> Tensor:
    """For every row solve A_SS x_S = right_S, with x zero outside S: A (d, d) positive definite; support (rows, d)
    bool; right (rows, d) -> x (rows, d).

    Rows of similar size are solved together, the smaller ones padded with ones on the diagonal. Chunks bound the
    memory: at most 2^24 numbers at a time, or one matrix.
    """
    d = len(A)
    sizes, order = support.sum(1).sort(stable=True)
    padded = torch.zeros(d + 1, d + 1, dtype=A.dtype, device=A.device)  # index d stands for "no weight"
    padded[:d, :d] = A
    right = torch.cat([right, right.new_zeros(len(right), 1)], dim=1)
    x = torch.zeros_like(right)  # (rows, d + 1)
    places = torch.arange(d, device=A.device)
    stop = len(order)
    while stop and (size := int(sizes[stop - 1])):  # from the largest down; rows of size 0 have nothing to solve
        rows = order[max(0, stop - max(1, _NUMBERS // size**2)) : stop]
        S = torch.full((len(rows), size), d, device=A.device)  # (chunk, size), padded with d
        S[places[:size] < support[rows].sum(1, keepdim=True)] = support[rows].nonzero()[:, 1]
        matrices = torch.empty(len(rows), size, size, dtype=A.dtype, device=A.device)
        for matrix, s in zip(matrices, S, strict=True):  # copying whole rows, then columns, is three times faster
            torch.index_select(padded.index_select(0, s), 1, s, out=matrix)  # than indexing by both at once
        matrices.diagonal(dim1=1, dim2=2).add_(S.eq(d))
        L = torch.linalg.cholesky(matrices)
        solved = torch.cholesky_solve(right[rows].gather(1, S).unsqueeze(2), L).squeeze(2)  # (chunk, size)
        x[rows] = x[rows].scatter_(1, S, solved)  # the padding's solution is 0, as its right side
        stop -= len(rows)
    return x[:, :d]
