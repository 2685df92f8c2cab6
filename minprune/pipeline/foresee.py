"""What a run from disk to disk says before it begins: the memory and the disk that it will take. Chapter 22.

The bytes are those of `estimate.py`, which `minprune plan` shows in full, with the seconds.
"""

import logging

import psutil
import torch
from torch import Tensor

from minprune.errors import amount
from minprune.models.memory import free_memory
from minprune.pipeline.estimate import Run, disk_bytes, memory_bytes, of_each_rank, sizes_of
from minprune.pipeline.plan import PruningPlan
from minprune.pipeline.sources import Checkpoint

_log = logging.getLogger(__name__)
_MORE = 1.1  # runs were measured to take up to 1.09 times the memory that is said: book/results/plan.json


def announce(
    source: Checkpoint,
    plan: PruningPlan,
    test: Tensor | None,
    ranks: int = 1,
    trains: bool = False,
    always: bool = True,
) -> None:
    """Log what the run will take, as a warning if the memory that is free is less.

    plan: of all ranks together. trains: whether blocks are trained, which takes more than is counted here. always:
    whether to say so where it fits, too.
    """
    windows, length = plan.calib.shape if plan.calib is not None else (0, 1 if test is None else test.shape[1])
    run = Run(plan.name, windows, length, plan.batch_size or 1, 0 if test is None else len(test))
    sizes = sizes_of(source.model, plan.layers, source.streamed)
    process = psutil.Process().memory_info().rss
    peak = process + sum(memory_bytes(sizes, of_each_rank(run, ranks)).values())
    disk = sum(disk_bytes(sizes, run).values())
    line = (
        f"about {amount(peak)} of memory{' and what training blocks takes' if trains else ''}, {amount(disk)} of disk"
    )
    free = process + free_memory(torch.device("cpu"))
    if source.device.type == "cpu" and _MORE * peak > free:
        there = f", but only {amount(free)} are free" if peak > free else f"; {amount(free)} are free, a bare fit"
        _log.warning("%s%s: use a smaller --batch-size, fewer --samples or a shorter --length", line, there)
    elif always:
        _log.info("%s", line)
