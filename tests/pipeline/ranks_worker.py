"""One of several processes: prunes what it is told to from disk to disk, and says what came of each job.

python ranks_worker.py RANK SIZE RENDEZVOUS JOBS, a JSON list of keyword arguments of `prune_checkpoint`. Beside them a
job may hold "calib", a file of tokens, and "fail", (rank, how, after so many blocks): "die", "raise" or "stop".
A job with "remove" shrinks a model instead.
"""

import json
import os
import sys

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


def main(rank: int, size: int, rendezvous: str, jobs: str) -> None:
    real = BlockPruner.prune
    for number, job in enumerate(json.loads(jobs)):
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
            said = {"errors": [row.error for row in report.layers], "notes": report.notes, "sent": SharedPruner.last}
        except BaseException as error:
            said = {"failed": type(error).__name__, "message": str(error)}
        print(json.dumps({"rank": rank, "job": number, **said}), flush=True)
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


if __name__ == "__main__":
    SharedPruner._prune_owned = counting
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
