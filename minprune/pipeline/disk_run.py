"""The blocks of a run from disk to disk, from the first unfinished one to the last. Chapter 08.

For each block: load it, send the test's windows through while it is dense, prune it on what the calibration windows
bring, send them through, write it, free it. What the journal says is finished is read back instead.
"""

import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from torch import Tensor

from minprune.evaluation.perplexity import read_perplexity
from minprune.models.causality import Versions, pass_block, several_versions
from minprune.models.checks import zeros_in_file, zeros_in_use
from minprune.models.forward import BlockwiseForward
from minprune.output.report import LayerRow
from minprune.pipeline.journal import Journal
from minprune.pipeline.layer_pruner import LayerPruner
from minprune.pipeline.reconstruction import DenseTargets, Reconstruction
from minprune.pipeline.sources import Checkpoint
from minprune.pipeline.staged import BlockPruner

TEST_BATCH = 2  # windows in a forward pass of the test, as for `perplexity`


def _resumed(begun: list[int], intact: list[int]) -> str:
    """What was found of an earlier run, in words; blocks are counted from 0, as in the layers' names."""
    damaged = [block for block in begun if block not in intact]
    again = f"; what was written of block {', '.join(map(str, damaged))} is damaged or missing and is made again"
    return f"resumed with {len(intact)} of {len(begun)} recorded blocks intact{again if damaged else ''}"


class DiskRun:
    """The blocks of one run, from the first unfinished one to the last."""

    def __init__(
        self,
        source: Checkpoint,
        pruner: LayerPruner,
        journal: Journal,
        test: Tensor | None,
        sequential: bool,
        reconstruction: tuple[Reconstruction, str] | None,
        start: float,
    ):
        self.source, self.pruner, self.journal, self.test = source, pruner, journal, test
        plan = self.plan = pruner.plan
        self.log = pruner.log
        self.whole_block, self.start = not sequential, start
        self.targets: DenseTargets | None = None
        self.finished = [block for block in range(len(source.blocks)) if journal.finished(block)]
        self.notes = [_resumed(list(journal.lines), self.finished)] if journal.lines else []
        for block in self.finished:
            self._restore_rows(block)
        last = journal.lines[max(journal.lines)] if journal.lines else None
        self.before = last["seconds"]["total"] if last else 0.0
        self.first = 0
        self.walks: dict[str, BlockwiseForward] = {}
        self.versions: dict[str, Versions] = {}  # by the name of their walk: what shows whether a block sees the future
        if plan.calib is not None or test is not None:
            source.load(0)
            batches: dict[str, tuple[Tensor, ...]] = {"calib": plan.batches}
            if test is not None:
                parts: tuple[Tensor, ...] = test.to(source.device).split(TEST_BATCH)
                batches |= {"dense": parts, "pruned": parts}
            length = max(tokens.shape[1] for tokens in (plan.calib, test) if tokens is not None)
            self.versions = {f"versions {n}": found for n, found in enumerate(several_versions(source.model, length))}
            batches |= {name: found[:2] for name, found in self.versions.items()}
            if reconstruction:
                self.targets = DenseTargets(source.model, pruner, *reconstruction)
                batches["calib"] = self.targets.batches
                if self.targets.dense.batches:  # none where nothing is trained
                    self.walks["targets"] = self.targets.dense
            for name, parts in batches.items():
                calibrating = self.targets.products if self.targets else plan.products
                products = calibrating if name == "calib" else nullcontext
                if parts or (name == "calib" and plan.calib is not None):  # a process may have no windows
                    self.walks[name] = BlockwiseForward(source.model, parts, products)
        complete = all(block in self.finished for block in range(max(journal.lines, default=-1) + 1))
        if complete and self._alone() and (saved := journal.hidden()):  # else the first block's input is all there is
            self.first, hidden = saved
            for name, walk in self.walks.items():
                walk.put(hidden, name)
            source.free(0)
        if not source.streamed:
            for block in range(self.first):
                source.restore(journal.tensors(block))

    def all_blocks(self) -> dict[str, float]:
        """Prune what is unfinished, and measure the perplexities before and after if there is a test."""
        source, plan, pruner = self.source, self.plan, self.pruner
        for block in range(self.first, len(source.blocks)):
            source.load(block)
            for name, windows in self.versions.items():
                pass_block(self.walks[name], block, windows)
            if "dense" in self.walks:
                self.walks["dense"].run_block(block)
            if self.targets:
                self.targets.record(block)
            if block in self.finished:
                source.restore(self.journal.tensors(block))
                if "calib" in self.walks:
                    self.walks["calib"].run_block(block)
            else:
                self._prune(block)
            if "pruned" in self.walks:
                self.walks["pruned"].run_block(block)
            if block not in self.finished:
                self._write(block)
            source.free(block)
        found = {"before": self._perplexity("dense")} if self.test is not None else {}  # the head is still dense
        if "calib" in self.walks:
            BlockPruner(self.walks["calib"], pruner).prune_head()
        for layer in plan.layers:
            if plan.calib is None and layer not in self.log.rows:
                pruner.prune(layer, None)
        return found | ({"after": self._perplexity("pruned")} if self.test is not None else {})

    def _prune(self, block: int) -> None:
        layers = self.plan.layers_under(f"{self.source.prefix}.{block}.")
        if "calib" not in self.walks:
            for layer in layers:
                self.pruner.prune(layer, None)
        elif self.targets:
            self.targets.prune(BlockPruner(self.walks["calib"], self.pruner), block, self.whole_block)
        else:
            BlockPruner(self.walks["calib"], self.pruner).prune(block, self.whole_block)
        self.log.mark_uncalibrated(layers)

    def _write(self, block: int) -> None:
        log, layers = self.log, self.plan.layers_under(f"{self.source.prefix}.{block}.")
        tensors = self.source.tensors(block)
        log.compare(zeros_in_file(tensors, layers))
        rows = [asdict(log.rows[layer]) for layer in layers]
        spent = {"total": self.seconds(), "statistics": log.statistics_seconds, "solve": log.solve_seconds}
        more: dict[str, Any] = {"rows": rows, "seconds": spent, "batch_size": self.plan.batch_size}
        if log.reconstruction:
            spent["reconstruction"] = log.reconstruction["seconds"]
            name = f"{self.source.prefix}.{block}"
            more["errors"] = {key: errors for key, errors in log.reconstruction["errors"].items() if key == name}
        self.journal.add(block, tensors, self._hidden if self._alone() else None, more)

    def _alone(self) -> bool:
        """Whether hidden states are all that has to be kept at the boundary of two blocks."""
        return self.pruner.ranks.size == 1 and bool(self.walks) and all(walk.alone for walk in self.walks.values())

    def compare(self) -> None:
        """Hold the rows against the model once more: all that is in memory is written from there in the end."""
        self.log.compare(zeros_in_use(self.source.model, self.source.still_here(self.plan.layers)))

    def _hidden(self) -> dict[str, Tensor]:
        return {key: value for name, walk in self.walks.items() for key, value in walk.saved(name).items()}

    def seconds(self) -> float:
        """Since the beginning, in this run and the ones that it goes on with."""
        return self.before + time.perf_counter() - self.start

    def _restore_rows(self, block: int) -> None:
        named = {layer.name: layer for layer in self.plan.layers}
        log, line = self.log, self.journal.lines[block]
        for row in line["rows"]:
            log.record(named[row["name"]], LayerRow(**{**row, "shape": tuple(row["shape"])}))
        log.statistics_seconds, log.solve_seconds = line["seconds"]["statistics"], line["seconds"]["solve"]
        if "errors" in line:
            errors = log.reconstruction.get("errors", {}) | line["errors"]
            log.reconstruction = {"seconds": line["seconds"]["reconstruction"], "errors": errors}

    def _perplexity(self, name: str) -> float:
        with self.walks[name].resume_after_blocks():
            return read_perplexity(self.source.model, self.test, TEST_BATCH)  # type: ignore[arg-type]
