"""Sparsities that keep to a budget: their average, weighted by parameters, is what was asked for. Chapter 11.

Clamping moves an average, and so does a large layer that is treated like a small one. Both are put right here, once,
so that every rule of allocation is compared at the same number of zeros, up to whole weights of a comparison group.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import brentq

from minprune.errors import PruneError, kind_of_layer
from minprune.models.layers import Layer

GROUPINGS = ("block", "type", "layer")


def group_layers(layers: Sequence[Layer], by: str = "block") -> dict[str, list[Layer]]:
    """Groups of layers, in the order of the model: name -> layers.

    by: "block" (name "model.layers.3"), "type" ("mlp.down_proj", all blocks together) or "layer" (each on its own). A
    layer outside the blocks, such as an output head, is a group of its own. Raises `PruneError` for another `by`.
    """
    check_grouping(by)
    if not layers:
        raise PruneError("there is no layer to share zeros among: pass those that find_layers finds")
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        inside = re.fullmatch(r"(.*?\.\d+)\.(.+)", layer.name)
        name = layer.name
        if inside and by == "block":
            name = inside[1]
        elif inside and by == "type":
            name = kind_of_layer(inside[2])
        groups.setdefault(name, []).append(layer)
    return groups


def check_grouping(by: str) -> None:
    """Raise `PruneError` unless layers can be grouped like that."""
    if by not in GROUPINGS:
        raise PruneError(f"cannot group layers by {by!r}: use one of {', '.join(GROUPINGS)}")


def sizes_of(groups: dict[str, list[Layer]]) -> np.ndarray:
    """How many weights each group has, (groups,), float64."""
    return np.array([sum(layer.weight.numel() for layer in layers) for layers in groups.values()], dtype=float)


def table_of(groups: dict[str, list[Layer]], sparsities: np.ndarray) -> dict[str, float]:
    """A table for `prune(allocation=...)`: the layers' names -> the sparsity of their group (groups,)."""
    return {layer.name: float(s) for s, layers in zip(sparsities, groups.values(), strict=True) for layer in layers}


def project_by_shift(
    wanted: np.ndarray, sizes: np.ndarray, average: float, low: float = 0.0, high: float = 1.0
) -> np.ndarray:
    """clip(wanted + t, low, high) with the one t for which the mean, weighted by sizes, is `average`. (groups,)

    These are the sparsities within bounds and budget that are nearest to `wanted`, measured by
    sum_g sizes_g (s_g - wanted_g)^2. Raises `PruneError` if no sparsities in low..high have that average.
    """
    ends = low - float(wanted.max()), high - float(wanted.min())  # there every group is at its bound
    return _exact(lambda t: np.clip(wanted + t, low, high), ends, sizes, average, low, high)


def project_by_scale(
    wanted: np.ndarray, sizes: np.ndarray, average: float, low: float = 0.0, high: float = 1.0
) -> np.ndarray:
    """clip(k * wanted, low, high) with the one k for which the mean, weighted by sizes, is `average`. (groups,)

    wanted: positive. Raises `PruneError` if no sparsities in low..high have that average.
    """
    logs = np.log(wanted)
    ends = np.log(max(low, 1e-300)) - float(logs.max()), np.log(max(high, 1e-300)) - float(logs.min())
    return _exact(lambda t: np.clip(np.exp(logs + t), low, high), ends, sizes, average, low, high)


def _exact(
    family: Callable[[float], np.ndarray],
    ends: tuple[float, float],
    sizes: np.ndarray,
    average: float,
    low: float,
    high: float,
) -> np.ndarray:
    """The member of a family of sparsities, growing from low to high between its ends, whose mean is `average`."""
    if not low - 1e-12 <= average <= high + 1e-12:
        raise PruneError(
            f"an average sparsity of {average:g} cannot be made of sparsities in {low:g}..{high:g}: widen the bounds"
        )
    share = sizes / sizes.sum()

    def excess(t: float) -> float:
        return float(family(t) @ share) - average

    least, most = ends
    if excess(least) >= 0:
        return np.full_like(share, low)
    if excess(most) <= 0:
        return np.full_like(share, high)
    return family(brentq(excess, least, most, xtol=1e-15, rtol=1e-15))
