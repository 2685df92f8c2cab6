"""The methods: one weight matrix in, one sparse weight matrix out.

Every method is called as `method(W, stats, pattern, **options)` and returns a `Result`. It never changes its
arguments and knows nothing of models, files or progress bars. A new method is one file and one line in `METHODS`,
and what is called through `METHODS` has its arguments checked, the pattern also as a text such as "50%". Whatever
autocast, matmul precision or gradient mode is set around a method, it computes in float32, or in float64 for such
weights.

Methods that take a given mask as `keep=` can stand behind a plus: "wanda+sparsegpt" is Wanda's mask with SparseGPT's
update of the weights. `get_method` reads such names.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from numbers import Integral, Real

import torch
from torch import Tensor

from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError
from minprune.methods import admm, alps, least_squares, magnitude, obs, ria, sparsegpt, swaps, wanda
from minprune.methods.damping import check_finite
from minprune.methods.result import Result
from minprune.patterns import pattern as read_pattern
from minprune.statistics import Statistics

__all__ = ["METHODS", "Method", "Result", "get_method"]

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
    """A pruning function and what it must know of the layer's inputs.

    needs: "nothing", "norms" (Statistics without a Gram matrix) or "gram".
    start: the method whose mask this one is given, as in "wanda+sparsegpt"; None if it chooses by itself.
    """

    function: Callable[..., Result]
    needs: str
    start: "Method | None" = None

    @exact_arithmetic()
    def __call__(self, W, stats, pattern, **options) -> Result:
        pattern = read_pattern(pattern)
        self._check(W, stats)
        pattern.check(*W.shape)
        self.check_values(options)
        if isinstance(stats, Statistics):
            stats = stats.to(W.device)
        if self.start is None:
            return self.function(W, stats, pattern, **options)
        first = self.start(W, stats, pattern, **{o: options[o] for o in options if o in self.start.options})
        own = {o: options[o] for o in options if o in self._parameters} | {"keep": first.keep}
        result = self.function(W, stats, pattern, **own)
        return replace(result, note="; ".join(note for note in (first.note, result.note) if note))

    def _check(self, W, stats) -> None:
        """Raise `PruneError` unless W is a finite matrix and stats are what this method needs to know of its inputs."""
        if not (isinstance(W, Tensor) and W.ndim == 2 and W.dtype in _FLOATS and W.numel()):
            what = f"{tuple(W.shape)} of {W.dtype}" if isinstance(W, Tensor) else type(W).__name__
            floats = "float32, float64, float16 or bfloat16"
            raise PruneError(f"the weights are {what}: a method takes a matrix (d_out, d_in) of {floats}")
        if W.layout != torch.strided or W.is_meta:
            raise PruneError(
                f"the weights are {W.layout} on {W.device}: a method takes a dense matrix that is in memory"
            )
        if self.needs != "gram":  # the others have `checked_gram` look, as whoever calls them directly does
            check_finite(W)
        if self.needs == "nothing":
            return
        if not isinstance(stats, Statistics):
            raise PruneError(f"this method needs minprune.Statistics of the layer's inputs, not {type(stats).__name__}")
        if stats.d_in != W.shape[1]:
            raise PruneError(
                f"the statistics are of {stats.d_in} inputs, the weights {tuple(W.shape)} have another d_in"
            )
        if not stats.tokens and not bool(stats.sq_norm.any()):  # sums may also have been put there by hand
            raise PruneError("the statistics saw no input: update them with the layer's inputs X (tokens, d_in) first")
        if not bool(stats.sq_norm.isfinite().all()):
            raise PruneError("the statistics hold NaN or infinity: look for them in the layer's inputs")

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

    def check_values(self, options: dict) -> None:
        """Raise `PruneError` for an option whose value is not of its type."""
        for option, value in options.items():
            kind = self.options.get(option)
            good = _KINDS.get(kind)  # type: ignore[arg-type]
            if good and (not isinstance(value, good[0]) or isinstance(value, bool)):
                raise PruneError(f"{option} is {value!r}: it must be {good[1]}")

    def check_options(self, name: str, options: dict) -> None:
        """Raise `PruneError` for an option that the function does not have, or whose value is not of its type."""
        self.check_names(name, options)
        self.check_values(options)

    def check_names(self, name: str, options: Iterable[str]) -> None:
        """Raise `PruneError` for an option that the function does not have."""
        if unknown := [option for option in options if option not in self.options]:
            has = f"its options are {', '.join(self.options)}" if self.options else "it has no options"
            raise PruneError(f"method {name!r} does not know the option {unknown[0]!r}: {has}")


METHODS = {
    "magnitude": Method(magnitude.magnitude, needs="nothing"),
    "wanda": Method(wanda.wanda, needs="norms"),
    "sparsegpt": Method(sparsegpt.sparsegpt, needs="gram"),
    "obd": Method(obs.obd, needs="norms"),
    "obs": Method(obs.obs, needs="gram"),
    "ria": Method(ria.ria, needs="norms"),
    "exact": Method(least_squares.exact, needs="gram"),
    "admm": Method(admm.admm, needs="gram"),
    "swaps": Method(swaps.swaps, needs="gram"),
    "alps": Method(alps.alps, needs="gram"),
}


def get_method(name: str) -> Method:
    """The method of that name, or of several names joined by a plus, each working on the mask of the one before it.

    Raises `PruneError`, which lists the known ones, for an unknown name or one that cannot take a mask.
    """
    chosen: Method | None = None
    for part in name.split("+"):
        if part not in METHODS:
            raise PruneError(f"unknown method {part!r}: choose one of {', '.join(METHODS)}")
        method = METHODS[part]
        if chosen is not None and "keep" not in method.options:
            able = ", ".join(known for known, other in METHODS.items() if "keep" in other.options)
            raise PruneError(f"method {name!r}: {part} cannot work on a given mask, only {able} can")
        chosen = method if chosen is None else method.after(chosen)
    assert chosen is not None  # a split has at least one part
    return chosen
