"""prune(): one pass of the calibration data through the model. Chapter 08.

All windows go through the model in one call. Right before a layer is applied, its true input is at hand: its
statistics are taken, the layer is pruned on the spot, and the same pass goes on with the pruned weight. So every
layer is calibrated on what the pruned layers before it really produce, nothing runs twice, and no block is called
by hand. When the windows do not fit at once, the staged form does the same, block by block and group by group.

Left out: choosing a sparsity per layer (allocate.py) and models that are larger than memory (checkpoint.py).
"""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minprune.allocation.allocate import Allocation
from minprune.arguments import checked
from minprune.arithmetic import ordinary_tensors
from minprune.methods import Method
from minprune.models.causality import check_causal
from minprune.models.checks import check_weights, zeros_in_use
from minprune.models.dtypes import check_dtypes
from minprune.models.hooks import capture_inputs, eager_experts, once, run_to_head
from minprune.models.layers import backbone
from minprune.models.modes import eval_mode
from minprune.models.notes import layer_notes
from minprune.models.overlaps import check_apart
from minprune.output.report import Report
from minprune.patterns import Pattern
from minprune.pipeline.layer_pruner import LayerPruner, RunLog
from minprune.pipeline.plan import PruningPlan, check_model, make_plan
from minprune.pipeline.ranks import ALONE, Ranks
from minprune.pipeline.recipes import Recipe, Reconstruction, resolve_recipe
from minprune.pipeline.reconstruction import run_reconstructed
from minprune.pipeline.shared_pruner import pruner_of, share
from minprune.pipeline.staged import run_staged

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@checked("model", "calib", "method", "include", "exclude", "allocation", "batch_size")
@ordinary_tensors()  # of those of inference mode it could not be seen that a tensor was changed in place
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
    precision: str = "auto",
    progress: bool = False,
    **options: Any,
) -> Report:
    """Prune the linear layers of a Hugging Face causal LM in place and report on each.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model.
    calib : Tensor (windows, length), int64, or None
        Calibration tokens, as from `load_tokens`. None is allowed for a method that needs no data.
    method : str, optional
        A name of `METHODS`, or several such as "wanda+sparsegpt". None means the recipe's, or "sparsegpt".
    pattern : str or Pattern, default "50%"
        Which zeros are allowed, see `minprune.pattern`.
    recipe : str or pipeline.recipes.Recipe, optional
        "best" or a `Recipe`. It brings a method with its options, an allocation and a reconstruction of the blocks.
        What is given beside it takes the place of its own.
    allocation : str, mapping or callable, optional
        How sparse each layer is, see `minprune.allocation.allocate`. None: all alike.
    include : str or iterable of str, optional
        Globs over layer names, as for `find_layers`. Embeddings, `lm_head` and the routers of a mixture stay dense
        unless they are included.
    exclude : str or iterable of str, default ()
        Globs of what stays dense.
    batch_size : int, optional
        Windows in one forward pass. It changes time and memory, never the result. None: all, or as many as half of the
        free memory takes; the report says how many.
    sequential : bool, default True
        Whether each layer is calibrated on what the pruned layers before it produce. False is the published loop in two
        passes: all layers of a block are calibrated with the block still dense.
    precision : str, default "auto"
        The type of matrix products in forward passes of a float32 model: "float32", "bfloat16" (faster where the
        hardware knows it), or "auto": float32, but for a recipe or a `torch.autocast` around the call that says
        otherwise. Statistics, solves and weights stay in float32 in any case, and the report says which it was. A
        model in bfloat16 or float16 keeps its type; a CPU that is not made for it widens each product's factors.
    progress : bool, default False
        Whether to show a bar on stderr.
    **options
        The method's own, such as damp=0.01.

    Returns
    -------
    Report
        With a row for each layer.

    Raises
    ------
    PruneError
        Naming the layer, if something cannot be done. What was pruned until then stays pruned.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2))
    >>> report = mp.prune(model, torch.randint(50, (4, 8)), method="wanda", pattern="2:4")
    >>> len(report.layers), report.sparsity
    (14, 0.5)
    """
    check_model(model)
    start = time.perf_counter()
    chosen = resolve_recipe(recipe, calib, method, allocation, options, precision)
    plan = make_plan(model, calib, pattern, chosen, include, exclude, batch_size, precision)
    report = run_in_memory(model, plan, chosen.reconstruction, sequential, progress)
    report.seconds["total"] = time.perf_counter() - start
    return report


@torch.no_grad()
def run_in_memory(
    model: "PreTrainedModel",
    plan: PruningPlan,
    reconstruction: Reconstruction | None = None,
    sequential: bool = True,
    progress: bool = False,
    ranks: Ranks = ALONE,
) -> Report:
    """Prune a model in place by a plan, each of several processes its own copy; see `prune` and `shared_pruner`."""
    start = time.perf_counter()
    plan = share(ranks, plan, reconstruction.batch_size if reconstruction else None)
    log = RunLog(plan, layer_notes(model, plan.layers), progress and ranks.first)
    pruner = pruner_of(ranks, plan, log)
    with log.bar, eager_experts(model, plan.layers):
        check_weights(model, plan.layers)
        check_apart(model, plan.layers)
        if plan.calib is not None:
            check_causal(model, plan.calib.shape[1])
            with plan.products():  # which may not be those that the caller's autocast would take
                check_dtypes(model)
        with eval_mode(model):
            if plan.calib is None:
                for layer in plan.layers:
                    pruner.prune(layer, None)
            elif reconstruction:
                run_reconstructed(model, pruner, reconstruction, whole_block=not sequential)
            elif len(plan.batches) == 1 and sequential and ranks.size == 1:
                _one_pass(model, pruner)
            else:
                run_staged(model, pruner, whole_block=not sequential)
        log.mark_uncalibrated(plan.layers)
        log.compare(zeros_in_use(model, plan.layers))
    return log.report(plan, time.perf_counter() - start)


def _one_pass(model: "PreTrainedModel", pruner: LayerPruner) -> None:
    layers = pruner.plan.layers
    with capture_inputs(layers, once(pruner.prune_on_forward())), pruner.plan.products():
        if any(layer.module is model.get_output_embeddings() for layer in layers):
            run_to_head(model, pruner.plan.batches[0])  # all windows, in one pass
        else:
            backbone(model)(input_ids=pruner.plan.calib, use_cache=False)
