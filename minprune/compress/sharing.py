"""Weight sharing: k values a row, anywhere, and for each weight the number of its value. Chapter 21.

With the diagonal of the Gram matrix as importance a_j, a row's loss is sum_j a_j (w_j - v_j)^2: weighted k-means in one
dimension. Its best clusters are intervals of the sorted weights, so dynamic programming finds the optimum:

    best_m(j) = min over i of  best_(m-1)(i) + cost(i, j),     cost(i, j) = S2 - S1^2 / S0

with S0, S1, S2 the sums of a, a w, a w^2 over the i-th to the (j-1)-th weight. One of the values may be held at 0, at a
cost of S2 for its interval: then a pruned weight is a number like any other, and no mask is needed.

Han, Mao and Dally 2016 share values of a whole layer by Lloyd's iteration, which finds a local optimum; Kim et al. 2024
(SqueezeLLM) share them by row, weighted by a Fisher diagonal. Left out: the faster search for i (Wang and Song 2011 and
later), what is off the diagonal, and how the numbers are stored.
"""

from numbers import Integral

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError
from minprune.methods.damping import check_finite


@checked("count")
@exact_arithmetic()
def shared_values(w: Tensor, importance: Tensor, count: int, zero: bool = True) -> Tensor:
    """The row that comes nearest to w with no more than `count` different values.

    Parameters
    ----------
    w : Tensor (d_in,), floating
        One row of weights.
    importance : Tensor (d_in,)
        What the squared error of each counts, not negative: `stats.sq_norm`.
    count : int
        How many values, the zero among them.
    zero : bool, default True
        Whether one of them is 0. Weights that are 0 then stay so.

    Returns
    -------
    Tensor (d_in,)
        In the dtype of w.

    Raises
    ------
    PruneError
        If there is no value to choose, the shapes do not fit, or a number is NaN, infinite or, of importance, negative.

    Examples
    --------
    >>> import torch
    >>> from minprune.compress.sharing import shared_values
    >>> shared_values(torch.tensor([0.0, 2.0, 0.1, 4.0]), torch.ones(4), count=2)
    tensor([0., 3., 0., 3.])
    """
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise PruneError(f"{count!r} values are too few to share: use 16, which take 4 bits")
    if w.ndim != 1 or importance.shape != w.shape:
        raise PruneError(f"a row {tuple(w.shape)} and importance {tuple(importance.shape)} do not fit: give one row")
    if len(w):
        check_finite(w)
        check_finite(importance, "the importance contains")
    if bool((importance < 0).any()):
        raise PruneError(f"an importance of {float(importance.min()):g} is negative: it is what an error costs")
    order = w.argsort(stable=True)
    x, a = w[order].double(), importance[order].to(w.device, torch.float64)
    S0, S1, S2 = (_between(part) for part in (a, a * x, a * x.square()))  # (n + 1, n + 1), from i to j
    means = S1 / S0.clamp(min=torch.finfo(torch.float64).tiny)
    own = (S2 - S1 * means).clamp_(min=0)
    outside = torch.ones_like(own, dtype=torch.bool).tril(-1)  # an interval does not end before it begins
    costs = [part.masked_fill(outside, float("inf")) for part in ([own, S2] if zero else [own])]
    found = torch.zeros_like(x)
    for start, end, kind in _intervals(costs, min(count, len(w) + 1)):  # more would be empty
        found[start:end] = 0 if kind else means[start, end]
    result = torch.empty_like(w)
    result[order] = found.to(w.dtype)
    return torch.where(w == 0, 0, result) if zero else result


def _between(values: Tensor) -> Tensor:
    """Sums of values (n,) from i on and before j: (n + 1, n + 1)."""
    sums = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return sums[None, :] - sums[:, None]


def _intervals(costs: list[Tensor], count: int) -> list[tuple[int, int, int]]:
    """The cheapest way to cut 0 .. n into `count` intervals, some empty: (start, end, kind) of each.

    costs: of an interval of each kind, (n + 1, n + 1); of the kinds after the first there is one interval at most.
    """
    n, free = len(costs[0]) - 1, costs[0]
    best = [free[0].new_full((n + 1,), float("inf")) for _ in costs]  # by whether the held value is used
    best[0][0] = 0
    choices = []
    for _ in range(count):
        ways = [[(best[0], free, 0, 0)], [(best[-1], free, 1, 0), (best[0], costs[-1], 0, 1)]][: len(costs)]
        totals = [[(before[:, None] + cost).min(0) for before, cost, _, _ in way] for way in ways]
        picks = [torch.stack([total.values for total in options]).min(0) for options in totals]
        choices.append((ways, totals, picks))
        best = [pick.values for pick in picks]
    found, end, state = [], n, len(costs) - 1
    for ways, totals, picks in reversed(choices):
        way = int(picks[state].indices[end])
        start = int(totals[state][way].indices[end])
        found.append((start, end, ways[state][way][3]))
        end, state = start, ways[state][way][2]
    return found
