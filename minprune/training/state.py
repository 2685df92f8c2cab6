"""The state of a training run on disk: written as a whole or not at all, and only read by the run it belongs to."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from minprune.errors import PruneError
from minprune.files import flush


def save_state(path: Path, recipe: dict[str, Any], state: dict[str, Any]) -> None:
    """Write recipe and state to a temporary file beside `path`, flush it to the disk, rename it."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        torch.save({"recipe": recipe, "state": state}, file)
        flush(file)
    os.replace(temporary, path)


def load_state(path: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """The state at `path`, or None if there is none. No code in the file is run.

    Raises `PruneError` if the file is damaged, or if it was written under another recipe, naming the first difference.
    """
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:  # torch.save writes one, and torch.load does not look at its checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(damaged)
        found = torch.load(path, map_location="cpu", weights_only=True)
        written, state = found["recipe"], found["state"]
    except MemoryError:
        raise
    except Exception:  # of many kinds, for each place that can be damaged
        raise PruneError(f"{path} is damaged: delete it to begin anew") from None
    for name in sorted({*recipe, *written}):
        if recipe.get(name) != written.get(name):
            raise PruneError(
                f"{path} belongs to another run, with {name} {written.get(name)} instead of {recipe.get(name)}: "
                "continue with the same settings, or delete it to begin anew"
            )
    return state
