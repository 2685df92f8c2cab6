"""Several processes that prune one model: texts shared out, statistics summed, each layer solved once. Chapter 22.

`torchrun --nproc-per-node N -m minprune prune ...` starts the processes, ranks 0 to N-1. Each sends its own windows
through the blocks. For each group of layers that read one tensor

1. the ranks' sums are added up at the rank that owns the group (`reduce`: half of the Gram matrix travels),
2. the owner prunes its layers while the other owners prune theirs,
3. the pruned weights go to all ranks (`broadcast`), and each goes on with its windows.

Sums in another order round differently, so single masks may differ from those of one process where scores are nearly
equal. Left out: blocks that are trained (`Reconstruction`), and a model that is itself split over the ranks.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from minprune.errors import PeerError, PruneError
from minprune.files import to_json
from minprune.models.layers import Layer
from minprune.output.report import LayerRow
from minprune.pipeline.layer_pruner import LayerPruner, RunLog
from minprune.pipeline.plan import PruningPlan
from minprune.statistics import Statistics

T = TypeVar("T")
_GONE = "another process of this run has ended or failed: see what it said, and start all of them again"


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, of which this is number `rank`. One by itself needs no other and sends nothing."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """Those of `torch.distributed`, if it was initialised."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, plan: PruningPlan) -> PruningPlan:
        """The plan with this rank's windows alone in its batches; there may be none."""
        if self.size == 1 or plan.calib is None or not plan.batch_size:
            return plan
        mine = plan.calib.tensor_split(self.size)[self.rank]
        at_once = max(1, plan.batch_size // self.size) if plan.from_memory else plan.batch_size
        return replace(plan, batches=tuple(mine.split(at_once)) if len(mine) else ())

    def gather(self, value: T) -> list[T]:
        """What each rank gives, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _peers():
            dist.all_gather_object(found, value)
        return found

    def of_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank."""
        values = [make() if self.first else None]
        if self.size > 1:
            with _peers():
                dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[return-value]

    def check_alike(self, facts: dict[str, Any]) -> None:
        """Raise `PruneError` if the ranks were told different things."""
        told = self.gather(to_json(facts))
        for rank, theirs in enumerate(told):
            if theirs != told[0]:
                raise PruneError(
                    f"process {rank} was given another model, other texts or other options than process 0: start all "
                    "with one command"
                )

    def pruner(self, plan: PruningPlan, log: RunLog) -> LayerPruner:
        """What prunes the layers of a plan."""
        return LayerPruner(plan, log) if self.size == 1 else SharedPruner(plan, log, self)

    @contextmanager
    def until_failure(self) -> Iterator[None]:
        """While open, a failure here ends the connection, so that no other rank waits for this one for ever."""
        try:
            yield
        except BaseException:
            if self.size > 1 and dist.is_initialized():
                dist.destroy_process_group()
            raise


class SharedPruner(LayerPruner):
    """A `LayerPruner` whose statistics are those of all ranks, and whose layers are pruned by one rank each.

    sent: bytes of statistics and weights that this rank has given or taken.
    """

    alone = False

    def __init__(self, plan: PruningPlan, log: RunLog, ranks: Ranks):
        super().__init__(plan, log)
        self.ranks, self.sent = ranks, 0

    def prune_group(self, observed: dict[Layer, Statistics]) -> list[Layer]:
        """Prune layers, each by its owner, on what all ranks have observed of their inputs."""
        groups = self._agree(observed)
        owners = pack([_cost(layers) for layers in groups], self.ranks.size)
        mine: list[tuple[Layer, Statistics]] = []
        for layers, owner in zip(groups, owners, strict=True):
            stats = self._sum_at(owner, layers, observed.get(layers[0]))
            mine += [(layer, stats) for layer in layers] if owner == self.ranks.rank else []
        rows: dict[str, LayerRow] = {}
        failure = ""
        try:
            for layer, stats in mine:
                self.prune(layer, stats)
                rows[layer.name] = self.log.rows[layer]
        except PruneError as error:
            failure = str(error)
        found = self.ranks.gather((failure, rows))
        if failure:
            raise PruneError(failure)
        if others := [said for said, _ in found if said]:
            raise PeerError(others[0])
        for layers, owner in zip(groups, owners, strict=True):
            for layer in layers:
                self._send_from(owner, layer, found[owner][1])
        return [layer for layers in groups for layer in layers]

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
                raise PruneError(
                    f"{layers[0].name} is not reached by the texts of every process, or not at the same time: prune "
                    "this model with one process"
                )
        return groups

    def _sum_at(self, owner: int, layers: Sequence[Layer], stats: Statistics | None) -> Statistics:
        """The sums over all ranks, at their owner; what is returned elsewhere is of no use."""
        W = layers[0].weight
        if stats is None:  # no token of this rank's windows has come here
            stats = Statistics(W.shape[1], dtype=torch.promote_types(W.dtype, torch.float32), device=W.device)
        sums, tokens = stats.packed(), torch.tensor([stats.tokens], device=W.device)
        with _peers():
            dist.reduce(sums, dst=owner)
            dist.reduce(tokens, dst=owner)
        self.sent += sums.nbytes
        return stats.unpacked(sums, int(tokens)) if owner == self.ranks.rank else stats

    def _send_from(self, owner: int, layer: Layer, rows: dict[str, LayerRow]) -> None:
        W = layer.weight
        sent = W.contiguous().clone()  # a GPT-2 weight is a view of a transposed one
        with _peers():
            dist.broadcast(sent.view(torch.uint8), src=owner)
        self.sent += sent.nbytes
        if owner != self.ranks.rank:
            W.copy_(sent)
            torch.clear_autocast_cache()
            self.log.record(layer, rows[layer.name])


def pack(costs: Sequence[float], ranks: int) -> list[int]:
    """Which rank does each of these, the dearest given out first, each to the rank that has least to do.

    Examples
    --------
    >>> from minprune.pipeline.ranks import pack
    >>> pack([1.0, 8.0, 2.0, 5.0], ranks=2)
    [1, 0, 1, 1]
    """
    owners, load = [0] * len(costs), [0.0] * ranks
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owner = min(range(ranks), key=lambda rank: (load[rank], rank))
        owners[index], load[owner] = owner, load[owner] + costs[index]
    return owners


def _cost(layers: Sequence[Layer]) -> float:
    """Of factorising one Gram matrix and going through the rows of all layers."""
    d_in = layers[0].weight.shape[1]
    return d_in**3 + sum(layer.weight.shape[0] for layer in layers) * d_in**2


@contextmanager
def _peers() -> Iterator[None]:
    """Within it a lost connection is a `PeerError`."""
    try:
        yield
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise PeerError(_GONE) from error
