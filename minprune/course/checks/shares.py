"""The exercises of chapter 05 beside Wanda: what its scores leave out of a row's error, and relative importance."""

from collections.abc import Callable

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import normal

# error_split(w, X, keep): what the pruned weights of a row cost one by one, and what their cross terms add


def _split(w: Tensor, X: Tensor, keep: Tensor, own_of: Callable, cross_of: Callable) -> Tensor:
    """own_of and cross_of: (the contributions of the pruned weights (tokens, d_in)) -> a number."""
    parts = X * (w * ~keep)  # (tokens, d_in)
    return torch.stack([own_of(parts), cross_of(parts)])


def _own(parts: Tensor) -> Tensor:
    return parts.square().sum()


def _cross(parts: Tensor) -> Tensor:
    return parts.sum(1).square().sum() - _own(parts)


error_split = Exercise(
    name="error_split",
    chapter=5,
    title="the error of a pruned row: the squared Wanda scores, and the cross terms",
    reference=lambda w, X, keep: _split(w, X, keep, _own, _cross),
    difficulty=3,
    wrong=(
        Wrong(
            "each pair counted once",
            lambda w, X, keep: _split(w, X, keep, _own, lambda parts: _cross(parts) / 2),
            "The cross terms are half of what they should be: a pair (j, l) stands in the double sum twice.",
        ),
        Wrong(
            "total instead of the cross terms",
            lambda w, X, keep: _split(w, X, keep, _own, lambda parts: parts.sum(1).square().sum()),
            "Your second number is the whole error. The two numbers should add up to it.",
        ),
        Wrong(
            "kept weights",
            lambda w, X, keep: _split(w, X, ~keep, _own, _cross),
            "These are the terms of the weights that *stay*. What is lost is what the pruned ones contributed.",
        ),
        Wrong(
            "all weights",
            lambda w, X, keep: _split(w, X, torch.zeros_like(keep), _own, _cross),
            "All weights enter, the kept ones, too. What is lost is what the pruned ones contributed.",
        ),
        Wrong(
            "scores not squared",
            lambda w, X, keep: _split(w, X, keep, lambda parts: parts.norm(dim=0).sum(), _cross),
            "Your first number adds up Wanda's scores. It is their squares that are errors.",
        ),
        Wrong(
            "sum of scores squared",
            lambda w, X, keep: _split(w, X, keep, lambda parts: parts.norm(dim=0).sum().square(), _cross),
            "Wanda's scores were added up and then squared. Which comes first?",
        ),
        Wrong(
            "averaged over tokens",
            lambda w, X, keep: _split(w, X, keep, _own, _cross) / len(X),
            "The error was averaged over the tokens. Both numbers are sums over them.",
        ),
        Wrong(
            "absolute cross terms",
            lambda w, X, keep: _split(
                w, X, keep, _own, lambda parts: (parts.T @ parts).abs().sum() - parts.square().sum()
            ),
            "The cross terms were made positive. They have signs: two losses can cancel.",
        ),
        Wrong(
            "summed over tokens before squaring",
            lambda w, X, keep: _split(w, X, keep, _own, lambda parts: parts.sum().square() - _own(parts)),
            "The differences were added up over the tokens before squaring, so that they cancelled.",
        ),
        Wrong(
            "order reversed",
            lambda w, X, keep: _split(w, X, keep, _cross, _own),
            "The two numbers are right, but in the wrong order: first the squared scores, then the cross terms.",
        ),
    ),
    cases=lambda: [
        Case("a few tokens", (normal(6, seed=520), normal(5, 6, seed=521), normal(6, seed=522) > 0)),
        Case("inputs that share a cause", (normal(7, seed=523), _shared(9, 7, 524), normal(7, seed=525) > 0)),
        Case("a single pruned weight", (normal(4, seed=526), normal(6, 4, seed=527), torch.arange(4) != 2)),
        Case("two equal inputs that cancel", (torch.tensor([1.0, -1, 3]), _twins(6), torch.arange(3) == 2)),
        Case("everything pruned", (normal(4, seed=531), normal(3, 4, seed=532), torch.zeros(4, dtype=torch.bool))),
        Case("nothing pruned", (normal(4, seed=529), normal(3, 4, seed=530), torch.ones(4, dtype=torch.bool))),
    ],
)


def _shared(tokens: int, inputs: int, seed: int) -> Tensor:
    return normal(tokens, 1, seed=seed) + 0.5 * normal(tokens, inputs, seed=seed + 100)


def _twins(tokens: int) -> Tensor:
    return normal(tokens, 2, seed=528)[:, [0, 0, 1]]


# ria_scores(W, norms, power): relative importance times a power of the input's norm


def _relative(W: Tensor, norms: Tensor, power: float) -> tuple[Tensor, Tensor, Tensor]:
    """|W| / the sum of its column, |W| / the sum of its row, and norms ** power; 0 / 0 is 0."""
    size = W.abs()
    per_input, per_output = (size.sum(dim, keepdim=True) for dim in (0, 1))
    return (
        (size / per_input).nan_to_num(0.0),
        (size / per_output).nan_to_num(0.0),
        norms**power,
    )


def _combined(gather: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    return lambda W, norms, power: gather(*_relative(W, norms, power))


def _unguarded(W: Tensor, norms: Tensor, power: float) -> Tensor:
    size = W.abs()
    return (size / size.sum(0) + size / size.sum(1, keepdim=True)) * norms**power


ria_scores = Exercise(
    name="ria_scores",
    chapter=5,
    title="the scores of RIA: relative importance times a power of the input's norm",
    reference=_combined(lambda column, row, loud: (column + row) * loud),
    difficulty=2,
    wrong=(
        Wrong(
            "0 / 0",
            _unguarded,
            "A row or a column that is all zero has the sum 0, and 0 / 0 is NaN. The weights in it are 0: what should "
            "their scores be?",
        ),
        Wrong(
            "only the output's sum",
            _combined(lambda column, row, loud: row * loud),
            "Each weight is compared with its row only. Its column counts as well.",
        ),
        Wrong(
            "only the input's sum",
            _combined(lambda column, row, loud: column * loud),
            "Each weight is compared with its column only. Its row counts as well.",
        ),
        Wrong(
            "product of the two shares",
            _combined(lambda column, row, loud: column * row * loud),
            "The two shares were multiplied. They are added, so that either of them can save a weight.",
        ),
        Wrong(
            "one common sum",
            lambda W, norms, power: (W.abs() / _safe(W.abs().sum(0) + W.abs().sum(1, keepdim=True))) * norms**power,
            "The two sums were added and then divided by. Two fractions are added here, not their denominators.",
        ),
        Wrong(
            "signed weights",
            lambda W, norms, power: (W / _safe(W.sum(0)) + W / _safe(W.sum(1, keepdim=True))) * norms**power,
            "Signs were kept, so that sums cancel and shares become negative. All is about absolute values.",
        ),
        Wrong(
            "means in place of sums",
            lambda W, norms, power: (
                (W.abs() / _safe(W.abs().mean(0)) + W.abs() / _safe(W.abs().mean(1, keepdim=True))) * norms**power
            ),
            "The weight was divided by a mean, not a sum. With as many rows as columns that changes nothing but the "
            "scale; otherwise the two parts get other weights.",
        ),
        Wrong(
            "norms instead of sums",
            lambda W, norms, power: (
                (W.abs() / _safe(W.norm(dim=0)) + W.abs() / _safe(W.norm(dim=1, keepdim=True))) * norms**power
            ),
            "The weight was divided by the L2 norms of its row and column. Published are sums of absolute values.",
        ),
        Wrong(
            "power ignored",
            lambda W, norms, power: _combined(lambda column, row, loud: (column + row) * loud)(W, norms, 1.0),
            "The norms enter as they are, as in Wanda. Where is the power?",
        ),
        Wrong(
            "inputs ignored",
            _combined(lambda column, row, loud: column + row),
            "This is the relative importance alone. The activations are missing.",
        ),
        Wrong(
            "power over everything",
            lambda W, norms, power: _combined(lambda column, row, loud: (column + row) * loud)(W, norms, 1.0) ** power,
            "The power was taken of the whole product. It belongs to the norms alone.",
        ),
        Wrong(
            "power of a squared norm",
            lambda W, norms, power: _combined(lambda column, row, loud: (column + row) * loud)(W, norms, 2 * power),
            "The norms were squared before the power was taken.",
        ),
        Wrong(
            "norms on the output's side",
            lambda W, norms, power: (
                _combined(lambda column, row, loud: column + row)(W, norms, power) * (norms**power)[:, None]
            ),
            "The norms multiply the rows of W, which are its outputs. An input belongs to a column.",
        ),
    ),
    cases=lambda: [
        Case("a small layer", (normal(3, 5, seed=560), normal(5, seed=561).abs(), 0.5)),
        Case("as many outputs as inputs", (normal(4, 4, seed=562), 3 * normal(4, seed=563).abs(), 0.5)),
        Case("another power", (normal(6, 4, seed=564), normal(4, seed=565).abs() + 1, 1.5)),
        Case("power 1", (normal(2, 6, seed=566), normal(6, seed=567).abs() + 1, 1.0)),
        Case("a row and a column of zeros", (_with_zeros(), normal(4, seed=569).abs(), 0.5)),
    ],
)


def _safe(sums: Tensor) -> Tensor:
    return torch.where(sums == 0, 1.0, sums)


def _with_zeros() -> Tensor:
    W = normal(3, 4, seed=568)
    W[1], W[:, 2] = 0, 0
    return W


EXERCISES = [error_split, ria_scores]
