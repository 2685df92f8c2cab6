"""The student edition: nothing of a solution is left, everything else is, and it runs from top to bottom."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from classroom import CHAPTERS, ROOT, called, chapter, exercises, small

from minprune import checks
from minprune.course.classroom import student
from minprune.course.classroom.cells import code_cells, read_notebook, regions
from minprune.course.classroom.student import student_edition
from minprune.errors import PruneError

ASK = "This cell needs a right answer to: "


def lines(*sources):
    return Counter(line.strip() for source in sources for line in source.splitlines() if line.strip())


def by_region(notebook, *wanted):
    return [c for c, region in zip(notebook.cells, regions(notebook), strict=True) if region in wanted]


@pytest.mark.parametrize("name", CHAPTERS)
def test_no_line_of_a_solution_is_left(name):
    """No line stands in the student edition more often than outside the solutions; each solution had one of its own."""
    notebook = chapter(name)
    edition = student_edition(notebook)
    left = lines(*(cell.source for cell in edition.cells))
    left -= Counter({"else:": sum(cell.source.startswith("if checks.") for cell in edition.cells)})  # of the guards
    outside = lines(*(cell.source for cell in by_region(notebook, "text", "exercise")))
    for _, names, sources in exercises(notebook):
        solution = lines(*sources)
        assert not [line for line in solution if left[line] > outside[line]], names
        own = [line for line in solution if line not in outside]
        assert own and not [line for line in own if line in left], names
    assert "solution" not in regions(edition) and "{solution-" not in nbformat.writes(edition)
    assert not re.search(r"\{admonition\} Answer", nbformat.writes(edition))


@pytest.mark.parametrize("name", CHAPTERS)
def test_all_else_stays(name):
    notebook = chapter(name)
    before, edition = nbformat.writes(notebook), student_edition(notebook)
    assert nbformat.writes(notebook) == before  # the argument is not changed
    nbformat.validate(edition)
    old = {cell.id: cell for cell in by_region(notebook, "text", "exercise")}
    assert [cell.id for cell in edition.cells if cell.id in old] == list(old)
    for cell in edition.cells:
        if cell.source.startswith("if checks."):
            assert not cell.outputs and ASK in cell.source
        elif cell.cell_type == "code":
            assert cell == old[cell.id]
        elif cell.id in old:
            answers = cell.source.count("*Your answer:*") if "quiz" in old[cell.id].source.lower() else 0
            assert cell == old[cell.id] or answers
    words = "\n".join(cell.source for cell in edition.cells if cell.cell_type == "markdown")
    assert words.count("*Your answer:*") >= 3 or any("checks.quiz(" in cell.source for cell in edition.cells)
    starts = "\n".join(cell.source for cell in notebook.cells).count("{exercise-start}")
    assert starts == words.count("{exercise-start}") == len(exercises(edition))


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_unsolved_exercises_run_and_say_so(name, capsys):
    """The learner's cells and those that wait for them, with the chapter's imports and nothing else."""
    namespace = {}
    cells = code_cells(student_edition(chapter(name)))
    for cell in cells:
        for statement in cell.statements:
            if isinstance(statement.node, (ast.Import, ast.ImportFrom)):
                exec(ast.unparse(statement.node), namespace)
    for cell in cells:
        if cell.region == "exercise":
            for statement in cell.statements:
                if statement.defines:
                    exec(ast.unparse(statement.node), namespace)
            for exercise in called(cell.source):
                call = next(c for s in cell.statements for key, c in s.calls() if key == exercise)
                verdict = checks.EXERCISES[exercise](eval(ast.unparse(call.args[0]), namespace))
                assert not verdict.passed
    capsys.readouterr()
    waiting = [cell for cell in cells if cell.source.startswith("if checks.")]
    for cell in waiting:
        exec(cell.source, namespace)
    assert capsys.readouterr().out.count(ASK) == len(waiting)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_student_notebook_runs_from_top_to_bottom(name, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    edition = student_edition(chapter(name))
    nbclient.NotebookClient(edition, timeout=600, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    shown = nbformat.writes(edition)
    for _, names, _ in exercises(edition):
        for exercise in names:
            assert f"✗ {exercise}: not yet" in shown


START = "```{exercise-start} A\n:label: a\n```\n**Difficulty 1 of 5, 5 minutes.**"
END = "```{exercise-end}\n```"
OPEN = "```{solution-start} a\n:class: dropdown\n```"
CLOSE = "```{solution-end}\n```"
STUB = "def cut_windows(ids, length):\n    raise NotImplementedError\n\n\nchecks.cut_windows(cut_windows)"
SOLVED = "def cut_windows(ids, length):\n    n = len(ids) // length\n    return ids[: n * length].view(n, length)"


def edition(*after, solution=SOLVED):
    return student_edition(small("from minprune import checks", START, STUB, END, OPEN, solution, CLOSE, *after))


def test_a_cell_that_needs_an_answer_asks_for_it(capsys):
    made = edition(
        "import torch\nids = torch.arange(7)",
        '# NBVAL_CHECK_OUTPUT\ntext = """two\nlines"""\nwindows = cut_windows(ids, 3)\nprint(len(windows), repr(text))',
        "print(len(windows))",  # needs it by way of `windows`
        "windows = [1]",
        "print(windows)",  # does not need it any more
    )
    code = [cell.source for cell in made.cells if cell.cell_type == "code"]
    condition = "if checks.cut_windows(cut_windows).passed:"
    assert [source.startswith(condition) for source in code] == [False, False, False, True, True, False, False]
    namespace = {}
    for source in code:
        exec(source, namespace)
    assert capsys.readouterr().out == 2 * f"{ASK}cut_windows. Then run it again.\n" + "[1]\n"
    code[1] = SOLVED
    for source in code:
        exec(source, namespace)
    assert capsys.readouterr().out == "2 'two\\nlines'\n2\n[1]\n"


def test_what_a_cell_shows_is_shown_when_the_answer_is_right():
    """Jupyter shows a last value at the top of a cell, and not below an `if`; what it never showed stays hidden."""
    nbclient = pytest.importorskip("nbclient")
    shown = "import torch\n'ä'; torch.cat([\n    cut_windows(torch.arange(4), 2)])  # (2, 2), 'ä'"
    hidden = "cut_windows(torch.arange(4), 2);"
    notebook = small("from minprune import checks", START, STUB, END, OPEN, SOLVED, CLOSE, shown, hidden)
    notebook.cells[-2].outputs = [nbformat.v4.new_output("execute_result", data={"text/plain": ""})]
    made = student_edition(notebook)
    made.cells[2].source = SOLVED
    nbclient.NotebookClient(made, timeout=600).execute()
    assert [len(cell.outputs) for cell in made.cells[-2:]] == [1, 0]
    assert made.cells[-2].outputs[0]["data"]["text/plain"] == "tensor([[0, 1],\n        [2, 3]])"


def test_every_chapter_shows_all_that_waits_for_an_answer():
    waiting = 0
    for name in CHAPTERS:
        notebook = chapter(name)
        values = {c.id for c in notebook.cells for out in c.get("outputs", ()) if out.output_type == "execute_result"}
        for cell in student_edition(notebook).cells:
            if cell.source.startswith("if checks.") and cell.id in values:
                waiting += 1
                assert re.search(r"^    display\(", cell.source, re.M), (name, cell.source)
    assert waiting


def test_code_that_waits_is_indented_and_only_texts_in_three_quotes_stay():
    code = "n = len(cut_windows)\nprint(\n    f'{n}'\n    ' in ' f'''{n}\nof''' 'all'\n)\ntext = '''a\nb'''"
    lines = edition(code).cells[-1].source.splitlines()[1:-2]
    assert [line for line in lines if not line.startswith("    ")] == ["of''' 'all'", "b'''"]
    assert [line.removeprefix("    ") for line in lines] == code.splitlines()


def test_what_a_cell_binds_before_it_needs_the_answer_is_missing_as_well():
    made = edition(
        "import torch\nids = torch.arange(7)",
        "found = []\nfor length in (2, 3):\n    found.append(cut_windows(ids, length))",
        "for windows in found:\n    print(len(windows))",
    )
    code = [cell.source for cell in made.cells if cell.cell_type == "code"]
    assert [source.startswith("if checks.cut_windows") for source in code[2:]] == [False, True, True]
    namespace = {}
    for source in code:
        exec(source, namespace)


def test_an_answer_and_its_check_may_stand_in_two_cells():
    stub, call = STUB.split("\n\n\n")
    made = student_edition(small(START, stub, call, END, OPEN, SOLVED, CLOSE, "print(cut_windows)"))
    assert made.cells[-1].source.startswith(f"if {call}.passed:")


def test_a_magic_in_a_cell_that_needs_an_answer_stays():
    cell = edition("%time cut_windows\nx = cut_windows").cells[-1]
    assert "\n    %time cut_windows\n    x = cut_windows\nelse:" in cell.source


def test_a_name_that_only_a_solution_defines_is_refused():
    with pytest.raises(PruneError, match="cell 8 uses 'helper' of a solution"):
        edition("print(helper)", solution="helper = 1\n" + SOLVED)
    with pytest.raises(PruneError, match="cell 8 uses 'x' of a solution"):
        edition("print(x)", solution="x = 1")
    edition("for x in [1, 2]:\n    print(x)", "x = 3", "print(x)", solution="x = 1")
    edition("def f(x):\n    return [y for y in x]", solution="x = y = 1")


def test_text_around_the_gates_stays_if_it_is_outside():
    made = student_edition(small(
        START, STUB, END, f"# Before\n\n{OPEN}\n\ninside", SOLVED, f"inside\n\n{CLOSE}\n\nAfter."))  # fmt: skip
    assert [cell.source for cell in made.cells[3:]] == ["# Before", "After."]


def test_quiz_answers_go_and_other_dropdowns_stay():
    def box(title, text):
        return f"```{{admonition}} {title}\n:class: dropdown tip\n{text}\n```"

    quiz = f"# T\n{box('Aside', 'one')}\n\n## Quiz\n\nWhy?\n\n{box('Answer', 'two')}"
    made = student_edition(small(quiz, f"# \n{box('Answer', 'three')}", f"## Take-away\n{box('More', 'four')}"))
    text = "\n".join(cell.source for cell in made.cells)
    assert [word in text for word in ("one", "two", "three", "four")] == [True, False, False, True]
    assert text.count("*Your answer:*") == 2


def test_the_command_writes_and_says_what(tmp_path, capsys):
    student.main([str(tmp_path / "student"), *(str(ROOT / name) for name in CHAPTERS)])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(CHAPTERS)
    for name, line in zip(CHAPTERS, said, strict=True):
        path = tmp_path / "student" / name.split("/")[-1]
        count = len(exercises(read_notebook(path)))
        assert re.fullmatch(rf"{re.escape(str(path))}: {count} exercises, \d+ cells of solutions taken out", line)


def test_a_file_that_is_no_notebook_is_a_mistake_in_one_line(tmp_path):
    (tmp_path / "x.ipynb").write_text("{}")
    module = "minprune.course.classroom.student"
    command = [sys.executable, "-m", module, tmp_path / "out", tmp_path / "x.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "is no Jupyter notebook" in done.stderr


def test_a_notebook_that_may_hold_answers_is_never_written_again(tmp_path, capsys):
    path = tmp_path / Path(CHAPTERS[0]).name
    path.write_text("my answers")
    student.main([str(tmp_path), str(ROOT / CHAPTERS[0])])
    assert path.read_text() == "my answers"
    assert "kept" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], [], ["out"]])
def test_without_notebooks_there_is_help_and_no_folder(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        student.main(words)
    said = capsys.readouterr()
    assert end.value.code == (0 if words == ["--help"] else 2) and "NOTEBOOK" in said.out + said.err
    assert list(tmp_path.iterdir()) == []
