"""The exercises of chapter 23: rounded numbers, an order with its error, accuracy above chance, an honest best."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import negated, scaled
from minprune.course.checks.values import normal


# agrees(value, number): whether a quoted number is what the number at its place rounds to
def _decimals(value: str) -> int:
    return len(value.partition(".")[2])


@dataclass(frozen=True)
class _Quoted:
    """Right unless a field says otherwise. read: the text as a number. decimals: how many it has. unit: how far off it
    may be, in units of the last digit, which `within` compares; distance: from the number to what is quoted.
    """

    read: Callable[[str], float] = lambda value: float(value.replace(",", ""))
    decimals: Callable[[str], int] = _decimals
    unit: float = 0.5
    distance: Callable[[float, float], float] = lambda number, quoted: abs(number - quoted)
    within: Callable[[float, float], bool] = lambda far, allowed: far <= allowed

    def __call__(self, value: str, number: float) -> bool:
        allowed = self.unit * 10.0 ** -self.decimals(value)
        return self.within(self.distance(number, self.read(value)), allowed)


def _cut_off(value: str, number: float) -> bool:
    return math.trunc(number * 10 ** _decimals(value)) == round(_Quoted().read(value) * 10 ** _decimals(value))


agrees = Exercise(
    name="agrees",
    chapter=23,
    title="whether a quoted number is what the number at its place rounds to",
    reference=_Quoted(),
    difficulty=2,
    wrong=mistakes(
        {
            "equal to all digits": _Quoted(unit=0.0),
            "trailing zeros lost": _Quoted(decimals=lambda value: len(value.partition(".")[2].rstrip("0"))),
            "a whole unit": _Quoted(unit=1.0),
            "a half refused": _Quoted(within=lambda far, allowed: far < allowed),
            "a half to one side": lambda value, number: round(number, _decimals(value)) == _Quoted().read(value),
            "cut off, not rounded": _cut_off,
            "only from above": _Quoted(distance=lambda number, quoted: quoted - number),
            "only from below": _Quoted(distance=lambda number, quoted: number - quoted),
            "one decimal for all": _Quoted(decimals=lambda value: 1),
            "the point counted": _Quoted(decimals=lambda value: len(value[value.find(".") :]) if "." in value else 0),
            "digits instead of decimals": _Quoted(decimals=lambda value: sum(map(str.isdigit, value))),
            "half a per cent": lambda value, number: abs(number / _Quoted().read(value) - 1) <= 0.005,
            "comma as a point": _Quoted(read=lambda value: float(value.replace(",", "."))),
            "commas refused": _Quoted(read=float),
            "inverted": lambda value, number: not _Quoted()(value, number),
        },
        """
        equal to all digits: You asked for equality. A quoted number has been rounded, so the number at its place has
          digits that it lacks.
        trailing zeros lost: A zero at the end says something: "5.10" promises two decimals. As a float it is 5.1. Count
          in the text.
        a whole unit: You allowed a whole unit of the last digit. What is rounded is off by half of one at most, and
          with your test a slip by one in the last digit may go unnoticed.
        a half refused: Exactly half a unit was refused. The equation has ≤ there, since a half is rounded up by some
          and down by others.
        a half to one side: Exactly half a unit was taken in one direction only. Python's `round` takes a half to the
          even neighbour, others round it up, and the equation takes both.
        cut off, not rounded: You cut the digits off. 2.7 is quoted as "3", not as "2".
        only from above: A number that is far above what is quoted was taken, too. The distance counts to both sides.
        only from below: A number that is far below what is quoted was taken, too. The distance counts to both sides.
        one decimal for all: The same distance was allowed for all. It depends on how many decimals are quoted.
        the point counted: You counted one decimal too many. Is the point among them?
        digits instead of decimals: You counted all digits. Only those behind the point say how finely it was rounded.
        half a per cent: You allowed a share of the number. Rounding is off by half a unit of the last digit, whatever
          the number.
        comma as a point: A comma was read as the point. In this file commas set off thousands.
        commas refused: A number with a comma cannot be read by your function. Commas set off thousands.
        inverted: True and False are exchanged.
        """,
    ),
    cases=lambda: [
        Case("two digits", ("5.1", 5.12)),
        Case("a zero at the end", ("5.10", 5.12)),
        Case("a zero at the end that is right", ("5.10", 5.1037)),
        Case("nearly a half above", ("5.10", 5.1045)),
        Case("more than a half above", ("5.10", 5.1056)),
        Case("a whole number", ("13", 13.42)),
        Case("a whole number that is close", ("5", 5.04)),
        Case("a whole number, to be rounded up", ("3", 2.7)),
        Case("a half above", ("2", 2.5)),
        Case("a half below", ("3", 2.5)),
        Case("far above", ("0.61", 6.1)),
        Case("far below", ("17.09", 1.709)),
        Case("the last digit one too high", ("0.45", 0.4405)),
        Case("thousands", ("20,736", 20736.4)),
        Case("thousands, one too many", ("1,025", 1023.8)),
        Case("a million with decimals", ("1,234,567.5", 1234567.48)),
        Case("below zero", ("-3.2", -3.23)),
        Case("below zero, rounded the wrong way", ("-3.3", -3.23)),
        Case("the other side of zero", ("-0.5", 0.52)),
        Case("the same to all digits", ("0.25", 0.25)),
    ],
)


# lead(a, b): by how many standard errors method a is ahead of method b on the same windows
@dataclass(frozen=True)
class _Lead:
    """Nats of two methods, (seeds, windows) each; right unless a field says otherwise.

    counted: what is a sample. paired: differences are taken window by window.
    """

    counted: str = "windows"
    paired: bool = True
    of_mean: bool = True
    correction: int = 1
    measure: Callable[[Tensor], Tensor] = torch.clone

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = (self._samples(self.measure(nats.double())) for nats in (a, b))
        count = len(a) if self.of_mean else 1
        ahead = b - a
        spread = ahead.var(correction=self.correction)
        if not self.paired:
            spread = a.var(correction=self.correction) + b.var(correction=self.correction)
        return ahead.mean() / (spread / count).sqrt()

    def _samples(self, nats: Tensor) -> Tensor:
        return {"windows": nats.mean(0), "seeds": nats.mean(1), "both": nats.flatten()}[self.counted]


lead = Exercise(
    name="lead",
    chapter=23,
    title="by how many standard errors over windows one method is ahead of another",
    reference=_Lead(),
    difficulty=3,
    wrong=mistakes(
        {
            "windows not paired": _Lead(paired=False),
            "every seed another window": _Lead(counted="both"),
            "error over seeds": _Lead(counted="seeds"),
            "scatter instead of error": _Lead(of_mean=False),
            "divided by n": _Lead(correction=0),
            "perplexities of windows": _Lead(measure=torch.exp),
            "the wrong sign": negated(_Lead()),
            "a difference alone": lambda a, b: (b - a).double().mean(),
        },
        """
        windows not paired: The errors of both methods were added up. Both read the same windows, and what is hard in a
          window is hard for both: take the difference window by window first.
        every seed another window: Each seed's windows were counted as new ones. They are the same windows; average over
          the seeds first, then count windows.
        error over seeds: This is the error over seeds. It tells what other calibration text would do, not what another
          test text would: count windows.
        scatter instead of error: You divided by the scatter of single windows. The mean of n windows scatters less, by
          the root of n.
        divided by n: The variance was divided by n. Its own mean was estimated from the same windows: divide by n - 1.
        perplexities of windows: Differences of perplexities: a window that nobody can read decides alone. Stay in nats.
        the wrong sign: The size is right. Fewer nats are better: positive means that the first method is ahead.
        a difference alone: This is by how many nats it is ahead. Whether that is much, its standard error tells.
        """,
    ),
    cases=lambda: [
        Case("two seeds, eight windows", _measured((2, 8), 2300, 0.1)),
        Case("a method that is behind", _measured((3, 6), 2310, -0.2)),
        Case("windows of very different difficulty", _measured((2, 12), 2320, 0.02, hard=3.0)),
        Case("five seeds", _measured((5, 4), 2330, 0.3)),
        Case("two windows", _measured((4, 2), 2340, 0.5)),
    ],
)


def _measured(shape: tuple[int, int], seed: int, ahead: float, hard: float = 1.0) -> tuple[Tensor, Tensor]:
    """Nats of two methods: windows differ by `hard`, the second is behind by `ahead`, and everything has noise."""
    windows = 3.5 + hard * normal(shape[1], seed=seed)
    draws = 0.1 * normal(2, *shape, seed=seed + 1)
    return windows + draws[0], windows + ahead + draws[1]


# kept(pruned, dense, chance): the share of accuracy above chance that is left, over several tasks
@dataclass(frozen=True)
class _Kept:
    """Accuracies (tasks,); right unless a field says otherwise. below: whether chance is taken off the dense one."""

    above: bool = True
    below: bool = True
    each: bool = False

    def __call__(self, pruned: Tensor, dense: Tensor, chance: Tensor) -> Tensor:
        left = pruned - chance if self.above else pruned
        known = dense - chance if self.below else dense
        return (left / known).mean() if self.each else left.sum() / known.sum()


kept = Exercise(
    name="kept",
    chapter=23,
    title="the share of what a model knew beyond guessing that a pruned one still knows",
    reference=_Kept(),
    difficulty=2,
    wrong=mistakes(
        {
            "chance forgotten": _Kept(above=False, below=False),
            "chance off one side": [_Kept(below=False), _Kept(above=False)],
            "mean of shares": _Kept(each=True),
            "share lost": lambda pruned, dense, chance: 1 - _Kept()(pruned, dense, chance),
            "upside down": lambda pruned, dense, chance: 1 / _Kept()(pruned, dense, chance),
            "per cent": scaled(_Kept(), 100),
            "a coin for every task": lambda pruned, dense, chance: _Kept()(pruned, dense, 0 * chance + 0.5),
            "points": lambda pruned, dense, chance: (dense - pruned).mean(),
        },
        """
        chance forgotten: A model of random answers keeps a good part of this number. Take off what guessing gives.
        chance off one side: Guessing was taken off one of the two models. Both may guess.
        mean of shares: A mean of ratios: a task that the dense model hardly does better than by guessing counts as much
          as any other, and its ratio is mostly noise. Add up first, then divide.
        share lost: This is the share that is lost.
        upside down: The dense model's was divided by the pruned one's.
        per cent: A share is asked for, 1 if nothing is lost.
        a coin for every task: A task with four choices is guessed right once in four. Each task has its own chance.
        points: This is a mean difference of accuracies. How much is that of what the model knew?
        """,
    ),
    cases=lambda: [
        Case("five tasks of the harness", _tasks([0.7606, 0.5182, 0.7256, 0.7609, 0.5451])),
        Case("one task", _rows([0.4], [0.55], [0.25])),
        Case("a model that is worse than a coin", _tasks([0.45, 0.31, 0.2, 0.48, 0.52])),
        Case("nothing lost", _tasks([0.7813, 0.5710, 0.7546, 0.7933, 0.6390])),
        Case(
            "a task that nobody can do", tuple(torch.tensor(x).double() for x in ([0.9, 0.5], [0.95, 0.52], [0.5, 0.5]))
        ),
    ],
)


def _tasks(pruned: list[float]) -> tuple[Tensor, ...]:
    return _rows(pruned, [0.7813, 0.5710, 0.7546, 0.7933, 0.6390], [0.5, 0.25, 0.25, 0.5, 0.5])


def _rows(*rows: list[float]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(row).double() for row in rows)


# honest_best(nats): the loss of the best candidate, chosen on other windows than those that judge it
@dataclass(frozen=True)
class _Best:
    """Nats (candidates, windows); right unless a field says otherwise. sides: (choosing, judging) halves."""

    sides: tuple[tuple[int, int], ...] = ((0, 1), (1, 0))
    alternate: bool = True
    best: Callable[[Tensor], Tensor] = torch.argmin

    def __call__(self, nats: Tensor) -> Tensor:
        halves = (nats[:, ::2], nats[:, 1::2]) if self.alternate else nats.tensor_split(2, dim=1)
        judged = [halves[judge][self.best(halves[choose].mean(1))].mean() for choose, judge in self.sides]
        return torch.stack(judged).mean()


honest_best = Exercise(
    name="honest_best",
    chapter=23,
    title="the loss of the best of several candidates, chosen and judged on different windows",
    reference=_Best(),
    difficulty=2,
    wrong=mistakes(
        {
            "chosen on the windows that judge": [
                lambda nats: nats.double().mean(1).min(),
                _Best(sides=((0, 0), (1, 1))),
            ],
            "one half never judges": [_Best(sides=((0, 1),)), _Best(sides=((1, 0),))],
            "neighbours in one half": _Best(alternate=False),
            "best of each window": lambda nats: nats.double().amin(0).mean(),
            "worst chosen": _Best(best=torch.argmax),
            "mean over candidates": lambda nats: nats.double().mean(),
            "first candidate": _Best(best=lambda nats: torch.tensor(0)),
        },
        """
        chosen on the windows that judge: The best candidate was chosen on the windows that judge it, so it was in part
          the luckiest. Choose on half of the windows, judge on the other half.
        one half never judges: Half of the text was only used to choose. Exchange the halves, and take the mean of both.
        neighbours in one half: The first half of the windows and the second. A text that changes on its way makes them
          two different texts: take every other window.
        best of each window: Each window had its own best candidate. One candidate is to be chosen for all of them.
        worst chosen: Nats are losses: the lowest is the best.
        mean over candidates: Nobody was chosen: this is the mean of all candidates.
        first candidate: Whatever the windows say, this is the first candidate.
        """,
    ),
    cases=lambda: [
        Case("five candidates, eight windows", (3 + normal(5, 8, seed=2350),)),
        Case("candidates that are all alike", (4 + 0.3 * normal(20, 6, seed=2351),)),
        Case("text that gets harder", (normal(4, 10, seed=2352) + torch.linspace(1, 6, 10),)),
        Case("two candidates, two windows", (torch.tensor([[1.0, 5.0], [2.0, 3.0]]),)),
        Case(
            "one candidate that is clearly the best",
            (torch.tensor([2.0, 1.0, 2.5])[:, None] + normal(3, 12, seed=5) / 9,),
        ),
        Case("an odd number of windows", (2 + normal(6, 7, seed=2353),)),
    ],
)


# find_flaws(experiments): the line of the checklist that each numbered experiment breaks
_FLAW = (5, 3, 6, 1, 8, 4, 2, 7)  # of experiments 1 to 8


def _flaws(experiments: Tensor) -> Tensor:
    return torch.tensor(_FLAW)[experiments - 1]


def _taken(place: int, flaw: int) -> Callable[[Tensor], Tensor]:
    """The answer that takes the flaw of one experiment for another."""
    return lambda experiments: _flaws(experiments).where(experiments != place, flaw)


find_flaws = Exercise(
    name="find_flaws",
    chapter=23,
    title="the line of the checklist that each of eight experiments breaks",
    reference=_flaws,
    difficulty=3,
    wrong=mistakes(
        {
            "experiment 1 taken for luck": _taken(1, 3),
            "experiment 1 taken for a baseline": _taken(1, 2),
            "experiment 2 taken for selection": _taken(2, 4),
            "experiment 2 taken for a protocol": _taken(2, 1),
            "experiment 3 taken for luck": _taken(3, 3),
            "experiment 3 taken for a protocol": _taken(3, 1),
            "experiment 4 taken for luck": _taken(4, 3),
            "experiment 5 taken for luck": _taken(5, 3),
            "experiment 6 taken for luck": _taken(6, 3),
            "experiment 6 taken for a baseline": _taken(6, 2),
            "experiment 7 taken for scope": _taken(7, 8),
            "experiment 7 taken for a protocol": _taken(7, 1),
            "experiment 8 taken for a protocol": _taken(8, 1),
            "counted from zero": lambda experiments: _flaws(experiments) - 1,
        },
        """
        experiment 1 taken for luck: 224 of 224 is no luck. What was measured, and what is it said of?
        experiment 1 taken for a baseline: The rival is the right one. What was measured, and what is it said of?
        experiment 2 taken for selection: Nothing was chosen here. How many windows, how many draws?
        experiment 2 taken for a protocol: Both were measured alike. How many windows, how many draws?
        experiment 3 taken for luck: More draws would show the same. Count what is zero.
        experiment 3 taken for a protocol: Text, windows and model are the same. Count what is zero.
        experiment 4 taken for luck: More draws would not help: what was different in the two measurements themselves?
        experiment 5 taken for luck: Eight models agree. Which models are they, and of which is it said?
        experiment 6 taken for luck: Luck comes in, but somebody let it in. Which text chose?
        experiment 6 taken for a baseline: The rivals had the same twenty trials. Which text chose?
        experiment 7 taken for scope: What is said is only said of this model. What did the dense one not get?
        experiment 7 taken for a protocol: Both were measured alike. What did the dense one not get?
        experiment 8 taken for a protocol: Both were measured alike. What would a model keep that answers at random?
        counted from zero: The lines of the checklist are counted from 1.
        """,
    ),
    cases=lambda: [
        *(Case(f"experiment {place}", (torch.tensor([place]),)) for place in range(1, 9)),
        Case("all eight", (torch.arange(1, 9),)),
    ],
)

EXERCISES = [agrees, lead, kept, honest_best, find_flaws]
