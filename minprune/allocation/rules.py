"""Rules that make a table of sparsities out of a model, at an exact average. Chapter 11.

Each is a function (model, layers, calib, pattern, *, options) -> table, layer name -> sparsity. `prune` and the
command line know them by name; with options of one's own:

    allocation = lambda layers: rules.owl(model, layers, calib, "60%", spread=0.05)
    mp.prune(model, calib, "wanda", "60%", allocation=allocation)

Every rule calibrates on the windows it is given and on nothing else. Those that choose by trial (ramp, inverse,
optimal) judge on windows held out from them, never on a test text.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from minprune.allocation.budget import group_layers, project_by_scale, project_by_shift, sizes_of, table_of
from minprune.allocation.sensitivity import Trial, dense_norms, trial
from minprune.arguments import checked
from minprune.errors import PruneError, shown
from minprune.models.layers import Layer
from minprune.patterns import NM, Block, Lines, Pattern, Unstructured
from minprune.patterns import pattern as read_pattern

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Table = dict[str, float]
_SAMPLE = 2**16  # scores of a layer that stand for all of them when one threshold is looked for
_GRID = 0.01  # sparsities between which an error curve is taken to be straight


@checked("calib")
def owl(
    model: "PreTrainedModel",
    layers: list[Layer],
    calib: Tensor,
    pattern: str | Pattern,
    *,
    outlier: float = 5.0,
    spread: float = 0.08,
) -> Table:
    """Blocks with more outliers keep more: OWL (Yin et al. 2024).

    D_g is the share of a block's Wanda scores |W_ij| ||X_:j|| that exceed `outlier` times their mean, and the block's
    sparsity falls linearly with D_g, by 2 * spread from the block with the fewest to the one with the most. Unlike the
    published code, the average is weighted by parameters and exact after clamping.
    """
    groups, average = group_layers(layers), require_variable_sparsity(pattern).sparsity
    _check_finite("outlier", outlier)
    _check_finite("spread", spread)
    norms = dense_norms(model, layers, calib)
    shares = []
    for members in groups.values():
        scores = [layer.weight.abs() * norms[layer].sq_norm.sqrt() for layer in members]  # A, (d_out, d_in) each
        size = sum(A.numel() for A in scores)
        limit = outlier * sum(float(A.sum()) for A in scores) / size
        shares.append(sum(int(A.gt(limit).sum()) for A in scores) / size)
    D = np.array(shares)
    kept = 2 * spread * (D - D.min()) / max(float(np.ptp(D)), 1e-12)
    return table_of(groups, project_by_shift(-kept, sizes_of(groups), average))


@checked("calib")
def one_threshold(model: "PreTrainedModel", layers: list[Layer], calib: Tensor | None, pattern: str | Pattern) -> Table:
    """What one threshold over the whole model would prune of each layer.

    Scores are Wanda's, or |W| if there is no calibration. The threshold is found on a sample of each layer's scores,
    and the sparsities are then shifted until their average is exact.
    """
    average = require_variable_sparsity(pattern).sparsity
    group_layers(layers)  # there are some
    norms = None if calib is None else dense_norms(model, layers, calib)
    samples, sizes = [], np.array([layer.weight.numel() for layer in layers], dtype=float)
    for layer in layers:
        scores = layer.weight.abs() if norms is None else layer.weight.abs() * norms[layer].sq_norm.sqrt()
        stride = max(1, scores.numel() // _SAMPLE) | 1  # odd: does not walk down a single column
        samples.append(np.sort(scores.flatten()[::stride].float().cpu().numpy()))
    weights = np.concatenate([np.full(len(s), n / len(s)) for s, n in zip(samples, sizes, strict=True)])
    merged = np.concatenate(samples)
    order = np.argsort(merged, kind="stable")
    place = np.searchsorted(np.cumsum(weights[order]), average * sizes.sum())
    threshold = merged[order[min(place, len(order) - 1)]]
    found = np.array([np.searchsorted(s, threshold) / len(s) for s in samples])
    table = project_by_shift(found, sizes, average)
    return {layer.name: float(s) for layer, s in zip(layers, table, strict=True)}


@checked("calib")
def inverse(
    model: "PreTrainedModel",
    layers: list[Layer],
    calib: Tensor,
    pattern: str | Pattern,
    *,
    by: str = "block",
    spread: float = 0.15,
) -> Table:
    """Sparsity inversely proportional to sensitivity, a rule of many tutorials.

    The sensitivity c_g of a group is what pruning it alone costs, at the average sparsity: s_g = k / c_g, within
    `spread` of the average, k such that the average is exact.
    """
    groups, average = group_layers(layers, by), require_variable_sparsity(pattern).sparsity
    _check_finite("spread", spread)
    with trial(model, layers, calib) as running:
        costs = error_curves(running, groups, pattern, [average])[:, 0]
    wanted = 1 / np.maximum(costs, 1e-9)
    return table_of(groups, project_by_scale(wanted, sizes_of(groups), average, *_around(average, spread)))


@checked("calib")
def ramp(
    model: "PreTrainedModel",
    layers: list[Layer],
    calib: Tensor,
    pattern: str | Pattern,
    *,
    slopes: Sequence[float] = (-0.1, 0.0, 0.1, 0.2, 0.3),
) -> Table:
    """Sparsity linear in depth, with the one slope that costs least on held-out windows (as ATP, Huang et al. 2025).

    slopes: those that are tried; each is the last block's sparsity minus the first's, before clamping.
    """
    groups, chosen = group_layers(layers), require_variable_sparsity(pattern)
    if not slopes or not np.isfinite(slopes).all():
        raise PruneError(f"slopes are {shown(slopes)}: give one or more finite numbers")
    depth = np.linspace(-0.5, 0.5, len(groups))
    tables = [table_of(groups, project_by_shift(slope * depth, sizes_of(groups), chosen.sparsity)) for slope in slopes]
    if len(tables) == 1:
        return tables[0]  # nothing to choose
    with trial(model, layers, calib) as running:
        costs = [
            running.cost({layer: replace(chosen, sparsity=table[layer.name]) for layer in layers}) for table in tables
        ]
    return tables[int(np.argmin(costs))]


@checked("calib")
def optimal(
    model: "PreTrainedModel",
    layers: list[Layer],
    calib: Tensor,
    pattern: str | Pattern,
    *,
    by: str = "block",
    spread: float = 0.1,
    steps: int = 1,
    alone: bool = False,
) -> Table:
    """The cheapest table that measured error curves predict.

    Each group's cost is measured at the average sparsity and at `steps` more on either side, up to `spread` away, while
    all other layers are pruned at the average (alone: while they are dense). The sum of these curves is minimised
    under the budget, see `minimize_cost`.
    """
    groups, average = group_layers(layers, by), require_variable_sparsity(pattern).sparsity
    _check_finite("spread", spread)
    if not spread or not 0 < steps < 1 / _GRID:
        raise PruneError(f"{steps} steps up to {spread:g} away measure nothing: give 1 to 99 and a spread above 0")
    low, high = _around(average, spread)
    below, above = np.linspace(low, average, steps + 1)[:-1], np.linspace(average, high, steps + 1)[1:]
    with trial(model, layers, calib) as running:
        if alone:
            middle = error_curves(running, groups, pattern, [average])
        else:
            running.set_rest(require_variable_sparsity(pattern))
            middle = np.full((len(groups), 1), running.cost({}))  # each group at the average: the same model
        sides = [error_curves(running, groups, pattern, side) for side in (below, above)]
    grid = np.concatenate([below, [average], above])
    costs = np.concatenate([sides[0], middle, sides[1]], axis=1)  # (groups, levels)
    kept = np.append(True, np.diff(grid) > 0)  # at sparsity 0 or 1 there is nothing on one side
    return table_of(groups, minimize_cost(grid[kept], costs[:, kept], sizes_of(groups), average))


def error_curves(
    running: Trial, groups: dict[str, list[Layer]], pattern: str | Pattern, levels: Iterable[float]
) -> np.ndarray:
    """What each group costs at each sparsity, all else being as it is in the trial: (groups, levels), nats."""
    patterns = [replace(require_variable_sparsity(pattern), sparsity=float(level)) for level in levels]
    return np.array(
        [[running.cost(dict.fromkeys(members, level)) for level in patterns] for members in groups.values()]
    )


def minimize_cost(levels: np.ndarray, costs: np.ndarray, sizes: np.ndarray, average: float) -> np.ndarray:
    """Sparsities (groups,) that minimise the sum of error curves at an exact average, weighted by sizes.

    levels (levels,), increasing; costs (groups, levels); between levels a curve is monotone cubic where it was measured
    to be monotone, and then replaced by its lower convex hull on a fine grid. For convex curves the optimum is where
    all groups have the same marginal cost per weight: their steps are taken in the order of that cost until the
    budget is used up. Raises `PruneError` if the average is outside the levels.
    """
    if not levels[0] <= average <= levels[-1]:
        raise PruneError(f"an average sparsity of {average:g} is outside the measured {levels[0]:g}..{levels[-1]:g}")
    grid = np.linspace(levels[0], levels[-1], max(2, round((levels[-1] - levels[0]) / _GRID) + 1))
    curves = PchipInterpolator(levels, costs, axis=1)(grid) if len(levels) > 1 else costs
    width = np.diff(grid)
    slopes = np.stack([_convex_slopes(grid, curve) for curve in curves])  # (groups, steps), growing along each row
    marginal = slopes / sizes[:, None]  # cost of pruning one more weight
    weights = sizes[:, None] * width  # how many weights a step prunes
    order = np.argsort(marginal, axis=None, kind="stable")  # of equal steps of one group, the first comes first
    before = np.cumsum(weights.flat[order]) - weights.flat[order]
    budget = (average - levels[0]) * sizes.sum()
    taken = np.empty(order.size)
    taken[order] = np.clip((budget - before) / weights.flat[order], 0, 1)
    return project_by_shift(levels[0] + taken.reshape(weights.shape) @ width, sizes, average)


def _convex_slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The slopes of the lower convex hull of a curve on each step of x, (points,) -> (points - 1,)."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1 and (y[hull[-1]] - y[hull[-2]]) * (x[i] - x[hull[-1]]) >= (y[i] - y[hull[-1]]) * (
            x[hull[-1]] - x[hull[-2]]
        ):
            hull.pop()
        hull.append(i)
    return np.repeat(np.diff(y[hull]) / np.diff(x[hull]), np.diff(hull))


def _check_finite(option: str, value: float) -> None:
    if not 0 <= value < np.inf:
        raise PruneError(f"{option} {value:g} is negative or not finite: give a number from 0 on")


def _around(average: float, spread: float) -> tuple[float, float]:
    return max(0.0, average - spread), min(1.0, average + spread)


def require_variable_sparsity(pattern: str | Pattern) -> Unstructured | Block | Lines:
    """The pattern, if its sparsity can be changed; `PruneError` for N:M."""
    chosen = read_pattern(pattern)
    if isinstance(chosen, NM):
        raise PruneError(f"an allocation cannot change the sparsity of {chosen}: use a pattern like 50%")
    return chosen


Rule = Callable[..., Table]
RULES: dict[str, Rule] = {
    "owl": owl,
    "ramp": ramp,
    "optimal": optimal,
    "inverse": inverse,
    "global": one_threshold,
}


def get_rule(name: str) -> Rule:
    """The rule of that name; `PruneError`, which lists the known ones, if there is none."""
    if name not in RULES:
        raise PruneError(f"unknown allocation {name!r}: give a table, or one of {', '.join(RULES)}")
    return RULES[name]
