"""What a public function is given is compared with its annotations, so that a mistake has a name before any work.

    @checked()
    def perplexity(model: "PreTrainedModel", tokens: Tensor, batch_size: int = 2, progress: bool = False) -> float: ...

    perplexity(model, tokens, batch_size="2")       # PruneError: batch_size is '2': it must be a whole number

Which values a function takes of the right kind, a shape or a range, is for the function to say.
"""

import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from minprune.errors import PruneError, own_number, shown

P = ParamSpec("P")
R = TypeVar("R")


@runtime_checkable
class LanguageModel(Protocol):
    """What tells a model of transformers from other things, also one that a library has wrapped."""

    config: Any
    get_input_embeddings: Any
    named_modules: Any


class Tokenizer:
    """Stands for what a tokenizer of any library is: an object to be called, and no class, network or function."""


_WORDS: Mapping[Any, list[str]] = {
    int: ["a whole number"],
    float: ["a number"],
    bool: ["True", "False"],
    str: ["a text"],
    Tensor: ["a dense tensor in memory"],
    type(None): ["None"],
    Path: ["a path"],
    LanguageModel: ["a language model of transformers"],
    Tokenizer: ["a tokenizer"],
}


def checked(*itself: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: the function raises `PruneError`, by its name, for an argument of another kind than its annotation.

    Numbers and lists of other libraries become Python's own, and what can be gone through only once becomes a list. A
    `tokenizer` needs no annotation. What is in `**options` is not looked at, nor `itself`: arguments for which the
    function has better words.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        plain = {name for name, p in signature.parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}

        @cache
        def kinds() -> dict[str, Any]:
            hints = get_type_hints(inspect.unwrap(function), localns={"PreTrainedModel": LanguageModel})
            return {name: Tokenizer if name == "tokenizer" else hints.get(name, Any) for name in plain - {*itself}}

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs)
            for name in kinds().keys() & given.arguments.keys():
                if given.arguments[name] is not signature.parameters[name].default:
                    given.arguments[name] = checked_value(name, given.arguments[name], kinds()[name])
            return function(*given.args, **given.kwargs)

        return call

    return decorate


def check_fields(settings: Any, *itself: str) -> None:
    """As for arguments: raise `PruneError`, with its name, for a field of a dataclass that is of another kind."""
    for name, kind in get_type_hints(type(settings)).items():
        if name in itself:
            continue
        given = getattr(settings, name)
        if (value := checked_value(name, given, kind)) is not given:
            object.__setattr__(settings, name, value)  # of one that is frozen, too


def checked_value(name: str, given: Any, kind: Any) -> Any:
    """The value as one of that kind; `PruneError`, with its name, if it is none."""
    value = own_number(list(given) if isinstance(given, Iterator) else given)
    if conforms(value, kind):
        if float in (kind, *get_args(kind)) and isinstance(value, int) and abs(value) > sys.maxsize:
            if value.bit_length() > sys.float_info.max_exp:
                raise PruneError(f"{name} is {shown(value)}: that is too large a number")
            return float(value)  # torch multiplies with no larger whole number
        return value
    if isinstance(value, np.ndarray) or (isinstance(value, Tensor) and value.ndim and conforms(value, Tensor)):
        value = value.tolist()
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping, Tensor)):
        value = list(value)  # a tuple, say, of what a list is asked for
    if not conforms(value, kind):
        raise PruneError(f"{name} is {shown(given)}: it must be {words(kind)}")
    return value


def conforms(value: Any, kind: Any) -> bool:
    """Whether a value is what an annotation says, through and through; a tensor is dense and in memory."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or isinstance(kind, TypeVar):
        return True
    if origin in (Union, types.UnionType):
        return any(conforms(value, one) for one in inner)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind is Tokenizer:
        return callable(value) and not isinstance(value, (type, nn.Module)) and not inspect.isroutine(value)
    if kind is Path:
        return isinstance(value, os.PathLike)
    if kind is Tensor:
        return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
    if origin is None:
        return isinstance(value, kind)
    if origin is Callable:
        return callable(value)
    if not isinstance(value, origin) or isinstance(value, (bytes, bytearray)):
        return False
    if issubclass(origin, Mapping):
        return all(conforms(key, inner[0]) and conforms(one, inner[1]) for key, one in value.items())
    if origin is tuple:
        return len(value) == len(inner) and all(map(conforms, value, inner))
    return _all(value, inner[0])


def _all(values: Iterable[Any], kind: Any) -> bool:
    try:
        return all(conforms(one, kind) for one in values)
    except TypeError:  # a tensor without axes says that it can be gone through
        return False


def known_device(device: str | torch.device) -> torch.device:
    """The device of that name; `PruneError` if there is none."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise PruneError(f"device {shown(device)} is not available here ({error}): try cpu") from None


def words(kind: Any) -> str:
    """An annotation in words."""
    parts = _parts(kind)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def _parts(kind: Any) -> list[str]:
    """What a value may be: each in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return [part for one in inner for part in _parts(one)]
    if origin is Callable:
        return ["a function"]
    if origin is tuple:
        return [f"{len(inner)} numbers"]
    if origin is not None and issubclass(origin, Mapping):
        return [f"a mapping from {words(inner[0])} to {words(inner[1])}"]
    if origin is not None:
        return [f"a list, each of it {words(inner[0])}"]
    name = getattr(kind, "__name__", str(kind))
    return _WORDS.get(kind, [f"{'an' if name[0] in 'AEIOU' or name == 'NM' else 'a'} {name}"])
