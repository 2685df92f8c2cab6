"""In which type forward passes take their matrix products. Chapter 08.

Statistics, solves, sums and weights keep their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from minprune.arithmetic import WideProducts, cpu_multiplies, type_around
from minprune.errors import PruneError

PRECISIONS = ("auto", "float32", "bfloat16")


def check_precision(precision: str) -> None:
    """Raise `PruneError` for an unknown name."""
    if precision not in PRECISIONS:
        raise PruneError(f"unknown precision {precision!r} of forward products: choose one of {', '.join(PRECISIONS)}")


def type_of_products(own: torch.dtype, device: str, precision: str) -> torch.dtype:
    """In which type a model of the dtype `own` takes its products: that asked for, a caller's autocast's, or its own.

    Only a model in float32 can be asked for another one.
    """
    if precision == "bfloat16" and own == torch.float32:
        return torch.bfloat16
    return type_around(own, device) if precision == "auto" else own


@contextmanager
def narrow_products(device: str, narrow: bool) -> Iterator[None]:
    """While open, a float32 model takes its products in bfloat16, if `narrow`.

    Without a cache, as weights change while it is open. What is solved meanwhile leaves it, see `exact_arithmetic`. A
    CPU that is not made for such products takes them in float32, of rounded factors.
    """
    wide = narrow and device == "cpu" and cpu_multiplies(torch.bfloat16) is False
    autocast = torch.autocast(device, torch.bfloat16, enabled=narrow, cache_enabled=False)
    with autocast, WideProducts() if wide else nullcontext():
        yield


def multiplies_bfloat16(device: str) -> bool:
    """Whether the hardware is made for products in bfloat16."""
    if device == "cpu":
        return bool(cpu_multiplies(torch.bfloat16))
    return device == "cuda" and torch.cuda.is_bf16_supported()
