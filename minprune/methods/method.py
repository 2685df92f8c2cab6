"""A method with its name in `METHODS`: what it needs to know, and the checks before each call."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError, own_number
from minprune.methods.damping import check_finite
from minprune.methods.result import Result, checked_result
from minprune.patterns import Pattern
from minprune.patterns import pattern as read_pattern
from minprune.statistics import Statistics

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_KINDS = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    float | None: (Real | None, "a number or None"),
    Tensor | None: (Tensor | None, "a mask or None"),
}
_NEEDS = ("nothing", "norms", "gram")  # from little to much: what is enough for the last is enough for all


@dataclass(frozen=True)
class Method:
    """A pruning function and what it must know of the layer's inputs. A call checks its arguments first.

    Parameters
    ----------
    function : callable
        function(W, stats, pattern, **options) -> Result.
    needs : {"nothing", "norms", "gram"}
        "norms" means `Statistics` without a Gram matrix.
    start : Method or None, default None
        The method whose mask this one is given, as in "wanda+sparsegpt". None if it chooses by itself.
    fits : callable or None, default None
        fits(d_in, **options) raises `PruneError` for a layer of so many inputs if the method cannot do it.

    Raises
    ------
    PruneError
        If the function cannot be called, or `needs` is another word. By a call whose weights are no finite matrix,
        whose statistics are not of its inputs, or with an option of another kind; a method says the rest.

    Examples
    --------
    >>> import minprune as mp
    >>> mp.METHODS["wanda"].needs, list(mp.METHODS["admm"].options)
    ('norms', ['steps', 'gradual', 'rho', 'damp', 'keep'])
    """

    function: Callable[..., Result]
    needs: str
    start: "Method | None" = None
    fits: Callable[..., None] | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise PruneError(f"a method's function is function(W, stats, pattern, **options), not {self.function!r}")
        if self.needs not in _NEEDS:
            raise PruneError(f"needs is one of {', '.join(_NEEDS)}, not {self.needs!r}")

    @exact_arithmetic()
    def __call__(self, W: Tensor, stats: Statistics | None, pattern: str | Pattern, **options: Any) -> Result:
        pattern = read_pattern(pattern)
        self._check(W, stats)
        pattern.check(*W.shape)
        self.check_values(options)
        options = {option: self._own(option, value) for option, value in options.items()}
        if isinstance(stats, Statistics):
            stats = stats.to(W.device)
        if self.start is None:
            return checked_result(self.function(W, stats, pattern, **options))
        first = self.start(W, stats, pattern, **{o: options[o] for o in options if o in self.start.options})
        own = {o: options[o] for o in options if o in self._parameters} | {"keep": first.keep}
        result = checked_result(self.function(W, stats, pattern, **own))
        return replace(result, note="; ".join(note for note in (first.note, result.note) if note))

    def _check(self, W: Any, stats: Any) -> None:
        """Raise `PruneError` unless W is a finite matrix and stats are what this method needs to know of its inputs."""
        if not (isinstance(W, Tensor) and W.ndim == 2 and W.dtype in _FLOATS and W.numel()):
            what = f"{tuple(W.shape)} of {W.dtype}" if isinstance(W, Tensor) else type(W).__name__
            floats = "float32, float64, float16 or bfloat16"
            raise PruneError(f"the weights are {what}: a method takes a matrix (d_out, d_in) of {floats}")
        if W.layout != torch.strided or W.is_meta:
            raise PruneError(f"the weights are {W.layout} on {W.device}: a method takes a dense matrix in memory")
        if self.needs != "gram":  # the others have `checked_gram` look, as whoever calls them directly does
            check_finite(W)
        if self.needs == "nothing":
            return
        if not isinstance(stats, Statistics):
            raise PruneError(f"this method needs minprune.Statistics of the layer's inputs, not {type(stats).__name__}")
        if stats.d_in != W.shape[1]:
            raise PruneError(f"the statistics are of {stats.d_in} inputs, weights {tuple(W.shape)} have another d_in")
        if not stats.tokens and not bool(stats.sq_norm.any()):  # sums may also have been put there by hand
            raise PruneError("the statistics saw no input: update them with the layer's inputs X (tokens, d_in) first")
        if not bool(stats.sq_norm.isfinite().all()):
            raise PruneError("the statistics hold NaN or infinity: look for them in the layer's inputs")

    def _own(self, option: str, value: Any) -> Any:
        """The value of an option as a number of Python's, of the type of the option."""
        if self.options.get(option) not in (float, float | None) or value is None:
            return own_number(value)
        try:
            return float(value)
        except OverflowError:
            raise PruneError(f"{option} is too large a number") from None

    @property
    def name(self) -> str:
        """What the function is called; of a partial the function inside, of an object that is callable its class."""
        function = self.function
        while isinstance(function, partial):
            function = function.func
        return getattr(function, "__name__", type(function).__name__)

    @property
    def _parameters(self) -> dict[str, type]:
        """Its keyword-only parameters and their types."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def options(self) -> dict[str, type]:
        """What a user may set, with its type; behind a plus the mask is given, so `keep` is not among them."""
        if self.start is None:
            return self._parameters
        return self.start.options | {name: kind for name, kind in self._parameters.items() if name != "keep"}

    def after(self, start: "Method") -> "Method":
        """This method on the mask that `start` chooses."""
        return replace(self, needs=max(self.needs, start.needs, key=_NEEDS.index), start=start)

    def check_values(self, options: dict[str, Any]) -> None:
        """Raise `PruneError` for an option whose value is not of its type."""
        for option, value in options.items():
            kind = self.options.get(option)
            good = _KINDS.get(kind)  # type: ignore[arg-type]
            if good and (not isinstance(value, good[0]) or isinstance(value, bool)):
                raise PruneError(f"{option} is {value!r}: it must be {good[1]}")

    def check_options(self, name: str, options: dict[str, Any]) -> None:
        """Raise `PruneError` for an option that the function does not have, or whose value is not of its type."""
        self.check_names(name, options)
        self.check_values(options)

    def check_names(self, name: str, options: Iterable[str]) -> None:
        """Raise `PruneError` for an option that the function does not have."""
        if unknown := [option for option in options if option not in self.options]:
            has = f"its options are {', '.join(self.options)}" if self.options else "it has no options"
            raise PruneError(f"method {name!r} does not know the option {unknown[0]!r}: {has}")
