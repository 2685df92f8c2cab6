"""shrink(): a model with fewer neurons, heads, blocks or channels, which plain transformers loads. Chapters 13 to 15.

Several kinds go in one run, from the coarse to the fine: blocks, heads, neurons, channels, each chosen on what is left
of the model by then. Whatever is removed, the result is the model that its new configuration describes. Repair comes in
two steps: each removal is followed by a regression of its own, and at the end, if asked for, block after block is
trained towards the dense model once.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import ordinary_tensors
from minprune.data.tokens import fingerprint
from minprune.errors import PruneError
from minprune.methods import METHODS
from minprune.methods.damping import check_damp
from minprune.models.causality import check_causal, evaluating
from minprune.models.dtypes import check_dtypes
from minprune.models.layers import block_layers, check_windows, decoder_blocks
from minprune.output.report import Report
from minprune.pipeline.plan import check_model
from minprune.pipeline.ranks import ALONE, Ranks
from minprune.pipeline.reconstruction import Reconstruction
from minprune.structured.cut import Cut, apply_cut, check_cut, check_described, empty_model, modes_by_name
from minprune.structured.depth import changed_by_number, choose_blocks, repair_cuts
from minprune.structured.progress import Progress
from minprune.structured.removals import REPAIRS, Removal, removals
from minprune.structured.repair import copied, reconstruct
from minprune.structured.slicing import rotated, slice_stream
from minprune.structured.width import Width

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECONSTRUCTION = Reconstruction(lr=0.01)  # at prune's 0.03 two of the first three blocks of SmolLM2 were put back
_FEW = 0.01  # of the weights: a matrix may hold a zero by chance
_OF_PRUNE = ("batch_size", "sequential", "precision", "progress")


@checked("model", "calib")
@ordinary_tensors()
def shrink(
    model: "PreTrainedModel",
    calib: Tensor | None,
    remove: str | Removal | Sequence[str | Removal],
    method: str | None = None,
    repair: str = "refit",
    **options: Any,
) -> Report:
    """Remove neurons, attention heads, whole blocks or channels of a Hugging Face causal LM, in place.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model. Its configuration is adapted.
    calib : Tensor (windows, length), int64, or None
        Token ids. None is allowed where nothing has to be known of the inputs.
    remove : str or Removal, or a list of them
        "neurons:25%" of every block's MLP; "heads:1/3" of the query heads, as many of every key and value head's;
        "groups:1/3" of the key and value heads, with their query heads; "blocks:4", whole decoder blocks;
        "hidden:25%" of the channels between blocks.
    method : str, optional
        How to choose. Neurons, heads and groups: "obs" (default), "obd" (Wanda's scores squared), "wanda",
        "activation", "flap", "magnitude", "l2", "taylor" or "fisher". Blocks: "influence" (default), "attention",
        "angle", "taylor", "loss" or "greedy". Channels: "slicegpt" (default), "outputs" or "channels". A name that
        some of the removals know is meant for them.
    repair : {"refit", "none", "bias", "reconstruct"}, default "refit"
        "refit" solves by least squares for the kept inputs of each pruned matrix, and for the last matrix before each
        cut; "bias" has a bias say the means of missing inputs; "reconstruct" is "refit", and at the end each block is
        trained to give what the dense model has there; "none" leaves all as it is.
    **options
        `damp` of least squares; batch_size, sequential, precision and progress as for `minprune.prune`;
        `reconstruction`, a `Reconstruction`, says how blocks are trained: by default as for `prune`, but at a rate of
        0.01.

    Returns
    -------
    Report
        A row for each matrix that lost inputs. `Report.sparsity` is the share of their columns that went.

    Raises
    ------
    PruneError
        For an unknown removal, method or option, a choice or repair that needs calibration and has none, and if no
        configuration of the model's family describes the result, or this one the model: what else is in it, such as a
        module of another class, would be lost. Hooks stay, and are on the smaller model's modules.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2))
    >>> report = mp.shrink(model, torch.randint(50, (4, 8)), "neurons:25%")
    >>> model.config.intermediate_size, report.sparsity
    (24, 0.25)
    """
    check_model(model)
    if repair not in REPAIRS:
        raise PruneError(f"unknown repair {repair!r}: choose one of {', '.join(REPAIRS)}")
    return run_removals(model, calib, removals(remove, method), repair, **options)


def run_removals(
    model: "PreTrainedModel",
    calib: Tensor | None,
    plan: list[tuple[Removal, str]],
    repair: str,
    reconstruction: Reconstruction = RECONSTRUCTION,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
    **options: Any,
) -> Report:
    """The removals of a plan, in place, and the training of blocks at the end; see `shrink`.

    progress: what an earlier run has finished, and where it is noted what this one has. ranks: the processes that do
    this together, each with a copy of the model and a part of the windows.
    """
    check_options(options)
    check_plan(model, calib, plan, repair)
    if repair == "reconstruct" and calib is None:
        raise PruneError("blocks are reconstructed on calibration tokens: pass calib")
    if calib is not None and len(calib) < ranks.size:
        raise PruneError(f"{len(calib)} windows are too few for {ranks.size} processes: each needs one")
    start, zeros = time.perf_counter(), _zeros(model)
    dense = copied(model) if repair == "reconstruct" else None
    kept: list[int] = list(range(len(decoder_blocks(model)[1])))
    with modes_by_name(model, lambda: kept):
        basis, reports, finished = None, [], 0
        if progress and progress.removed:
            progress.restore(model)
            kept, basis, reports, finished = progress.kept, progress.basis, list(progress.reports), progress.removed
        ranks.gather(None)  # all have read what is there before the first goes on to write
        writes = progress if ranks.first else None
        for one, chosen in plan[finished:]:
            report, left, axes = remove_one(model, calib, one, chosen, repair, ranks, **options)
            kept, basis = left or kept, axes if axes is not None else basis
            reports.append(report)
            if writes:
                writes.after_removal(model, kept, basis, report)
        report = merged(reports, plan)
        if (remain := _zeros(model)) < zeros - _FEW:
            report.notes.append(
                f"{zeros:.1%} of the blocks' weights were zero, {remain:.1%} are: matrices that are solved anew or "
                "rotated have no zeros, so prune last"
            )
        if dense is not None and calib is not None:
            note = partial(writes.after_block, model) if writes else None
            done = progress.errors if progress else {}
            with evaluating(model), evaluating(dense):
                report.reconstruction = reconstruct(
                    model, dense, calib, kept, reconstruction, basis, done, after=note, ranks=ranks
                )
    report.notes += [f"by {ranks.size} processes"] if ranks.size > 1 else []
    report.seconds["total"] = time.perf_counter() - start
    return report


def _zeros(model: "PreTrainedModel") -> float:
    """The share of zeros among the weights of the blocks' matrices."""
    weights = [layer.weight for layer in block_layers(model)]
    return 1 - sum(int(W.count_nonzero()) for W in weights) / sum(W.numel() for W in weights)


def check_options(options: dict[str, Any]) -> None:
    """Raise `PruneError` for an option that no removal has, or that cannot be what it is."""
    least_squares = METHODS["obs"]
    known = [*_OF_PRUNE, *(name for name in least_squares.options if name != "keep")]
    if unknown := [name for name in options if name not in known]:
        raise PruneError(f"shrink does not know the option {unknown[0]!r}: its options are {', '.join(known)}")
    least_squares.check_values(options)
    check_damp(options.get("damp", 0.0))


def check_plan(model: "PreTrainedModel", calib: Tensor | None, plan: list[tuple[Removal, str]], repair: str) -> None:
    """Raise `PruneError` if one of the removals cannot be made, or if no configuration says what all of them leave."""
    every, asked = Cut(), list[Width]()
    check_described(model)
    check_dtypes(model)
    if calib is not None:
        check_windows(model, calib)
    for one, chosen in plan:
        if one.what in ("blocks", "hidden") or chosen in ("taylor", "fisher"):
            if calib is None:
                raise PruneError(f"choosing {one.what} needs calibration tokens: pass calib")
            check_causal(model, calib.shape[1])
        if one.what == "blocks":
            depth = len(decoder_blocks(model)[1])
            every.blocks = list(range(depth - one.of(depth)))
        elif one.what == "hidden":
            width = model.config.get_text_config().hidden_size
            first = torch.eye(width, width - one.of(width), dtype=torch.float64, device=model.device)
            narrower = rotated(model, first)
            check_cut(model, narrower)
            empty_model(model, Cut({**every.config, "hidden_size": first.shape[1]}))
        else:
            width = Width(model, one.what, one.of)
            found = width.example(repair)
            if overlap := set(found.tensors) & set(every.tensors):
                raise PruneError(f"{min(overlap)} would be cut twice: remove heads or groups, not both")
            every.config |= found.config
            every.tensors |= found.tensors
            every.values |= found.values
            asked.append(width)
    if every.config or every.blocks:
        check_cut(model, every)
    for width in asked:
        width.check(model, calib)


def remove_one(
    model: "PreTrainedModel",
    calib: Tensor | None,
    one: Removal,
    how: str,
    repair: str,
    ranks: Ranks = ALONE,
    **options: Any,
) -> tuple[Report, list[int] | None, Tensor | None]:
    """Make one removal in place. Returns its report, which blocks stayed if it was of blocks, and the new basis if not.

    repair: as for `shrink`; "reconstruct" is "refit" here. ranks: as for `run_removals`.
    """
    repair = "refit" if repair == "reconstruct" else repair
    if one.what == "blocks" and calib is not None:
        report, kept = _remove_blocks(model, calib, one, how, repair, options.get("damp", 0.01), ranks)
        return report, kept, None
    if one.what == "hidden" and calib is not None:
        report, basis = _remove_channels(model, calib, one, how, ranks)
        return report, None, basis
    width = Width(model, one.what, one.of)
    report = width.prune(model, calib, how, repair, ranks, **options)
    apply_cut(model, width.cut())
    report.pattern = str(one)
    return report, None, None


def merged(reports: list[Report], plan: list[tuple[Removal, str]]) -> Report:
    """One report of several removals: all rows and notes, and of each how it was chosen."""
    whole = next((report for report in reports if report.calibration), reports[0])
    names = list(dict.fromkeys(how for _, how in plan))
    found = Report("+".join(names), " ".join(str(one) for one, _ in plan), whole.options, whole.calibration)
    for report in reports:
        found.layers += report.layers
        found.notes += report.notes
        for key, value in report.seconds.items():
            found.seconds[key] = found.seconds.get(key, 0.0) + value
    return found


def _remove_blocks(
    model, calib: Tensor, one: Removal, how: str, repair: str, damp: float, ranks: Ranks
) -> tuple[Report, list[int]]:
    depth = len(decoder_blocks(model)[1])
    gone = one.of(depth)
    with evaluating(model):
        kept = choose_blocks(model, calib, gone, how, ranks)
        check_cut(model, Cut(blocks=kept))
        others = changed_by_number(model, calib[:1, :64], kept)
        left = repair_cuts(model, calib, kept, damp, ranks) if repair == "refit" else []
    apply_cut(model, Cut(blocks=kept))
    notes = [f"blocks {', '.join(str(block) for block in range(depth) if block not in kept)} of {depth} removed"]
    if others:
        notes.append(
            f"block {', '.join(map(str, others))} computes something else under its new number, which counts in this "
            "family: measure what is left, or remove the last blocks"
        )
    if left:
        notes.append(
            f"block {', '.join(map(str, left))} before a cut stays as it was: its last matrix cannot make up for it"
        )
    return Report(how, f"blocks:{gone}", {}, _describe(calib), notes=notes), kept


def _remove_channels(model, calib: Tensor, one: Removal, how: str, ranks: Ranks) -> tuple[Report, Tensor]:
    width = model.config.get_text_config().hidden_size
    before = model.num_parameters()
    with evaluating(model):
        basis = slice_stream(model, calib, width - one.of(width), how, ranks)
    note = (
        f"{width - basis.shape[1]} of {width} channels removed, and {1 - model.num_parameters() / before:.1%} of the "
    )
    return Report(
        how, str(one), {}, _describe(calib), notes=[note + "parameters of what they were removed from"]
    ), basis


def _describe(calib: Tensor) -> dict:
    return {"windows": len(calib), "length": calib.shape[1], "sha256": fingerprint(calib)}
