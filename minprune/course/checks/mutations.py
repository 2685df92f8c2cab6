"""Mistakes that are made in many exercises: the right function with one thing exchanged, and choices that miscount.

`given` changes an argument before the function sees it, `then` its result; the others are the commonest results.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minprune.course.checks.values import half_up

Answer = Callable[..., Any]


def then(function: Answer, change: Callable[[Any], Any]) -> Answer:
    """The function, and after it a change of what it returned."""
    return lambda *args: change(function(*args))


def given(function: Answer, **changes: Any) -> Answer:
    """The function with other arguments: for each name what stands there instead, or a function of what stood there."""
    names = list(inspect.signature(function).parameters)

    def changed(*args: Any) -> Any:
        found = dict(zip(names, args, strict=False))
        return function(*({**found, **{k: v(found[k]) if callable(v) else v for k, v in changes.items()}}.values()))

    return changed


def exchanged(function: Answer, one: int, other: int) -> Answer:
    """The function with two arguments in each other's place."""

    def swapped(*args: Any) -> Any:
        order = list(args)
        order[one], order[other] = args[other], args[one]
        return function(*order)

    return swapped


def inverted(function: Answer) -> Answer:
    """A keep mask in which True means pruned."""
    return then(function, torch.logical_not)


def complement(function: Answer) -> Answer:
    """The share that is kept for the share that is pruned, or the other way round."""
    return then(function, lambda share: 1 - share)


def negated(function: Answer) -> Answer:
    """The wrong sign."""
    return then(function, lambda value: -value)


def scaled(function: Answer, factor: float) -> Answer:
    """A constant too much: a half, a hundred for per cent."""
    return then(function, lambda value: factor * value)


def transposed(function: Answer) -> Answer:
    """Rows for columns."""
    return then(function, lambda matrix: matrix.T)


def averaged(function: Answer, over: str) -> Answer:
    """A mean over the first axis of one argument, where a sum was asked for."""
    place = list(inspect.signature(function).parameters).index(over)
    return lambda *args: function(*args) / len(args[place])


# Thresholds and roundings ---------------------------------------------------------------------------------------------

ROUNDINGS: dict[str, Callable[[float], int]] = {
    "rounded down": int,
    "rounded up": math.ceil,
    "halves rounded up": half_up,
}


def above(scores: Tensor, s: float, to_integer: Callable[[float], int] = int, clamp: bool = False) -> Tensor:
    """score > sorted[k] in each row, k = n * s as a whole number, as in published code: one too many goes.

    At sparsity 1 this is beyond the end of the list, unless clamped to it.
    """
    n = scores.shape[-1]
    k = to_integer(s * n)
    return scores > scores.sort(dim=-1).values[..., [min(k, n - 1) if clamp else k]]
