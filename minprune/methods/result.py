"""What every method returns."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from minprune.errors import PruneError


@dataclass(frozen=True)
class Result:
    """What every method returns.

    Parameters
    ----------
    weight : Tensor (d_out, d_in)
        In the dtype of W, zero where pruned.
    keep : Tensor (d_out, d_in), bool
        True where kept.
    note : str, default ""
        What the user should be told, such as a damping that had to be raised.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> mp.METHODS["magnitude"](torch.tensor([[1.0, 2.0]]), None, "50%")
    Result(weight=tensor([[0., 2.]]), keep=tensor([[False,  True]]), note='')
    """

    weight: Tensor
    keep: Tensor
    note: str = ""


def checked_result(found: Any) -> Result:
    """What a function gave, if it is a `Result` of tensors; else `PruneError` is raised."""
    if not (isinstance(found, Result) and isinstance(found.weight, Tensor)):
        what = f"a Result of {type(found.weight).__name__}" if isinstance(found, Result) else type(found).__name__
        raise PruneError(f"the method gave {what}, not a Result(weight, keep) of tensors: mend the method")
    return found
