"""The methods: one weight matrix in, one sparse weight matrix out.

Every method is called as `method(W, stats, pattern, **options)` and returns a `Result`. It never changes its
arguments and knows nothing of models, files or progress bars. A new method is one file and one line in `METHODS`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from minprune.errors import PruneError
from minprune.methods import magnitude, sparsegpt, wanda
from minprune.methods.result import Result

__all__ = ["METHODS", "Method", "Result", "get_method"]


@dataclass(frozen=True)
class Method:
    """A pruning function and what it must know of the layer's inputs.

    needs: "nothing", "norms" (Statistics without a Gram matrix) or "gram".
    """

    function: Callable[..., Result]
    needs: str

    def __call__(self, W, stats, pattern, **options) -> Result:
        return self.function(W, stats, pattern, **options)

    def check_options(self, name: str, options: dict) -> None:
        """Raise `PruneError` for an option that the function does not have."""
        known = [p.name for p in inspect.signature(self.function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        for option in options:
            if option not in known:
                has = f"its options are {', '.join(known)}" if known else "it has no options"
                raise PruneError(f"method {name!r} does not know the option {option!r}: {has}")


METHODS = {
    "magnitude": Method(magnitude.magnitude, needs="nothing"),
    "wanda": Method(wanda.wanda, needs="norms"),
    "sparsegpt": Method(sparsegpt.sparsegpt, needs="gram"),
}


def get_method(name: str) -> Method:
    """The method of that name; `PruneError` lists the known ones otherwise."""
    if name not in METHODS:
        raise PruneError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]
