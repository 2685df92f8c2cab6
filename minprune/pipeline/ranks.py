"""The processes of one run: which windows are whose, what they add up, and how one of them ends all. Chapter 22.

`torchrun --nproc-per-node N -m minprune ...` starts them, ranks 0 to N-1. All are told the same, each works on its own
part of the windows, and what they find is added up before anything is decided, so that they decide alike. Sums in
another order round differently: where two scores are nearly equal the choice may differ from that of one process. All
decide on the same sums, so it never differs between them.
"""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from minprune.errors import PeerError, PruneError
from minprune.files import to_json

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

    def part(self, windows: Tensor) -> Tensor:
        """This rank's part of windows (n, ...), in their order; there may be none in it."""
        return windows if self.size == 1 else windows.tensor_split(self.size)[self.rank]

    def add_up(self, *tensors: Tensor, at: int | None = None) -> None:
        """Have each tensor be the sum of all ranks', in place; with `at` only there, and elsewhere it is of no use."""
        if self.size > 1:
            with peers():
                for tensor in tensors:
                    dist.all_reduce(tensor) if at is None else dist.reduce(tensor, dst=at)

    def mean(self, values: Tensor, weight: int) -> Tensor:
        """The mean of all ranks' values, each of which counts by its weight."""
        if self.size == 1:
            return values
        told = self.gather((values.double().cpu() * weight, weight))
        return (torch.stack([sums for sums, _ in told]).sum(0) / sum(weights for _, weights in told)).to(values)

    def broadcast(self, tensor: Tensor, src: int = 0) -> None:
        """Have a tensor be that of rank `src`, in place."""
        if self.size > 1:
            value = tensor.detach().contiguous()
            with peers():
                dist.broadcast(value.view(torch.uint8), src=src)
            tensor.detach().copy_(value)

    def gather(self, value: T) -> list[T]:
        """What each rank gives, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with peers():
            dist.all_gather_object(found, value)
        return found

    def of_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank."""
        values = [make() if self.first else None]
        if self.size > 1:
            with peers():
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

    @contextmanager
    def until_failure(self) -> Iterator[None]:
        """While open, a failure here ends the connection, so that no other rank waits for this one for ever."""
        try:
            yield
        except BaseException:
            if self.size > 1 and dist.is_initialized():
                dist.destroy_process_group()
            raise


ALONE = Ranks()


@contextmanager
def peers() -> Iterator[None]:
    """Within it a lost connection is a `PeerError`."""
    try:
        yield
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise PeerError(_GONE) from error
