"""Answers to the exercises of chapters 01 to 06 that construct or predict, for test_checks.py: right ones in other
words, and unforeseen wrong ones."""

from itertools import product

import numpy as np
from scipy.stats import binom


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
    "lost_in_runs": [lost_in_runs_count, lost_in_runs_mean],
}

REJECTED = {
    "lost_in_runs": [
        lambda runs, m: [100 - 100 * share for share in lost_in_runs_mean(runs, m)],  # two known bugs at once
        lambda runs, m: [1 / (1 + run) for run in runs.tolist()],
        lambda runs, m: lost_in_runs_mean(runs, m)[::-1] if len(runs) > 1 else [0.2],
    ],
}
