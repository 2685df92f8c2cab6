"""What every method returns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Result:
    """weight: (d_out, d_in) in the dtype of W, zero where pruned. keep: (d_out, d_in) bool, True where kept.
    note: what the user should be told, such as a damping that had to be raised; usually empty."""

    weight: Tensor
    keep: Tensor
    note: str = ""
