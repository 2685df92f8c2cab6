"""Exercises of chapter 11: sparsities with an exact average, and OWL's share of outliers."""

from collections.abc import Callable

import torch
from torch import Tensor

from minprune.allocation.budget import project_by_scale, project_by_shift
from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import normal

# keep_budget(wanted, sizes, average): sparsities with an exact average


def _mean(values: Tensor, sizes: Tensor) -> Tensor:
    return (values.double() * sizes).sum() / sizes.sum()


def _keep_budget(wanted: Tensor, sizes: Tensor, average: float) -> Tensor:
    return torch.from_numpy(project_by_shift(wanted.double().numpy(), sizes.double().numpy(), average))


def _clamped_last(weighted: bool) -> Callable:
    """Shift to the right average, then clamp, as in code that was published with OWL."""

    def answer(wanted: Tensor, sizes: Tensor, average: float) -> Tensor:
        sizes = sizes if weighted else torch.ones_like(sizes)
        return (wanted.double() + average - _mean(wanted, sizes)).clamp(0, 1)

    return answer


def _clamped_first(wanted: Tensor, sizes: Tensor, average: float) -> Tensor:
    inside = wanted.double().clamp(0, 1)
    return inside + average - _mean(inside, sizes)


def _once_more(wanted: Tensor, sizes: Tensor, average: float) -> Tensor:
    """What clamping took is given to the others in equal parts, once, and the clamping repeated."""
    first = wanted.double() + average - _mean(wanted, sizes)
    inside = first.clamp(0, 1)
    free = (first == inside) * sizes
    missing = (average - _mean(inside, sizes)) * sizes.sum()
    return (inside + (free > 0) * missing / free.sum().clamp(min=1)).clamp(0, 1)


_CLAMPED = (
    "The average was right before the values were clamped to 0..1, and clamping moved it. Measure the average of what "
    "you return."
)
_UNWEIGHTED = (
    "The plain mean of the groups is right, but a group with ten times the weights has ten times the zeros. Which mean "
    "counts zeros?"
)

keep_budget = Exercise(
    name="keep_budget",
    chapter=11,
    title="sparsities within 0..1 with an exact average, as near as possible to those wanted",
    reference=_keep_budget,
    difficulty=3,
    rtol=1e-4,
    atol=1e-5,
    wrong=(
        Wrong("clamped, not renormalised", _clamped_last(weighted=True), _CLAMPED),
        Wrong(
            "unweighted mean",
            lambda wanted, sizes, average: _keep_budget(wanted, torch.ones_like(sizes), average),
            _UNWEIGHTED,
        ),
        Wrong(
            "unweighted mean, and clamped last",
            _clamped_last(weighted=False),
            f"{_UNWEIGHTED} And clamping comes last, which moves even that mean.",
        ),
        Wrong(
            "clamped before the shift",
            _clamped_first,
            "The values were clamped and then shifted, so some left 0..1 again.",
        ),
        Wrong(
            "corrected only once",
            _once_more,
            "What clamping took was given to the others once, and clamping them took some again. Look for the one "
            "shift that is right after clamping.",
        ),
        Wrong(
            "scaled instead of shifted",
            lambda wanted, sizes, average: torch.from_numpy(
                project_by_scale(wanted.double().clamp(min=1e-9).numpy(), sizes.double().numpy(), average)
            ),
            "The average is exact, but the values were multiplied: groups that want much were moved further than "
            "others. The nearest table adds the same to all.",
        ),
        Wrong(
            "no budget",
            lambda wanted, sizes, average: wanted.double().clamp(0, 1),
            "This is what was wanted, clamped; the average was not looked at.",
        ),
    ),
    cases=lambda: _budget_cases(),
)


def _budget_cases() -> list[Case]:
    return [
        Case("two groups of different size", (torch.tensor([0.2, 0.6]), torch.tensor([1.0, 3.0]), 0.6)),
        Case("a group beyond 1", (torch.tensor([0.3, 0.5, 0.6, 1.1]), torch.tensor([2.0, 1.0, 4.0, 3.0]), 0.7)),
        Case("a group below 0", (torch.tensor([-0.2, 0.3, 0.4, 0.5]), torch.tensor([3.0, 1.0, 2.0, 2.0]), 0.2)),
        Case(
            "several groups that hit a bound",
            (torch.tensor([-0.4, 0.1, 0.5, 0.9, 1.05, 1.6]), torch.tensor([1.0, 2.0, 5.0, 1.0, 4.0, 2.0]), 0.8),
        ),
        Case("a ramp over ten groups", (torch.linspace(0.2, 0.95, 10), torch.arange(1.0, 11.0), 0.75)),
        Case("groups that want far too much", (torch.tensor([3.1, 3.6, 4.2]), torch.tensor([2.0, 1.0, 3.0]), 0.5)),
        Case("groups that want far too little", (torch.tensor([-3.0, -2.2, -2.6]), torch.tensor([2.0, 1.0, 3.0]), 0.4)),
        Case(
            "groups that want very different things",
            (torch.tensor([-8.0, 0.4, 9.0]), torch.tensor([3.0, 4.0, 3.0]), 0.4),
        ),
        Case("everything", (torch.tensor([0.2, 0.5, 0.7]), torch.tensor([2.0, 1.0, 3.0]), 1.0)),
        Case("nothing", (torch.tensor([0.2, 0.5, 0.7]), torch.tensor([2.0, 1.0, 3.0]), 0.0)),
        Case("nothing to change", (torch.tensor([0.4, 0.6]), torch.tensor([2.0, 2.0]), 0.5)),
    ]


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


def _of_each_matrix(weights: list[Tensor], norms: list[Tensor], outlier: float) -> float:
    scores = _scores(weights, norms)
    return _share(scores, [outlier * A.mean() for A in scores])


def _mean_of_shares(weights: list[Tensor], norms: list[Tensor], outlier: float) -> float:
    scores = _scores(weights, norms)
    mean = torch.cat([A.flatten() for A in scores]).mean()
    return sum(_share([A], [outlier * mean]) for A in scores) / len(scores)


def _mean_of_means(weights: list[Tensor], norms: list[Tensor], outlier: float) -> float:
    scores = _scores(weights, norms)
    return _share(scores, [outlier * torch.stack([A.mean() for A in scores]).mean()] * len(scores))


def _median(weights: list[Tensor], norms: list[Tensor], outlier: float) -> float:
    scores = _scores(weights, norms)
    return _share(scores, [outlier * torch.cat([A.flatten() for A in scores]).median()] * len(scores))


outlier_share = Exercise(
    name="outlier_share",
    chapter=11,
    title="the share of outliers among the scores of a block",
    reference=_outlier_share,
    difficulty=2,
    wrong=(
        Wrong(
            "each matrix its own mean",
            _of_each_matrix,
            "Each matrix was compared with its own mean, so a matrix that is large as a whole has no outliers. A block "
            "has one mean, over the scores of all its matrices.",
        ),
        Wrong(
            "matrices count alike",
            _mean_of_shares,
            "The shares of the matrices were averaged as if all matrices were of one size.",
        ),
        Wrong(
            "mean of the matrices' means",
            _mean_of_means,
            "The mean of the block was taken as the mean of its matrices' means, in which a small matrix counts as "
            "much as a large one.",
        ),
        Wrong(
            "weights alone",
            lambda weights, norms, outlier: _outlier_share(weights, [torch.ones_like(n) for n in norms], outlier),
            "The inputs are missing: these are the outliers of |W|.",
        ),
        Wrong(
            "squared norms",
            lambda weights, norms, outlier: _outlier_share(weights, [n.square() for n in norms], outlier),
            "The weight enters once and the norm squared.",
        ),
        Wrong(
            "signed scores",
            lambda weights, norms, outlier: _share(
                [W * n for W, n in zip(weights, norms, strict=True)],
                [outlier * torch.cat([A.flatten() for A in _scores(weights, norms)]).mean()] * len(weights),
            ),
            "Large negative weights are outliers, too: a score has no sign.",
        ),
        Wrong(
            "the limit itself",
            lambda weights, norms, outlier: _outlier_share(weights, norms, outlier, torch.ge),
            "A score that equals the limit was counted. An outlier exceeds it.",
        ),
        Wrong(
            "median instead of mean",
            _median,
            "The scores were compared with their median, which lies below the mean of a skewed distribution.",
        ),
        Wrong(
            "in per cent",
            lambda weights, norms, outlier: 100 * _outlier_share(weights, norms, outlier),
            "The share is in per cent. A fraction was asked for.",
        ),
    ),
    cases=lambda: _outlier_cases(),
)


def _block(shapes: list[tuple[int, int]], loud: float, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices of which one is larger than the others, and norms of which some are `loud` times the rest."""
    weights = [normal(*shape, seed=seed + i) * (1 + 1.5 * i) for i, shape in enumerate(shapes)]
    norms = [normal(shape[1], seed=seed + 50 + i).abs() + 0.3 for i, shape in enumerate(shapes)]
    for norm in norms:
        norm[::4] *= loud
    return weights, norms


def _outlier_cases() -> list[Case]:
    return [
        Case("two matrices", (*_block([(6, 8), (10, 8)], 3, 1100), 3.0)),
        Case("matrices of different size", (*_block([(4, 4), (12, 4), (4, 16)], 2, 1110), 2.0)),
        Case("loud inputs", (*_block([(8, 12), (8, 12), (4, 12)], 9, 1120), 5.0)),
        Case("a low limit", (*_block([(5, 10), (7, 10)], 4, 1130), 1.0)),
        Case("scores that equal the limit", ([torch.tensor([[1.0, -3], [2, 2]])], [torch.ones(2)], 1.0)),
        Case("a limit of zero", ([torch.tensor([[1.0, 0], [-2, 2]])], [torch.ones(2)], 0.0)),
    ]


EXERCISES = [keep_budget, outlier_share]
