"""What an export says of its model beside the arrays: a configuration of which the very model can be made again.

An export holds arrays by the names that a model has when it is made of the configuration. So what was changed in a
model since (a head that is no longer tied, a layer that was put in another's place) has to be in the configuration, or
nobody could read the export.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from minprune.errors import PruneError
from minprune.models.layers import Layer, block_layers, head_layers, is_tied
from minprune.models.skeleton import describe_or_refuse, in_use
from minprune.models.weight_files import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write_description(folder: Path, model: "PreTrainedModel", layers: list[Layer]) -> None:
    """Write config.json and generation_config.json of a model whose matrices `layers` are stored one by one.

    Raises `PruneError` if a model made of them would have other tensors, or if they cannot be written.
    """
    config: Any = in_use(copy.deepcopy(model.config))
    config.architectures, config.dtype = [type(model).__name__], str(model.dtype).removeprefix("torch.")
    if heads := head_layers(model):
        config.tie_word_embeddings = is_tied(model, heads[0])
    config.save_pretrained(folder)
    made = describe_or_refuse(folder, config, model.dtype)
    names = {layer.name for layer in layers}
    there, wanted = _shapes(model, layers), _shapes(made, [x for x in _matrices(made) if x.name in names])
    for name in sorted(there.keys() | wanted.keys()):
        if there.get(name) != wanted.get(name):
            raise PruneError(
                f"no export: {name} is {there.get(name, 'not there')}, and {wanted.get(name, 'not there')} in a model "
                "of its configuration, so that nobody could read it again: correct model.config, or undo what was "
                "changed in the model"
            )
    if model.can_generate():
        try:
            model.generation_config.save_pretrained(folder)
        except ValueError as error:
            raise PruneError(f"model.generation_config cannot be saved ({one_line(error)})") from None


def other_tensors(model: "PreTrainedModel", layers: list[Layer]) -> dict[str, Tensor]:
    """All parameters and saved buffers that hold no matrix of `layers`, each once, even if it is tied to another."""
    inside = {id(getattr(layer.module, layer.parameter)) for layer in layers}
    saved = model.state_dict().keys()
    named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in saved)]
    return {name: tensor for name, tensor in named if id(tensor) not in inside}


def _matrices(model: "PreTrainedModel") -> list[Layer]:
    return block_layers(model) + head_layers(model)


def _shapes(model: "PreTrainedModel", layers: list[Layer]) -> dict[str, tuple[int, ...]]:
    """The shape of each matrix among the layers and of each other tensor, by name."""
    others = {name: tuple(tensor.shape) for name, tensor in other_tensors(model, layers).items()}
    return others | {layer.name: tuple(layer.weight.shape) for layer in layers}
