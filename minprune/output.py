"""Writing a pruned model to a folder that is either complete or not there."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.card import model_card
from minprune.errors import PruneError
from minprune.files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECORD, PAGE = "minprune.json", "report.html"
_MARK = ".unfinished"  # an empty folder in a .partial: a run made this, so another may remove it


def default_name(model: str, *made: str) -> str:
    """A folder name, such as MODEL-METHOD-PATTERN, in characters that every file system takes."""
    parts = (Path(model).resolve().name if Path(model).is_dir() else model.split("/")[-1], *made)
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part.replace("%", "pct")).strip("-") for part in parts)


@contextmanager
def output_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield the new folder `PATH.partial`, which is renamed to `path` if the block ends well, else removed.

    overwrite: replace a folder that minprune finished earlier, or what a killed run left at `PATH.partial`. A folder
    that holds anything else is never replaced. Raises `PruneError` before the block if `path` cannot become the
    output: enter this before any long work.
    """
    path, partial = claim(path, overwrite, _is_ours, "killed; if so, overwrite it")
    try:
        with write_errors(partial):
            (partial / _MARK).mkdir()
        yield partial
        move(partial, path)
    except BaseException:  # Ctrl-C included
        shutil.rmtree(partial, ignore_errors=True)
        raise
    (path / _MARK).rmdir()


def _is_ours(partial: Path) -> bool:
    return (partial / _MARK).is_dir() or not any(partial.iterdir())


def claim(
    path: str | Path,
    overwrite: bool,
    ours: Callable[[Path], bool],
    state: str = "stopped; if so, resume or overwrite it",
    resume: bool = False,
) -> tuple[Path, Path]:
    """(the absolute path, `PATH.partial`), the latter being a folder from now on.

    ours(partial): whether a run of this kind left that folder; only then may overwrite replace it, or resume go on in
    it. overwrite: replace a finished output at `path` too. state: how such a run ended and what to do, for the
    `PruneError` if `path` cannot become the output.
    """
    path = Path(path).expanduser().resolve()
    partial = path.with_name(path.name + ".partial")
    check_free(path, overwrite)
    try:
        known = partial.is_dir() and ours(partial)
        if known and overwrite and not resume:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=known and resume)
    except FileExistsError:
        why = f"another run is writing it, or one was {state}" if known else "no such run left it; move it elsewhere"
        raise PruneError(f"{partial} is in the way: {why}, or choose another output") from None
    except OSError as error:
        raise PruneError(f"cannot write to {path.parent} ({error.strerror}): choose another output") from None
    return path, partial


def check_space(folder: Path, model: "PreTrainedModel", there: int = 0) -> None:
    """Raise `PruneError` if the disk that `folder` is on has less room than the model's parameters need.

    there: bytes of them that are on the disk already.
    """
    needed = sum(_size(parameter) for parameter in model.parameters()) - there
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PruneError(
            f"the model needs {needed / 1e6:,.1f} MB and {folder.parent} has {free / 1e6:,.1f} MB left: free some "
            "space or choose another output"
        )


def write_model(
    folder: Path, model: "PreTrainedModel", tokenizer, record: dict[str, Any], weight_map: dict[str, str] | None = None
) -> None:
    """Write what `AutoModelForCausalLM.from_pretrained(folder)` needs, the tokenizer, a model card, and minprune.json.

    record: what minprune.json says; it is written last. weight_map: the file of each tensor by name, if the weights are
    in the folder already. Raises `PruneError` if the disk is full or anything else keeps the files from being written.
    """
    with write_errors(folder):
        if weight_map:
            model.config.dtype, model.config.architectures = model.dtype, [type(model).__name__]
            model.config.save_pretrained(folder)
            model.generation_config.save_pretrained(folder)
            state = model.state_dict()
            size = {"total_size": sum(_size(state[name]) for name in weight_map)}
            write_text(folder / "model.safetensors.index.json", _json({"metadata": size, "weight_map": weight_map}))
        else:
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_text(folder / "README.md", model_card(record))
        write_text(folder / RECORD, _json(record))


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """What keeps a file in the folder from being written becomes a `PruneError`, as for a full disk."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise PruneError(
            f"cannot write the model to {folder.parent} ({_plain(error)}): free some space or choose another output"
        ) from None


def _json(value) -> str:
    return json.dumps(value, indent=2, default=repr) + "\n"


def _size(tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _plain(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).removeprefix("Error while serializing: ")


def check_free(path: Path, overwrite: bool) -> None:
    """Raise `PruneError` unless `path` is free, or a finished output that may be overwritten."""
    if path.is_dir() and any(path.iterdir()):
        if not (path / RECORD).exists():
            raise PruneError(f"{path} holds other things than a model pruned by minprune: choose another output")
        if not overwrite:
            raise PruneError(f"{path} exists already: choose another output or overwrite it with --overwrite")
    elif path.exists() and not path.is_dir():
        raise PruneError(f"{path} is a file, not a folder: choose another output")


def move(partial: Path, path: Path) -> None:
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
