"""The directive `commands`: a section for each command of `minprune`, made of what its own --help says."""

import io
import os
from contextlib import redirect_stdout, suppress
from pathlib import Path
from unittest.mock import patch

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from minprune.cli import main

WIDTH = "100"  # columns


def names() -> list[str]:
    """The commands, in the order of `minprune --help`."""
    return [module.__name__.rpartition(".")[2] for module in main.COMMANDS]


def help_of(*words: str) -> str:
    """What `minprune WORDS --help` prints."""
    out = io.StringIO()
    with patch.dict(os.environ, COLUMNS=WIDTH), redirect_stdout(out), suppress(SystemExit):
        main.main([*words, "--help"])
    return out.getvalue().strip()


class Commands(SphinxDirective):
    """All commands, the program itself first."""

    def run(self) -> list[nodes.Node]:
        for path in Path(main.__file__).parent.glob("*.py"):
            self.env.note_dependency(str(path))
        return [self._section(()), *(self._section((name,)) for name in names())]

    def _section(self, words: tuple[str, ...]) -> nodes.section:
        title = " ".join(("minprune", *words))
        section = nodes.section(ids=[title.replace(" ", "-")], names=[title])
        section += nodes.title(title, title)
        text = help_of(*words)
        section += nodes.literal_block(text, text, language="text")
        return section


def setup(app) -> dict:
    """Sphinx calls this."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
