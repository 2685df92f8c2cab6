"""The arithmetic of statistics, solves, masks and errors: that of their own dtype, whatever is set around them.

A caller may have chosen narrow products for the model: `torch.autocast`, `set_float32_matmul_precision("medium")`,
the bfloat16 products of a recipe. Those are for the forward pass. A Gram matrix or a triangular solve that is rounded
to 8 bits gives other weights, and nothing would say so.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

_SUMS = {torch.addmm, torch.baddbmm}  # of a term and a product
_PRODUCTS = {
    *(linear, scaled_dot_product_attention, *_SUMS),
    *(torch.mm, torch.bmm, torch.matmul),
    *(Tensor.mm, Tensor.bmm, Tensor.matmul, Tensor.__matmul__),
}
_UNITS = {torch.bfloat16: ("amx_bf16", "avx512_bf16"), torch.float16: ("amx_fp16", "avx512_fp16")}
_FEW = 8  # rows: for fewer, a product costs little more than to widen the weights
_PART = 2**23  # numbers that are widened at a time beside the weights, so that memory stays that of narrow products


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
        stack.enter_context(_full_products)
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


def cpu_multiplies(kind: torch.dtype) -> bool | None:
    """Whether this processor is made for products of that type; None if torch cannot tell, as on ARM."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # which older versions do not have
    told = [known[name] for name in _UNITS.get(kind, ()) if name in known]
    return any(told) if told else None if kind in _UNITS else True


class WideProducts(TorchFunctionMode):
    """While open, a CPU takes products of bfloat16 or float16 in float32, and rounds what comes out.

    For processors that are not made for these types: in float32 they are three to five times as fast. To widen a factor
    is exact, and hardware that is made for narrow factors adds their products up in float32, too. If an autocast asks
    for such products, factors are rounded first. What is compiled stays as its compiler makes it, and a product that is
    written into a tensor of the caller's as the caller asked for it.
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling() or func not in _PRODUCTS or "out" in kwargs:
            return func(*args, **kwargs)
        kind = _narrow_type([*args, *kwargs.values()], func in _SUMS)
        if kind is None:
            return func(*args, **kwargs)

        def widened(value: Any) -> Any:
            return value.to(kind).float() if isinstance(value, Tensor) and value.dtype != torch.bool else value

        def product(*factors: Any, **options: Any) -> Tensor:
            return func(*map(widened, factors), **{name: widened(value) for name, value in options.items()}).to(kind)

        with torch.autocast("cpu", enabled=False):
            if func is scaled_dot_product_attention and args and args[0].ndim == 4:
                size = len(args[0])  # windows
                return _joined(size, (product(*some, **options) for some, options in _windows(size, args, kwargs)))
            if func is linear and not kwargs:
                x, *factors = args[0], *map(widened, args[1:])  # the weights are widened once
                rows = x.flatten(0, -2)  # (tokens, d_in)
                some = rows.split(max(_FEW, _PART // max(factors[0].shape)))
                parts = (linear(widened(part), *factors).to(kind) for part in some)
                return _joined(len(rows), parts).unflatten(0, x.shape[:-1])
            return product(*args, **kwargs)


def _joined(size: int, parts: Iterator[Tensor]) -> Tensor:
    """Parts that follow one another along the first dimension, which has that size, as one tensor.

    Where no gradients are asked for each is put in its place as soon as it is there, so that none takes memory twice.
    """
    first = next(parts)
    if len(first) == size or first.requires_grad:
        return torch.cat([first, *parts]) if len(first) < size else first
    whole, start = first.new_empty(size, *first.shape[1:]), 0
    for part in chain([first], parts):
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def _windows(size: int, args: tuple, kwargs: dict[str, Any]) -> Iterator[tuple[list, dict[str, Any]]]:
    """The arguments of an attention over so many windows, some at a time. What all have in common stays whole."""
    largest = max(part.numel() for part in (*args, *kwargs.values()) if isinstance(part, Tensor))
    step = max(1, _PART * size // max(1, largest))

    def cut(value: Any, start: int) -> Any:
        own = isinstance(value, Tensor) and value.ndim == 4 and len(value) == size
        return value[start : start + step] if own else value

    for start in range(0, size, step):
        yield [cut(value, start) for value in args], {name: cut(value, start) for name, value in kwargs.items()}


def narrow_around(device: str = "cpu") -> torch.dtype | None:
    """The narrow type in which an autocast around this takes products on that device, if one does."""
    kind = type_around(torch.float32, device)
    return kind if kind in _UNITS else None


def _narrow_type(given: list, behind_a_term: bool) -> torch.dtype | None:
    """In which type a product is asked for, if it is worth widening: on the CPU, of more than a few rows.

    behind_a_term: whether the factors stand behind something that their product is added to.
    """
    tensors = [part for part in given if isinstance(part, Tensor)]
    if any(part.is_nested for part in tensors):  # of which not even the size may be asked
        return None
    rows = max((part.numel() // max(part.shape[-1], 1) for part in tensors[behind_a_term:][:1]), default=0)
    kinds = {part.dtype for part in tensors} - {torch.bool}
    if rows < _FEW or tensors[0].device.type != "cpu" or not kinds <= {torch.float32, *_UNITS}:
        return None
    return narrow_around() or (next(iter(kinds & set(_UNITS)), None) if len(kinds) == 1 else None)


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


class _FullProducts:
    """While open anywhere, float32 products are not taken in TF32 or bfloat16.

    The setting is one for all threads: the first that comes makes it, and the last that goes puts back what was there.
    """

    def __init__(self) -> None:
        self.lock, self.open, self.before = RLock(), 0, _precisions()

    def __enter__(self) -> None:
        with self.lock:
            if not self.open:
                self.before = _precisions()
                torch.set_float32_matmul_precision("highest")
            self.open += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.open -= 1
            if not self.open:
                _set_precisions(*self.before)


def _precisions() -> tuple[str | None, list[tuple[Any, str]]]:
    """What is set for all backends together, None if that cannot be said, and for each by itself."""
    known: Any = torch.backends
    matmuls = [known.cuda.matmul, known.mkldnn.matmul] if hasattr(known, "fp32_precision") else []  # since torch 2.9
    try:
        common = torch.get_float32_matmul_precision()
    except RuntimeError:  # it cannot say what was set for one backend
        common = None
    return common, [(matmul, matmul.fp32_precision) for matmul in matmuls]


def _set_precisions(common: str | None, each: list[tuple[Any, str]]) -> None:
    if common:
        torch.set_float32_matmul_precision(common)
    for matmul, precision in each:
        matmul.fp32_precision = precision


_full_products = _FullProducts()
