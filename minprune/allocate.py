"""How sparse each layer should be: the same everywhere, or what a user's table says."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatch

from minprune.errors import PruneError
from minprune.model import Layer
from minprune.patterns import NM, Pattern

Allocation = Mapping[str, float] | Callable[[list[Layer]], Mapping[str, float]] | None


def allocate(layers: list[Layer], pattern: Pattern, allocation: Allocation = None) -> dict[Layer, Pattern]:
    """The pattern of each layer.

    allocation: glob -> sparsity; of several globs that match a layer the last one counts, and a layer that none
    matches keeps the sparsity of `pattern`. Or a function from the layers to such a table. The average sparsity is
    what the table makes it. Raises `PruneError` for a glob that matches nothing, a sparsity outside 0..1, or N:M.
    """
    table = allocation(layers) if callable(allocation) else allocation or {}
    if not isinstance(table, Mapping):
        raise PruneError(f"an allocation is a table from globs to sparsities, not {type(table).__name__}")
    patterns = dict.fromkeys(layers, pattern)
    if isinstance(pattern, NM):
        if table:
            raise PruneError(f"an allocation cannot change the sparsity of {pattern}: use a pattern like 50%")
        return patterns
    for glob, sparsity in table.items():
        matched = [layer for layer in layers if fnmatch(layer.name, glob)]
        if not matched:
            raise PruneError(f"the allocation's {glob!r} matches no layer: names look like {layers[0].name!r}")
        if not isinstance(sparsity, (int, float)) or isinstance(sparsity, bool):
            raise PruneError(f"the allocation's {glob!r} has sparsity {sparsity!r}: it must be a number in 0..1")
        patterns |= dict.fromkeys(matched, replace(pattern, sparsity=float(sparsity)))
    return patterns
