"""Cutting out what is zero anyway: a smaller model of the same family that computes the same. Chapters 13 and 14.

Pruning whole inputs of a matrix leaves zeros; nothing is smaller until they are cut out, together with the rows that
computed those inputs. What is left must be a model that the library builds from a configuration, or nobody else could
load it. So nothing is patched: a new model is made from the changed configuration, without weights, each of its tensors
is taken from the old one, whole or in part, and a shape that does not fit is a reason to refuse.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError
from minprune.models.causality import evaluating
from minprune.models.checks import check_changeable, check_weights
from minprune.models.hooks import hand_on_hooks
from minprune.models.layers import block_layers, decoder_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_TOKENS = 8  # with which a smaller model is tried
_ONE = Lock()
_SWITCHES = (  # what the library notes on its modules when somebody switches something on
    *("gradient_checkpointing", "_gradient_checkpointing_func", "_require_grads_hook", "_require_grads_hooks"),
    "_output_capturing_hooks_installed",
)


@dataclass
class Cut:
    """What is left of a model. config: what changes of its text configuration, by name. tensors: of which tensors only
    a part is left: name -> (axis, indices that stay). blocks: the indices of the blocks that stay, None for all.
    values: tensors that are others than before, or that the model did not have, such as a bias.
    """

    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    blocks: list[int] | None = None
    values: dict[str, Tensor] = field(default_factory=dict)


def apply_cut(model: "PreTrainedModel", cut: Cut) -> None:
    """Make the model smaller in place; its configuration, modules and tensors are those of the smaller one afterwards.

    Raises `PruneError`, before anything changes, if no configuration of this family describes what is left.
    """
    become(model, built(model, cut), cut.blocks)


def built(model: "PreTrainedModel", cut: Cut) -> "PreTrainedModel":
    """The smaller model, which shares with the larger one what stays whole. Raises as `apply_cut` does."""
    smaller, sources = check_cut(model, cut)
    state, found = model.state_dict(), {}
    for name, source in sources.items():
        axis, kept = cut.tensors.get(source, (0, None))
        value = cut.values[source] if source in cut.values else state[source]
        found[name] = value if kept is None else value.index_select(axis, kept.to(value.device))
    smaller.load_state_dict(found, assign=True)
    frozen = {name for name, one in model.named_parameters(remove_duplicate=False) if not one.requires_grad}
    for name, parameter in smaller.named_parameters():
        parameter.requires_grad_(sources[name] not in frozen)
    smaller.tie_weights()
    smaller = nn.Module.to(smaller, model.device).train(model.training)
    for new, old in _pairs(model, smaller, cut.blocks):
        hand_on_hooks(old, new, copy.copy)
        _hand_on_switches(old, new)
    if cut.blocks is not None:
        _check_runs(smaller)
    return smaller


@torch.no_grad()
def _check_runs(smaller: "PreTrainedModel") -> None:
    """Raise `PruneError` for a model whose configuration means blocks by their former numbers."""
    text = smaller.config.get_text_config()
    tokens = torch.arange(_TOKENS, device=smaller.device)[None] % text.vocab_size
    try:
        with evaluating(smaller):
            smaller(input_ids=tokens, use_cache=False)
    except Exception as error:  # whatever a family's own code raises
        kind = type(error).__name__
        raise PruneError(
            f"{type(smaller).__name__} cannot be cut like this: with {text.num_hidden_layers} blocks it does not run "
            f"({kind}: {error})"
        ) from error


def become(model: "PreTrainedModel", smaller: "PreTrainedModel", blocks: list[int] | None = None) -> None:
    """The model is the smaller one from now on. blocks: the former numbers of its blocks, None if they are the same.

    It has the hooks of the larger one, so that the handles by which somebody may remove them still do.
    """
    for new, old in _pairs(model, smaller, blocks):
        hand_on_hooks(old, new)
    vars(model).clear()
    vars(model).update(vars(smaller))


@contextmanager
def modes_by_name(model: "PreTrainedModel", blocks: Callable[[], list[int]]) -> Iterator[None]:
    """Whatever becomes of the model while it is open, its modules train or not as those of their names did before.

    blocks: tells the former numbers of those that are left.
    """
    prefix, modes = decoder_blocks(model)[0], {name: module.training for name, module in model.named_modules()}
    try:
        yield
    finally:
        for name, module in model.named_modules():
            module.training = modes.get(former_name(name, prefix, blocks()), model.training)


def _pairs(
    model: "PreTrainedModel", smaller: "PreTrainedModel", blocks: list[int] | None
) -> list[tuple[nn.Module, nn.Module]]:
    """The modules of the smaller model, each with that which it was in the larger one."""
    before, prefix = dict(model.named_modules(remove_duplicate=False)), decoder_blocks(model)[0]
    names = [(former_name(name, prefix, blocks), module) for name, module in smaller.named_modules()]
    return [(module, before[name]) for name, module in names if name in before]


def _hand_on_switches(old: nn.Module, new: nn.Module) -> None:
    """Switch on in a module what the library has switched on in the one whose place it takes."""
    for key in _SWITCHES:
        if key in vars(old):
            setattr(new, key, vars(old)[key])


def check_described(model: "PreTrainedModel") -> None:
    """Raise `PruneError` unless the model is what its configuration describes: a smaller one has nothing else.

    And unless its weights are its own numbers, which may be changed.
    """
    check_changeable(model)
    check_weights(model, block_layers(model))
    described, remedy = empty_model(model, Cut()), "which a smaller model would not have"
    there = dict(model.named_modules(remove_duplicate=False))
    made = {name: type(module) for name, module in described.named_modules(remove_duplicate=False)}
    for name, module in there.items():
        if (kind := type(module)) is not made.get(name):
            usual = f", not the {made[name].__name__} of its configuration" if name in made else ""
            raise PruneError(f"{name} is a {kind.__name__}{usual}, {remedy}: take it out, merge it or unwrap it first")
        if "forward" in vars(module) and "_hf_hook" not in vars(module):
            raise PruneError(
                f"{name or 'the model'} has a forward of its own, {remedy}: delete it (del module.forward)"
            )
    own = described.state_dict().keys()
    if more := next((name for name in model.state_dict() if name not in own), None):
        raise PruneError(f"{more} is not of the model's configuration, {remedy}: take it out first")


def check_cut(model: "PreTrainedModel", cut: Cut) -> tuple["PreTrainedModel", dict[str, str]]:
    """The smaller model, without weights, and the name that each of its tensors has in the larger one.

    Raises `PruneError` if no configuration of this family describes what the cut leaves.
    """
    smaller = empty_model(model, cut)
    state, sources = model.state_dict(), {}
    for name, value in smaller.state_dict().items():
        sources[name] = source = former_name(name, decoder_blocks(model)[0], cut.blocks)
        found = cut.values.get(source, state.get(source))
        if found is None:
            raise PruneError(
                f"{type(model).__name__} cannot be cut like this: no configuration of its family goes without {name}"
            )
        shape = list(found.shape)
        if source in cut.tensors:
            axis, kept = cut.tensors[source]
            shape[axis] = len(kept)
        if shape != list(value.shape):
            raise PruneError(
                f"{type(model).__name__} cannot be cut like this: {name} would be {tuple(shape)}, and no configuration "
                f"of its family says so, the nearest wants {tuple(value.shape)}"
            )
    prefix, placed = decoder_blocks(model)[0], set(sources.values())
    for name, value in cut.values.items():
        if name not in placed and bool(value.any()) and not _goes(name, prefix, cut.blocks):
            raise PruneError(
                f"{type(model).__name__} cannot be cut like this: no configuration of its family has a place for "
                f"{name}: choose another repair"
            )
    return smaller, sources


@torch.no_grad()
@exact_arithmetic()  # a caller's autocast rounds both otherwise
def check_same(model: "PreTrainedModel", smaller: "PreTrainedModel", window: Tensor, why: str) -> None:
    """Raise `PruneError` if the smaller model does not compute what the larger one does as it is set up now.

    window (1, length); why: what it means if it does not.
    """
    expected, found = (one(input_ids=window.to(model.device), use_cache=False).logits for one in (model, smaller))
    if not bool(expected.isfinite().all()):
        raise PruneError(f"the predictions of {type(model).__name__} are NaN or infinite: check its weights and dtype")
    gap, size = (found.float() - expected.float()).abs().max(), expected.float().abs().max()
    if not gap < (1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1) * size:
        raise PruneError(f"{type(model).__name__} {why}")


def empty_model(model: "PreTrainedModel", cut: Cut) -> "PreTrainedModel":
    """A model of the same class and number type, of the changed configuration, with its parameters on no device."""
    config = copy.deepcopy(model.config)
    text, changes = config.get_text_config(), dict(cut.config)
    if cut.blocks is not None:
        depth = text.num_hidden_layers
        lists = {k: v for k, v in text.to_dict().items() if isinstance(v, list) and len(v) == depth}
        changes |= {key: [value[block] for block in cut.blocks] for key, value in lists.items()}
        changes["num_hidden_layers"] = len(cut.blocks)
    try:
        for name, value in changes.items():
            setattr(text, name, value)  # some families compute a value, and let nobody set it
        type(text).from_dict(text.to_dict())  # what checks there are run when it is made, as whoever loads it will
        with _shapes_alone(), torch.random.fork_rng(devices=[]):  # which stays the caller's
            smaller = type(model)._from_config(config, dtype=model.dtype)
    except Exception as error:  # of many kinds, for each check of a family's configuration
        raise PruneError(f"{type(model).__name__} cannot be cut like this: {error}") from error
    smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller


@contextmanager
def _shapes_alone() -> Iterator[None]:
    """While open, the parameters of what this thread makes have a shape and no numbers; tables of numbers are made.

    accelerate's `init_empty_weights` would do so to every thread, and to all of the process for good if two come out of
    it in the order in which they went in.
    """
    kind: Any = nn.Module
    here = get_ident()

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        own(module, name, parameter)
        if parameter is not None and get_ident() == here:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    with _ONE:
        own = kind.register_parameter
        try:
            kind.register_parameter = register
            yield
        finally:
            kind.register_parameter = own


def _goes(name: str, prefix: str, blocks: list[int] | None) -> bool:
    """Whether a tensor of the larger model belongs to a block that does not stay."""
    inside = name.removeprefix(f"{prefix}.")
    return blocks is not None and inside != name and int(inside.split(".")[0]) not in blocks


def former_name(name: str, prefix: str, blocks: list[int] | None) -> str:
    """The name that a tensor or a module has in the larger model, where blocks have other numbers."""
    if blocks is None or not name.startswith(f"{prefix}."):
        return name
    number, dot, rest = name.removeprefix(f"{prefix}.").partition(".")
    return f"{prefix}.{blocks[int(number)]}{dot}{rest}"
