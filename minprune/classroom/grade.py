"""Points for a filled-in notebook: each exercise's check in a process of its own, which may hang or crash.

The notebook is not run as a whole. Of the code above the last `checks.NAME(your_function)` outside the solutions, the
process runs the statements that the function needs: imports, definitions, assignments, found by the names they bind.
The learner's code runs with the rights of whoever grades, and could with some effort also forge its own verdict.
"""

import ast
import contextlib
import json
import multiprocessing
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from minprune.classroom.cells import Cell, Statement, code_cells, read_notebook
from minprune.errors import PruneError

_START = 300.0  # seconds for a process to import torch, on the slowest machine


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
    Raises `PruneError` if the file is no notebook, or holds no exercise of the course.
    """
    from minprune import checks

    cells = code_cells(read_notebook(path))
    called = [name for cell in cells for name in re.findall(r"\bchecks\.(\w+)", cell.source)]
    chapters = Counter(checks.EXERCISES[name].chapter for name in called if name in checks.EXERCISES)
    if not chapters:
        raise PruneError(f"{path} has no exercise of the course: there is no checks.NAME(your_function) in it")
    chapter = chapters.most_common(1)[0][0]
    exercises = [exercise for exercise in checks.EXERCISES.values() if exercise.chapter == chapter]
    marks = [_mark(cells, e.name, e.difficulty, Path(path).resolve().parent, seconds) for e in exercises]
    return Grade(Path(path).name, chapter, tuple(marks))


def _mark(cells: list[Cell], name: str, worth: int, folder: Path, seconds: float) -> Mark:
    try:
        answer, statements = handed_in(cells, name)
        passed, message, bug = _judge((name, statements, ast.Expression(answer), str(folder)), seconds)
    except PruneError as error:
        return Mark(name, 0, worth, str(error))
    return Mark(name, worth if passed else 0, worth, message, bug)


def handed_in(cells: list[Cell], name: str) -> tuple[ast.expr, list[tuple[int, ast.stmt]]]:
    """The expression that the last call of the check is given, and the statements it needs with their cells' numbers.

    Raises `PruneError` if there is no such call outside the solutions, or it stands in a cell that is no Python.
    """
    theirs = [cell for cell in cells if cell.region != "solution"]
    for place, cell in reversed(list(enumerate(theirs))):
        if cell.error and re.search(rf"\bchecks\.{name}\b", cell.source):
            raise PruneError(f"Cell {cell.number}, which calls checks.{name}, is not Python: {cell.error}.")
        calls = [call for statement in cell.statements for key, call in statement.calls() if key == name]
        if calls:
            if len(calls[-1].args) != 1 or calls[-1].keywords:
                raise PruneError(f"Pass the function, and nothing else: checks.{name}(your_function).")
            answer = calls[-1].args[0]
            above = [(cell.number, statement) for cell in theirs[: place + 1] for statement in cell.statements]
            return answer, _needed(ast.unparse(answer), above)
    raise PruneError(f"No call of checks.{name}(your_function) is in the notebook, so there is nothing to grade.")


def _needed(answer: str, above: list[tuple[int, Statement]]) -> list[tuple[int, ast.stmt]]:
    """The statements that bind a name which the answer needs, or one of these statements needs."""
    names = {part.id for part in ast.walk(ast.parse(answer)) if isinstance(part, ast.Name)}
    chosen: set[int] = set()
    while True:
        new = [i for i, (_, s) in enumerate(above) if i not in chosen and (s.binds & names or "*" in s.binds)]
        if not new:
            return [(above[i][0], above[i][1].node) for i in sorted(chosen)]
        chosen.update(new)
        names.update(*(above[i][1].uses for i in new))


def _judge(job: tuple, seconds: float) -> tuple[bool, str, str | None]:
    """Run a check in a process of its own: passed, message, bug."""
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:  # torch is imported once, and each exercise starts from there
        context.set_forkserver_preload(["minprune.checks"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, job), daemon=True)
    process.start()
    sender.close()
    try:
        if receiver.poll(_START):
            receiver.recv_bytes()  # it is ready: from here on the time counts
        if not receiver.poll(seconds):
            return False, f"Not finished after {seconds:g} s, so it was stopped. Is there a loop that never ends?", None
        return tuple(json.loads(receiver.recv_bytes()))
    except (EOFError, OSError):
        process.join(5)
        return False, f"The process died while it ran your code (exit code {process.exitcode}).", None
    finally:
        _end(process)
        receiver.close()


def _end(process: Any) -> None:
    """Kill the process and what it has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended already
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _work(sender: Connection, job: tuple) -> None:
    """In the new process: run the statements, then the check, and send the verdict back as JSON."""
    name, statements, answer, folder = job
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own, to be killed as one
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):  # what the learner prints is not part of the table
            os.dup2(nowhere.fileno(), stream)
    from minprune import checks

    os.chdir(folder)
    sys.path.append(folder)  # as Jupyter does, for modules beside the notebook
    exercise = checks.EXERCISES[name]
    sender.send_bytes(b"ready")
    try:
        verdict = _run(exercise, statements, answer)
    except BaseException as error:  # an `exit()` in the learner's code too
        verdict = False, f"Your code raised {_in_words(error)}.", None
    sender.send_bytes(json.dumps(verdict).encode())


def _run(exercise: Any, statements: Iterable[tuple[int, ast.stmt]], answer: ast.Expression) -> tuple:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    failed = ""
    for number, node in statements:
        try:
            exec(compile(ast.Module([node], []), f"cell {number}", "exec", dont_inherit=True), namespace)
        except Exception as error:  # the answer may be right without it
            failed = failed or f" What it needs from cell {number} raised {_in_words(error)}."
    try:
        function = eval(compile(answer, "the call of the check", "eval"), namespace)
    except Exception as error:
        return False, f"checks.{exercise.name}({ast.unparse(answer)}) raised {_in_words(error)}.{failed}", None
    verdict = exercise(function)
    return verdict.passed, verdict.message + ("" if verdict.passed else failed), verdict.bug


def _in_words(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
