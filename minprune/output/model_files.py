"""Writing a model's files, its card and its record into an output folder, and finding out before whether that works."""

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.errors import PruneError, amount
from minprune.files import to_json, write_text
from minprune.models.extras import add_tensors, copy_files, not_loaded
from minprune.models.tokenizer import write_tokenizer
from minprune.models.weight_files import INDEX, SINGLE
from minprune.output.model_card import model_card
from minprune.output.record import VERSION, RunRecord, as_record
from minprune.output.shards import SHARD
from minprune.output.target import PAGE, RECORD, WORK, WRITTEN, entries

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_space(folder: Path, model: "PreTrainedModel", there: int = 0) -> None:
    """Raise `PruneError` if the disk that `folder` is on has less room than the model's parameters need.

    there: bytes of them that are on the disk already.
    """
    needed = sum(_size(parameter) for parameter in model.parameters()) - there
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PruneError(
            f"the model needs {amount(needed)} and {folder.parent} has {amount(free)} left: free some "
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

    folder: that of `OutputFolder.open`. record: as minprune.json will be, with any numbers. page: writes the page of
    such a record. source: as for `write_model`. Returns how many bytes there were. Raises `PruneError` with the reason.
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
    limit: int = SHARD,
) -> None:
    """Write what `AutoModelForCausalLM.from_pretrained(folder)` needs, the tokenizer, a model card, and minprune.json.

    record: what minprune.json says; it is written last. weight_map: the file of each tensor by name, if the weights are
    in the folder already. source: the folder of the model that this one was made from; what it holds beside a model
    (tensors that the library does not load, processors, a licence) is copied. limit: bytes of tensors in a file. Raises
    `PruneError` if the disk is full or anything else keeps the files from being written.
    """
    with write_errors(folder):
        if weight_map:
            _write_config(folder, model)
            if set(weight_map.values()) != {SINGLE}:
                state = model.state_dict()
                size = sum(_size(state[name]) for name in weight_map)
                about = {"total_parameters": model.num_parameters(), "total_size": size}
                write_text(folder / INDEX, to_json({"metadata": about, "weight_map": weight_map}, 2))
        else:
            model.save_pretrained(folder, max_shard_size=limit)
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
