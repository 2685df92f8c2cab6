"""Whether a weight's numbers are those of another tensor of the model, too, which would change with them.

Two names of one tensor are known as a `Layer` of several names. But a tensor may also be a part of another one (keys
that are the first rows of the queries), or the same in another shape (a head that is the transposed embeddings). What
is pruned on the inputs of one of them is then something else for the other, and nothing would say so.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minprune.errors import PruneError
from minprune.models.layers import Layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_apart(model: "PreTrainedModel", layers: Iterable[Layer]) -> None:
    """Raise `PruneError` for a layer whose weights lie in the memory of a tensor that is not among its names."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    placed = [(_span(tensor), name, tensor) for name, tensor in named if _has_place(tensor)]
    placed.sort(key=lambda found: found[0])
    owners = {name: layer for layer in layers for name in _stored_names(layer)}
    for number, ((device, _, end), name, tensor) in enumerate(placed, 1):
        for (other_device, start, _), other, beside in placed[number:]:
            if (other_device, start) >= (device, end):
                break
            layer = owners.get(name) or owners.get(other)
            if layer and not {name, other} <= _stored_names(layer) and _overlap(tensor, beside):
                stranger = other if name in _stored_names(layer) else name
                raise PruneError(
                    f"{layer.name}: its weights are those of {stranger}, too, in the same memory, so that what is "
                    "written to one changes the other: give one of them a copy (clone), or leave both out"
                )


def _stored_names(layer: Layer) -> set[str]:
    """The names of the parameters that the layer's matrix lies in."""
    if layer.expert_index is not None:
        return {name.rpartition(".")[0] for name in layer.names}
    return {f"{name}.{layer.parameter}" for name in layer.names}


def _has_place(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    return plain and tensor.layout is torch.strided and not tensor.is_meta and tensor.numel() > 0


def _span(tensor: Tensor) -> tuple[str, int, int]:
    """(device, first byte, the byte behind its last one) of the memory that a tensor lies in."""
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return str(tensor.device), start, start + (last + 1) * tensor.itemsize


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors with overlapping spans have a number in common, and not only lie between each other's."""
    if one.dtype != other.dtype:
        return True
    (_, start, end), (_, other_start, other_end) = _span(one), _span(other)
    low = min(start, other_start)
    taken = torch.zeros((max(end, other_end) - low) // one.itemsize, dtype=torch.bool)
    places = [
        taken.as_strided(tensor.shape, tensor.stride(), (begin - low) // one.itemsize)
        for tensor, begin in ((one, start), (other, other_start))
    ]
    places[0].fill_(True)
    return bool(places[1].any())
