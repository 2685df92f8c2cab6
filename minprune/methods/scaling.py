"""Weights whose squares are no float32, below 1e-19 or above 1e19: a method sees them times a power of two.

Nothing but the sizes of weights among each other decides which of them go, and the weights that are left scale as those
that came. But squares that underflow are all alike, and the mask would be the first weights of each row.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

from torch import Tensor

from minprune.methods.result import Result

_USUAL = 2.0**-30, 2.0**30  # of the largest weight: there is room for squares, their sums and small weights


def scale_free(function: Callable[..., Result]) -> Callable[..., Result]:
    """The same method, which gets its weights in a size whose squares are numbers, and gives them back in their own."""

    @wraps(function)
    def scaled(W: Tensor, stats: Any, pattern: Any, **options: Any) -> Result:
        power = _power(W)
        if not power:
            return function(W, stats, pattern, **options)
        result = function(_times(W, power), stats, pattern, **options)
        return replace(result, weight=_times(result.weight, -power))

    return scaled


def _power(W: Tensor) -> int:
    """The k for which the largest weight of 2^k W is about 1; 0 if that is not needed, or there is no such weight."""
    low, high = W.aminmax()
    largest = max(-float(low), float(high))  # NaN or infinity is for the method to refuse
    if not 0 < largest < math.inf or _USUAL[0] <= largest <= _USUAL[1]:
        return 0
    return -math.frexp(largest)[1]


def _times(W: Tensor, power: int) -> Tensor:
    """2^power W in two steps: 2^power itself may be too large a number for the dtype."""
    half = power // 2
    return W * 2.0**half * 2.0 ** (power - half)
