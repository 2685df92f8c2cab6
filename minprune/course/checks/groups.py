"""The exercises of chapter 06 on groups: n kept of every m neighbours, and dealing the inputs out to the groups."""

from collections.abc import Callable

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import normal
from minprune.patterns import NM, keep_largest

# nm_mask(scores, n, m): the keep mask with n of every m neighbouring inputs


def _nm_mask(scores: Tensor, n: int, m: int) -> Tensor:
    _refuse(scores, m)
    return NM(n, m).keep(scores)


def _refuse(scores: Tensor, m: int) -> None:
    if scores.shape[1] % m:
        raise ValueError(f"{m} does not divide {scores.shape[1]} inputs, so a group would reach into the next row")


def _forms(wrong: Wrong) -> tuple[Wrong, Wrong]:
    """The same mistake by somebody who forgets to refuse, and by somebody who does not."""

    def refusing(scores: Tensor, n: int, m: int) -> Tensor:
        _refuse(scores, m)
        return wrong.function(scores, n, m)

    return wrong, Wrong(wrong.name, refusing, wrong.message)


def _by_group(scores: Tensor, m: int, keep_of: Callable[[Tensor], Tensor]) -> Tensor:
    """A mask put together from `keep_of(groups)`, (groups, m) -> (groups, m)."""
    return keep_of(scores.reshape(-1, m)).view(scores.shape)


def _ranked(scores: Tensor, n: int, m: int) -> Tensor:
    return _by_group(scores, m, lambda g: keep_largest(g, m - n))


def _strided(scores: Tensor, n: int, m: int) -> Tensor:
    """Groups of m columns that are d_in / m apart."""
    groups = scores.view(len(scores), m, -1).transpose(1, 2)  # (d_out, groups, m)
    return _ranked(groups.reshape(len(scores), -1), n, m).view(groups.shape).transpose(1, 2).reshape(scores.shape)


def _same_columns(scores: Tensor, n: int, m: int) -> Tensor:
    return _ranked(scores.sum(0, keepdim=True), n, m).expand(scores.shape)


_WRONG_MASKS = (
    Wrong(
        "n counted as zeros",
        lambda scores, n, m: _ranked(scores, m - n, m),
        "n weights of every m went. In this book, and for the hardware, n weights of every m *stay*.",
    ),
    Wrong(
        "inverted mask",
        lambda scores, n, m: ~_ranked(scores, n, m),
        "The mask is the opposite of what was asked for: in minprune True means *kept*.",
    ),
    Wrong(
        "smallest kept",
        lambda scores, n, m: _by_group(scores, m, lambda g: ~keep_largest(g, n)),
        "The count is right, but the smallest scores of each group stayed. Check the order of your sort.",
    ),
    Wrong(
        "ties all kept",
        lambda scores, n, m: _by_group(scores, m, lambda g: g >= g.sort(dim=1).values[:, m - n, None]),
        "Whatever equals the n-th best score of its group stayed, so groups with ties keep more than n. Hardware "
        "has room for exactly n.",
    ),
    Wrong(
        "one too many",
        lambda scores, n, m: _by_group(scores, m, lambda g: g > g.sort(dim=1).values[:, m - n, None]),
        "The threshold was taken from a list that is counted from 0, and its own weight went, too: groups keep "
        "less than n.",
    ),
    Wrong(
        "ties all pruned",
        lambda scores, n, m: _by_group(scores, m, lambda g: g > g.sort(dim=1).values[:, m - n - 1, None]),
        "Whatever equals the threshold of its group went, so groups with ties keep less than n. And with n = m, "
        "is anything left?",
    ),
    Wrong(
        "last of the ties pruned first",
        lambda scores, n, m: _by_group(scores, m, lambda g: keep_largest(g.flip(1), m - n).flip(1)),
        "The count is right, but of equal scores the *lower* index is to go first.",
    ),
    Wrong(
        "order taken for ranks",
        lambda scores, n, m: _by_group(scores, m, lambda g: g.argsort(dim=1, stable=True) >= m - n),
        "`argsort` says which weight comes at each rank. You used it as if it said which rank each weight has.",
    ),
    Wrong(
        "groups along the outputs",
        lambda scores, n, m: _ranked(scores.T, n, m).T,
        "The groups go down the columns. A group is m neighbouring *inputs* of one output.",
    ),
    Wrong(
        "the same columns for all rows",
        _same_columns,
        "All rows keep the same columns. Every row chooses for itself in each of its groups.",
    ),
    Wrong(
        "distant columns",
        _strided,
        "The m weights of your groups stand far apart in the row. A group is m *neighbours*: look at the order of "
        "the dimensions when you reshape.",
    ),
    Wrong(
        "the share of a row",
        lambda scores, n, m: keep_largest(scores, scores.shape[1] // m * (m - n)),
        "Each row has the right number of zeros, but its groups do not.",
    ),
    Wrong(
        "the share of the layer",
        lambda scores, n, m: keep_largest(scores.reshape(1, -1), scores.numel() // m * (m - n)).view(scores.shape),
        "The matrix has the right number of zeros, but its groups do not.",
    ),
)

nm_mask = Exercise(
    name="nm_mask",
    chapter=6,
    title="the keep mask of n of every m neighbouring inputs, with exact counts",
    reference=_nm_mask,
    difficulty=2,
    wrong=(
        Wrong(
            "the flattened tensor",
            lambda scores, n, m: NM(n, m).keep(scores.reshape(1, -1)).view(scores.shape),
            "Groups reach from the end of one row into the next where m does not divide the number of inputs. Hardware "
            "starts anew with each row, so such a matrix must be refused.",
        ),
        *(form for wrong in _WRONG_MASKS for form in _forms(wrong)),
    ),
    cases=lambda: [
        Case("2:4 of distinct scores", (normal(8, 12, seed=600).abs(), 2, 4)),
        Case("1:4", (normal(4, 16, seed=601).abs(), 1, 4)),
        Case("3:4", (normal(4, 12, seed=602).abs(), 3, 4)),
        Case("4:8", (normal(8, 16, seed=603).abs(), 4, 8)),
        Case("1:2 of a matrix with few distinct scores", (normal(6, 8, seed=604).abs().mul(2).round(), 1, 2)),
        Case("2:4 of a matrix with few distinct scores", (normal(8, 12, seed=605).abs().mul(2).round(), 2, 4)),
        Case("2:4 of equal scores", (torch.full((4, 8), 0.5), 2, 4)),
        Case("2:3, groups of odd size", (normal(3, 9, seed=606).abs(), 2, 3)),
        Case("six inputs, which 4 does not divide", (normal(4, 6, seed=608).abs(), 2, 4)),
        Case("ten inputs, which 4 does not divide", (normal(4, 10, seed=609).abs(), 2, 4)),
        Case("4:4, nothing to prune", (normal(4, 8, seed=607).abs(), 4, 4)),
    ],
)


# snake_deal(scores, m): an order of the inputs in which every group gets one column of each band


def _deal(scores: Tensor, m: int, turn: int = 1, descending: bool = True, total=lambda S: S.sum(0)) -> Tensor:
    """(m, groups): row p is the p-th band in the order of the groups; every second band, from `turn` on, reversed."""
    bands = total(scores).argsort(descending=descending, stable=True).view(m, -1)
    bands[turn::2] = bands[turn::2].flip(1)
    return bands


def _dealt(scores: Tensor, m: int, **how) -> Tensor:
    return _deal(scores, m, **how).T.reshape(-1)


def _groups_for_bands(scores: Tensor, m: int) -> Tensor:
    return _dealt(scores, scores.shape[1] // m)


snake_deal = Exercise(
    name="snake_deal",
    chapter=6,
    title="an order of the inputs in which each group gets one column of every band, dealt back and forth",
    reference=_dealt,
    difficulty=3,
    wrong=(
        Wrong(
            "no turning back",
            lambda scores, m: _dealt(scores, m, turn=m),
            "Every band was dealt from the first group to the last, so the first group gets the best of every band.",
        ),
        Wrong(
            "best columns together",
            lambda scores, m: scores.sum(0).argsort(descending=True, stable=True),
            "The columns are sorted and not dealt: the m best of all share a group, and some of them will be lost.",
        ),
        Wrong(
            "bands one after the other",
            lambda scores, m: _deal(scores, m).reshape(-1),
            "Whole bands follow each other. Neighbours in the order share a group: m neighbours are one of each band.",
        ),
        Wrong(
            "worst first",
            lambda scores, m: _dealt(scores, m, descending=False),
            "The lowest totals were dealt first. The first band is that of the highest ones.",
        ),
        Wrong(
            "turned the other way",
            lambda scores, m: _dealt(scores, m, turn=0),
            "The first band was dealt from the last group to the first. The groups are as good, but their order is "
            "the reverse of what was asked for: the best column of all is to come first.",
        ),
        Wrong(
            "the inverse order",
            lambda scores, m: _dealt(scores, m).argsort(),
            "This says where each column goes. Asked for is which column comes at each place, so that "
            "scores[:, order] is the new matrix.",
        ),
        Wrong(
            "bands of m columns",
            _groups_for_bands,
            "The bands are too small: there are m bands, each with one column for every group.",
        ),
        Wrong(
            "largest instead of total",
            lambda scores, m: _dealt(scores, m, total=lambda S: S.amax(0)),
            "The columns were sorted by their largest score, not by their total.",
        ),
    ),
    cases=lambda: [
        Case("three groups of four", (normal(5, 12, seed=610).abs(), 4)),
        Case("five groups of four", (normal(7, 20, seed=611).abs(), 4)),
        Case("four groups of two", (normal(6, 8, seed=612).abs(), 2)),
        Case("three groups of eight", (normal(4, 24, seed=613).abs(), 8)),
        Case("columns that are sorted already", (torch.arange(24.0, 0, -1).repeat(2, 1), 4)),
        Case("a single group", (normal(3, 4, seed=614).abs(), 4)),
        Case("three hundred inputs", (normal(2, 300, seed=615).abs(), 4)),
    ],
)

EXERCISES = [nm_mask, snake_deal]
