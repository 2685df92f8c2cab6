"""Lottery tickets with their controls and seeds, for chapter 16: a small network on MNIST-1D, a small language model.

Both are trained from nothing, and again after each round of pruning. Writes one JSON file with the command, versions
and machine; a seed that it already holds is not repeated.

    python benchmarks/lottery.py book/results/lottery.json
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from record import load_cells, save, short
from small import SCORES, TASKS

import minprune as mp
from minprune.training.lottery import Ticket, find_tickets, random_ticket, shares, state_of
from minprune.training.masks import magnitude_masks, set_zeros, sparsity_of

SEEDS = {"mnist1d": 5, "language": 5}
ROUNDS = {"mnist1d": shares(0.3, 8), "language": shares(0.5, 4)}
CONTROLLED = {"mnist1d": (2, 5, 8), "language": (2, 4)}  # rounds that have controls
PROTOCOL = {
    "mnist1d": f"{SCORES['mnist1d']}; 8 rounds that prune 30 % of what is left in each layer",
    "language": f"{SCORES['language']}; 4 rounds that prune half of what is left, all layers of the blocks together",
    "ways": "ticket: rewound to initialisation; early: rewound to a tenth of the run; random: as many survivors in "
    "each layer, elsewhere; new weights: the ticket's masks, drawn anew; at once: one round from dense to sparse; "
    "longer: the dense network in one run of as many steps as rounds had taken",
    "cost": "training steps that were taken to get there, all runs before it included",
}


def recompute(task: str, seed: int) -> list[dict]:
    """All cells of one seed from nothing but the protocol: for each way a list of [sparsity, score, cost]."""
    torch.set_num_threads(1)
    start, job = time.process_time(), TASKS[task]()
    sparsities, controlled = ROUNDS[task], CONTROLLED[task]
    network = job.network(seed)
    layers, initial = job.layers(network), state_of(network)

    def ticket(masks, number: int, cost: int, weights) -> Ticket:
        """Train once from these weights under these masks."""
        network.load_state_dict(weights)
        set_zeros(masks)
        job.train(network, masks, 0, job.steps)
        return Ticket(number, masks, sparsity_of(masks), cost, job.measure(network))

    def rounds(rewind: int) -> list[Ticket]:
        network.load_state_dict(initial)
        options = {"steps": job.steps, "sparsities": sparsities, "scope": job.scope}
        return find_tickets(network, layers, job.train, job.measure, rewind=rewind, **options)

    found = {"ticket": rounds(0)}
    if job.early:
        found["early"] = rounds(job.early)
    other = state_of(job.network(seed + 1000))
    for number in controlled:
        masks = found["ticket"][number].masks
        found.setdefault("random", []).append(ticket(random_ticket(masks, seed), number, job.steps, initial))
        found.setdefault("new weights", []).append(ticket(masks, number, job.steps, other))
    network.load_state_dict(initial)
    job.train(network, {}, 0, job.steps)
    trained = {layer: layer.weight.clone() for layer in layers}
    for number in controlled:
        masks = magnitude_masks(trained, mp.Unstructured(sparsities[number - 1]), job.scope)
        found.setdefault("at once", []).append(ticket(masks, number, 2 * job.steps, initial))
    for number in controlled:
        longer = TASKS[task](steps=(number + 1) * job.steps)
        network.load_state_dict(initial)
        longer.train(network, {}, 0, longer.steps)
        found.setdefault("longer", []).append(Ticket(number, {}, 0.0, longer.steps, longer.measure(network)))
    seconds = time.process_time() - start
    rows = {way: [[short(t.sparsity), short(t.score), t.cost] for t in tickets] for way, tickets in found.items()}
    return [{"task": task, "seed": seed, "way": way, "rows": r, "seconds": short(seconds)} for way, r in rows.items()]


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    cells = load_cells(args.output)
    done = {(cell["task"], cell["seed"]) for cell in cells}
    for task, seed in ((task, seed) for task, seeds in SEEDS.items() for seed in range(seeds)):
        if (task, seed) not in done:
            cells += recompute(task, seed)
            print(cells[-1], file=sys.stderr)
            save(args.output, f"python benchmarks/lottery.py {args.output.as_posix()}", PROTOCOL, cells)


if __name__ == "__main__":
    main()
