"""Writing a pruned model to a folder that is either complete or not there."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.errors import PruneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECORD = "minprune.json"


def default_name(model: str, method: str, pattern: str) -> str:
    """The folder name MODEL-METHOD-PATTERN in characters that every file system takes."""
    parts = (Path(model).resolve().name if Path(model).is_dir() else model.split("/")[-1], method, pattern)
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part.replace("%", "pct")).strip("-") for part in parts)


@contextmanager
def output_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield the new, empty folder `PATH.partial`, which is renamed to `path` if the block ends well, else removed.

    overwrite: replace a folder that minprune finished earlier, or what a killed run left at `PATH.partial`. A folder
    that holds anything else is never replaced. Raises `PruneError` before the block if `path` cannot become the
    output: enter this before any long work.
    """
    path = Path(path).expanduser().resolve()
    partial = path.with_name(path.name + ".partial")
    _check_free(path, overwrite)
    try:
        if overwrite and partial.is_dir():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    except FileExistsError:
        raise PruneError(
            f"{partial} is in the way: another run is writing it, or one was killed; if so, delete it or overwrite"
        ) from None
    except OSError as error:
        raise PruneError(f"cannot write to {path.parent} ({error.strerror}): choose another output") from None
    try:
        yield partial
        _move(partial, path)
    except BaseException:  # Ctrl-C included
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_space(folder: Path, model: "PreTrainedModel") -> None:
    """Raise `PruneError` if the disk that `folder` is on has less room than the model's parameters need."""
    needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PruneError(
            f"the model needs {needed / 1e6:,.1f} MB and {folder.parent} has {free / 1e6:,.1f} MB left: free some "
            "space or choose another output"
        )


def write_model(folder: Path, model: "PreTrainedModel", tokenizer, record: dict[str, Any]) -> None:
    """Write what `AutoModelForCausalLM.from_pretrained(folder)` needs, the tokenizer, and `record` as minprune.json.

    Raises `PruneError` if the disk is full or anything else keeps the files from being written.
    """
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).removeprefix("Error while serializing: ")
        raise PruneError(f"cannot write the model to {folder.parent} ({reason}): choose another output") from None


def _check_free(path: Path, overwrite: bool) -> None:
    if path.is_dir() and any(path.iterdir()):
        if not (path / RECORD).exists():
            raise PruneError(f"{path} holds other things than a model pruned by minprune: choose another output")
        if not overwrite:
            raise PruneError(f"{path} exists already: choose another output or overwrite it with --overwrite")
    elif path.exists() and not path.is_dir():
        raise PruneError(f"{path} is a file, not a folder: choose another output")


def _move(partial: Path, path: Path) -> None:
    """Rename partial to path; what was there is removed only after its successor is in place."""
    if not path.exists():
        os.rename(partial, path)
        return
    attic = Path(tempfile.mkdtemp(dir=path.parent, prefix=path.name + "."))
    os.rename(path, attic / "old")
    try:
        os.rename(partial, path)
    except BaseException:
        os.rename(attic / "old", path)
        attic.rmdir()
        raise
    shutil.rmtree(attic, ignore_errors=True)
