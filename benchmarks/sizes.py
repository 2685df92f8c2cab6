"""Do larger models tolerate more sparsity? Language models of four widths, trained alike and pruned alike. Chapter 09.

All read the same bytes of Wikipedia in the same order; only their width differs, and in a second series only how long
one width is trained. Writes one JSON file; models that it already holds are not trained again.

    python benchmarks/sizes.py book/results/sizes.json
"""

import argparse
import sys
import time
from functools import cache
from pathlib import Path

import torch
from record import load_cells, save, short
from small import STEPS, Language

import minprune as mp

WIDTHS = (32, 64, 128, 256)
LENGTHS = (STEPS // 4, 4 * STEPS)  # of training, besides STEPS, for one width
ONE_WIDTH = 64
SEEDS = 3
METHODS = ("magnitude", "wanda", "sparsegpt")
PATTERNS = ("30%", "40%", "50%", "60%", "70%", "80%")
MODELS = [  # (width, steps, seed), the most telling first
    *((width, STEPS, seed) for seed in range(SEEDS) for width in WIDTHS),
    *((ONE_WIDTH, steps, seed) for seed in range(SEEDS) for steps in LENGTHS),
]
PROTOCOL = {
    "models": "Llamas of 2 blocks over bytes, d_ff = 5/2 d, heads of 16; weights drawn with 0.8 / sqrt(d), learning "
    "rate 0.32 / d, smaller for the wider, as is usual; neither is tuned",
    "training": "bytes of wikipedia train, 8 x 64 a step, AdamW, warm-up over a tenth and cosine to 0; step by step "
    "the same bytes for all",
    "pruning": "one-shot, all matrices of the blocks, calibration: 128 x 64 bytes of wikipedia train",
    "bits": "bits a byte on 64 x 64 bytes of wikipedia test; seconds: processor time of training",
}


@cache
def calibration(text: torch.Tensor) -> torch.Tensor:
    """Windows of the training bytes, (128, 64)."""
    places = torch.randint(len(text) - 64, (128,), generator=torch.Generator().manual_seed(0))
    return text[places[:, None] + torch.arange(64)]


def recompute(width: int, steps: int, seed: int) -> dict:
    """One model, trained and pruned in every way, from nothing but the protocol."""
    torch.set_num_threads(1)
    job = Language(steps, lr=0.32 / width, width=width)
    network, start = job.network(seed), time.process_time()
    job.train(network, {}, 0, steps)
    seconds = time.process_time() - start
    trained = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    bits = {}
    for method in METHODS:
        for pattern in PATTERNS:
            mp.prune(network, calibration(job.text), method=method, pattern=pattern)
            bits[f"{method} {pattern}"] = short(job.measure(network))
            network.load_state_dict(trained)
    size = sum(layer.weight.numel() for layer in job.layers(network))
    return {
        "width": width,
        "steps": steps,
        "seed": seed,
        "weights": size,
        "dense": short(job.measure(network)),
        "bits": bits,
        "seconds": short(seconds),
    }


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    cells = load_cells(args.output)
    done = {(cell["width"], cell["steps"], cell["seed"]) for cell in cells}
    for model in MODELS:
        if model not in done:
            cells.append(recompute(*model))
            print(cells[-1], file=sys.stderr)
            save(args.output, f"python benchmarks/sizes.py {args.output.as_posix()}", PROTOCOL, cells)


if __name__ == "__main__":
    main()
