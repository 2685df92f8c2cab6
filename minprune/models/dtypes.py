"""Do the dtypes of a model's weights go together? Decided by what it does: some families keep several on purpose.

Norms or routers in float32 among weights in bfloat16 are fine where the model casts on the way. One layer in another
dtype mostly is not. The only thing that tells them apart is the model's own forward pass.
"""

from typing import TYPE_CHECKING

import torch

from minprune.errors import PruneError
from minprune.models.blocks import text_config
from minprune.models.modes import eval_mode
from minprune.models.skeleton import plain_outputs
from minprune.models.weight_files import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 8  # of the forward pass
_NAMED = 3  # parameters that a message names of each dtype


@torch.no_grad()
def check_dtypes(model: "PreTrainedModel") -> None:
    """Raise `PruneError` if parameters have several dtypes and the model does not run on a few tokens as it is now.

    A caller's autocast may make it run. A model with one dtype costs nothing here.
    """
    named: dict[torch.dtype, list[str]] = {}
    numbers: dict[torch.dtype, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            named.setdefault(parameter.dtype, []).append(name)
            numbers[parameter.dtype] = numbers.get(parameter.dtype, 0) + parameter.numel()
    if len(named) < 2:
        return
    ids = torch.arange(_TOKENS, device=next(model.parameters()).device)[None]  # (1, tokens)
    try:
        with eval_mode(model), plain_outputs(model):
            model(input_ids=ids % text_config(model).vocab_size, use_cache=False)
    except RuntimeError as error:
        usual = max(numbers, key=lambda dtype: numbers[dtype])
        others = "; ".join(_told(dtype, names) for dtype, names in named.items() if dtype != usual)
        raise PruneError(
            f"{type(model).__name__} does not run with parameters of several dtypes ({one_line(error)}): "
            f"{_word(usual)} is the usual one, but not of {others}: bring all to one, as model.float() does"
        ) from error


def _told(dtype: torch.dtype, names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more} ({_word(dtype)})"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
