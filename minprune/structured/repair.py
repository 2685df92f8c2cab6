"""Repair of a smaller model by its larger one: each block learns to give what the stream was there. Chapters 13, 14.

The dense model and the smaller one are walked through side by side. Of each block that is left, the target is the
dense stream before the next block that is left: where blocks were cut out, it is the stream behind the cut, so that the
last block before the cut learns to do their work. Which units are gone does not matter: shapes are those of the smaller
model, and what is zero in its matrices stays zero. The training itself is reconstruction.py's.

Adam steps by its rate whatever the size of the gradient: where a block gives its target already, up to rounding, it
follows the rounding and leaves the target. So a part of the windows is not trained on, and a block whose error on them
does not fall is put back as it was.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minprune.errors import PruneError
from minprune.models.layers import Layer, decoder_blocks
from minprune.models.weight_files import one_line
from minprune.pipeline.precision import multiplies_bfloat16, narrow_products
from minprune.pipeline.ranks import ALONE, Ranks
from minprune.pipeline.reconstruction import (
    Reconstruction,
    check_trainable,
    fit_block,
    lost_energy,
)
from minprune.pipeline.staged import BlockwiseForward
from minprune.structured.units import layers_by_block

if TYPE_CHECKING:
    from transformers import PreTrainedModel

After = Callable[[int, list[float]], None]
_JUDGES = 8  # one step of windows in so many is not trained on


def copied(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model as it is, for what its smaller self is trained towards; `PruneError` if it holds what has no copy."""
    try:
        return copy.deepcopy(model)
    except Exception as error:  # of whatever somebody has left in it
        raise PruneError(
            f"{type(model).__name__} cannot be copied ({one_line(error)}), as its dense self is needed for "
            "reconstruction: take that out of it, or choose another repair"
        ) from error


@torch.no_grad()
def reconstruct(
    model: "PreTrainedModel",
    dense: "PreTrainedModel",
    calib: Tensor,
    kept: list[int],
    how: Reconstruction,
    basis: Tensor | None = None,
    done: Mapping[str, list[float]] | None = None,
    after: After | None = None,
    ranks: Ranks = ALONE,
) -> dict:
    """Train the blocks of `model` in place, one after the other, on calib (windows, length).

    kept: which blocks of `dense` they were. basis (d_model, smaller d_model): in what the stream of the model is
    expressed, None if it is the dense one's. done: the errors of blocks that are trained already; after: called with
    index and errors of each other one. ranks: the processes that share the windows of each step. Returns the settings,
    seconds, and for each block the relative error of its output before and after, on windows that it was not trained on
    if there are two steps of them or more; they are the same for a block that training did not help, which stays as it
    was.
    Raises `PruneError` if no gradient comes through this family's blocks.
    """
    start = time.perf_counter()
    done = done or {}
    how = resolved(how, model)

    def products():
        return narrow_products(model.device.type, bool(how.bfloat16))

    steps = calib.to(model.device).split(how.batch_size)
    batches = tuple(part for part in map(ranks.part, steps) if len(part))
    walks = BlockwiseForward(dense, batches, products), BlockwiseForward(model, batches, products)
    if batches:
        check_trainable(model, walks[1])
    prefix, blocks = decoder_blocks(model)
    layers, seen = layers_by_block(model), 0
    errors: dict[str, list[float]] = dict(done)
    following = [*kept[1:], len(walks[0].blocks)]
    for place, behind in enumerate(following):
        targets: list[Tensor] = []
        for index in range(seen, behind):
            targets = walks[0].run_block(index, keep=index == behind - 1)
        seen = behind
        if f"{prefix}.{place}" not in done:
            targets = targets if basis is None else [target @ basis.to(target) for target in targets]
            forward = partial(walks[1].rehearse, place)
            found = fit_or_leave(blocks[place], layers[place], forward, targets, how, ranks, len(steps))
            errors[f"{prefix}.{place}"] = found
            if after:
                after(place, found)
        walks[1].run_block(place)
    return {**asdict(how), "seconds": time.perf_counter() - start, "errors": errors}


def resolved(how: Reconstruction, model: "PreTrainedModel") -> Reconstruction:
    """The settings that a run on this hardware really has: whether products are taken in bfloat16 is its answer."""
    narrow = multiplies_bfloat16(model.device.type) if how.bfloat16 is None else how.bfloat16
    return replace(how, bfloat16=narrow and model.dtype == torch.float32)


def fit_or_leave(
    block: nn.Module,
    layers: list[Layer],
    forward: Callable[[int], Tensor],
    targets: list[Tensor],
    how: Reconstruction,
    ranks: Ranks = ALONE,
    steps: int | None = None,
) -> list[float]:
    """Train a block in place, or leave it as it was; its relative error before and after, as `reconstruct` says.

    All but block and layers is as in `fit_block`, which it is for; the last steps judge and are not trained on.
    """
    steps = len(targets) if steps is None else steps
    judges = range(steps - max(1, steps // _JUDGES), steps) if steps > 1 else range(1)
    trained = judges.start or steps
    before = {name: value.clone() for name, value in block.state_dict().items()}
    first = _error(forward, targets, judges, ranks)
    fit_block(block, layers, forward, targets[:trained], how, ranks, trained)
    last = _error(forward, targets, judges, ranks)
    if last < first:
        return [first, last]
    block.load_state_dict(before)
    torch.clear_autocast_cache()  # a caller's autocast may remember the block as it was trained
    return [first, first]


def _error(forward: Callable[[int], Tensor], targets: list[Tensor], steps: range, ranks: Ranks) -> float:
    """The mean relative error of a token over these steps, of which the first may be all that this rank has."""
    mine = [step for step in steps if step < len(targets)]
    lost = sum(float(lost_energy(forward(step), targets[step])) for step in mine)
    found = ranks.gather((lost, sum(targets[step][..., 0].numel() for step in mine)))
    return sum(lost for lost, _ in found) / sum(tokens for _, tokens in found)
