"""For the tests of the student edition and the grader: the chapters in git, and notebooks filled in by learners."""

import copy
import re
import subprocess
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from minprune import checks
from minprune.course.classroom.cells import MARK, regions

ROOT = Path(__file__).parent.parent
TRACKED = ["git", "ls-files", "notebooks/*.ipynb"]  # a chapter that somebody has only begun is not among them
CHAPTERS = subprocess.run(TRACKED, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def chapter(name):
    """The notebook."""
    return nbformat.read(ROOT / name, as_version=4)


def called(source):
    """The names of the exercises whose checks a source calls."""
    return [name for name in re.findall(r"\bchecks\.(\w+)\(", source) if name in checks.EXERCISES]


def exercises(notebook):
    """(the place of the learner's cell, its exercises, the sources of the solution's code cells) of each exercise."""
    where, found = regions(notebook), []
    for place, (cell, region) in enumerate(zip(notebook.cells, where, strict=True)):
        if region == "exercise" and cell.cell_type == "code" and called(cell.source):
            found.append((place, list(dict.fromkeys(called(cell.source))), []))
        elif region == "solution" and cell.cell_type == "code":
            found[-1][2].append(cell.source.replace(MARK, "").strip())
    return found


def filled_in(notebook, sources):
    """The notebook without solutions, with these sources in the learner's cells, one for each exercise; not run."""
    filled = copy.deepcopy(notebook)
    for (place, _, _), source in zip(exercises(notebook), sources, strict=True):
        filled.cells[place].source = source
    kept = [cell for cell, region in zip(filled.cells, regions(notebook), strict=True) if region != "solution"]
    for cell in kept:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    filled.cells = kept
    return filled


def small(*cells):
    """A notebook of these cells: code, or Markdown if the text begins with a # and a blank, or holds a gate."""
    return new_notebook(
        cells=[
            new_markdown_cell(text) if re.match(r"##? (?!NBVAL)", text) or re.search(r"\{\w+-(start|end)\}", text)
            else new_code_cell(text)
            for text in cells
        ]
    )  # fmt: skip
