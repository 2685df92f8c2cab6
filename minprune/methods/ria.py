"""RIA: how large a weight is among those of its output and of its input, times its activations. Chapter 05.

score_ij = (|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * ||X_:j||_2^power     (Zhang et al. 2024, power = 1/2)

The first sum runs over the weights that read the same input, the second over those of the same output: no row and
no column is lost as a whole because all of its weights are small. As with Wanda, no weight is updated.
"""

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError
from minprune.methods.result import Result
from minprune.patterns import Pattern
from minprune.statistics import Statistics


@checked()
@exact_arithmetic()
def ria(W: Tensor, stats: Statistics, pattern: Pattern, *, power: float = 0.5) -> Result:
    """Prune the lowest `ria_scores`; plain "50%" compares over the whole layer, as published.

    Parameters
    ----------
    W : Tensor (d_out, d_in), floating
    stats : Statistics, of which only `sq_norm` (d_in,) is used
    pattern : Pattern
    power : float, default 0.5
        Of the inputs' norms, from 0 up.

    Returns
    -------
    Result

    Raises
    ------
    PruneError
        If the pattern does not fit the shape, a score is NaN, or `power` is out of range.

    Examples
    --------
    The second column keeps its best weight, though 8 is larger:

    >>> import torch, minprune as mp
    >>> stats = mp.Statistics(2, gram=False).update(torch.ones(1, 2))
    >>> mp.METHODS["ria"](torch.tensor([[8.0, 4.0], [9.0, 0.1]]), stats, "50%").keep
    tensor([[False,  True],
            [ True, False]])
    """
    keep = pattern.with_default("layer").keep(ria_scores(W, stats, power))
    return Result(W.masked_fill(~keep, 0), keep)


@checked()
@exact_arithmetic()
def ria_scores(W: Tensor, stats: Statistics, power: float = 0.5) -> Tensor:
    """The scores (d_out, d_in), float32 or wider, as in the formula above; 0 where a whole row or column is 0."""
    if not 0 <= power < float("inf"):
        raise PruneError(f"power {power:g} is not a finite number from 0 up: 0.5 is the published one")
    size = W.to(torch.promote_types(W.dtype, torch.float32)).abs()  # (d_out, d_in)
    smallest = torch.finfo(size.dtype).tiny  # where a sum is 0, so are its weights: 0 / tiny = 0
    per_input = size.sum(0).clamp(min=smallest)  # (d_in,)
    per_output = size.sum(1, keepdim=True).clamp(min=smallest)  # (d_out, 1)
    return (size / per_input + size / per_output) * stats.sq_norm.pow(power / 2)
