"""What the methods with a Gram matrix share: checked inputs, a Cholesky factor that exists, and its inverse."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from minprune.arithmetic import is_finite
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
    check_damp(damp)
    gram = stats.gram.to(W.device, torch.promote_types(W.dtype, torch.float32))
    mean = float(gram.diagonal().mean())
    if not mean > 0:  # also refuses NaN
        raise PruneError(f"the mean of diag(gram) is {mean:g}: these statistics saw no input, only zeros, or NaN")
    return gram


def check_damp(damp: float) -> None:
    """Raise `PruneError` unless this is a finite number from 0 up."""
    if not 0 <= damp < float("inf"):
        raise PruneError(f"damping {damp:g} is not a number from 0 up: 0.01 is the published one")


def check_finite(W: Tensor, what: str = "the weights contain") -> None:
    """Raise `PruneError` if W holds NaN or infinity."""
    if not is_finite(W):
        raise PruneError(f"{what} NaN or infinity")


def damped_cholesky(gram: Tensor, damp: float, unit: float | Tensor | None = None) -> tuple[Tensor, float, str]:
    """The lower Cholesky factor of H = gram + damp * unit * I = L L^T, with the damping that it took.

    gram (d_in, d_in), symmetric -> L (d_in, d_in), the damping, and a note if it had to be raised above `damp`, tenfold
    at a time, because there was no factor. unit: mean(diag(gram)) unless given. Raises `PruneError` if there is no
    factor at any damping. A copy of a large matrix takes room, so the damping is added to `gram` itself and taken off.
    """
    unit, note, raised = gram.diagonal().mean() if unit is None else unit, "", damp
    while True:
        with damped(gram, raised * unit):
            L, failed = torch.linalg.cholesky_ex(gram)
        if not failed:
            return L, raised, note
        raised, note = more_damping(damp, raised)


@contextmanager
def damped(gram: Tensor, amount: float | Tensor) -> Iterator[None]:
    """While open, `amount` is added to the diagonal of `gram`; afterwards it is as it was, to the last bit."""
    before = gram.diagonal().clone()
    gram.diagonal().add_(amount)
    try:
        yield
    finally:
        gram.diagonal().copy_(before)


def more_damping(first: float, damp: float) -> tuple[float, str]:
    """The damping to try after `damp`, and the note that it is not the first. `PruneError` after more than the mean."""
    if not damp <= 1:  # NaN, too, which never rises
        raise PruneError(f"the Gram matrix has no Cholesky factor even with damping {damp:g}: look for infinities")
    raised = max(10 * damp, 1e-6)
    return raised, f"damping raised from {first:g} to {raised:g}"


def check_hours(method: str, seconds: float, hours: float) -> None:
    """Raise `PruneError` if a layer would take longer than that, which nobody should find out by waiting."""
    if not hours > 0:
        raise PruneError(f"hours {hours:g} is not positive: it is how long a layer may take, such as 1")
    if seconds > 3600 * hours:
        raise PruneError(
            f"{method} would take about {seconds / 3600:.2g} hours for this layer: prune it with admm or sparsegpt, "
            f"leave it out, or allow for it with hours={seconds / 1800:.2g}"
        )


def triangular_inverse(L: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix, (n, n) -> (n, n), by halves, so that matrix products do the work:

    [[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]
    """
    inverse = L.clone(memory_format=torch.contiguous_format)
    invert_triangular_(inverse)
    return inverse


def invert_triangular_(L: Tensor) -> None:
    """`triangular_inverse` in the place of L itself."""
    n = len(L)
    if n <= 256:
        L.copy_(torch.linalg.solve_triangular(L, torch.eye(n, dtype=L.dtype, device=L.device), upper=False))
        return
    half = n // 2
    A, B, C = L[:half, :half], L[half:, :half], L[half:, half:]
    invert_triangular_(A)
    invert_triangular_(C)
    torch.matmul(-C, B @ A, out=B)
