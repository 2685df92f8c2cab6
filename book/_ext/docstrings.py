"""Docstrings as pages: their plain text becomes reStructuredText, and names of modules become links to the source.

The docstrings are written to be read in an editor: `names` between single backticks, formulas with * and |, formulas of
a module set off by indentation. Here they get the marks that Sphinx needs. A module that is named in a page, such as
`minprune/methods/wanda.py`, links to its source, if the page of all docstrings (book/api.md) has an entry from it.
"""

import re

from docutils import nodes

MODULE = re.compile(r"[\w/]+\.py")
_LITERAL = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def mark_up(lines: list[str], header: bool) -> list[str]:
    """The lines of a docstring as reStructuredText. header: it is a module's, whose indented blocks are formulas."""
    found: list[str] = []
    example = formula = False
    for line in lines:
        before = found[-1] if found else ""
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>> "))
        starts = header and line.startswith("    ") and not before.strip()
        formula = starts or (formula and (not line.strip() or line.startswith("    ")))
        if starts and not (len(found) > 1 and found[-2].startswith("    ")):
            found += ["::", ""]
        found.append(line if example or formula else _escape(line))
    return found


def _escape(line: str) -> str:
    """One line of text: what stands between backticks is literal, and no other sign means anything."""
    parts = _LITERAL.split(line)  # text, literal, text, ...
    parts[0::2] = [re.sub(r"([*|\\]|_(?!\w))", r"\\\1", part) for part in parts[0::2]]
    parts[1::2] = [f"``{part}``" for part in parts[1::2]]
    return "".join(parts)


def process(app, what, name, value, options, lines: list[str]) -> None:
    """Before napoleon reads the sections."""
    lines[:] = mark_up(lines, what == "module")


def link_sources(app, doctree: nodes.document, docname: str) -> None:
    """Let each module that a page names lead to its source, where viewcode makes a page of it.

    `alps.py` behind `minprune/methods/admm.py` in one paragraph is another one of the same folder.
    """
    shown = {name for name, entry in getattr(app.env, "_viewcode_modules", {}).items() if entry}
    folders: dict[int, str] = {}  # id of a paragraph -> the folder that it named last
    for literal in list(doctree.findall(nodes.literal)):
        if not MODULE.fullmatch(path := literal.astext()):
            continue
        if path.startswith("minprune/"):
            folders[id(literal.parent)] = path.rpartition("/")[0]
        elif "/" not in path:
            path = f"{folders.get(id(literal.parent), '')}/{path}"
        module = path.removesuffix(".py").replace("/", ".")
        if module in shown:
            uri = app.builder.get_relative_uri(docname, f"_modules/{module.replace('.', '/')}")
            link = nodes.reference("", "", internal=True, refuri=uri)
            literal.replace_self(link)
            link += literal


def setup(app) -> dict:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", process, priority=400)  # napoleon has 500
    app.connect("doctree-resolved", link_sources)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
