"""The exercise of chapter 05 that ends in Wanda: the keep mask from an empty cell, told from each of its known bugs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import HALVES, half_up, normal
from minprune.patterns import Unstructured, keep_largest

# wanda(W, X, sparsity): the keep mask


def _norm(X: Tensor) -> Tensor:
    return X.norm(dim=0)


def _product(W: Tensor, loudness: Tensor) -> Tensor:
    return W.abs() * loudness


def _rows(scores: Tensor, s: float) -> Tensor:
    return Unstructured(s, "row").keep(scores)


@dataclass(frozen=True)
class _Recipe:
    """Wanda with every place exposed at which people go wrong; the defaults are right.

    loudness: X (tokens, d_in) -> what a weight is multiplied by. score: (W, loudness) -> scores (d_out, d_in).
    select: (scores, sparsity) -> keep.
    """

    loudness: Callable[[Tensor], Tensor] = _norm
    score: Callable[[Tensor, Tensor], Tensor] = _product
    select: Callable[[Tensor, float], Tensor] = _rows

    def __call__(self, W: Tensor, X: Tensor, sparsity: float) -> Tensor:
        return self.select(self.score(W, self.loudness(X)), sparsity)


def _above(clamp: bool, whole: bool = False) -> Callable[[Tensor, float], Tensor]:
    """score > sorted[int(n * s)], of each row or of the whole matrix; clamped to the list at sparsity 1, or not."""

    def select(scores: Tensor, s: float) -> Tensor:
        lines = scores.reshape(1, -1) if whole else scores
        ordered, k = lines.sort(dim=1).values, int(s * lines.shape[1])
        return (lines > ordered[:, [min(k, lines.shape[1] - 1) if clamp else k]]).view(scores.shape)

    return select


def _from(scores: Tensor, s: float) -> Tensor:
    """score >= sorted[round(n * s)] of each row: ties at the threshold all stay."""
    ordered, k = scores.sort(dim=1).values, round(s * scores.shape[1])
    return scores >= ordered[:, [k]] if k < scores.shape[1] else torch.zeros_like(scores, dtype=torch.bool)


def _quantile(whole: bool) -> Callable[[Tensor, float], Tensor]:
    def select(scores: Tensor, s: float) -> Tensor:
        return scores > (torch.quantile(scores, s) if whole else torch.quantile(scores, s, dim=1, keepdim=True))

    return select


def _counted(to_integer: Callable[[float], int]) -> Callable[[Tensor, float], Tensor]:
    return lambda scores, s: keep_largest(scores, to_integer(s * scores.shape[1]))


_MEAN_ABSOLUTE = (
    "The inputs were averaged by absolute value. Wanda takes the L2 norm, which is what makes the squared score an "
    "error. The two differ most for an input that is rarely but very loud."
)
_LAYER = (
    "One line was made of the whole matrix, so some rows lost more than their share. Published Wanda compares the "
    "weights of one output."
)
_LE = (
    "Too many weights went: the sorted scores are counted from 0, and the threshold itself belongs to a weight. "
    "Count the zeros of each row, on a matrix with equal entries as well."
)
_QUANTILE = (
    "The threshold is a quantile, which interpolates between two scores and cannot split a tie. Count the zeros of "
    "each row, on a matrix with equal entries as well."
)

wanda = Exercise(
    name="wanda",
    chapter=5,
    title="the keep mask of Wanda from the weights and the inputs",
    reference=_Recipe(),
    difficulty=3,
    wrong=(
        Wrong(
            "magnitude",
            _Recipe(lambda X: torch.ones(X.shape[1])),
            "This is the mask of the magnitudes, row by row: right only if all inputs are equally loud.",
        ),
        Wrong(
            "magnitude over the layer",
            _Recipe(lambda X: torch.ones(X.shape[1]), select=lambda S, s: Unstructured(s, "layer").keep(S)),
            "This is the mask of the magnitudes over the whole matrix. Inputs decide, too, and each row has a share.",
        ),
        Wrong("mean absolute activation", _Recipe(lambda X: X.abs().mean(0)), _MEAN_ABSOLUTE),
        Wrong(
            "squared norm",
            _Recipe(lambda X: X.square().sum(0)),
            "The weight enters once and the norm squared. Square both or neither.",
        ),
        Wrong(
            "weight squared",
            _Recipe(score=lambda W, loudness: W.square() * loudness),
            "The weight counts twice as much as the norm: it is squared, or the norm has a root. Treat both alike.",
        ),
        Wrong(
            "inputs summed with their signs",
            _Recipe(lambda X: X.sum(0).abs()),
            "The inputs were added up with their signs, so that positive and negative ones cancelled.",
        ),
        Wrong(
            "largest activation",
            _Recipe(lambda X: X.abs().amax(0)),
            "Each input is judged by its largest value. A norm adds up the squares of all tokens.",
        ),
        Wrong(
            "last token only",
            _Recipe(lambda X: X[-1].abs()),
            "Only the last token counts. Add up over all of them.",
        ),
        Wrong(
            "mean over the wrong axis",
            _Recipe(lambda X: X.norm(dim=1)),
            "This is the norm of each token over its inputs. It multiplies the weights of an input by what belongs to "
            "a token: the shapes fit only by chance. Which axis should disappear?",
        ),
        Wrong(
            "norm on the output's side",
            _Recipe(lambda X: _norm(X), lambda W, loudness: W.abs() * loudness[:, None]),
            "The norms multiply the rows of W, which are its outputs. An input belongs to a column.",
        ),
        Wrong(
            "signed comparison",
            _Recipe(score=lambda W, loudness: W * loudness),
            "Strongly negative weights were treated as worthless. The score has no sign.",
        ),
        Wrong(
            "one threshold for the whole matrix", _Recipe(select=lambda S, s: Unstructured(s, "layer").keep(S)), _LAYER
        ),
        Wrong(
            "compared within columns",
            _Recipe(select=lambda S, s: Unstructured(s, "row").keep(S.T).T),
            "Each column lost its own share, so that the norms made no difference. Compare the weights of one output.",
        ),
        Wrong("<= sorted[k]", _Recipe(select=_above(clamp=False)), _LE),
        Wrong("<= sorted[k]", _Recipe(select=_above(clamp=True)), _LE),
        Wrong("one threshold, and <= sorted[k]", _Recipe(select=_above(clamp=False, whole=True)), f"{_LAYER} {_LE}"),
        Wrong("one threshold, and <= sorted[k]", _Recipe(select=_above(clamp=True, whole=True)), f"{_LAYER} {_LE}"),
        Wrong("quantile as threshold", _Recipe(select=_quantile(whole=False)), _QUANTILE),
        Wrong("one quantile for the whole matrix", _Recipe(select=_quantile(whole=True)), f"{_LAYER} {_QUANTILE}"),
        Wrong(
            "ties all kept",
            _Recipe(select=_from),
            "Every weight whose score equals the threshold stayed, so with ties too few went. Something other than a "
            "threshold must split a tie.",
        ),
        Wrong(
            "rounded down",
            _Recipe(select=_counted(int)),
            "The number of zeros was rounded down instead of to the nearest integer.",
        ),
        Wrong(
            "rounded up",
            _Recipe(select=_counted(math.ceil)),
            "The number of zeros was rounded up instead of to the nearest integer.",
        ),
        Wrong("halves rounded up", _Recipe(select=_counted(half_up)), HALVES),
        Wrong(
            "inverted mask",
            _Recipe(select=lambda S, s: ~_rows(S, s)),
            "The mask is the opposite of what was asked for: True means *kept*.",
        ),
        Wrong(
            "largest pruned",
            _Recipe(select=lambda S, s: keep_largest(-S, round(s * S.shape[1]))),
            "The count is right, but the highest scores went and the lowest stayed. Check the order of your sort.",
        ),
    ),
    cases=lambda: _wanda_cases(),
)


def _rarely_loud(tokens: int, d_in: int, seed: int) -> Tensor:
    """Inputs of equal mean size, of which every other is silent but for a few tokens."""
    X = normal(tokens, d_in, seed=seed) + 0.2
    X[2:, ::2] *= 0.05
    X[:2, ::2] *= 6
    return X


def _wanda_cases() -> list[Case]:
    loud = torch.tensor([0.1, 1.0, 8.0, 0.5, 2.0, 1.0, 0.2, 4.0])
    whole = torch.tensor([[1.0, -1, 1, 1, -1, 1], [2, 2, -2, 2, 2, 2], [1, 2, -3, 3, 2, 1], [0, 0, 0, 0, 1, 0]])
    return [
        Case("a small layer", (normal(4, 6, seed=540), normal(20, 6, seed=541) + 0.3, 0.5)),
        Case("loud and quiet inputs", (normal(6, 8, seed=542), (normal(30, 8, seed=543) + 0.3) * loud, 0.25)),
        Case("inputs that are rarely loud", (normal(5, 10, seed=544), _rarely_loud(24, 10, 545), 0.6)),
        Case(
            "rows of unequal size",
            (normal(3, 7, seed=546) * torch.tensor([[0.1], [1], [9]]), normal(9, 7, seed=547), 0.5),
        ),
        Case("as many tokens and outputs as inputs", (normal(8, 8, seed=548), normal(8, 8, seed=549) * loud, 0.5)),
        Case("equal weights and equal inputs", (whole, torch.ones(5, 6), 0.5)),
        Case("a count to be rounded", (normal(4, 10, seed=550), normal(12, 10, seed=551), 0.29)),
        Case("a count to be rounded down", (normal(4, 10, seed=556), normal(12, 10, seed=557), 0.22)),
        Case("half of five weights", (normal(4, 5, seed=558), normal(2, 5, seed=559), 0.5)),
        Case("nothing to prune", (normal(3, 4, seed=552), normal(6, 4, seed=553), 0.0)),
        Case("everything to prune", (normal(3, 4, seed=554), normal(6, 4, seed=555), 1.0)),
    ]


EXERCISES = [wanda]
