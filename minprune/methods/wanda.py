"""Wanda: magnitude, weighed by how large each input usually is (Sun et al. 2024, equation 1). Chapter 05.

score_ij = |W_ij| * ||X_:j||_2

Its square is what the layer's squared error grows by if weight ij alone is removed and nothing else is changed.
No weight is updated, so d_in norms are all it must know about the inputs.
"""

from torch import Tensor

from minprune.arithmetic import exact_arithmetic
from minprune.methods.result import Result
from minprune.patterns import Pattern
from minprune.statistics import Statistics


@exact_arithmetic()
def wanda(W: Tensor, stats: Statistics, pattern: Pattern) -> Result:
    """Prune the smallest |W_ij| * ||X_:j||; plain "50%" compares within each row, as published.

    W (d_out, d_in), any floating dtype; of stats only sq_norm (d_in,) is used. Raises `ValueError` if the pattern
    does not fit the shape or a score is NaN.
    """
    scores = W.abs() * stats.sq_norm.sqrt()  # (d_out, d_in) * (d_in,): at least float32
    keep = pattern.with_default("row").keep(scores)
    return Result(W.masked_fill(~keep, 0), keep)
