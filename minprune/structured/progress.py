"""What a run of several removals has finished, on the disk, so that it can be stopped at any moment and go on.

After each removal the model as it is by then, and after each block that is trained its tensors. A small JSON file,
written last and in one step, says what counts; it holds the recipe, too, and another one is refused.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minprune.errors import PruneError
from minprune.files import read_json, sha256, to_json, write_text
from minprune.models.layers import decoder_blocks
from minprune.output.model_files import write_errors
from minprune.output.report import LayerRow, Report
from minprune.structured.cut import become

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STATE = "removals.json"


class Progress:
    """The finished part of a run. folder: for its files; recipe: what must be the same when it goes on.

    removed: how many removals are made; kept, basis, reports: what they left (see `run_removals`). errors: of each
    trained block. Raises `PruneError` if what is in the folder is of another recipe, or damaged.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any]):
        self.folder, self.recipe = folder, recipe
        self.removed = 0
        self.kept: list[int] = []
        self.basis: Tensor | None = None
        self.reports: list[Report] = []
        self.errors: dict[str, list[float]] = {}
        self.files: dict[str, str] = {}  # name -> sha256
        if (folder / _STATE).exists():
            self._read()

    def _read(self) -> None:
        state = read_json(self.folder / _STATE)
        try:
            before = state["recipe"]
            changed = [key for key, value in self.recipe.items() if before.get(key) != value]
            if changed:
                raise PruneError(
                    f"the run that was stopped had another {changed[0]}: give the same command, or --overwrite it"
                )
            self.removed, self.kept, self.errors = int(state["removed"]), state["kept"], dict(state["errors"])
            self.reports = [_report(found) for found in state["reports"]]
            self.files = dict(state["files"])
            for name, digest in self.files.items():
                if sha256(self.folder / name) != digest:
                    raise KeyError(name)
            if "basis.safetensors" in self.files:
                self.basis = load_file(self.folder / "basis.safetensors")["basis"]
            if f"model-{self.removed}/config.json" not in self.files or self.removed != len(self.reports):
                raise KeyError(f"model-{self.removed}")
        except (KeyError, TypeError, ValueError, OSError, AttributeError) as error:
            if isinstance(error, PruneError):
                raise
            raise self._damaged() from None

    def _damaged(self) -> PruneError:
        return PruneError(f"{self.folder / _STATE} or a file beside it is damaged: begin anew with --overwrite")

    def restore(self, model: "PreTrainedModel") -> None:
        """Put the model where the run was stopped: the removals that are made, and the blocks that are trained."""
        if not self.removed:
            return
        place, training = model.device, model.training
        smaller = type(model).from_pretrained(self.folder / f"model-{self.removed}", dtype=model.dtype)
        become(model, nn.Module.to(smaller, place).train(training))
        prefix, blocks = decoder_blocks(model)
        trained = {f"{prefix}.{index}": f"block-{index}.safetensors" for index in range(len(blocks))}
        known = all(trained.get(name) in self.files for name in self.errors)
        if not known or len(self.kept) != len(blocks) or not _rises(self.kept):
            raise self._damaged()
        for index, block in enumerate(blocks):
            if f"{prefix}.{index}" in self.errors:
                block.load_state_dict(load_file(self.folder / f"block-{index}.safetensors", str(place)))

    def after_removal(self, model: "PreTrainedModel", kept: list[int], basis: Tensor | None, report: Report) -> None:
        """A removal is made."""
        self.removed += 1
        self.kept, self.basis = kept, basis
        self.reports.append(report)
        with write_errors(self.folder.parent):
            name = f"model-{self.removed}"
            shutil.rmtree(self.folder / name, ignore_errors=True)
            model.save_pretrained(self.folder / name)
            files = [f"{name}/{path.name}" for path in (self.folder / name).iterdir()]
            if basis is not None:
                save_file({"basis": basis.contiguous()}, self.folder / "basis.safetensors")
                files.append("basis.safetensors")
            self.files = {file: sha256(self.folder / file) for file in files}
            self._write()
            shutil.rmtree(self.folder / f"model-{self.removed - 1}", ignore_errors=True)

    def after_block(self, model: "PreTrainedModel", index: int, errors: list[float]) -> None:
        """A block is trained."""
        prefix, blocks = decoder_blocks(model)
        self.errors[f"{prefix}.{index}"] = errors
        with write_errors(self.folder.parent):
            name = f"block-{index}.safetensors"
            save_file(
                {key: value.contiguous() for key, value in blocks[index].state_dict().items()}, self.folder / name
            )
            self.files[name] = sha256(self.folder / name)
            self._write()

    def _write(self) -> None:
        state = {"recipe": self.recipe, "removed": self.removed, "kept": self.kept, "errors": self.errors}
        state |= {"reports": [asdict(report) for report in self.reports], "files": self.files}
        write_text(self.folder / _STATE, to_json(state, 1))


def _rises(numbers: list[Any]) -> bool:
    """Whether these are whole numbers from 0 on, each larger than the one before it."""
    return all(type(number) is int and number >= 0 for number in numbers) and numbers == sorted(set(numbers))


def _report(found: dict[str, Any]) -> Report:
    rows = [LayerRow(**{**row, "shape": (row["shape"][0], row["shape"][1])}) for row in found["layers"]]
    return Report(**{**found, "layers": rows})


def started(folder: Path) -> bool:
    """Whether there is anything in the folder to go on with."""
    return (folder / _STATE).exists()
