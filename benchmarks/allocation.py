"""Is it worth giving blocks different sparsities? Perplexity of SmolLM2 with each rule, at exactly the same average.

Writes one JSON file; cells that it already holds are not repeated, and the most telling cells come first.

    python benchmarks/allocation.py book/results/allocation.json
"""

import argparse
import itertools
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from record import load_cells, save

import minprune as mp
from minprune.allocation.allocate import allocate
from minprune.allocation.budget import group_layers, sizes_of, table_of
from minprune.allocation.rules import get_rule
from minprune.evaluation.perplexity import token_nll
from minprune.models.hooks import capture_inputs

PROTOCOL = {
    "model": "smollm2 (SmolLM2-135M-Instruct, a 4-bit checkpoint dequantised, here bfloat16)",
    "calibration": "wikipedia train, 16 x 512 tokens, drawn by the cell's seed",
    "rules": "run once for each pattern, on the first 256 tokens of the windows of seed 0, and see nothing else",
    "both ends, first only, last only, first+last block": "the first and the last three blocks, or only these, or the "
    "first three and the last one, at 25 %, the others alike",
    "test": "wikipedia test, 8 x 512 tokens, evenly spaced",
    "nats": "mean negative log-likelihood of each test window",
    "blocks": "the sparsity of each block that the rule asked for, weighted by parameters",
    "seconds": "processor time of the rule and of the pruning run",
}
RULES = ("uniform", "optimal", "ramp", "owl", "inverse", "global")
FEW = ("uniform", "ramp", "optimal", "owl")
PAIR = FEW[:2]
SPARED = {  # blocks at 25 %
    "both ends": [0, 1, 2, -3, -2, -1],
    "first only": [0, 1, 2],
    "last only": [-3, -2, -1],
    "first+last block": [0, 1, 2, -1],
}
ORDER = [  # (method, pattern, rules, seeds), the most telling first
    ("wanda", "60%", FEW, (0,)),
    ("wanda", "70%", PAIR, (0, 1, 2)),
    ("wanda", "60%", PAIR, (1, 2)),
    ("wanda", "60%", tuple(SPARED), (0, 1, 2)),
    ("sparsegpt", "70%", PAIR, (0,)),
    ("wanda", "70%", FEW, (0,)),
    ("sparsegpt", "70%", PAIR, (1, 2)),
    ("wanda", "60%", ("global",), (0,)),
    ("sparsegpt", "60%", PAIR, (0,)),
    ("wanda", "50%", PAIR, (0,)),
    ("wanda", "70%", FEW, (1, 2)),
    ("wanda", "60%", FEW, (1, 2)),
    ("sparsegpt", "70%", FEW, (0,)),
    ("sparsegpt", "60%", FEW, (0,)),
    ("wanda", "50%", FEW, (0,)),
    ("wanda", "70%", RULES, (0,)),
    ("wanda", "60%", RULES, (0,)),
    ("sparsegpt", "70%", FEW, (1, 2)),
    ("sparsegpt", "60%", FEW, (1, 2)),
    ("wanda", "50%", RULES, (0, 1, 2)),
    ("wanda", "70%", RULES, (1, 2)),
    ("wanda", "60%", RULES, (1, 2)),
    ("sparsegpt", "50%", FEW, (0, 1, 2)),
]


class Bench:
    """One model in memory with a copy of its weights, so that a cell costs no loading."""

    def __init__(self):
        self.model, self.tokenizer = mp.load_model("smollm2", dtype="bfloat16")
        self.layers = mp.find_layers(self.model)
        self.dense = [layer.weight.clone() for layer in self.layers]
        self.test = mp.load_tokens(self.tokenizer, "wikipedia", split="test", samples=8, length=512)
        self.table = cache(self._table)

    def calibration(self, seed: int) -> torch.Tensor:
        """The calibration windows of a seed, (16, 512)."""
        return mp.load_tokens(self.tokenizer, "wikipedia", samples=16, length=512, seed=seed)

    def _table(self, rule: str, pattern: str) -> tuple[dict, float]:
        if rule == "uniform":
            return {"*": mp.pattern(pattern).sparsity}, 0.0
        if rule in SPARED:
            return self._sparing(SPARED[rule], mp.pattern(pattern).sparsity), 0.0
        start = time.process_time()
        table = get_rule(rule)(self.model, self.layers, self.calibration(0)[:, :256], pattern)
        return table, time.process_time() - start

    def _sparing(self, blocks: list[int], average: float, sparsity: float = 0.25) -> dict:
        """These blocks at 25 %, the others alike, so that the average is exact."""
        groups = group_layers(self.layers)
        sizes = sizes_of(groups)
        spared = np.isin(np.arange(len(sizes)), np.arange(len(sizes))[blocks])
        rest = (average * sizes.sum() - sparsity * sizes[spared].sum()) / sizes[~spared].sum()
        return table_of(groups, np.where(spared, sparsity, rest))

    def measure(self, method: str, pattern: str, rule: str, seed: int) -> dict:
        """One cell, from the dense weights and back to them."""
        table, rule_seconds = self.table(rule, pattern)
        start = time.process_time()
        prune = prune_with_wanda if method == "wanda" else mp.prune
        prune(self.model, self.calibration(seed), method, pattern, allocation=table)
        seconds = time.process_time() - start
        zeros = sum(layer.weight.numel() - int(layer.weight.count_nonzero()) for layer in self.layers)
        blocks = []
        for members in group_layers(self.layers).values():
            sizes = sizes_of({layer.name: [layer] for layer in members})
            blocks.append(np.array([table.get(layer.name, table.get("*")) for layer in members]) @ sizes / sizes.sum())
        try:
            nats = token_nll(self.model, self.test).double().mean(1)  # (windows,)
            return {
                "perplexity": float(f"{float(nats.mean().exp()):.6g}"),
                "nats": [round(float(value), 4) for value in nats],
                "zeros": round(zeros / sum(layer.weight.numel() for layer in self.layers), 5),
                "blocks": [round(float(sparsity), 4) for sparsity in blocks],
                "seconds": [round(rule_seconds, 1), round(seconds, 1)],
            }
        finally:
            for layer, weight in zip(self.layers, self.dense, strict=True):
                layer.weight.copy_(weight)


@torch.no_grad()
def prune_with_wanda(model, calib: torch.Tensor, method: str, pattern: str, allocation: dict) -> None:
    """What `prune` does with Wanda, without the layer errors, which take it longer than all the rest."""
    layers = mp.find_layers(model)
    patterns = allocate(layers, mp.pattern(pattern), allocation)

    def receive(layer, X):
        stats = mp.Statistics(X.shape[-1], gram=False).update(X)
        layer.weight.copy_(mp.METHODS[method](layer.weight, stats, patterns[layer]).weight)

    with capture_inputs(layers, receive):
        model.base_model(input_ids=calib, use_cache=False)


def recompute(cell: dict) -> float:
    """The perplexity of a cell, by `prune` itself and from nothing but the cell's key."""
    bench = Bench()
    table, _ = bench.table(cell["allocation"], cell["pattern"])
    mp.prune(bench.model, bench.calibration(cell["seed"]), cell["method"], cell["pattern"], allocation=table)
    return mp.perplexity(bench.model, bench.test)


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    cells = load_cells(args.output)
    bench = Bench()
    for method, pattern, rules, seeds in ORDER:
        for rule, seed in itertools.product(rules, seeds):
            key = {"method": method, "pattern": pattern, "allocation": rule, "seed": seed}
            if any(key.items() <= cell.items() for cell in cells):
                continue
            cells.append(key | bench.measure(**{"rule" if k == "allocation" else k: v for k, v in key.items()}))
            print({k: v for k, v in cells[-1].items() if k not in ("blocks", "nats")}, file=sys.stderr, flush=True)
            save(args.output, f"python benchmarks/allocation.py {args.output.as_posix()}", PROTOCOL, cells)


if __name__ == "__main__":
    main()
