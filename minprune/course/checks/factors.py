"""The smaller exercises of chapter 04: the factor for the other direction, and 2:4 chosen on the way."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import normal
from minprune.patterns import keep_largest


def upper(H: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse, the long way: factorise, invert, factorise."""
    return torch.linalg.cholesky(torch.linalg.inv(H), upper=True)


# backward_factor(H): what SparseGPT needs if it visits the columns from right to left


def _backward_factor(H: Tensor) -> Tensor:
    return torch.linalg.inv(torch.linalg.cholesky(H))


def _hessian(d_in: int, seed: int) -> Tensor:
    X = normal(5 * d_in, d_in, seed=seed) + normal(5 * d_in, 1, seed=seed + 1)  # one cause that all inputs share
    return X.T @ X / (5 * d_in) + 0.05 * torch.eye(d_in)


backward_factor = Exercise(
    name="backward_factor",
    chapter=4,
    title="the factor whose rows are the updates when columns are visited from right to left",
    reference=_backward_factor,
    difficulty=3,
    rtol=1e-3,
    atol=1e-4,
    wrong=(
        Wrong(
            "left to right",
            upper,
            "This is the factor for columns visited from left to right. Here the columns still to come are those with "
            "a *lower* index.",
        ),
        Wrong(
            "lower factor of the inverse",
            lambda H: upper(H).T,
            "It is lower triangular, and F F^T is the inverse. The rows are needed, so F^T F has to be.",
        ),
        Wrong(
            "factor of H",
            torch.linalg.cholesky,
            "This is the Cholesky factor of H itself. Its rows tell how inputs go together, not how one stands in for "
            "another.",
        ),
        Wrong(
            "transposed",
            lambda H: _backward_factor(H).T,
            "It is the transpose of what is needed: its columns hold the updates, not its rows.",
        ),
        Wrong(
            "the inverse itself",
            torch.linalg.inv,
            "This is the whole inverse. Up to a factor it is right for the first column that is visited.",
        ),
        Wrong(
            "reversed on one side only",
            lambda H: upper(H.flip(0, 1)).flip(0),
            "The order was reversed in the rows, but not in the columns (or the other way round).",
        ),
        Wrong(
            "unit diagonal",
            lambda H: _backward_factor(H) / _backward_factor(H).diagonal()[:, None],
            "The rows have the right direction, but their diagonal is 1. It should be the root of the pivot, so that "
            "F^T F is the inverse.",
        ),
    ),
    cases=lambda: [
        Case("two inputs", (torch.tensor([[2.0, 1.0], [1.0, 5.0]]),)),
        Case("four inputs", (_hessian(4, 430),)),
        Case(
            "nine inputs of different loudness", (_hessian(9, 432) * torch.outer(*[torch.arange(1.0, 10.0)] * 2) / 9,)
        ),
        Case("uncorrelated inputs", (torch.diag(torch.tensor([4.0, 1.0, 9.0])),)),
    ],
)

# surgeon_2_4(W, U): two kept of every four, chosen when the group is reached


@dataclass(frozen=True)
class _TwoFour:
    """Column by column with the given factor; the defaults are right.

    price: (w, W, U, columns) -> scores (d_out, 4). choose: scores -> keep (d_out, 4). divide: U -> (d_in,).
    one_by_one: every weight is sent off before the next of its group is chosen.
    """

    price: Callable[[Tensor, Tensor, Tensor, slice], Tensor] = lambda w, W, U, c: (w[:, c] / U.diagonal()[c]).square()
    choose: Callable[[Tensor], Tensor] = lambda scores: keep_largest(scores, 2)
    divide: Callable[[Tensor], Tensor] = torch.diagonal
    updates: bool = True

    def __call__(self, W: Tensor, U: Tensor) -> Tensor:
        w, keep, scale = W.clone(), torch.ones_like(W, dtype=torch.bool), self.divide(U)
        for q in range(W.shape[1]):
            if q % 4 == 0:
                columns = slice(q, q + 4)
                keep[:, columns] = self.choose(self.price(w, W, U, columns))
            error = w[:, q] / scale[q] * ~keep[:, q]  # (d_out,)
            if self.updates:
                w[:, q:] -= torch.outer(error, U[q, q:])
            w[:, q] *= keep[:, q]
        return w


def _same_columns(scores: Tensor) -> Tensor:
    return keep_largest(scores.sum(0, keepdim=True), 2).expand_as(scores)


surgeon_2_4 = Exercise(
    name="surgeon_2_4",
    chapter=4,
    title="2:4 with updates: the two cheapest of four go, chosen when their group is reached",
    reference=_TwoFour(),
    difficulty=4,
    rtol=1e-3,
    atol=1e-4,
    wrong=(
        Wrong(
            "chosen from the original weights",
            _TwoFour(price=lambda w, W, U, c: (W[:, c] / U.diagonal()[c]).square()),
            "The costs were taken from W as it was, but when a group is reached the groups before it have changed it.",
        ),
        Wrong(
            "the same columns for all rows",
            _TwoFour(choose=_same_columns),
            "All rows lost the same two columns of each group. 2:4 lets every row choose its own.",
        ),
        Wrong(
            "magnitude",
            _TwoFour(price=lambda w, W, U, c: w[:, c].abs()),
            "The two smallest magnitudes went. The cost of a weight also depends on its column's pivot.",
        ),
        Wrong(
            "diagonal not squared in the cost",
            _TwoFour(price=lambda w, W, U, c: w[:, c].square() / U.diagonal()[c]),
            "The cost divides w^2 by the diagonal of the factor. Which of its powers is the pivot of the inverse?",
        ),
        Wrong(
            "the dearest pruned",
            _TwoFour(choose=lambda scores: ~keep_largest(scores, 2)),
            "The two cheapest weights of each group stayed and the other two went.",
        ),
        Wrong(
            "three of four pruned",
            _TwoFour(choose=lambda scores: keep_largest(scores, 3)),
            "Three weights of each group went. Is the threshold's own weight on the right side?",
        ),
        Wrong(
            "half of each row",
            lambda W, U: _on_mask(W, U, keep_largest((W / U.diagonal()).square(), W.shape[1] // 2)),
            "Half of every row went, but not two of every four neighbours.",
        ),
        Wrong(
            "error not divided by the diagonal",
            _TwoFour(divide=lambda U: torch.ones(len(U)).to(U)),
            "The updates are off by a factor that differs from column to column. What must the update make of weight "
            "q itself?",
        ),
        Wrong(
            "no update",
            _TwoFour(updates=False),
            "The weights that stay are as they were. They should make up for those that go: row q of U says how, from "
            "its diagonal to the right.",
        ),
    ),
    cases=lambda: [
        Case("one group", (normal(5, 4, seed=440), upper(_hessian(4, 441)))),
        Case("five groups", (normal(9, 20, seed=443), upper(_hessian(20, 444)))),
        Case("inputs of different loudness", (normal(6, 8, seed=446), upper(_spread(8, 447)))),
    ],
)


def _on_mask(W: Tensor, U: Tensor, keep: Tensor) -> Tensor:
    w = W.clone()
    for q in range(W.shape[1]):
        w[:, q:] -= torch.outer(w[:, q] / U[q, q] * ~keep[:, q], U[q, q:])
        w[:, q] *= keep[:, q]
    return w


def _spread(d_in: int, seed: int) -> Tensor:
    """The Hessian of inputs between 0.5 and 4 times as loud as usual."""
    loudness = torch.tensor([0.5, 2.0, 4.0, 1.0]).repeat(d_in // 4)
    return _hessian(d_in, seed) * torch.outer(loudness, loudness)


EXERCISES = [backward_factor, surgeon_2_4]
