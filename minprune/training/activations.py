"""Pruning activations while the model runs: small inputs of a layer count as zero, its weights stay as they are.

    y = W (x * [|x| > threshold])          for each token anew

The mask belongs to one token's input, so it must never be written into the weights. A published snippet does just that,
`weight *= mask` in a forward hook: after the first input every column of an inactive input is zero for good, and the
next input can only make more so. Chapter 17 shows what is left of the model.

Layers read inputs of very different size. One threshold for all prunes some of them away and others hardly at all;
`thresholds` gives each layer its own.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from minprune.arguments import checked
from minprune.errors import PruneError, check_kind
from minprune.models.hooks import input_of
from minprune.models.layers import Layer, backbone, check_windows
from minprune.models.modes import eval_mode
from minprune.training.masks import Handles


@dataclass
class Activity:
    """How many numbers layers have read, and how many of them were set to zero; by_layer: the same for each by name."""

    seen: int = 0
    zeroed: int = 0
    by_layer: dict[str, "Activity"] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """The fraction of zeroed inputs; 0 if nothing was read."""
        return self.zeroed / max(self.seen, 1)

    def add(self, layer: str, seen: int, zeroed: int) -> None:
        """Count what this layer has read."""
        for part in (self, self.by_layer.setdefault(layer, Activity())):
            part.seen += seen
            part.zeroed += zeroed


def small_to_zero(X: Tensor, threshold: float) -> Tensor:
    """X with every |x| <= threshold replaced by zero, a new tensor."""
    return X.masked_fill(X.abs() <= threshold, 0)


@torch.no_grad()
def thresholds(model: nn.Module, layers: Iterable[Layer], tokens: Tensor, sparsity: float) -> dict[Layer, float]:
    """For each layer the absolute value that the fraction `sparsity` of its inputs does not exceed, on these windows.

    tokens: (windows, length). They go through the unchanged model in one call, in eval mode, without its head unless
    that is among the layers. Raises `PruneError` for a sparsity outside 0..1, and for experts.
    """
    layers = list(layers)
    check_windows(model, tokens)  # type: ignore[arg-type]
    check_kind("sparsity", sparsity, float)
    if not 0 <= sparsity <= 1:
        raise PruneError(f"sparsity {sparsity:g} is not within 0..1: it is the share of inputs that count as zero")
    found: dict[Layer, float] = {}

    def measure(layer: Layer, X: Tensor) -> Tensor:
        smallest = round(sparsity * X.numel())
        found[layer] = float(X.abs().flatten().kthvalue(smallest).values) if smallest else 0.0
        return X

    head = model.get_output_embeddings()  # type: ignore[operator]
    run = model if any(layer.module is head for layer in layers) else backbone(model)  # type: ignore[arg-type]
    handles = _before(layers, measure)
    try:
        with eval_mode(model):
            run(input_ids=tokens.to(next(model.parameters()).device), use_cache=False)
    finally:
        handles.remove()
    return found


@checked()
@contextmanager
def pruned_activations(layers: Iterable[Layer], threshold: float | Mapping[Layer, float]) -> Iterator[Activity]:
    """While open, every layer reads its input with small numbers set to zero.

    The result of a model depends on the token's own inputs only, so order and batching of the texts change nothing.

    Parameters
    ----------
    layers : iterable of Layer
        From `linear_layers` or `minprune.find_layers`.
    threshold : float or mapping of Layer to float
        In the unit of the activations, one for all layers or one for each, as from `thresholds`. 0 changes nothing.

    Yields
    ------
    Activity
        Counts what was read, and how much of it was set to zero.

    Raises
    ------
    PruneError
        For a negative or missing threshold, and for experts: they are no modules of their own.

    Examples
    --------
    >>> import torch
    >>> from minprune.training.activations import pruned_activations
    >>> from minprune.training.masks import linear_layers
    >>> network = torch.nn.Linear(4, 1)
    >>> with pruned_activations(linear_layers(network), threshold=0.5) as activity:
    ...     y = network(torch.tensor([[0.1, 0.2, 0.3, 0.9]]))
    >>> activity.sparsity
    0.75
    """
    layers = list(layers)
    limits = threshold if isinstance(threshold, Mapping) else dict.fromkeys(layers, threshold)
    for layer in layers:
        if layer not in limits:
            raise PruneError(f"{layer.name} has no threshold: measure it with `thresholds`, or leave the layer out")
        check_kind(f"the threshold of {layer.name}", limits[layer], float)
        if not limits[layer] >= 0:
            raise PruneError(f"threshold {limits[layer]:g} is negative: an absolute value is compared with it")
    activity = Activity()

    def prune(layer: Layer, X: Tensor) -> Tensor:
        X = small_to_zero(X, limits[layer])
        activity.add(layer.name, X.numel(), X.numel() - int(X.count_nonzero()))
        return X

    handles = _before(layers, prune)
    try:
        yield activity
    finally:
        handles.remove()


def _before(layers: Iterable[Layer], change) -> Handles:
    """Until removed, each layer reads change(layer, its input) in place of its input."""
    layers = list(layers)
    for layer in layers:
        if layer.expert_index is not None:
            raise PruneError(f"{layer.name} is an expert and not a module of its own: leave it out")

    def hook(layer: Layer):
        return lambda module, args, kwargs: ((change(layer, input_of(args, kwargs)),), {})

    return Handles([layer.module.register_forward_pre_hook(hook(layer), with_kwargs=True) for layer in layers])
