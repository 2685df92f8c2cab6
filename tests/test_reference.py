"""The pages to look things up in: every public name and every command has an entry, and text stays what it was."""

import ast
import importlib.util
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from test_docstrings import public

ROOT = Path(__file__).parent.parent


def _extension(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / "_ext" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_an_entry_in_the_page_of_the_library():
    page = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    found = set(re.findall(r"^\.\. auto(?:function|class|exception):: minprune\.([\w.]+)", page, re.M))
    for module, members in re.findall(r"automodule:: minprune\.([\w.]+)\n   :members: (.*)", page):
        found |= {f"{module}.{member}" for member in members.split(", ")}
    names = set(public())
    again = {f"methods.{name}" for name in ("Method", "Result")}  # they are in minprune.__all__, too
    assert names - again <= found


def test_every_command_has_its_help():
    page = _extension("command_line")
    for name in page.names():
        assert re.search(rf"^ +{name}\b", page.help_of(), re.M)
        assert page.help_of(name).startswith(f"usage: minprune {name} ")
    assert len(page.names()) == len(set(page.names())) > 5


@pytest.mark.parametrize("value", public().values(), ids=public())
def test_a_docstring_is_read_on_the_page_as_in_an_editor(value):
    lines = inspect.getdoc(value).split("\n\n")[0].splitlines()
    marked = publish_doctree("\n".join(_extension("docstrings").mark_up(lines, False)), settings_overrides=_QUIET)
    assert not list(marked.findall(nodes.system_message))
    assert marked.astext() == "\n".join(lines).replace("`", "")


_QUIET = {"report_level": 5}


def test_formulas_of_a_header_keep_their_lines():
    header = ["One. |W|", "", "    a_b * c", "    second", "", "    third", "", "Two `x_`."]
    tree = publish_doctree("\n".join(_extension("docstrings").mark_up(header, True)))
    assert [block.astext() for block in tree.findall(nodes.literal_block)] == ["a_b * c\nsecond\n\nthird"]
    assert [text.astext() for text in tree.findall(nodes.paragraph)] == ["One. |W|", "Two x_."]


def test_modules_that_a_page_names_lead_to_their_source():
    tree = publish_doctree("``minprune/methods/admm.py``, ``alps.py``, ``other.py``\n\n``alps.py`` ``admm.py``")
    shown = {"minprune.methods.admm": True, "minprune.methods.alps": True, "minprune.methods.other": False}
    builder = SimpleNamespace(get_relative_uri=lambda page, to: to)
    app = SimpleNamespace(env=SimpleNamespace(_viewcode_modules=shown), builder=builder)
    _extension("docstrings").link_sources(app, tree, "page")
    links = [(link.astext(), link["refuri"]) for link in tree.findall(nodes.reference)]
    assert links == [
        ("minprune/methods/admm.py", "_modules/minprune/methods/admm"),
        ("alps.py", "_modules/minprune/methods/alps"),
    ]


def _words(page: Path) -> str:
    """The text of a page, of a notebook without its code."""
    if page.suffix == ".md":
        return page.read_text(encoding="utf-8")
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def test_who_has_read_chapter_08_finds_every_file_of_the_pipeline_that_belongs_to_it():
    text, folder = _words(ROOT / "notebooks" / "08-pipeline.ipynb"), ROOT / "minprune" / "pipeline"
    titles = {
        path.name: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).partition("\n")[0]
        for path in folder.glob("[a-z]*.py")
    }
    assert all(re.search(r"\bChapters? \d\d", title) for title in titles.values())
    named = set(re.findall(r"`(?:minprune/pipeline/)?(\w+\.py)`", text))
    assert {name for name, title in titles.items() if re.search(r"Chapters? .*\b08\b", title)} <= named
    answers = re.findall(r"^\d\. (.*)", text.split("{admonition} Where to look")[1].split("```")[0], re.M)
    assert (
        len(answers)
        == len(re.findall(r"^\d\. ", text.split("### Where it is in the package")[1].split("###")[0], re.M)) / 2
    )
    for answer in answers:
        found = re.findall(r"`(?:minprune/pipeline/)?([\w.]+)`", answer)
        files = [name for name in found if name.endswith(".py")]
        inside = "\n".join((folder / name).read_text(encoding="utf-8") for name in files)
        for name in set(found) - set(files):
            assert re.search(rf"\b(def|class) {name}\b|\b{name}:", inside), (name, files)
