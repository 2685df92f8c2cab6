"""Where the decoder blocks of a Hugging Face model are, whatever stands around them. Chapter 01."""

import sys
from typing import TYPE_CHECKING, Any

from torch import nn

from minprune.errors import PruneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is GPT-2's linear layer, whose weight is stored as (d_in, d_out)."""
    library = sys.modules.get("transformers.pytorch_utils")  # who has not imported it has no such layer
    return library is not None and isinstance(module, library.Conv1D)


def decoder_blocks(model: "PreTrainedModel") -> tuple[str, nn.ModuleList]:
    """The name and the list of the blocks of the language model: the list in it that is as long as the config says.

    Towers for images or sounds, which may be as deep, are not looked at. Raises `PruneError` if there is no such list,
    or several that stand side by side, as where attentions and MLPs are listed apart.
    """
    config = text_config(model)
    depths = [getattr(config, key, None) for key in ("num_hidden_layers", "decoder_layers", "num_layers")]
    inside = {id(module) for module in _text_decoder(model).modules()}
    lists: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        within = any(name.startswith(f"{outer}.") for outer, _ in lists)
        if isinstance(module, nn.ModuleList) and id(module) in inside and not within:
            lists.append((name, module))
    lists = [
        (name, found) for name, found in lists if len(found) and len(found) in depths and _has_matrices_inside(found[0])
    ]
    least = min((name.count(".") for name, _ in lists), default=0)
    lists = [(name, found) for name, found in lists if name.count(".") == least]
    if not lists:
        raise PruneError(
            f"found no list of {depths[0]} decoder blocks with dense linear layers in {type(model).__name__}: a model "
            "whose matrices are stored in another form is loaded anew without that"
        )
    if len(lists) > 1:
        names = ", ".join(name for name, _ in lists)
        raise PruneError(f"{type(model).__name__} has no single list of decoder blocks but {names}: use another model")
    return lists[0]


def text_config(model: "PreTrainedModel") -> Any:
    """The part of the configuration that describes the language model; `PruneError` if there are several."""
    try:
        return model.config.get_text_config(decoder=True)
    except ValueError as error:  # several of them
        raise PruneError(f"{type(model).__name__} is no single language model: {error}") from None


def _text_decoder(model: "PreTrainedModel") -> nn.Module:
    """The part of the model that reads and writes text, or all of it if the library names no such part with blocks."""
    try:
        found = model.get_decoder()
    except (AttributeError, NotImplementedError):
        return model
    return found if any(isinstance(part, nn.ModuleList) for part in found.modules()) else model


def _has_matrices_inside(block: nn.Module) -> bool:
    return any(part is not block and (isinstance(part, nn.Linear) or is_conv1d(part)) for part in block.modules())
