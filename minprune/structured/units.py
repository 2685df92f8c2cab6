"""What a block computes for itself alone, unit by unit: the neurons of an MLP, the heads of attention. Chapter 13.

A unit is a few columns of the matrix that ends the MLP or the attention (its inputs), and the rows of the matrices
before it that compute these inputs. Nothing else reads them: when the columns go, the rows may go, too.

Left out: experts of mixtures, and attention whose query, key and value matrices are stored as one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minprune.errors import PruneError
from minprune.models.layers import Layer, block_layers, decoder_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")  # what families call the number of neurons

Rows = Callable[[Tensor], Tensor]  # the kept columns of the reader (indices) -> the kept rows of a maker


@dataclass(frozen=True)
class Units:
    """The units of one block. reader: the layer whose columns they are. makers: the layers whose rows compute these."""

    reader: Layer
    makers: list[tuple[Layer, Rows]]


@dataclass(frozen=True)
class Heads:
    """How the attention of a model is divided: query heads, key and value heads, and the width of one."""

    queries: int
    groups: int
    width: int


def neurons(model: "PreTrainedModel") -> tuple[str, int, list[Units]]:
    """(the name of their number in the configuration, this number, the neurons of each block).

    Raises `PruneError` if the family has no such number, or a block no MLP of the usual form.
    """
    text = model.config.get_text_config()
    name = next((name for name in _WIDTHS if hasattr(text, name)), "")
    width = getattr(text, name, None) or 4 * text.hidden_size
    units = [_mlp(layers, width, text.hidden_size) for layers in layers_by_block(model)]
    if not name or None in units:
        raise PruneError(
            f"{type(model).__name__} has no MLP that its configuration gives a width: remove heads or blocks instead"
        )
    return name, width, [unit for unit in units if unit]


def heads(model: "PreTrainedModel") -> tuple[Heads, list[Units]]:
    """How the attention is divided, and the inputs of each block's output projection with what computes them.

    Raises `PruneError` for attention whose parts are not matrices of their own.
    """
    text = model.config.get_text_config()
    queries = getattr(text, "num_attention_heads", None)
    if not isinstance(queries, int):  # none in a recurrent model; one for each block, in some
        raise PruneError(
            f"{type(model).__name__} has no number of heads that holds for each of its blocks: remove neurons or blocks"
        )
    groups = getattr(text, "num_key_value_heads", None) or queries
    width = getattr(text, "head_dim", None) or text.hidden_size // queries
    shape = Heads(queries, groups, width)
    units = [_attention(layers, shape) for layers in layers_by_block(model)]
    if None in units:
        raise PruneError(
            f"{type(model).__name__} has no attention made of q, k, v and output matrices: remove neurons or blocks"
        )
    return shape, [unit for unit in units if unit]


def layers_by_block(model: "PreTrainedModel") -> list[list[Layer]]:
    """The matrices of each decoder block."""
    prefix, blocks = decoder_blocks(model)
    layers = block_layers(model)
    return [[x for x in layers if x.name.startswith(f"{prefix}.{index}.")] for index in range(len(blocks))]


def _mlp(layers: list[Layer], width: int, hidden: int) -> Units | None:
    """The one matrix from `width` to `hidden` outside of attention, and its siblings that make its inputs."""
    readers = [
        x for x in layers if x.weight.shape == (hidden, width) and "attn" not in x.name and "attention" not in x.name
    ]
    if len(readers) != 1 or any(layer.expert_index is not None for layer in layers):
        return None
    parent = readers[0].name.rpartition(".")[0]
    siblings = [x for x in layers if x.name.rpartition(".")[0] == parent and x is not readers[0]]
    makers = [(x, _copies(x.weight.shape[0], width)) for x in siblings if x.weight.shape[0] in (width, 2 * width)]
    return Units(readers[0], makers) if makers else None


def _attention(layers: list[Layer], shape: Heads) -> Units | None:
    """o_proj (whatever its name) with q, k and v, which stand in this order in every family that has them apart."""
    found = [x for x in layers if _in_attention(x)]
    q, kv = shape.queries * shape.width, shape.groups * shape.width
    named = {key: [x for x in found if x.name.rpartition(".")[2].startswith(key)] for key in ("q", "k", "v")}
    readers = [x for x in found if x.weight.shape[1] == q and not any(x in one for one in named.values())]
    if len(readers) != 1 or any(len(one) != 1 for one in named.values()):
        return None
    (query,), (key,), (value,) = named.values()
    if query.weight.shape[0] != q or key.weight.shape[0] != kv or value.weight.shape[0] != kv:
        return None
    return Units(readers[0], [(query, lambda kept: kept), (key, _groups_of(shape)), (value, _groups_of(shape))])


def _in_attention(layer: Layer) -> bool:
    return "attn" in layer.name or "attention" in layer.name


def _copies(rows: int, width: int) -> Rows:
    """A matrix that makes gate and up at once has the rows of a neuron in both halves."""
    return lambda kept: torch.cat([kept + start for start in range(0, rows, width)])


def _groups_of(shape: Heads) -> Rows:
    """Key and value heads stay if any of the query heads that read them does; query heads of a group are neighbours."""
    each = shape.queries // shape.groups * shape.width  # columns of the output projection for each group

    def rows(kept: Tensor) -> Tensor:
        groups = (kept // each).unique()  # sorted
        return (groups[:, None] * shape.width + torch.arange(shape.width, device=kept.device)).view(-1)

    return rows


def before_cuts(model: "PreTrainedModel", kept: list[int]) -> list[tuple[int, int, Layer | None]]:
    """For each cut the place in `kept` of the block before it, the index of the block behind it, and what to refit."""
    following = [*kept[1:], len(decoder_blocks(model)[1])]
    return [
        (place, behind, _last_matrix(model, block))
        for place, (block, behind) in enumerate(zip(kept, following, strict=True))
        if behind != block + 1
    ]


def _last_matrix(model: "PreTrainedModel", block: int) -> Layer | None:
    """The matrix whose output ends in the stream, no other of the block being behind it; None if it is shared."""
    layer = layers_by_block(model)[block][-1]
    width = model.config.get_text_config().hidden_size
    alone = layer.expert_index is None and not layer.aliases
    return layer if alone and layer.weight.shape[0] == width else None
