"""Magnitude pruning: the smallest weights go, the others stay as they are. Chapter 02.

score_ij = |W_ij|     (at least as old as Janowsky 1989; Han et al. 2015 made it the baseline)

It needs no data, and that is its weakness: it cannot see that some inputs are a hundred times larger than others.
"""

from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import exact_arithmetic
from minprune.methods.result import Result
from minprune.patterns import Pattern
from minprune.statistics import Statistics


@checked()
@exact_arithmetic()
def magnitude(W: Tensor, stats: Statistics | None, pattern: Pattern) -> Result:
    """Prune the smallest |W|; plain "50%" compares over the whole layer.

    Parameters
    ----------
    W : Tensor (d_out, d_in), floating
    stats : Statistics or None, not looked at
    pattern : Pattern

    Returns
    -------
    Result

    Raises
    ------
    PruneError
        If the pattern does not fit the shape, or W holds NaN.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> mp.METHODS["magnitude"](torch.tensor([[1.0, -2.0, 3.0, -4.0]]), None, "50%").weight
    tensor([[ 0.,  0.,  3., -4.]])
    """
    keep = pattern.with_default("layer").keep(W.abs())  # (d_out, d_in)
    return Result(W.masked_fill(~keep, 0), keep)
