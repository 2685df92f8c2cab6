"""SparseGPT at 50 % on SmolLM2 with forward products in float32 and in bfloat16, and the published loop.

What narrow products save and what they cost: processor seconds, and the loss of each test window, so that two ways can
be compared window by window. Writes one JSON file; cells that it already holds are not measured again.

    python benchmarks/precision.py book/results/precision.json [--cells 4]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import plain
import torch
from record import fill_in, short

import minprune as mp
from minprune.evaluation.perplexity import token_nll

PROTOCOL = {
    "model": "smollm2 (SmolLM2-135M-Instruct, a 4-bit checkpoint dequantised to float32)",
    "calibration": "wikipedia train, 64 x 512 tokens",
    "test": "16 x 512 tokens of wikipedia test, evenly spaced, products in float32; nats: the mean of each window",
    "way": "one pass: mp.prune; published loop: benchmarks/plain.py, two passes, one window at a time, and a Gram "
    "matrix for every layer",
    "seconds": "of processor time, on one thread of a busy machine",
}
CELLS: list[dict[str, Any]] = [  # the most telling ones first
    {"way": "dense", "precision": "float32", "seed": 0},
    *({"way": "one pass", "precision": precision, "seed": 0} for precision in ("float32", "bfloat16")),
    *({"way": "one pass", "precision": name, "seed": seed} for seed in (1, 2) for name in ("float32", "bfloat16")),
    {"way": "published loop", "precision": "float32", "seed": 0},
]


def recompute(way: str, precision: str, seed: int) -> dict[str, Any]:
    """One cell from nothing but the protocol."""
    torch.set_num_threads(1)
    model, tokenizer = mp.load_model("smollm2")
    calib = mp.load_tokens(tokenizer, "wikipedia", samples=64, length=512, seed=seed)
    test = mp.load_tokens(tokenizer, "wikipedia", "test", samples=16, length=512)
    start, parts = time.process_time(), {}
    if way == "one pass":
        report = mp.prune(model, calib, "sparsegpt", "50%", precision=precision, batch_size=8)
        parts = {name: round(report.seconds[name], 1) for name in ("statistics", "solve")}
    elif way == "published loop":
        plain.prune_two_pass(model, calib)
    seconds = time.process_time() - start
    nats = token_nll(model, test, 8).double().mean(1)  # (windows,)
    found = {"perplexity": short(float(nats.mean().exp())), "nats": [short(float(x)) for x in nats]}
    return found | {"seconds": round(seconds, 1), **parts}


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--cells", type=int, help="stop after so many new ones")
    args = parser.parse_args()
    command = "python benchmarks/precision.py book/results/precision.json"
    fill_in(args.output, command, PROTOCOL, CELLS, recompute, args.cells)


if __name__ == "__main__":
    main()
