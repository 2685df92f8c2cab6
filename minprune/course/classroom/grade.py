"""Points for a filled-in notebook: each answer runs in a process of its own and is judged in this one.

The notebook is not run as a whole. Of the code above the last `checks.NAME(your_function)` in the exercises' cells, the
process runs the statements that the function needs: imports, definitions, assignments, found by the names they bind.
It gets the cases' arguments, but neither the right results nor the judge, and what comes back is data (`wire`).
The learner's code runs with the rights of whoever grades, and whoever has the course's files has its solutions.
"""

import ast
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.course.classroom.cells import Cell, Statement, calls_of_checks, code_cells, read_notebook, uses
from minprune.course.classroom.isolation import Answers, Job, ask
from minprune.errors import PruneError

if TYPE_CHECKING:
    from minprune.course.checks import Exercise

LONGEST = 24 * 3600.0  # seconds


@dataclass(frozen=True)
class Mark:
    """What one exercise got. of: its difficulty, which is what it is worth; bug: a recognised mistake's name."""

    exercise: str
    points: int
    of: int
    message: str
    bug: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the check was passed."""
        return self.points == self.of


@dataclass(frozen=True)
class Grade:
    """All marks of a notebook, in the order of the chapter's catalogue."""

    notebook: str
    chapter: int
    marks: tuple[Mark, ...]

    @property
    def points(self) -> int:
        """The sum of the points earned."""
        return sum(mark.points for mark in self.marks)

    @property
    def of(self) -> int:
        """The sum of the points that could be earned."""
        return sum(mark.of for mark in self.marks)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        marks = [asdict(mark) | {"passed": mark.passed} for mark in self.marks]
        return {
            "notebook": self.notebook,
            "chapter": self.chapter,
            "points": self.points,
            "of": self.of,
            "exercises": marks,
        }


def grade(path: str | Path, seconds: float = 60.0) -> Grade:
    """Grade the notebook in a file; each exercise has so many seconds. The file need not have been executed.

    The chapter is the one that most of its `checks.NAME(...)` belong to, and all exercises of this chapter count.
    Raises `PruneError` if the file is no notebook or holds no exercise of the course, or if the seconds make no limit.
    """
    from minprune import checks

    if not 0 < seconds <= LONGEST:
        raise PruneError(f"{seconds:g} seconds are no time limit: give a number above 0, at most {LONGEST:g}")
    cells = code_cells(read_notebook(path))
    called = [name for cell in cells for name in re.findall(r"\bchecks\.(\w+)", cell.source)]
    called += [name for _, name, _ in calls_of_checks(cells)]
    chapters = Counter(checks.EXERCISES[name].chapter for name in called if name in checks.EXERCISES)
    if not chapters:
        raise PruneError(f"{path} has no exercise of the course: there is no checks.NAME(your_function) in it")
    chapter = chapters.most_common(1)[0][0]
    exercises = [exercise for exercise in checks.EXERCISES.values() if exercise.chapter == chapter]
    marks = [_mark(cells, exercise, Path(path).resolve().parent, seconds) for exercise in exercises]
    return Grade(Path(path).name, chapter, tuple(marks))


def _mark(cells: list[Cell], exercise: "Exercise", folder: Path, seconds: float) -> Mark:
    cases = exercise.cases()
    try:
        answer, statements = handed_in(cells, exercise.name)
        job = Job(exercise.name, answer, tuple(statements), str(folder), tuple(c.args for c in cases), exercise.slope)
        answers = ask(job, seconds)
    except PruneError as error:
        return Mark(exercise.name, 0, exercise.difficulty, str(error))
    if reason := _unfinished(answers, [case.label for case in cases], seconds):
        return Mark(exercise.name, 0, exercise.difficulty, reason + answers.note)
    verdict = exercise.judge(answers.outcomes)
    note = "" if verdict.passed or verdict.bug else answers.note
    return Mark(exercise.name, verdict.points, exercise.difficulty, verdict.message + note, verdict.bug)


def _unfinished(answers: Answers, labels: Sequence[str], seconds: float) -> str | None:
    """Why there is nothing to judge; None if there is an outcome for each case."""
    done = len(answers.outcomes)
    if answers.refused or done == len(labels):
        return answers.refused
    where = f" The first case without a result: {labels[done]}." if done else ""
    if answers.ended == "late":
        return f"Not finished after {seconds:g} s, so it was stopped. Is there a loop that never ends?{where}"
    return f"The process died while it ran your code (exit code {answers.ended}).{where}"


def handed_in(cells: list[Cell], name: str) -> tuple[str, list[tuple[int, str, int]]]:
    """The expression that the last call of the check is given, and the statements it needs.

    A call counts in a cell of an exercise; everywhere, outside the solutions, if the notebook marks no exercises. If
    there is none, but an exercise's cell binds the name of the check itself, then that is the answer. A statement is
    the number of its cell, the cell's code, and its place in it. Raises `PruneError` if nothing is handed in.
    """
    marked = any(cell.region == "exercise" for cell in cells)
    theirs = [cell for cell in cells if cell.region != "solution"]
    ours = [cell for cell in theirs if cell.region == "exercise" or not marked]
    calls = [(cell, call) for cell, key, call in calls_of_checks(theirs) if key == name]
    counting = [(cell, call) for cell, call in calls if cell in ours]
    last = counting[-1][0].number if counting else 0
    for cell in reversed(ours):
        if cell.number > last and cell.error and re.search(rf"\bchecks\.{name}\b", cell.source):
            raise PruneError(f"Cell {cell.number}, which calls checks.{name}, is not Python: {cell.error}.")
    if counting:
        last_cell, call = counting[-1]
        if len(call.args) != 1 or call.keywords or isinstance(call.args[0], ast.Starred):
            raise PruneError(f"Pass the function, and nothing else: checks.{name}(your_function).")
        return ast.unparse(call.args[0]), _needed(uses(call.args[0]), theirs, last_cell)
    bound = [cell for cell in ours if marked and any(name in statement.binds for statement in cell.statements)]
    if bound:
        return name, _needed(frozenset([name]), theirs, bound[-1])
    elsewhere = f" The call in cell {calls[-1][0].number} is not in the exercise." if calls else ""
    raise PruneError(
        f"No call of checks.{name}(your_function) is in the notebook, so there is nothing to grade.{elsewhere}"
    )


def _needed(names: frozenset[str], cells: Sequence[Cell], last: Cell) -> list[tuple[int, str, int]]:
    """The statements down to that cell that bind one of the names, or one that one of these statements needs."""
    above: list[tuple[Cell, int, Statement]] = [
        (cell, place, statement)
        for cell in cells
        if cell.number <= last.number
        for place, statement in enumerate(cell.statements)
    ]
    wanted, chosen = set(names), set[int]()
    while True:
        new = [i for i, (_, _, s) in enumerate(above) if i not in chosen and (s.binds & wanted or "*" in s.binds)]
        if not new:
            return [(above[i][0].number, above[i][0].code, above[i][1]) for i in sorted(chosen)]
        chosen.update(new)
        wanted.update(*(above[i][2].uses for i in new))
