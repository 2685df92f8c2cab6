"""Answers to the exercises of chapters 01 to 06 that construct or predict, for test_checks.py: right ones in other
words, and unforeseen wrong ones."""

import math
from itertools import product

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import binom

from minprune import METHODS, Statistics, pattern


def exposing_nats_search(factors):
    """By bisection on the definition, in double precision."""

    def excess(nats, factor):
        return (1 + math.exp(nats)) / 2 - factor * math.exp(nats / 2)

    return [0.0 if f == 1 else brentq(excess, 1e-9, 50, args=(f,), xtol=1e-13) for f in factors.double().tolist()]


def exposing_nats_roots(factors):
    f = factors.double()
    return 2 * (f + (f.square() - 1).sqrt()).log()


def worst_loudness_loop(w):
    return [1 / (value * value) for value in w.tolist()]


def worst_loudness_price(w):
    return ((1 / w.double() ** 2) / w.double() ** 2).sqrt()  # the root of the price over the squared weight


def _removed_first(price, a, r, g, h, third):
    """The input that goes first by a score of a weight and of the matrix: 0 stands for either twin."""
    H = np.array([[g, r * g, 0.0], [r * g, g, 0.0], [0.0, 0.0, h]])
    return min(int(price(np.array([a, a, third]), H).argmin()), 2)


def apart_search(a, r, g, h):
    """Where the first choice of each method changes, by bisection on the methods themselves."""
    prices = (lambda w, H: w**2 / np.diag(np.linalg.inv(H)), lambda w, H: w**2 * np.diag(H))
    limits = []
    for price in prices:
        found = []
        for row in zip(a.tolist(), r.tolist(), g.tolist(), h.tolist(), strict=True):
            small, large = 0.0, 1e6
            for _ in range(120):
                middle = (small + large) / 2
                small, large = (middle, large) if _removed_first(price, *row, middle) == 2 else (small, middle)
            found.append(large)
        limits.append(found)
    return [list(pair) for pair in zip(*limits, strict=True)]


def apart_inverse(a, r, g, h):
    H = torch.stack([torch.stack([g, r * g], -1), torch.stack([r * g, g], -1)], -1)  # (n, 2, 2)
    alone, helped = H[:, 0, 0], 1 / torch.linalg.inv(H)[:, 0, 0]
    return torch.stack([(a * a * energy / h).sqrt() for energy in (helped, alone)], -1)


def predict_changes_run(changes):
    """By running all eight on a layer, with the package."""
    random = torch.Generator().manual_seed(0)
    X = torch.randn(400, 24, generator=random).double() @ torch.randn(24, 24, generator=random).double()
    W, gram = torch.randn(12, 24, generator=random).double(), X.T @ X
    rows, inputs = torch.randperm(12, generator=random), torch.randperm(24, generator=random)
    louder = torch.ones(12, 1).double()
    louder[0] = 2

    def prune(W, gram, text="50%", **options):
        stats = Statistics(24, dtype=torch.float64)
        stats.gram.copy_(gram)
        return METHODS["sparsegpt"](W, stats, pattern(text), **{"block_size": 12, **options}).weight

    base, by_row = prune(W, gram), prune(W, gram, "50%:row")
    tried = [
        (prune(W, 2 * gram), base),
        (prune(W, 4 * gram), base),
        (prune(louder * W, gram) / louder, base),
        (prune(louder * W, gram, "50%:row") / louder, by_row),
        (prune(W[rows], gram)[rows.argsort()], base),
        (prune(W[:, inputs], gram[inputs][:, inputs])[:, inputs.argsort()], base),
        (prune(W, gram, block_size=6), base),
        (prune(W, gram, keep=base != 0, block_size=6), base),
    ]
    return [bool((tried[k - 1][0] - tried[k - 1][1]).abs().max() > 1e-6) for k in changes.tolist()]


def predict_changes_table(changes):
    return [k in (3, 6, 7) for k in changes.tolist()]


def rare_share_search(ratios):
    """From both means of an input that is made up, token by token."""

    def excess(p, ratio):
        x = np.array([1.0, 0.0])
        return np.sqrt(np.average(x**2, weights=[p, 1 - p])) / np.average(abs(x), weights=[p, 1 - p]) - ratio

    return [1.0 if f == 1 else brentq(excess, 1e-9, 1, args=(f,), xtol=1e-14) for f in ratios.double().tolist()]


def rare_share_power(ratios):
    return ratios.double() ** -2


def lost_in_runs_count(runs, m):
    """By looking at every outcome of the coins of one group, and pruning the group."""
    shares = []
    for run in runs.tolist():
        length = min(run, m)
        lost = top = 0
        for coins in product((0, 1), repeat=m // length):
            group = sorted(coin for coin in coins for _ in range(length))
            lost, top = lost + sum(group[: m // 2]), top + sum(group)  # the lower half of the group goes
        shares.append(lost / top)
    return shares


def lost_in_runs_mean(runs, m):
    """The expected excess, from the distribution of the number of winners."""
    found = []
    for run in runs.tolist():
        coins = max(m // run, 1)
        winners = np.arange(coins + 1) * (m / coins)
        found.append(float(binom(coins, 0.5).pmf(np.arange(coins + 1)) @ np.maximum(winners - m / 2, 0)) * 2 / m)
    return found


RIGHT = {
    "exposing_nats": [exposing_nats_search, exposing_nats_roots],
    "worst_loudness": [worst_loudness_loop, worst_loudness_price],
    "apart": [apart_search, apart_inverse],
    "predict_changes": [predict_changes_run, predict_changes_table],
    "rare_share": [rare_share_search, rare_share_power],
    "lost_in_runs": [lost_in_runs_count, lost_in_runs_mean],
}

REJECTED = {
    "exposing_nats": [
        lambda factors: -exposing_nats_roots(factors) / 2,  # two known bugs at once
        lambda factors: exposing_nats_roots(factors.flip(0)),
        lambda factors: factors - 1,
    ],
    "worst_loudness": [
        lambda w: -worst_loudness_price(w).sqrt(),  # prices that are all 1, and signed
        lambda w: -worst_loudness_price(w),
        lambda w: [1 + value for value in worst_loudness_loop(w)],
    ],
    "apart": [
        lambda a, r, g, h: apart_inverse(a, r, g, h) * 2,
        lambda a, r, g, h: apart_inverse(a, r, h, g).flip(1),  # two known bugs at once
        lambda a, r, g, h: apart_inverse(a, r, g, h).T,
    ],
    "predict_changes": [
        lambda changes: [k in (3, 4, 5, 6, 7) for k in changes.tolist()],
        lambda changes: [False for _ in changes.tolist()],
        lambda changes: [k > 4 for k in changes.tolist()],
    ],
    "rare_share": [
        lambda ratios: 100 - 100 * rare_share_power(ratios),  # two known bugs at once
        lambda ratios: rare_share_power(ratios) / 2,
        lambda ratios: (-ratios).exp(),
    ],
    "lost_in_runs": [
        lambda runs, m: [100 - 100 * share for share in lost_in_runs_mean(runs, m)],  # two known bugs at once
        lambda runs, m: [1 / (1 + run) for run in runs.tolist()],
        lambda runs, m: lost_in_runs_mean(runs, m)[::-1] if len(runs) > 1 else [0.2],
    ],
}
