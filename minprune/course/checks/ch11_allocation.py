"""The exercises of chapter 11: sparsities with an exact average, OWL's share of outliers, equal marginal cost."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minprune.allocation.budget import project_by_scale, project_by_shift
from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import given, scaled, then
from minprune.course.checks.values import normal


# keep_budget(wanted, sizes, average): sparsities with an exact average
def _mean(values: Tensor, sizes: Tensor) -> Tensor:
    return (values.double() * sizes).sum() / sizes.sum()


def _keep_budget(wanted: Tensor, sizes: Tensor, average: float) -> Tensor:
    return torch.from_numpy(project_by_shift(wanted.double().numpy(), sizes.double().numpy(), average))


def _shifted(wanted: Tensor, sizes: Tensor, average: float) -> Tensor:
    """The right average, whatever the bounds; clamped afterwards it is what code does that was published with OWL."""
    return wanted.double() + average - _mean(wanted, sizes)


def _clamped(values: Tensor) -> Tensor:
    return values.double().clamp(0, 1)


def _once_more(wanted: Tensor, sizes: Tensor, average: float) -> Tensor:
    """What clamping took is given to the others in equal parts, once, and the clamping repeated."""
    first = _shifted(wanted, sizes, average)
    inside = first.clamp(0, 1)
    free = (first == inside) * sizes
    missing = (average - _mean(inside, sizes)) * sizes.sum()
    return (inside + (free > 0) * missing / free.sum().clamp(min=1)).clamp(0, 1)


keep_budget = Exercise(
    name="keep_budget",
    chapter=11,
    title="sparsities within 0..1 with an exact average, as near as possible to those wanted",
    reference=_keep_budget,
    difficulty=3,
    rtol=1e-4,
    atol=1e-5,
    wrong=mistakes(
        {
            "clamped, not renormalised": then(_shifted, _clamped),
            "unweighted mean": given(_keep_budget, sizes=torch.ones_like),
            "unweighted mean, and clamped last": then(given(_shifted, sizes=torch.ones_like), _clamped),
            "clamped before the shift": given(_shifted, wanted=_clamped),
            "corrected only once": _once_more,
            "scaled instead of shifted": lambda wanted, sizes, average: torch.from_numpy(
                project_by_scale(wanted.double().clamp(min=1e-9).numpy(), sizes.double().numpy(), average)
            ),
            "no budget": lambda wanted, sizes, average: _clamped(wanted),
        },
        """
        clamped, not renormalised: The average was right before the values were clamped to 0..1, and clamping moved it.
          Measure the average of what you return.
        unweighted mean: The plain mean of the groups is right, but a group with ten times the weights has ten times the
          zeros. Which mean counts zeros?
        unweighted mean, and clamped last: The plain mean of the groups is right, but a group with ten times the weights
          has ten times the zeros. Which mean counts zeros? And clamping comes last, which moves even that mean.
        clamped before the shift: The values were clamped and then shifted, so some left 0..1 again.
        corrected only once: What clamping took was given to the others once, and clamping them took some again. Look
          for the one shift that is right after clamping.
        scaled instead of shifted: The average is exact, but the values were multiplied: groups that want much were
          moved further than others. The nearest table adds the same to all.
        no budget: This is what was wanted, clamped; the average was not looked at.
        """,
    ),
    cases=lambda: [
        Case("two groups of different size", (torch.tensor([0.2, 0.6]), torch.tensor([1.0, 3.0]), 0.6)),
        Case("a group beyond 1", (torch.tensor([0.3, 0.5, 0.6, 1.1]), torch.tensor([2.0, 1.0, 4.0, 3.0]), 0.7)),
        Case("a group below 0", (torch.tensor([-0.2, 0.3, 0.4, 0.5]), torch.tensor([3.0, 1.0, 2.0, 2.0]), 0.2)),
        Case("several groups that hit a bound", (_f(-0.4, 0.1, 0.5, 0.9, 1.05, 1.6), _f(1, 2, 5, 1, 4, 2), 0.8)),
        Case("a ramp over ten groups", (torch.linspace(0.2, 0.95, 10), torch.arange(1.0, 11.0), 0.75)),
        Case("groups that want far too much", (torch.tensor([3.1, 3.6, 4.2]), torch.tensor([2.0, 1.0, 3.0]), 0.5)),
        Case("groups that want far too little", (torch.tensor([-3.0, -2.2, -2.6]), torch.tensor([2.0, 1.0, 3.0]), 0.4)),
        Case("groups that want very different things", (_f(-8.0, 0.4, 9.0), _f(3, 4, 3), 0.4)),
        Case("everything", (torch.tensor([0.2, 0.5, 0.7]), torch.tensor([2.0, 1.0, 3.0]), 1.0)),
        Case("nothing", (torch.tensor([0.2, 0.5, 0.7]), torch.tensor([2.0, 1.0, 3.0]), 0.0)),
        Case("nothing to change", (torch.tensor([0.4, 0.6]), torch.tensor([2.0, 2.0]), 0.5)),
    ],
)


def _f(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


# outlier_share(weights, norms, outlier): OWL's D of one block
def _scores(weights: list[Tensor], norms: list[Tensor]) -> list[Tensor]:
    return [W.abs() * norm for W, norm in zip(weights, norms, strict=True)]


def _share(scores: list[Tensor], limits: list[Tensor], above_it: Callable = torch.gt) -> float:
    above = sum(int(above_it(A, limit).sum()) for A, limit in zip(scores, limits, strict=True))
    return above / sum(A.numel() for A in scores)


def _outlier_share(weights: list[Tensor], norms: list[Tensor], outlier: float, above_it: Callable = torch.gt) -> float:
    scores = _scores(weights, norms)
    mean = torch.cat([A.flatten() for A in scores]).mean()
    return _share(scores, [outlier * mean] * len(scores), above_it)


def _against(limits: Callable[[list[Tensor]], list[Tensor]]) -> Callable:
    """limits: the scores of all matrices -> what each of them is compared with, `outlier` times."""

    def share(weights: list[Tensor], norms: list[Tensor], outlier: float) -> float:
        scores = _scores(weights, norms)
        return _share(scores, [outlier * limit for limit in limits(scores)])

    return share


def _together(scores: list[Tensor]) -> Tensor:
    return torch.cat([A.flatten() for A in scores])


def _mean_of_shares(weights: list[Tensor], norms: list[Tensor], outlier: float) -> float:
    scores = _scores(weights, norms)
    return sum(_share([A], [outlier * _together(scores).mean()]) for A in scores) / len(scores)


outlier_share = Exercise(
    name="outlier_share",
    chapter=11,
    title="the share of outliers among the scores of a block",
    reference=_outlier_share,
    difficulty=2,
    wrong=mistakes(
        {
            "each matrix its own mean": _against(lambda scores: [A.mean() for A in scores]),
            "matrices count alike": _mean_of_shares,
            "mean of the matrices' means": _against(lambda S: [torch.stack([A.mean() for A in S]).mean()] * len(S)),
            "weights alone": given(_outlier_share, norms=lambda norms: [torch.ones_like(n) for n in norms]),
            "squared norms": given(_outlier_share, norms=lambda norms: [n.square() for n in norms]),
            "signed scores": lambda weights, norms, outlier: _share(
                [W * n for W, n in zip(weights, norms, strict=True)],
                [outlier * _together(_scores(weights, norms)).mean()] * len(weights),
            ),
            "the limit itself": partial(_outlier_share, above_it=torch.ge),
            "median instead of mean": _against(lambda scores: [_together(scores).median()] * len(scores)),
            "in per cent": scaled(_outlier_share, 100),
        },
        """
        each matrix its own mean: Each matrix was compared with its own mean, so a matrix that is large as a whole has
          no outliers. A block has one mean, over the scores of all its matrices.
        matrices count alike: The shares of the matrices were averaged as if all matrices were of one size.
        mean of the matrices' means: The mean of the block was taken as the mean of its matrices' means, in which a
          small matrix counts as much as a large one.
        weights alone: The inputs are missing: these are the outliers of |W|.
        squared norms: The weight enters once and the norm squared.
        signed scores: Large negative weights are outliers, too: a score has no sign.
        the limit itself: A score that equals the limit was counted. An outlier exceeds it.
        median instead of mean: The scores were compared with their median, which lies below the mean of a skewed
          distribution.
        in per cent: The share is in per cent. A fraction was asked for.
        """,
    ),
    cases=lambda: [
        Case("two matrices", (*_block([(6, 8), (10, 8)], 3, 1100), 3.0)),
        Case("matrices of different size", (*_block([(4, 4), (12, 4), (4, 16)], 2, 1110), 2.0)),
        Case("loud inputs", (*_block([(8, 12), (8, 12), (4, 12)], 9, 1120), 5.0)),
        Case("a low limit", (*_block([(5, 10), (7, 10)], 4, 1130), 1.0)),
        Case("scores that equal the limit", ([torch.tensor([[1.0, -3], [2, 2]])], [torch.ones(2)], 1.0)),
        Case("a limit of zero", ([torch.tensor([[1.0, 0], [-2, 2]])], [torch.ones(2)], 0.0)),
    ],
)


def _block(shapes: list[tuple[int, int]], loud: float, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices of which one is larger than the others, and norms of which some are `loud` times the rest."""
    weights = [normal(*shape, seed=seed + i) * (1 + 1.5 * i) for i, shape in enumerate(shapes)]
    norms = [normal(shape[1], seed=seed + 50 + i).abs() + 0.3 for i, shape in enumerate(shapes)]
    for norm in norms:
        norm[::4] *= loud
    return weights, norms


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
    wrong=mistakes(
        {
            "price per step, not per weight": partial(_take_steps, per_weight=False),
            "total cost instead of marginal cost": _by_total,
            "more than the budget": partial(_take_steps, last="whole"),
            "less than the budget": partial(_take_steps, last="none"),
            "costliest first": given(_take_steps, costs=torch.neg),
            "all groups alike": lambda costs, sizes, budget: torch.full((len(costs),), budget / float(sizes.sum())),
        },
        """
        price per step, not per weight: Steps were compared by what they cost, though one may prune ten times the
          weights of another.
        total cost instead of marginal cost: Steps were compared by the total cost that they lead to. What was paid for
          earlier steps is spent either way: which difference does the next step make?
        more than the budget: The last step was taken whole and exceeds the budget. A part of it is allowed.
        less than the budget: The last step was left out because it would exceed the budget. A part of it is allowed.
        costliest first: The most costly steps were taken first.
        all groups alike: Every group takes as many steps as any other: that is uniform sparsity.
        """,
    ),
    cases=lambda: [
        Case("two groups of one size", (_curves(2, 4, 1140), torch.tensor([5.0, 5.0]), 22.0)),
        Case("groups of different size", (_curves(3, 5, 1150), torch.tensor([2.0, 9.0, 4.0]), 40.0)),
        Case("many groups", (_curves(8, 6, 1160), torch.tensor([3.0, 1, 4, 1, 5, 9, 2, 6]), 97.0)),
        Case("a small budget", (_curves(4, 3, 1170), torch.tensor([10.0, 20.0, 5.0, 40.0]), 3.0)),
        Case("no budget", (_curves(3, 2, 1190), torch.tensor([1.0, 2.0, 3.0]), 0.0)),
        Case("a budget that ends with a step", (torch.tensor([[0.0, 1, 4], [0, 2, 5]]), torch.tensor([2.0, 2.0]), 4.0)),
        Case("everything", (_curves(3, 2, 1180), torch.tensor([1.0, 2.0, 3.0]), 12.0)),
    ],
)


def _curves(groups: int, levels: int, seed: int) -> Tensor:
    """Convex growing curves from 0, (groups, levels + 1), no two steps of the same price."""
    steps = (normal(groups, levels, seed=seed).abs() + 0.1).cumsum(1) * (0.3 + normal(groups, 1, seed=seed + 1).abs())
    return torch.cat([torch.zeros(groups, 1), steps.cumsum(1)], dim=1)


EXERCISES = [keep_budget, outlier_share, take_steps]
