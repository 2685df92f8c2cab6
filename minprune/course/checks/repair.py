"""The exercise of chapter 08 on the repair of a block."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import normal

# repair_gradient(W, keep, X_hat, Y): the slope of the tokens' mean relative error in the weights that are kept


@dataclass(frozen=True)
class _Gradient:
    """Right unless a field says otherwise. energy: what the error of each token is divided by."""

    masked: bool = True
    invert: bool = False
    energy: str = "token"
    factor: float = 2.0
    mean: bool = True

    def __call__(self, W: Tensor, keep: Tensor, X_hat: Tensor, Y: Tensor) -> Tensor:
        out, tokens = X_hat @ W.T, len(Y)
        by = {
            "token": Y.square().sum(1, keepdim=True),
            "all": Y.square().sum() / tokens,
            "own": out.square().sum(1, keepdim=True),
            "norm": Y.square().sum(1, keepdim=True).sqrt(),
            "none": torch.ones(tokens, 1),
        }[self.energy]
        slope = self.factor * ((out - Y) / by).T @ X_hat / (tokens if self.mean else 1)
        return slope * (keep ^ self.invert) if self.masked else slope


repair_gradient = Exercise(
    name="repair_gradient",
    chapter=8,
    title="the gradient by which the weights that are left learn the dense outputs",
    reference=_Gradient(),
    difficulty=3,
    wrong=(
        Wrong(
            "mask forgotten",
            _Gradient(masked=False),
            "Weights that are pruned have a gradient: one step along it, and they are back. The pruned ones are no "
            "variables of this problem.",
        ),
        Wrong(
            "mask inverted",
            _Gradient(invert=True),
            "This is the gradient of the weights that are pruned, and nothing where one is kept: keep is True for "
            "those that stay.",
        ),
        Wrong(
            "one ratio for all tokens",
            _Gradient(energy="all"),
            "You divided the sum of all errors by the energy of all tokens together. Then the loudest token decides "
            "alone: divide each token's error by that token's energy.",
        ),
        Wrong(
            "relative to its own output",
            _Gradient(energy="own"),
            "Each error was divided by the energy of what the pruned layer gives. Then it could be made small by "
            "loud outputs: the energy is that of the target.",
        ),
        Wrong(
            "divided by the norm",
            _Gradient(energy="norm"),
            "Each squared error was divided by the norm of the target, not by its square: with ten times louder "
            "targets and inputs the loss would change.",
        ),
        Wrong(
            "not relative",
            _Gradient(energy="none"),
            "This is the gradient of the squared error as it is. Which tokens does that listen to?",
        ),
        Wrong(
            "factor of two missing",
            _Gradient(factor=1.0),
            "Half of the gradient: what is the derivative of a square?",
        ),
        Wrong(
            "downhill",
            _Gradient(factor=-2.0),
            "The sign is that of the step which an optimizer takes. The gradient points uphill.",
        ),
        Wrong(
            "sum over tokens",
            _Gradient(mean=False),
            "The loss is a mean over tokens: with twice the text your gradient doubles.",
        ),
    ),
    cases=lambda: [
        Case("half of the weights", _to_repair((4, 6), 12, 840, 1.0)),
        Case("a single loud token", _to_repair((3, 5), 10, 845, 1.0, loud=30.0)),
        Case("quiet targets", _to_repair((2, 4), 8, 850, 0.1)),
        Case(
            "nothing pruned",
            (normal(3, 4, seed=855), torch.ones(3, 4) > 0, normal(9, 4, seed=856), normal(9, 3, seed=857)),
        ),
        Case("outputs that are right already", _right_already(860)),
    ],
)


def _to_repair(shape: tuple[int, int], tokens: int, seed: int, scale: float, loud: float = 1.0) -> tuple:
    """(W, keep, X_hat, Y) of a pruned layer, its targets made of other weights; the first token `loud` times louder."""
    W, keep = normal(*shape, seed=seed), normal(*shape, seed=seed + 1) > 0
    X_hat = normal(tokens, shape[1], seed=seed + 2)
    Y = scale * (X_hat @ normal(*shape, seed=seed + 3).T + 0.1 * normal(tokens, shape[0], seed=seed + 4))
    Y[0] *= loud
    return W * keep, keep, X_hat, Y


def _right_already(seed: int) -> tuple:
    W, keep, X_hat, _ = _to_repair((3, 4), 6, seed, 1.0)
    return W, keep, X_hat, X_hat @ W.T


EXERCISES = [repair_gradient]
