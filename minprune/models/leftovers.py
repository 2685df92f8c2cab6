"""What blocks leave in the model's modules, beside what they return: an attribute, a list, a buffer. Chapter 08.

While all windows go through a model in one batch, a later block finds what an earlier one has left for it. Batches
that wait before a block together overwrite it for each other, and nothing would say so. Most of what modules keep does
no harm: tables of positions, or a state that the next pass begins anew. So what was left is changed, and a block that
then makes something else of the same hidden states reads it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from minprune.errors import PruneError

_DEEP = 3  # containers and objects within each other that are looked into
_PLAIN = (str, bytes, int, float, bool, type(None), nn.Parameter, torch.dtype, torch.device)


class Leftovers:
    """Watches the blocks of a model while different batches go through them, in one walk or in several.

    varying: where it is that blocks leave something which depends on the batch.
    """

    def __init__(self, model: nn.Module):
        self.model, self.family = model, type(model).__name__
        self.varying: set[str] = set()
        self._before: dict[int, dict[str, Tensor]] = {}  # block -> what was in the modules after its first batch

    def after(self, index: int) -> bool:
        """A batch has gone through block `index`. Whether another one before it had left something else there."""
        found = dict(_kept(self.model))
        if index not in self._before:
            self._before[index] = {where: tensor.detach().clone() for where, tensor in found.items()}
            return False
        before, new = self._before[index], len(self.varying)
        self.varying |= {where for where in {*before, *found} if not _equal(before.get(where), found.get(where))}
        return len(self.varying) > new

    def check(self, index: int, run: Callable[[], Tensor]) -> None:
        """Raise `PruneError` if block `index` reads what was left; `run` gives what it makes of the same input."""
        expected = self._result(index, run)
        changed = [tensor.detach() for where, tensor in _kept(self.model) if where in self.varying and _fixed(tensor)]
        before = [tensor.clone() for tensor in changed]
        try:
            for tensor in changed:
                tensor.copy_(tensor + 1 if tensor.dtype != torch.bool else ~tensor)
            found = self._result(index, run)
        finally:  # a block may break down on what it has never seen
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
        if not torch.equal(found, expected):
            raise self._refusal(index)

    def _result(self, index: int, run: Callable[[], Tensor]) -> Tensor:
        try:
            return run().clone()
        except RuntimeError as error:  # what is left is of another batch, with another number of windows
            raise self._refusal(index) from error

    def _refusal(self, index: int) -> PruneError:
        return PruneError(
            f"block {index} of {self.family} reads {sorted(self.varying)[0]}, which blocks leave in the model and "
            "each batch overwrites: prune all windows in one batch, with prune and without a recipe"
        )


def _kept(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(where, tensor) for what the modules hold beside parameters and each other."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in ("_parameters", "_modules") and not key.endswith("hooks"):
                yield from _inside(f"{name}.{key}", value, _DEEP, seen)


def _inside(where: str, value: Any, deep: int, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, (*_PLAIN, nn.Module, type)) or callable(value) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if not value.is_meta:
            yield where, value
        return
    if not deep:
        return
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, (list, tuple)):
        parts = list(enumerate(value))
    else:
        parts = list(getattr(value, "__dict__", {}).items())
    for key, part in parts:
        yield from _inside(f"{where}.{key}", part, deep - 1, seen)


def _fixed(tensor: Tensor) -> bool:
    """Whether its numbers lie in memory of their own, each in one place, and may be changed."""
    overlapping = any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))
    return not tensor.is_inference() and not overlapping


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return False
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device) and torch.equal(one, other)
