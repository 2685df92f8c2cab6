"""In the student edition every reference says what the book says, and leads to a file that is there."""

import re

import nbformat
import pytest
import yaml
from classroom import CHAPTERS, ROOT, chapter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from minprune.course.classroom.cells import regions
from minprune.course.classroom.references import read_book, resolve
from minprune.course.classroom.student import main, student_edition

NOTEBOOKS = ROOT / "notebooks"
BIBLIOGRAPHY = r"""
@article{one, author = {Rehůřek, Radim}, title = {A}, year = {2010}}
@article{two, author = {Frantar, Elias and Alistarh, Dan}, title = {B}, year = {2023}}
@article{four, author = {van der Maaten, L. and B, C. and D, E. and {F G}, H.}, title = {C}, year = {2024}}
"""
FIRST = r"""# One

$$
a = b
$$

No number above, a $5 price and $x$.

$$
\begin{aligned} c &= d \end{aligned}
$$ (eq-c)

* in a list:
  $$
  e = f
  $$ (eq-e)
"""
SECOND = r"""# Two

See {eq}`eq-e`, {eq}`eq-g`, {eq}`eq-l`, {numref}`chapter %s <ch-first>`, {numref}`%s <ch-second>`,
{numref}`Figure %s <fig-a>`, {numref}`fig-a`, {cite}`one,four`, {cite:t}`two`, {cite:p}`two`, {ref}`ex-a`,
{doc}`../book/page`, [](../book/page.md), [](01-first.ipynb), {doc}`this <../book/page>`.

$$ g = h $$ (eq-g)

Unknown: {eq}`no`, {numref}`chapter %s <ch-no>`, {cite}`no`, {ref}`no`, {doc}`no`, [](no.md), `{eq}`.

```{exercise-start} Have a try
:label: ex-a
```
"""


@pytest.fixture
def book(tmp_path):
    """A book of two chapters, the second with a figure; its notebook beside it."""
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "references.bib").write_text(BIBLIOGRAPHY, encoding="utf-8")
    (tmp_path / "book" / "page.md").write_text("(top)=\n# A page\n\n$$ k $$ (eq-k)\n\n$$\nl\n$$ (eq-l)\n")
    figure = {"figure": {"name": "fig-a", "caption": "What {cite:t}`one` drew for {eq}`eq-c`."}}
    chapters = {
        "01-first": [new_markdown_cell(FIRST)],
        "12-second": [new_markdown_cell(SECOND), new_code_cell("plot()", metadata={"mystnb": figure})],
    }
    (tmp_path / "notebooks").mkdir()
    for name, cells in chapters.items():
        nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / f"{name}.ipynb")
    return tmp_path / "notebooks"


def resolved(folder, name):
    return resolve(nbformat.read(folder / f"{name}.ipynb", as_version=4), read_book(folder))


def test_every_kind_of_reference_says_number_title_or_author(book):
    cells = resolved(book, "12-second").cells
    page = "[A page](../book/page.md)"
    assert cells[0].source.split("\n\n")[1].replace("\n", " ") == (
        "See (1.2), (12.1), [(2)](../book/page.md), [chapter 1](01-first.ipynb), [12](12-second.ipynb), "
        "Figure 12.1, figure 12.1, "
        "[Rehůřek, 2010; van der Maaten et al., 2024], Frantar and Alistarh [2023], [Frantar and Alistarh, 2023], "
        f"exercise 12.1 (*Have a try*), {page}, {page}, [One](01-first.ipynb), [this](../book/page.md)."
    )
    assert r"$$ g = h \tag{12.1} $$" in cells[0].source
    assert [cell.source for cell in cells[1:]] == ["plot()", "**Figure 12.1.** What Rehůřek [2010] drew for (1.1)."]


def test_only_equations_with_a_label_get_a_number_and_lists_stay_lists(book):
    text = resolved(book, "01-first").cells[0].source
    assert "$$\na = b\n$$\n\nNo number above, a $5 price and $x$." in text
    assert "\\end{aligned} \\tag{1.1}\n$$\n" in text and "  e = f \\tag{1.2}\n  $$\n" in text


def test_jupyterlab_adds_no_numbers_of_its_own(book):
    _, front, text = resolved(book, "01-first").cells[0].source.split("---\n", 2)
    assert yaml.safe_load(front) == {"numbering": {"equation": False}} and text.startswith("# One\n")


def test_what_the_book_does_not_know_stays_as_it_is(book):
    unknown = re.search(r"Unknown: .*", SECOND)[0]
    assert unknown in resolved(book, "12-second").cells[0].source


@pytest.mark.parametrize("name", CHAPTERS)
def test_nothing_of_a_chapter_is_left_for_sphinx(name):
    """No role, no label, every link leads to a file, numbers count on from 1; exercises and code are what they were."""
    before = student_edition(chapter(name))
    after = resolve(student_edition(chapter(name)), read_book(NOTEBOOKS))
    nbformat.validate(after)
    text = "\n".join(cell.source for cell in after.cells if cell.cell_type == "markdown")
    assert not re.search(r"\{(?:numref|eq|cite|cite:\w|ref|doc|term)\}`|\$\$ *\([\w-]+\)|\]\(\)|\[\]\(|%s", text)
    for target in re.findall(r"\]\((?!https?:|#)([^)\s#]+)", text):
        assert (NOTEBOOKS / target).exists(), target
    number = int(name.split("/")[1][:2])
    everything = "\n".join(cell.source for cell in chapter(name).cells if cell.cell_type == "markdown")
    labelled = len(re.findall(r"\$\$ *\([\w-]+\)", everything))
    tags = [tuple(map(int, tag)) for tag in re.findall(r"\\tag\{(\d+)\.(\d+)\}", text)]
    assert {tag[0] for tag in tags} <= {number} and tags == sorted(set(tags)) and (not tags or tags[-1][1] <= labelled)
    captions = re.findall(r"^\*\*Figure (\d+)\.(\d+)\.\*\*", text, re.M)
    assert len(captions) == sum("caption" in cell.metadata.get("mystnb", {}).get("figure", {}) for cell in before.cells)
    same = {cell.id: cell for cell in after.cells}
    assert all(same[cell.id] == cell for cell in before.cells if cell.cell_type == "code")
    assert [
        r for cell, r in zip(after.cells, regions(after), strict=True) if not cell.id.endswith("-caption")
    ] == regions(before)
    for word in ("{exercise-start}", "{exercise-end}", "dropdown", "{admonition}"):
        assert text.count(word) == "\n".join(cell.source for cell in before.cells).count(word)


def test_the_command_writes_it_so_and_says_what_it_keeps(book, tmp_path, capsys):
    files = [str(path) for path in sorted(book.glob("*.ipynb"))]
    out = tmp_path / "student"
    main([str(out), *files])
    assert "(12.1)" in (out / "12-second.ipynb").read_text()
    (out / "01-first.ipynb").write_text("my answers")
    (out / "12-second.ipynb").unlink()
    capsys.readouterr()
    main([str(out), *files])
    assert (out / "01-first.ipynb").read_text() == "my answers" and (out / "12-second.ipynb").exists()
    assert capsys.readouterr().out.splitlines()[0] == (
        f"{out}: 01-first.ipynb kept, they may hold answers; move one away to have it made anew"
    )
