"""Perplexity of SmolLM2 at 60 % against what it was calibrated with: how many windows, how long, from where, options.

Writes one JSON file; cells that it already holds are not measured again, and the most telling ones come first.

    python benchmarks/calibration.py book/results/calibration.json [--cells 10]
"""

import argparse
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from record import fill_in
from torch import Tensor

import minprune as mp
from minprune.data.tokens import fingerprint

PATTERN = "60%"
PROTOCOL = {
    "model": "smollm2 (SmolLM2-135M-Instruct, a 4-bit checkpoint dequantised), in bfloat16; sums and solves in float32",
    "calibration": "as the cell says: windows x length tokens of the train split of source, drawn with seed",
    "sources": "wikipedia, news, python: embedded texts; mixed: a third of each; random: ids drawn uniformly; "
    "own: sampled from the dense model at temperature 1, each window after one token of wikipedia; "
    "test: wikipedia test, every second window of it one of those that are measured",
    "test": "16 x 512 tokens of wikipedia test, evenly spaced; where the source is the question also of news test, and "
    "10 x 512 of python test",
    "seconds": "of processor time in mp.prune, on one thread of the machine that filled in the cell; there were two",
}
TESTS = {"wikipedia": 16, "news": 16, "python": 10}
BASE: dict[str, Any] = {"source": "wikipedia", "windows": 32, "length": 512, "seed": 0}
BOTH = ("wanda", "sparsegpt")
CELLS = [  # what differs from BASE, in order of importance
    *({"method": m} for m in BOTH),
    *({"method": m, "windows": 4} for m in BOTH),
    *({"method": m, "source": s} for s in ("random", "news") for m in BOTH),
    *({"method": "sparsegpt", "windows": w, "damp": d} for w, d in ((4, 0.1), (32, 0.1))),
    *({"method": m, "windows": 1} for m in BOTH),
    *({"method": m, "source": s} for s in ("python", "own", "mixed", "test") for m in BOTH),
    *({"method": "sparsegpt", "block_size": b} for b in (32, 1536)),
    *({"method": m, "windows": 64} for m in BOTH),
    *({"method": m, "windows": 16384 // n, "length": n} for n in (128, 2048) for m in BOTH),
    *({"method": "sparsegpt", "windows": w, "damp": 1.0} for w in (4, 32)),
    *({"method": m, "windows": 4, "seed": s} for s in (1, 2) for m in BOTH),
    *({"method": m, "seed": s} for s in (1, 2) for m in BOTH),
    *({"method": "sparsegpt", "windows": w, "damp": 0.0001} for w in (4, 32)),
    *({"method": "admm", "windows": w} for w in (4, 32)),
    *({"method": m, "windows": w} for w in (16, 128) for m in BOTH),
    *({"method": "sparsegpt", "block_size": b, "seed": 1} for b in (32, 1536)),
]


@cache
def patient() -> tuple[Any, Any, list[tuple[Tensor, Tensor]]]:
    """The model, its tokenizer, and a copy of each of its matrices."""
    model, tokenizer = mp.load_model("smollm2", dtype="bfloat16")
    return model, tokenizer, [(layer.weight, layer.weight.clone()) for layer in mp.find_layers(model)]


def windows_of(source: str, windows: int, length: int, seed: int) -> Tensor:
    """The calibration windows (windows, length) of a cell; the model is dense when this is called."""
    model, tokenizer, _ = patient()
    if source == "mixed":
        counts = [windows // 3 + (rest < windows % 3) for rest in range(3)]
        return torch.cat([windows_of(s, n, length, seed) for s, n in zip(TESTS, counts, strict=True)])
    if source == "random":
        return torch.randint(len(tokenizer), (windows, length), generator=torch.Generator().manual_seed(seed))
    if source == "own":
        first = windows_of("wikipedia", windows, length, seed)[:, :1]
        torch.manual_seed(seed)
        return model.generate(
            input_ids=first, attention_mask=torch.ones_like(first), min_length=length, max_length=length,
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
        )  # fmt: skip
    if source == "test":
        return mp.load_tokens(tokenizer, "wikipedia", "test", windows, length)
    return mp.load_tokens(tokenizer, source, samples=windows, length=length, seed=seed)


def recompute(setting: dict) -> dict:
    """Perplexity on the three texts, seconds, and the sha256 of the calibration tokens, of one cell's setting."""
    model, tokenizer, dense_weights = patient()
    source, windows, length, seed, method = (setting[k] for k in ("source", "windows", "length", "seed", "method"))
    options = {name: setting[name] for name in ("damp", "block_size") if name in setting}
    found: dict = {"perplexity": {}}
    try:
        if method != "dense":
            calib = windows_of(source, windows, length, seed)
            start = time.process_time()
            report = mp.prune(model, calib, method=method, pattern=PATTERN, **options)
            found["seconds"] = float(f"{time.process_time() - start:.4g}")
            found["damping_raised"] = sum("damping" in row.note for row in report.layers)
            found["sha256"] = fingerprint(calib)
        whole = {key: setting.get(key) for key in BASE if key != "source"} == {
            k: BASE[k] for k in BASE if k != "source"
        }
        for text, samples in TESTS.items():
            if text != "wikipedia" and not (whole and not options):
                continue  # the other texts only where the source is the question
            tokens = mp.load_tokens(tokenizer, text, "test", samples, 512)
            found["perplexity"][text] = float(f"{mp.perplexity(model, tokens):.6g}")
    finally:
        for W, copy in dense_weights:
            W.copy_(copy)
    return found


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--cells", type=int, help="stop after so many new cells")
    args = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [{**BASE, **cell} for cell in [{"method": "dense"}, *CELLS]]
    command = f"python benchmarks/calibration.py {args.output.as_posix()}"
    fill_in(args.output, command, PROTOCOL, wanted, lambda **setting: recompute(setting), args.cells)


if __name__ == "__main__":
    main()
