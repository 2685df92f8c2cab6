"""Pruning activations while the model runs: small inputs of a layer count as zero, its weights stay as they are.

    y = W (x * [|x| > threshold])          for each token anew

The mask belongs to one token's input, so it must never be written into the weights. A published snippet does just that,
`weight *= mask` in a forward hook: after the first input every column of an inactive input is zero for good, and the
next input can only make more so. Chapter 16 shows what is left of the model.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from minprune.errors import PruneError
from minprune.model import Layer


@dataclass
class Activity:
    """How many numbers layers have read, and how many of them were set to zero."""

    seen: int = 0
    zeroed: int = 0

    @property
    def sparsity(self) -> float:
        """The fraction of zeroed inputs; 0 if nothing was read."""
        return self.zeroed / max(self.seen, 1)


def small_to_zero(X: Tensor, threshold: float) -> Tensor:
    """X with every |x| <= threshold replaced by zero, a new tensor."""
    return X.masked_fill(X.abs() <= threshold, 0)


@contextmanager
def pruned_activations(layers: Iterable[Layer], threshold: float) -> Iterator[Activity]:
    """While open, every layer reads its input with small numbers set to zero; what it yields counts them.

    threshold: in the unit of the activations; 0 changes nothing. The result of a model depends on the token's own
    inputs only, so order and batching of the texts change nothing. Raises `PruneError` for a negative threshold and
    for experts, which are not modules of their own.
    """
    layers = list(layers)
    if not threshold >= 0:
        raise PruneError(f"threshold {threshold:g} is negative: an absolute value is compared with it")
    for layer in layers:
        if layer.expert is not None:
            raise PruneError(f"{layer.name} is an expert and not a module of its own: leave it out")
    activity = Activity()

    def before(module, args):
        X = small_to_zero(args[0], threshold)
        activity.seen += X.numel()
        activity.zeroed += X.numel() - int(X.count_nonzero())
        return (X, *args[1:])

    handles = [layer.owner.register_forward_pre_hook(before) for layer in layers]
    try:
        yield activity
    finally:
        for handle in handles:
            handle.remove()
