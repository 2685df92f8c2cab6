"""The explorer's modules in a JavaScript engine, without a browser."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from quickjs import Context

FOLDER = Path(__file__).parent.parent.parent / "book" / "explorer"


def building() -> ModuleType:
    """book/_ext/explorer.py, which Sphinx imports from its own folder, too."""
    folder = str(FOLDER.parent / "_ext")
    if folder not in sys.path:
        sys.path.append(folder)
    import explorer

    return explorer


def script(*names: str) -> Context:
    """An engine that has run these modules and all that they import, as one script, as in the page."""
    engine = Context()
    engine.eval(building().bundle(*names))
    return engine


def call(engine: Context, function: str, *arguments: Any) -> Any:
    """The value of function(...arguments), both as JSON."""
    listed = ", ".join(json.dumps(argument) for argument in arguments)
    return json.loads(engine.eval(f"JSON.stringify({function}({listed}))"))
