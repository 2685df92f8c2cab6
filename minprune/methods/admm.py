"""ADMM: choose the mask gradually while the weights are being solved for. Chapter 07.

Boza 2024. Minimise tr((V - A) G (V - A)^T) over A that equal a sparse Z. Inputs are scaled first so that the diagonal
of G is 1 (V = W D, G = D^-1 H D^-1, D^2 = diag(H), H = gram + damping); then |V| is Wanda's score. Each round

    A = V + rho (Z - U - V) (G + rho I)^-1      the best weights that stay near Z - U
    Z = mask * (A + U)                          the nearest sparse ones
    U = U + A - Z                               what the two still disagree on

so one factorisation serves all rows and all rounds, whatever their masks. With B = A + U, U = B - Z and only B need be
kept. While the mask is being chosen, round k prunes the smallest share s (1 - (1 - k / gradual)^3) of |B|; on a fixed
mask the rounds converge to exact least squares.

Unlike the published code, damping comes before the scaling, so that all methods here solve the same problem, and the
cubic schedule is really used.
"""

from dataclasses import replace

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError
from minprune.methods.damping import checked_gram, damped_cholesky
from minprune.methods.result import Result
from minprune.patterns import NM, Pattern, keep_largest
from minprune.statistics import Statistics


@checked()
@exact_arithmetic()
def admm(
    W: Tensor,
    stats: Statistics,
    pattern: Pattern,
    *,
    steps: int = 20,
    gradual: int = 15,
    rho: float = 1.0,
    damp: float = 0.01,
    keep: Tensor | None = None,
) -> Result:
    """Prune W and update what is kept; plain "50%" chooses over the whole layer.

    Parameters
    ----------
    W : Tensor (d_out, d_in), floating
    stats : Statistics, with a Gram matrix
    pattern : Pattern
    steps : int, default 20
        Rounds.
    gradual : int, default 15
        Rounds during which the sparsity rises, at most `steps`. The mask stays fixed after them.
    rho : float, default 1.0
        How strongly each round holds on to the one before, relative to the scaled diagonal of 1.
    damp : float, default 0.01
        Fraction of mean(diag(gram)) added to the diagonal.
    keep : Tensor (d_out, d_in), bool, optional
        A given mask: only the weights are solved for.

    Returns
    -------
    Result

    Raises
    ------
    PruneError
        If the pattern does not fit the shape, the statistics cannot be used, or an option is out of range.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> stats = mp.Statistics(2).update(torch.ones(3, 2))
    >>> mp.METHODS["admm"](torch.tensor([[1.0, 2.0]]), stats, "50%").weight.round(decimals=1)
    tensor([[0., 3.]])
    """
    gram = checked_gram(W, stats, damp, keep)
    if not (steps >= 1 and gradual >= 1 and 0 < rho < float("inf")):
        raise PruneError(f"steps {steps}, gradual {gradual} and rho {rho:g} must be positive: 20, 15 and 1 are usual")
    V, G, scale = unit_diagonal(W, gram, damp)
    L, taken, note = damped_cholesky(G, rho, unit=1)
    del G
    R = torch.cholesky_inverse(L).mul_(taken)  # (d_in, d_in): rho (G + rho I)^-1
    del L
    gradual = min(gradual, steps)
    pattern = pattern.with_default("layer")
    mask = torch.ones_like(W, dtype=torch.bool) if keep is None else keep.clone()
    B = V.clone()  # (d_out, d_in)
    for step in range(1, steps + 1):
        if keep is None and step <= gradual:
            mask = part_of(pattern, B.square(), 1 - (1 - step / gradual) ** 3)
        Z = B * mask
        B.sub_(Z).add_(V)
        B.addmm_(Z.sub_(B), R)
    weight = (B / scale).to(W.dtype).masked_fill_(~mask, 0)
    return Result(weight, mask, note.replace("damping", "rho"))


def unit_diagonal(W: Tensor, gram: Tensor, damp: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scale the inputs so that the damped Gram matrix has ones on its diagonal.

    H = gram + damp * mean(diag(gram)) I -> V = W D (d_out, d_in), G = D^-1 H D^-1 (d_in, d_in) and the diagonal of D,
    sqrt(diag(H)) (d_in,). V G V^T = W H W^T. An input that is always 0 is not damped and gets a scale of 1e-6, so that
    its weights, which cost nothing, go first.
    """
    live = gram.diagonal() > 0
    diagonal = (gram.diagonal() + damp * gram.diagonal().mean()) * live
    least = 1e-12 * diagonal.mean()
    scale = diagonal.clamp_min(least).sqrt()
    G = gram / scale / scale[:, None]
    G.diagonal().copy_(live)  # exactly 1, damping included
    return W * scale, G, scale


def part_of(pattern: Pattern, scores: Tensor, share: float) -> Tensor:
    """A mask that is on its way to `pattern`: only `share` of its zeros are there, share 1 being the pattern itself.

    scores (d_out, d_in) -> keep (d_out, d_in), bool. For N:M, the n largest of each group are safe, and the lowest
    scores among the others, anywhere in the layer, go first.
    """
    if share >= 1:
        return pattern.keep(scores)
    if isinstance(pattern, NM):
        safe = pattern.keep(scores)
        rest = scores.masked_fill(safe, float("inf")).view(1, -1)
        return keep_largest(rest, round(share * int((~safe).sum()))).view(scores.shape)
    return replace(pattern, sparsity=share * pattern.sparsity).keep(scores)
