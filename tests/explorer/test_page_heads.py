"""The head of every page: a description, no script that is not used, the theme's files without its icon bundle."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pydata_sphinx_theme
import pytest
import yaml
from docutils.core import publish_doctree

BOOK = Path(__file__).parent.parent.parent / "book"
THEME = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static"


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("pages", BOOK / "_ext" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    pages.write_head(None, "page", "page.html", context, None)
    assert context == {"script_files": kept, "css_files": ["_static/basic.css"]}


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
