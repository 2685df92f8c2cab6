"""A checkpoint that is pruned from disk to disk: in memory as a whole, or a block at a time. Chapter 08.

Both are used through one protocol, `Checkpoint`. A part is a block, by its index, or None: all that is outside of the
blocks.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from minprune.files import sha256
from minprune.models.blocks import decoder_blocks
from minprune.models.extras import not_loaded, note_of
from minprune.models.layers import Layer
from minprune.models.memory import return_memory
from minprune.models.weight_files import StoredTensor, check_finite
from minprune.output.shards import Shards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Location = tuple[Path, str]  # a file and the name of a tensor in it


class Checkpoint(Protocol):
    """What a run from disk to disk needs of the model that it reads.

    model, tokenizer: as `load_model` gives them. folder: where its files are. prefix, blocks: its decoder blocks and
    what their names begin with. left: stored tensors that are no part of the model. notes: what a report says of how
    the model was read.
    """

    model: "PreTrainedModel"
    tokenizer: Any
    folder: Path
    device: torch.device
    prefix: str
    blocks: nn.ModuleList
    left: dict[str, StoredTensor]
    notes: list[str]
    streamed: bool

    def names(self, part: int | None) -> list[str]:
        """The names of the tensors of a part that have to be stored."""

    def load(self, part: int | None) -> None:
        """Have the tensors of a part at hand."""

    def free(self, part: int) -> None:
        """Give the memory of a block back."""

    def tensors(self, part: int | None) -> dict[str, Tensor]:
        """The tensors of a part by name."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Fill a block with its tensors after an earlier run."""

    def shards(self, folder: Path, limit: int) -> Shards:
        """Places for the tensors of all blocks, and of the whole model if it is streamed, in an unfinished output."""

    def bytes_ahead(self) -> int:
        """What is still to be written when all blocks are."""

    def still_here(self, layers: list[Layer]) -> list[Layer]:
        """Those layers whose weights are written from memory in the end."""

    def identity(self, verify: bool = False) -> str:
        """A hash by which a later run knows the same checkpoint; see `identity_of`."""


class InMemoryCheckpoint:
    """A model that is in memory as a whole.

    Raises `PruneError` for NaN or infinity in any parameter: with them no number would mean anything.
    """

    streamed = False

    def __init__(self, model: "PreTrainedModel", tokenizer: Any, folder: Path, device: torch.device, name: str):
        self.model, self.tokenizer, self.folder, self.device = model, tokenizer, folder, device
        self.prefix, self.blocks = decoder_blocks(model)
        self.left = not_loaded(model, folder)
        self.notes = note_of(self.left)
        for key, value in model.named_parameters():
            check_finite(key, value, name)

    def names(self, part: int | None) -> list[str]:
        if part is not None:
            return [f"{self.prefix}.{part}.{name}" for name in self.blocks[part].state_dict()]
        return [name for name in self.model.state_dict() if not name.startswith(f"{self.prefix}.")]

    def load(self, part: int | None) -> None:
        pass

    def free(self, part: int) -> None:
        pass

    def tensors(self, part: int | None) -> dict[str, Tensor]:
        return _tensors(self, part)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        _fill(self, tensors, assign=False)

    def shards(self, folder: Path, limit: int) -> Shards:
        state = self.model.state_dict()
        inside = [name for block in range(len(self.blocks)) for name in self.names(block)]
        return Shards(folder, {name: state[name] for name in inside}, limit, "block")

    def bytes_ahead(self) -> int:  # its blocks are written once more, renamed as in the files that it came from
        return sum(parameter.nbytes for parameter in self.model.parameters())

    def still_here(self, layers: list[Layer]) -> list[Layer]:
        return layers

    def identity(self, verify: bool = False) -> str:
        return identity_of(self.model, sorted(self.folder.glob("*.safetensors")), verify)


class StreamedCheckpoint:
    """A model whose blocks are on the meta device until they are asked for. locations: where each tensor is stored.

    Raises `PruneError` for NaN or infinity in any tensor that is loaded.
    """

    streamed = True

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: Any,
        folder: Path,
        device: torch.device,
        name: str,
        locations: dict[str, Location],
    ):
        self.model, self.tokenizer, self.folder, self.device = model, tokenizer, folder, device
        self.prefix, self.blocks = decoder_blocks(model)
        self.left = not_loaded(model, folder)
        self.notes = note_of(self.left)
        self._name, self._locations = name, locations
        self._at_hand: set[str] = set()  # whose numbers are the file's: not all others are on the meta device
        for key, value in model.named_parameters():
            if not value.is_meta:
                check_finite(key, value, name)
        self.load(None)
        model.tie_weights()
        for module in model.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[key] = buffer.to(device)

    def names(self, part: int | None) -> list[str]:
        start = f"{self.prefix}." if part is None else f"{self.prefix}.{part}."
        return [name for name in self._locations if name.startswith(start) != (part is None)]

    def load(self, part: int | None) -> None:
        state = self.model.state_dict()
        wanted = {name: state[name] for name in self.names(part) if name not in self._at_hand}
        filled = dict(zip(wanted, _in_one_piece(list(wanted.values()), self.device), strict=True))
        for name, value in self._read(wanted):
            check_finite(name, value, self._name)
            filled[name].copy_(value)
        self.model.load_state_dict(filled, strict=False, assign=True)
        self._at_hand |= filled.keys()

    def free(self, part: int) -> None:
        empty = {name: value.to("meta") for name, value in self.tensors(part).items()}
        self.model.load_state_dict(empty, strict=False, assign=True)
        self._at_hand -= empty.keys()
        return_memory()

    def tensors(self, part: int | None) -> dict[str, Tensor]:
        return _tensors(self, part)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        _fill(self, tensors, assign=True)

    def shards(self, folder: Path, limit: int) -> Shards:
        state = self.model.state_dict()
        return Shards(folder, {name: state[name] for name in self._locations}, limit, indexed=bool(self.left))

    def bytes_ahead(self) -> int:
        return 0

    def still_here(self, layers: list[Layer]) -> list[Layer]:
        head = self.model.get_output_embeddings()
        return [layer for layer in layers if layer.module is head]

    def identity(self, verify: bool = False) -> str:
        return identity_of(self.model, sorted({path for path, _ in self._locations.values()}), verify)

    def _read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of each, file by file; the tensors last as long as the step."""
        by_file: dict[Path, list[str]] = defaultdict(list)
        for name in names:
            by_file[self._locations[name][0]].append(name)
        for path, here in by_file.items():
            with safe_open(path, framework="pt") as file:
                for name in here:
                    yield name, file.get_tensor(self._locations[name][1])


def identity_of(model: "PreTrainedModel", files: list[Path], verify: bool = False) -> str:
    """A hash by which a later run knows the same checkpoint: of the configuration, and of each file of weights.

    Of a file its header, size and time are hashed, which takes no time; verify: all of its bytes instead, which
    shows a change that kept all three.
    """
    digest = hashlib.sha256(model.config.to_json_string(use_diff=False).encode())
    for path in files:
        digest.update(f"{path.name} {sha256(path) if verify else _stamp(path)}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _tensors(source: Checkpoint, part: int | None) -> dict[str, Tensor]:
    state = source.model.state_dict()
    return {name: state[name] for name in source.names(part)}


def _fill(source: Checkpoint, tensors: dict[str, Tensor], assign: bool) -> None:
    values = {name: value.to(source.device) for name, value in tensors.items()}
    source.model.load_state_dict(values, strict=False, assign=assign)
    torch.clear_autocast_cache()  # a caller's autocast may remember the block as it was


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
