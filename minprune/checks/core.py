"""Self-checks: what an answer returns is compared with the right function, then with every known wrong one.

An answer passes if it agrees with the reference on all cases. If it does not, but agrees with one wrong variant on
all cases, the learner made that mistake, and the verdict names it. Anything else is told in plain words: the case,
what was expected of it and what came. No name is given on a guess.
"""

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minprune.errors import PruneError


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


@dataclass(frozen=True)
class Verdict:
    """What a check says of an answer. bug: the name of the recognised mistake, or None; points: earned."""

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

    chapter: its number. title: what the function does, in a line. points, difficulty (1 to 5): for grading.
    cases: returns the arguments to try, the same at every call. The reference returns a number, a tensor, or a
    tuple or list of these; answers may return the same as NumPy arrays or nested lists. Booleans and integers are
    compared exactly, floats within rtol and atol.
    """

    name: str
    chapter: int
    title: str
    reference: Callable
    wrong: tuple[Wrong, ...]
    cases: Callable[[], Sequence[Case]]
    points: int = 1
    difficulty: int = 1
    rtol: float = 1e-4
    atol: float = 1e-6

    def __repr__(self) -> str:
        return f"<exercise {self.name} of chapter {self.chapter:02d}: {self.title}>"

    def __call__(self, answer: Callable) -> Verdict:
        """Run the answer on all cases and judge it. The answer's own exceptions are told, never raised."""
        if not callable(answer):
            return self._fail(
                f"Pass the function itself, checks.{self.name}(your_function), not {_article(answer)} that it returned."
            )
        cases = self.cases()
        expected = [_run(self.reference, case) for case in cases]
        got = [_run(answer, case) for case in cases]
        wrongs = [i for i, (e, g) in enumerate(zip(expected, got, strict=True)) if not self._agree(e, e, g)]
        if not wrongs:
            return Verdict(self.name, True, f"Right on all {len(cases)} cases.", points=self.points)
        matching = [w for w in self.wrong if self._same(expected, [_run(w.function, case) for case in cases], got)]
        if matching and len({w.name for w in matching}) == 1:
            return self._fail(matching[0].message, matching[0].name)
        first = wrongs[0]
        return self._fail(self._explain(cases[first], expected[first], got[first]))

    def agree(self, one: Callable, other: Callable) -> bool:
        """Whether two functions cannot be told apart by the cases of this exercise."""
        cases = self.cases()
        runs = [[_run(f, case) for case in cases] for f in (self.reference, one, other)]
        return self._same(*runs)

    def _fail(self, message: str, bug: str | None = None) -> Verdict:
        return Verdict(self.name, False, message, bug)

    def _same(self, like: "list[_Outcome]", one: "list[_Outcome]", other: "list[_Outcome]") -> bool:
        return all(self._agree(*outcomes) for outcomes in zip(like, one, other, strict=True))

    def _agree(self, like: "_Outcome", one: "_Outcome", other: "_Outcome") -> bool:
        """Whether two outcomes are equal; `like`, the reference's, says how values are to be read."""
        if one.error or other.error or one.changed != other.changed:
            return type(one.error) is type(other.error) and one.changed == other.changed
        a, b = _read(one.value, like.value), _read(other.value, like.value)
        if a is None or b is None:
            return a is b and type(one.value) is type(other.value)
        exact = [_is_exact(part) for part in _parts(like.value)]
        return len(a) == len(b) and all(
            x.shape == y.shape and bool(self._close(x, y, e).all())
            for x, y, e in zip(a, b, [*exact, *[False] * len(a)], strict=False)
        )

    def _close(self, expected: Tensor, got: Tensor, exact: bool) -> Tensor:
        if exact:
            return expected == got
        return torch.isclose(got, expected, rtol=self.rtol, atol=self.atol, equal_nan=True)

    def _explain(self, case: Case, expected: "_Outcome", got: "_Outcome") -> str:
        where = f"On {case.label} ({_arguments(self.reference, case)})"
        if got.error:
            return _explain_error(where, got)
        if got.changed:
            return (
                f"{where} your function changed its argument {got.changed}. Work on a copy: the caller still needs it."
            )
        if got.value is None:
            return f"{where} your function returned None. Is the `return` missing?"
        wanted = _parts(expected.value)
        values = _read(got.value, expected.value)
        if values is None or len(values) != len(wanted):
            return f"{where} {_structure(expected.value)} was expected, not {_article(got.value)}."
        for number, (part, value) in enumerate(zip(wanted, values, strict=True)):
            target = torch.as_tensor(part).double()
            name = "your result" if len(wanted) == 1 else f"item {number} of your result"
            if target.shape != value.shape:
                return f"{where} {name} should be {_shape(target)}, not {_shape(value)}."
            if bool((value.isnan() & ~target.isnan()).any()):
                return f"{where} {name} holds NaN: look for 0/0, or for infinity times zero."
            close = self._close(target, value, _is_exact(part))
            if not bool(close.all()):
                return f"{where} {_difference(name, part, target, value, close)}"
        raise AssertionError("no difference to explain")


@dataclass(frozen=True)
class _Outcome:
    """What a call did. changed: the name of the first argument that it modified."""

    value: Any = None
    error: Exception | None = None
    changed: str | None = None
    line: int | None = None


def collect(*chapters: Iterable[Exercise]) -> dict[str, Exercise]:
    """All exercises by name, in the order given. Raises `PruneError` if two have the same name."""
    exercises: dict[str, Exercise] = {}
    for exercise in (e for chapter in chapters for e in chapter):
        if exercise.name in exercises:
            raise PruneError(f"two exercises are called {exercise.name!r}: rename one")
        exercises[exercise.name] = exercise
    return exercises


def _run(function: Callable, case: Case) -> _Outcome:
    args = copy.deepcopy(case.args)
    try:
        with torch.random.fork_rng(devices=[]):
            value = function(*args)
    except Exception as error:
        return _Outcome(error=error, line=_line(function, error))
    changed = next(
        (n for n, a, b in zip(_names(function, args), case.args, args, strict=True) if not _equal(a, b)), None
    )
    return _Outcome(value, changed=changed)


def _line(function: Callable, error: Exception) -> int | None:
    """The line of the function, counted from its `def` as 1, in which the error arose."""
    code, line, trace = getattr(function, "__code__", None), None, error.__traceback__
    while trace and code:
        if trace.tb_frame.f_code is code:
            line = trace.tb_lineno - code.co_firstlineno + 1
        trace = trace.tb_next
    return line


def _names(function: Callable, args: tuple) -> list[str]:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        names = []
    return [*names, *(f"number {i}" for i in range(len(names), len(args)))][: len(args)]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b) or callable(a)


def _parts(value: Any) -> list:
    """A result of the reference as a list: a tuple or list has several parts, anything else is one."""
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _read(value: Any, like: Any) -> list[Tensor] | None:
    """A result as float64 tensors, one for each part of `like`; None if it cannot be read as such."""
    if isinstance(like, (tuple, list)):
        if not isinstance(value, (tuple, list)) and not (isinstance(value, (Tensor, np.ndarray)) and value.ndim):
            return None
        parts = [_tensor(part) for part in value]
    else:
        parts = [_tensor(value)]
    return None if any(part is None for part in parts) else [part for part in parts if part is not None]


def _tensor(value: Any) -> Tensor | None:
    try:
        if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) and v.ndim for v in value):
            value = torch.stack([torch.as_tensor(v) for v in value])
        if isinstance(value, (bool, int, float, list, tuple, Tensor, np.ndarray, np.generic)):
            return torch.as_tensor(value).detach().double()
    except (TypeError, ValueError, RuntimeError):
        pass
    return None


def _is_exact(part: Any) -> bool:
    return not torch.as_tensor(part).is_floating_point()


def _explain_error(where: str, got: _Outcome) -> str:
    if isinstance(got.error, NotImplementedError):
        return "Nothing is written yet: replace the line that raises NotImplementedError."
    line = f" in its line {got.line}" if got.line else ""
    reason = str(got.error).strip().splitlines()
    return f"{where} your function raised {type(got.error).__name__}{line}: {reason[0] if reason else 'no message'}."


def _difference(name: str, part: Any, target: Tensor, value: Tensor, close: Tensor) -> str:
    """In words, how a result of the right shape differs from the expected one."""
    if torch.as_tensor(part).dtype == torch.bool:
        if bool(((value != 0) & (value != 1)).any()):
            return f"{name} should hold only True and False."
        if (count := int(target.sum())) != int(value.sum()):
            return f"{name} should hold {count} True of {target.numel()}, not {int(value.sum())}."
    if not target.ndim:
        return f"{name} should be {_number(target)}, not {_number(value)}."
    place = tuple(map(int, (~close).nonzero()[0]))
    which = ", ".join(map(str, place))
    want, have = (
        (bool(t[place]) if torch.as_tensor(part).dtype == torch.bool else _number(t[place])) for t in (target, value)
    )
    wrong = int((~close).sum())
    return f"{name} differs in {wrong} of {target.numel()} places, first at [{which}]: {want} was expected, not {have}."


def _number(value: Tensor) -> str:
    number = float(value)
    return str(int(number)) if math.isfinite(number) and number == int(number) else f"{number:.6g}"


def _arguments(function: Callable, case: Case) -> str:
    """ "W: 4 x 6, sparsity = 0.5"."""
    described = []
    for name, value in zip(_names(function, case.args), case.args, strict=True):
        if isinstance(value, (Tensor, np.ndarray)):
            described.append(f"{name}: {_size(value)}")
        elif isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
            described.append(f"{name}: {len(value)} tensors")
        else:
            described.append(f"{name} = {value!r}")
    return ", ".join(described)


def _size(value: Any) -> str:
    return " x ".join(map(str, value.shape)) if value.ndim else "a number"


def _shape(value: Tensor) -> str:
    return f"of shape {tuple(value.shape)}" if value.ndim else "a single number"


def _structure(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a tuple or list of {len(value)} results"
    kind = torch.as_tensor(value)
    if not kind.ndim:
        return "a single number"
    return f"a {'boolean mask' if kind.dtype == torch.bool else 'tensor'} of shape {tuple(kind.shape)}"


def _article(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
