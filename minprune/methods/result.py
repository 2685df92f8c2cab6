"""What every method returns."""

from dataclasses import dataclass

from torch import Tensor


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
