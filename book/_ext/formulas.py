"""A formula in a sentence and the signs beside it stay on one line: no comma begins a line, no bracket ends one.

A browser may break a line on either side of a formula, whatever stands there (CSS Text 3, 5.1).
"""

import re

from docutils import nodes

_BEFORE, _BEHIND = re.compile(r"[(\[“‘]+$"), re.compile(r"^[,.;:!?)\]”’]+")


def keep_together(app, doctree: nodes.document) -> None:
    """Put each formula, the brackets that open before it and the signs that follow it into one <span>."""
    for formula in list(doctree.findall(nodes.math)):
        parent, place = formula.parent, formula.parent.index(formula)
        around = [_cut(parent, place - 1, _BEFORE), _cut(parent, place + 1, _BEHIND)]
        if any(around):
            before, behind = ([nodes.Text(text)] if text else [] for text in around)
            parent[parent.index(formula)] = group = nodes.inline("", "", classes=["together"])
            group += [*before, formula, *behind]


def _cut(parent: nodes.Element, place: int, signs: re.Pattern[str]) -> str:
    """Take the signs off the text at a place among the children of `parent`, and return them."""
    text = parent[place] if 0 <= place < len(parent) else None
    found = signs.search(text) if isinstance(text, nodes.Text) else None
    if found is None:
        return ""
    parent[place] = nodes.Text(signs.sub("", text))
    return found[0]


def setup(app) -> dict:
    """Sphinx calls this."""
    app.connect("doctree-read", keep_together)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
