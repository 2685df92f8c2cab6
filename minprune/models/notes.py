"""What a report says of a model's weights beside its rows: what is used more than once, and what stays dense."""

from typing import TYPE_CHECKING

from minprune.models.blocks import decoder_blocks
from minprune.models.layers import Layer, block_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MUCH = 0.1  # of the numbers in all blocks: the convolutions and tables of state-space layers are less


def layer_notes(model: "PreTrainedModel", layers: list[Layer]) -> list[str]:
    """What a report on these layers says of weights that several blocks use, and of what stays dense."""
    names = {layer.name for layer in layers}
    others = [layer for layer in block_layers(model) if layer.name not in names]
    notes = []
    if dense := [layer for layer in others if layer.router]:
        notes.append(
            f"{len(dense)} routers and gates of mixtures were left dense, as every published recipe does: name them "
            f"with include to prune them, such as {dense[0].name}"
        )
    for shared, what in (
        ([layer for layer in layers if layer.aliases], "were pruned once, on the inputs of the first block"),
        ([layer for layer in others if layer.aliases and not layer.router], "were left dense in all of them"),
    ):
        if shared:
            example = " = ".join((shared[0].name, *shared[0].aliases))
            notes.append(f"{len(shared)} weights serve in several blocks and {what}, such as {example}")
    return notes + _no_matrices(model)


def _no_matrices(model: "PreTrainedModel") -> list[str]:
    """A note on matrices and larger tensors that are no layer, if they are many: a module multiplies as it likes."""
    prefix, blocks = decoder_blocks(model)
    pruned = {id(layer.module._parameters.get(layer.parameter)) for layer in block_layers(model)}
    named = list(blocks.named_parameters(prefix=prefix))
    others = [(name, value) for name, value in named if value.ndim > 1 and id(value) not in pruned]
    share = sum(value.numel() for _, value in others) / max(1, sum(value.numel() for _, value in named))
    if share < _MUCH:
        return []
    return [
        f"{len(others)} tensors of the blocks, {share:.0%} of their weights, are in no linear layer and stay dense, "
        f"such as {others[0][0]}"
    ]
