"""One layer of a run: take the statistics of its inputs, prune it in place, write its row. Chapter 08.

`LayerPruner` does the first two, and `RunLog` keeps what is known afterwards.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from minprune.arithmetic import changes_of, clock, exact_arithmetic
from minprune.errors import PruneError
from minprune.models.checks import check_result, count_zeros
from minprune.models.hooks import InputCallback
from minprune.models.layers import Layer
from minprune.output.report import BEFORE_RECONSTRUCTION, FEW_AT_ONCE, LayerRow, Report
from minprune.pipeline.plan import PruningPlan
from minprune.pipeline.ranks import ALONE, Ranks
from minprune.statistics import Statistics, layer_error

_UNSEEN_EXPERT = "received no token: left dense"
_UNSEEN_MODULE = "its module was not called, by no token or because its weight is used without it: left dense"


class RunLog:
    """What a run has done so far. rows: a row for each finished layer. notes: what the numbers do not say.

    statistics_seconds, solve_seconds: where the time went. reconstruction: its settings, seconds and errors, as in a
    `Report`. bar: a progress bar on stderr, to be closed in the end.
    """

    def __init__(self, plan: PruningPlan, notes: Iterable[str] = (), progress: bool = False):
        self.rows: dict[Layer, LayerRow] = {}
        self.notes = list(notes)
        self.statistics_seconds = self.solve_seconds = 0.0
        self.reconstruction: dict[str, Any] = {}
        self.bar = tqdm(
            total=len(plan.layers),
            desc=f"{plan.name} {plan.pattern}",
            unit="layer",
            disable=None if progress else True,
            leave=False,
        )

    def record(self, layer: Layer, row: LayerRow) -> None:
        """The layer is finished, and this is its row."""
        self.rows[layer] = row
        self.bar.update()

    def mark_uncalibrated(self, layers: Iterable[Layer]) -> None:
        """Add the rows of those layers that no input has reached."""
        for layer in layers:
            if layer not in self.rows:
                self.record(layer, row_of(layer, _UNSEEN_MODULE if layer.expert_index is None else _UNSEEN_EXPERT))

    def compare(self, zeros: Mapping[Layer, int]) -> None:
        """Hold the rows of these layers against the zeros that their weights have in the model, or in its file.

        Zeros may have been added since a layer was pruned, by rounding, and are in its row then. Raises `PruneError` if
        some are gone.
        """
        for layer, found in zeros.items():
            row = self.rows[layer]
            size = row.shape[0] * row.shape[1]
            if found < round(row.sparsity * size):
                raise PruneError(
                    f"{layer.name} has {found} zeros now, not the {round(row.sparsity * size)} that it was pruned to: "
                    "something has changed its weights since, so there is no report"
                )
            row.sparsity = found / size

    def report(self, plan: PruningPlan, seconds: float) -> Report:
        """The report on all layers, after so many seconds in total."""
        notes = [BEFORE_RECONSTRUCTION] if self.reconstruction.get("errors") else []
        notes += [self.reconstruction["skipped"]] if "skipped" in self.reconstruction else []
        notes += self.notes
        notes += [FEW_AT_ONCE.format(plan.batch_size)] if plan.from_memory and len(plan.batches) > 1 else []
        return Report(
            plan.name,
            plan.pattern,
            dict(plan.options),
            plan.calibration,
            [self.rows[layer] for layer in plan.layers],
            {"total": seconds, "statistics": self.statistics_seconds, "solve": self.solve_seconds},
            reconstruction=self.reconstruction,
            notes=notes,
            recipe=plan.recipe,
            allocation=dict(plan.allocation),
            batch_size=plan.batch_size,
            precision=self._precision(plan),
        )

    def _precision(self, plan: PruningPlan) -> str | None:
        if plan.calib is None:
            return None
        narrow = self.reconstruction.get("bfloat16")  # None without a reconstruction
        own = plan.layers[0].weight.dtype
        kind = plan.products_in if narrow is None else torch.bfloat16 if narrow else own
        return str(kind).removeprefix("torch.")


class LayerPruner:
    """Prunes the layers of a plan, one at a time, and writes each into the log."""

    ranks: Ranks = ALONE  # the processes that share the calibration windows
    one_pass = True  # whether a layer can be pruned when its input arrives, if all windows are in one batch

    def __init__(self, plan: PruningPlan, log: RunLog):
        self.plan, self.log = plan, log

    @exact_arithmetic()
    def observe(self, X: Tensor, into: Statistics | None = None) -> Statistics:
        """Take the statistics of X (..., d_in), into what is there or anew.

        The Gram matrix is always among them: a method may do without, but the layer error is that of all tokens.
        """
        start = clock(X.device)
        dtype = torch.promote_types(X.dtype, torch.float32)  # float64 for a float64 model
        stats = (into or Statistics(X.shape[-1], dtype=dtype, device=X.device)).update(X)
        self.log.statistics_seconds += clock(X.device) - start
        return stats

    @exact_arithmetic()
    def prune(self, layer: Layer, observed: Statistics | None) -> None:
        """Prune one layer in place, given the statistics of its inputs, and write its row.

        This is called from within the forward pass, whose number types are not those of a solve.
        """
        plan = self.plan
        W, notes, stats = layer.weight, [], observed
        start = clock(W.device)
        energy = None if stats is None else float(stats.sq_norm.sum())
        if energy is not None and not energy < float("inf"):
            raise PruneError(f"{layer.name}: its inputs hold NaN or infinity: check the model and its dtype")
        if stats and energy == 0:  # whatever is pruned, the output stays zero, so there is no error to measure either
            observed, stats = None, stats.of_equal_inputs()
            if plan.method.needs != "nothing":
                notes = ["all its inputs were zero: pruned as if they were equally large"]
        try:
            result = plan.method(W, stats, plan.patterns[layer], **plan.options)
            check_result(result.weight, W, plan.patterns[layer], plan.options.get("block_size", 128))
        except PruneError as reason:
            raise PruneError(f"{layer.name}: {reason}") from reason
        seconds = clock(W.device) - start
        self.log.solve_seconds += seconds
        error = layer_error(W, result.weight, observed.gram) if observed else None
        if observed and error is not None and not (error < float("inf") and _squares(W, observed.gram) < float("inf")):
            raise PruneError(f"{layer.name}: its outputs are too large for {W.dtype}: check the model and its dtype")
        W.copy_(result.weight)
        torch.clear_autocast_cache()  # a caller's autocast may remember the dense weight in its own type
        note = "; ".join(note for note in (*notes, result.note) if note)
        self.log.record(layer, row_of(layer, note, error, seconds))

    def prune_group(self, observed: dict[Layer, Statistics]) -> list[Layer]:
        """Prune layers on what was observed of their inputs; which they were."""
        for layer, stats in observed.items():
            self.prune(layer, stats)
        return list(observed)

    def prune_on_forward(self) -> InputCallback:
        """A receiver that prunes each layer when its input arrives; layers that read one tensor share statistics."""
        last: tuple[Tensor, object, Statistics] | None = None  # the tensor itself: its address may be used again

        def receive(layer: Layer, X: Tensor) -> None:
            nonlocal last
            if layer in self.log.rows or not X.numel():
                return
            if last is None or X is not last[0] or changes_of(X) != last[1]:
                last = X, changes_of(X), self.observe(X)
            self.prune(layer, last[2])

        return receive


def row_of(layer: Layer, note: str = "", error: float | None = None, seconds: float = 0.0) -> LayerRow:
    """The row of a layer as its weights are now."""
    W = layer.weight
    return LayerRow(layer.name, (W.shape[0], W.shape[1]), count_zeros(W) / W.numel(), error, seconds, note)


def _squares(W: Tensor, gram: Tensor) -> float:
    """The sum of all squared outputs if inputs were uncorrelated, in the type of `gram`: what the next norm bears."""
    sizes = torch.linalg.vector_norm(W, dim=0, dtype=gram.dtype)  # (d_in,)
    return float((sizes.square() * gram.diagonal()).sum())
