"""Relative layer error of every method on twelve layers of SmolLM2: calibration, held-out, and with exact weights.

The dense model reads the calibration windows once and held-out windows once; each method then prunes each layer. For
each mask the exact least squares follow, so that what a method loses by its mask and what by its weights stand apart.
Writes one JSON file; what it already holds is not measured again.

    python benchmarks/layers.py book/results/layers.json [--methods wanda admm ...] [--patterns 50% 2:4 ...]
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from record import load_cells, save

import minprune as mp
from minprune.methods import get_method
from minprune.methods.least_squares import least_squares
from minprune.statistics import layer_error

BLOCKS = (0, 14, 29)
KINDS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
METHODS = ("magnitude", "obd", "wanda", "ria", "sparsegpt", "wanda+swaps", "admm", "alps")  # obs takes minutes a layer
PATTERNS = ("50%", "60%", "70%", "2:4", "4:8")
PROTOCOL = {
    "model": "smollm2 (SmolLM2-135M-Instruct, a 4-bit checkpoint dequantised to float32)",
    "calibration": "wikipedia train, 64 x 512 tokens, seed 0; inputs of the dense model",
    "held out": "wikipedia validation, 32 x 512 tokens, seed 0; inputs of the dense model",
    "error": "tr(D G D^T) / tr(W G W^T), D = W - W'",
    "seconds": "of processor time, on one thread",
    "exact": "the same after least squares on the method's mask, damping 0.01",
}


def layers(names: tuple[str, ...] = ()) -> dict[str, tuple[torch.Tensor, mp.Statistics, torch.Tensor]]:
    """Name -> (W, calibration statistics, held-out Gram matrix) of the twelve layers, or of those named."""
    model, tokenizer = mp.load_model("smollm2")
    names = names or tuple(f"model.layers.{block}.{kind}" for block in BLOCKS for kind in KINDS)
    chosen = [layer for layer in mp.find_layers(model) if layer.name in names]
    passes = []
    for split, samples in (("train", 64), ("validation", 32)):
        windows = mp.load_tokens(tokenizer, "wikipedia", split=split, samples=samples, length=512, seed=0)
        seen = {layer.name: mp.Statistics(layer.weight.shape[1]) for layer in chosen}
        hooks = [
            layer.module.register_forward_pre_hook(
                lambda module, args, stats=seen[layer.name]: stats.update(args[0]) and None
            )
            for layer in chosen
        ]
        with torch.no_grad():
            for batch in windows.split(8):
                model.model(input_ids=batch, use_cache=False)
        for hook in hooks:
            hook.remove()
        passes.append(seen)
    train, held_out = passes
    return {x.name: (x.weight.detach().clone(), train[x.name], held_out[x.name].gram) for x in chosen}


def measure(W: torch.Tensor, stats: mp.Statistics, held_out: torch.Tensor, method: str, pattern: str) -> dict:
    """The errors and the seconds of one method on one layer."""
    start = time.process_time()
    result = get_method(method)(W, stats, mp.pattern(pattern))
    seconds = time.process_time() - start
    best = least_squares(W, stats, result.keep)
    return {
        "error": layer_error(W, result.weight, stats.gram),
        "held_out": layer_error(W, result.weight, held_out),
        "exact": layer_error(W, best, stats.gram),
        "exact_held_out": layer_error(W, best, held_out),
        "seconds": seconds,
    }


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    args = parser.parse_args()
    cells = load_cells(args.output)
    done = {(cell["layer"], cell["method"], cell["pattern"]) for cell in cells}
    torch.set_num_threads(1)
    patients = layers()
    for method in args.methods:
        for pattern in args.patterns:
            for name, (W, stats, held_out) in patients.items():
                if (name, method, pattern) in done:
                    continue
                found = measure(W, stats, held_out, method, pattern)
                rounded = {key: float(f"{value:.4g}") for key, value in found.items()}
                cells.append({"layer": name, "method": method, "pattern": pattern, **rounded})
                print(cells[-1], file=sys.stderr)
            save(args.output, f"python benchmarks/layers.py {args.output.as_posix()}", PROTOCOL, cells)


if __name__ == "__main__":
    main()
