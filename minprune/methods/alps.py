"""ALPS: let the weights and the mask settle together, then refine the weights on it. Chapter 07.

Meng et al. 2024. In the scaled problem of ADMM (chapter 07: V = W D, G with ones on its diagonal), minimise
tr((V - B) G (V - B)^T) over B = D, where D has as many nonzeros as the pattern allows and Y is the multiplier:

    B = V + (rho (D - V) - Y) (G + rho I)^-1
    D = the pattern's largest of B + Y / rho
    Y = Y + rho (B - D)

A small rho lets the mask wander, a large one makes B and D agree. It grows every third round, by more the more the mask
still changes, until the mask stands still. Then conjugate gradients, for all rows at once, come close to exact least
squares on the final mask. (G has ones on its diagonal, so it is its own diagonally preconditioned form.)

The published code decomposes G into eigenvectors, in float64, so that every rho has its inverse. A Cholesky
factorisation for each new rho, in float32, gives the same errors and takes no longer.
"""

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError
from minprune.methods.admm import unit_diagonal
from minprune.methods.damping import checked_gram, damped_cholesky
from minprune.methods.result import Result
from minprune.patterns import Pattern
from minprune.statistics import Statistics

_EVERY = 3  # rounds between two looks at the mask
_PATIENCE = 30  # rounds after which a mask that changes by less than _STILL of the kept weights is good enough
_STILL = 3e-4
_LEAST_RHO = 1e-4  # a mask that does not even move now does not depend on rho


@checked()
@exact_arithmetic()
def alps(
    W: Tensor,
    stats: Statistics,
    pattern: Pattern,
    *,
    steps: int = 300,
    rho: float = 0.1,
    refine: int = 10,
    damp: float = 0.01,
    keep: Tensor | None = None,
) -> Result:
    """Prune W and update what is kept; plain "50%" chooses over the whole layer.

    Parameters
    ----------
    W : Tensor (d_out, d_in), floating
    stats : Statistics, with a Gram matrix
    pattern : Pattern
    steps : int, default 300
        Rounds at most.
    rho : float, default 0.1
        The first penalty, relative to the scaled diagonal of 1.
    refine : int, default 10
        Conjugate-gradient steps on the final mask.
    damp : float, default 0.01
        Fraction of mean(diag(gram)) added to the diagonal.
    keep : Tensor (d_out, d_in), bool, optional
        A given mask: only the refinement is done.

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
    >>> mp.METHODS["alps"](torch.tensor([[1.0, 2.0]]), stats, "50%").weight.round(decimals=1)
    tensor([[0., 3.]])
    """
    gram = checked_gram(W, stats, damp, keep)
    if steps < 1 or refine < 0 or not 0 < rho < float("inf"):
        raise PruneError(f"steps {steps}, refine {refine} or rho {rho:g} is out of range: 300, 10 and 0.1 are usual")
    V, G, scale = unit_diagonal(W, gram, damp)
    B, mask = (V, keep.clone()) if keep is not None else _settle(V, G, pattern.with_default("layer"), steps, rho)
    weight = conjugate_gradients(V, G, B, mask, refine) / scale
    return Result(weight.to(W.dtype).masked_fill_(~mask, 0), mask)


def _settle(V: Tensor, G: Tensor, pattern: Pattern, steps: int, rho: float) -> tuple[Tensor, Tensor]:
    """The rounds: V (d_out, d_in), G (d_in, d_in) -> B and its mask, both (d_out, d_in)."""
    first = pattern.keep(V.square())
    kept, mean = int(first.sum()), float(G.diagonal().mean())
    D, Y, mask, raised = V * first, torch.zeros_like(V), first, False
    inverse, rho = _inverse(G, rho, mean)
    for step in range(1, steps + 1):
        B = V.addmm((D - V).mul_(rho).sub_(Y), inverse)
        D = B.add(Y, alpha=1 / rho)
        now = pattern.keep(D.square())
        D.mul_(now)
        Y.add_(B, alpha=rho).sub_(D, alpha=rho)
        if step % _EVERY:
            continue
        changed = int((now ^ mask).sum()) / max(kept, 1)
        mask = now
        if (changed == 0 and raised) or (changed < _STILL and step >= _PATIENCE) or rho < _LEAST_RHO:
            break
        if changed > 0.005 or (changed and raised):
            rho *= 1.3 if changed > 0.1 else 1.2 if changed > 0.005 else 1.1
            raised = True
        else:  # too stiff to move from the start: begin again, looser
            rho, D, Y = rho / 5, V * first, torch.zeros_like(V)
        inverse = V.new_empty(0)  # makes room for the next one
        inverse, rho = _inverse(G, rho, mean)
    return B, pattern.keep(B.square())


def _inverse(G: Tensor, rho: float, mean: float) -> tuple[Tensor, float]:
    """(G + rho I)^-1 (d_in, d_in), and rho, larger if it took more to factorise. mean: of G's diagonal, nearly 1."""
    L, share, _ = damped_cholesky(G, rho / mean)
    return torch.cholesky_inverse(L), share * mean


def conjugate_gradients(V: Tensor, G: Tensor, start: Tensor, keep: Tensor, steps: int) -> Tensor:
    """Towards the A, zero where not kept, with the smallest tr((V - A) G (V - A)^T): each step lowers every row's.

    V, start, keep (d_out, d_in), G (d_in, d_in) -> A (d_out, d_in). Exact after as many steps as a row keeps weights,
    but for rounding.
    """
    A = start * keep
    residual = ((V - A) @ G).mul_(keep)  # minus half the gradient on what is kept
    direction = residual
    size = residual.square().sum(1, keepdim=True)  # (d_out, 1)
    solved = len(G) * torch.finfo(V.dtype).eps ** 2 * size  # below this a residual is rounding, and so is its direction
    for _ in range(steps):
        G_direction = (direction @ G).mul_(keep)
        curvature = (direction * G_direction).sum(1, keepdim=True)
        pace = torch.where((size > solved) & (curvature > 0), size / curvature, 0)  # 0: the row stays as it is
        A = A + pace * direction
        residual = residual - pace * G_direction
        before, size = size, residual.square().sum(1, keepdim=True)
        direction = residual + torch.where(pace > 0, size / before, 0) * direction
    return A
