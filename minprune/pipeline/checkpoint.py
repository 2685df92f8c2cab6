"""prune_checkpoint(): from disk to disk, block by block, for models larger than memory. Chapters 08 and 22.

Load a block's tensors, prune it, write them to their places in the output's files, note that it is done, free it. The
calibration windows wait at the block boundary as hidden states. So memory holds one block whatever the depth, a run
that was stopped goes on with the first unfinished block, and the files are the output when all of it is in them.
Pruning itself is that of `prune`: the same checks (`PruningPlan`), the same pruning (`LayerPruner`), the same order of
blocks (`BlockwiseForward`).

Where blocks hand each other more than hidden states, none are kept: a run that goes on begins with the first block
again, and reads the finished blocks back.
"""

import logging
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minprune.allocation.allocate import Allocation, as_made_by, rule_of
from minprune.arguments import checked
from minprune.arithmetic import ordinary_tensors
from minprune.data.tokens import fingerprint
from minprune.errors import PruneError, check_kind
from minprune.methods import Method
from minprune.models.hooks import eager_experts
from minprune.models.layers import Layer, check_windows
from minprune.models.modes import eval_mode
from minprune.models.notes import layer_notes
from minprune.output.model_files import check_space, rehearse, write_errors, write_model
from minprune.output.page import write_page
from minprune.output.record import RunRecord, read_record
from minprune.output.report import LayerRow, Report, versions
from minprune.output.shards import SHARD
from minprune.output.target import PAGE, check_target, partial_of
from minprune.patterns import Pattern
from minprune.pipeline.disk_run import DiskRun
from minprune.pipeline.foresee import announce
from minprune.pipeline.journal import Follower, Journal, table_of, unfinished
from minprune.pipeline.layer_pruner import RunLog
from minprune.pipeline.plan import PruningPlan, make_plan
from minprune.pipeline.ranks import Ranks
from minprune.pipeline.recipes import Recipe, resolve_recipe
from minprune.pipeline.reconstruction import resolved
from minprune.pipeline.shared_pruner import pruner_of, share
from minprune.pipeline.sources import Checkpoint
from minprune.pipeline.streaming import open_checkpoint

_log = logging.getLogger(__name__)


@checked("calib", "method", "include", "exclude", "allocation", "batch_size", "max_shard_size")
@ordinary_tensors()
@torch.no_grad()
def prune_checkpoint(
    src: str | Path,
    dst: str | Path,
    calib: Tensor | None,
    method: str | Method | None = None,
    pattern: str | Pattern = "50%",
    *,
    recipe: str | Recipe | None = None,
    allocation: Allocation = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    batch_size: int | None = None,
    sequential: bool = True,
    precision: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    progress: bool = False,
    test: Tensor | None = None,
    texts: Mapping[str, Mapping[str, Any]] | None = None,
    command: Sequence[str] = (),
    verify: bool = False,
    max_shard_size: int = SHARD,
    **options: Any,
) -> Report:
    """Prune a model from disk to disk, block by block; see `minprune.prune`.

    Where `torch.distributed` is initialised, as by `torchrun -m minprune prune`, all of its processes call this with
    the same arguments and share the work; see `minprune.pipeline.shared_pruner`. The first one writes.

    Parameters
    ----------
    src : str or Path
        The folder or the Hugging Face id of a model.
    dst : str or Path
        The folder to make. It appears when it is complete.
    calib, method, pattern, recipe, allocation, include, exclude, batch_size, sequential, precision, progress
        As for `minprune.prune`.
    resume : bool, default False
        Go on where an earlier run with the same recipe was stopped. Its folder is `DST.partial`. The tensors are
        those of an uninterrupted run, bit for bit.
    overwrite : bool, default False
        Whether to replace an earlier output.
    dtype, device
        As for `load_model`.
    test : Tensor (windows, length), int64, optional
        Tokens on which the perplexity is measured before and after, without holding the model.
    texts : mapping, optional
        Where the tokens come from, for minprune.json: {"calibration": {...}, "test": {...}}, see
        `minprune.evaluation.protocol.windows_of`.
    command : sequence of str, default ()
        The words of a command line that makes the same, for the record.
    verify : bool, default False
        When a run goes on, know the model by all bytes of its files, which are read once more for that, and not by
        their headers, sizes and times.
    max_shard_size : int, default 2_000_000_000
        Bytes of tensors in one file of the output, as for `save_pretrained`: a smaller model is one
        `model.safetensors`, a larger one several files with an index.
    **options
        The method's own, such as damp=0.01.

    Returns
    -------
    Report
        With a row for each layer.

    Raises
    ------
    PruneError
        If something cannot be done. Blocks that are finished by then are kept.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = {"vocab_size": 50_000, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    >>> _, tokenizer = mp.load_model("smollm2")
    >>> LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2)).save_pretrained("dense")
    >>> files = tokenizer.save_pretrained("dense")
    >>> mp.prune_checkpoint("dense", "sparse", torch.randint(50, (4, 8)), "wanda", "2:4").sparsity
    0.5
    """
    start, include, exclude = time.perf_counter(), _listed(include), _listed(exclude) or []
    target, ranks = check_target(dst, src), Ranks.current()
    if check_kind("max_shard_size", max_shard_size, int) < 1:
        raise PruneError(f"max_shard_size {max_shard_size} is not positive: it counts the bytes of a file")
    opened = unfinished(dst, resume, overwrite) if ranks.first else nullcontext(Follower(partial_of(target)))
    with ranks.until_failure(), opened as journal, ExitStack() as shown:
        chosen = resolve_recipe(recipe, calib, method, allocation, options, precision)
        rule = rule_of(chosen.allocation)
        if resume and rule and (table := table_of(dst, rule)):
            chosen = replace(chosen, allocation=as_made_by(rule, table))
        source = open_checkpoint(src, dtype, device)
        plan = make_plan(source.model, calib, pattern, chosen, include, exclude, batch_size, precision)
        _check_apart(source, plan.layers)
        if test is not None:
            check_windows(source.model, test)
            if test.shape[1] < 2:
                raise PruneError("test windows of 1 token predict nothing: use length 2 or more")
        how, skipped = resolved(chosen.reconstruction, source.model, plan) if chosen.reconstruction else (None, "")
        facts = {
            "method": plan.name,
            "pattern": plan.pattern,
            "options": plan.options,
            "reconstruction": how and {key: value for key, value in asdict(how).items() if key != "bfloat16"},
            "products in bfloat16": bool(how.bfloat16 if how else plan.bfloat16),
            "layers": {layer.name: str(plan.patterns[layer]) for layer in plan.layers},
            "allocation": plan.allocation or None,
            "sequential": sequential,
            "dtype": str(source.model.dtype).removeprefix("torch."),
            "device": str(source.device),
            "calibration": None if calib is None else fingerprint(calib),
            "test": None if test is None else fingerprint(test),
            "model": source.identity(verify),
            "shard": max_shard_size,
            "versions": versions(),
        }
        names = [source.names(block) for block in range(len(source.blocks))]
        journal.begin(facts, names, source.shards(journal.folder, max_shard_size))
        ranks.check_alike({**facts, "device": source.device.type})
        journal.lines = ranks.of_first(lambda: journal.lines)
        if batch_size is None and journal.lines:  # another number would round differently
            plan = plan.with_batch_size(next(iter(journal.lines.values()))["batch_size"])
        said, before = texts or {}, read_record(source.folder).as_dict()

        def described(report: Report, perplexities: dict[str, float]) -> RunRecord:
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
            return RunRecord.of(
                report,
                model=str(src),
                dtype=facts["dtype"],
                device=device,
                include=include,
                exclude=exclude,
                sequential=sequential,
                command=list(command),
                earlier=before,
            )

        whole = plan
        plan = share(ranks, plan, how.batch_size if how and how.epochs else None)
        test = test if ranks.first else None
        log = RunLog(plan, layer_notes(source.model, plan.layers), progress and ranks.first)
        shown.enter_context(log.bar)  # else it would stay on the terminal when a check fails
        if ranks.first:
            trial = described(_preview(plan), {"before": 1.0, "after": 1.0})
            ahead = 2 * rehearse(
                journal.folder, source.model, source.tokenizer, trial, write_page, source.folder
            )  # the journal says it again
            ahead += _hidden_bytes(source.model, calib, test, how is not None)
            ahead += sum(tensor.nbytes for tensor in source.left.values())
            ahead += source.bytes_ahead()
            check_space(journal.folder, source.model, journal.weights.occupied() - ahead)
            log.bar.clear()  # its line is free for what is said
            seen = progress and sys.stderr.isatty()  # a person should know, a log need not
            announce(source, whole, test, ranks.size, how is not None, seen)
        if not source.streamed and ranks.first:
            _log.warning(source.notes[0])
        with eager_experts(source.model, plan.layers), eval_mode(source.model):
            guide = (how, skipped) if how else None
            job = DiskRun(source, pruner_of(ranks, plan, log), journal, test, sequential, guide, start)
            perplexities = job.all_blocks()
            job.compare()
        report = log.report(plan, job.seconds())
        report.notes += source.notes + job.notes
        report.notes += [f"by {ranks.size} processes"] if ranks.size > 1 else []
        if ranks.first:
            _finish(source, journal, described(report, perplexities), max_shard_size)
        ranks.gather(None)  # none of them says that it is ready before the output is
    return report


def _check_apart(source: Checkpoint, layers: list[Layer]) -> None:
    """Raise `PruneError` for a layer in several blocks: its dense weights would be gone before the last of them."""
    for layer in layers:
        if len({name.removeprefix(f"{source.prefix}.").partition(".")[0] for name in layer.names}) > 1:
            raise PruneError(
                f"{layer.name} is {layer.aliases[-1]}, too, and blocks that share weights cannot be pruned from disk "
                "to disk: prune the loaded model with prune, or exclude these layers"
            )


def _preview(plan: PruningPlan) -> Report:
    """The report as it will be, before there are any numbers."""
    rows = [
        LayerRow(layer.name, (layer.weight.shape[0], layer.weight.shape[1]), 0.0, 0.5, 0.0) for layer in plan.layers
    ]
    options, allocation = dict(plan.options), dict(plan.allocation)
    return Report(plan.name, plan.pattern, options, plan.calibration, rows, recipe=plan.recipe, allocation=allocation)


def _hidden_bytes(model: Any, calib: Tensor | None, test: Tensor | None, guided: bool) -> int:
    """How much disk the hidden states at a block boundary take: two files while one replaces the other."""
    tokens = 0 if calib is None else calib.numel() * (2 if guided else 1)
    tokens += 0 if test is None else 2 * test.numel()
    return 2 * tokens * model.get_input_embeddings().weight.shape[-1] * model.dtype.itemsize


def _finish(source: Checkpoint, journal: Journal, record: RunRecord, limit: int) -> None:
    """Write all that is in no block; minprune.json comes last."""
    folder, written = journal.folder, None
    with write_errors(folder):
        if source.streamed:
            journal.weights.write(source.tensors(None))
            journal.weights.finish()
            written = journal.weights.file_of
        write_page(folder / PAGE, record)
    write_model(folder, source.model, source.tokenizer, record, written, source.folder, limit)


def _listed(globs: Iterable[str] | None) -> list[str] | None:
    return [globs] if isinstance(globs, str) else None if globs is None else list(globs)
