"""Repair of a smaller model by its larger one: each block learns to give what the stream was there. Chapters 13, 14.

The dense model and the smaller one are walked through side by side. Of each block that is left, the target is the
dense stream before the next block that is left: where blocks were cut out, it is the stream behind the cut, so that the
last block before the cut learns to do their work. Which units are gone does not matter: shapes are those of the smaller
model, and what is zero in its matrices stays zero. The training itself is reconstruct.py's.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minprune.models.layers import decoder_blocks
from minprune.pipeline.reconstruction import Reconstruction, check_trainable, fit_block, multiplies_bfloat16
from minprune.pipeline.staged import BlockwiseForward
from minprune.structured.units import layers_by_block

if TYPE_CHECKING:
    from transformers import PreTrainedModel

After = Callable[[int, list[float]], None]


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
) -> dict:
    """Train the blocks of `model` in place, one after the other, on calib (windows, length).

    kept: which blocks of `dense` they were. basis (d_model, smaller d_model): in what the stream of the model is
    expressed, None if it is the dense one's. done: the errors of blocks that are trained already; after: called with
    index and errors of each other one. Returns the settings, seconds, and for each block the relative error of its
    output in each epoch.
    Raises `PruneError` if no gradient comes through this family's blocks.
    """
    start = time.perf_counter()
    done = done or {}
    device = model.device.type
    narrow = (multiplies_bfloat16(device) if how.bfloat16 is None else how.bfloat16) and model.dtype == torch.float32
    how = replace(how, bfloat16=narrow)

    def products():
        return torch.autocast(device, torch.bfloat16, enabled=narrow, cache_enabled=False)

    batches = calib.to(model.device).split(how.batch_size)
    walks = BlockwiseForward(dense, batches, products), BlockwiseForward(model, batches, products)
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
            errors[f"{prefix}.{place}"] = fit_block(blocks[place], layers[place], forward, targets, how)
            if after:
                after(place, errors[f"{prefix}.{place}"])
        walks[1].run_block(place)
    return {**asdict(how), "seconds": time.perf_counter() - start, "errors": errors}
