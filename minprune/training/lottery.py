"""Lottery tickets: iterative magnitude pruning with rewinding, and the controls it needs. Chapter 16.

Train, prune the smallest weights, put the survivors back to what they were at the start (Frankle and Carbin 2019) or at
an early step (Frankle et al. 2020), and train again. Without going back it is what practitioners do: prune a little
more, fine-tune, repeat. Pruned weights never return here; schedule.py lets them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minprune.arguments import checked
from minprune.errors import PruneError, check_seed
from minprune.models.layers import Layer
from minprune.patterns import Unstructured
from minprune.training.masks import Masks, check_scope, magnitude_masks, set_zeros, sparsity_of

Train = Callable[[nn.Module, Masks, int, int], None]
"""train(network, masks, start, stop): take the steps start, ..., stop - 1 in place and keep the masks' zeros."""


@dataclass(frozen=True)
class Ticket:
    """What one round found.

    Parameters
    ----------
    round : int
        Its number; round 0 is the dense one.
    masks : dict of Layer to Tensor (d_out, d_in), bool
        Of the network that was trained in this round.
    sparsity : float
        The exact fraction of zeros over all layers.
    cost : int
        All training steps taken so far, this round's included.
    score : float
        What `measure` says after training.

    Examples
    --------
    >>> from minprune.training.lottery import Ticket
    >>> Ticket(round=1, masks={}, sparsity=0.2, cost=200, score=0.9).cost
    200
    """

    round: int
    masks: dict[Layer, Tensor]
    sparsity: float
    cost: int
    score: float


MOST_ROUNDS = 10_000  # of removing a fraction: long before, nothing is left


@checked()
def shares(rate: float, rounds: int) -> list[float]:
    """The sparsity after each of several rounds that each prune the same fraction of what is left.

    Parameters
    ----------
    rate : float
        That fraction, between 0 and 1.
    rounds : int
        How many.

    Returns
    -------
    list of float

    Raises
    ------
    PruneError
        For a rate outside 0..1, no round, or more than 10,000.

    Examples
    --------
    >>> from minprune.training.lottery import shares
    >>> shares(0.5, 3)
    [0.5, 0.75, 0.875]
    """
    if not 0 < rate < 1 or not 0 < rounds <= MOST_ROUNDS:
        raise PruneError(
            f"rate {rate:g}, {rounds} rounds: the rate lies between 0 and 1, rounds are 1 to {MOST_ROUNDS}"
        )
    return [1 - (1 - rate) ** number for number in range(1, rounds + 1)]


@checked()
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

    The network ends as the last round left it.

    Parameters
    ----------
    network : nn.Module
        As initialised; it is trained in place.
    layers : iterable of Layer
        Those to prune, from `linear_layers` or `minprune.find_layers`.
    train : callable
        train(network, masks, start, stop) takes the steps start, ..., stop - 1 in place and keeps the masks' zeros. It
        is to make a new optimizer each time.
    measure : callable
        measure(network) gives the score of a ticket.
    steps : int
        Of a full training run.
    sparsities : sequence of float
        After each round, rising, as from `shares`.
    scope : {"layer", "global"}, default "layer"
        Whether every layer, or all layers together, have exactly round(sparsity * size) zeros.
    rewind : int or None, default 0
        The step to which everything in the network's state goes back before each round (0: initialisation), so that a
        round trains from there to `steps`. None: weights stay as they are, and a round is `steps` further steps.

    Returns
    -------
    list of Ticket

    Raises
    ------
    PruneError
        Before anything is trained: if there is no layer, the sparsities do not rise within 0..1, the scope is unknown,
        or `rewind` is not a step of a run.

    Examples
    --------
    >>> import torch
    >>> from minprune.training.lottery import find_tickets, shares
    >>> from minprune.training.masks import linear_layers
    >>> network = torch.nn.Linear(10, 10)
    >>> found = find_tickets(
    ...     network, linear_layers(network), lambda *_: None, lambda _: 0.0, steps=5, sparsities=shares(0.5, 2)
    ... )
    >>> [ticket.sparsity for ticket in found]
    [0.0, 0.5, 0.75]
    """
    layers, patterns = list(layers), [Unstructured(sparsity) for sparsity in sparsities]
    check_scope(scope)
    if not layers:
        raise PruneError("there is no layer to prune: pass those that find_layers or linear_layers found")
    rising = [pattern.sparsity for pattern in patterns]
    if any(b <= a for a, b in zip([0.0, *rising], rising, strict=False)):
        raise PruneError(f"sparsities must rise from round to round, not {rising}")
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
    for number, pattern in enumerate(patterns, 1):
        weights = {layer: layer.weight for layer in layers}
        masks = magnitude_masks(weights, pattern, scope, alive=masks)
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
    `PruneError`, before anything is drawn, if a module with parameters of its own has no such rule.
    """
    drawn = [(name, module) for name, module in network.named_modules() if list(module.parameters(recurse=False))]
    for name, module in drawn:
        if not hasattr(module, "reset_parameters"):
            raise PruneError(f"{name} ({type(module).__name__}) cannot be drawn anew: build the network again")
    with torch.random.fork_rng():
        torch.manual_seed(check_seed(seed))
        for _, module in drawn:
            module.reset_parameters()


def random_ticket(masks: Masks, seed: int) -> dict[Layer, Tensor]:
    """As many survivors in each layer, but anywhere: the second control.

    Does it matter *which* weights survive, or only how many in each layer?
    """
    generator = torch.Generator().manual_seed(check_seed(seed))
    found = {}
    for layer, keep in masks.items():
        order = torch.randperm(keep.numel(), generator=generator, device="cpu").to(keep.device)
        found[layer] = keep.flatten()[order].view(keep.shape)
    return found
