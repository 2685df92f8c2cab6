"""Cutting out what is zero anyway: a smaller model of the same family that computes the same. Chapters 13 and 14.

Pruning whole inputs of a matrix leaves zeros; nothing is smaller until they are cut out, together with the rows that
computed those inputs. What is left must be a model that the library builds from a configuration, or nobody else could
load it. So nothing is patched: a new model is made from the changed configuration, without weights, each of its tensors
is taken from the old one, whole or in part, and a shape that does not fit is a reason to refuse.
"""

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError
from minprune.models.causality import evaluating
from minprune.models.layers import decoder_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_TOKENS = 8  # with which a smaller model is tried


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
    become(model, built(model, cut))


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


def become(model: "PreTrainedModel", smaller: "PreTrainedModel") -> None:
    """The model is the smaller one from now on."""
    vars(model).clear()
    vars(model).update(vars(smaller))


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
    from accelerate import init_empty_weights

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
        with init_empty_weights(include_buffers=False), torch.random.fork_rng(devices=[]):  # which stays the caller's
            smaller = type(model)._from_config(config, dtype=model.dtype)
    except Exception as error:  # of many kinds, for each check of a family's configuration
        raise PruneError(f"{type(model).__name__} cannot be cut like this: {error}") from error
    smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller


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
