"""The notebooks are honest: executed in order from a fresh kernel, without errors, and in the form of a chapter.

nbval compares outputs only where there are some and only in marked cells; this refuses a notebook that would give it
nothing to compare. `problems` is the whole test; the rest proves that it finds what it should.
"""

import ast
import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minprune.course import checks

ROOT = Path(__file__).parent.parent
CHAPTERS = [ROOT / f"{part['file']}.ipynb" for part in yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
            for part in part["chapters"] if part["file"].startswith("notebooks/")]  # fmt: skip
MARK = "# NBVAL_CHECK_OUTPUT"
MAX_LINES, MAX_COLUMNS = 30, 88
FOLDS = {"hide-input", "hide-cell", "remove-input"}
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|tmp|root|home|Users)/\w|[A-Z]:\\\\?Users")
PROMISES = ("able to", "need", "read", "run")  # the rows of the table under the title


def problems(name: str, notebook) -> list[str]:
    """What is wrong with a notebook, one line each, beginning with the file and the cell (counted from 1)."""
    found = [
        f"{name}, cell {place}: {problem}"
        for place, cell in enumerate(notebook.cells, 1)
        if cell.cell_type == "code"
        for problem in _of_code(cell)
    ]
    code = [(place, cell) for place, cell in enumerate(notebook.cells, 1) if cell.cell_type == "code"]
    for expected, (place, cell) in enumerate(code, 1):
        if cell.execution_count != expected:
            found.append(f"{name}, cell {place}: execution_count is {cell.execution_count}, not {expected}: "
                         "execute the notebook in order from a fresh kernel")  # fmt: skip
            break
    if not any(MARK in cell.source for _, cell in code):
        found.append(f"{name}: no cell is marked {MARK}, so nbval would compare nothing")
    for place, cell in enumerate(notebook.cells, 1):
        if path := MACHINE_PATH.search(_all_text(cell)):
            found.append(f"{name}, cell {place}: a path of one machine, {path[0]}...")
    found += [f"{name}, cell {place}: {problem}" for place, problem in _hidden_functions(code)]
    return found + [f"{name}: {problem}" for problem in _of_form(notebook)]


def _hidden_functions(code) -> list[tuple[int, str]]:
    """Where a variable takes the name of a function of an earlier cell, which later cells may still call."""
    functions, found = set(), []
    for place, cell in code:
        names = {node.id for node in _in_the_open(cell.source) if isinstance(node, ast.Name)}
        found += [(place, f"{name} was a function above: name the variable otherwise") for name in names & functions]
        functions |= {node.name for node in _in_the_open(cell.source) if isinstance(node, ast.FunctionDef)}
    return found


def _in_the_open(source: str):
    """Functions that a cell defines for those after it, and names that it sets: not within functions and the like."""
    closed = (ast.FunctionDef, ast.Lambda, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    left = [*ast.parse("\n".join(line for line in source.splitlines() if not line.startswith(("%", "!")))).body]
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)):
            yield node
        if not isinstance(node, closed):
            left += ast.iter_child_nodes(node)


def _of_code(cell) -> list[str]:
    found = []
    if not cell.source.strip():
        return ["an empty code cell"]
    lines = [line for line in cell.source.splitlines() if line.strip()]
    if len(lines) > MAX_LINES:
        found.append(f"{len(lines)} lines of code, more than {MAX_LINES}: split the cell")
    if wide := [line for line in lines if len(line) > MAX_COLUMNS]:
        found.append(f"a line of more than {MAX_COLUMNS} columns, break it: {wide[0].strip()!r}")
    if any("image/png" in output.get("data", {}) for output in cell.outputs) and not FOLDS & {
        *cell.metadata.get("tags", [])
    }:
        found.append("a figure whose code is not folded: compute in a cell above, draw here, tag hide-input")
    if MARK in cell.source and not cell.outputs:
        found.append(f"marked {MARK}, but it has no output")
    if MARK in cell.source and cell.source.rstrip().endswith(";"):
        found.append("marked, but a semicolon at its end hides a value from Jupyter and not from nbval")
    for output in cell.outputs:
        if output.output_type == "error":
            found.append(f"an error output, {output.ename}")
        if output.output_type == "stream" and output.name == "stderr":
            found.append(f"output on stderr, {output.text.strip().splitlines()[0]!r}")
    return found


def _all_text(cell) -> str:
    shown = [output.get("text", "") or "\n".join(output.get("traceback", [])) for output in cell.get("outputs", [])]
    data = [output.get("data", {}) for output in cell.get("outputs", [])]
    return "\n".join([cell.source, *shown, *(str(v) for d in data for k, v in d.items() if k.startswith("text/"))])


def _of_form(notebook) -> list[str]:
    """What the form of a chapter asks for: title, promises, exercises with checks and solutions, quiz, take-away."""
    cells, found = notebook.cells, []
    if not (cells and cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")):
        found.append("the first cell is no title")
    elif re.match(r"# *(?:chapter )?\d", cells[0].source, re.I):
        found.append("the title begins with a number: the book numbers its chapters itself")
    first_code = next((place for place, cell in enumerate(cells) if cell.cell_type == "code"), len(cells))
    opening = "\n".join(cell.source for cell in cells[:first_code])
    table = "\n".join(line for line in opening.splitlines() if line.startswith("|")).lower()
    if missing := [word for word in PROMISES if word not in table]:
        found.append(f"the table before the first code cell does not say {', '.join(missing)}")
    found += _of_exercises(cells)
    sections = re.split(r"^## +", "\n".join(cell.source for cell in cells if cell.cell_type == "markdown"), flags=re.M)
    quiz = next((section for section in sections if re.match(r"[^\n]*\bquiz\b", section, re.I)), "")
    shown = any(cell.cell_type == "code" and "checks.quiz(" in cell.source for cell in cells)
    if not quiz or (quiz.count(":class: dropdown") < 3 and not shown):
        found.append(f"a quiz of three questions, checks.quiz or answers in dropdowns, is missing: {quiz[:40]!r}")
    if not any(re.match(r"[^\n]*\btake-?away\b", section, re.I) for section in sections):
        found.append("the section 'Take-away' is missing")
    return found


def _of_exercises(cells) -> list[str]:
    found, labels = [], []
    starts = [place for place, cell in enumerate(cells) if "{exercise-start}" in cell.source]
    section = next((place for place, cell in enumerate(cells) if re.search(r"^## Exercises", cell.source, re.M)), 0)
    turns = sum(place < section for place in starts)  # your turn: asked for where the chapter needs it
    if not 2 <= len(starts) - turns <= 4 or turns > 3:
        found.append(f"{len(starts) - turns} exercises, not 2 to 4, and {turns} before them, not 0 to 3")
    for place, following in zip(starts, [*starts[1:], len(cells)], strict=True):
        label = re.search(r"^:label: *(\S+)", cells[place].source, re.M)
        labels.append(label[1] if label else f"in cell {place + 1}")
        part = cells[place:following]
        gates = [row for row, cell in enumerate(part) for gate in _GATES if gate in cell.source]
        gates_seen = [gate for cell in part for gate in _GATES if gate in cell.source]
        if gates_seen != list(_GATES):
            found.append(f"exercise {labels[-1]}: found {gates_seen} instead of {list(_GATES)}")
            continue
        task, solution = part[gates[0] : gates[1] + 1], part[gates[2] : gates[3] + 1]
        if f"{{solution-start}} {labels[-1]}\n" not in solution[0].source + "\n":
            found.append(f"exercise {labels[-1]}: the solution after it names another exercise")
        if ":class: dropdown" not in solution[0].source:
            found.append(f"exercise {labels[-1]}: the solution is not in a dropdown")
        if not any("checks." in cell.source for cell in task):
            found.append(f"exercise {labels[-1]}: no call of checks.NAME(your_function)")
        if not re.search(r"minutes", "".join(cell.source for cell in task)):
            found.append(f"exercise {labels[-1]}: the minutes are missing")
        if not any("dropdown" in cell.source for cell in task):
            found.append(f"exercise {labels[-1]}: no hint in a dropdown")
        if not any(cell.cell_type == "code" and MARK in cell.source for cell in solution):
            found.append(f"exercise {labels[-1]}: the solution has no code cell marked {MARK}")
    return found


_GATES = ("{exercise-start}", "{exercise-end}", "{solution-start}", "{solution-end}")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_chapter(path):
    found = problems(path.name, nbformat.read(path, as_version=4))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_stored_verdicts_count_the_cases_that_there_are_now(path):
    """A new case of an exercise makes a stored "Right on all 10 cases" stale, which nbval tells minutes later."""
    for cell in nbformat.read(path, 4).cells:
        for name, count in re.findall(r"`(\w+)`\*\*: passed\. Right on all (\d+) cases", str(cell.get("outputs", ""))):
            assert int(count) == len(checks.EXERCISES[name].cases()), name


def test_no_notebook_is_left_out_of_the_book():
    assert sorted(ROOT.glob("notebooks/*.ipynb")) == sorted(CHAPTERS)


def chapter():
    """The smallest notebook in which nothing is wrong."""
    printed = new_output("stream", name="stdout", text="3\n")

    def code(source, *outputs):
        return new_code_cell(source, outputs=list(outputs))

    cells = [
        new_markdown_cell("# A title\n\n| You will be able to | You need | To read | To run |\n|---|---|---|---|"),
        code(f"{MARK}\nprint(3)", printed),
    ]
    for label in ("one", "two"):
        cells += [
            new_markdown_cell(f"```{{exercise-start}}\n:label: {label}\n```\n5 minutes\n:class: dropdown"),
            code("def f(): return 3\n\nchecks.three(f)"),
            new_markdown_cell("```{exercise-end}\n```"),
            new_markdown_cell(f"```{{solution-start}} {label}\n:class: dropdown\n```"),
            code(f"{MARK}\nprint(3)", printed),
            new_markdown_cell("```{solution-end}\n```"),
        ]
    cells += [new_markdown_cell("## Quiz\n" + 3 * ":class: dropdown\n"), new_markdown_cell("## Take-away\nThree.")]
    notebook = new_notebook(cells=cells)
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), 1):
        cell.execution_count = count
    return notebook


def _set(place, **changes):
    def change(cells):
        cells[place].update(changes)

    return change


def _replace(place, old, new):
    def change(cells):
        assert old in cells[place].source
        cells[place].source = cells[place].source.replace(old, new)

    return change


def _unmark(cells):
    for cell in cells:
        cell.source = cell.source.replace(MARK, "# no mark")


BROKEN = {  # what was done to the good chapter -> what must be said of it
    "not executed": (_set(1, execution_count=None), "x.ipynb, cell 2: execution_count is None, not 1"),
    "executed twice": (_set(3, execution_count=7), "x.ipynb, cell 4: execution_count is 7, not 2"),
    "error": (
        _set(1, outputs=[new_output("error", ename="ValueError", evalue="", traceback=[])]),
        "x.ipynb, cell 2: an error output, ValueError",
    ),
    "stderr": (
        _set(3, outputs=[new_output("stream", name="stderr", text="Warning: x")]),
        "x.ipynb, cell 4: output on stderr, 'Warning: x'",
    ),
    "nothing marked": (_unmark, "x.ipynb: no cell is marked"),
    "marked without output": (_set(1, outputs=[]), "x.ipynb, cell 2: marked # NBVAL_CHECK_OUTPUT, but"),
    "marked and hushed": (_replace(1, "print(3)", "print(3);"), "x.ipynb, cell 2: marked, but a semicolon"),
    "long cell": (_set(3, source="x = 1\n" * 31 + "checks.three(f)"), "x.ipynb, cell 4: 32 lines of code"),
    "wide line": (_replace(3, "return 3", f"return {'3' * 75}"), "x.ipynb, cell 4: a line of more than 88 columns"),
    "wide comment": (_set(1, source=f"{MARK}\nprint(3)  # {'x' * 77}"), "x.ipynb, cell 2: a line of more than 88"),
    "open figure": (
        _set(3, outputs=[new_output("display_data", data={"image/png": "", "text/plain": "<Figure>"})]),
        "x.ipynb, cell 4: a figure whose code is not folded",
    ),
    "hidden function": (
        _replace(9, "def f(): return 3\n", "for f in (1, 2):\n    print(f)\n"),
        "x.ipynb, cell 10: f was a function above",
    ),
    "empty cell": (_set(1, source=" ", outputs=[]), "x.ipynb, cell 2: an empty code cell"),
    "path in the source": (_set(1, source=f"{MARK}\nopen('/ho" + "me/me')"), "x.ipynb, cell 2: a path of one machine"),
    "path in the output": (
        _set(3, outputs=[new_output("execute_result", data={"text/plain": "'/tm" + "p/model'"})]),
        "x.ipynb, cell 4: a path of one machine",
    ),
    "no title": (_replace(0, "# A", "A"), "x.ipynb: the first cell is no title"),
    "numbered title": (_replace(0, "# A", "# Chapter 03: a"), "x.ipynb: the title begins with a number"),
    "no promise": (_replace(0, "You need", "x"), "x.ipynb: the table before the first code cell does not say need"),
    "no quiz": (_replace(14, "## Quiz", "## Fun"), "x.ipynb: a quiz of three questions"),
    "two questions": (_replace(14, ":class: dropdown\n" * 3, ":class: dropdown\n" * 2), "x.ipynb: a quiz of three"),
    "no take-away": (_replace(15, "Take-away", "End"), "x.ipynb: the section 'Take-away' is missing"),
    "no check": (_replace(3, "checks.three", "print"), "x.ipynb: exercise one: no call of checks."),
    "no minutes": (_replace(2, "minutes", "apples"), "x.ipynb: exercise one: the minutes are missing"),
    "no hint": (_replace(2, ":class: dropdown", ""), "x.ipynb: exercise one: no hint in a dropdown"),
    "no solution": (_replace(11, "{solution-start} two", ""), "x.ipynb: exercise two: found ["),
    "other solution": (_replace(5, "one", "two"), "x.ipynb: exercise one: the solution after it names another"),
    "open solution": (_replace(5, ":class: dropdown", ""), "x.ipynb: exercise one: the solution is not in a dropdown"),
    "solution not run": (_replace(12, MARK, "#"), "x.ipynb: exercise two: the solution has no code cell marked"),
    "one exercise": (lambda cells: cells.__delitem__(slice(2, 8)), "x.ipynb: 1 exercises, not 2 to 4"),
    "nothing but your turn": (
        _replace(14, "## Quiz", "## Exercises\n## Quiz"),
        "x.ipynb: 0 exercises, not 2 to 4, and 2 before them",
    ),
}
CONSEQUENCES = {"nothing marked": 3, "one exercise": 2}  # two unmarked solutions; a gap in the execution counts


def test_the_good_chapter_has_no_problem():
    good = chapter()
    assert problems("x.ipynb", good) == []
    good.cells[3].source = f"{'x' * 84} = 3\n\nchecks.three(f)"  # 88 columns
    assert problems("x.ipynb", good) == []
    good.cells[14:15] = [new_markdown_cell("## Quiz\nChoose."), new_code_cell('checks.quiz("01")', execution_count=6)]
    assert problems("x.ipynb", good) == []


@pytest.mark.parametrize("what", BROKEN)
def test_broken_chapters_are_refused(what):
    change, message = BROKEN[what]
    notebook = copy.deepcopy(chapter())
    change(notebook.cells)
    found = problems("x.ipynb", notebook)
    assert any(problem.startswith(message) for problem in found), found
    assert len(found) == CONSEQUENCES.get(what, 1), found


def test_nbval_compares_marked_cells_and_nothing_else(tmp_path):
    """With the options of `make notebooks`: a marked cell with another output fails; all else may differ."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("notebooks/conftest.py", "notebooks/sanitize.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)

    def code(source, printed):
        outputs = [new_output("stream", name="stdout", text=printed)]
        return new_code_cell(source, outputs=outputs, execution_count=1)

    right = code(f"{MARK}\nimport sys\nprint(2 + 2)\nprint('noise', file=sys.stderr)", "4\n")
    threads = code(f"{MARK}\nimport os\nprint(os.environ['OMP_NUM_THREADS'])", "1\n")
    cells = {
        "good": [right, code("print(5)", "6\n"), threads],
        "wrong": [right, code(f"{MARK}\nprint(5)", "6\n")],
        "raising": [right, code("1 / 0", "")],
    }
    for name, content in cells.items():
        nbformat.write(new_notebook(cells=content), folder / f"{name}.ipynb")
    options = re.search(r"pytest (--nbval\S* .*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    done = subprocess.run([sys.executable, "-m", "pytest", *options], cwd=tmp_path, capture_output=True, text=True)
    failed = sorted(re.findall(r"FAILED notebooks/(\w+)\.ipynb::(Cell \d)", done.stdout))
    assert failed == [("raising", "Cell 1"), ("wrong", "Cell 1")], done.stdout
    assert re.search(r"good\.ipynb: \d+\.\d s in 3 cells", done.stdout), done.stdout
