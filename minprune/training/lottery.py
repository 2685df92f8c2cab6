"""Lottery tickets: iterative magnitude pruning with rewinding, and the controls it needs. Chapter 16.

Train, prune the smallest weights, put the survivors back to what they were at the start, train again, and so on
(Frankle and Carbin 2019); or back to an early step (Frankle et al. 2020). Without going back it is what practitioners
do: prune a little more, fine-tune, repeat. What was pruned never returns here; for that see schedule.py.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minprune.errors import PruneError
from minprune.models.layers import Layer
from minprune.patterns import Unstructured
from minprune.training.masks import Masks, magnitude_masks, set_zeros, sparsity_of

Train = Callable[[nn.Module, Masks, int, int], None]
"""train(network, masks, start, stop): take the steps start, ..., stop - 1 in place and keep the masks' zeros."""


@dataclass(frozen=True)
class Ticket:
    """What one round found. masks: of the network that was trained in this round; round 0 is the dense one.

    cost: all training steps taken so far, this round's included. score: what `measure` says after training. sparsity:
    the exact fraction of zeros over all layers.
    """

    round: int
    masks: dict[Layer, Tensor]
    sparsity: float
    cost: int
    score: float


def shares(rate: float, rounds: int) -> list[float]:
    """The sparsity after each of `rounds` rounds that each prune the fraction `rate` of what is left."""
    if not 0 < rate < 1 or rounds < 1:
        raise PruneError(f"rate {rate:g} and {rounds} rounds: the rate lies between 0 and 1, and a round is needed")
    return [1 - (1 - rate) ** number for number in range(1, rounds + 1)]


def find_tickets(
    network: nn.Module,
    layers: Iterable[Layer],
    train: Train,
    measure: Callable[[nn.Module], float],
    *,
    steps: int,
    sparsities: Sequence[float],
    scope: str = "layer",
    rewind: int | None = 0,
) -> list[Ticket]:
    """Train the network dense, then once more for each sparsity, each time with the smallest weights pruned.

    steps: of a full training run. sparsities: after each round, rising, as from `shares`; every layer (scope="layer")
    or all layers together ("global") have exactly round(sparsity * size) zeros. rewind: the step to which weights go
    back before each round (0: initialisation), so that a round trains from there to `steps`; everything in the
    network's state goes back, biases too, and `train` is to make a new optimizer each time. None: weights stay as
    they are, and a round is `steps` further steps, counted on from the last. The network ends as the last round left
    it. Raises `PruneError` if there is no layer, for sparsities that do not rise, or a step to rewind to that is not
    within a run.
    """
    layers = list(layers)
    if not layers:
        raise PruneError("there is no layer to prune: pass those that find_layers or linear_layers found")
    if any(b <= a for a, b in zip([0.0, *sparsities], sparsities, strict=False)):
        raise PruneError(f"sparsities must rise from round to round, not {list(sparsities)}")
    if rewind is not None and not 0 <= rewind < steps:
        raise PruneError(f"rewind {rewind} is not a step of a run of {steps}: 0 is the initialisation")
    masks = {layer: torch.ones_like(layer.weight, dtype=torch.bool) for layer in layers}
    start = rewind or 0
    if start:
        train(network, masks, 0, start)
    origin = state_of(network)
    train(network, masks, start, steps)
    cost = steps
    tickets = [Ticket(0, masks, 0.0, cost, measure(network))]
    for number, sparsity in enumerate(sparsities, 1):
        weights = {layer: layer.weight for layer in layers}
        masks = magnitude_masks(weights, Unstructured(sparsity), scope, alive=masks)
        if rewind is not None:
            network.load_state_dict(origin)
        set_zeros(masks)
        begin, end = (start, steps) if rewind is not None else (cost, cost + steps)
        train(network, masks, begin, end)
        cost += end - begin
        tickets.append(Ticket(number, masks, sparsity_of(masks), cost, measure(network)))
    return tickets


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of everything in the network's state, to go back to with `load_state_dict`."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


@torch.no_grad()
def reinitialise(network: nn.Module, seed: int) -> None:
    """Draw all weights anew, each module by its own rule (`reset_parameters`): the first control.

    The ticket's mask with other initial weights: does it matter that the survivors were *these* numbers? Raises
    `PruneError` if a module with parameters of its own has no such rule.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, module in network.named_modules():
            if not list(module.parameters(recurse=False)):
                continue
            reset = getattr(module, "reset_parameters", None)
            if reset is None:
                raise PruneError(f"{name} ({type(module).__name__}) cannot be drawn anew: build the network again")
            reset()


def random_ticket(masks: Masks, seed: int) -> dict[Layer, Tensor]:
    """As many survivors in each layer, but anywhere: the second control.

    Does it matter *which* weights survive, or only how many in each layer?
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer, keep in masks.items():
        order = torch.randperm(keep.numel(), generator=generator).to(keep.device)
        found[layer] = keep.flatten()[order].view(keep.shape)
    return found
