"""How sparse each layer should be: the same everywhere, what a user's table says, or what a rule makes of the model.

Chapter 11. The rules are in rules.py, the arithmetic that keeps their average exact in budget.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

from torch import Tensor

from minprune.allocation.rules import get_rule, require_variable_sparsity
from minprune.arguments import checked
from minprune.errors import PruneError, own_number
from minprune.models.layers import Layer, matches
from minprune.patterns import NM, Pattern

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Allocation = str | Mapping[str, float] | Callable[[list[Layer]], Mapping[str, float]] | None


@checked("allocation", "calib")
def allocate(
    layers: list[Layer],
    pattern: Pattern,
    allocation: Allocation = None,
    model: "PreTrainedModel | None" = None,
    calib: Tensor | None = None,
) -> dict[Layer, Pattern]:
    """The pattern of each layer.

    Parameters
    ----------
    layers : list of Layer
        From `minprune.find_layers`.
    pattern : Pattern
        Whose sparsity is the average that a rule keeps.
    allocation : str, mapping of str to float, or callable, optional
        The name of a rule ("owl", "ramp", "optimal", "inverse", "global"), whose average, weighted by parameters, is
        exactly the sparsity of `pattern`. Zeros come in whole weights of each comparison group: rows of a narrow layer
        all round alike and add up to a little more or less. Or a table from globs to sparsities: the last glob that
        matches a layer counts, and a layer that none matches keeps the sparsity of `pattern`. Or a function from the
        layers to such a table.
    model : PreTrainedModel, optional
        A rule needs it.
    calib : Tensor (windows, length), int64, optional
        Most rules need it.

    Returns
    -------
    dict of Layer to Pattern

    Raises
    ------
    PruneError
        For an unknown name, a rule without the model or the calibration it needs, a glob that matches nothing, a
        sparsity outside 0..1, N:M, or no layer.

    Examples
    --------
    >>> import minprune as mp
    >>> from minprune.allocation.allocate import allocate
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    >>> layers = mp.find_layers(LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2)))
    >>> patterns = allocate(layers, mp.pattern("50%"), {"*.mlp.*": 0.6})
    >>> {str(chosen) for layer, chosen in patterns.items() if ".mlp." in layer.name}
    {'60%'}
    """
    if not layers:
        raise PruneError("there is no layer to share zeros among: pass those that find_layers finds")
    if isinstance(allocation, str):
        rule = get_rule(allocation)
        if model is None or any(layer.weight.is_meta for layer in layers):
            raise PruneError(f"allocation {allocation!r} needs the whole model in memory: give a table of sparsities")
        table: Any = rule(model, layers, calib, require_variable_sparsity(pattern))
    else:
        table = allocation(layers) if callable(allocation) else {} if allocation is None else allocation
    if not isinstance(table, Mapping):
        raise PruneError(f"an allocation is a table from globs to sparsities, not {type(table).__name__}")
    patterns = dict.fromkeys(layers, pattern)
    if isinstance(pattern, NM):
        if table:
            require_variable_sparsity(pattern)
        return patterns
    for glob, sparsity in table.items():
        matched = [layer for layer in layers if isinstance(glob, str) and matches(layer, [glob])]
        if not matched:
            raise PruneError(f"the allocation's {glob!r} matches no layer: names look like {layers[0].name!r}")
        if not isinstance(sparsity, Real) or isinstance(sparsity, bool):
            raise PruneError(f"the allocation's {glob!r} has sparsity {sparsity!r}: it must be a number in 0..1")
        share = own_number(sparsity)
        if not 0 <= share <= 1:
            raise PruneError(f"the allocation's {glob!r}: sparsity {str(share)[:40]} is outside 0..1")
        patterns |= dict.fromkeys(matched, replace(pattern, sparsity=float(share)))
    return patterns


def rule_of(allocation: Allocation) -> str | None:
    """The name of a rule or function that makes a table of the model; None for a table, and for none."""
    if not allocation or isinstance(allocation, Mapping):
        return None
    return allocation if isinstance(allocation, str) else getattr(allocation, "__name__", type(allocation).__name__)


def as_made_by(rule: str, table: Mapping[str, float]) -> Callable[[list[Layer]], Mapping[str, float]]:
    """A table that the rule of this name has made already, as a function that is called like it."""

    def made(layers: list[Layer]) -> Mapping[str, float]:
        return table

    made.__name__ = rule
    return made


def describe_allocation(allocation: Allocation, patterns: Mapping[Layer, Pattern]) -> dict[str, Any]:
    """What a report says of it: {"rule": its name, or None for a table, "table": as given, or what the rule made}."""
    if not allocation:
        return {}
    if isinstance(allocation, Mapping):
        return {"rule": None, "table": {glob: float(sparsity) for glob, sparsity in allocation.items()}}
    return {
        "rule": rule_of(allocation),
        "table": {layer.name: chosen.sparsity for layer, chosen in patterns.items()},
    }
