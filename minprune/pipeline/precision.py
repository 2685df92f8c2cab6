"""In which type forward passes take their matrix products. Chapter 08.

Statistics, solves, sums and weights keep their own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from minprune.arithmetic import WideProducts, cpu_multiplies, type_around
from minprune.errors import PruneError

PRECISIONS = ("auto", "float32", "bfloat16")
_CHECKPOINT = "_gradient_checkpointing_func"  # where the library notes how a module is checkpointed


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
    autocast = torch.autocast(device, torch.bfloat16, enabled=narrow, cache_enabled=False)
    with autocast, WideProducts() if _widens(device, narrow) else nullcontext():
        yield


@contextmanager
def widened_checkpoints(model: nn.Module, narrow: bool) -> Iterator[None]:
    """Open around the training of a model in `narrow_products`, parts of which may be checkpointed.

    Those are computed anew in the backward pass, where a checkpoint opens the autocast that it was made in, and nothing
    else. So what is checkpointed widens its products itself.
    """
    places = [vars(module) for module in model.modules() if _CHECKPOINT in vars(module)]
    before = [place[_CHECKPOINT] for place in places]
    try:
        for place, checkpoint in zip(places, before, strict=True):
            place[_CHECKPOINT] = _widening(checkpoint) if _widens("cpu", narrow) else checkpoint
        yield
    finally:
        for place, checkpoint in zip(places, before, strict=True):
            place[_CHECKPOINT] = checkpoint


def _widens(device: str, narrow: bool) -> bool:
    return narrow and device == "cpu" and cpu_multiplies(torch.bfloat16) is False


def _widening(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The same checkpoint, of a function that is computed in widened products each time."""

    def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def widened(*given: Any, **named: Any) -> Any:
            with WideProducts():
                return function(*given, **named)

        return checkpoint(widened, *args, **kwargs)

    return call


def multiplies_bfloat16(device: str) -> bool:
    """Whether the hardware is made for products in bfloat16."""
    if device == "cpu":
        return bool(cpu_multiplies(torch.bfloat16))
    return device == "cuda" and torch.cuda.is_bf16_supported()
