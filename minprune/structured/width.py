"""Fewer neurons or heads in every block: which, what the others do about it, and what is cut out. Chapter 13.

First whole inputs of each block's last matrices are pruned, by the same driver as single weights, so that every layer
is calibrated on what the smaller layers before it produce. A criterion gives each input a score, the pattern says which
go, and the matrix is solved anew for those that stay. Then what is zero is cut out, with all that computed it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minprune.errors import PruneError
from minprune.methods import Method, Result, get_method
from minprune.methods.columns import refitted
from minprune.methods.damping import checked_gram
from minprune.models.causality import evaluating
from minprune.models.hooks import input_of
from minprune.models.layers import is_conv1d
from minprune.output.report import Report
from minprune.patterns import Lines
from minprune.pipeline.plan import make_plan
from minprune.pipeline.prune import run_in_memory
from minprune.pipeline.ranks import ALONE, Ranks
from minprune.pipeline.recipes import resolve_recipe
from minprune.structured import criteria
from minprune.structured.criteria import gradients, group_of
from minprune.structured.cut import Cut, built, check_same
from minprune.structured.units import Units, heads, neurons

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 8  # with which a model is run that nothing is known of
CRITERIA = ("obs", "obd", "wanda", "activation", "flap", "magnitude", "l2", "taylor", "fisher")
_OF_THE_READER: dict[str, Callable] = {  # of the last matrix W and the statistics of its inputs -> (d_in,)
    "obd": lambda W, stats: criteria.l2((W * stats.sq_norm.sqrt()).T),
    "wanda": lambda W, stats: criteria.wanda(W, stats.sq_norm),
    "activation": lambda W, stats: stats.sq_norm,
    "flap": lambda W, stats: criteria.flap(W, stats.sq_norm, stats.mean, stats.tokens),
    "magnitude": lambda W, stats: criteria.l1(W.T),
    "l2": lambda W, stats: criteria.l2(W.T),
}


class Width:
    """Removal of so many units of one kind, "neurons", "heads" or "groups", from every block of a model.

    Raises `PruneError` if the family does not have them apart, or if no such number can go.
    """

    def __init__(self, model: "PreTrainedModel", what: str, gone: Callable[[int], int]):
        self.config, self.units, self.pattern = _PLANS[what](model, gone)

    def example(self, repair: str) -> Cut:
        """A cut of this size, to see whether the family can say it: which units it takes does not matter."""
        like = self.pattern.keep(torch.zeros(self.units[0].reader.weight.shape))  # the model may hold no numbers
        cut = self._cut([like[0].nonzero().view(-1)] * len(self.units))
        if repair == "bias":
            some = {unit.reader.name: unit.reader.weight.new_ones(len(unit.reader.weight)) for unit in self.units}
            self._add_biases(cut, some)
        return cut

    def check(self, model: "PreTrainedModel", calib: Tensor | None) -> None:
        """Raise `PruneError` if the model without some of the units is not the one in which they say nothing."""
        some = torch.arange(_TOKENS, device=model.device)[None] % model.config.get_text_config().vocab_size
        window = some if calib is None else calib[:1, :64]
        cut = self.example("none")
        with evaluating(model), ExitStack() as shown:
            smaller = built(model, cut)
            for unit in self.units:
                kept = cut.tensors[f"{unit.reader.name}.weight"][1]
                silent = torch.ones(unit.reader.weight.shape[1], dtype=torch.bool)
                silent[kept] = False
                shown.enter_context(_silenced(unit.reader.module, silent.to(model.device)))
            check_same(model, smaller, window, "does something else with its units than to add up what each says")

    def prune(
        self,
        model: "PreTrainedModel",
        calib: Tensor | None,
        how: str,
        repair: str,
        ranks: Ranks = ALONE,
        *,
        batch_size: int | None = None,
        sequential: bool = True,
        precision: str = "auto",
        progress: bool = False,
        **options: Any,
    ) -> Report:
        """Make the inputs zero, chosen by one of `CRITERIA`. repair: "none", "bias" or "refit" of what stays.

        ranks: the processes that share the windows. The rest is as for `minprune.prune`.
        """
        self.biases: dict[str, Tensor] = {}
        names = [unit.reader.name for unit in self.units]
        if how == "obs" and repair == "refit":
            method: str | Method = "obs"
        else:
            scores = _scores_by_gradient(model, calib, self.units, how, self.pattern.width, ranks)
            method = Method(_choosing(how, scores, repair, self._note_bias), "nothing" if calib is None else "gram")
        chosen = resolve_recipe(None, calib, method, None, options, precision)
        plan = make_plan(model, calib, self.pattern, chosen, names, (), batch_size, precision)
        report = run_in_memory(model, plan, None, sequential, progress, ranks)
        report.method = how
        for biases in ranks.gather({name: bias.cpu() for name, bias in self.biases.items()}):
            self.biases |= {name: bias.to(model.device) for name, bias in biases.items()}  # known where it was pruned
        return report

    def cut(self) -> Cut:
        """What is left once the inputs are zero.

        Columns that are zero compute nothing, whichever of them go, should more be zero than have to.
        """
        used = [unit.reader.weight.any(0).float()[None] for unit in self.units]  # (1, d_in) each
        cut = self._cut([self.pattern.keep(one)[0].nonzero().view(-1) for one in used])
        if self.biases:
            self._add_biases(cut, self.biases)
        return cut

    def _cut(self, kept: list[Tensor]) -> Cut:
        """Of which tensors only a part stays: the readers' kept columns, and the makers' rows that compute them."""
        found: dict[str, tuple[int, Tensor]] = {}
        for unit, columns in zip(self.units, kept, strict=True):
            found[f"{unit.reader.name}.weight"] = (0 if is_conv1d(unit.reader.module) else 1, columns)
            for maker, rows in unit.makers:
                found[f"{maker.name}.weight"] = (1 if is_conv1d(maker.module) else 0, rows(columns))
                found[f"{maker.name}.bias"] = (0, rows(columns))
        return Cut(dict(self.config), found)

    def _note_bias(self, W: Tensor, bias: Tensor) -> None:
        self.biases[next(u.reader.name for u in self.units if u.reader.weight.data_ptr() == W.data_ptr())] = bias

    def _add_biases(self, cut: Cut, biases: dict[str, Tensor]) -> None:
        """The biases in place of the missing inputs' means, and those of zero that a configuration wants beside.

        biases: by the name of the reader. What has a bias of its own keeps it.
        """
        for unit in self.units:
            layer = unit.reader
            bias, old = biases[layer.name], getattr(layer.module, "bias", None)
            cut.values[f"{layer.name}.bias"] = bias if old is None else old.data + bias
            if old is not None:
                continue
            cut.config |= {"attention_bias" if self.config.get("head_dim") else "mlp_bias": True}
            for maker in (maker for maker, _ in unit.makers if getattr(maker.module, "bias", None) is None):
                weight, kept = maker.weight, cut.tensors[f"{maker.name}.weight"][1]
                cut.values[f"{maker.name}.bias"] = weight.new_zeros(len(weight))
                cut.tensors[f"{maker.name}.bias"] = (0, kept)


@contextmanager
def _silenced(module: nn.Module, silent: Tensor) -> Iterator[None]:
    """While open, these inputs (d_in,) of a matrix are zero."""

    def silence(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return (input_of(args, kwargs).masked_fill(silent, 0),), {}

    handle = module.register_forward_pre_hook(silence, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _choosing(how: str, scores: dict[int, Tensor], repair: str, note_bias: Callable[[Tensor, Tensor], None]):
    """A method: the inputs by a score, which all rows lose, and then what is said to be done about it."""

    def by_score(W: Tensor, stats, pattern: Lines, *, damp: float = 0.01) -> Result:
        wide = W.to(torch.promote_types(W.dtype, torch.float32))
        note = ""
        if how == "obs":
            kept = get_method("obs")(W, stats, pattern, damp=damp).keep[0]
        else:
            known = scores.get(W.data_ptr())
            kept = pattern.keep((_OF_THE_READER[how](wide, stats) if known is None else known)[None])[0]
        if repair == "refit":
            gram = checked_gram(W, stats, damp)
            found, note = refitted(W, gram, kept, damp)
            new = found.to(W.dtype)
        else:
            new = W.masked_fill(~kept, 0)
        if repair == "bias":
            note_bias(W, criteria.missing_mean(wide, stats.mean.to(wide), kept).to(W.dtype))
        return Result(new, kept.expand(W.shape).clone(), note)

    return by_score


def _scores_by_gradient(
    model, calib: Tensor | None, units: list[Units], how: str, width: int, ranks: Ranks
) -> dict[int, Tensor]:
    """For a criterion that asks the loss: the score of each input of each reader, by the address of its weight."""
    if how not in ("taylor", "fisher") or calib is None:
        return {}
    layers = [layer for unit in units for layer in (unit.reader, *(maker for maker, _ in unit.makers))]
    first, squares = gradients(model, calib, layers, ranks)
    weights = {layer.name: layer.weight.float() for layer in layers}
    found = {}
    for unit in units:
        w = group_of(unit, weights, width)
        worth = (criteria.taylor if how == "taylor" else criteria.fisher)(
            w, group_of(unit, first if how == "taylor" else squares, width)
        )
        found[unit.reader.weight.data_ptr()] = worth.repeat_interleave(width) / width
    return found


def _neurons(model: "PreTrainedModel", gone: Callable[[int], int]) -> tuple[dict[str, Any], list[Units], Lines]:
    """What changes in the configuration, the units of each block, and the pattern that removes the right number."""
    name, width, units = neurons(model)
    return {name: width - gone(width)}, units, Lines("columns", gone(width) / width)


def _heads(model: "PreTrainedModel", gone: Callable[[int], int]) -> tuple[dict[str, Any], list[Units], Lines]:
    shape, units = heads(model)
    lost = gone(shape.queries)
    config = {"num_attention_heads": shape.queries - lost, "head_dim": shape.width}
    if shape.groups == shape.queries:  # each query head has a key and value head of its own, which goes with it
        has_groups = hasattr(model.config.get_text_config(), "num_key_value_heads")
        config |= {"num_key_value_heads": shape.queries - lost} if has_groups else {}
        return config, units, Lines("columns", lost / shape.queries, shape.width)
    if lost % shape.groups:
        raise PruneError(
            f"{lost} of {shape.queries} query heads cannot be removed: the same number has to go from each of the "
            f"{shape.groups} groups that share keys and values"
        )
    return config, units, Lines("columns", lost / shape.queries, shape.width, shape.groups)


def _groups(model: "PreTrainedModel", gone: Callable[[int], int]) -> tuple[dict[str, Any], list[Units], Lines]:
    """Key and value heads with all the query heads that read them."""
    shape, units = heads(model)
    kept, each = shape.groups - gone(shape.groups), shape.queries // shape.groups
    config = {"num_attention_heads": kept * each, "num_key_value_heads": kept, "head_dim": shape.width}
    if not hasattr(model.config.get_text_config(), "num_key_value_heads"):
        raise PruneError(f"{type(model).__name__} has a key and value head for each query head: remove heads instead")
    return config, units, Lines("columns", 1 - kept / shape.groups, shape.width * each)


_PLANS = {"neurons": _neurons, "heads": _heads, "groups": _groups}
