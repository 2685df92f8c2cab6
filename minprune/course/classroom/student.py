"""The student edition: a chapter without its solutions and quiz answers, which still runs from top to bottom.

python -m minprune.course.classroom.student FOLDER NOTEBOOK...     # what `make student` calls
"""

import argparse
import ast
import copy
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from minprune.course.classroom.cells import MARK, Cell, code_cells, read_notebook, regions
from minprune.course.classroom.references import read_book, resolve
from minprune.errors import PruneError, from_extra

if TYPE_CHECKING:
    from nbformat import NotebookNode

_SOLUTION_START = re.compile(r"^(`{3,}|:{3,})\{solution-start\}.*?^\1 *$\n?", re.M | re.S)
_SOLUTION_END = re.compile(r"^(`{3,}|:{3,})\{solution-end\}.*?^\1 *$\n?", re.M | re.S)
_QUIZ = re.compile(r"^## [^\n]*\bquiz\b.*?(?=^## |\Z)", re.M | re.S | re.I)
_DROPDOWN = re.compile(r"^(`{3,}|:{3,})\{\w+\}[^\n]*\n(?::\w+:[^\n]*\n)*?:class: [^\n]*dropdown.*?^\1 *$", re.M | re.S)
_YOURS = "*Your answer:*"


def student_edition(notebook: "NotebookNode") -> "NotebookNode":
    """A copy without solutions and quiz answers.

    Solution cells go, with what the cells that open and close a solution say inside it. A later cell that uses a
    learner's function, directly or through a name made with it, loses its output and asks the self-check before it
    runs. All else stays. Raises `PruneError` if a later cell uses a name that only a solution defines.
    """
    student = copy.deepcopy(notebook)
    guards = {
        cell.number: _guarded(cell, needs, any(out.output_type == "execute_result" for out in original.outputs))
        for cell, needs in _dependent(code_cells(notebook))
        for original in [notebook.cells[cell.number - 1]]
    }
    kept, in_quiz = [], False
    for number, (cell, region) in enumerate(zip(student.cells, regions(notebook), strict=True), 1):
        if region == "solution":
            cell = _outside(cell)
        elif number in guards:
            cell.update(source=guards[number], outputs=[], execution_count=None)
            cell.metadata.pop("execution", None)
        if cell is not None:
            if cell.cell_type == "markdown":
                cell.source, in_quiz = _without_answers(cell.source, in_quiz)
            kept.append(cell)
    student.cells = kept
    return student


def _outside(cell: "NotebookNode") -> "NotebookNode | None":
    """What a cell of a solution holds in front of its opening or behind its end; None if that is nothing."""
    if cell.cell_type != "markdown":
        return None
    before = _SOLUTION_START.split(cell.source)[0] if "{solution-start}" in cell.source else ""
    after = _SOLUTION_END.split(cell.source)[-1] if "{solution-end}" in cell.source else ""
    cell.source = "\n\n".join(part.strip() for part in (before, after) if part.strip())
    return cell if cell.source else None


def _without_answers(source: str, in_quiz: bool) -> tuple[str, bool]:
    """The text with the quiz's dropdowns taken out, and whether the quiz goes on in the next cell."""
    heading = "## Quiz\n" if in_quiz else ""  # so that one expression finds the section that a cell continues
    text = _QUIZ.sub(lambda section: _DROPDOWN.sub(_YOURS, section[0]), heading + source)
    last = re.findall(r"^## ([^\n]*)", heading + source, re.M)
    return text.removeprefix(heading), bool(last and re.search(r"\bquiz\b", last[-1], re.I))


def _dependent(cells: list[Cell]) -> list[tuple[Cell, list[str]]]:
    """The cells outside the exercises that need a learner's function, each with the checks to be passed, as code."""
    check_of: dict[str, str] = {}  # a learner's function -> the call that judges it
    for cell in cells:
        for call in (call for statement in cell.statements for _, call in statement.calls()):
            if cell.region == "exercise":
                names = (part.id for arg in call.args for part in ast.walk(arg) if isinstance(part, ast.Name))
                check_of |= dict.fromkeys(names, ast.unparse(call))
    needs_of: dict[str, list[str]] = {}  # name -> the checks that its value depends on, at this place
    of_solutions: set[str] = set()
    found: list[tuple[Cell, list[str]]] = []
    for cell in cells:
        needs: list[str] = []
        for statement in cell.statements:
            if cell.region == "solution":
                of_solutions |= statement.binds - needs_of.keys()
                continue
            if cell.region == "exercise":
                needs_of |= {name: [check_of[name]] for name in statement.binds if name in check_of}
            else:
                if missing := sorted(statement.uses & of_solutions):
                    raise PruneError(
                        f"cell {cell.number} uses {missing[0]!r} of a solution, which the student edition lacks: "
                        "define it outside, or use the function that the exercise asks for"
                    )
                needs += [check for name in sorted(statement.uses) for check in needs_of.get(name, [])]
                needs_of = {name: checks for name, checks in needs_of.items() if name not in statement.binds}
                needs_of |= {name: list(needs) for name in statement.binds if needs}
            of_solutions -= statement.binds
        if needs:  # then none of the cell runs, nor what it binds before the answer is needed
            needs = list(dict.fromkeys(needs))
            needs_of |= {name: needs for statement in cell.statements for name in statement.binds}
            found.append((cell, needs))
    return found


def _guarded(cell: Cell, needs: list[str], shows: bool) -> str:
    """The cell's code under the condition that the checks are passed.

    shows: whether Jupyter shows the value of its last line, which it does at the top of a cell only.
    """
    condition = " and ".join(f"{check}.passed" for check in needs)
    names = ", ".join(check.partition("(")[0].rpartition(".")[2] for check in needs)
    source = _displayed(cell) if shows else cell.source
    inside = set(_within_texts(cell.code))  # these lines are not to be moved
    lines = source.rstrip().splitlines()
    moved = [
        line if number in inside or not line else f"    {line}" for number, line in enumerate(lines, 1) if line != MARK
    ]
    return "\n".join(
        [
            f"if {condition}:",
            *moved,
            "else:",
            f'    print("This cell needs a right answer to: {names}. Then run it again.")',
        ]
    )


def _displayed(cell: Cell) -> str:
    """The cell's source with its last expression, a value, as a call of IPython's `display`."""
    node = cell.statements[-1].node
    lines = [line.encode() for line in cell.source.splitlines()]  # offsets in a tree count bytes
    end = node.end_lineno or 0, node.end_col_offset or 0
    for (number, offset), text in ((end, b")"), ((node.lineno, node.col_offset), b"display(")):
        line = lines[number - 1]
        lines[number - 1] = line[:offset] + text + line[offset:]
    return b"\n".join(lines).decode()


def _within_texts(code: str) -> Iterator[int]:
    """The lines that begin inside of a text: one in three quotes, plain or (tokens of its own since 3.12) formatted."""
    opened = []
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        name = tokenize.tok_name[token.type]
        if name == "FSTRING_START":
            opened.append(token.start[0])
        elif name in ("STRING", "FSTRING_END"):
            first = opened.pop() if name == "FSTRING_END" else token.start[0]
            yield from range(first + 1, token.end[0] + 1)


def main(argv: list[str]) -> None:
    """Write the student editions of the notebooks argv[1:] into the folder argv[0], for JupyterLab, and say so.

    What is there already may hold a learner's answers: it is kept.
    """
    parser = argparse.ArgumentParser(
        prog="python -m minprune.course.classroom.student", description="Write the student editions of notebooks."
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where to; notebooks that are there are kept")
    parser.add_argument("notebooks", metavar="NOTEBOOK", type=Path, nargs="+", help="a chapter with its solutions")
    given = parser.parse_args(argv)
    with from_extra("course", "a notebook"):
        import nbformat

    folder, paths = given.folder, given.notebooks
    folder.mkdir(parents=True, exist_ok=True)
    kept = [path for path in paths if (folder / path.name).exists()]
    if kept:
        which = kept[0].name if len(kept) == 1 else f"{len(kept)} notebooks"
        sys.stdout.write(f"{folder}: {which} kept, they may hold answers; move one away to have it made anew\n")
    for path in (path for path in paths if path not in kept):
        notebook = read_notebook(path)
        try:
            student = student_edition(notebook)
        except PruneError as error:
            raise PruneError(f"{path}: {error}") from None
        exercises = sum("{exercise-start}" in cell.source for cell in student.cells)
        gone = len(notebook.cells) - len(student.cells)
        nbformat.write(resolve(student, read_book(path.parent)), folder / path.name)
        sys.stdout.write(f"{folder / path.name}: {exercises} exercises, {gone} cells of solutions taken out\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PruneError as mistake:
        sys.exit(f"minprune: {mistake}")
