"""The grader: solutions get full marks, each known mistake loses its exercise's and is named, and nothing stops it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from classroom import CHAPTERS, chapter, exercises, filled_in, small

from minprune import checks
from minprune.cli.main import main
from minprune.course.classroom.cells import code_cells
from minprune.course.classroom.grade import grade, handed_in


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the notebooks lie, beside a copy of the exercises' modules: an answer cannot import those of minprune."""
    folder = tmp_path_factory.mktemp("learner")
    (folder / "mistakes").mkdir()
    for path in Path(checks.__file__).parent.glob("*.py"):
        text = path.read_text().replace("minprune.course.checks", "mistakes") if path.name != "__init__.py" else ""
        (folder / "mistakes" / path.name).write_text(text)
    return folder


@pytest.fixture
def graded(folder):
    """graded(notebook, seconds) -> {exercise: its mark}."""

    def run(notebook, seconds=60):
        nbformat.write(notebook, folder / "mine.ipynb")
        return {mark.exercise: mark for mark in grade(folder / "mine.ipynb", seconds).marks}

    return run


def home(name):
    """The module in which an exercise is written."""
    modules = [module for module in vars(checks).values() if isinstance(module, ModuleType)]
    owners = [m for m in modules if any(e.name == name for e in getattr(m, "EXERCISES", []))]
    return owners[0].__name__.rpartition(".")[2]


def with_variant(names, i):
    """A cell in which each of the exercises is answered with its i-th wrong variant."""
    code = []
    for name in names:
        variant = i % len(checks.EXERCISES[name].wrong)
        code += [f"from mistakes.{home(name)} import EXERCISES as exercises_of_{name}"]
        code += [f"{name}_answer = {{e.name: e for e in exercises_of_{name}}}[{name!r}].wrong[{variant}].function"]
        code += ["from minprune import checks", f"verdict = checks.{name}({name}_answer)"]
    return "\n".join(code)


# --- the chapters

# Each starts a process or several: one chapter of four here, the others in `make test-slow`.
DRAWN = [pytest.param(name, marks=() if i % 4 == 1 else pytest.mark.slow) for i, name in enumerate(CHAPTERS)]


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_and_its_catalogue_name_the_same_exercises_and_difficulties(name):
    notebook = chapter(name)
    found = exercises(notebook)
    number = int(name.split("/")[-1][:2])
    catalogue = {e.name: e.difficulty for e in checks.EXERCISES.values() if e.chapter == number}
    written = {}
    for place, names, _ in found:
        sources = [cell.source for cell in notebook.cells[:place]]
        start = max(row for row, source in enumerate(sources) if "{exercise-start}" in source)
        task = "\n".join(sources[start:])
        assert len(names) == 1, f"{names}: one check an exercise, or the difficulty cannot be split"
        difficulty = re.search(r"[Dd]ifficulty:?\**:? (\d) of 5", task)
        assert difficulty, f"{names[0]}: the difficulty is not written as 'Difficulty 2 of 5'"
        written[names[0]] = int(difficulty[1])
    assert written == catalogue


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_solutions_get_full_marks(name, graded):
    notebook = chapter(name)
    marks = graded(filled_in(notebook, ["\n\n".join(sources) for _, _, sources in exercises(notebook)]))
    assert marks and all(mark.passed and mark.points == mark.of > 0 and mark.bug is None for mark in marks.values())


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_not_solved_gets_nothing(name, graded):
    """The solutions in the dropdowns of the full edition are not the learner's."""
    marks = graded(chapter(name))
    assert marks and all(mark.points == 0 and not mark.passed for mark in marks.values())


@pytest.mark.parametrize("name", DRAWN)
def test_every_wrong_variant_loses_its_marks_and_is_named(name, graded):
    notebook = chapter(name)
    found = exercises(notebook)
    rounds = max(len(checks.EXERCISES[e].wrong) for _, names, _ in found for e in names)
    seen = set()
    for i in range(rounds):
        for exercise, mark in graded(filled_in(notebook, [with_variant(names, i) for _, names, _ in found])).items():
            wrong = checks.EXERCISES[exercise].wrong
            expected = wrong[i % len(wrong)]
            assert (mark.points, mark.bug, mark.message) == (0, expected.name, expected.message)
            seen.add((exercise, i % len(wrong)))
    assert seen == {(e, i) for _, names, _ in found for e in names for i in range(len(checks.EXERCISES[e].wrong))}


def test_one_wrong_answer_among_right_ones_costs_its_own_marks_only(graded):
    notebook = chapter("notebooks/02-magnitude.ipynb")
    sources = ["\n\n".join(sources) for _, _, sources in exercises(notebook)]
    names = [names[0] for _, names, _ in exercises(notebook)]
    place = names.index("input_cost")
    sources[place] = with_variant(["input_cost"], 0)
    marks = graded(filled_in(notebook, sources))
    assert [name for name, mark in marks.items() if not mark.passed] == ["input_cost"]
    assert sum(mark.points for mark in marks.values()) == sum(mark.of for mark in marks.values()) - 2


# --- learners

CUT = "def cut_windows(ids, length):\n    n = len(ids) // length\n    return ids[: n * length].view(n, length)\n"
CALL = "checks.cut_windows(cut_windows)"
HELPED = "def cut_windows(ids, length):\n    return {}\n" + CALL
SHARES = """
def zero_shares(weights):
    zeros, sizes = [int((W == 0).sum()) for W in weights], [W.numel() for W in weights]
    return [zero / size for zero, size in zip(zeros, sizes)] + [sum(zeros) / sum(sizes)]
checks.zero_shares(zero_shares)
"""


def notebook_of(*cells):
    return small("import torch\nfrom minprune import checks", *cells)


MISHAPS = {  # what the learner wrote -> what is said
    "exception": (HELPED.format("1 / 0"), "your function raised ZeroDivisionError in its line 2: division by zero"),
    "missing name": (HELPED.format("helper(ids)"), "raised NameError in its line 2: name 'helper' is not defined"),
    "wrong type": (HELPED.format("'windows'"), "was expected, not"),
    "no function": ("cut_windows = 7\n" + CALL, "Pass the function itself"),
    "undefined": (CALL, "checks.cut_windows(cut_windows) raised NameError"),
    "interrupt": (HELPED.format("exec('raise KeyboardInterrupt')"), "your function raised KeyboardInterrupt in its"),
    "no call": (CUT + "print(checks.perplexity)", "No call of checks.cut_windows(your_function) is in the notebook"),
    "two arguments": (CUT + "checks.cut_windows(cut_windows, 3)", "Pass the function, and nothing else"),
    "no Python": ("def cut_windows(ids length):\n    pass\n" + CALL, "Cell 2, which calls checks.cut_windows, is not"),
    "exit": (HELPED.format("exit(0)"), "your function raised SystemExit in its line 2: 0"),
    "hard exit": (HELPED.format("__import__('os')._exit(3)"), "The process died while it ran your code (exit code 3)"),
    "crash": (
        HELPED.format("__import__('os').kill(__import__('os').getpid(), 11)"),
        "The process died while it ran your code (exit code -11)",
    ),
    "endless": ("def cut_windows(ids, length):\n    while True:\n        pass\n" + CALL, "Not finished after 2 s"),
    "endless outside": ("while True:\n    cut_windows = 1\n" + CALL, "Not finished after 2 s"),
    "endless in C": (HELPED.format("sum(iter(int, 1))"), "Not finished after 2 s"),
    "helper raises": (
        "scale = 1 / 0\n\n" + HELPED.format("ids * scale"),
        "is right. What it needs from cell 2 raised ZeroDivisionError: division by zero.",
    ),
    "input": (HELPED.format("input()"), "your function raised EOFError"),
}


@pytest.mark.parametrize("what", MISHAPS)
def test_a_mishap_is_told_and_the_grading_goes_on(what, graded):
    source, message = MISHAPS[what]
    marks = graded(notebook_of(source, SHARES), seconds=2 if "endless" in what else 60)
    mark = marks["cut_windows"]
    assert mark.points == 0 and mark.bug is None and message in mark.message, mark.message
    assert marks["zero_shares"].passed, marks["zero_shares"].message


IN_A_CLASS = """
class Mine:
    @staticmethod
    def cut(ids, length):
        n = len(ids) // length
        return ids[: n * length].view(n, length)
"""


def counting(windows):
    """The answer with another expression for the number of windows."""
    return CUT.replace("len(ids) // length", windows) + CALL


ANSWERS = {  # cells that all deserve the points
    "helpers from earlier cells": [
        "ONE = 1",
        "def pieces(n):\n    return n // ONE",
        counting("pieces(len(ids) // length)"),
    ],
    "a name from an import": ["from math import floor as down", counting("down(len(ids) / length)")],
    "a star import": ["from math import *", counting("floor(len(ids) / length)")],
    "changed data": ["table = {}\ntable['zero'] = 0", counting("len(ids) // length + table['zero']")],
    "the last answer counts": [HELPED.format("None"), CUT + CALL],
    "another name": [CUT.replace("cut_windows", "mine") + "verdict = checks.cut_windows(mine)\nprint(verdict)"],
    "a lambda": [CUT, "checks.cut_windows(lambda ids, length: cut_windows(ids, length).tolist())"],
    "a method": [IN_A_CLASS, "checks.cut_windows(Mine.cut)"],
    "magics": ["%matplotlib inline\n!ls", "%%time\n" + CUT + CALL],
    "broken cells elsewhere": ["this is ( no Python", CUT + CALL],
    "prints": [CUT.replace("    n =", "    print('x' * 100000)\n    n =") + CALL],
    "endless cells that it does not need": ["n = 1\nwhile True:\n    model = 1", "raise RuntimeError", CUT + CALL],
}


@pytest.mark.parametrize("what", ANSWERS)
def test_right_answers_in_any_form_get_their_points(what, graded, capfd):
    mark = graded(notebook_of(*ANSWERS[what]), seconds=20)["cut_windows"]
    assert mark.passed, mark.message
    assert capfd.readouterr().out == ""


def test_only_what_the_answer_needs_is_run():
    sources = [
        "import os, sys\nmodel = load()",
        "a = 1",
        "def f(x):\n    model = x\n    return [a for a in model], g(x)",
        "b = a\ndef g(y, z=b):\n    return y",
        "def g(y):\n    return c",
        "checks.cut_windows(f)",
        "c = 3",
    ]
    cells = code_cells(notebook_of(*sources))
    _, statements = handed_in(cells, "cut_windows")
    # f calls g, one of whose versions needs b, which needs a; `model` and the other `a` are local; c comes too late
    assert [number for number, _, _ in statements] == [3, 4, 5, 5, 6]


def test_what_the_learner_started_ends_too(graded, tmp_path):
    beat = tmp_path / "beat"
    code = f"import time\nwhile True:\n    open({str(beat)!r}, 'a').write('.')\n    time.sleep(0.05)"
    source = f"import subprocess, sys\ndef mine(ids, n):\n    subprocess.run([sys.executable, '-c', {code!r}])\n"
    assert "Not finished" in graded(notebook_of(source + "checks.cut_windows(mine)"), seconds=3)["cut_windows"].message
    size = beat.stat().st_size
    time.sleep(0.5)
    assert beat.stat().st_size == size > 0


def test_the_folder_of_the_notebook_is_where_the_code_runs(graded, folder):
    (folder / "mine_helper.py").write_text(CUT)
    (folder / "zero.txt").write_text("0")
    source = "from mine_helper import cut_windows as f\nzero = int(open('zero.txt').read())\n"
    assert graded(notebook_of(source + "checks.cut_windows(lambda i, n: f(i, n) + zero)"))["cut_windows"].passed


# --- the command


def test_the_command_prints_a_table_and_writes_json(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    nbformat.write(notebook_of(CUT + CALL, with_variant(["perplexity"], 0)), "mine.ipynb")
    assert main(["grade", "mine.ipynb", "--json", "points.json"]) == 0
    out, err = capsys.readouterr()
    bug = checks.EXERCISES["perplexity"].wrong[0].name
    rows = {line.split()[0]: line for line in out.splitlines() if " / " in line}
    assert re.fullmatch(r"cut_windows +1 / 1  passed", rows["cut_windows"])
    assert re.fullmatch(rf"perplexity +0 / 2  {re.escape(bug)}", rows["perplexity"])
    assert re.fullmatch(r"zero_shares +0 / 2  No call of checks.zero_shares.*", rows["zero_shares"])
    every = sum(int(row.split(" / ")[1].split()[0]) for name, row in rows.items() if name != "total")
    assert len(rows) > 3 and re.fullmatch(rf"total +1 / {every}", rows["total"])
    assert max(map(len, out.splitlines())) <= 80 and err == ""
    written = json.loads((folder / "points.json").read_text())
    assert (written["notebook"], written["chapter"], written["points"], written["of"]) == ("mine.ipynb", 1, 1, every)
    assert [e["bug"] for e in written["exercises"] if e["exercise"] == "perplexity"] == [bug]
    assert main(["grade", "mine.ipynb", "--json", "points.json"]) == 2
    assert "points.json exists: choose another --json, or add --overwrite" in capsys.readouterr().err
    assert main(["grade", "mine.ipynb", "--json", "points.json", "--overwrite"]) == 0


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot read x.ipynb (No such file or directory): name a notebook"),
        ("print(3)", "x.ipynb is no Jupyter notebook"),
        ("[]", "x.ipynb is no Jupyter notebook"),
        ("\udcff", "x.ipynb is no Jupyter notebook"),
        ('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}', "x.ipynb has no exercise of the course"),
    ],
)
def test_a_file_that_cannot_be_graded_is_a_mistake(content, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "x.ipynb").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert main(["grade", "x.ipynb"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and message in err


def test_other_mistakes_cost_no_grading(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seconds = [["--seconds", value] for value in ("0", "nan", "inf", "-1", "1e308", "-inf")]
    for arguments in (*seconds, ["--json", "no/where.json"]):
        assert main(["grade", "x.ipynb", *arguments]) == 2
        err = capsys.readouterr().err
        assert (arguments[0] if arguments[0] == "--seconds" else arguments[1]) in err and len(err.splitlines()) == 1


def test_the_installed_command_grades(tmp_path):
    """As the console script does it: the processes import a main module that is not pytest's."""
    nbformat.write(notebook_of(CUT + CALL), tmp_path / "mine.ipynb")
    done = subprocess.run([sys.executable, "-m", "minprune.cli.main", "grade", tmp_path / "mine.ipynb"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0 and re.search(r"cut_windows +1 / 1  passed", done.stdout), done.stderr


def test_the_help_says_whose_rights_the_code_has(capsys):
    with pytest.raises(SystemExit):
        main(["grade", "--help"])
    assert "YOUR rights" in capsys.readouterr().out
