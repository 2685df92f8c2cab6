"""Optimal Brain Damage: which weight costs least if the others stay as they are. Chapter 03.

    H_qq w_q^2 / 2     for weight q of an output row w, with H = gram     (LeCun et al. 1990)

No weight is updated, unlike in obs.py. The scores are Wanda's, squared and halved.
"""

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import exact_arithmetic
from minprune.methods.result import Result
from minprune.patterns import Pattern
from minprune.statistics import Statistics


@checked()
@exact_arithmetic()
def obd(W: Tensor, stats: Statistics, pattern: Pattern) -> Result:
    """Prune the smallest W_ij^2 * H_jj / 2 and update nothing; plain "50%" compares over the whole layer.

    Parameters
    ----------
    W : Tensor (d_out, d_in), floating
    stats : Statistics, of which only `sq_norm` (d_in,), the diagonal of H, is used
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
    >>> import torch, minprune as mp
    >>> stats = mp.Statistics(4, gram=False).update(torch.tensor([[9.0, 1.0, 1.0, 1.0]]))
    >>> mp.METHODS["obd"](torch.tensor([[1.0, 2.0, 3.0, 4.0]]), stats, "50%").weight
    tensor([[1., 0., 0., 4.]])
    """
    saliency = W.to(torch.promote_types(W.dtype, torch.float32)).square() * stats.sq_norm / 2  # (d_out, d_in)
    keep = pattern.with_default("layer").keep(saliency)
    return Result(W.masked_fill(~keep, 0), keep)
