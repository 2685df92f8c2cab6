"""The first exercises of chapter 03: what each removal costs, and the inverse without an input."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import normal

# saliency(w, X, damp): what the removal of each weight costs, if the others make up for it


def _damped(X: Tensor, damp: float) -> Tensor:
    G = X.T @ X
    return G + damp * G.diagonal().mean() * torch.eye(len(G))


def _from(H: Tensor, w: Tensor) -> Tensor:
    return w.square() / torch.linalg.inv(H).diagonal()


def _saliency(w: Tensor, X: Tensor, damp: float) -> Tensor:
    return _from(_damped(X, damp), w)


def _inputs(d_in: int, seed: int, loudness: Sequence[float] = (1.0,)) -> Tensor:
    """(6 * d_in tokens, d_in): inputs with one cause in common and a mean that is not zero."""
    X = normal(6 * d_in, d_in, seed=seed) + normal(6 * d_in, 1, seed=seed + 1) + 0.5
    return X * torch.tensor(loudness).repeat(d_in // len(loudness))


saliency = Exercise(
    name="saliency",
    chapter=3,
    title="what the removal of each weight costs if the others make up for it, with damping",
    reference=_saliency,
    difficulty=2,
    rtol=1e-3,
    atol=1e-5,
    wrong=(
        Wrong(
            "divided by diag(H)",
            lambda w, X, damp: w.square() / _damped(X, damp).diagonal(),
            "The squares were divided by the diagonal of H itself. That makes the weights of loud inputs cheap. What "
            "stands under the fraction bar of the cost?",
        ),
        Wrong(
            "repair left out",
            lambda w, X, damp: w.square() * _damped(X, damp).diagonal(),
            "This is the cost if the other weights stay as they are. One over the diagonal of H is the diagonal of "
            "the inverse only if inputs are uncorrelated.",
        ),
        Wrong(
            "multiplied by the inverse",
            lambda w, X, damp: w.square() * torch.linalg.inv(_damped(X, damp)).diagonal(),
            "The squares were multiplied with the diagonal of the inverse, not divided by it: a loud input has a "
            "small one.",
        ),
        Wrong(
            "magnitude",
            lambda w, X, damp: w.square(),
            "These are the squares of the weights: the inputs have no say in them.",
        ),
        Wrong(
            "no damping",
            lambda w, X, damp: _saliency(w, X, 0.0),
            "It is right without damping. What is added to the diagonal of X^T X?",
        ),
        Wrong(
            "absolute damping",
            lambda w, X, damp: _from(X.T @ X + damp * torch.eye(len(w)), w),
            "damp itself was added to the diagonal. It is a *fraction* of something, so that it means the same for "
            "loud and for quiet layers.",
        ),
        Wrong(
            "fraction of the trace",
            lambda w, X, damp: _saliency(w, X, damp * len(w)),
            "The damping is a fraction of the mean of the diagonal, not of its sum.",
        ),
        Wrong(
            "each input's own damping",
            lambda w, X, damp: _from(X.T @ X + damp * torch.diag((X.T @ X).diagonal()), w),
            "Every diagonal entry grew by a fraction of itself. All should grow by the same amount.",
        ),
        Wrong(
            "mean over tokens",
            lambda w, X, damp: _saliency(w, X, damp) / len(X),
            "The cost is per token. In this book the Gram matrix is a sum over tokens.",
        ),
        Wrong(
            "root of the cost",
            lambda w, X, damp: _saliency(w, X, damp).sqrt(),
            "This is the square root of the cost. It ranks the weights alike, but it is no loss.",
        ),
        Wrong(
            "weight not squared",
            lambda w, X, damp: w.abs() / torch.linalg.inv(_damped(X, damp)).diagonal(),
            "The cost of a weight twice as large is four times as high.",
        ),
        Wrong(
            "half the cost",
            lambda w, X, damp: _saliency(w, X, damp) / 2,
            "It is half of the squared error. Papers that have a 2 here write 2 X^T X for H: the two cancel.",
        ),
        Wrong(
            "inputs centred",
            lambda w, X, damp: _saliency(w, X - X.mean(0), damp),
            "The mean of the inputs was taken away. A layer's output has it, so the loss does, too.",
        ),
    ),
    cases=lambda: [
        Case("four correlated inputs", (normal(4, seed=300), _inputs(4, 301), 0.01)),
        Case("inputs of different loudness", (normal(6, seed=303), _inputs(6, 304, (0.3, 1.0, 4.0)), 0.02)),
        Case("no damping", (normal(5, seed=306), _inputs(5, 307), 0.0)),
        Case("strong damping", (normal(5, seed=309), _inputs(5, 310), 0.5)),
        Case("fewer tokens than inputs", (normal(6, seed=312), _inputs(6, 313)[:4], 0.1)),
    ],
)

# eliminate(P, q): the inverse of H without row and column q, from P = inverse of H alone


def _step(P: Tensor, q: int, scale: Callable[[Tensor], Tensor]) -> Tensor:
    """Row and column q crossed out after their product, times a function of the pivot, was taken away."""
    o = torch.arange(len(P)) != q
    return P[o][:, o] - torch.outer(P[o, q], P[q, o]) * scale(P[q, q])


def _eliminate(P: Tensor, q: int) -> Tensor:
    return _step(P, q, torch.reciprocal)


def spd(d_in: int, seed: int, loudness: Sequence[float] = (1.0,)) -> Tensor:
    """A well-conditioned matrix H of correlated inputs, (d_in, d_in)."""
    X = _inputs(d_in, seed, loudness)
    return X.T @ X / len(X) + 0.02 * torch.eye(d_in)


eliminate = Exercise(
    name="eliminate",
    chapter=3,
    title="the inverse of H without row and column q, from the inverse of H alone",
    reference=_eliminate,
    difficulty=2,
    rtol=1e-3,
    atol=1e-5,
    wrong=(
        Wrong(
            "crossed out only",
            lambda P, q: _step(P, q, torch.zeros_like),
            "Row and column q of the inverse are gone, but the rest is as before. Inverting and crossing out do not "
            "commute: try it with two correlated inputs.",
        ),
        Wrong(
            "added instead of subtracted",
            lambda P, q: _step(P, q, lambda pivot: -1 / pivot),
            "The step goes in the wrong direction. With fewer inputs to stand in for each other, does the diagonal of "
            "the inverse grow or shrink?",
        ),
        Wrong(
            "not divided by the pivot",
            lambda P, q: _step(P, q, torch.ones_like),
            "The product of column and row is right, but its size is not. After the step, column q would have to be "
            "zero if it had not been crossed out.",
        ),
        Wrong(
            "divided by the root of the pivot",
            lambda P, q: _step(P, q, torch.rsqrt),
            "The product was divided by the root of the pivot. Each of its *two* factors takes a root.",
        ),
        Wrong(
            "divided by the square of the pivot",
            lambda P, q: _step(P, q, lambda pivot: pivot**-2),
            "Column and row were each divided by the whole pivot.",
        ),
        Wrong(
            "inverted once more",
            lambda P, q: torch.linalg.inv(_eliminate(P, q)),
            "This is H without row and column q. Asked for is its inverse.",
        ),
        Wrong(
            "Schur complement of H",
            lambda P, q: _step(torch.linalg.inv(P), q, torch.reciprocal),
            "The step was made with H instead of its inverse. That gives the inverse of what is left of P.",
        ),
        Wrong(
            "another input",
            lambda P, q: _eliminate(P, 0 if q else len(P) - 1),
            "The step is right, but it struck out another input than q.",
        ),
        Wrong(
            "diagonal only",
            lambda P, q: torch.where(torch.eye(len(P) - 1) == 1, _eliminate(P, q), _step(P, q, torch.zeros_like)),
            "The diagonal is right, but the entries beside it are those of the old inverse.",
        ),
    ),
    cases=lambda: [
        Case("the first of two inputs", (torch.linalg.inv(torch.tensor([[2.0, 1.0], [1.0, 5.0]])), 0)),
        Case("an input in the middle", (torch.linalg.inv(spd(5, 320)), 2)),
        Case("the last input", (torch.linalg.inv(spd(6, 322, (0.5, 2.0, 1.0))), 5)),
        Case("uncorrelated inputs", (torch.diag(torch.tensor([4.0, 1.0, 9.0])), 1)),
    ],
)


EXERCISES = [saliency, eliminate]
