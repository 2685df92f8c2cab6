"""The weights of an output, in the files that transformers would write, filled a block at a time. Chapters 08 and 22.

Names, shapes and dtypes are known before any number is, so each tensor has its place from the beginning: a file, and
a byte in it. The files are made at once in their full size, which takes no room on the disk as long as nothing is in
them, and a block is written where it belongs. So nothing is joined in the end, nothing is on the disk twice, and what
a killed run wrote half is written once more, to the same place. A safetensors file is

    the length of the header (8 bytes), the header (JSON: dtype, shape and first and last byte by name), the tensors
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from minprune.files import flush
from minprune.output.target import WORK

SHARD = 2 * 10**9  # bytes


class Shards:
    """The files of weights in `folder`, an unfinished output; they lie in its work folder until they are complete.

    tensors: by name, in the model's order; only their shapes and dtypes count. limit: bytes of tensors in a file, but
    for a tensor that is larger by itself. stem: of the files' names. indexed: whether an index will name more tensors,
    so that no file may be called "model.safetensors", which goes before an index.
    file_of: the file of each tensor by name.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, Tensor], limit: int, stem: str = "model", indexed: bool = False
    ):
        from huggingface_hub import split_torch_state_dict_into_shards

        empty = {name: torch.empty(one.shape, dtype=one.dtype, device="meta") for name, one in tensors.items()}
        pattern = stem + "{suffix}.safetensors"
        split = split_torch_state_dict_into_shards(empty, filename_pattern=pattern, max_shard_size=limit)
        self.folder, self.file_of = folder, split.tensor_to_filename
        if indexed and not split.is_sharded:
            self.file_of = dict.fromkeys(empty, pattern.format(suffix="-00001-of-00001"))
        self._empty, self._starts, self._heads = empty, dict[str, int](), dict[str, tuple[bytes, int]]()
        for file, names in self._by_file(empty):
            self._heads[file] = self._lay_out(names)

    def _lay_out(self, names: list[str]) -> tuple[bytes, int]:
        """Give each tensor of a file its place. Returns the head of the file, and the size that the file will have."""
        about: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        starts, end = dict[str, int](), 0
        for name in names:
            one, starts[name] = self._empty[name], end
            end += one.nbytes
            about[name] = {"dtype": _word(one.dtype), "shape": list(one.shape), "data_offsets": [starts[name], end]}
        text = json.dumps(about, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        head = len(text).to_bytes(8, "little") + text
        self._starts |= {name: len(head) + start for name, start in starts.items()}
        return head, len(head) + end

    def begin(self) -> None:
        """Make the files, or repair the heads and the sizes of those that are there. What is in them stays."""
        for file, (head, size) in self._heads.items():
            with self._open(file) as opened:
                opened.write(head)
                opened.truncate(size)
                flush(opened)

    def write(self, tensors: Mapping[str, Tensor]) -> str:
        """Write tensors to their places and have them on the disk. Returns a sha256 of them for `intact`."""
        digest = hashlib.sha256()
        for file, names in self._by_file(tensors):
            with self._open(file) as opened:
                for name in names:
                    like, value = self._empty[name], tensors[name]
                    if (value.dtype, value.shape) != (like.dtype, like.shape):  # it would run into its neighbours
                        raise ValueError(f"{name} is {value.dtype} {tuple(value.shape)}, another place was kept for it")
                    opened.seek(self._starts[name])
                    opened.write(content := _bytes(value))
                    digest.update(content)
                flush(opened)
        return digest.hexdigest()

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """What is in the places of these tensors."""
        return dict(self._stored(names))

    def intact(self, names: Iterable[str], digest: str) -> bool:
        """Whether the places of these tensors hold what `write` gave this sha256 for."""
        found = hashlib.sha256()
        try:
            for _, value in self._stored(names):
                found.update(_bytes(value))
        except (OSError, SafetensorError):
            return False
        return found.hexdigest() == digest

    def occupied(self) -> int:
        """The room that tensors have on the disk by now: not the size of the files, whose empty places take none."""
        found = 0
        for file, (head, size) in self._heads.items():
            about = self._path(file).stat()
            found += min(size, 512 * getattr(about, "st_blocks", size)) - len(head)  # Windows fills the places
        return found

    def finish(self) -> None:
        """Move the files, which are complete, out of the work folder; those that an earlier run moved stay."""
        for file in self._heads:
            os.replace(self._path(file), self.folder / file)

    def _stored(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for file, here in self._by_file(names):
            with safe_open(self._path(file), framework="pt") as opened:
                for name in here:
                    yield name, opened.get_tensor(name)

    def _by_file(self, names: Iterable[str]) -> list[tuple[str, list[str]]]:
        """The files of these tensors and which of them are in each, in the order of their places."""
        found: dict[str, list[str]] = {}
        for name in sorted(names, key=lambda name: (-self._empty[name].itemsize, name)):  # as safetensors aligns them
            found.setdefault(self.file_of[name], []).append(name)
        return sorted(found.items())

    def _path(self, file: str) -> Path:
        moved = self.folder / file
        return moved if os.path.lexists(moved) else self.folder / WORK / file

    def _open(self, file: str) -> BinaryIO:
        """A file to be written to, which is made if it is not there; a link would lead elsewhere."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        return open(self._path(file), "r+b", opener=lambda path, _: os.open(path, flags, 0o666))


def _word(dtype: torch.dtype) -> str:
    """What safetensors calls a dtype."""
    return json.loads(save({"x": torch.empty(0, dtype=dtype)})[8:])["x"]["dtype"]


def _bytes(value: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy if it is on the CPU and contiguous."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
