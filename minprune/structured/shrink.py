"""shrink(): a model with fewer neurons, heads or blocks, which plain transformers loads. Chapters 13 and 14.

Width goes in two steps. First whole inputs of each block's last matrices are pruned, by the same driver, methods and
patterns as single weights ("columns:25%"), so that the others make up for them where the method can. Then what is zero
is cut out. Depth only cuts. Whatever is removed, the result is the model that its new configuration describes.
"""

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minprune.errors import PruneError
from minprune.models.causality import check_causal, evaluating
from minprune.models.hooks import check_compiled
from minprune.models.layers import check_windows, decoder_blocks, is_conv1d
from minprune.output.report import Report
from minprune.patterns import Lines
from minprune.pipeline.prune import prune
from minprune.structured.cut import Cut, apply_cut, check_cut
from minprune.structured.depth import choose_blocks, repair_cuts
from minprune.structured.units import Units, heads, neurons

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CRITERIA = ("magnitude", "wanda", "obd", "obs")


@dataclass(frozen=True)
class Removal:
    """What to remove from a model, and how much of it.

    Parameters
    ----------
    what : {"neurons", "heads", "blocks"}
        Of the MLPs, of attention, or whole decoder blocks.
    share : float, optional
        A share of them, 0 to 1.
    count : int, optional
        A number of them, if no share is given.

    Examples
    --------
    >>> from minprune.structured.shrink import removal
    >>> removal("heads:1/3").of(9)
    3
    """

    what: str
    share: float | None = None
    count: int | None = None

    def of(self, total: int) -> int:
        """How many of `total` go."""
        return round(self.share * total) if self.share is not None else int(self.count or 0)


def removal(text: "str | Removal") -> Removal:
    """Read what to remove.

    Parameters
    ----------
    text : str or Removal
        "neurons:25%", "heads:1/3" or "blocks:4".

    Returns
    -------
    Removal

    Raises
    ------
    PruneError
        For anything else, and for a share that leaves nothing.

    Examples
    --------
    >>> from minprune.structured.shrink import removal
    >>> removal("neurons:25%").share
    0.25
    """
    if isinstance(text, Removal):
        return text
    match = re.fullmatch(r"(neurons|heads|blocks):(?:([\d.]+)%|(\d+)/(\d+)|(\d+))", str(text))
    if not match:
        raise PruneError(f"cannot remove {text!r}: write neurons:25%, heads:1/3 or blocks:4")
    what, percent, upper, lower, count = match.groups()
    share = float(percent) / 100 if percent else int(upper) / int(lower) if upper and int(lower) else None
    if share is not None and not 0 <= share < 1:
        raise PruneError(f"{text!r} leaves nothing: remove less than all")
    return Removal(what, share, int(count) if count else None)


@torch.inference_mode(False)
def shrink(
    model: "PreTrainedModel",
    calib: Tensor | None,
    remove: str | Removal,
    method: str | None = None,
    repair: str = "refit",
    **options: Any,
) -> Report:
    """Remove neurons, attention heads or whole blocks of a Hugging Face causal LM, in place.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model. Its configuration is adapted.
    calib : Tensor (windows, length), int64, or None
        Token ids. None is allowed where nothing has to be known of the inputs.
    remove : str or Removal
        "neurons:25%" of every block's MLP; "heads:1/3" of the query heads, as many of every key and value head's;
        "blocks:4", whole decoder blocks.
    method : str, optional
        How units are chosen. Neurons and heads: "obs" (default), "obd" (Wanda's scores squared), "wanda" or
        "magnitude". Blocks: "influence" (default), "angle" or "greedy".
    repair : {"refit", "none", "reconstruct"}, default "refit"
        "refit" solves for the kept inputs of each pruned matrix by least squares, "none" leaves them as they are,
        "reconstruct" also trains each block towards the dense one. Blocks know "none" and "refit".
    **options
        Further arguments of `minprune.prune`.

    Returns
    -------
    Report
        A row for each matrix that lost inputs. `Report.sparsity` is the share of their columns that went.

    Raises
    ------
    PruneError
        For an unknown removal or method, and if no configuration of the model's family describes the result.

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
    check_compiled(model)
    wanted = removal(remove)
    if repair not in ("none", "refit", "reconstruct"):
        raise PruneError(f"unknown repair {repair!r}: choose none, refit or reconstruct")
    if wanted.what == "blocks":
        return _remove_blocks(model, calib, wanted, method or "influence", repair, **options)
    chosen = method or "obs"
    if chosen not in CRITERIA:
        raise PruneError(f"unknown way to choose {wanted.what}, {chosen!r}: choose one of {', '.join(CRITERIA)}")
    config, units, pattern = _plan(model, wanted)
    like = pattern.keep(torch.zeros_like(units[0].reader.weight))  # which columns will stay is not known yet
    check_cut(model, Cut(config, _parts(units, [like[0].nonzero().view(-1)] * len(units))))
    if repair != "none" and chosen != "obs":
        chosen = f"{chosen}+exact"
    if repair == "reconstruct":
        options = {"recipe": "best"} | options
    names = [unit.reader.name for unit in units]
    report = prune(model, calib, chosen, pattern, include=names, **options)
    apply_cut(model, Cut(config, _parts(units, [_kept(unit, pattern) for unit in units])))
    return report


def _plan(model: "PreTrainedModel", wanted: Removal) -> tuple[dict[str, Any], list[Units], Lines]:
    """What changes in the configuration, the units of each block, and the pattern that removes the right number."""
    if wanted.what == "neurons":
        name, width, units = neurons(model)
        gone = wanted.of(width)
        _check(gone, width, wanted)
        return {name: width - gone}, units, Lines("columns", gone / width)
    shape, units = heads(model)
    gone = wanted.of(shape.queries)
    _check(gone, shape.queries, wanted)
    config = {"num_attention_heads": shape.queries - gone, "head_dim": shape.width}
    if shape.groups == shape.queries:  # each query head has a key and value head of its own, which goes with it
        has_groups = hasattr(model.config.get_text_config(), "num_key_value_heads")
        config |= {"num_key_value_heads": shape.queries - gone} if has_groups else {}
        return config, units, Lines("columns", gone / shape.queries, shape.width)
    if gone % shape.groups:
        raise PruneError(
            f"{gone} of {shape.queries} query heads cannot be removed: the same number has to go from each of the "
            f"{shape.groups} groups that share keys and values"
        )
    return config, units, Lines("columns", gone / shape.queries, shape.width, shape.groups)


def _check(gone: int, total: int, wanted: Removal) -> None:
    if not 0 < gone < total:
        raise PruneError(f"{gone} of {total} {wanted.what} cannot be removed: ask for 1 to {total - 1}")


def _kept(unit: Units, pattern: Lines) -> Tensor:
    """The columns of the reader that stay, (kept,) indices.

    Columns that are zero compute nothing, whichever of them go, should more be zero than have to.
    """
    used = unit.reader.weight.any(0).float()[None]  # (1, d_in)
    return pattern.keep(used)[0].nonzero().view(-1)


def _parts(units: list[Units], kept: list[Tensor]) -> dict[str, tuple[int, Tensor]]:
    """Of which tensors only a part stays: the readers' kept columns, and the makers' rows that compute them."""
    found: dict[str, tuple[int, Tensor]] = {}
    for unit, columns in zip(units, kept, strict=True):
        found[f"{unit.reader.name}.weight"] = (0 if is_conv1d(unit.reader.module) else 1, columns)
        for maker, rows in unit.makers:
            found[f"{maker.name}.weight"] = (1 if is_conv1d(maker.module) else 0, rows(columns))
            found[f"{maker.name}.bias"] = (0, rows(columns))
    return found


def _remove_blocks(model, calib: Tensor | None, wanted: Removal, how: str, repair: str, damp: float = 0.01) -> Report:
    start = time.perf_counter()
    if calib is None:
        raise PruneError("choosing blocks needs calibration tokens: pass calib")
    check_windows(model, calib)
    check_causal(model, calib.shape[1])
    depth = len(decoder_blocks(model)[1])
    gone = wanted.of(depth)
    _check(gone, depth, wanted)
    with evaluating(model):
        kept = choose_blocks(model, calib, gone, how)
        check_cut(model, Cut(blocks=kept))
        if repair != "none":
            repair_cuts(model, calib, kept, damp)
    apply_cut(model, Cut(blocks=kept))
    note = f"blocks {', '.join(str(block) for block in range(depth) if block not in kept)} of {depth} removed"
    return Report(how, f"blocks:{gone}", {}, {}, [], {"total": time.perf_counter() - start}, notes=[note])
