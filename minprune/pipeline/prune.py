"""prune(): one pass of the calibration data through the model. Chapter 08.

All windows go through the model in one call. Right before a layer is applied, its true input is at hand: its
statistics are taken, the layer is pruned on the spot, and the same pass goes on with the pruned weight. So every
layer is calibrated on what the pruned layers before it really produce, nothing runs twice, and no block is called
by hand. When the windows do not fit at once, the staged form does the same, block by block and group by group.

Left out: choosing a sparsity per layer (allocate.py) and models that are larger than memory (checkpoint.py).
"""

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from minprune.allocation.allocate import Allocation, allocate, describe_allocation
from minprune.arithmetic import clock, exact_arithmetic
from minprune.data.tokens import fingerprint
from minprune.errors import PruneError
from minprune.methods import Method, get_method
from minprune.models.causality import check_causal
from minprune.models.checks import check_result, check_weights, count_zeros, layer_notes, zeros_in_use
from minprune.models.hooks import InputCallback, capture_inputs, check_compiled, eager_experts, once, run_to_head
from minprune.models.layers import Layer, backbone, check_windows, find_layers
from minprune.models.memory import windows_at_once
from minprune.models.passes import check_forward
from minprune.output.report import BEFORE_RECONSTRUCTION, FEW_AT_ONCE, LayerRow, Report
from minprune.patterns import Pattern
from minprune.patterns import pattern as read_pattern
from minprune.pipeline.recipes import Recipe, resolve_recipe
from minprune.pipeline.reconstruction import run_reconstructed
from minprune.pipeline.staged import run_staged
from minprune.statistics import Statistics, layer_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNSEEN_EXPERT = "received no token: left dense"
_UNSEEN_MODULE = "its module was not called, by no token or because its weight is used without it: left dense"


@torch.inference_mode(False)  # in which the driver could not see that a tensor was changed in place
@torch.no_grad()
def prune(
    model: "PreTrainedModel",
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
    progress: bool = False,
    **options,
) -> Report:
    """Prune the linear layers of a Hugging Face causal LM in place and report on each.

    calib: (windows, length) int64 token ids; None is allowed for a method that needs no data. method: a name, or a
    `Method` of your own; None means the recipe's, or "sparsegpt". pattern: see `minprune.pattern`. recipe: "best" or a
    `Recipe`, which brings a method with its options, an allocation and a reconstruction of the blocks; what is given
    beside it takes the place of its own. allocation: see `minprune.allocation.allocate`. include, exclude: globs over
    layer names; embeddings, `lm_head` and the routers of a mixture stay dense unless included. batch_size: windows per
    forward pass; it changes time and memory, never the result. None: all, or as many as half of the free memory takes;
    the report says how many. sequential=False: the published loop in two passes, in which all layers of a block are
    calibrated with the block still dense. progress: a bar on stderr. options: the method's own, such as damp=0.01.
    Raises `PruneError` (a `ValueError`) naming the layer if something cannot be done; what was pruned until then
    stays pruned.
    """
    _check_model(model)
    start, was_training = time.perf_counter(), model.training
    chosen = resolve_recipe(recipe, calib, method, allocation, options)
    run = Run(model, calib, chosen, pattern, include, exclude, batch_size, progress)
    with run.bar, eager_experts(model, run.layers):
        check_weights(model, run.layers)
        if run.calib is not None:
            check_causal(model, run.calib.shape[1])
        model.eval()
        try:
            if run.calib is None:
                for layer in run.layers:
                    run.prune(layer, None)
            elif chosen.reconstruction:
                run_reconstructed(model, run, chosen.reconstruction, whole_block=not sequential)
            elif len(run.batches) == 1 and sequential:
                _one_pass(model, run)
            else:
                run_staged(model, run.batches, run, whole_block=not sequential)
        finally:
            model.train(was_training)
        run.mark_uncalibrated(run.layers)
        run.compare(zeros_in_use(model, run.layers))
    return run.report(time.perf_counter() - start)


class Run:
    """One call of `prune` or `prune_checkpoint`: checks its arguments, prunes a layer it is given, keeps the books.

    layers: what to prune. calib: the tokens on the model's device, or None; batches: the same, split. rows: a row per
    finished layer. Raises `PruneError` for what cannot be done; the layers' weights need not be at hand for that.
    """

    def __init__(self, model, calib, recipe: Recipe, pattern, include, exclude, batch_size, progress: bool):
        check_forward(model)
        self.method, options = get_method(recipe.method), dict(recipe.options)
        method = recipe.method if isinstance(recipe.method, str) else self.method.function.__name__
        self.method.check_options(method, options)
        self.layers = find_layers(model, include, exclude)
        self.patterns = allocate(self.layers, read_pattern(pattern), recipe.allocation, model, calib)
        for layer in self.layers:
            _check_pattern(layer, self.patterns[layer])
        self.needs, self.options = self.method.needs, options
        if calib is None and self.needs != "nothing":
            raise PruneError(f"method {method!r} needs calibration tokens: pass calib")
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise PruneError(f"batch size {batch_size!r} is not a positive whole number: it counts windows")
        self.calib, self.chosen = None, batch_size is None
        self.batches: tuple[Tensor, ...] = ()
        if calib is not None:
            if not isinstance(calib, Tensor) or calib.is_meta or calib.layout != torch.strided:
                what = f"{calib.layout} on {calib.device}" if isinstance(calib, Tensor) else type(calib).__name__
                raise PruneError(f"calib is a {what}: it must be a tensor of ids, such as load_tokens gives")
            check_windows(model, calib)
            self.calib = calib.to(model.get_input_embeddings().weight.device)
            self.split(batch_size or windows_at_once(model, self.layers, self.calib))
        self.name, self.pattern, self.recipe = method, str(read_pattern(pattern)), recipe.name
        self.allocation = describe_allocation(recipe.allocation, self.patterns)
        self.rows: dict[Layer, LayerRow] = {}
        self.statistics_seconds = self.solve_seconds = 0.0
        self.reconstruction: dict = {}
        self.notes = layer_notes(model, self.layers)
        self.bar = tqdm(
            total=len(self.layers),
            desc=f"{method} {pattern}",
            unit="layer",
            disable=None if progress else True,
            leave=False,
        )

    def split(self, batch_size: int | None) -> None:
        """Let so many windows go through the model at once; None if there are none."""
        if self.calib is not None and batch_size:
            self.batches = self.calib.split(batch_size)

    def layers_under(self, prefix: str) -> list[Layer]:
        """The layers with a name that begins with prefix, such as "model.layers.3."."""
        return [layer for layer in self.layers if any(name.startswith(prefix) for name in layer.names)]

    @exact_arithmetic()
    def observe(self, X: Tensor, into: Statistics | None = None) -> Statistics:
        """Take the statistics of X (..., d_in), into what is there or anew.

        The Gram matrix is always among them: a method may do without, but the layer error is that of all tokens.
        """
        start = clock(X.device)
        dtype = torch.promote_types(X.dtype, torch.float32)  # float64 for a float64 model
        stats = (into or Statistics(X.shape[-1], dtype=dtype, device=X.device)).update(X)
        self.statistics_seconds += clock(X.device) - start
        return stats

    @exact_arithmetic()
    def prune(self, layer: Layer, observed: Statistics | None) -> None:
        """Prune one layer in place, given its inputs, and add its row.

        This is called from within the forward pass, whose number types are not those of a solve.
        """
        W, notes, stats = layer.weight, [], observed
        start = clock(W.device)
        energy = None if stats is None else float(stats.sq_norm.sum())
        if energy is not None and not energy < float("inf"):
            raise PruneError(f"{layer.name}: its inputs hold NaN or infinity: check the model and its dtype")
        if stats and energy == 0:  # whatever is pruned, the output stays zero, so there is no error to measure either
            observed, stats = None, stats.of_equal_inputs()
            if self.needs != "nothing":
                notes = ["all its inputs were zero: pruned as if they were equally large"]
        try:
            result = self.method(W, stats, self.patterns[layer], **self.options)
            check_result(result.weight, W, self.patterns[layer], self.options.get("block_size", 128))
        except PruneError as reason:
            raise PruneError(f"{layer.name}: {reason}") from reason
        seconds = clock(W.device) - start
        self.solve_seconds += seconds
        error = layer_error(W, result.weight, observed.gram) if observed else None
        if error is not None and not error < float("inf"):
            raise PruneError(f"{layer.name}: its outputs are too large for {W.dtype}: check the model and its dtype")
        W.copy_(result.weight)
        torch.clear_autocast_cache()  # a caller's autocast may remember the dense weight in its own type
        note = "; ".join(note for note in (*notes, result.note) if note)
        self.record(
            layer, LayerRow(layer.name, (W.shape[0], W.shape[1]), count_zeros(W) / W.numel(), error, seconds, note)
        )

    def prune_on_forward(self) -> InputCallback:
        """A receiver that prunes each layer when its input arrives; layers that read one tensor share statistics."""
        last: tuple[Tensor, int, Statistics] | None = None  # the tensor itself: its address may be used again after it

        def receive(layer: Layer, X: Tensor) -> None:
            nonlocal last
            if layer in self.rows or not X.numel():
                return
            if last is None or X is not last[0] or X._version != last[1]:
                last = X, X._version, self.observe(X)
            self.prune(layer, last[2])

        return receive

    def mark_uncalibrated(self, layers: list[Layer]) -> None:
        """Add the rows of those layers that nothing has reached."""
        for layer in layers:
            if layer not in self.rows:
                W, note = layer.weight, _UNSEEN_MODULE if layer.expert_index is None else _UNSEEN_EXPERT
                self.record(
                    layer, LayerRow(layer.name, (W.shape[0], W.shape[1]), count_zeros(W) / W.numel(), None, 0.0, note)
                )

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

    def report(self, seconds: float) -> Report:
        """The report on all layers, after so many seconds in total."""
        spent = {"total": seconds, "statistics": self.statistics_seconds, "solve": self.solve_seconds}
        rows = [self.rows[layer] for layer in self.layers]
        notes = [BEFORE_RECONSTRUCTION] if self.reconstruction.get("errors") else []
        notes += [self.reconstruction["skipped"]] if "skipped" in self.reconstruction else []
        notes += self.notes
        notes += [FEW_AT_ONCE.format(len(self.batches[0]))] if self.chosen and len(self.batches) > 1 else []
        return Report(
            self.name,
            self.pattern,
            self.options,
            _describe(self.calib) if self.calib is not None else {},
            rows,
            spent,
            reconstruction=self.reconstruction,
            notes=notes,
            recipe=self.recipe,
            allocation=self.allocation,
            batch_size=len(self.batches[0]) if self.batches else None,
        )

    def record(self, layer: Layer, row: LayerRow) -> None:
        """The layer is finished, and this is its row."""
        self.rows[layer] = row
        self.bar.update()


def _one_pass(model: "PreTrainedModel", run: Run) -> None:
    with capture_inputs(run.layers, once(run.prune_on_forward())):
        if any(layer.module is model.get_output_embeddings() for layer in run.layers):
            run_to_head(model, run.batches[0])  # all windows, in one pass
        else:
            backbone(model)(input_ids=run.calib, use_cache=False)


def _check_model(model: "PreTrainedModel") -> None:
    from transformers import PreTrainedModel

    kind = type(model).__name__
    check_compiled(model)
    if hasattr(model, "merge_and_unload"):
        raise PruneError(
            f"{kind} has adapters beside its weights, in which zeros would not last: merge_and_unload() first"
        )
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise PruneError(f"{kind} is no Hugging Face causal language model: load it with load_model")
    if model.config.is_encoder_decoder:
        raise PruneError(f"{kind} is an encoder with a decoder, not a causal language model: use one of those")
    if getattr(model.config, "quantization_config", None):
        raise PruneError(f"{kind} is quantised, which minprune cannot prune: use the model that it was made from")


def _check_pattern(layer: Layer, pattern: Pattern) -> None:
    try:
        pattern.check(*layer.weight.shape)
    except PruneError as error:
        raise PruneError(f"{layer.name}: {error}") from None


def _describe(calib: Tensor) -> dict:
    return {"windows": len(calib), "length": calib.shape[1], "sha256": fingerprint(calib)}
