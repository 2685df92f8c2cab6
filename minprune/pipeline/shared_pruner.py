"""Layers pruned by several processes: statistics summed, each layer solved once. Chapter 22.

Each rank sends its own windows through the blocks. For each group of layers that read one tensor

1. the ranks' sums are added up where a layer of the group has its owner (half of the Gram matrix travels),
2. each owner prunes its layers, while others prune theirs,
3. the pruned weights go to all ranks, and each goes on with its windows.

Left out: a model that is itself split over the ranks.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minprune.arithmetic import changes_of
from minprune.errors import PeerError, PruneError
from minprune.models.hooks import InputCallback
from minprune.models.layers import Layer
from minprune.output.report import LayerRow
from minprune.pipeline.layer_pruner import LayerPruner, RunLog
from minprune.pipeline.plan import PruningPlan
from minprune.pipeline.ranks import Ranks
from minprune.statistics import Statistics

_APART = "{} is not reached by the texts of every process, or not at the same time: prune this model with one process"


def share(ranks: Ranks, plan: PruningPlan, step: int | None = None) -> PruningPlan:
    """The plan with this rank's windows alone in its batches; there may be none.

    step: if blocks are trained, the windows of a step, of each of which every rank has a part.
    """
    if ranks.size == 1 or plan.calib is None or not plan.batch_size:
        return plan
    mine = torch.cat([ranks.part(windows) for windows in plan.calib.split(step or len(plan.calib))])
    at_once = math.ceil(plan.batch_size / ranks.size) if plan.from_memory else plan.batch_size
    return replace(plan, batches=tuple(mine.split(at_once)) if len(mine) else ())


def pruner_of(ranks: Ranks, plan: PruningPlan, log: RunLog) -> LayerPruner:
    """What prunes the layers of a plan, which was shared."""
    return LayerPruner(plan, log) if ranks.size == 1 else SharedPruner(plan, log, ranks)


class SharedPruner(LayerPruner):
    """A `LayerPruner` whose statistics are those of all ranks, and whose layers are pruned by one rank each.

    sent: bytes of statistics and weights that this rank has given or taken. one_pass: whether every rank sends all of
    its windows through a block at once.
    """

    def __init__(self, plan: PruningPlan, log: RunLog, ranks: Ranks):
        super().__init__(plan, log)
        self.ranks, self.sent = ranks, 0
        experts = any(layer.expert_index is not None for layer in plan.layers)  # no two texts reach the same
        self.one_pass = all(ranks.gather(len(plan.batches) == 1 and not experts))

    def prune_group(self, observed: dict[Layer, Statistics]) -> list[Layer]:
        """Prune layers, each by its owner, on what all ranks have observed of their inputs."""
        groups = self._agree(observed)
        layers = [layer for group in groups for layer in group]
        owners = dict(zip(layers, pack([_cost(layer) for layer in layers], self.ranks.size), strict=True))
        sums: dict[Layer, Statistics] = {}
        for group in groups:
            stats = self._sum_at({owners[layer] for layer in group}, group[0], observed.get(group[0]))
            sums |= dict.fromkeys(group, stats)
        self._prune_owned(owners, sums)
        return layers

    def prune_on_forward(self) -> InputCallback:
        """As for one process, where every rank is in its one pass: they meet at each layer."""
        last: tuple[Tensor, object, Statistics] | None = None
        owner = -1

        def receive(layer: Layer, X: Tensor) -> None:
            nonlocal last, owner
            if layer in self.log.rows or not X.numel():
                return
            if len(set(self.ranks.gather(layer.name))) > 1:
                raise PruneError(_APART.format(layer.name))
            if last is None or X is not last[0] or changes_of(X) != last[1]:
                owner = (owner + 1) % self.ranks.size  # layers that read one tensor follow each other
                last = X, changes_of(X), self._sum_at({owner}, layer, self.observe(X))
            self._prune_owned({layer: owner}, {layer: last[2]})

        return receive

    def _prune_owned(self, owners: dict[Layer, int], sums: dict[Layer, Statistics]) -> None:
        """Prune this rank's layers, and take over those of the others. All meet here, whatever has gone wrong."""
        rows: dict[str, LayerRow] = {}
        failure = ""
        try:
            for layer in (layer for layer, owner in owners.items() if owner == self.ranks.rank):
                self.prune(layer, sums[layer])
                rows[layer.name] = self.log.rows[layer]
        except PruneError as error:
            failure = str(error)
        found = self.ranks.gather((failure, rows))
        if failure:
            raise PruneError(failure)
        if others := [said for said, _ in found if said]:
            raise PeerError(others[0])
        for layer, owner in owners.items():
            self._send_from(owner, layer, found[owner][1])

    def _agree(self, observed: dict[Layer, Statistics]) -> list[list[Layer]]:
        """The groups that some rank has observed, each of layers that read one tensor, in the plan's order.

        Raises `PruneError` if ranks with windows have observed others: each would wait for the other's.
        """
        place = {layer: index for index, layer in enumerate(self.plan.layers)}
        together: dict[int, list[int]] = {}
        for layer, stats in observed.items():
            together.setdefault(id(stats), []).append(place[layer])
        told = self.ranks.gather([tuple(sorted(places)) for places in together.values()])
        keys = sorted({places for keys in told for places in keys})
        groups = [[self.plan.layers[index] for index in places] for places in keys]
        for places, layers in zip(keys, groups, strict=True):
            everywhere = all(places in keys for keys in told if keys)
            if not everywhere and any(layer.expert_index is None for layer in layers):
                raise PruneError(_APART.format(layers[0].name))
        return groups

    def _sum_at(self, owners: set[int], layer: Layer, stats: Statistics | None) -> Statistics:
        """The sums over all ranks, at these owners; what is returned elsewhere is of no use."""
        W = layer.weight
        if stats is None:  # no token of this rank's windows has come here
            stats = Statistics(W.shape[1], dtype=torch.promote_types(W.dtype, torch.float32), device=W.device)
        sums, tokens = stats.packed(), torch.tensor([stats.tokens], device=W.device)
        self.ranks.add_up(sums, tokens, at=min(owners) if len(owners) == 1 else None)
        self.sent += sums.nbytes
        return stats.unpacked(sums, int(tokens)) if self.ranks.rank in owners else stats

    def _send_from(self, owner: int, layer: Layer, rows: dict[str, LayerRow]) -> None:
        W = layer.weight
        sent = W.contiguous().clone()  # a GPT-2 weight is a view of a transposed one
        self.ranks.broadcast(sent, owner)
        self.sent += sent.nbytes
        if owner != self.ranks.rank:
            W.copy_(sent)
            torch.clear_autocast_cache()
            self.log.record(layer, rows[layer.name])


def pack(costs: Sequence[float], ranks: int) -> list[int]:
    """Which rank does each of these, the costliest given out first, each to the rank that has least to do.

    Examples
    --------
    >>> from minprune.pipeline.shared_pruner import pack
    >>> pack([1.0, 8.0, 2.0, 5.0], ranks=2)
    [1, 0, 1, 1]
    """
    owners, load = [0] * len(costs), [0.0] * ranks
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owner = min(range(ranks), key=lambda rank: (load[rank], rank))
        owners[index], load[owner] = owner, load[owner] + costs[index]
    return owners


def _cost(layer: Layer) -> float:
    """Of factorising the Gram matrix and going through the rows."""
    d_out, d_in = layer.weight.shape
    return d_in**3 + d_out * d_in**2
