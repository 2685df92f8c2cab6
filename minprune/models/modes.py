"""Training or not: each module of a model has a flag of its own, and a caller may have set them apart on purpose."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from minprune.arithmetic import WideProducts, cpu_multiplies, narrow_around


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """While open, nothing in the model trains, so there is no dropout; afterwards every module has its own mode again.

    Some stay in eval mode while the rest learns, a norm with running means, say. A model in bfloat16 or float16, or in
    an autocast to these, takes its products in float32 meanwhile, and rounds them, if the processor says that
    it has no units for them.
    """
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.device.type in ("cpu", "meta")}
    kinds.add(narrow_around() or torch.float32)
    with own_modes(model), WideProducts() if False in map(cpu_multiplies, kinds) else nullcontext():
        model.eval()
        yield


@contextmanager
def own_modes(model: nn.Module) -> Iterator[None]:
    """Whatever becomes of the modes while it is open, every module has its own again afterwards."""
    modes, training = [(module, module.training) for module in model.modules()], model.training
    try:
        yield
    finally:
        model.train(training)  # a class may do more in there than set the flag, as LoRA layers that merge
        for module, mode in modes:
            module.training = mode
