"""Self-checks: what an answer returns is compared with the right function, then with every known wrong one.

An answer passes if it agrees with the reference on all cases. If it does not, but agrees with one wrong variant on
all cases and with none of another name, the learner made that mistake, and the verdict names it. Anything else is told
in plain words: a case, what was expected of it and what came, and which cases were right. No name is given on a guess.
"""

import inspect
import re
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.values import (
    arguments,
    difference,
    is_exact,
    is_small,
    kind,
    parts,
    read,
    shape_of,
    structure,
    unfit,
    with_article,
)
from minprune.course.checks.words import NEARLY_ZERO, explain_call, explain_floats, explain_slope, tally, unwritten
from minprune.course.outcome import Outcome, run
from minprune.errors import PruneError

SECONDS = 30.0  # for an answer in a notebook, all cases together


@dataclass(frozen=True)
class Case:
    """One set of arguments. label: what is special about it, to complete "on ..." ("a matrix with ties")."""

    label: str
    args: tuple


@dataclass(frozen=True)
class Wrong:
    """A known mistake. name: the short name of the bug; message: what went wrong and where to look, not the solution.

    Two variants may share a name, if the same mistake comes in two forms that differ in an edge case.
    """

    name: str
    function: Callable
    message: str


def mistakes(functions: Mapping[str, Callable | list[Callable]], messages: str) -> tuple[Wrong, ...]:
    """The wrong variants of an exercise. messages: a paragraph "name: message" for each, its further lines indented.

    A name with several functions has one message for all of them, or one for each. Raises `PruneError` if a name has
    no message, or a message no function.
    """
    told: dict[str, list[str]] = {}
    for paragraph in re.split(r"\n(?! )", textwrap.dedent(messages).strip()):
        name, _, message = " ".join(paragraph.split()).partition(": ")
        told.setdefault(name, []).append(message)
    if lonely := functions.keys() ^ told.keys():
        raise PruneError(f"{', '.join(sorted(lonely))}: give every wrong variant a function and a message")
    variants = []
    for name, given in functions.items():
        forms, texts = given if isinstance(given, list) else [given], told[name]
        if len(texts) not in (1, len(forms)):
            raise PruneError(f"{name} has {len(forms)} functions and {len(texts)} messages: give it 1 or {len(forms)}")
        texts = texts * len(forms) if len(texts) == 1 else texts
        variants += [Wrong(name, form, text) for form, text in zip(forms, texts, strict=True)]
    return tuple(variants)


@dataclass(frozen=True)
class Verdict:
    """What a check says of an answer.

    Parameters
    ----------
    exercise : str
    passed : bool
    message : str
        For the learner: what was right, or what went wrong and where to look.
    bug : str or None, default None
        The name of the mistake that was recognised.
    points : int, default 0
        What the answer earns.

    Examples
    --------
    >>> from minprune import checks
    >>> checks.block_mask(lambda *given: None).passed
    False
    """

    exercise: str
    passed: bool
    message: str
    bug: str | None = None
    points: int = 0

    def __str__(self) -> str:
        head = "passed" if self.passed else f"not yet ({self.bug})" if self.bug else "not yet"
        return f"{'✓' if self.passed else '✗'} {self.exercise}: {head}. {self.message}"

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        head = "passed" if self.passed else f"not yet: *{self.bug}*" if self.bug else "not yet"
        return f"{'✓' if self.passed else '✗'} **`{self.exercise}`**: {head}. {self.message}"


@dataclass(frozen=True, repr=False)
class Exercise:
    """A function to be written, and all it takes to judge one. Calling it with an answer gives a `Verdict`.

    Parameters
    ----------
    name : str
        What it is called in `minprune.checks`.
    chapter : int
    title : str
        What the function does, in a line.
    reference : callable
        The right answer: a number, a tensor, or a tuple or list of these. What is to be refused it raises on.
    wrong : tuple of Wrong
        The mistakes that are told by name, see `mistakes`.
    cases : callable
        Returns the arguments to try, a sequence of `Case`, the same at every call.
    difficulty : int, default 1
        From 1 to 5, also the points.
    rtol : float, default 1e-4
        How close numbers must be, as a share of the right one.
    atol : float, default 1e-6
        And besides, for those near 0. Booleans and integers are compared exactly and must not be floats.
    slope : int or None, default None
        The place of the argument in which the result must have the right gradient, as a loss has.
    zeros : bool, default False
        Zeros must be exactly zero, as pruned weights are. Nearly is a mistake with a name, `NEARLY_ZERO`.

    Examples
    --------
    >>> from minprune.course.checks.core import Case, Exercise, mistakes
    >>> wrong = mistakes({"twice": lambda x: 2 * x}, "twice: That is double the number, not its square.")
    >>> square = Exercise("square", 1, "x squared", lambda x: x * x, wrong, lambda: [Case("three", (3.0,))])
    >>> print(square(lambda x: x + x))
    ✗ square: not yet (twice). That is double the number, not its square.
    """

    name: str
    chapter: int
    title: str
    reference: Callable
    wrong: tuple[Wrong, ...]
    cases: Callable[[], Sequence[Case]]
    difficulty: int = 1
    rtol: float = 1e-4
    atol: float = 1e-6
    slope: int | None = None
    zeros: bool = False

    def __repr__(self) -> str:
        return f"<exercise {self.name} of chapter {self.chapter:02d}: {self.title}>"

    def __call__(self, answer: Callable) -> Verdict:
        """Run the answer on all cases and judge it. The answer's own exceptions are told, never raised.

        It has `SECONDS` for all cases together; see `course.deadline` for what cannot be stopped.
        """
        if not callable(answer):
            return self._fail(
                f"Pass the function itself, checks.{self.name}(your_function), not {with_article(answer)}."
            )
        end, got = time.monotonic() + SECONDS, []
        for case in self.cases():
            got.append(run(answer, case.args, self.slope, max(end - time.monotonic(), 0.001)))
            if got[-1].late:
                reason = f"No answer after {SECONDS:g} seconds for the case: {self._where(case)}."
                return self._fail(f"{reason} Is there a loop that never ends?")
        return self.judge(got)

    def judge(self, got: Sequence[Outcome]) -> Verdict:
        """The verdict on what an answer did, one outcome for each case. Nothing of the answer is run."""
        cases = self.cases()
        expected = [run(self.reference, case.args, self.slope) for case in cases]
        wrongs = [i for i, (e, g) in enumerate(zip(expected, got, strict=True)) if not self._right(e, g)]
        if not wrongs:
            return Verdict(self.name, True, f"Right on all {len(cases)} cases.", points=self.difficulty)
        if self.zeros and self._same(expected, expected, got):
            return self._fail(*NEARLY_ZERO)
        matching = [w for w in self.wrong if self._same(expected, _runs(w.function, cases), got)]
        if matching and len({w.name for w in matching}) == 1:
            return self._fail(matching[0].message, matching[0].name)
        told = next((i for i in wrongs if is_small(cases[i].args) and not expected[i].error), wrongs[0])
        message = self._explain(cases[told], expected[told], got[told])
        return self._fail(
            message if unwritten(got[told]) else f"{message}{tally([case.label for case in cases], wrongs)}"
        )

    def agree(self, one: Callable, other: Callable) -> bool:
        """Whether two functions cannot be told apart by the cases of this exercise."""
        cases = self.cases()
        return self._same(*(_runs(f, cases) for f in (self.reference, one, other)), zeros=self.zeros)

    def _fail(self, message: str, bug: str | None = None) -> Verdict:
        return Verdict(self.name, False, message, bug)

    def _right(self, expected: Outcome, got: Outcome) -> bool:
        """Whether an outcome is the expected one, in kind and gradient as well."""
        if not self._agree(expected, expected, got, self.zeros):
            return False
        return bool(expected.error) or (not any(unfit(got.value, expected.value)) and self._same_slope(expected, got))

    def _same_slope(self, expected: Outcome, got: Outcome) -> bool:
        if expected.slope is None:
            return True
        if got.slope is None or got.slope.shape != expected.slope.shape:
            return False
        return bool(self._close(expected.slope, got.slope, exact=False).all())

    def _same(self, *outcomes: Iterable[Outcome], zeros: bool = False) -> bool:
        """Whether all outcomes agree; what comes after the first that do not is never run."""
        return all(self._agree(like, one, other, zeros) for like, one, other in zip(*outcomes, strict=True))

    def _agree(self, like: Outcome, one: Outcome, other: Outcome, zeros: bool) -> bool:
        """Whether two outcomes are equal; `like`, the reference's, says how values are to be read.

        If the reference refuses the arguments, then an error of its kind, or of a narrower one, is the right outcome.
        """
        kinds, others = ((outcome.error.kinds if outcome.error else ()) for outcome in (one, other))
        if like.error and any(refused := [like.error.kinds[0] in found for found in (kinds, others)]):
            return all(refused)
        if one.error or other.error or one.changed != other.changed:
            return kinds[:1] == others[:1] and one.changed == other.changed
        a, b = read(one.value, like.value), read(other.value, like.value)
        if a is None or b is None:
            return a is b and kind(one.value) == kind(other.value)
        exact = [] if like.error else [is_exact(part) for part in parts(like.value)]
        return len(a) == len(b) and all(
            x.shape == y.shape and bool(self._close(x, y, e, zeros).all())
            for x, y, e in zip(a, b, [*exact, *[False] * len(a)], strict=False)
        )

    def _close(self, expected: Tensor, got: Tensor, exact: bool, zeros: bool = False) -> Tensor:
        if exact:
            return expected == got
        close = torch.isclose(got, expected, rtol=self.rtol, atol=self.atol, equal_nan=True)
        return close & ((expected == 0) == (got == 0)) if zeros else close

    def _where(self, case: Case) -> str:
        return f"{case.label} ({arguments(self.reference, case.args)})"

    def _explain(self, case: Case, expected: Outcome, got: Outcome) -> str:
        where = f"On {self._where(case)}"
        if expected.error:
            came = f"raised {got.error.name}" if got.error else "returned a result"
            return f"{where} your function {came}. It should raise {expected.error.name}: {expected.error.text}."
        if told := explain_call(where, got):
            return told
        wanted, values = parts(expected.value), read(got.value, expected.value)
        if values is None or len(values) != len(wanted):
            return f"{where} {structure(expected.value)} was expected, not {with_article(got.value)}."
        for number, (part, value) in enumerate(zip(wanted, values, strict=True)):
            target = torch.as_tensor(part).double()
            name = "your result" if len(wanted) == 1 else f"item {number} of your result"
            if target.shape != value.shape:
                return f"{where} {name} should be {shape_of(target)}, not {shape_of(value)}."
            if bool((value.isnan() & ~target.isnan()).any()):
                return f"{where} {name} holds NaN: look for 0/0, or for infinity times zero."
            close = self._close(target, value, is_exact(part), self.zeros)
            if not bool(close.all()):
                return f"{where} {difference(name, part, target, value, close)}"
        slope = list(inspect.signature(self.reference).parameters)[self.slope or 0]
        return explain_floats(where, expected.value, got.value) or explain_slope(where, slope, got)


def collect(*chapters: Iterable[Exercise]) -> dict[str, Exercise]:
    """All exercises by name, in the order given. Raises `PruneError` if two have the same name."""
    exercises: dict[str, Exercise] = {}
    for exercise in (e for chapter in chapters for e in chapter):
        if exercise.name in exercises:
            raise PruneError(f"two exercises are called {exercise.name!r}: rename one")
        exercises[exercise.name] = exercise
    return exercises


def _runs(function: Callable, cases: Sequence[Case]) -> Iterator[Outcome]:
    for case in cases:
        yield run(function, case.args)
