"""A label for each chapter, `ch-NAME` for notebooks/NN-NAME, so that {numref} can ask for its number.

The number comes from _toc.yml. A label written into a notebook would stand there as text wherever MyST is not known.
"""

import re

from docutils import nodes


def label_chapter(app, doctree: nodes.document) -> None:
    """Give the first section of a notebook its chapter's label."""
    name = re.fullmatch(r"notebooks/\d+-([\w-]+)", app.env.docname)
    section = doctree.next_node(nodes.section)
    if name and section:
        where = (app.env.docname, section["ids"][0])
        labels = app.env.get_domain("std")
        labels.anonlabels[f"ch-{name[1]}"] = where
        labels.labels[f"ch-{name[1]}"] = (*where, section.next_node(nodes.title).astext())


def setup(app) -> dict:
    """Sphinx calls this."""
    app.connect("doctree-read", label_chapter)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
