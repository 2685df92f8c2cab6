"""The directive `{explorer} NAME`: an interactive page part out of the JavaScript modules in book/explorer/.

The picture and the table of the first setting are drawn while the book is built, by the same modules, so that they are
there in print and without a script. The modules go into the page as one script: a browser does not load modules that
are beside a page which was opened as a file, and this book is to be read that way, too.
"""

import json
import re
from pathlib import Path

from docutils import nodes
from explorer_data import DATA
from quickjs import Context
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

MODULES = Path(__file__).parent.parent / "explorer"
_IMPORT = re.compile(r"^import \{[^}]*\} from \"\./([\w-]+\.js)\";\n", re.MULTILINE)


def bundle(*names: str) -> str:
    """The modules and all that they import, each once and after what it needs, as the text of one script."""
    parts: dict[str, str] = {}

    def add(name: str) -> None:
        if name in parts:
            return
        text = (MODULES / name).read_text(encoding="utf-8")
        parts[name] = ""  # now on the way: a circle of imports ends here
        for needed in _IMPORT.findall(text):
            add(needed)
        del parts[name]  # to the end, behind what it needs
        parts[name] = re.sub(r"^export ", "", _IMPORT.sub("", text), flags=re.MULTILINE)

    for name in names:
        add(name)
    return "\n".join(parts.values())


def app_name(name: str) -> str:
    """mask-lab -> maskLab, the constant that the module of a page part exports."""
    return re.sub(r"-(\w)", lambda match: match[1].upper(), name)


def first_drawing(name: str, data: object) -> dict[str, str]:
    """picture, table and sentence of the first setting, drawn by the modules themselves."""
    engine, app = Context(), app_name(name)
    engine.eval(bundle(f"{name}.js"))
    state = f"{app}.prepare({app}.start, {json.dumps(data)})"
    return json.loads(engine.eval(f"JSON.stringify({app}.draw({state}, {json.dumps(data)}))"))


def page_part(name: str) -> str:
    """The HTML of one explorer: the first drawing, its data, and the script that brings it to life."""
    data = DATA[name]() if name in DATA else None
    drawn = first_drawing(name, data)
    script = f'{bundle("page.js", f"{name}.js")}\nstart({app_name(name)}, document.getElementById("explorer-{name}"));'
    stored = json.dumps(data).replace("<", "\\u003c")  # no data can end the element
    if "</script" in script:
        raise ValueError(f"{name}.js holds </script, which would end the script in its page: write it in two parts")
    return f"""
<div class="explorer" id="explorer-{name}">
<div class="explorer-figure">
<p class="explorer-sentence" role="status">{drawn["sentence"]}</p>
<div class="explorer-picture" role="group" aria-label="Picture. With a keyboard: the arrow keys read its values.">
{drawn["picture"]}</div>
<p class="explorer-readout" aria-live="polite">Point at the picture, or press an arrow key in it: it reads values.</p>
</div>
<div class="explorer-controls"></div>
<div class="explorer-table">{drawn["table"]}</div>
<noscript><p>The picture and the table show the first setting: without JavaScript it cannot be changed.</p></noscript>
<script type="application/json" class="explorer-data">{stored}</script>
<script type="module">
{script}
</script>
</div>
"""


class Explorer(SphinxDirective):
    """`{explorer} NAME`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        for path in MODULES.glob("*.js"):
            self.env.note_dependency(str(path))
        return [nodes.raw("", page_part(self.arguments[0]), format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("explorer", Explorer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
