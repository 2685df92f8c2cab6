"""sweep(): every method with every pattern and every calibration seed, one JSON line a run. Chapter 09.

One model stays in memory with a copy of its parameters; a run prunes it, measures it and copies the parameters back,
so that it costs no loading. A line is written when its run is complete, and runs that the file holds already are not
repeated: a sweep that was killed goes on where it stopped, and one file can grow over several calls. Each line holds
its whole protocol, so lines of different protocols cannot be mixed up: a file with another one is refused.
"""

import hashlib
import logging
import statistics
import time
from collections.abc import Iterable
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import type_around
from minprune.data.tokens import fingerprint, load_tokens
from minprune.errors import PruneError, check_seed
from minprune.evaluation.perplexity import perplexity
from minprune.evaluation.protocol import windows_of
from minprune.files import append_json
from minprune.methods import get_method
from minprune.models.layers import find_layers
from minprune.output.lock import absolute, lock
from minprune.output.report import versions
from minprune.patterns import pattern as read_pattern
from minprune.pipeline.prune import prune
from minprune.pipeline.ranks import Ranks
from minprune.pipeline.recipes import RECIPES
from minprune.sweep.results import DENSE, RunKey, continue_runs, key_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)


@checked()
def sweep(
    model: "PreTrainedModel",
    tokenizer,
    path: str | Path,
    methods: Iterable[str],
    patterns: Iterable[str],
    seeds: Iterable[int] = (0,),
    *,
    name: str | None = None,
    calibration: str | Path = "wikipedia",
    samples: int = 64,
    length: int = 512,
    texts: Iterable[str] = ("wikipedia", "news"),
    test_samples: int = 32,
    batch_size: int | None = None,
) -> list[dict[str, Any]]:
    """Fill in what the file at `path` lacks of methods x patterns x seeds; return all runs asked for, dense first.

    methods: names of methods or of recipes, see `prune`. A run is a dict: method, pattern, seed, perplexity of each
    text, that of the dense model and their ratio (relative), zeros (fraction of the layers' weights), error (relative
    layer error, the median layer's; None without calibration), notes, seconds of pruning (processor: over all
    threads; wall) and of measuring the perplexities (evaluation: processor), protocol (runs of one file have the same),
    measured (the `Protocol` of each text's perplexity), a sha256 of the calibration tokens, versions, date. A method
    that needs no data runs once, with seed None. Seeds come outermost, then patterns, so that a sweep that is stopped
    early has compared all methods.

    Where `torch.distributed` is initialised, as by `torchrun -m minprune sweep`, all of its processes call this with
    the same arguments, each makes runs of its own, and the first one writes them.

    model: left as it came. name: what the file calls it. calibration and texts: see `load_tokens`; the train split
    of the first and the test splits of the others, test_samples windows each; all windows have `length` tokens.
    batch_size: see `prune`. Each run is logged. A run that fails is logged, is not in the file, and comes
    back with its reason in "failed" and without numbers. Raises `PruneError`, before anything is measured, for an
    unknown method, pattern or text and for a file that another run is writing or that has another protocol.
    """
    cells, path, texts = keys_of(methods, patterns, seeds), absolute(path), _listed(texts)
    if not texts:
        raise PruneError("a sweep needs at least one text to measure on")
    dtype = str(type_around(model.dtype, model.device.type)).removeprefix("torch.")
    cut = {text: windows_of(tokenizer, text, "test", test_samples, length, dtype) for text in texts}
    tests = {text: windows for text, (windows, _) in cut.items()}
    protocol = {
        "model": name or Path(str(model.name_or_path)).name,
        "dtype": dtype,
        "device": next(model.parameters()).device.type,
        "calibration": {"source": str(calibration), "split": "train", "samples": samples, "length": length},
        "tests": {
            text: {"split": "test", "samples": test_samples, "length": length, "sha256": fingerprint(tokens)}
            for text, tokens in tests.items()
        },
        "weights": _hash(model),
    }
    calibrate = cache(lambda seed: load_tokens(tokenizer, calibration, "train", samples, length, seed))
    ranks = Ranks.current()

    def runs_of_file() -> dict[RunKey, dict]:
        found = {key_of(run): run for run in continue_runs(path, protocol)}
        for run in found.values():  # the name of a file does not say what is in it
            drawn = run.get("calibration_sha256")
            if drawn and run["seed"] is not None and drawn != fingerprint(calibrate(run["seed"])):
                raise PruneError(
                    f"{path} was made with other calibration windows of seed {run['seed']}, so {calibration} has "
                    "changed: choose another output"
                )
        return found

    with ranks.until_failure(), lock(path) if ranks.first else nullcontext():
        ranks.check_alike({**protocol, "cells": cells})
        found = ranks.of_first(runs_of_file)
        missing = [cell for cell in cells if cell not in found]
        metadata = {"protocol": protocol, "measured": {text: how for text, (_, how) in cut.items()}}
        lab = _SweepRunner(model, tests, metadata, batch_size)

        def run_or_reason(cell: RunKey) -> dict[str, Any]:
            try:
                calib = None if cell.seed is None else calibrate(cell.seed)
                return lab.run(cell, calib, found.get(RunKey(DENSE, "", None)))
            except PruneError as reason:
                if cell.method == DENSE:  # there is nothing to compare with
                    raise
                return {**cell._asdict(), "failed": str(reason)}

        done = 0
        while done < len(missing):  # each rank makes one run, but for the first, with which all others are compared
            at_once = missing[done : done + (1 if missing[done].method == DENSE else ranks.size)]
            made = ranks.gather(run_or_reason(at_once[ranks.rank]) if ranks.rank < len(at_once) else None)
            for cell, run in zip(at_once, made, strict=False):
                assert run is not None  # the ranks without a cell are the last
                found[cell], done = run, done + 1
                if ranks.first and "failed" not in run:
                    append_json(path, run)
                _log.info(f"{done}/{len(missing)} {_sentence(run)}")
        return [found[cell] for cell in cells]


def keys_of(methods: Iterable[str], patterns: Iterable[str], seeds: Iterable[int]) -> list[RunKey]:
    """All runs asked for, each once, dense first. Raises `PruneError` for an unknown name, or if there are none."""
    named = [(name, _needs(name)) for name in _listed(methods)]
    read = [str(read_pattern(text)) for text in _listed(patterns)]
    cells = [
        RunKey(name, pattern, None if needs == "nothing" else seed)
        for seed in map(_seed, seeds)
        for pattern in read
        for name, needs in named
    ]
    if not cells:
        raise PruneError("a sweep needs at least one method, one pattern and one seed")
    return list(dict.fromkeys([RunKey(DENSE, "", None), *cells]))


def _listed(names: Iterable[str]) -> list[str]:
    """A name alone is a list of one."""
    return [names] if isinstance(names, str) else list(names)


def _seed(seed: int) -> int:
    found = check_seed(seed)
    if found < 0:
        raise PruneError(f"seed {found} is negative: use 0 or more")
    return found


def _needs(name: str) -> str:
    try:
        return "tokens" if name in RECIPES else get_method(name).needs
    except PruneError as error:
        raise PruneError(f"{error}; or a recipe: {', '.join(RECIPES)}") from None


class _SweepRunner:
    """The model, a copy of its parameters, and the texts it is measured on."""

    def __init__(self, model: "PreTrainedModel", tests: dict[str, Tensor], metadata: dict, batch_size: int | None):
        self.model, self.tests, self.metadata, self.batch_size = model, tests, metadata, batch_size
        self.dense_weights = [(tensor, tensor.detach().clone()) for _, tensor in _tensors(model)]

    def run(self, cell: RunKey, calib: Tensor | None, dense: dict | None) -> dict[str, Any]:
        """Measure one cell and leave the model dense. dense: the run of the dense model, once there is one."""
        report, processor, wall = None, time.process_time(), time.perf_counter()
        try:
            if cell.method != DENSE:
                method, recipe = (None, cell.method) if cell.method in RECIPES else (cell.method, None)
                report = prune(self.model, calib, method, cell.pattern, recipe=recipe, batch_size=self.batch_size)
            seconds = {"processor": time.process_time() - processor, "wall": time.perf_counter() - wall}
            processor = time.process_time()
            reached = _rounded({text: perplexity(self.model, tokens) for text, tokens in self.tests.items()})
            seconds["evaluation"] = time.process_time() - processor
            weights = [layer.weight for layer in find_layers(self.model)]
            zeros = 1 - sum(int(W.count_nonzero()) for W in weights) / sum(W.numel() for W in weights)
        finally:
            self._reset()
        before = dense["perplexity"] if dense else reached
        errors = [row.error for row in report.layers if row.error is not None] if report else []
        return {
            **cell._asdict(),
            "perplexity": reached,
            "dense": before,
            "relative": _rounded({text: value / before[text] for text, value in reached.items()}),
            "zeros": float(f"{zeros:.6g}"),
            "error": float(f"{statistics.median(errors):.6g}") if errors else None,
            "notes": [*report.notes, *(f"{row.name}: {row.note}" for row in report.layers if row.note)]
            if report
            else [],
            "seconds": _rounded(seconds),
            "threads": torch.get_num_threads(),
            **self.metadata,
            "calibration_sha256": None if calib is None else fingerprint(calib),
            "versions": versions(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    @torch.no_grad()
    def _reset(self) -> None:
        for tensor, copy in self.dense_weights:
            tensor.copy_(copy)
        torch.clear_autocast_cache()  # a caller's autocast may remember the pruned weights


def _tensors(model: "PreTrainedModel") -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _hash(model: "PreTrainedModel") -> str:
    """A sha256 over the names and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in _tensors(model):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.6g}") for key, value in values.items()}


def _sentence(run: dict) -> str:
    who = " ".join([run["method"], run["pattern"], *([] if run["seed"] is None else [f"seed {run['seed']}"])]).strip()
    if "failed" in run:
        return f"{who}: failed, {run['failed']}"
    found = ", ".join(
        f"{text} {value:,.2f} ({run['relative'][text]:.3g}x)" for text, value in run["perplexity"].items()
    )
    return f"{who}: {found}; pruned in {run['seconds']['wall']:.0f} s"
