"""Every page: its description, no script that is not used, the theme's files without its icon bundle, HTML mended."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pydata_sphinx_theme
import pytest
import yaml
from docutils import nodes
from docutils.core import publish_doctree, publish_from_doctree
from myst_nb.sphinx_ import HideCodeCellNode, visit_HideCellInput
from PIL import Image

BOOK = Path(__file__).parent.parent.parent / "book"
THEME = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static"


def extension(name):
    spec = importlib.util.spec_from_file_location(name, BOOK / "_ext" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages():
    return extension("pages")


def _doctree(text):
    return publish_doctree(text, settings_overrides={"doctitle_xform": False})


def test_the_description_is_the_first_paragraph_that_says_something(pages):
    said = "What is in a trained model's weights, and what happens if half of them become zero?"
    page = f"Title\n=====\n\nShort.\n\n* a list that is long enough to be taken for a paragraph of the text\n\n{said}\n"
    assert pages.description(_doctree(page)) == said
    assert pages.description(_doctree("Title\n=====\n")) == ""


def test_a_long_description_is_cut_between_words(pages):
    for length in range(1, 12):
        words = " ".join(["x" * length] * 100)
        cut = pages.description(_doctree(f"Title\n=====\n\n{words}\n"))
        assert 140 < len(cut) <= pages.LONGEST and cut.endswith("x…")
        assert {len(word) for word in cut[:-1].split(" ")} == {length}


def test_thebe_is_left_out_and_all_else_is_kept(pages):
    def file(filename, **attributes):
        return SimpleNamespace(filename=filename, attributes=attributes)

    kept = [file("_static/doctools.js"), file("", body="let toggleHintShow = 'x'")]
    context = {
        "script_files": [*kept, file("", body="const THEBE_JS_URL = 1"), file("_static/sphinx-thebe.js")],
        "css_files": ["_static/basic.css", "_static/sphinx-thebe.css"],
    }
    pages.write_page(None, "page", "page.html", context, None)
    assert context == {"script_files": kept, "css_files": ["_static/basic.css"], "description": ""}


def test_pages_without_a_text_of_their_own_are_described_too(pages):
    made = ["search", "genindex", "_modules/index", "_modules/minprune/load"]
    found = [pages.described(name, None) for name in made]
    assert len(set(found)) == len(made)
    assert all(40 < len(text) <= pages.LONGEST for text in found)
    assert "minprune.methods.wanda," in pages.described("_modules/minprune/methods/wanda", None)


def test_an_image_says_its_size_before_it_is_there(pages, tmp_path):
    Image.new("RGB", (640, 360)).save(tmp_path / "seen.png")
    (tmp_path / "drawn.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="90" height="30"/>')
    images = {path.name: path for path in tmp_path.iterdir()}
    body, late = '<img alt="a &lt; b" src="../_images/{}"/>', 'loading="lazy"'
    assert pages.mended(body.format("seen.png"), images).startswith(
        f'<img {late} width="640" height="360" alt="a &lt; b" '
    )
    assert pages.mended(body.format("drawn.svg"), images).startswith(f'<img {late} width="90" height="30" ')
    for other in (body.format("unknown.png"), '<img src="x.png"/>', '<img width="3" src="_images/seen.png"/>'):
        assert pages.mended(other, images) == other


def test_a_folded_cell_is_called_what_its_summary_says(pages):
    writer = SimpleNamespace(body=[])
    visit_HideCellInput(writer, HideCodeCellNode(prompt_show="Show the plot", prompt_hide="Hide the plot"))
    page = "".join(writer.body) + "</details>"
    assert "aria-label" in page, "MyST-NB has mended it: the replacement in pages.py can go"
    assert "aria-label" not in pages.mended(page, {}) and "Show the plot" in pages.mended(page, {})


def test_no_line_ends_between_a_number_and_what_belongs_to_it_and_code_stays_code(pages):
    kept = '<pre>7 % 3</pre><code class="x">7 % 3</code><a title="5 % more"></a><script>5 % 3</script>% of 5 MBA'
    kept += "<span>\\(2 x\\)</span><div>\\[3 x\\]</div>, 5 so"
    text = "<p>at 50 % or 2.5\n% more, <b>at 9 MB</b>, 0.7 ± 0.1, 96 s, 3\nms, 3.82 x</p>"
    glued = "<p>at 50_% or 2.5_% more, <b>at 9_MB</b>, 0.7_±_0.1, 96_s, 3_ms, 3.82_x</p>"
    assert pages.mended(text + kept, {}) == glued.replace("_", "\N{NO-BREAK SPACE}") + kept


def test_the_link_from_a_solution_to_its_exercise_begins_with_a_word(pages):
    title = (
        '<p class="admonition-title">Solution to<a class="reference internal" href="#a"> Exercise 4.1 (Name)</a></p>'
    )
    mended = ElementTree.fromstring(pages.mended(title, {}))
    assert (mended.text, mended[0].text) == ("Solution to ", "Exercise 4.1 (Name)")


def test_long_words_of_code_are_marked_for_narrow_pages(pages):
    short, long = '<span class="pre">--allocation</span>', f'<span class="pre">{"minprune." * 3}load</span>'
    assert pages.mended(short, {}) == short
    assert pages.mended(long, {}) == long.replace('"pre"', '"pre long"')


def test_references_are_items_of_their_list(pages):
    page = '<div role="list"><div class="citation" id="id1" role="doc-biblioentry"></div></div>'
    assert {element.get("role") for element in ElementTree.fromstring(pages.mended(page, {}))} == {"listitem"}


def test_a_preprint_in_the_references_is_a_link(pages):
    for number in ("2502.12444", "0704.0001"):
        page = ElementTree.fromstring(pages.mended(f"<p>Said. <em>arXiv:{number}</em>, 2025.</p>", {}))
        assert page.find("em/a").get("href") == f"https://arxiv.org/abs/{number}"
        assert "".join(page.itertext()) == f"Said. arXiv:{number}, 2025."
    other = "<p><em>arXiv: a history</em></p>"
    assert pages.mended(other, {}) == other
    sources = (BOOK / "references.bib").read_text(encoding="utf-8")  # what stands in `journal` comes in <em>
    assert sources.count("arXiv:") == len(re.findall(r"^  journal = \{arXiv:\d{4}\.\d{4,5}\},$", sources, re.M)) > 20


@pytest.mark.parametrize("heads", [["", "value"], ["", ""], ["name", "value"]])
def test_every_cell_of_a_table_has_a_title_and_no_title_is_empty(pages, heads):
    doctree = _doctree(
        f".. list-table::\n   :header-rows: 1\n\n   * - {heads[0]}\n     - {heads[1]}\n   * - row\n     - 1\n"
    )
    pages.tidy(None, doctree)
    page = pages.mended(publish_from_doctree(doctree, writer_name="html5").decode(), {})
    table = ElementTree.fromstring(re.search(r"<table.*?</table>", page, re.S)[0])
    rows = [[("".join(cell.itertext()).strip(), cell.tag) for cell in row] for row in table.iter("tr")]
    assert rows[0] == [(head, "th" if head else "td") for head in heads]
    assert rows[1] == [("row", "td" if any(heads[:1]) else "th"), ("1", "td")]


def test_lists_within_the_list_of_sources_are_parts_of_items(pages):
    flat = "<ul><li>a</li>\n<ul><li>a.b</li>\n<ul><li>a.b.c</li>\n</ul></ul><li>d</li>\n</ul>\n"
    root = ElementTree.fromstring(pages.nested(flat))
    assert {child.tag for found in root.iter("ul") for child in found} == {"li"}
    assert "".join(root.itertext()).split() == ["a", "a.b", "a.b.c", "d"]
    assert pages.nested("<ul><li>a</li>\n</ul>\n") == "<ul><li>a</li>\n</ul>\n"


def test_a_source_leads_back_to_the_docstring_under_the_name_it_has_there(pages):
    names = {"minprune.kernels.linear.SparseLinear", "minprune.sparsify", "minprune.a.run", "minprune.b.run"}
    link = '<a class="viewcode-back" href="../book/api.html#{}">[docs]</a>'.format
    for name, there in [
        ("minprune.SparseLinear", "minprune.kernels.linear.SparseLinear"),
        ("minprune.sparsify", "minprune.sparsify"),
        ("minprune.c.run", "minprune.c.run"),  # which of two is not known
    ]:
        assert pages.led_back(link(name), names) == link(there)
    other = '<a href="#minprune.SparseLinear">x</a>'
    assert pages.led_back(other, names) == other


def test_the_mark_of_a_tested_cell_is_not_shown_and_code_is_else_as_it_was(pages):
    code = "x = 1\n# NBVAL_CHECK_OUTPUT is a mark\nprint(x)"
    doctree = nodes.document(None, None)
    doctree += [nodes.literal_block(text, text) for text in (f"# NBVAL_CHECK_OUTPUT\n{code}", code)]
    pages.tidy(None, doctree)
    assert [block.astext() for block in doctree] == [code, code]
    assert [block.rawsource for block in doctree] == [code, code]  # or Sphinx would not colour it


def test_the_empty_line_by_which_a_doctest_ends_is_not_shown(pages):
    for code in (">>> 1 + 1\n2\n", ">>> for i in x:\n...     i\n\n1"):
        doctree = nodes.document(None, None)
        doctree += [nodes.literal_block(code, code)]
        pages.tidy(None, doctree)
        assert doctree[0].astext() == doctree[0].rawsource == code.rstrip("\n")


def test_printed_sentences_are_broken_and_only_columns_that_are_too_wide_are_small(pages):
    table = "method   error\nwanda    0.31\n"
    for text, kind in [("a sentence\n" * 3, ["told"]), (table, []), (table + " " * 9 + "x" * pages.WIDEST, ["dense"])]:
        doctree = nodes.document(None, None)
        doctree += [nodes.literal_block(text, text, classes=["output", "stream"]), nodes.literal_block(text, text)]
        pages.tidy(None, doctree)
        assert [block["classes"] for block in doctree] == [["output", "stream", *kind], []]


def test_no_two_exercises_share_an_id(pages):
    doctree = nodes.document(None, None)
    names = ["exercise-content", "solution-content", "exercise-content", "a-heading"]
    doctree += [nodes.section("", ids=[name]) for name in names]
    pages.tell_apart(None, doctree, "page")
    ids = [section["ids"] for section in doctree]
    assert len({found[0] for found in ids}) == len(names) and ids[-1] == ["a-heading"]


def test_the_theme_still_has_the_files_that_our_copy_of_its_list_names():
    """Of the theme's own list only the bundle of icons is missing: an update of the theme fails here."""

    def named(text):
        return set(re.findall(r"pathto\('(_static/[^']+)'", text))

    theirs = named((THEME / "webpack-macros.html").read_text(encoding="utf-8"))
    ours = named((BOOK / "_templates" / "static" / "webpack-macros.html").read_text(encoding="utf-8"))
    assert theirs - ours == {"_static/scripts/fontawesome.js"} and ours < theirs


def test_the_icon_font_of_the_theme_has_the_icons_without_the_bundle():
    css = (THEME / "styles" / "pydata-sphinx-theme.css").read_text(encoding="utf-8")
    assert "fa-solid-900.woff2" in css
    for icon in ("bars", "list", "sun", "moon", "circle-half-stroke", "magnifying-glass", "download", "angle-left"):
        assert re.search(rf"\.fa-{icon}\b[^{{}}]*{{content:", css), icon


def test_only_the_pieces_of_mathjax_that_are_used_are_loaded(pages):
    config = SimpleNamespace(mathjax_path="mathjax/tex-chtml.js")
    pages.small_mathjax(None, config)
    folder = Path(importlib.util.find_spec("sphinx-mathjax-offline").submodule_search_locations[0]) / "static"
    settings = yaml.safe_load((BOOK.parent / "_config.yml").read_text())["sphinx"]["config"]["mathjax3_config"]
    loaded = [config.mathjax_path, *(f"mathjax/{piece}.js" for piece in [*settings["loader"]["load"], "core"])]
    assert sum((folder / name).stat().st_size for name in loaded) < 700_000


def test_the_page_for_lost_readers_needs_no_other_file():
    page = (BOOK / "_extra" / "404.html").read_text(encoding="utf-8")
    assert not re.search(r"<link|src=|url\(", page)
    assert '<html lang="en">' in page and "<main>" in page and 'name="viewport"' in page


def test_every_picture_of_a_prose_page_says_what_is_seen():
    for path in BOOK.rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        for figure in re.findall(r"```\{(?:figure|image)\}.*?```", text, re.S):
            alt = re.search(r":alt: (.+)", figure)
            assert alt and len(alt[1]) > 60, f"{path.name}: {figure[:60]}"
        assert "![](" not in text, path.name


def test_the_logo_is_in_a_landmark_and_is_the_themes():
    ours = (BOOK / "_templates" / "navbar-logo.html").read_text(encoding="utf-8")
    included = re.search(r'<nav aria-label=.*{% include "(.+)" %}</nav>', ours)[1]
    assert (THEME.parent / included).is_file()


def test_every_file_of_styles_and_scripts_that_is_asked_for_is_there():
    config = yaml.safe_load((BOOK.parent / "_config.yml").read_text())["sphinx"]["config"]
    for name in [*config["html_css_files"], *config["html_js_files"]]:
        assert (BOOK / "_static" / name).is_file(), name


@pytest.mark.parametrize(
    ("before", "behind", "kept"),
    [("so ", ", and", "x,"), ("(", ").", "(x)."), ("(in ", ") or", "x)"), ("[(", " is", "[(x"), ("a ", " b", None)],
)
def test_no_line_begins_with_the_comma_behind_a_formula_or_ends_with_a_bracket(before, behind, kept):
    formulas = extension("formulas")
    paragraph = nodes.paragraph("", "", nodes.Text(before), nodes.math("x", "x"), nodes.Text(behind))
    doctree = nodes.document(None, None)
    doctree += paragraph
    formulas.keep_together(None, doctree)
    assert paragraph.astext() == f"{before}x{behind}"
    assert [group.astext() for group in paragraph.findall(nodes.inline)] == ([kept] if kept else [])


def test_formulas_alone_at_the_ends_and_side_by_side_stay_as_they_are():
    formulas = extension("formulas")
    doctree = nodes.document(None, None)
    doctree += nodes.paragraph(
        "", "", nodes.math("x", "x"), nodes.math("y", "y"), nodes.Text("; "), nodes.math("z", "z")
    )
    formulas.keep_together(None, doctree)
    assert doctree.astext() == "xy; z" and [group.astext() for group in doctree.findall(nodes.inline)] == ["y;"]
