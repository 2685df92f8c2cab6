"""Answers to the exercises of chapter 11, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import numpy as np
import torch


def keep_budget_by_halves(wanted, sizes, average):
    """The shift between what makes everything 0 and what makes everything 1, halved again and again."""
    wanted, share = wanted.double(), sizes.double() / sizes.double().sum()
    low, high = -float(wanted.max()), 1 - float(wanted.min())
    for _ in range(60):
        middle = (low + high) / 2
        if float((wanted + middle).clamp(0, 1) @ share) < average:
            low = middle
        else:
            high = middle
    return (wanted + low).clamp(0, 1)


def keep_budget_by_sorting(wanted, sizes, average):
    """The mean is straight between the shifts at which some group meets a bound: find the two around `average`."""
    w, n = wanted.double().numpy(), sizes.double().numpy()
    knots = np.sort(np.concatenate([-w, 1 - w]))
    means = [np.clip(w + t, 0, 1) @ n / n.sum() for t in knots]
    return np.clip(w + np.interp(average, means, knots), 0, 1).tolist()


def outlier_share_numpy(weights, norms, outlier):
    scores = np.concatenate([(np.abs(W.numpy()) * n.numpy()).ravel() for W, n in zip(weights, norms, strict=True)])
    return np.mean(scores > outlier * scores.mean())


def outlier_share_loop(weights, norms, outlier):
    scores = [
        abs(float(W[i, j])) * float(n[j])
        for W, n in zip(weights, norms, strict=True)
        for i in range(W.shape[0])
        for j in range(W.shape[1])
    ]
    return sum(score > outlier * sum(scores) / len(scores) for score in scores) / len(scores)


def take_steps_one_by_one(costs, sizes, budget):
    steps = [0.0] * len(costs)
    while budget > 1e-9:
        able = [g for g, k in enumerate(steps) if k < costs.shape[1] - 1]
        group = min(able, key=lambda g: float(costs[g, int(steps[g]) + 1] - costs[g, int(steps[g])]) / float(sizes[g]))
        part = min(1.0, budget / float(sizes[group]))
        steps[group] += part
        budget -= part * float(sizes[group])
    return torch.tensor(steps)


def take_steps_by_price(costs, sizes, budget):
    """Halve the price of a weight until the steps that are no dearer use up the budget, then share out what is left."""
    prices = np.diff(costs.double().numpy(), axis=1) / sizes.double().numpy()[:, None]
    n = sizes.double().numpy()
    dearest = max(p for p in [0.0, *prices.ravel()] if ((prices <= p).sum(1) * n).sum() <= budget + 1e-9)
    steps = (prices <= dearest).sum(1).astype(float)
    left = budget - steps @ n
    if left > 1e-9:
        next_price = [prices[g, int(k)] if k < prices.shape[1] else np.inf for g, k in enumerate(steps)]
        group = int(np.argmin(next_price))
        steps[group] += left / n[group]
    return steps


RIGHT = {
    "keep_budget": [keep_budget_by_halves, keep_budget_by_sorting],
    "outlier_share": [outlier_share_numpy, outlier_share_loop],
    "take_steps": [take_steps_one_by_one, take_steps_by_price],
}

REJECTED = {
    "keep_budget": [
        lambda wanted, sizes, average: torch.full_like(wanted, average),
        lambda wanted, sizes, average: 1 - keep_budget_by_halves(wanted, sizes, average),
        lambda wanted, sizes, average: keep_budget_by_halves(wanted.clamp(0, 1), torch.ones_like(sizes), average),
        lambda wanted, sizes, average: keep_budget_by_halves(wanted, 1 / sizes, average),  # weighted the wrong way
    ],
    "outlier_share": [
        lambda weights, norms, outlier: 1 - outlier_share_numpy(weights, norms, outlier),
        lambda weights, norms, outlier: outlier_share_numpy(weights, [n.square() for n in norms], outlier) * 100,
        lambda weights, norms, outlier: outlier_share_numpy(weights[:1], norms[:1], outlier),
        lambda weights, norms, outlier: outlier_share_numpy(weights, norms, outlier / 2),
    ],
    "take_steps": [
        lambda costs, sizes, budget: take_steps_one_by_one(costs, sizes, budget / 2),
        lambda costs, sizes, budget: take_steps_one_by_one(costs, torch.ones_like(sizes), len(costs)),
        lambda costs, sizes, budget: take_steps_one_by_one(costs.flip(0), sizes, budget),
        lambda costs, sizes, budget: take_steps_one_by_one(costs, sizes, budget) * sizes,  # weights, not steps
    ],
}
