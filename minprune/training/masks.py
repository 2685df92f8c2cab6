"""The zeros of a whole network as masks, and three ways to keep them while it learns. Chapters 16 to 18.

    masks = masks_of(find_layers(model))                     # what is zero now stays zero
    with maintain_sparsity(masks, optimizer):                # 1: around any training loop
        ...
    Trainer(..., callbacks=[KeepZeros(masks)])               # 2: callback.py
    parametrise(masks); ...; remove_parametrizations(masks)  # 3: the mask becomes a part of the weight

All three mask the gradients, too, before anything adds them up: else the gradients of weights that do not exist would
count in the norm by which gradients are clipped. So all three learn the same numbers, bit for bit if that norm is
summed in the same order (a parametrised weight has another name, and another place among a model's parameters).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from minprune.errors import PruneError
from minprune.models.layers import Layer
from minprune.patterns import Pattern, keep_largest
from minprune.patterns import pattern as read_pattern

Masks = Mapping[Layer, Tensor]  # (d_out, d_in) bool each, True = kept
SCOPES = ("layer", "global")


def linear_layers(network: nn.Module) -> list[Layer]:
    """Every `nn.Linear` of any module, in its order. For a language model see `minprune.find_layers`."""
    return [Layer(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]


@torch.inference_mode(False)  # masks that are made in it could not be learnt with
@torch.no_grad()
def masks_of(layers: Iterable[Layer]) -> dict[Layer, Tensor]:
    """The masks of what is not zero now. Raises `PruneError` if there is no layer."""
    found = {layer: layer.weight != 0 for layer in layers}
    if not found:
        raise PruneError("there is no layer to take masks of: pass the layers that find_layers or linear_layers found")
    return found


@torch.inference_mode(False)
@torch.no_grad()
def magnitude_masks(
    weights: Mapping[Layer, Tensor], pattern: str | Pattern, scope: str = "layer", alive: Masks | None = None
) -> dict[Layer, Tensor]:
    """Masks by magnitude: of each layer by the pattern, or with scope="global" by one threshold over all layers.

    weights: (d_out, d_in) for each layer. alive: what it does not keep is pruned before anything else, so that masks
    only shrink. scope="global" prunes exactly round(sparsity * all weights), and the pattern is an unstructured one.
    """
    pattern = read_pattern(pattern)
    scores = {layer: W.abs() for layer, W in weights.items()}
    if alive is not None:
        scores = {layer: score.masked_fill(~alive[layer], -1) for layer, score in scores.items()}
    if scope == "layer":
        return {layer: pattern.with_default("layer").keep(score) for layer, score in scores.items()}
    if scope != "global":
        raise PruneError(f"unknown scope {scope!r}: use one of {', '.join(SCOPES)}")
    if getattr(pattern, "group", "none") is not None:
        raise PruneError(f"one threshold over all layers needs a plain sparsity such as 50%, not {pattern}")
    flat = torch.cat([score.flatten() for score in scores.values()])  # (all weights,)
    keep = keep_largest(flat[None], round(pattern.sparsity * flat.numel()))[0]
    parts = keep.split([score.numel() for score in scores.values()])
    return {layer: part.view(score.shape) for (layer, score), part in zip(scores.items(), parts, strict=True)}


def sparsity_of(masks: Masks) -> float:
    """The fraction of weights that the masks prune."""
    total = sum(keep.numel() for keep in masks.values())
    return 1 - sum(int(keep.count_nonzero()) for keep in masks.values()) / total


def stored_masks(masks: Masks) -> dict[tuple[nn.Module, str], Tensor]:
    """For each parameter, given by its module and name, what goes: bool in the parameter's own shape, True = zero.

    A GPT-2 layer is stored transposed, and the experts of a mixture share one parameter.
    """
    found: dict[tuple[nn.Module, str], Tensor] = {}
    for layer, keep in masks.items():
        stored = original(layer)
        if keep.shape != layer.view_as_2d(stored).shape or keep.dtype != torch.bool:
            raise PruneError(
                f"{layer.name}: its mask is {keep.dtype} {tuple(keep.shape)}, its weight is "
                f"{tuple(layer.view_as_2d(stored).shape)}: a mask is bool and as large as the weight"
            )
        pruned_mask = found.setdefault((layer.module, layer.parameter), torch.zeros_like(stored, dtype=torch.bool))
        layer.view_as_2d(pruned_mask).copy_(~keep)
    return found


def original(layer: Layer) -> Tensor:
    """The parameter that an optimizer sees, also of a layer that is parametrised."""
    if parametrize.is_parametrized(layer.module, layer.parameter):
        return getattr(layer.module.parametrizations, layer.parameter).original
    return getattr(layer.module, layer.parameter)


@torch.inference_mode(False)
@torch.no_grad()
def set_zeros(masks: Masks) -> None:
    """Set to zero what the masks do not keep: +0.0, whatever was there, NaN included."""
    for (owner, name), pruned_mask in stored_masks(masks).items():
        getattr(owner, name).masked_fill_(pruned_mask, 0)
    torch.clear_autocast_cache()  # a caller's autocast may remember other weights in its own type


def check_owned(masks: Masks, parameters: Iterable[Tensor], place: str) -> None:
    """Raise `PruneError` if a mask belongs to none of these parameters, say to those of the model that was copied."""
    known = {id(parameter) for parameter in parameters}
    for layer in masks:
        if id(getattr(layer.module, layer.parameter)) not in known:
            raise PruneError(
                f"{layer.name}: its mask belongs to a weight that {place}, so that its zeros would be lost: take the "
                "masks of the very model that is trained"
            )


@contextmanager
def maintain_sparsity(masks: Masks, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Keep the zeros in any training loop: gradients are masked as they arrive, weights after each optimizer step.

    Masked gradients alone would do only for an optimizer that has never seen the pruned weights move: what it
    remembers of them, as momentum, goes on moving them. Raises `PruneError` if the optimizer has not got a weight that
    could learn.
    """
    learning = {layer: keep for layer, keep in masks.items() if getattr(layer.module, layer.parameter).requires_grad}
    known = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    check_owned(learning, known, "the optimizer has not got")
    places = [(getattr(owner, name), pruned_mask) for (owner, name), pruned_mask in stored_masks(masks).items()]
    set_zeros(masks)

    @torch.no_grad()
    def after_step(*_) -> None:
        for parameter, pruned_mask in places:
            parameter.masked_fill_(pruned_mask, 0)
        torch.clear_autocast_cache()  # in which the caller's optimizer step has left the weights before it

    handles = Handles([mask_gradients(masks), optimizer.register_step_post_hook(after_step)])
    try:
        yield
    finally:
        handles.remove()


class Handles:
    """Several hooks that are removed together."""

    def __init__(self, handles: list):
        self.handles = handles

    def remove(self) -> None:
        """Remove them all."""
        for handle in self.handles:
            handle.remove()


def mask_gradients(masks: Masks) -> Handles:
    """From now on the gradients of pruned weights are zero as soon as they are there; returns what ends that."""

    def masking(pruned_mask: Tensor):
        def after_accumulation(parameter: Tensor) -> None:
            assert parameter.grad is not None  # torch calls this when there is one
            parameter.grad.masked_fill_(pruned_mask, 0)

        return after_accumulation

    return Handles(
        [
            getattr(owner, name).register_post_accumulate_grad_hook(masking(pruned_mask))
            for (owner, name), pruned_mask in stored_masks(masks).items()
            if getattr(owner, name).requires_grad
        ]
    )


class Masked(nn.Module):
    """The parametrisation W -> W where kept, 0 elsewhere. The optimizer sees the dense W behind it.

    straight_through: the gradient reaches the weights that are masked as if they were not, so that they go on moving
    behind the mask. Otherwise their gradient is zero and they stay where they were, up to weight decay and momentum.
    """

    pruned_mask: Tensor

    def __init__(self, pruned_mask: Tensor, straight_through: bool = False):
        super().__init__()
        self.register_buffer("pruned_mask", pruned_mask)
        self.straight_through = straight_through

    def forward(self, W: Tensor) -> Tensor:
        """W of the parameter's shape -> the same with zeros."""
        if self.straight_through:
            return _StraightThrough.apply(W, self.pruned_mask)
        return W.masked_fill(self.pruned_mask, 0)


class _StraightThrough(torch.autograd.Function):
    """Masks forwards, and does nothing to the gradient backwards."""

    @staticmethod
    def forward(ctx, W: Tensor, pruned_mask: Tensor) -> Tensor:
        return W.masked_fill(pruned_mask, 0)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


@torch.inference_mode(False)
def parametrise(masks: Masks, straight_through: bool = False) -> None:
    """Make each mask a part of its weight: whatever an optimizer does to the numbers behind it, the zeros are zero.

    Until `remove_parametrizations`, `Layer.weight` is a copy, and the parameters have other names: do not save the
    model. Raises `PruneError` for a weight that has a mask already: `Gradual` would move one of the two only.
    """
    places = stored_masks(masks)
    for layer in masks:
        if parametrize.is_parametrized(layer.module, layer.parameter):
            raise PruneError(f"{layer.name} has a mask already: make that one permanent first, or build the model anew")
    for (owner, name), pruned_mask in places.items():
        parametrize.register_parametrization(owner, name, Masked(pruned_mask, straight_through))


@torch.inference_mode(False)
def remove_parametrizations(masks: Masks) -> None:
    """Replace the parametrised weights by what they come to, so that the model is an ordinary one again."""
    for owner, name in stored_masks(masks):
        with torch.no_grad():
            parametrize.remove_parametrizations(owner, name, leave_parametrized=True)
