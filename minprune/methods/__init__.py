"""The methods: one weight matrix in, one sparse weight matrix out.

Every method is called as `method(W, stats, pattern, **options)` and returns a `Result`. It never changes its
arguments and knows nothing of models, files or progress bars. A new method is one file and one line in `METHODS`.
A call through `METHODS` checks the arguments, and the pattern may be a text such as "50%". A method computes in float32
(float64 for such weights), whatever autocast, matmul precision or gradient mode is set around it.

Methods that take a given mask as `keep=` can stand behind a plus: "wanda+sparsegpt" is Wanda's mask with SparseGPT's
update of the weights. `get_method` reads such names.
"""

from dataclasses import replace

from minprune.errors import PruneError
from minprune.methods import admm, alps, least_squares, magnitude, obd, obs, ria, sparsegpt, swaps, wanda
from minprune.methods.method import Method
from minprune.methods.result import Result
from minprune.methods.scaling import scale_free

__all__ = ["METHODS", "Method", "Result", "get_method"]

METHODS = {
    "magnitude": Method(magnitude.magnitude, needs="nothing"),
    "wanda": Method(wanda.wanda, needs="norms"),
    "sparsegpt": Method(sparsegpt.sparsegpt, needs="gram"),
    "obd": Method(obd.obd, needs="norms"),
    "obs": Method(obs.obs, needs="gram"),
    "ria": Method(ria.ria, needs="norms"),
    "exact": Method(least_squares.exact, needs="gram"),
    "admm": Method(admm.admm, needs="gram"),
    "swaps": Method(swaps.swaps, needs="gram"),
    "alps": Method(alps.alps, needs="gram"),
}
METHODS |= {name: replace(method, function=scale_free(method.function)) for name, method in METHODS.items()}


def get_method(name: str | Method) -> Method:
    """The method of that name, or of several names joined by a plus, each working on the mask of the one before it.

    Parameters
    ----------
    name : str or Method
        A name of `METHODS`, or several such as "wanda+sparsegpt". A method that is given is given back.

    Returns
    -------
    Method

    Raises
    ------
    PruneError
        For an unknown name, or a method behind a plus that cannot take a mask.

    Examples
    --------
    >>> from minprune.methods import get_method
    >>> get_method("wanda+sparsegpt").needs
    'gram'
    """
    if isinstance(name, Method):
        return name
    if not isinstance(name, str):
        raise PruneError(f"a method is one of {', '.join(METHODS)}, or a Method, not {name!r}")
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
