"""Quality against sparsity: SmolLM2 pruned by every method at 10 to 80 %, 2:4 and 4:8, on two texts, several seeds.

Fills in what is missing of a `minprune sweep` file, the most telling runs first, so that it can be stopped at any time.
Beside it, a .json file says how it was made, and compares the runs with the few that were measured at full size
(one-shot.json, optimum.json: float32, twice the calibration and test windows): is the order of the methods the same?

    python benchmarks/curves.py book/results/sweep.jsonl
    python benchmarks/curves.py book/results/sweep.jsonl --compare      # with the runs that are there
"""

import argparse
import json
import logging
from collections import defaultdict
from pathlib import Path

from record import save

import minprune as mp
from minprune.sweep.results import read_runs
from minprune.sweep.sweep import sweep

QUICK = ("magnitude", "wanda", "sparsegpt")
TELLING = ("50%", "60%", "70%", "2:4")  # where the methods differ and the model still speaks
STAGES = (  # methods, patterns, seeds
    ((*QUICK, "admm"), TELLING, (0,)),
    (QUICK, ("30%", "80%", "40%", "4:8", "20%", "10%"), (0,)),
    (("wanda", "sparsegpt"), TELLING, (1, 2)),
    (("best",), TELLING, (0,)),
    (("admm",), ("80%", "30%", "4:8", "40%"), (0,)),
    (("admm",), ("70%", "60%", "50%", "2:4"), (1, 2)),
    (("best",), ("30%", "80%"), (0,)),
    (("admm",), ("20%", "10%"), (0,)),
    (("best",), ("60%", "2:4", "70%", "50%"), (1, 2)),
    (("best",), ("4:8", "40%", "20%", "10%"), (0,)),
    (("alps", "sparsegpt+exact", "wanda+swaps"), TELLING, (0,)),
)
FULL_SIZE = ("one-shot.json", "optimum.json")
# 32 calibration windows, 16 test windows a text and bfloat16 instead of 64, 32 and float32: see `compare`
PROTOCOL = {"calibration": "wikipedia", "samples": 32, "length": 512, "texts": ("wikipedia", "news")}
TEST_SAMPLES = 16
DTYPE = "bfloat16"


def run(path: Path, stages=STAGES, dtype: str = DTYPE) -> list[dict]:
    """The runs of the stages, those that the file at path lacks being made."""
    model, tokenizer = mp.load_model("smollm2", dtype)
    runs = []
    for methods, patterns, seeds in stages:
        runs += sweep(
            model,
            tokenizer,
            path,
            methods,
            patterns,
            seeds,
            name="smollm2",
            test_samples=TEST_SAMPLES,
            **PROTOCOL,
        )
    return runs


def compare(path: Path) -> list[dict]:
    """For each pattern measured in both ways, the methods from best to worst, and each one's perplexity / dense."""
    small = {
        (found["method"], found["pattern"]): found["relative"]["wikipedia"]
        for found in read_runs(path)
        if not found["seed"]
    }
    full: dict[tuple[str, str], list[float]] = defaultdict(list)  # SparseGPT is in both files
    for name in FULL_SIZE:
        cells = json.loads((path.parent / name).read_text())["cells"]
        dense = next(cell["perplexity"] for cell in cells if cell["method"] == "dense")
        for cell in cells:
            full[cell["method"], cell["pattern"]].append(cell["perplexity"] / dense)
    both: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for (method, pattern), ratios in full.items():
        if pattern and (method, pattern) in small:
            both[pattern][method] = small[method, pattern], sum(ratios) / len(ratios)
    return [
        {
            "pattern": pattern,
            "order": sorted(found, key=lambda method: found[method][0]),
            "order_at_full_size": sorted(found, key=lambda method: found[method][1]),
            "relative": {method: float(f"{ours:.5g}") for method, (ours, _) in found.items()},
            "relative_at_full_size": {method: float(f"{theirs:.5g}") for method, (_, theirs) in found.items()},
        }
        for pattern, found in both.items()
    ]


def cost(path: Path) -> str:
    """The processor time of all runs of the file, in words; evaluation: of runs without it, as long as the others'."""
    runs = read_runs(path)
    pruning = sum(run["seconds"]["processor"] for run in runs)
    measured = [run["seconds"]["evaluation"] for run in runs if "evaluation" in run["seconds"]]
    evaluation = len(runs) * sum(measured) / len(measured) if measured else 0.0
    return (
        f"{len(runs)} runs: {pruning / 60:.0f} minutes of processor time for pruning and {evaluation / 60:.0f} for "
        f"measuring perplexities (measured in {len(measured)} of the runs)"
    )


def main() -> None:
    """Fill in what is missing of the file, and compare with full size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--compare", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if not args.compare:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        run(args.output)
    protocol = {
        "model": "smollm2 (SmolLM2-135M-Instruct, a 4-bit checkpoint dequantised, then bfloat16)",
        "calibration": f"wikipedia train, {PROTOCOL['samples']} x {PROTOCOL['length']} tokens, the run's seed",
        "test": f"wikipedia test and news test, {TEST_SAMPLES} x {PROTOCOL['length']} tokens each, evenly spaced",
        "runs": f"{args.output.name}: one a line, each with its protocol, versions, date and seconds of pruning "
        "(of the machine that it ran on; there were two)",
        "cost": cost(args.output),
        "cells": "the methods' order by perplexity on wikipedia, seed 0, here and at full size (64 and 32 windows, "
        f"float32: {' and '.join(FULL_SIZE)}); relative: to the dense model's",
        "error": "the median layer's relative error; Wanda's 18 runs were pruned again for it on 2026-11-28, over all "
        "tokens (before: over about 2048; it moved by -1 to +4 %), their perplexities and seconds are of the first "
        "time",
    }
    save(
        args.output.with_suffix(".json"),
        f"python benchmarks/curves.py {args.output.as_posix()}",
        protocol,
        compare(args.output),
    )


if __name__ == "__main__":
    main()
