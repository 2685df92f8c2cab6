"""What the methods with a Gram matrix share: checked inputs, a Cholesky factor that exists, and its inverse."""

import torch
from torch import Tensor

from minprune.errors import PruneError
from minprune.statistics import Statistics


def checked_gram(W: Tensor, stats: Statistics, damp: float, keep: Tensor | None = None) -> Tensor:
    """The Gram matrix (d_in, d_in) on the device of W, float32 or wider: the statistics' own, never to be changed.

    Raises `PruneError` if W holds NaN or infinity, `damp` is not a finite number from 0 up, or the statistics have
    no Gram matrix, saw no input or only zeros, or hold NaN; or a given mask is not (d_out, d_in) of bool.
    """
    check_finite(W)
    if keep is not None and (keep.shape != W.shape or keep.dtype != torch.bool):
        raise PruneError(
            f"the mask is {tuple(keep.shape)} of {keep.dtype}: it must be {tuple(W.shape)} of torch.bool, True = kept"
        )
    if not 0 <= damp < float("inf"):
        raise PruneError(f"damping {damp:g} is not a number from 0 up: 0.01 is the published one")
    gram = stats.gram.to(W.device, torch.promote_types(W.dtype, torch.float32))
    mean = float(gram.diagonal().mean())
    if not mean > 0:  # also refuses NaN
        raise PruneError(f"the mean of diag(gram) is {mean:g}: these statistics saw no input, only zeros, or NaN")
    return gram


def check_finite(W: Tensor) -> None:
    """Raise `PruneError` if W holds NaN or infinity."""
    if not bool(torch.stack(W.aminmax()).isfinite().all()):  # the extremes of a matrix with NaN are NaN
        raise PruneError("the weights contain NaN or infinity")


def damped_cholesky(gram: Tensor, damp: float) -> tuple[Tensor, float, str]:
    """The lower Cholesky factor of H = gram + damp * mean(diag(gram)) * I = L L^T, with the damping that it took.

    gram (d_in, d_in) -> L (d_in, d_in), the damping, and a note if it had to be raised above `damp`, tenfold at a
    time, because there was no factor. Raises `PruneError` if there is none at any damping.
    """
    mean, note, raised = gram.diagonal().mean(), "", damp
    while True:
        H = gram.clone()
        H.diagonal().add_(raised * mean)
        L, failed = torch.linalg.cholesky_ex(H)
        if not failed:
            return L, raised, note
        if raised > 1:
            raise PruneError(
                f"the Gram matrix has no Cholesky factor even with damping {raised:g}: look for infinities"
            )
        raised = max(10 * raised, 1e-6)
        note = f"damping raised from {damp:g} to {raised:g}"


def triangular_inverse(L: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix, (n, n) -> (n, n), by halves, so that matrix products do the work:

    [[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]
    """
    n = len(L)
    if n <= 256:
        return torch.linalg.solve_triangular(L, torch.eye(n, dtype=L.dtype, device=L.device), upper=False)
    half = n // 2
    A, C = triangular_inverse(L[:half, :half]), triangular_inverse(L[half:, half:])
    inverse = torch.zeros_like(L)
    inverse[:half, :half], inverse[half:, half:] = A, C
    inverse[half:, :half] = -C @ (L[half:, :half] @ A)
    return inverse
