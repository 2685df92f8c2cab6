"""prune_checkpoint(): from disk to disk, block by block, for models larger than memory. Chapters 08 and 21.

Load a block's tensors, prune it, write one safetensors file, note that it is done, free it. The calibration windows
wait at the block boundary as hidden states. So memory holds one block whatever the depth, a run that was stopped goes
on with the first unfinished block, and the finished files are the output. Pruning itself is the driver's: the same
checks and books (`Run`), the same walk through the blocks (`Walk`).

Where blocks hand each other more than hidden states, none are kept: a run that goes on begins with the first block
again, and takes the finished blocks from their files.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minprune.allocate import Allocation
from minprune.causal import Versions, pass_block, several_versions
from minprune.data import fingerprint
from minprune.driver import Run
from minprune.errors import PruneError
from minprune.evaluate import read_perplexity
from minprune.journal import Journal, unfinished
from minprune.model import check_windows
from minprune.output import PAGE, check_space, rehearse, write_errors, write_model
from minprune.page import write_page
from minprune.patterns import Pattern
from minprune.recipe import Recipe, adjusted
from minprune.reconstruct import Guide, Reconstruction, resolved
from minprune.report import LayerRow, Report, versions
from minprune.stages import Walk
from minprune.stream import Whole, open_checkpoint
from minprune.watch import one_by_one
from minprune.weights import zeros_in_file, zeros_in_use

_TEST_BATCH = 2  # windows in a forward pass of the test, as for `perplexity`


@torch.inference_mode(False)
@torch.no_grad()
def prune_checkpoint(
    src: str | Path,
    dst: str | Path,
    calib: Tensor | None,
    method: str | None = None,
    pattern: str | Pattern = "50%",
    *,
    recipe: str | Recipe | None = None,
    allocation: Allocation = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    batch_size: int | None = None,
    sequential: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    dtype: str | torch.dtype = "auto",
    device: str = "cpu",
    progress: bool = False,
    test: Tensor | None = None,
    texts: Mapping[str, Mapping[str, Any]] | None = None,
    command: Sequence[str] = (),
    verify: bool = False,
    **options,
) -> Report:
    """Prune the model in the folder (or of the id) `src` and write it to the new folder `dst`; see `minprune.prune`.

    resume: go on where an earlier run with the same recipe was stopped; its folder is `DST.partial`, and the tensors
    are those of an uninterrupted run, bit for bit. overwrite: replace an earlier output. dtype, device: as for
    `load_model`. test: (windows, length) int64 token ids on which the perplexity is measured before and after, without
    holding the model. texts: where the tokens come from, for minprune.json: {"calibration": {...}, "test": {...}}, see
    `minprune.protocol.windows_of`. command: the words of a command line that makes the same, for minprune.json.
    verify: know the model by all bytes of its files, which are read once more for that, and not by their headers,
    sizes and times, when a run goes on.
    Raises `PruneError` (a `ValueError`) if something cannot be done; blocks that are finished by then are kept.
    """
    start, include, exclude = time.perf_counter(), _listed(include), _listed(exclude) or []
    with unfinished(dst, resume, overwrite) as journal, ExitStack() as shown:
        chosen = adjusted(recipe, calib, method, allocation, options)
        source = open_checkpoint(src, dtype, device)
        run = Run(source.model, calib, chosen, pattern, include, exclude, batch_size, progress)
        shown.enter_context(run.bar)  # else it would stay on the terminal when a check fails
        if test is not None:
            check_windows(source.model, test)
            if test.shape[1] < 2:
                raise PruneError("test windows of 1 token predict nothing: use length 2 or more")
        how, skipped = resolved(chosen.reconstruction, source.model, run) if chosen.reconstruction else (None, "")
        facts = {
            "method": run.name,
            "pattern": run.pattern,
            "options": run.options,
            "reconstruction": how and {key: value for key, value in asdict(how).items() if key != "bfloat16"},
            "products in bfloat16": bool(how and how.bfloat16),
            "layers": {layer.name: str(run.patterns[layer]) for layer in run.layers},
            "sequential": sequential,
            "dtype": str(source.model.dtype).removeprefix("torch."),
            "device": str(source.device),
            "calibration": None if calib is None else fingerprint(calib),
            "test": None if test is None else fingerprint(test),
            "model": source.identity(verify),
            "versions": versions(),
        }
        journal.begin(facts, len(source.blocks))
        if batch_size is None and journal.lines:  # another number would round differently
            run.split(next(iter(journal.lines.values()))["batch_size"])
        said = texts or {}

        def described(report: Report, perplexities: dict[str, float]) -> dict[str, Any]:
            report.calibration |= said.get("calibration", {})
            if test is not None:
                protocol = {
                    "windows": len(test),
                    "window": test.shape[1],
                    "sha256": facts["test"],
                    **said.get("test", {}),
                    "dtype": facts["dtype"],
                }
                report.perplexity = {**perplexities, "protocol": protocol}
            return {
                "model": str(src),
                "dtype": facts["dtype"],
                "device": device,
                "include": include,
                "exclude": exclude,
                "sequential": sequential,
                "command": list(command),
                **report.as_dict(),
            }

        trial = described(_preview(run), {"before": 1.0, "after": 1.0})
        ahead = 2 * rehearse(
            journal.folder, source.model, source.tokenizer, trial, write_page
        )  # the journal says it again
        ahead += _hidden_bytes(source.model, calib, test, how is not None)
        ahead += sum(tensor.nbytes for tensor in source.left.values())
        if not source.streamed:  # its blocks are written once more, renamed as in the files that it came from
            ahead += sum(parameter.nbytes for parameter in source.model.parameters())
        check_space(journal.folder, source.model, journal.bytes() - ahead)
        with one_by_one(source.model, run.layers):
            guide = (how, skipped) if how else None
            job = _Job(source, run, journal, test, sequential, guide, start)
            perplexities = job.all_blocks()
            job.compare()
        report = run.report(job.seconds())
        report.notes += source.notes + job.notes
        record = described(report, perplexities)
        _finish(source, journal, record)
    return report


def _preview(run: Run) -> Report:
    """The report as it will be, before there are any numbers."""
    calibration = {} if run.calib is None else {"windows": run.calib.shape[0], "length": run.calib.shape[1]}
    rows = [LayerRow(layer.name, (layer.weight.shape[0], layer.weight.shape[1]), 0.0, 0.5, 0.0) for layer in run.layers]
    return Report(run.name, run.pattern, run.options, calibration, rows, recipe=run.recipe, allocation=run.allocation)


def _hidden_bytes(model, calib: Tensor | None, test: Tensor | None, guided: bool) -> int:
    """How much disk the hidden states at a block boundary take: two files while one replaces the other."""
    tokens = 0 if calib is None else calib.numel() * (2 if guided else 1)
    tokens += 0 if test is None else 2 * test.numel()
    return 2 * tokens * model.get_input_embeddings().weight.shape[-1] * model.dtype.itemsize


def _resumed(begun: list[int], intact: list[int]) -> str:
    """What was found of an earlier run, in words; blocks are counted from 0, as in the layers' names."""
    damaged = [block for block in begun if block not in intact]
    again = f"; the file of block {', '.join(map(str, damaged))} was damaged or missing and is made again"
    return f"resumed with {len(intact)} of {len(begun)} recorded blocks intact{again if damaged else ''}"


class _Job:
    """The blocks of one run, from the first unfinished one to the last."""

    def __init__(
        self,
        source: Whole,
        run: Run,
        journal: Journal,
        test: Tensor | None,
        sequential: bool,
        reconstruction: tuple[Reconstruction, str] | None,
        start: float,
    ):
        self.source, self.run, self.journal, self.test = source, run, journal, test
        self.whole_block, self.start = not sequential, start
        self.guide: Guide | None = None
        self.files = {block: path for block in range(len(source.blocks)) if (path := journal.finished(block))}
        self.notes = [_resumed(list(journal.lines), list(self.files))] if journal.lines else []
        for block in self.files:
            self._restore_rows(block)
        last = journal.lines[max(journal.lines)] if journal.lines else None
        self.before = last["seconds"]["total"] if last else 0.0
        self.first = 0
        self.walks: dict[str, Walk] = {}
        self.versions: dict[str, Versions] = {}  # by the name of their walk: what shows whether a block sees the future
        if run.calib is not None or test is not None:
            source.load(0)
            batches: dict[str, tuple[Tensor, ...]] = {"calib": run.batches}
            if test is not None:
                batches |= dict.fromkeys(("dense", "pruned"), test.to(source.device).split(_TEST_BATCH))
            length = max(tokens.shape[1] for tokens in (run.calib, test) if tokens is not None)
            self.versions = {f"versions {n}": found for n, found in enumerate(several_versions(source.model, length))}
            batches |= {name: found[:2] for name, found in self.versions.items()}
            if reconstruction:
                self.guide = Guide(source.model, run, *reconstruction)
                batches["calib"] = self.guide.batches
                if self.guide.walk.batches:  # none where nothing is trained
                    self.walks["guide"] = self.guide.walk
            for name, parts in batches.items():
                products = self.guide.products if self.guide and name == "calib" else nullcontext
                if parts:
                    self.walks[name] = Walk(source.model, parts, products)
        complete = all(block in self.files for block in range(max(journal.lines, default=-1) + 1))
        if complete and self._alone() and (saved := journal.hidden()):  # else the first block's input is all there is
            self.first, hidden = saved
            for name, walk in self.walks.items():
                walk.put(hidden, name)
            source.free(0)
        for block in range(self.first):
            source.skip(block, self.files[block])

    def all_blocks(self) -> dict[str, float]:
        """Prune what is unfinished, and measure the perplexities before and after if there is a test."""
        source, run = self.source, self.run
        for block in range(self.first, len(source.blocks)):
            source.load(block)
            for name, windows in self.versions.items():
                pass_block(self.walks[name], block, windows)
            if "dense" in self.walks:
                self.walks["dense"].through(block)
            if self.guide:
                self.guide.see(block)
            if path := self.files.get(block):
                source.restore(block, path)
                if "calib" in self.walks:
                    self.walks["calib"].through(block)
            else:
                self._prune(block)
            if "pruned" in self.walks:
                self.walks["pruned"].through(block)
            if block not in self.files:
                self._write(block)
            source.free(block)
        found = {"before": self._perplexity("dense")} if self.test is not None else {}  # the head is still dense
        if "calib" in self.walks:
            self.walks["calib"].prune_head(run)
        for layer in run.layers:
            if run.calib is None and layer not in run.rows:
                run.prune(layer, None)
        return found | ({"after": self._perplexity("pruned")} if self.test is not None else {})

    def _prune(self, block: int) -> None:
        layers = self.run.layers_under(f"{self.source.prefix}.{block}.")
        if self.guide:
            self.guide.prune(self.walks["calib"], block, self.whole_block)
        elif "calib" in self.walks:
            self.walks["calib"].prune(block, self.run, self.whole_block)
        else:
            for layer in layers:
                self.run.prune(layer, None)
        self.run.settle(layers)

    def _write(self, block: int) -> None:
        run, layers = self.run, self.run.layers_under(f"{self.source.prefix}.{block}.")
        file, tensors = shard_name(self.source, block), self.source.tensors(block)
        run.compare(zeros_in_file(tensors, layers))
        rows = [asdict(run.rows[layer]) for layer in layers]
        spent = {"total": self.seconds(), "statistics": run.statistics_seconds, "solve": run.solve_seconds}
        batch_size = len(run.batches[0]) if run.batches else None
        more: dict[str, Any] = {"rows": rows, "seconds": spent, "batch_size": batch_size}
        if run.reconstruction:
            spent["reconstruction"] = run.reconstruction["seconds"]
            name = f"{self.source.prefix}.{block}"
            more["errors"] = {key: errors for key, errors in run.reconstruction["errors"].items() if key == name}
        self.journal.add(block, file, tensors, self._hidden if self._alone() else None, more)

    def _alone(self) -> bool:
        """Whether hidden states are all that has to be kept at the boundary of two blocks."""
        return bool(self.walks) and all(walk.alone for walk in self.walks.values())

    def compare(self) -> None:
        """Hold the rows against the model once more: all that is in memory is written from there in the end."""
        source, head = self.source, self.source.model.get_output_embeddings()
        here = [layer for layer in self.run.layers if not source.streamed or layer.owner is head]
        self.run.compare(zeros_in_use(source.model, here))

    def _hidden(self) -> dict[str, Tensor]:
        return {key: value for name, walk in self.walks.items() for key, value in walk.saved(name).items()}

    def seconds(self) -> float:
        """Since the beginning, in this run and the ones that it goes on with."""
        return self.before + time.perf_counter() - self.start

    def _restore_rows(self, block: int) -> None:
        named = {layer.name: layer for layer in self.run.layers}
        line = self.journal.lines[block]
        for row in line["rows"]:
            self.run.book(named[row["name"]], LayerRow(**{**row, "shape": tuple(row["shape"])}))
        self.run.statistics_seconds, self.run.solve_seconds = line["seconds"]["statistics"], line["seconds"]["solve"]
        if "errors" in line:
            errors = self.run.reconstruction.get("errors", {}) | line["errors"]
            self.run.reconstruction = {"seconds": line["seconds"]["reconstruction"], "errors": errors}

    def _perplexity(self, name: str) -> float:
        with self.walks[name].at_the_end():
            return read_perplexity(self.source.model, self.test, _TEST_BATCH)  # type: ignore[arg-type]


def shard_name(source: Whole, part: int | None) -> str:
    """The file of a block, or of what is outside of the blocks (None), within the unfinished output."""
    if not source.streamed:
        return f"unfinished/block-{part:05d}.safetensors"
    return f"model-{1 if part is None else part + 2:05d}-of-{len(source.blocks) + 1:05d}.safetensors"


def _finish(source: Whole, journal: Journal, record: dict[str, Any]) -> None:
    """Write all that is not in a block's file; minprune.json comes last."""
    weight_map: dict[str, str] = {}
    if source.streamed:
        journal.write(shard_name(source, None), source.tensors(None))
        for part in (None, *range(len(source.blocks))):
            weight_map |= dict.fromkeys(source.names(part), shard_name(source, part))
    with write_errors(journal.folder):
        write_page(journal.folder / PAGE, record)
    write_model(journal.folder, source.model, source.tokenizer, record, weight_map, source.folder)


def _listed(globs: Iterable[str] | None) -> list[str] | None:
    return [globs] if isinstance(globs, str) else None if globs is None else list(globs)
