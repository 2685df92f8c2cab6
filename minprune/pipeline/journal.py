"""What a run from disk to disk has finished, so that it can be stopped at any moment and go on. Chapter 08.

PATH.partial holds a folder `unfinished`: the recipe, the files of weights (`Shards`), a journal with one line for each
block that is in them, and the hidden states at a block boundary. A block is flushed to the disk in its place, other
files are written under another name, flushed and renamed; the journal's line comes last, and what has no line does
not count.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from minprune.errors import PruneError, short
from minprune.files import append_json, flush, json_lines, read_json, sha256, to_json, write_text
from minprune.output.folder import OutputFolder
from minprune.output.lock import absolute
from minprune.output.model_files import write_errors
from minprune.output.shards import Shards
from minprune.output.target import WORK, partial_of
from minprune.output.typed import Line, checked

_RECIPE, _JOURNAL = "recipe.json", "journal.jsonl"
Hidden = Callable[[], dict[str, Tensor]] | None
_SHARE = 20  # saving hidden states takes at most one part in so many of the time


class Journal:
    """The unfinished output of one run. folder: PATH.partial; lines: the journal's last line on each finished block.

    A line is {"block", "sha256", "hidden": None or {"file", "sha256"}} and what the run adds to it. On the disk it ends
    with "line", its own sha256: what a damaged disk made of it does not count either.
    weights: the files that blocks are written to; blocks: the names of the tensors of each. Both are there after
    `begin`.
    """

    weights: Shards

    def __init__(self, folder: Path):
        self.folder, self.work = folder, folder / WORK
        self.lines: dict[int, dict[str, Any]] = {}
        self.blocks: Sequence[list[str]] = []
        self._saved, self._cost = time.perf_counter(), 0.0

    def begin(self, recipe: dict[str, Any], blocks: Sequence[list[str]], weights: Shards) -> None:
        """Start with this recipe, or go on if an earlier run with the same one got here. Both others: see the class.

        Raises `PruneError`, naming the difference, if the earlier run had another recipe, or if it cannot be read.
        """
        recipe = json.loads(to_json(recipe))
        if not (self.work / _RECIPE).exists():
            with write_errors(self.folder):
                write_text(self.work / _RECIPE, to_json(recipe, 1))
                weights.begin()
            self.blocks, self.weights = blocks, weights
            return
        before = _read(self.work / _RECIPE)
        for key in [*recipe, *before]:
            if recipe.get(key) != before.get(key):
                raise PruneError(
                    f"{self.folder} was begun with {key} {short(before.get(key))}, not {short(recipe.get(key))}: "
                    "resume it as it was begun, overwrite it or choose another output"
                )
        for path in [*self.folder.glob("*.tmp"), *self.work.glob("*.tmp")]:  # what a killed run was writing
            path.unlink()
        names = set(recipe.get("layers", {}))
        self.lines = {
            block: line
            for block, line in self.read_lines().items()
            if block < len(blocks) and {row["name"] for row in line["rows"]} <= names
        }
        with write_errors(self.folder):
            write_text(self.work / _JOURNAL, "".join(to_json(_with_checksum(line)) for line in self.lines.values()))
            weights.begin()
        self.blocks, self.weights = blocks, weights

    def finished(self, block: int) -> bool:
        """Whether a block is finished, and its place still holds what was written."""
        return block in self.lines and self.weights.intact(self.blocks[block], self.lines[block]["sha256"])

    def tensors(self, block: int) -> dict[str, Tensor]:
        """What was written of a block."""
        return self.weights.read(self.blocks[block])

    def hidden(self) -> tuple[int, dict[str, Tensor]] | None:
        """(the number of blocks behind them, hidden states by name) of the last boundary that was kept undamaged."""
        for block in sorted(self.lines, reverse=True):
            saved = self.lines[block]["hidden"]
            if saved and _intact(self.work / saved["file"], saved["sha256"]):
                return block + 1, load_file(self.work / saved["file"])
        return None

    def add(self, block: int, tensors: dict[str, Tensor], hidden: Hidden, more: dict[str, Any]) -> None:
        """A block is finished: write its tensors to their places, and its line with `more` in it.

        hidden: gives the states behind it (None: there are none). They are saved unless that would take too large a
        share of the time: going on from an older boundary, or from the beginning, leads to the same.
        """
        with write_errors(self.folder):
            line = {"block": block, "sha256": self.weights.write(tensors), "hidden": None, **more}
        start = time.perf_counter()
        if hidden and start - self._saved >= _SHARE * self._cost:
            name = f"hidden-{block + 1:05d}.safetensors"
            line["hidden"] = {"file": name, "sha256": self._save(name, hidden())}
            self._saved = time.perf_counter()
            self._cost = self._saved - start
        with write_errors(self.folder):
            append_json(self.work / _JOURNAL, _with_checksum(line))
        self.lines[block] = line
        if line["hidden"]:
            for path in self.work.glob("hidden-*"):
                if path.name != line["hidden"]["file"]:
                    path.unlink()

    def _save(self, file: str, tensors: dict[str, Tensor]) -> str:
        """Write tensors to a file in the work folder, all of it or nothing, and return its sha256."""
        path = self.work / file
        part = path.with_name(path.name + ".tmp")
        with write_errors(self.folder):
            save_file({name: value.contiguous() for name, value in tensors.items()}, part, metadata={"format": "pt"})
            with part.open("rb+") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
                flush(handle)
            shutil.copymode(self.work / _RECIPE, part)  # safetensors files begin as readable by their owner alone
            os.replace(part, path)
        return digest

    def kept(self) -> str:
        """What of this run there is to go on with, in words; "" for nothing."""
        count = len(self.read_lines()) if self.blocks else 0  # else they are another run's
        said = f"{count} of {len(self.blocks)} blocks are kept in {self.folder}: continue with --resume"
        return said if count else ""

    def read_lines(self) -> dict[int, dict[str, Any]]:
        """The journal on the disk; a line that is damaged, or was not completed before a crash, does not count."""
        found: dict[int, dict[str, Any]] = {}
        for _, line, _, _ in json_lines(self.work / _JOURNAL):
            with suppress(ValueError):
                if isinstance(line, dict) and line.pop("line", None) == _digest(line):
                    found[line["block"]] = checked(line, Line)
        return found


class Follower(Journal):
    """The same for a process that reads along while another one writes: it writes nothing."""

    def begin(self, recipe: dict[str, Any], blocks: Sequence[list[str]], weights: Shards) -> None:
        self.blocks, self.weights = blocks, weights

    def add(self, block: int, tensors: dict[str, Tensor], hidden: Hidden, more: dict[str, Any]) -> None:
        pass


@contextmanager
def unfinished(path: str | Path, resume: bool = False, overwrite: bool = False) -> Iterator[Journal]:
    """Yield the `Journal` of `PATH.partial`, which is renamed to `path` if the block ends well; see `OutputFolder`.

    If the block fails or is interrupted, the folder is kept if it holds a finished block, and the exception says so.
    resume: go on in a `PATH.partial` that is there already. overwrite: replace one, or a finished output of minprune.
    Raises `PruneError` before the block if `path` cannot become the output.
    """
    journals: list[Journal] = []

    def kept() -> str:
        return "".join(journal.kept() for journal in journals)

    with OutputFolder(Path(path), "prune", overwrite, resume).open(kept) as partial:
        journals.append(Journal(partial))
        yield journals[0]


def table_of(path: str | Path, rule: str | None) -> dict[str, float] | None:
    """The sparsities that this rule gave the run that left `PATH.partial`; None if there is no such run.

    A rule may take long, and on other hardware it may find others.
    """
    left = partial_of(absolute(path)) / WORK / _RECIPE
    found = _read(left).get("allocation") if rule and left.exists() else None
    same = isinstance(found, dict) and found.get("rule") == rule and isinstance(found.get("table"), dict)
    return found["table"] if found and same else None


def _read(path: Path) -> dict[str, Any]:
    """The recipe of the earlier run."""
    try:
        return read_json(path)
    except PruneError:
        raise PruneError(f"{path} is damaged, so the run cannot go on: overwrite it or choose another output") from None


def _digest(line: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(line).encode()).hexdigest()


def _with_checksum(line: dict[str, Any]) -> dict[str, Any]:
    return {**line, "line": _digest(line)}


def _intact(path: Path, digest: str) -> bool:
    try:
        return sha256(path) == digest
    except OSError:
        return False
