"""One of several processes: prunes what it is told to from disk to disk, and says what came of each job.

A job is a dict of keyword arguments of `prune_checkpoint`. Beside them it holds "calib", a file of tokens, and may hold
"fail", (rank, how, after so many blocks): "die", "raise" or "stop". One with "remove" shrinks a model instead.
"""

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist

import minprune as mp
from minprune.pipeline.ranks import Ranks
from minprune.pipeline.recipes import Reconstruction
from minprune.pipeline.shared_pruner import SharedPruner
from minprune.pipeline.staged import BlockPruner
from minprune.structured.removals import removals
from minprune.structured.shrink import run_removals
from minprune.sweep.sweep import _hash


def work(rank: int, size: int, rendezvous: Path, jobs: list[dict], said: Path) -> None:
    """Do the jobs, and write a line of JSON on each to the file `said`."""
    torch.set_num_threads(1)
    SharedPruner._prune_owned = counting
    real = BlockPruner.prune
    for number, job in enumerate(jobs):
        job = dict(job)
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}.{number}", rank=rank, world_size=size)
        who, how, blocks = job.pop("fail", (None, None, None))

        def prune(walk, index, *rest, who=who, how=how, blocks=blocks):
            if rank == who and index == blocks:
                if how == "die":
                    os._exit(3)
                raise {"raise": mp.PruneError("this text is bad"), "stop": KeyboardInterrupt()}[how]
            return real(walk, index, *rest)

        BlockPruner.prune = prune
        SharedPruner.last = None
        calib = torch.load(job.pop("calib"))
        try:
            report = (shrink if "remove" in job else mp.prune_checkpoint)(calib=calib, **job)
            found = {"errors": [row.error for row in report.layers], "notes": report.notes, "sent": SharedPruner.last}
        except BaseException as error:
            found = {"failed": type(error).__name__, "message": str(error)}
        with said.open("a") as file:
            file.write(json.dumps({"rank": rank, "job": number, **found}) + "\n")
        if dist.is_initialized():
            dist.destroy_process_group()


def shrink(src, dst, calib, remove, method, repair, training):
    """As the command does it: every process by itself, and the first one writes. The notes say what each has."""
    model, _ = mp.load_model(src)
    ranks = Ranks.current()
    with ranks.until_failure():
        plan = removals(remove, method)
        report = run_removals(model, calib, plan, repair, reconstruction=Reconstruction(**training), ranks=ranks)
    if ranks.first:
        model.save_pretrained(dst)
    report.notes.append(_hash(model))
    return report


def counting(pruner, *given, real=SharedPruner._prune_owned):
    """Keep how much a pruner has sent when it is done with its last layers."""
    real(pruner, *given)
    SharedPruner.last = pruner.sent
