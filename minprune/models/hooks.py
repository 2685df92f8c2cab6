"""Seeing each layer's true input at the moment it is used, whatever the architecture around it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from minprune.errors import PruneError
from minprune.models.layers import Layer
from minprune.models.skeleton import plain_outputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

InputCallback = Callable[[Layer, Tensor], None]

_CHUNKS = ("chunk_size_feed_forward", "chunk_size_lm_head")  # as in BERT: tokens that go through a part at a time
_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook"),
)
_MATMULS = {torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}


@contextmanager
def capture_inputs(layers: list[Layer], receive: InputCallback) -> Iterator[None]:
    """While open, `receive(layer, X)` is called right before a layer multiplies X (..., d_in) by its weight.

    A layer that is a module has a pre-hook. An expert is a slice of a 3-D parameter and has no module of its own, and
    some families use a weight without calling its module (Mamba's `dt_proj`): their product is recognised by the memory
    of the weight it is given. A mixture takes its `eager_experts` form for that.
    """
    called: set[Layer] = set()

    def receive_from_module(layer: Layer, X: Tensor) -> None:
        called.add(layer)
        receive(layer, X)

    handles = [
        layer.module.register_forward_pre_hook(
            lambda module, args, kwargs, layer=layer: receive_from_module(layer, input_of(args, kwargs)),
            with_kwargs=True,
        )
        for layer in layers
        if layer.expert_index is None
    ]
    try:
        with _Products(layers, called, receive):
            yield
    finally:
        for handle in handles:
            handle.remove()


def input_of(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """What a linear layer is called with, by position or by name."""
    return args[0] if args else next(iter(kwargs.values()))


def once(receive: InputCallback) -> InputCallback:
    """The same receiver, for one forward pass: `PruneError` if a layer is applied again, to other tokens, say.

    What is pruned when its first input arrives has seen no other. A weight of several names is known to be used again.
    """
    seen: set[Layer] = set()

    def first(layer: Layer, X: Tensor) -> None:
        if layer in seen and not layer.aliases and X.numel():
            raise PruneError(
                f"{layer.name} is applied more than once in a forward pass, so its first input is not all that it "
                "reads: use sequential=False (--two-pass on the command line), or leave it out"
            )
        if X.numel():
            seen.add(layer)
        receive(layer, X)

    return first


def check_compiled(model: nn.Module) -> None:
    """Raise `PruneError` if the model or a part of it is compiled: what runs compiled cannot be watched."""
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, torch.jit.ScriptModule):
            raise PruneError(f"{name or 'the model'} is compiled by TorchScript: put back what it was made from")
        if (
            "_orig_mod" in module._modules
            or module._compiled_call_impl
            or hasattr(module.forward, "_torchdynamo_inline")
        ):
            raise PruneError(
                f"{name or 'the model'} is compiled, so that minprune cannot see what its layers read: prune the model "
                "before it is compiled, or what torch.compile left as it was (model._orig_mod)"
            )


def hand_on_hooks(old: nn.Module, new: nn.Module, copied: Callable[[Any], Any] = lambda hooks: hooks) -> None:
    """Give the hooks of a module to what takes its place: the very same, so that their handles still remove them.

    copied: what makes other ones of them, for a module that stands beside the old one.
    """
    for key in _HOOKS:
        setattr(new, key, copied(getattr(old, key)))


class _AtTheHeadError(Exception):
    """Raised where the output head would begin."""


def run_to_head(model: "PreTrainedModel", tokens: Tensor) -> None:
    """The model's forward pass over tokens (windows, length), up to its output head, whose product is not taken.

    Some families change what their backbone returns before the head reads it (BERT's dense layer, activation and norm).
    A `capture_inputs` on the head that was opened before sees what it reads.
    """

    def stop(head, args) -> None:
        raise _AtTheHeadError

    handle = model.get_output_embeddings().register_forward_pre_hook(stop)
    try:
        with suppress(_AtTheHeadError):
            model(input_ids=tokens, use_cache=False)
    finally:
        handle.remove()


@contextmanager
def eager_experts(model: "PreTrainedModel", layers: list[Layer]) -> Iterator[None]:
    """While open, a mixture with a layer among `layers` applies its experts one after the other, as plain products.

    And every layer gets all its tokens at once, not in chunks, and the model answers without what flags in its
    configuration would add.
    """
    with ExitStack() as stack:
        if any(layer.expert_index is not None for layer in layers):
            stack.callback(model.set_experts_implementation, model.get_experts_implementation())
            model.set_experts_implementation("eager")
        for module in model.modules():
            for key in _CHUNKS:
                if size := getattr(module, key, 0):
                    stack.callback(setattr, module, key, size)
                    setattr(module, key, 0)
        stack.enter_context(plain_outputs(model))
        yield


class _Products(TorchFunctionMode):
    """Tells of products with the weights of `layers`, but for those in `called`, whose modules tell of them."""

    def __init__(self, layers: list[Layer], called: set[Layer], receive: InputCallback):
        super().__init__()
        self.layers = {layer.weight.data_ptr(): layer for layer in layers}
        self.called, self.receive = called, receive

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is linear:
            left, right = _two(args, kwargs, "weight")
            self._look(left, right.T if right.ndim == 2 else right)
        elif func in _MATMULS:
            self._look(*_two(args, kwargs, "mat2" if "mat2" in kwargs else "other"))
        return func(*args, **kwargs)

    def _look(self, left: Tensor, right: Tensor) -> None:
        """Left (..., d_in) times right, the transposed weight; or left, the weight, times right (..., d_in, tokens)."""
        for X, W in ((left, right.T if right.ndim == 2 else None), (right.mT if right.ndim > 1 else right, left)):
            layer = None if W is None else self.layers.get(_pointer(W))
            if W is not None and layer and layer not in self.called and _same(W, layer.weight):
                self.receive(layer, X)


def _two(args: tuple, kwargs: dict, second: str) -> tuple[Tensor, Tensor]:
    """The first two arguments of a product, however they are given."""
    named = [kwargs[name] for name in ("input", second) if name in kwargs]
    left, right, *_ = (*args[:2], *named)
    return left, right


def _same(W: Tensor, weight: Tensor) -> bool:
    return (W.shape, W.stride()) == (weight.shape, weight.stride())


def _pointer(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # inside of vmap a tensor has no memory of its own
        return -1
