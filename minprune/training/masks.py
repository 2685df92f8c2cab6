"""The zeros of a whole network as masks, and three ways to keep them while it learns. Chapters 16 to 18.

    masks = masks_of(find_layers(model))                     # what is zero now stays zero
    with maintain_sparsity(masks, optimizer):                # 1: around any training loop
        ...
    Trainer(..., callbacks=[KeepZeros(masks)])               # 2: callback.py
    parametrise(masks); ...; remove_parametrizations(masks)  # 3: parametrized.py: the mask becomes a part of the weight

All three mask the gradients, too, before anything adds them up. Otherwise the gradients of weights that do not exist
would count in the norm by which gradients are clipped. So all three learn the same numbers. They are equal bit for bit
if that norm is summed in the same order: a parametrised weight has another place among a model's parameters.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from minprune.arguments import checked
from minprune.errors import PruneError
from minprune.models.layers import Layer
from minprune.patterns import Pattern, keep_largest
from minprune.patterns import pattern as read_pattern

Masks = Mapping[Layer, Tensor]  # (d_out, d_in) bool each, True = kept
SCOPES = ("layer", "global")


@checked()
def linear_layers(network: nn.Module) -> list[Layer]:
    """Every `nn.Linear` of any module, in its order. For a language model see `minprune.find_layers`.

    Parameters
    ----------
    network : nn.Module
        Any module.

    Returns
    -------
    list of Layer

    Examples
    --------
    >>> from torch import nn
    >>> from minprune.training.masks import linear_layers
    >>> [layer.name for layer in linear_layers(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))]
    ['0', '2']
    """
    return [Layer(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]


@checked()
@torch.inference_mode(False)  # masks that are made in it could not be learnt with
@torch.no_grad()
def masks_of(layers: Iterable[Layer]) -> dict[Layer, Tensor]:
    """The masks of what is not zero now.

    Parameters
    ----------
    layers : iterable of Layer
        From `linear_layers` or `minprune.find_layers`.

    Returns
    -------
    dict of Layer to Tensor (d_out, d_in), bool

    Raises
    ------
    PruneError
        If there is no layer.

    Examples
    --------
    >>> import torch
    >>> from minprune.training.masks import linear_layers, masks_of, sparsity_of
    >>> network = torch.nn.Linear(4, 1)
    >>> network.weight.data = torch.tensor([[0.0, 2.0, 0.0, 0.0]])
    >>> sparsity_of(masks_of(linear_layers(network)))
    0.75
    """
    found = {layer: layer.weight != 0 for layer in layers}
    if not found:
        raise PruneError("there is no layer to take masks of: pass the layers that find_layers or linear_layers found")
    return found


@checked()
@torch.inference_mode(False)
@torch.no_grad()
def magnitude_masks(
    weights: Mapping[Layer, Tensor], pattern: str | Pattern, scope: str = "layer", alive: Masks | None = None
) -> dict[Layer, Tensor]:
    """Masks by magnitude.

    Parameters
    ----------
    weights : mapping of Layer to Tensor (d_out, d_in)
        What is ranked.
    pattern : str or Pattern
        Which zeros are allowed; a plain sparsity for scope="global".
    scope : {"layer", "global"}, default "layer"
        Whether each layer is pruned by the pattern, or all by one threshold: round(sparsity * all weights) zeros.
    alive : mapping of Layer to Tensor (d_out, d_in), bool, optional
        What it does not keep is pruned before anything else, so that masks only shrink.

    Returns
    -------
    dict of Layer to Tensor (d_out, d_in), bool

    Raises
    ------
    PruneError
        For an unknown scope, a pattern that does not fit, no weights at all, or `alive` without a mask of one of them.

    Examples
    --------
    >>> import torch
    >>> from minprune.training.masks import linear_layers, magnitude_masks
    >>> (layer,) = linear_layers(torch.nn.Linear(4, 1))
    >>> magnitude_masks({layer: torch.tensor([[1.0, -2.0, 3.0, -4.0]])}, "50%")[layer]
    tensor([[False, False,  True,  True]])
    """
    pattern = read_pattern(pattern)
    check_scope(scope)
    if not weights:
        raise PruneError("there is no weight to rank: pass those of the layers that find_layers or linear_layers found")
    for layer, W in weights.items():
        if alive is not None and (layer not in alive or alive[layer].shape != W.shape):
            raise PruneError(f"{layer.name} has no mask of its shape in alive: take the masks of the same layers")
    scores = {layer: W.abs() for layer, W in weights.items()}
    if alive is not None:
        scores = {layer: score.masked_fill(~alive[layer], -1) for layer, score in scores.items()}
    if scope == "layer":
        found = {layer: pattern.with_default("layer").keep(score) for layer, score in scores.items()}
    else:
        found = _below_one_threshold(scores, pattern)
    if alive is None:
        return found
    return {layer: keep & alive[layer] for layer, keep in found.items()}  # a pattern may keep more than is alive


def check_scope(scope: str) -> None:
    """Raise `PruneError` unless masks can be chosen within that scope."""
    if scope not in SCOPES:
        raise PruneError(f"unknown scope {scope!r}: use one of {', '.join(SCOPES)}")


def _below_one_threshold(scores: dict[Layer, Tensor], pattern: Pattern) -> dict[Layer, Tensor]:
    """Masks of the largest scores of all layers together."""
    if getattr(pattern, "group", "none") is not None:
        raise PruneError(f"one threshold over all layers needs a plain sparsity such as 50%, not {pattern}")
    flat = torch.cat([score.flatten() for score in scores.values()])  # (all weights,)
    keep = keep_largest(flat[None], round(pattern.sparsity * flat.numel()))[0]
    parts = keep.split([score.numel() for score in scores.values()])
    return {layer: part.view(score.shape) for (layer, score), part in zip(scores.items(), parts, strict=True)}


def sparsity_of(masks: Masks) -> float:
    """The fraction of weights that the masks prune; 0 of none."""
    total = sum(keep.numel() for keep in masks.values())
    return sum(keep.numel() - int(keep.count_nonzero()) for keep in masks.values()) / max(total, 1)


def stored_masks(masks: Masks) -> dict[tuple[nn.Module, str], Tensor]:
    """The pruned mask of each parameter, by module and name: bool in the parameter's own shape, True = zero.

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


@checked()
@contextmanager
def maintain_sparsity(masks: Masks, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Keep the zeros in any training loop: gradients are masked as they arrive, weights after each optimizer step.

    Masked gradients alone would do only for an optimizer that has never seen the pruned weights move: what it
    remembers of them, as momentum, goes on moving them.

    Parameters
    ----------
    masks : mapping of Layer to Tensor (d_out, d_in), bool
        True where kept, as from `masks_of`.
    optimizer : torch.optim.Optimizer
        Of the loop inside.

    Yields
    ------
    None

    Raises
    ------
    PruneError
        If a weight that could learn is missing from the optimizer, or a mask is not bool and as large as its weight.

    Examples
    --------
    >>> import torch
    >>> from minprune.training.masks import linear_layers, maintain_sparsity, masks_of
    >>> network = torch.nn.Linear(4, 1)
    >>> network.weight.data = torch.tensor([[0.0, 2.0, 0.0, 0.0]])
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    >>> with maintain_sparsity(masks_of(linear_layers(network)), optimizer):
    ...     network(torch.ones(1, 4)).sum().backward()
    ...     optimizer.step()
    >>> network.weight.data
    tensor([[0.0000, 1.9000, 0.0000, 0.0000]])
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
    """Set the gradients of pruned weights to zero as soon as they are there, until the handles are removed."""

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
