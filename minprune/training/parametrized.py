"""Masks that are a part of their weights: the third way of masks.py to keep the zeros. Chapters 17 and 18."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from minprune.arguments import checked
from minprune.errors import PruneError
from minprune.training.masks import Masks, stored_masks


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


@checked()
@torch.inference_mode(False)
def parametrise(masks: Masks, straight_through: bool = False) -> None:
    """Make each mask a part of its weight: whatever an optimizer does to the numbers behind it, the zeros are zero.

    Until `remove_parametrizations`, `Layer.weight` is a copy, and the parameters have other names: do not save the
    model.

    Parameters
    ----------
    masks : mapping of Layer to Tensor (d_out, d_in), bool
        True where kept.
    straight_through : bool, default False
        Whether gradients reach the masked weights as if they were not masked, see `Masked`.

    Raises
    ------
    PruneError
        For a weight that has a mask already.

    Examples
    --------
    >>> import torch
    >>> from minprune.training.masks import linear_layers
    >>> from minprune.training.parametrized import parametrise, remove_parametrizations
    >>> network = torch.nn.Linear(2, 1)
    >>> masks = {layer: torch.tensor([[False, True]]) for layer in linear_layers(network)}
    >>> parametrise(masks)
    >>> remove_parametrizations(masks)
    >>> network.weight[0, 0].item()
    0.0
    """
    places = stored_masks(masks)
    for layer in masks:
        if parametrize.is_parametrized(layer.module, layer.parameter):
            raise PruneError(f"{layer.name} has a mask already: make that one permanent first, or build the model anew")
    for (owner, name), pruned_mask in places.items():
        parametrize.register_parametrization(owner, name, Masked(pruned_mask, straight_through))


@checked()
@torch.inference_mode(False)
def remove_parametrizations(masks: Masks) -> None:
    """Replace the parametrised weights by what they come to, so that the model is an ordinary one again.

    Parameters
    ----------
    masks : mapping of Layer to Tensor (d_out, d_in), bool
        Those that `parametrise` was given.

    Raises
    ------
    PruneError
        For a weight that is not parametrised; nothing is changed then.

    Examples
    --------
    See `parametrise`:

    >>> import torch
    >>> from minprune.training.masks import linear_layers, masks_of
    >>> from minprune.training.parametrized import parametrise, remove_parametrizations
    >>> network = torch.nn.Linear(2, 1)
    >>> masks = masks_of(linear_layers(network))
    >>> parametrise(masks)
    >>> remove_parametrizations(masks)
    >>> type(network).__name__
    'Linear'
    """
    places = stored_masks(masks)
    for layer in masks:
        if not parametrize.is_parametrized(layer.module, layer.parameter):
            raise PruneError(f"{layer.name} has no mask or adapter in front of its weight: there is nothing to remove")
    for owner, name in places:
        with torch.no_grad():
            parametrize.remove_parametrizations(owner, name, leave_parametrized=True)
