"""How a checkpoint is opened, so that its blocks are in memory one at a time. Chapter 08.

The model is made without weights; what stands outside of its blocks is read from the safetensors files at once, a
block's tensors when it is their turn. That needs files whose tensors are the model's own, name by name. Where the
library renames or merges tensors while loading (Mixtral's experts), the model is loaded whole instead, which is said
with its reason, and used through the same functions.
"""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from minprune.errors import amount
from minprune.load import check_device, load_model, load_tokenizer, model_folder, read_dtype
from minprune.models.blocks import decoder_blocks
from minprune.models.skeleton import describe_or_refuse, fill_tables, read_config, read_generation
from minprune.models.weight_files import StoredTensor, check_sizes, stored_tensors
from minprune.pipeline.sources import Checkpoint, InMemoryCheckpoint, Location, StreamedCheckpoint

_log = logging.getLogger(__name__)


def open_checkpoint(
    name: str | Path, dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu"
) -> Checkpoint:
    """The model of that name, folder or id, `StreamedCheckpoint` if its files allow it; else its notes say why not.

    Raises `PruneError` as `load_model` does.
    """
    on, wanted = check_device(device), read_dtype(dtype)
    folder = model_folder(name)
    try:
        model, locations = _without_weights(folder, wanted)
        return StreamedCheckpoint(model, load_tokenizer(folder, name), folder, on, str(name), locations)
    except _NotStreamedError as error:
        size, free = _sizes(folder, on)
        much = f", more than the {amount(free)} that are free" if size > free else ""
        note = f"the model is loaded whole, not block by block, {amount(size)}{much}: {error}"
    if size > free / 4:  # said before it fills the memory; in all cases `prune_checkpoint` says it when the work begins
        _log.warning(f"loading {amount(size)} at once, of {amount(free)} that are free")
    model, tokenizer = load_model(name, dtype, device)
    whole = InMemoryCheckpoint(model, tokenizer, folder, on, str(name))
    whole.notes.insert(0, note)
    return whole


class _NotStreamedError(Exception):
    """Why a model cannot be read block by block."""


def _sizes(folder: Path, device: torch.device) -> tuple[int, int]:
    """The bytes of the weights in a folder, and those that are free on the device."""
    import psutil

    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return size, torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _without_weights(folder: Path, dtype: str | torch.dtype) -> tuple[Any, dict[str, Location]]:
    """The model with its parameters on the meta device, and where they are stored, if they can be read one by one."""
    from minprune.formats.disk import is_exported

    if is_exported(folder):
        raise _NotStreamedError("it is an export, in sparse formats")
    stored, config, generation = stored_tensors(folder), read_config(folder), read_generation(folder)
    if dtype == "auto":
        dtype = config.dtype or _first_dtype(stored)
    model: Any = describe_or_refuse(folder, config, dtype)  # type: ignore[arg-type]
    check_sizes(folder, model, stored)
    try:
        _check_plain(model)
        fill_tables(model)
        locations = _match(model, stored)
    except (ImportError, AttributeError, TypeError) as error:  # what the library keeps for itself may change
        raise _NotStreamedError(f"this version of transformers hides what is needed ({error})") from error
    if generation:
        model.generation_config = generation
    return model, locations


def is_plain(model: Any) -> bool:
    """Whether the library loads the tensors of this family as they are stored, so that its blocks can be streamed."""
    try:
        _check_plain(model)
    except (_NotStreamedError, ImportError, AttributeError, TypeError):
        return False
    return True


def _check_plain(model: Any) -> None:
    """Raise `_NotStreamedError` if the library changes tensors while it loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    if model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict:
        raise _NotStreamedError("transformers keeps some of its tensors in float32")
    if get_model_conversion_mapping(model, add_legacy=False):
        raise _NotStreamedError("transformers renames or merges tensors of this family when it loads them")


def _match(model: Any, stored: dict[str, StoredTensor]) -> dict[str, Location]:
    """Where each tensor of the model is stored, tied ones once.

    A checkpoint of the model without its head (GPT-2's on the hub) lacks the prefix that the names have here. Raises
    `_NotStreamedError` if one cannot be found in its shape, or one is left.
    """
    prefix = decoder_blocks(model)[0]
    base = f"{model.base_model_prefix}."
    locations: dict[str, Location] = {}
    left = SimpleNamespace(missing_keys=set(), unexpected_keys=set(stored))
    seen: dict[int, str] = {}  # id of a tensor -> the name that it was first met under
    for name, value in model.state_dict(keep_vars=True).items():
        key = next((key for key in (name, name.removeprefix(base), base + name) if key in stored), None)
        left.unexpected_keys -= {key}
        location = (stored[key].path, key) if key else None
        if id(value) in seen:
            first = seen[id(value)]
            if first.startswith(f"{prefix}."):
                raise _NotStreamedError(f"{name} and {first} are one tensor")
            if location and not torch.equal(_tensor(location), _tensor(locations[first])):
                raise _NotStreamedError(f"config.json says that {name} and {first} are one, but two are stored")
        elif key and location and stored[key].shape == tuple(value.shape):
            locations[name], seen[id(value)] = location, name
        else:
            raise _NotStreamedError(f"{name} is not stored as the model has it")
    model._adjust_missing_and_unexpected_keys(left)  # takes out what the library ignores on purpose, as old buffers
    if left.unexpected_keys:
        raise _NotStreamedError(f"{min(left.unexpected_keys)} is no tensor of the model")
    return locations


def _tensor(location: Location) -> Tensor:
    with safe_open(location[0], framework="pt") as file:
        return file.get_tensor(location[1])


def _first_dtype(stored: dict[str, StoredTensor]) -> torch.dtype:
    tensors = (_tensor((tensor.path, name)) for name, tensor in stored.items())
    return next(tensor.dtype for tensor in tensors if tensor.is_floating_point())
