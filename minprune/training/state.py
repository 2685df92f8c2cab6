"""The state of a training run on disk: written as a whole or not at all, and only read by the run it belongs to."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minprune.errors import PruneError
from minprune.files import check_regular, flush
from minprune.output.typed import State, checked


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
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:  # torch.save writes one, and torch.load does not look at its checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(damaged)
        found = torch.load(path, map_location="cpu", weights_only=True)
        written, state = dict(found["recipe"]), checked(found["state"], State)
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
    if problem := next(_problems(state, recipe), None):
        raise PruneError(f"{path} is not what a run leaves ({problem}): delete it to begin anew")
    return state


def _problems(state: dict[str, Any], recipe: dict[str, Any]) -> Iterator[str]:
    """What of a state cannot be, at this step of a run with this recipe."""
    step, rows = state["step"], state["rows"]
    if not 0 < step <= recipe["steps"]:
        yield f"step {step} of {recipe['steps']}"
    if (
        [row["step"] for row in rows] != sorted({row["step"] for row in rows})
        or rows[0]["step"]
        or rows[-1]["step"] > step
    ):
        yield "its rows are of other steps"
    if len({frozenset(row["perplexity"]) for row in rows}) > 1 or len(state["losses"]) != step - rows[-1]["step"]:
        yield "its rows are not complete"


def fits(state: dict[str, Any], trained: list[Tensor], moved: list[Tensor]) -> bool:
    """Whether a state has a tensor of the shape of each trained parameter; moved: these in the optimizer's order."""
    moments = state["optimizer"].get("state")
    if not isinstance(moments, dict) or not moments or not moments.keys() <= set(range(len(moved))):
        return False
    if [value.shape for value in state["trained"]] != [parameter.shape for parameter in trained]:
        return False
    for index, found in moments.items():
        if not isinstance(found, dict) or found.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            return False
        if not all(isinstance(value, Tensor) and bool(value.isfinite().all()) for value in found.values()):
            return False
        if found["step"].numel() != 1 or not found["exp_avg"].shape == found["exp_avg_sq"].shape == moved[index].shape:
            return False
    return True
