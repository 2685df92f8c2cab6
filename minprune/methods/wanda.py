"""Wanda: magnitude, weighed by how large each input usually is (Sun et al. 2024, equation 1). Chapter 05.

score_ij = |W_ij| * ||X_:j||_2

Its square is what the layer's squared error grows by if weight ij alone is removed and nothing else is changed.
No weight is updated, so d_in norms are all it must know about the inputs.
"""

from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import exact_arithmetic
from minprune.methods.result import Result
from minprune.patterns import Pattern
from minprune.statistics import Statistics


@checked()
@exact_arithmetic()
def wanda(W: Tensor, stats: Statistics, pattern: Pattern) -> Result:
    """Prune the smallest |W_ij| * ||X_:j||; plain "50%" compares within each row, as published.

    Parameters
    ----------
    W : Tensor (d_out, d_in), floating
    stats : Statistics, of which only `sq_norm` (d_in,) is used
    pattern : Pattern

    Returns
    -------
    Result

    Raises
    ------
    PruneError
        If the pattern does not fit the shape, or a score is NaN.

    Examples
    --------
    The smallest weight is kept, because its input is large:

    >>> import torch, minprune as mp
    >>> stats = mp.Statistics(4, gram=False).update(torch.tensor([[9.0, 1.0, 1.0, 1.0]]))
    >>> mp.METHODS["wanda"](torch.tensor([[1.0, 2.0, 3.0, 4.0]]), stats, "50%").weight
    tensor([[1., 0., 0., 4.]])
    """
    scores = W.abs() * stats.sq_norm.sqrt()  # (d_out, d_in) * (d_in,): at least float32
    keep = pattern.with_default("row").keep(scores)
    return Result(W.masked_fill(~keep, 0), keep)
