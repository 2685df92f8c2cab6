"""What every page has in its head: a description for search engines, and no script that this book does not use."""

import re
from typing import Any

from docutils import nodes

LONGEST = 160  # characters of a description that a search engine shows


def description(doctree: nodes.document) -> str:
    """The first paragraph of a page that says something, cut between words."""
    for paragraph in doctree.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section):
            text = re.sub(r"\s+", " ", paragraph.astext()).strip()
            if len(text) > 40:
                return text if len(text) <= LONGEST else text[: LONGEST - 1].rsplit(" ", 1)[0].rstrip(",;:") + "…"
    return ""


def write_head(app: Any, pagename: str, templatename: str, context: dict, doctree: nodes.document | None) -> None:
    """Add the page's description; leave out Thebe, which Jupyter Book adds twice (the second stops with an error)."""
    if doctree:
        context["description"] = description(doctree)
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context[kind] if "thebe" not in _described(file)]


def _described(file: Any) -> str:
    return f"{file} {getattr(file, 'filename', '')} {getattr(file, 'attributes', '')}".lower()


def small_mathjax(app: Any, config: Any) -> None:
    """MathJax piece by piece (`loader` in _config.yml) in place of its bundle, half of which is menus and speech."""
    config.mathjax_path = "mathjax/startup.js"


def setup(app: Any) -> dict:
    """Sphinx calls this."""
    app.connect("html-page-context", write_head, priority=900)
    app.connect("config-inited", small_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
