"""A checkpoint whose blocks are in memory one at a time. Chapter 08.

The model is made without weights; what stands outside of its blocks is read from the safetensors files at once, a
block's tensors when it is their turn. That needs files whose tensors are the model's own, name by name. Where the
library renames or merges tensors while loading (Mixtral's experts), the model is loaded whole instead and used
through the same functions.
"""

import ctypes
import hashlib
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
from minprune.loading import is_causal, stored_tensors
from minprune.model import check_device, decoder_blocks, load_model, load_tokenizer, model_source, read_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]  # what to fetch from the hub

Place = tuple[Path, str]  # a file and the name of a tensor in it


class Whole:
    """A model that is in memory as a whole. part: the index of a block, or None for all that is outside of the blocks.

    model, tokenizer: as `load_model` gives them. folder: where its files are, None if they are not at hand.
    """

    streamed = False

    def __init__(self, model: "PreTrainedModel", tokenizer, folder: Path | None, device: torch.device):
        self.model, self.tokenizer, self.folder, self.device = model, tokenizer, folder, device
        self.prefix, self.blocks = decoder_blocks(model)

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

    def check_finite(self, name: str) -> None:
        """Raise `PruneError` for NaN or infinity in any tensor: with them no number would mean anything."""
        for key, value in self.model.named_parameters():
            _check_finite(key, value, name)

    def sha256(self) -> str:
        """A hash over the configuration and all weights."""
        digest = hashlib.sha256(self.model.config.to_json_string(use_diff=False).encode())
        for path in self._weight_files():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _weight_files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors")) if self.folder else []


class Streamed(Whole):
    """A model whose blocks are on the meta device until they are asked for. places: where each tensor is stored."""

    streamed = True

    def __init__(
        self, model: "PreTrainedModel", tokenizer, folder: Path, device: torch.device, places: dict[str, Place]
    ):
        super().__init__(model, tokenizer, folder, device)
        self.places = places
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
        wanted = {name: state[name] for name in self.names(part) if state[name].is_meta}
        places = dict(zip(wanted, _in_one_piece(list(wanted.values()), self.device), strict=True))
        for name, value in self._read(wanted):
            places[name].copy_(value)
        self.model.load_state_dict(places, strict=False, assign=True)

    def free(self, part: int) -> None:
        empty = {name: value.to("meta") for name, value in self.tensors(part).items()}
        self.model.load_state_dict(empty, strict=False, assign=True)
        _return_memory()

    def skip(self, part: int, path: Path) -> None:
        pass  # its file is a part of the output already

    def check_finite(self, name: str) -> None:
        for key, value in self._read(self.places):
            _check_finite(key, value, name)

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


def open_checkpoint(name: str | Path, dtype: str | torch.dtype = "auto", device: str = "cpu") -> Whole:
    """The model of that name, folder or id, `Streamed` if its files allow it.

    Raises `PruneError` as `load_model` does.
    """
    place, wanted = check_device(device), read_dtype(dtype)
    source = model_source(name)
    folder = Path(source) if Path(source).is_dir() else _from_hub(str(source))
    if folder and (found := _without_weights(folder, wanted)):
        return Streamed(found[0], load_tokenizer(folder, name), folder, place, found[1])
    model, tokenizer = load_model(name, dtype, device)
    return Whole(model, tokenizer, folder, place)


def _without_weights(folder: Path, dtype: str | torch.dtype) -> tuple[Any, dict[str, Place]] | None:
    """The model with its parameters on the meta device, and where they are stored, if they can be read one by one."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.conversion_mapping import get_model_conversion_mapping

    try:
        stored = stored_tensors(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if dtype == "auto":
            dtype = config.dtype or _first_dtype(stored)
        with init_empty_weights(include_buffers=False):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        model.tie_weights()  # once more: each parameter was replaced when it was moved to the meta device
        for module in model.modules():
            if module._non_persistent_buffers_set:  # computed anew, as when weights are loaded: not in a narrow dtype
                model._init_weights(module)
        if (folder / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        places = _match(model, stored)
    except Exception:  # of many kinds; loading it whole says what is wrong
        return None
    if (
        places is None
        or not is_causal(model)
        or hasattr(config, "quantization_config")
        or model._keep_in_fp32_modules
        or model._keep_in_fp32_modules_strict
        or get_model_conversion_mapping(model, add_legacy=False)
    ):
        return None
    return model.eval(), places


def _match(model: Any, stored: dict[str, Place]) -> dict[str, Place] | None:
    """The place of each tensor of the model, tied ones once; None if one cannot be found in its shape, or one is left.

    A checkpoint of the model without its head (GPT-2's on the hub) lacks the prefix that the names have here.
    """
    prefix = decoder_blocks(model)[0]
    base = f"{model.base_model_prefix}."
    places: dict[str, Place] = {}
    left = SimpleNamespace(missing_keys=set(), unexpected_keys={key for _, key in stored.values()})
    seen: dict[int, str] = {}  # id of a tensor -> the name that it was first met under
    for name, value in model.state_dict(keep_vars=True).items():
        place = stored.get(name) or stored.get(name.removeprefix(base)) or stored.get(base + name)
        left.unexpected_keys -= {place and place[1]}
        if id(value) in seen:
            first = seen[id(value)]
            if first.startswith(f"{prefix}.") or (place and not torch.equal(_tensor(place), _tensor(places[first]))):
                return None
        elif place and _shape(place) == tuple(value.shape):
            places[name], seen[id(value)] = place, name
        else:
            return None
    model._adjust_missing_and_unexpected_keys(left)  # takes out what the library ignores on purpose, as old buffers
    return None if left.unexpected_keys else places


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


def _shape(place: Place) -> tuple[int, ...]:
    with safe_open(place[0], framework="pt") as file:
        return tuple(file.get_slice(place[1]).get_shape())


def _first_dtype(stored: dict[str, Place]) -> torch.dtype:
    return next(tensor.dtype for tensor in map(_tensor, stored.values()) if tensor.is_floating_point())


def _from_hub(name: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES, ignore_patterns=["*/*", "consolidated*"]))
    except Exception:  # of many kinds; `load_model` asks again and says what is wrong
        return None


def _check_finite(key: str, value: Tensor, name: str) -> None:
    if value.numel() and value.is_floating_point() and not all(extreme.isfinite() for extreme in value.aminmax()):
        raise PruneError(f"{key} of {name} holds NaN or infinity: the checkpoint is damaged, copy it again")
