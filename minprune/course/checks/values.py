"""Reading and comparing what answers return, and saying in words how two results differ."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minprune.course.outcome import Thing, argument_names


def parts(value: Any) -> list:
    """A result of the reference as a list: a tuple or list has several parts, anything else is one."""
    return list(value) if isinstance(value, (tuple, list)) else [value]


def read(value: Any, like: Any) -> list[Tensor] | None:
    """A result as float64 tensors, one for each part of `like`; None if it cannot be read as such."""
    if isinstance(like, (tuple, list)):
        if not isinstance(value, (tuple, list)) and not (isinstance(value, (Tensor, np.ndarray)) and value.ndim):
            return None
        parts = [as_tensor(part) for part in value]
    else:
        parts = [as_tensor(value)]
    return None if any(part is None for part in parts) else [part for part in parts if part is not None]


def as_tensor(value: Any) -> Tensor | None:
    """One result as a float64 tensor; None if it is no number."""
    try:
        if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) and v.ndim for v in value):
            value = torch.stack([torch.as_tensor(v) for v in value])
        if isinstance(value, (bool, int, float, list, tuple, Tensor, np.ndarray, np.generic)):
            tensor = torch.as_tensor(value).detach()
            return None if tensor.is_complex() else tensor.double()
    except (TypeError, ValueError, RuntimeError):
        pass
    return None


def is_exact(part: Any) -> bool:
    """Whether a part of the result is compared without tolerance: booleans and whole numbers are."""
    return not torch.as_tensor(part).is_floating_point()


def unfit(value: Any, like: Any) -> list[str | None]:
    """For each part of a result that can be read: what it holds, if that is a kind of number which was not asked for.

    Where True and False or whole numbers are asked for, floats are no answer, however round: they index nothing, and
    a mask of floats cannot be inverted. 0 and 1 are a mask, and whole numbers are floats to anyone who asks for these.
    """
    values = parts(value) if isinstance(like, (tuple, list)) and isinstance(value, (tuple, list)) else [value]
    wanted = parts(like)
    values = values if len(values) == len(wanted) else [value] * len(wanted)
    return [_floats(v) if is_exact(w) else None for v, w in zip(values, wanted, strict=True)]


def _floats(value: Any) -> str | None:
    """The type of the floats that a value holds, or None if it holds none: an empty list may be of any type."""
    if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) and v.ndim for v in value):
        value = torch.stack([torch.as_tensor(v) for v in value])
    tensor = torch.as_tensor(value)
    return str(tensor.dtype).removeprefix("torch.") if tensor.is_floating_point() and tensor.numel() else None


def difference(name: str, part: Any, target: Tensor, value: Tensor, close: Tensor) -> str:
    """In words, how a result of the right shape differs from the expected one."""
    if torch.as_tensor(part).dtype == torch.bool:
        if bool(((value != 0) & (value != 1)).any()):
            return f"{name} should hold only True and False."
        if target.numel() > 1 and (count := int(target.sum())) != int(value.sum()):
            return f"{name} should hold {count} True of {target.numel()}, not {int(value.sum())}."
    if not target.ndim:
        want, have = (bool(t) if torch.as_tensor(part).dtype == torch.bool else in_digits(t) for t in (target, value))
        return f"{name} should be {want}, not {have}."
    place = tuple(map(int, (~close).nonzero()[0]))
    which = ", ".join(map(str, place))
    want, have = (
        (bool(t[place]) if torch.as_tensor(part).dtype == torch.bool else in_digits(t[place])) for t in (target, value)
    )
    wrong = int((~close).sum())
    text = f"{name} differs in {wrong} of {target.numel()} places, first at [{which}]: {want} was expected, not {have}."
    zeros, found = int((target == 0).sum()), int((value == 0).sum())
    return f"{text} It should hold {zeros} zeros, not {found}." if zeros and zeros != found else text


def in_digits(value: Tensor) -> str:
    """A number as a person would write it."""
    number = float(value)
    return str(int(number)) if math.isfinite(number) and number == int(number) else f"{number:.6g}"


def arguments(function: Callable, case_args: tuple) -> str:
    """The arguments in a line: "W: 40 x 60, sparsity = 0.5", and numbers where these are few: "w = [1, -2.5]"."""
    described = []
    written = is_small(case_args)
    for name, value in zip(argument_names(function, case_args), case_args, strict=True):
        if callable(value):
            described.append(f"{name}: a function")
        elif isinstance(value, (Tensor, np.ndarray)) and not written:
            described.append(f"{name}: {size(value)}")
        elif (number := sum(isinstance(v, Tensor) for v in _inside(value))) and not written:
            described.append(f"{name}: {number} tensors")
        else:
            described.append(f"{name} = {literal(value)}")
    return ", ".join(described)


SMALL = 24  # numbers that a reader can follow in a line


def is_small(case_args: tuple) -> bool:
    """Whether all numbers of the arguments fit into a message."""
    return sum(map(_count, case_args)) <= SMALL


def _count(value: Any) -> int:
    if isinstance(value, (Tensor, np.ndarray)):
        return int(np.prod(value.shape))
    return sum(map(_count, _inside(value)))


def _inside(value: Any) -> Iterable:
    """What a list, a tuple or a dictionary holds; nothing else holds anything."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()


def literal(value: Any) -> str:
    """A value as Python writes it, floats with four digits."""
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {literal(part)}' for key, part in value.items())}}}"
    return f"{value:.4g}" if isinstance(value, float) and not value.is_integer() else repr(value)


def size(value: Any) -> str:
    """The shape of a tensor as 4 x 6."""
    return " x ".join(map(str, value.shape)) if value.ndim else "a number"


def shape_of(value: Tensor) -> str:
    """The shape of a tensor in words."""
    return f"of shape {tuple(value.shape)}" if value.ndim else "a single number"


def structure(value: Any) -> str:
    """What kind of result this is, in words."""
    if isinstance(value, (tuple, list)):
        return f"a tuple or list of {len(value)} results"
    kind = torch.as_tensor(value)
    if not kind.ndim:
        return "a single number"
    return f"a {'boolean mask' if kind.dtype == torch.bool else 'tensor'} of shape {tuple(kind.shape)}"


def kind(value: Any) -> Any:
    """What tells apart values that are no numbers."""
    return value.text if isinstance(value, Thing) else type(value)


def with_article(value: Any) -> str:
    """The type of a value in words."""
    if isinstance(value, Thing):
        return value.text
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


HALVES = (
    "A half was rounded up. Python's `round` takes a half to the even neighbour, and so does this book: round(2.5) is "
    "2 "
    "and round(3.5) is 4. Where does your rounding come from?"
)


def half_up(number: float) -> int:
    """The nearest integer, halves rounded up: not what Python's `round` does."""
    return math.floor(number + 0.5)


def normal(*shape: int, seed: int) -> Tensor:
    """Normal random numbers that are the same on every machine."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
