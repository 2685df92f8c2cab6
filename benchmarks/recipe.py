"""What each part of the best recipe brings, and distillation behind it: SmolLM2, perplexity on three texts and time.

Writes one JSON file; cells that it already holds are not measured again, and the most telling ones come first.

    python benchmarks/recipe.py book/results/recipe.json [--cells 4]
"""

import argparse
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from record import fill_in

import minprune as mp
from minprune.pipeline.recipes import RECIPES, Recipe
from minprune.pipeline.reconstruction import Reconstruction
from minprune.training.distill import Distillation
from minprune.training.recipe import Recipe as Training
from minprune.training.recover import recover

PROTOCOL = {
    "model": "smollm2 (SmolLM2-135M-Instruct, a 4-bit checkpoint dequantised to float32)",
    "calibration": "wikipedia train, 64 x 512 tokens, seed 0",
    "perplexity": "on 32 x 512 tokens of wikipedia test, 16 x 512 of news test, and 16 x 512 of wikipedia validation, "
    "the text on which the recipe was chosen; evenly spaced windows, matrix products in bfloat16",
    "products": "while pruning: the type of matrix products in the forward passes; sums, statistics, solves and "
    "weights are float32 always",
    "perplexities_again": "until 2026-11-28 SparseGPT took triangular inverses in bfloat16; its cells were pruned and "
    "measured again with solves in float32, on that day on an Intel Xeon with AMX, those with reconstruction on "
    "2026-11-30 on an AMD EPYC without; their seconds are those of the first machine, like all others",
    "block_errors": "relative error of each block's output against the dense model's, mean of the last epoch",
    "distilled": "after mp.prune recover(), every weight that is not zero, from the dense model's logits alone, on the "
    "calibration tokens, each once: 64 steps of 2 x 256, rate 3e-4, products in bfloat16; rate as for recovery.json",
    "seconds": "of processor time in mp.prune, and in recover, on one thread",
}
TEXTS = {"wikipedia": ("test", 32), "news": ("test", 16), "validation": ("validation", 16)}
PATTERNS = ("70%", "2:4", "60%", "50%")
BEST = RECIPES["best"]
NONE = Reconstruction(epochs=0, bfloat16=True)  # the plain method in the same number types
ALWAYS = Reconstruction(min_sparsity=0)  # also where little is lost
PARTS = {  # name -> what `prune` is told besides the pattern
    "best": {"recipe": "best"},
    "sparsegpt, two-pass": {"recipe": Recipe("sparsegpt", reconstruction=NONE), "sequential": False},
    "admm": {"recipe": Recipe("admm", reconstruction=NONE)},
    "sparsegpt": {"recipe": Recipe("sparsegpt", reconstruction=NONE)},
    "sparsegpt + reconstruction": {"recipe": replace(BEST, method="sparsegpt")},
    "wanda + reconstruction": {"recipe": replace(BEST, method="wanda")},
    "best + ramp": {"recipe": replace(BEST, allocation="ramp")},
    "best, whatever the sparsity": {"recipe": replace(BEST, reconstruction=ALWAYS)},
    "sparsegpt, two-pass, float32": {"method": "sparsegpt", "sequential": False},
    "best, distilled": {"recipe": "best"},
}
DISTILLED = Training(steps=64, batch_size=2, lr=3e-4, warmup=6, bfloat16=True)
ORDER = [  # (part, pattern), the most telling first
    *((part, pattern) for part in ("best", "sparsegpt, two-pass", "admm") for pattern in PATTERNS),
    *((part, "70%") for part in ("sparsegpt", "sparsegpt + reconstruction", "wanda + reconstruction", "best + ramp")),
    *((part, "2:4") for part in ("sparsegpt", "sparsegpt + reconstruction", "wanda + reconstruction")),
    ("sparsegpt, two-pass, float32", "70%"),
    *((part, "40%") for part in ("best, whatever the sparsity", "admm")),
    *(("best, distilled", pattern) for pattern in ("60%", "50%", "2:4", "70%")),
]


@cache
def windows(tokenizer, text: str) -> torch.Tensor:
    """The windows of TEXTS that perplexity is measured on."""
    split, samples = TEXTS[text]
    return mp.load_tokens(tokenizer, "news" if text == "news" else "wikipedia", split=split, samples=samples)


def recompute(part: str, pattern: str) -> dict:
    """One cell from nothing but the protocol. "dense" is a part, too."""
    torch.set_num_threads(1)
    model, tokenizer = mp.load_model("smollm2")
    found: dict = {}
    if part != "dense":
        calib = mp.load_tokens(tokenizer, "wikipedia", samples=64, length=512, seed=0)
        start = time.process_time()
        report = mp.prune(model, calib, pattern=pattern, **PARTS[part])
        if part.endswith("distilled"):
            recover(model, calib.view(-1, 256), DISTILLED, teacher=Distillation(mp.load_model("smollm2")[0]))
        found = {"seconds": round(time.process_time() - start, 1), "zeros": round(report.sparsity, 6)}
        found["products"] = "bfloat16" if report.reconstruction.get("bfloat16") else "float32"
        if errors := (how := report.reconstruction).get("errors"):
            found |= {"epochs": how["epochs"], "rate": how["lr"], "windows": how["batch_size"], "seed": how["seed"]}
            found["block_errors"] = [round(epochs[-1], 4) for epochs in errors.values()]
    with torch.autocast("cpu", torch.bfloat16):
        return {text: float(f"{mp.perplexity(model, windows(tokenizer, text)):.6g}") for text in TEXTS} | found


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--cells", type=int, help="stop after so many new ones")
    args = parser.parse_args()
    wanted = [{"part": part, "pattern": pattern} for part, pattern in [("dense", ""), *ORDER]]
    command = "python benchmarks/recipe.py book/results/recipe.json"
    fill_in(args.output, command, PROTOCOL, wanted, recompute, args.cells)


if __name__ == "__main__":
    main()
