"""quantize(): the driver of pruning, with rounding in the place of zeroing.

A quantiser is a `Method` like those of pruning: one matrix and the statistics of its inputs in, one matrix out. So the
pass of chapter 08 drives it as it is, each layer calibrated on what the rounded layers before it produce, in memory
(`minprune.prune`) or from disk to disk (`minprune.prune_checkpoint`).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from minprune.arguments import checked
from minprune.compress.gptq import gptq, rtn
from minprune.compress.grids import check_fit
from minprune.errors import PruneError
from minprune.methods import Method
from minprune.methods.scaling import scale_free
from minprune.output.report import Report
from minprune.patterns import Pattern
from minprune.pipeline.prune import prune

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUANTIZERS = {
    "gptq": Method(scale_free(gptq), needs="gram", fits=check_fit),
    "rtn": Method(rtn, needs="nothing", fits=check_fit),
}
NO_ZEROS = "0%"


@checked("model", "calib", "bits", "group", "include", "exclude", "batch_size")
def quantize(
    model: "PreTrainedModel",
    calib: Tensor | None,
    bits: int = 4,
    group: int = 64,
    method: str = "gptq",
    *,
    pattern: str | Pattern = NO_ZEROS,
    grid: str = "asymmetric",
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    batch_size: int | None = None,
    sequential: bool = True,
    precision: str = "auto",
    progress: bool = False,
    **options: Any,
) -> Report:
    """Round the linear layers of a Hugging Face causal LM to a grid of few levels, in place, and report on each.

    The weights stay floating-point numbers, each on a level of its grid. Weights that are zero stay zero.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model, pruned or not.
    calib : Tensor (windows, length), int64, or None
        Calibration tokens, as from `load_tokens`. None is allowed for "rtn".
    bits : int, default 4
        Of a weight, from 2 to 8.
    group : int, default 64
        Neighbouring inputs that share a scale, 0 for a whole row.
    method : {"gptq", "rtn"}, default "gptq"
        "gptq" lets the weights that are still to come make up for each one that is rounded; "rtn" takes the nearest
        level.
    pattern : str or Pattern, default "0%"
        Zeros that "gptq" chooses in the same sweep, as SparseGPT does.
    grid : {"asymmetric", "symmetric", "minimum"}, default "asymmetric"
        With a whole zero point; around 0; or from the minimum of each group on, so that 0 is on no level.
    include, exclude, batch_size, sequential, precision, progress
        As for `minprune.prune`.
    **options
        Of "gptq": order="activation" visits the columns with the largest inputs first; damp=0.01; block_size=128.

    Returns
    -------
    Report
        With a row for each layer. Its zeros are those that were there or asked for, and weights that rounding set to 0.

    Raises
    ------
    PruneError
        Naming the layer, if something cannot be done. What was rounded until then stays so.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2))
    >>> report = mp.quantize(model, torch.randint(50, (4, 8)), bits=3, group=16)
    >>> len(report.layers), all(len(row.unique()) <= 8 for row in model.model.layers[0].mlp.gate_proj.weight)
    (14, True)
    """
    quantizer(method).check_names(method, options)  # a recipe's training would leave the grid again
    return prune(
        model,
        calib,
        quantizer(method),
        pattern,
        include=include,
        exclude=exclude,
        batch_size=batch_size,
        sequential=sequential,
        precision=precision,
        progress=progress,
        bits=bits,
        group=group,
        grid=grid,
        **options,
    )


def quantizer(name: str) -> Method:
    """The quantiser of that name; `PruneError` for an unknown one."""
    if name not in QUANTIZERS:
        raise PruneError(f"unknown way to quantise {name!r}: choose one of {', '.join(QUANTIZERS)}")
    return QUANTIZERS[name]
