"""Perplexity of SmolLM2 after one-shot pruning, for each method and pattern: the README's table and figure.

Writes one JSON file with the command, versions, seed, machine and date; runs that it already holds are not repeated.

    python benchmarks/quality.py book/results/one-shot.json
    python benchmarks/quality.py book/results/one-shot.json --figure book/_static/one-shot.png
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

from record import load_cells, save

import minprune as mp

METHODS = ("magnitude", "wanda", "sparsegpt")
PATTERNS = ("50%", "2:4", "60%", "30%")
PROTOCOL = {
    "model": "smollm2 (SmolLM2-135M-Instruct, a 4-bit checkpoint dequantised to float32)",
    "calibration": "wikipedia train, 64 x 512 tokens, seed 0",
    "test": "wikipedia test, 32 x 512 tokens, evenly spaced",
}


def recompute(method: str, pattern: str) -> dict:
    """One cell from nothing but the protocol: perplexity, fraction of zeros, seconds. "dense" is a method, too.

    seconds: processor time of the whole pruning run, over all threads. error: relative layer error, the median layer's.
    """
    model, tokenizer = mp.load_model("smollm2")
    test = mp.load_tokens(tokenizer, "wikipedia", split="test", samples=32, length=512)
    if method == "dense":
        return {"perplexity": mp.perplexity(model, test), "zeros": 0.0}
    calib = mp.load_tokens(tokenizer, "wikipedia", samples=64, length=512, seed=0)
    start = time.process_time()
    report = mp.prune(model, calib, method=method, pattern=pattern)
    seconds = time.process_time() - start
    return {
        "perplexity": mp.perplexity(model, test),
        "zeros": report.sparsity,
        "error": statistics.median(row.error for row in report.layers if row.error is not None),
        "seconds": seconds,
    }


def draw(cells: list[dict], path: Path) -> None:
    """Bars of perplexity relative to dense, on a log axis."""
    import matplotlib.pyplot as plt

    from minprune.plots import LOOKS, use_style

    use_style()
    by_key = {(cell["method"], cell["pattern"]): cell["perplexity"] for cell in cells}
    dense = by_key["dense", ""]
    order = ("30%", "50%", "60%", "2:4")
    figure, axes = plt.subplots()
    for place, method in enumerate(METHODS):
        ratios = [by_key[method, pattern] / dense for pattern in order]
        at = [index + 0.27 * (place - 1) for index in range(len(order))]
        look = LOOKS[method]
        bars = axes.bar(at, ratios, 0.25, label=method, color=look.color, hatch=look.hatch, edgecolor="#fbfaf7")
        axes.bar_label(bars, [f"{ratio:.3g}" for ratio in ratios], fontsize=8.5, padding=2)
    axes.set_yscale("log")
    axes.set_ylim(1, 1000)
    axes.set_xticks(
        range(len(order)), [f"{pattern} zeros" if "%" in pattern else f"{pattern} (half)" for pattern in order]
    )
    axes.set_ylabel("perplexity, times dense")
    axes.set_title("What is known about the inputs decides what survives")
    axes.legend(ncols=3, loc="upper left")
    figure.savefig(path)


def main() -> None:
    """Fill in what is missing of the results file; with --figure also draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    cells = load_cells(args.output)
    done = {(cell["method"], cell["pattern"]) for cell in cells}
    wanted = [("dense", ""), *((method, pattern) for pattern in args.patterns for method in args.methods)]
    for method, pattern in wanted:
        if (method, pattern) in done:
            continue
        found = {name: float(f"{value:.6g}") for name, value in recompute(method, pattern).items()}
        cells.append({"method": method, "pattern": pattern, **found})
        print(cells[-1], file=sys.stderr)
        command = f"python benchmarks/quality.py {args.output.as_posix()} (--methods, --patterns: see the cells)"
        save(args.output, command, PROTOCOL, cells)
    if args.figure:
        draw(cells, args.figure)


if __name__ == "__main__":
    main()
