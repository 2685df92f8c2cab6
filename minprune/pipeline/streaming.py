"""A checkpoint whose blocks are in memory one at a time. Chapter 08.

The model is made without weights; what stands outside of its blocks is read from the safetensors files at once, a
block's tensors when it is their turn. That needs files whose tensors are the model's own, name by name. Where the
library renames or merges tensors while loading (Mixtral's experts), the model is loaded whole instead, which is said
with its reason, and used through the same functions.
"""

import ctypes
import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from minprune.errors import PruneError
from minprune.files import sha256
from minprune.load import check_device, load_model, load_tokenizer, model_folder, read_dtype
from minprune.models.extras import not_loaded, note_of
from minprune.models.layers import decoder_blocks
from minprune.models.skeleton import describe_or_refuse, fill_tables, read_config, read_generation
from minprune.models.weight_files import StoredTensor, check_sizes, stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Place = tuple[Path, str]  # a file and the name of a tensor in it


class InMemoryCheckpoint:
    """A model that is in memory as a whole. part: the index of a block, or None for all that is outside of the blocks.

    model, tokenizer: as `load_model` gives them. folder: where its files are. name: what the user calls it.
    left: stored tensors that are no part of the model; notes: what a report says of how the model was read.
    Raises `PruneError` for NaN or infinity in any tensor that is loaded: with them no number would mean anything.
    """

    streamed = False

    def __init__(self, model: "PreTrainedModel", tokenizer, folder: Path, device: torch.device, name: str):
        self.model, self.tokenizer, self.folder, self.device, self.name = model, tokenizer, folder, device, name
        self.prefix, self.blocks = decoder_blocks(model)
        self.left = not_loaded(model, folder)
        self.notes = note_of(self.left)
        for key, value in model.named_parameters():
            if not value.is_meta:
                _check_finite(key, value, name)

    def names(self, part: int | None) -> list[str]:
        """The names of the tensors of a part that have to be stored."""
        if part is not None:
            return [f"{self.prefix}.{part}.{name}" for name in self.blocks[part].state_dict()]
        return [name for name in self.model.state_dict() if not name.startswith(f"{self.prefix}.")]

    def load(self, part: int | None) -> None:
        """Have the tensors of a part at hand."""

    def free(self, part: int) -> None:
        """Give the memory of a block back."""

    def tensors(self, part: int | None) -> dict[str, Tensor]:
        """The tensors of a part by name."""
        state = self.model.state_dict()
        return {name: state[name] for name in self.names(part)}

    def skip(self, part: int, path: Path) -> None:
        """Pass over a block that an earlier run has finished."""
        self.restore(part, path)

    def restore(self, part: int, path: Path) -> None:
        """Fill a block with what a file holds: its tensors after an earlier run."""
        values = {name: value.to(self.device) for name, value in load_file(path).items()}
        self.model.load_state_dict(values, strict=False, assign=self.streamed)
        torch.clear_autocast_cache()  # a caller's autocast may remember the block as it was

    def identity(self, verify: bool = False) -> str:
        """A hash by which a later run knows the same checkpoint: of the configuration, and of each file of weights.

        Of a file its header, size and time are hashed, which takes no time; verify: all of its bytes instead, which
        shows a change that kept all three.
        """
        digest = hashlib.sha256(self.model.config.to_json_string(use_diff=False).encode())
        for path in self._weight_files():
            digest.update(f"{path.name} {sha256(path) if verify else _stamp(path)}".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _weight_files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))


class StreamedCheckpoint(InMemoryCheckpoint):
    """A model whose blocks are on the meta device until they are asked for. places: where each tensor is stored."""

    streamed = True

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer,
        folder: Path,
        device: torch.device,
        name: str,
        places: dict[str, Place],
    ):
        super().__init__(model, tokenizer, folder, device, name)
        self.places = places
        self._at_hand: set[str] = set()  # whose numbers are the file's: not all others are on the meta device
        self.load(None)
        model.tie_weights()
        for module in model.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[key] = buffer.to(device)

    def names(self, part: int | None) -> list[str]:
        start = f"{self.prefix}." if part is None else f"{self.prefix}.{part}."
        return [name for name in self.places if name.startswith(start) != (part is None)]

    def load(self, part: int | None) -> None:
        state = self.model.state_dict()
        wanted = {name: state[name] for name in self.names(part) if name not in self._at_hand}
        places = dict(zip(wanted, _in_one_piece(list(wanted.values()), self.device), strict=True))
        for name, value in self._read(wanted):
            _check_finite(name, value, self.name)
            places[name].copy_(value)
        self.model.load_state_dict(places, strict=False, assign=True)
        self._at_hand |= places.keys()

    def free(self, part: int) -> None:
        empty = {name: value.to("meta") for name, value in self.tensors(part).items()}
        self.model.load_state_dict(empty, strict=False, assign=True)
        self._at_hand -= empty.keys()
        _return_memory()

    def skip(self, part: int, path: Path) -> None:
        pass  # its file is a part of the output already

    def _read(self, names: Iterable[str]):
        """(name, tensor) of each, file by file; the tensors last as long as the step."""
        by_file: dict[Path, list[str]] = defaultdict(list)
        for name in names:
            by_file[self.places[name][0]].append(name)
        for path, here in by_file.items():
            with safe_open(path, framework="pt") as file:
                for name in here:
                    yield name, file.get_tensor(self.places[name][1])

    def _weight_files(self) -> list[Path]:
        return sorted({path for path, _ in self.places.values()})


def open_checkpoint(name: str | Path, dtype: str | torch.dtype = "auto", device: str = "cpu") -> InMemoryCheckpoint:
    """The model of that name, folder or id, `StreamedCheckpoint` if its files allow it; else its notes say why not.

    Raises `PruneError` as `load_model` does.
    """
    place, wanted = check_device(device), read_dtype(dtype)
    folder = model_folder(name)
    try:
        model, places = _without_weights(folder, wanted)
        return StreamedCheckpoint(model, load_tokenizer(folder, name), folder, place, str(name), places)
    except _NotStreamedError as error:
        note = _told_whole(folder, place, str(error))
        logging.getLogger("minprune").warning(note)
    model, tokenizer = load_model(name, dtype, device)
    whole = InMemoryCheckpoint(model, tokenizer, folder, place, str(name))
    whole.notes.insert(0, note)
    return whole


class _NotStreamedError(Exception):
    """Why a model cannot be read block by block."""


def _told_whole(folder: Path, device: torch.device, why: str) -> str:
    """The line that says what loading a model whole will take, and what there is."""
    import psutil

    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    much = f", more than the {free / 1e9:.1f} GB that are free" if size > free else ""
    return f"the model is loaded whole, not block by block, {size / 1e9:.2f} GB{much}: {why}"


def _without_weights(folder: Path, dtype: str | torch.dtype) -> tuple[Any, dict[str, Place]]:
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
        places = _match(model, stored)
    except (ImportError, AttributeError, TypeError) as error:  # what the library keeps for itself may change
        raise _NotStreamedError(f"this version of transformers hides what is needed ({error})") from error
    if generation:
        model.generation_config = generation
    return model, places


def _check_plain(model: Any) -> None:
    """Raise `_NotStreamedError` if the library changes tensors while it loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    if model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict:
        raise _NotStreamedError("transformers keeps some of its tensors in float32")
    if get_model_conversion_mapping(model, add_legacy=False):
        raise _NotStreamedError("transformers renames or merges tensors of this family when it loads them")


def _match(model: Any, stored: dict[str, StoredTensor]) -> dict[str, Place]:
    """The place of each tensor of the model, tied ones once.

    A checkpoint of the model without its head (GPT-2's on the hub) lacks the prefix that the names have here. Raises
    `_NotStreamedError` if one cannot be found in its shape, or one is left.
    """
    prefix = decoder_blocks(model)[0]
    base = f"{model.base_model_prefix}."
    places: dict[str, Place] = {}
    left = SimpleNamespace(missing_keys=set(), unexpected_keys=set(stored))
    seen: dict[int, str] = {}  # id of a tensor -> the name that it was first met under
    for name, value in model.state_dict(keep_vars=True).items():
        key = next((key for key in (name, name.removeprefix(base), base + name) if key in stored), None)
        left.unexpected_keys -= {key}
        place = (stored[key].path, key) if key else None
        if id(value) in seen:
            first = seen[id(value)]
            if first.startswith(f"{prefix}."):
                raise _NotStreamedError(f"{name} and {first} are one tensor")
            if place and not torch.equal(_tensor(place), _tensor(places[first])):
                raise _NotStreamedError(f"config.json says that {name} and {first} are one, but two are stored")
        elif key and place and stored[key].shape == tuple(value.shape):
            places[name], seen[id(value)] = place, name
        else:
            raise _NotStreamedError(f"{name} is not stored as the model has it")
    model._adjust_missing_and_unexpected_keys(left)  # takes out what the library ignores on purpose, as old buffers
    if left.unexpected_keys:
        raise _NotStreamedError(f"{min(left.unexpected_keys)} is no tensor of the model")
    return places


def _stamp(path: Path) -> str:
    """A hash of the header of a safetensors file, its size, and its time."""
    with path.open("rb") as file:
        header = file.read(8 + int.from_bytes(file.read(8), "little"))
    about = path.stat()
    return f"{hashlib.sha256(header).hexdigest()} {about.st_size} {about.st_mtime_ns}"


def _in_one_piece(like: list[Tensor], device: torch.device) -> list[Tensor]:
    """Uninitialised tensors of these shapes and dtypes in one allocation.

    So large a piece goes back to the system when it is freed. Single tensors would leave holes between what else is
    allocated meanwhile, and the holes would add up block by block.
    """
    sizes = [-(-value.nbytes // 64) * 64 for value in like]
    pieces = torch.empty(sum(sizes), dtype=torch.uint8, device=device).split(sizes)
    return [
        piece[: value.nbytes].view(value.dtype).view(value.shape) for piece, value in zip(pieces, like, strict=True)
    ]


def _return_memory() -> None:
    """Let the C library give freed memory back to the system.

    glibc keeps what is freed between two pieces that are still in use. Of a block of 100 MB about 60 MB stayed that way
    (book/results/memory.json is measured with this in place): after 57 blocks more than half of the model.
    """
    with suppress(AttributeError, OSError, TypeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _tensor(place: Place) -> Tensor:
    with safe_open(place[0], framework="pt") as file:
        return file.get_tensor(place[1])


def _first_dtype(stored: dict[str, StoredTensor]) -> torch.dtype:
    tensors = (_tensor((tensor.path, name)) for name, tensor in stored.items())
    return next(tensor.dtype for tensor in tensors if tensor.is_floating_point())


def _check_finite(key: str, value: Tensor, name: str) -> None:
    if value.numel() and value.is_floating_point() and not all(extreme.isfinite() for extreme in value.aminmax()):
        raise PruneError(f"{key} of {name} holds NaN or infinity: the checkpoint is damaged, copy it again")
