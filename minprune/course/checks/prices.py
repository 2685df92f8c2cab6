"""The exercise of chapter 11 on the optimum: groups pay the same price for the next weight."""

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import normal

# take_steps(costs, sizes, budget): equal marginal cost per weight


def _take_steps(costs: Tensor, sizes: Tensor, budget: float, per_weight: bool = True, last: str = "part") -> Tensor:
    """Steps in the order of their price until the budget is used up; last: what becomes of the one that exceeds it."""
    prices = costs.diff(dim=1) / (sizes[:, None] if per_weight else 1)  # (groups, levels)
    steps, left = torch.zeros(len(costs), dtype=torch.float64), float(budget)
    for place in prices.flatten().argsort(stable=True).tolist():
        group, weights = place // prices.shape[1], float(sizes[place // prices.shape[1]])
        part = min(1.0, max(left, 0.0) / weights)
        if part < 1 - 1e-9:
            part = {"part": part, "whole": float(part > 0), "none": 0.0}[last]
        steps[group] += part
        left -= part * weights
        if part < 1 - 1e-9:
            break
    return steps


def _by_total(costs: Tensor, sizes: Tensor, budget: float) -> Tensor:
    """Each time the group whose total cost per weight would be the lowest takes a step."""
    steps, left = torch.zeros(len(costs), dtype=torch.float64), float(budget)
    while left > 1e-9:
        prices = [
            float(costs[g, int(k) + 1]) / float(sizes[g]) if k < costs.shape[1] - 1 else float("inf")
            for g, k in enumerate(steps.tolist())
        ]
        group = prices.index(min(prices))
        part = min(1.0, left / float(sizes[group]))
        steps[group] += part
        left -= part * float(sizes[group])
    return steps


take_steps = Exercise(
    name="take_steps",
    chapter=11,
    title="the cheapest way to prune a number of weights from groups with convex error curves",
    reference=_take_steps,
    difficulty=4,
    wrong=(
        Wrong(
            "price per step, not per weight",
            lambda costs, sizes, budget: _take_steps(costs, sizes, budget, per_weight=False),
            "Steps were compared by what they cost, though one may prune ten times the weights of another.",
        ),
        Wrong(
            "total cost instead of marginal cost",
            _by_total,
            "Steps were compared by the total cost that they lead to. What was paid for earlier steps is spent either "
            "way: which difference does the next step make?",
        ),
        Wrong(
            "more than the budget",
            lambda costs, sizes, budget: _take_steps(costs, sizes, budget, last="whole"),
            "The last step was taken whole and exceeds the budget. A part of it is allowed.",
        ),
        Wrong(
            "less than the budget",
            lambda costs, sizes, budget: _take_steps(costs, sizes, budget, last="none"),
            "The last step was left out because it would exceed the budget. A part of it is allowed.",
        ),
        Wrong(
            "dearest first",
            lambda costs, sizes, budget: _take_steps(-costs, sizes, budget),
            "The dearest steps were taken first.",
        ),
        Wrong(
            "all groups alike",
            lambda costs, sizes, budget: torch.full((len(costs),), float(budget) / float(sizes.sum()) + 0.0),
            "Every group takes as many steps as any other: that is uniform sparsity.",
        ),
    ),
    cases=lambda: _step_cases(),
)


def _curves(groups: int, levels: int, seed: int) -> Tensor:
    """Convex growing curves from 0, (groups, levels + 1), no two steps of the same price."""
    steps = (normal(groups, levels, seed=seed).abs() + 0.1).cumsum(1) * (0.3 + normal(groups, 1, seed=seed + 1).abs())
    return torch.cat([torch.zeros(groups, 1), steps.cumsum(1)], dim=1)


def _step_cases() -> list[Case]:
    return [
        Case("two groups of one size", (_curves(2, 4, 1140), torch.tensor([5.0, 5.0]), 22.0)),
        Case("groups of different size", (_curves(3, 5, 1150), torch.tensor([2.0, 9.0, 4.0]), 40.0)),
        Case("many groups", (_curves(8, 6, 1160), torch.tensor([3.0, 1, 4, 1, 5, 9, 2, 6]), 97.0)),
        Case("a small budget", (_curves(4, 3, 1170), torch.tensor([10.0, 20.0, 5.0, 40.0]), 3.0)),
        Case("no budget", (_curves(3, 2, 1190), torch.tensor([1.0, 2.0, 3.0]), 0.0)),
        Case("a budget that ends with a step", (torch.tensor([[0.0, 1, 4], [0, 2, 5]]), torch.tensor([2.0, 2.0]), 4.0)),
        Case("everything", (_curves(3, 2, 1180), torch.tensor([1.0, 2.0, 3.0]), 12.0)),
    ]


EXERCISES = [take_steps]
