"""Writing a pruned model to a folder that is either complete or not there."""

import copy
import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.errors import PruneError
from minprune.files import to_json, write_text
from minprune.models.extras import add_tensors, copy_files, not_loaded
from minprune.models.tokenizer import write_tokenizer
from minprune.output.lock import absolute, lock
from minprune.output.model_card import model_card
from minprune.output.record import VERSION, RunRecord, as_record
from minprune.output.target import PAGE, RECORD, WORK, WRITTEN, check_free, check_left, entries

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KIND = "kind"  # a file in it: which command began the run; so another run may go on in the folder, or remove it
_EXCHANGE, _HERE = 2, -100  # renameat2's RENAME_EXCHANGE and AT_FDCWD


def default_name(model: str, *made: str) -> str:
    """A folder name, such as MODEL-METHOD-PATTERN, in characters that every file system takes."""
    parts = (Path(model).resolve().name if Path(model).is_dir() else model.split("/")[-1], *made)
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part.replace("%", "pct")).strip("-") for part in parts)


@contextmanager
def output_folder(
    path: str | Path,
    overwrite: bool = False,
    kind: str = "write",
    resume: bool = False,
    kept: Callable[[], str] = str,
) -> Iterator[Path]:
    """Yield the folder `PATH.partial`, which is renamed to `path` if the block ends well; see `lock`.

    If the block fails or is interrupted, the folder is removed if this run made it, unless `kept()` says, for the
    exception, what is worth going on with. In the folder is another, `WORK`, for what is not part of the output.

    kind: of run, such as "prune". resume: go on in what an earlier run of the same kind left at `PATH.partial`.
    overwrite: replace that, or a folder that minprune finished earlier. One in which there is anything that no run
    wrote is never replaced. Raises `PruneError` before the block if `path` cannot become the output: enter this
    before any long work.
    """
    path = absolute(path)
    with lock(path):
        partial, new = _claim(path, kind, overwrite, resume)
        try:
            yield partial
        except BaseException as error:  # Ctrl-C included
            said = kept()
            if not said:
                if new:
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(f"interrupted; {said}") from None
            if isinstance(error, PruneError):
                raise PruneError(f"{error}; {said}") from error
            error.add_note(said)
            raise
        _finish(partial, path)


def _claim(path: Path, kind: str, overwrite: bool, resume: bool) -> tuple[Path, bool]:
    """(`PATH.partial`, a folder of this kind of run from now on; whether it was made anew)."""
    partial = path.with_name(path.name + ".partial")
    check_free(path, overwrite)
    try:
        if os.path.lexists(partial):
            found = _kind_of(partial)
            if resume and found == kind:
                return partial, False
            if resume and found:
                raise PruneError(
                    f"{partial} was left by another command, minprune {found}: overwrite it or choose another output"
                )
            if found and not overwrite:
                raise PruneError(
                    f"{partial} is in the way: a run was stopped; resume or overwrite it, or choose another output"
                )
            if found is None and not _is_empty(partial):
                raise PruneError(
                    f"{partial} is in the way: no such run left it; move it elsewhere, or choose another output"
                )
            if found:
                check_left(partial)
            shutil.rmtree(partial)
        (partial / WORK).mkdir(parents=True)
        write_text(partial / WORK / _KIND, kind)
    except OSError as error:
        raise PruneError(f"cannot write to {path.parent} ({error.strerror}): choose another output") from None
    return partial, True


def _kind_of(partial: Path) -> str | None:
    """Which kind of run left a .partial, "" if it was killed too early to say so; None if it is no run's."""
    work = partial / WORK
    if partial.is_symlink() or work.is_symlink() or not work.is_dir():
        return None
    kind = work / _KIND
    if kind.is_symlink() or not kind.is_file():
        inside = {path.name for path in (*partial.iterdir(), *work.iterdir())}
        return "" if inside <= {WORK, f"{_KIND}.tmp"} else None
    return kind.read_text(encoding="utf-8", errors="replace")[:20]


def _is_empty(folder: Path) -> bool:
    return not folder.is_symlink() and folder.is_dir() and not any(folder.iterdir())


def _finish(partial: Path, path: Path) -> None:
    """Rename a complete .partial.

    Before that only the hidden states go, which are large and not needed where all blocks are finished. With the rest
    of `WORK` a run that is killed here goes on without doing anything again.
    """
    for hidden in (partial / WORK).glob("hidden-*"):
        hidden.unlink()
    try:
        move(partial, path)
    except OSError as error:
        raise PruneError(
            f"cannot rename {partial} to {path} ({error.strerror}): it is complete, so move it by hand"
        ) from error
    shutil.rmtree(path / WORK, ignore_errors=True)


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


def rehearse(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer,
    record: RunRecord,
    page: Callable[[Path, RunRecord], None] | None = None,
    source: Path | None = None,
) -> int:
    """Write all but the weights, and remove it again: what cannot be written is found out before the work, not after.

    folder: of `output_folder`. record: as minprune.json will be, with any numbers. page: writes the page of such a
    record. source: as for `write_model`. Returns how many bytes there were. Raises `PruneError` with the reason.
    """
    scratch = folder / WORK / "rehearsal"
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed in here
    try:
        with write_errors(folder):
            scratch.mkdir(exist_ok=True)
            _write_config(scratch, model)
            write_tokenizer(scratch, tokenizer)
            if source:
                copy_files(source, scratch)
            if page:
                page(scratch / PAGE, record)
                write_text(scratch / "README.md", model_card(record))
            write_record(scratch, record)
            write_text(folder / WORK / WRITTEN, "\n".join(entries(scratch)))
        return sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
    except (PruneError, MemoryError):
        raise
    except Exception as error:  # of many kinds, for each of the libraries that write
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise PruneError(f"the output could not be written in the end ({said}): correct the model's files") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_config(folder: Path, model: "PreTrainedModel") -> None:
    config = copy.deepcopy(model.config)
    config.dtype, config.architectures = model.dtype, [type(model).__name__]
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def write_model(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer,
    record: RunRecord | Mapping[str, Any],
    weight_map: dict[str, str] | None = None,
    source: Path | None = None,
) -> None:
    """Write what `AutoModelForCausalLM.from_pretrained(folder)` needs, the tokenizer, a model card, and minprune.json.

    record: what minprune.json says; it is written last. weight_map: the file of each tensor by name, if the weights are
    in the folder already. source: the folder of the model that this one was made from; what it holds beside a model
    (tensors that the library does not load, processors, a licence) is copied. Raises `PruneError` if the disk is full
    or anything else keeps the files from being written.
    """
    with write_errors(folder):
        if weight_map:
            _write_config(folder, model)
            state = model.state_dict()
            size = {"total_size": sum(_size(state[name]) for name in weight_map)}
            index = {"metadata": size, "weight_map": weight_map}
            write_text(folder / "model.safetensors.index.json", to_json(index, 2))
        else:
            model.save_pretrained(folder)
        write_tokenizer(folder, tokenizer)
        if source:
            add_tensors(folder, not_loaded(model, source))
            copy_files(source, folder)
        write_text(folder / "README.md", model_card(record))
        write_record(folder, as_record(record))


def write_record(folder: Path, record: RunRecord) -> None:
    """Write minprune.json, which lists what else is in the folder: all that minprune may replace some day."""
    files = [name for name in entries(folder) if name.split("/")[0] != WORK]
    complete = record.model_copy(update={"version": VERSION, "files": files})
    write_text(folder / RECORD, to_json(complete.as_dict(), 2))


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


def _size(tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _plain(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).removeprefix("Error while serializing: ")


def move(partial: Path, path: Path) -> None:
    """Rename partial to path; what was there is removed only after its successor is in place.

    Where the system can exchange two names in one step, there is no moment without an output at `path`.
    """
    if not path.exists():
        os.rename(partial, path)
        return
    backup = Path(tempfile.mkdtemp(dir=path.parent, prefix=path.name + ".replaced."))
    old = backup / path.name
    if _exchange(partial, path):
        os.rename(partial, old)
    else:
        try:
            os.rename(path, old)
            os.rename(partial, path)
        except BaseException:
            if old.exists():
                os.rename(old, path)
            backup.rmdir()
            raise
    shutil.rmtree(backup, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Whether the two have changed places, in one step."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None  # glibc has it
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
