"""What a call of somebody's function did, as plain data: to be compared, sent and shown without running more of it.

This module knows no exercise: it is also what the process has in which `minprune grade` runs an answer.
"""

import contextlib
import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minprune.course.deadline import OutOfTimeError, time_limit

_DEPTH = 20  # of lists in lists
_TEXT = 2000  # characters of an error's message
_NAME = 100  # of a class's name
HOOKS = "hooks on the model"  # what a changed module is told as


@dataclass(frozen=True)
class Thing:
    """A value that is no number, tensor or list of these. text: its kind, with an article."""

    text: str


@dataclass(frozen=True)
class Failure:
    """An exception. kinds: its class and those above it, "module.name"; line: of the function, its `def` being 1."""

    kinds: tuple[str, ...]
    text: str
    line: int | None = None

    @property
    def name(self) -> str:
        """The name of its class."""
        return self.kinds[0].rpartition(".")[2]


@dataclass(frozen=True)
class Outcome:
    """What a call did. value: plain data; changed: the first argument that it modified, as `told`; late: stopped.

    slope: the gradient of the value in one of the arguments, if that was asked for and there is one.
    """

    value: Any = None
    error: Failure | None = None
    changed: str | None = None
    slope: Tensor | None = None
    late: bool = False


def run(function: Callable, args: tuple, slope: int | None = None, seconds: float | None = None) -> Outcome:
    """Call a function with copies of the arguments. Its exceptions are told, not raised; of interrupts only its exit.

    slope: the place of the argument in which the gradient is asked for, for which the function is called once more.
    seconds: after which it is stopped, as far as `time_limit` can; no limit without it.
    """
    copies = copy.deepcopy(args)
    try:
        with torch.random.fork_rng(devices=[]), time_limit(seconds) if seconds else contextlib.nullcontext():
            value = plain(function(*copies))
            names = argument_names(function, copies)
            changed = next((told(n, a) for n, a, b in zip(names, args, copies, strict=True) if not same(a, b)), None)
            return Outcome(value, changed=changed, slope=None if slope is None else _slope(function, args, slope))
    except OutOfTimeError:
        return Outcome(late=True)
    except (Exception, SystemExit) as error:  # an answer that ends the program must not end the grading
        return Outcome(error=failure(error, function))


def _slope(function: Callable, args: tuple, place: int) -> Tensor | None:
    """The gradient of the result in the argument at `place`; None if there is none."""
    copies = copy.deepcopy(args)
    copies[place].requires_grad_()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            (gradient,) = torch.autograd.grad(function(*copies), copies[place], allow_unused=True)
    except Exception:
        return None
    return None if gradient is None else _plain_tensor(gradient).double()


def failure(error: BaseException, function: Any = None) -> Failure:
    """An exception as data; the function is the one in whose lines it is to be placed."""
    try:
        text = str(error)
    except Exception:  # it is a class of the learner's
        text = ""
    kinds = tuple(legible(f"{kind.__module__}.{kind.__qualname__}"[:_NAME]) for kind in type(error).__mro__)
    return Failure(kinds, legible(text.strip()[:_TEXT]), _line(function, error))


def legible(text: str) -> str:
    """The text with a blank for each character that would steer a terminal or that no encoding takes."""
    return "".join(c if c == "\n" or c.isprintable() else " " for c in text)


def plain(value: Any, depth: int = 0) -> Any:
    """A result as None, bool, int, float, a plain tensor, or a list or tuple of these; `Thing` for all else.

    NumPy's numbers and arrays become Python's numbers and tensors, subclasses what they are made of.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else Thing("a whole number of more than 64 bits")
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (list, tuple)) and depth < _DEPTH:
        parts = [plain(part, depth + 1) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    if isinstance(value, (Tensor, np.ndarray)):
        return _plain_tensor(value)
    return Thing(f"a {type(value).__name__[:_NAME]}")


def _plain_tensor(value: Any) -> Any:
    kind = Thing(f"a {type(value).__name__}")
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            return kind
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), subok=False))
    with torch._C.DisableTorchFunctionSubclass():
        if value.is_complex() or value.is_quantized or value.is_meta or value.is_nested:
            return kind
        dense = value.detach() if value.layout == torch.strided else value.detach().to_dense()
        return dense.as_subclass(Tensor)


def argument_names(function: Callable, args: tuple) -> list[str]:
    """The names of the parameters, one for each argument."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        names = []
    return [*names, *(f"number {i}" for i in range(len(names), len(args)))][: len(args)]


def same(a: Any, b: Any) -> bool:
    """Whether two arguments are equal, dtype and shape included; of two modules, whether they have as many hooks."""
    if isinstance(a, (Tensor, np.ndarray, list, tuple, dict)) and not isinstance(b, type(a)):
        return False
    if isinstance(a, Tensor):
        equal = a.shape == b.shape and a.dtype == b.dtype
        return equal and bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is not equal to itself
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.nn.Module):
        return hooks(a) == hooks(b)
    return callable(a) or bool(a == b)


def told(name: str, argument: Any) -> str:
    """A changed argument by its name; of a module only the hooks are compared."""
    return HOOKS if isinstance(argument, torch.nn.Module) else name


def hooks(module: torch.nn.Module) -> int:
    """How many forward hooks, of either kind, are on a module and its parts."""
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def _line(function: Any, error: BaseException) -> int | None:
    """The line of the function, counted from its `def` as 1, in which the error arose."""
    code, line, trace = getattr(function, "__code__", None), None, error.__traceback__
    while trace and code:
        if trace.tb_frame.f_code is code:
            line = trace.tb_lineno - code.co_firstlineno + 1
        trace = trace.tb_next
    return line
