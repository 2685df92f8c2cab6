"""Answers to the exercises of chapter 23, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import math
from decimal import ROUND_HALF_DOWN, ROUND_HALF_UP, Decimal

import numpy as np
import torch
from scipy.stats import ttest_rel


def lead_scipy(a, b):
    return ttest_rel(b.double().numpy().mean(0), a.double().numpy().mean(0)).statistic


def lead_loop(a, b):
    ahead = [sum((b[:, w] - a[:, w]).tolist()) / len(a) for w in range(a.shape[1])]
    mean = sum(ahead) / len(ahead)
    variance = sum((x - mean) ** 2 for x in ahead) / (len(ahead) - 1)
    return mean / math.sqrt(variance / len(ahead))


def kept_means(pruned, dense, chance):
    return (pruned.mean() - chance.mean()) / (dense.mean() - chance.mean())


def kept_loop(pruned, dense, chance):
    left = known = 0.0
    for p, d, c in zip(pruned.tolist(), dense.tolist(), chance.tolist(), strict=True):
        left, known = left + p - c, known + d - c
    return left / known


def honest_best_numpy(nats):
    nats, found = nats.double().numpy(), []
    for side in (0, 1):
        chosen = np.argmin(nats[:, side::2].mean(1))
        found.append(nats[chosen, 1 - side :: 2].mean())
    return np.mean(found)


def honest_best_loop(nats):
    rows, total = nats.double().tolist(), 0.0
    for side in (0, 1):
        seen = [sum(row[side::2]) for row in rows]
        judged = rows[seen.index(min(seen))][1 - side :: 2]
        total += sum(judged) / len(judged) / 2
    return total


FLAWS = {"part": 5, "luck": 3, "zeros": 6, "protocol": 1, "scope": 8, "selection": 4, "baseline": 2, "scale": 7}


def find_flaws_by_name(experiments):
    names = list(FLAWS)
    return [FLAWS[names[place - 1]] for place in experiments.tolist()]


def find_flaws_by_masks(experiments):
    found = torch.zeros_like(experiments)
    for place, flaw in enumerate(FLAWS.values(), 1):
        found[experiments == place] = flaw
    return found


def agrees_decimal(value, number):
    """With decimal fractions, which know halves."""
    quoted = Decimal(value.replace(",", ""))
    return abs(quoted - Decimal(str(number))) * 2 <= Decimal(1).scaleb(quoted.as_tuple().exponent)


def agrees_by_rounding(value, number):
    """Up or down: one of the two roundings is what is quoted."""
    quoted = Decimal(value.replace(",", ""))
    return any(Decimal(str(number)).quantize(quoted, way) == quoted for way in (ROUND_HALF_DOWN, ROUND_HALF_UP))


RIGHT = {
    "agrees": [agrees_decimal, agrees_by_rounding],
    "lead": [lead_scipy, lead_loop],
    "kept": [kept_means, kept_loop],
    "honest_best": [honest_best_numpy, honest_best_loop],
    "find_flaws": [find_flaws_by_name, find_flaws_by_masks],
}

REJECTED = {
    "agrees": [
        lambda value, number: True,
        lambda value, number: value in str(number),
        lambda value, number: agrees_decimal(value.lstrip("-"), abs(number)),
        lambda value, number: str(round(number, len(value.partition(".")[2]))) == value,
    ],
    "lead": [
        lambda a, b: lead_scipy(a[:1], b[:1]),
        lambda a, b: -lead_scipy(a, b) * math.sqrt(a.shape[1]),  # two at once
        lambda a, b: (b.mean() - a.mean()) / b.mean(),
        lambda a, b: lead_scipy(a.median(0, keepdim=True).values, b.median(0, keepdim=True).values),
    ],
    "kept": [
        lambda pruned, dense, chance: kept_loop(pruned, dense, chance) ** 2,
        lambda pruned, dense, chance: pruned[0] / dense[0],
        lambda pruned, dense, chance: kept_loop(pruned, dense, chance).__abs__().__round__(1),
    ],
    "honest_best": [
        lambda nats: nats.double().median(),
        lambda nats: math.exp(honest_best_loop(nats)),
        lambda nats: honest_best_loop(nats[:-1]) if len(nats) > 1 else 0.0,
    ],
    "find_flaws": [
        lambda experiments: experiments,
        lambda experiments: 9 - find_flaws_by_masks(experiments),
        lambda experiments: torch.full_like(experiments, 3),
    ],
}
