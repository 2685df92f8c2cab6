"""Schedules of pruning during one training run, for chapter 17: when, how fast, and from which weights.

All runs of a task have the same training steps on the same batches; a cell is one run with one seed. Writes one JSON
file with the command, versions and machine; a cell that it already holds is not repeated.

    python benchmarks/gradual.py book/results/gradual.json
"""

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from record import load_cells, save, short
from small import SCORES, STEPS, TASKS

from minprune.training.masks import sparsity_of
from minprune.training.schedule import Gradual, Schedule

SEEDS = {"mnist1d": 10, "language": 5}
FINALS = (0.5, 0.8, 0.9, 0.95)
PROTOCOL = {
    **SCORES,
    "masks": "the smallest dense weights, in each layer of mnist1d, of all layers of the blocks of the language model",
    "begin, end, every": "the first and the last update of the masks and the steps between two, as shares of the run; "
    "one-shot is at begin",
    "revive": "masks are chosen from the dense weights; false: from the masked ones, where what is pruned is zero",
    "straight_through": "the gradient reaches the pruned weights as well",
    "returned": "weights that an update took back, each time counted; back: the share of those that survive in the "
    "end which had been pruned before",
    "live": "weights in use, in the mean over the steps of the run, as a share of all",
}


@dataclass(frozen=True)
class Run:
    """One training run. lr: 0 for the task's own; decay: of the language model's rate."""

    task: str
    kind: str
    final: float = 0.9
    begin: float = 0.1
    end: float = 0.75
    every: float = 1 / 60
    revive: bool = True
    straight_through: bool = False
    lr: float = 0.0
    decay: str = "cosine"
    steps: int = STEPS

    def job(self):
        """The task with this run's options."""
        rate = {"lr": self.lr} if self.lr else {}
        decay = {"decay": self.decay} if self.task == "language" else {}
        return TASKS[self.task](steps=self.steps, **rate, **decay)


def wanted() -> list[Run]:
    """The runs of the file, the most telling ones first."""
    runs: list[Run] = []
    tasks = list(SEEDS)
    options = ((False, False), (True, True), (False, True))
    for task in tasks:
        runs.append(Run(task, "dense", 0.0))
        for final in (0.9, 0.95, 0.8, 0.5):
            runs += [Run(task, kind, final) for kind in ("cubic", "linear")]
            runs += [Run(task, "one-shot", final, begin) for begin in (0.0, 0.5, 1.0)]
    for task in tasks:
        runs += [Run(task, "one-shot", begin=begin) for begin in (0.1, 0.25, 0.75, 0.9)]
        runs += [Run(task, kind, end=end) for end in (0.5, 0.9, 1.0) for kind in ("cubic", "linear")]
        runs += [Run(task, "cubic", revive=r, straight_through=s) for r, s in options]
        runs += [Run(task, "cubic", every=every) for every in (1 / 600, 0.13, 0.325)]
    constant = {"decay": "constant"}
    runs += [Run("language", "dense", 0.0, **constant), Run("language", "one-shot", begin=0.5, **constant)]
    runs += [Run("language", "cubic", end=end, **constant) for end in (0.5, 0.75, 1.0)]
    for lr in (5e-4, 8e-3):
        runs += [Run("mnist1d", "dense", 0.0, lr=lr), Run("mnist1d", "one-shot", begin=0.5, lr=lr)]
        runs += [Run("mnist1d", kind, lr=lr) for kind in ("cubic", "linear")]
    for task, lengths in {"mnist1d": (300, 1200, 2400), "language": (300, 1200)}.items():
        for steps in lengths:
            runs += [Run(task, "dense", 0.0, steps=steps), Run(task, "one-shot", begin=0.5, steps=steps)]
            runs += [Run(task, "cubic", steps=steps)]
    return runs


def recompute(run: Run, seed: int) -> dict:
    """One cell, from nothing but the protocol."""
    torch.set_num_threads(1)
    start, job = time.process_time(), run.job()
    network, total = job.network(seed), job.steps
    cell = {**asdict(run), "seed": seed}
    if run.kind == "dense":
        job.train(network, {}, 0, total)
        found = {"score": job.measure(network), "zeros": 0.0, "returned": 0, "back": 0.0, "live": 1.0}
    else:
        begin, end, every = (round(share * total) for share in (run.begin, run.end, run.every))
        schedule = Schedule(run.kind, run.final, begin, end, every)
        pruner = Gradual(
            job.layers(network), schedule, job.scope, revive=run.revive, straight_through=run.straight_through
        )
        once = {layer: torch.zeros_like(keep) for layer, keep in pruner.masks.items()}  # pruned at some time
        live = 0.0

        def before(step: int) -> None:
            nonlocal live
            if pruner.update(step):
                for layer, keep in pruner.masks.items():
                    once[layer] |= ~keep
            live += 1 - sparsity_of(pruner.masks)

        job.train(network, {}, 0, total, before)
        mean = live / total
        before(total)  # an update that is due after the last step
        masks = pruner.finish()
        survivors = sum(int(keep.sum()) for keep in masks.values())
        back = sum(int((keep & once[layer]).sum()) for layer, keep in masks.items())
        found = {"score": job.measure(network), "zeros": sparsity_of(masks), "returned": pruner.returned}
        found |= {"back": back / survivors, "live": mean}
    found["seconds"] = time.process_time() - start
    return cell | {name: short(value) for name, value in found.items()}


def run_of(cell: dict) -> Run:
    """What was run to get a cell."""
    return Run(**{name: cell[name] for name in Run.__dataclass_fields__})


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    cells = load_cells(args.output)
    done = {(run_of(cell), cell["seed"]) for cell in cells}
    for run in wanted():
        for seed in range(SEEDS[run.task]):
            if (run, seed) not in done:
                cells.append(recompute(run, seed))
                print(cells[-1], file=sys.stderr)
        save(args.output, f"python benchmarks/gradual.py {args.output.as_posix()}", PROTOCOL, cells)


if __name__ == "__main__":
    main()
