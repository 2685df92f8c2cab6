"""The arithmetic of statistics, solves, masks and errors: that of their own dtype, whatever is set around them.

A caller may have chosen narrow products for the model: `torch.autocast`, `set_float32_matmul_precision("medium")`,
the bfloat16 products of a recipe. Those are for the forward pass. A Gram matrix or a triangular solve that is rounded
to 8 bits gives other weights, and nothing would say so.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """While open, or in a function that it decorates, products are taken in the dtype of their factors.

    No autocast and no narrow float32 products on any device; no gradients, and tensors that are made are ordinary
    ones, also inside `torch.inference_mode`. Afterwards all is as it was.
    """
    accelerator = torch.accelerator.current_accelerator()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in {"cpu", accelerator.type if accelerator else "cpu"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_full_products())
        yield


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """While open, or in a function that it decorates, tensors are ordinary ones, also inside `torch.inference_mode`.

    And they are made on the CPU unless it is said where, whatever `torch.set_default_device` says.
    """
    with torch.inference_mode(False), ExitStack() as stack:
        if torch.get_default_device().type != "cpu":  # else the context would only cost time at each call
            stack.enter_context(torch.device("cpu"))
        yield


def type_around(own: torch.dtype, device: str) -> torch.dtype:
    """In which type a model of the dtype `own` takes its products here: a caller's autocast's, or its own.

    Autocast leaves float64 as it is.
    """
    known = own != torch.float64 and torch.amp.is_autocast_available(device)
    return torch.get_autocast_dtype(device) if known and torch.is_autocast_enabled(device) else own


def is_finite(W: torch.Tensor) -> bool:
    """Whether there is neither NaN nor infinity. The extremes stay apart: autocast may refuse to put them together."""
    low, high = W.aminmax()  # those of a tensor with NaN are NaN
    return bool(low.isfinite() & high.isfinite())


def random_devices(device: torch.device) -> list[torch.device]:
    """For `torch.random.fork_rng`: the generator of this device alone, next to the CPU's, not that of every GPU."""
    return [device] if device.type == "cuda" else []


def changes_of(tensor: torch.Tensor) -> object:
    """Equal for one tensor at two moments if nothing has changed it in place between them.

    Tensors of inference mode do not count their changes: nobody knows, and no two moments are equal.
    """
    return object() if tensor.is_inference() else tensor._version


def clock(device: torch.device) -> float:
    """Seconds on a clock, once the device has done all that it was given: a GPU works on while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _full_products() -> Iterator[None]:
    """While open, float32 products are not taken in TF32 or bfloat16."""
    known: Any = torch.backends
    matmuls = [known.cuda.matmul, known.mkldnn.matmul] if hasattr(known, "fp32_precision") else []  # since torch 2.9
    before = [matmul.fp32_precision for matmul in matmuls]
    try:
        common = torch.get_float32_matmul_precision()
    except RuntimeError:  # it cannot say what was set for one backend
        common = None
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if common:
            torch.set_float32_matmul_precision(common)
        for matmul, precision in zip(matmuls, before, strict=True):
            matmul.fp32_precision = precision
