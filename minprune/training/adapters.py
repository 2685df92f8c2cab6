"""Low-rank adapters that are merged under the mask. Chapter 18.

    W' = (W + alpha / rank * B A) on the mask, 0 elsewhere       (Hu et al. 2022 for B A)

An adapter beside a sparse layer, as published, cannot be merged into it: W + B A has no zeros left. So the mask is put
around the sum from the first step on. The merged weights are then the trained ones.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from minprune.arguments import checked
from minprune.errors import PruneError, check_seed
from minprune.training.masks import Masks, stored_masks


class LowRank(nn.Module):
    """The parametrisation W -> W + alpha / rank * up @ down where kept, 0 elsewhere.

    pruned_mask: (rows, columns) bool of the stored weight, True = zero. up (rows, rank) begins as zero, down (rank,
    columns) as N(0, 1 / columns): the model is at first what it was.
    """

    pruned_mask: Tensor

    def __init__(self, pruned_mask: Tensor, dtype: torch.dtype, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        rows, columns = pruned_mask.shape
        down = torch.randn(rank, columns, generator=generator, dtype=torch.float32) / columns**0.5
        self.down = nn.Parameter(down.to(pruned_mask.device, dtype))
        self.up = nn.Parameter(torch.zeros(rows, rank, dtype=dtype, device=pruned_mask.device))
        self.register_buffer("pruned_mask", pruned_mask)
        self.scale = alpha / rank

    def forward(self, W: Tensor) -> Tensor:
        """W (rows, columns) -> the same with its adapter and with zeros."""
        with torch.autocast(W.device.type, enabled=False):  # a weight keeps its type, and the merged one is the trained
            return torch.addmm(W, self.up, self.down, alpha=self.scale).masked_fill(self.pruned_mask, 0)


@checked()
def add_adapters(model: nn.Module, masks: Masks, rank: int = 8, alpha: float = 16.0, seed: int = 0) -> list[Tensor]:
    """Freeze the model and put a low-rank adapter under each mask.

    `minprune.training.parametrized.remove_parametrizations(masks)` merges them.

    Parameters
    ----------
    model : nn.Module
        The model that the masks belong to.
    masks : mapping of Layer to Tensor (d_out, d_in), bool
        True where kept.
    rank : int, default 8
        Of each adapter.
    alpha : float, default 16.0
        The adapter is scaled by alpha / rank.
    seed : int, default 0
        Of the first factor; the second one begins as zero.

    Returns
    -------
    list of Tensor
        The parameters to train.

    Raises
    ------
    PruneError
        For experts that share one parameter, and for a rank that is not positive or above what a matrix can have.

    Examples
    --------
    >>> import torch
    >>> from minprune.training.adapters import add_adapters
    >>> from minprune.training.masks import linear_layers, masks_of
    >>> network = torch.nn.Linear(8, 4)
    >>> [tuple(p.shape) for p in add_adapters(network, masks_of(linear_layers(network)), rank=2)]
    [(4, 2), (2, 8)]
    """
    if not 0 < alpha < math.inf:
        raise PruneError(f"alpha {alpha:g} is not a positive number: 16 is a usual choice")
    if rank < 1:
        raise PruneError(f"rank {rank} is not positive: 8 is a usual choice")
    places = stored_masks(masks)
    if stack := next((name for (_, name), pruned_mask in places.items() if pruned_mask.ndim != 2), None):
        raise PruneError(f"{stack} holds several experts in one parameter: train this model without adapters")
    ranks = [min(pruned_mask.shape) for pruned_mask in places.values()]
    if (least := min(ranks, default=rank)) < rank:
        raise PruneError(f"rank {rank} is above the rank {least} that a matrix here can have at all: use less")
    generator = torch.Generator().manual_seed(check_seed(seed))
    model.requires_grad_(False)
    trained: list[Tensor] = []
    for (owner, name), pruned_mask in places.items():
        adapter = LowRank(pruned_mask, getattr(owner, name).dtype, rank, alpha, generator)
        parametrize.register_parametrization(owner, name, adapter)
        trained += [adapter.up, adapter.down]
    return trained
