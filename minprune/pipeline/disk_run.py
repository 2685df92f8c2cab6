"""The blocks of a run from disk to disk, from the first unfinished one to the last. Chapter 08.

For each block: load it, send the test's windows through while it is dense, prune it on what the calibration windows
bring, send them through, write it, free it. What the journal says is finished is taken from its file instead.
"""

import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from torch import Tensor

from minprune.evaluation.perplexity import read_perplexity
from minprune.models.causality import Versions, pass_block, several_versions
from minprune.models.checks import zeros_in_file, zeros_in_use
from minprune.output.report import LayerRow
from minprune.pipeline.journal import Journal
from minprune.pipeline.prune import Run
from minprune.pipeline.reconstruction import DenseTargets, Reconstruction
from minprune.pipeline.staged import BlockwiseForward
from minprune.pipeline.streaming import InMemoryCheckpoint

_TEST_BATCH = 2  # windows in a forward pass of the test, as for `perplexity`


def _resumed(begun: list[int], intact: list[int]) -> str:
    """What was found of an earlier run, in words; blocks are counted from 0, as in the layers' names."""
    damaged = [block for block in begun if block not in intact]
    again = f"; the file of block {', '.join(map(str, damaged))} was damaged or missing and is made again"
    return f"resumed with {len(intact)} of {len(begun)} recorded blocks intact{again if damaged else ''}"


class DiskRun:
    """The blocks of one run, from the first unfinished one to the last."""

    def __init__(
        self,
        source: InMemoryCheckpoint,
        run: Run,
        journal: Journal,
        test: Tensor | None,
        sequential: bool,
        reconstruction: tuple[Reconstruction, str] | None,
        start: float,
    ):
        self.source, self.run, self.journal, self.test = source, run, journal, test
        self.whole_block, self.start = not sequential, start
        self.guide: DenseTargets | None = None
        self.files = {block: path for block in range(len(source.blocks)) if (path := journal.finished(block))}
        self.notes = [_resumed(list(journal.lines), list(self.files))] if journal.lines else []
        for block in self.files:
            self._restore_rows(block)
        last = journal.lines[max(journal.lines)] if journal.lines else None
        self.before = last["seconds"]["total"] if last else 0.0
        self.first = 0
        self.walks: dict[str, BlockwiseForward] = {}
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
                self.guide = DenseTargets(source.model, run, *reconstruction)
                batches["calib"] = self.guide.batches
                if self.guide.walk.batches:  # none where nothing is trained
                    self.walks["guide"] = self.guide.walk
            for name, parts in batches.items():
                products = self.guide.products if self.guide and name == "calib" else nullcontext
                if parts:
                    self.walks[name] = BlockwiseForward(source.model, parts, products)
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
                self.walks["dense"].run_block(block)
            if self.guide:
                self.guide.see(block)
            if path := self.files.get(block):
                source.restore(block, path)
                if "calib" in self.walks:
                    self.walks["calib"].run_block(block)
            else:
                self._prune(block)
            if "pruned" in self.walks:
                self.walks["pruned"].run_block(block)
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
        self.run.mark_uncalibrated(layers)

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
        here = [layer for layer in self.run.layers if not source.streamed or layer.module is head]
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
            self.run.record(named[row["name"]], LayerRow(**{**row, "shape": tuple(row["shape"])}))
        self.run.statistics_seconds, self.run.solve_seconds = line["seconds"]["statistics"], line["seconds"]["solve"]
        if "errors" in line:
            errors = self.run.reconstruction.get("errors", {}) | line["errors"]
            self.run.reconstruction = {"seconds": line["seconds"]["reconstruction"], "errors": errors}

    def _perplexity(self, name: str) -> float:
        with self.walks[name].resume_after_blocks():
            return read_perplexity(self.source.model, self.test, _TEST_BATCH)  # type: ignore[arg-type]


def shard_name(source: InMemoryCheckpoint, part: int | None) -> str:
    """The file of a block, or of what is outside of the blocks (None), within the unfinished output."""
    if not source.streamed:
        return f"unfinished/block-{part:05d}.safetensors"
    return f"model-{1 if part is None else part + 2:05d}-of-{len(source.blocks) + 1:05d}.safetensors"
