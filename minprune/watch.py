"""Seeing each layer's true input at the moment it is used, whatever the architecture around it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from minprune.model import Layer
from minprune.skeleton import plain_outputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Receive = Callable[[Layer, Tensor], None]


@contextmanager
def watch(layers: list[Layer], receive: Receive) -> Iterator[None]:
    """While open, `receive(layer, X)` is called right before a layer multiplies X (..., d_in) by its weight.

    A layer that is a module has a pre-hook. An expert is a slice of a 3-D parameter and has no module of its own;
    its product is recognised by the memory of the weight it is given, which takes the mixture's `one_by_one` form.
    """
    experts = {layer.weight.data_ptr(): layer for layer in layers if layer.expert is not None}
    handles = [
        layer.owner.register_forward_pre_hook(lambda module, args, layer=layer: receive(layer, args[0]))
        for layer in layers
        if layer.expert is None
    ]
    try:
        with _ExpertProducts(experts, receive) if experts else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def one_by_one(model: "PreTrainedModel", layers: list[Layer]) -> Iterator[None]:
    """While open, a mixture with a layer among `layers` applies its experts one after the other, as plain products.

    And the model answers without what flags in its configuration would add.
    """
    if all(layer.expert is None for layer in layers):
        with plain_outputs(model):
            yield
        return
    usual = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        with plain_outputs(model):
            yield
    finally:
        model.set_experts_implementation(usual)


class _ExpertProducts(TorchFunctionMode):
    def __init__(self, experts: dict[int, Layer], receive: Receive):
        super().__init__()
        self.experts, self.receive = experts, receive

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is linear and (layer := self.experts.get(args[1].data_ptr())):
            self.receive(layer, args[0])
        return func(*args, **(kwargs or {}))
