"""What the whole book knows of one chapter's references, written into its text: JupyterLab sees one notebook at a time.

Numbers and links of chapters, equations, figures and exercises, captions, titles of pages, authors of citations. All
other MyST (admonitions, exercises) stays for jupyterlab-myst, and an unknown reference stays as it is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from minprune.course.classroom.cells import read_notebook
from minprune.errors import from_extra

if TYPE_CHECKING:
    from nbformat import NotebookNode

_ROLE = re.compile(r"\{(numref|eq|cite|cite:t|cite:p|ref|doc)\}`([^`<>]*?)(?: *<([^`<>]*)>)?`")
_EQUATION = re.compile(r"\$\$(.*?)(\s*)\$\$(?: *\(([\w-]+)\))?", re.S)
_EXERCISE = re.compile(r"\{exercise-start\} *([^\n]*)\n:label: *(\S+)")
_BARE_LINK = re.compile(r"\[\]\(([^()#\s]+)\)")
_ONLY_TAGS = "---\nnumbering:\n  equation: false\n---\n"  # else jupyterlab-myst numbers every displayed formula, too
_TITLE = re.compile(r"^# +(.*)", re.M)


@dataclass(frozen=True)
class Book:
    """chapters: name -> file NN-name.ipynb. places: label of an equation, figure or exercise -> its number, "4.1".
    pages: label of an equation on another page -> that page. exercises: label -> title.
    authors: key of the bibliography -> who, year.
    """

    folder: Path
    chapters: dict[str, str]
    places: dict[str, str]
    pages: dict[str, str]
    exercises: dict[str, str]
    authors: dict[str, tuple[str, str]]


@lru_cache
def read_book(folder: Path) -> Book:
    """The book whose chapters are the notebooks NN-name.ipynb of a folder, and whose bibliography lies in ../book."""
    chapters = {path.stem[3:]: path.name for path in sorted(folder.glob("[0-9][0-9]-*.ipynb"))}
    places: dict[str, str] = {}
    pages: dict[str, str] = {}
    exercises: dict[str, str] = {}
    for page in sorted(folder.parent.glob("book/*.md")):
        equations = [found[3] for found in _EQUATION.finditer(page.read_text(encoding="utf-8")) if found[3]]
        places |= {label: str(count) for count, label in enumerate(equations, 1)}
        pages |= dict.fromkeys(equations, f"../book/{page.name}")
    for file in chapters.values():
        cells = read_notebook(folder / file).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        titles = {found[2]: found[1].strip() for found in _EXERCISE.finditer(text)}
        equations = [found[3] for found in _EQUATION.finditer(text) if found[3]]
        figures = [_figure(cell)["name"] for cell in cells if "name" in _figure(cell)]
        for labels in (equations, figures, titles):
            places |= {label: f"{int(file[:2])}.{count}" for count, label in enumerate(labels, 1)}
        exercises |= titles
    return Book(folder, chapters, places, pages, exercises, _authors(folder.parent / "book" / "references.bib"))


def _figure(cell: "NotebookNode") -> dict[str, str]:
    return cell.metadata.get("mystnb", {}).get("figure", {})


def _authors(bibliography: Path) -> dict[str, tuple[str, str]]:
    """key -> "Sun", "Frantar and Alistarh" or "Ma et al.", and the year."""
    if not bibliography.exists():
        return {}
    with from_extra("course", "a bibliography"):
        from pybtex.database import parse_file

    found = {}
    for key, entry in parse_file(str(bibliography)).entries.items():
        people = entry.persons.get("author") or entry.persons.get("editor") or []
        names = [" ".join(str(part) for part in (*one.rich_prelast_names, *one.rich_last_names)) for one in people]
        who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        found[key] = (who or key, entry.fields.get("year", ""))
    return found


def resolve(notebook: "NotebookNode", book: Book) -> "NotebookNode":
    """The notebook, changed: references as text and links, equations with their numbers, captions under figures."""
    from nbformat.v4 import new_markdown_cell

    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        figure = _figure(cell)
        if cell.cell_type == "markdown":
            cell.source = _text(cell.source, book)
        elif "caption" in figure:
            number = book.places.get(figure.get("name", ""), "")
            caption = f"**Figure {number}.** {_text(figure['caption'], book)}".replace("Figure .", "Figure.")
            cells.append(new_markdown_cell(caption, id=f"{cell.id}-caption"[-64:]))
    notebook.cells = cells
    if cells and cells[0].source.startswith("# "):
        cells[0].source = _ONLY_TAGS + cells[0].source
    return notebook


def _text(source: str, book: Book) -> str:
    source = _EQUATION.sub(lambda found: _numbered(found, book), source)
    source = _BARE_LINK.sub(lambda found: _page(found[1], book) or found[0], source)
    return _ROLE.sub(lambda found: _ROLES[found[1]](found, book) or found[0], source)


def _numbered(found: re.Match[str], book: Book) -> str:
    """An equation: its label, which only a book can resolve, becomes the number that the book gives it."""
    if found[3] not in book.places:
        return found[0]
    return f"$${found[1]} \\tag{{{book.places[found[3]]}}}{found[2]}$$"


def _numref(found: re.Match[str], book: Book) -> str:
    label = found[3] or found[2]
    file = book.chapters.get(label.removeprefix("ch-"))
    number = str(int(file[:2])) if file else book.places.get(label, "")
    text = (found[2] if found[3] else "figure %s").replace("%s", number)
    return f"[{text}]({file})" if file else text if number else ""


def _eq(found: re.Match[str], book: Book) -> str:
    number, page = book.places.get(found[2]), book.pages.get(found[2])
    return f"[({number})]({page})" if page else f"({number})" if number else ""


def _ref(found: re.Match[str], book: Book) -> str:
    label = found[3] or found[2]
    return f"exercise {book.places[label]} (*{book.exercises[label]}*)" if label in book.exercises else ""


def _doc(found: re.Match[str], book: Book) -> str:
    path = found[3] or found[2]
    file = next((f"{path}{end}" for end in (".md", ".ipynb") if (book.folder / f"{path}{end}").exists()), "")
    return f"[{found[2]}]({file})" if file and found[3] else _page(file, book) if file else ""


def _cite(found: re.Match[str], book: Book) -> str:
    keys = [key.strip() for key in found[2].split(",")]
    if not all(key in book.authors for key in keys):
        return ""
    if found[1] == "cite:t":
        return "; ".join("{} [{}]".format(*book.authors[key]) for key in keys)
    return "[" + "; ".join("{}, {}".format(*book.authors[key]) for key in keys) + "]"


_ROLES: dict[str, Callable[[re.Match[str], Book], str]] = {
    "numref": _numref,
    "eq": _eq,
    "ref": _ref,
    "doc": _doc,
    "cite": _cite,
    "cite:t": _cite,
    "cite:p": _cite,
}


def _page(target: str, book: Book) -> str:
    """A link with the title of the page that it leads to, "" if there is none."""
    path = book.folder / target
    if not path.is_file():
        return ""
    notebook = path.suffix == ".ipynb"
    text = read_notebook(path).cells[0].source if notebook else path.read_text(encoding="utf-8")
    title = _TITLE.search(text)
    return f"[{title[1].strip()}]({target})" if title else ""
