"""The numbers and the figure of the intro page.

python book/results/intro.py            measure, write intro.json beside this file, draw the figure
python book/results/intro.py --figure   draw the figure again from intro.json
"""

import json
import os
import platform
import sys
from datetime import date
from pathlib import Path

import torch

import minprune as mp
from minprune.output.report import versions

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent.parent / "benchmarks"))  # whose results files carry the same facts
PROMPT = "The moon is"
SETUP = {"calibration windows": 16, "test windows": 8, "length": 512, "seed": 0}
ROWS = {  # label -> (method, pattern); "random" is not a method of the package
    "dense": None,
    "random half": ("random", "50%"),
    "magnitude": ("magnitude", "50%"),
    "Wanda": ("wanda", "50%"),
    "SparseGPT": ("sparsegpt", "50%"),
    "Wanda 2:4": ("wanda", "2:4"),
    "SparseGPT 2:4": ("sparsegpt", "2:4"),
}


def measure(label: str) -> dict:
    """One row: the zeros reached, the perplexity on held-out articles, and a greedy continuation of the prompt."""
    model, tokenizer = mp.load_model("smollm2")
    calib = mp.load_tokens(
        tokenizer, "wikipedia", samples=SETUP["calibration windows"], length=SETUP["length"], seed=SETUP["seed"]
    )
    test = mp.load_tokens(tokenizer, "wikipedia", "test", samples=SETUP["test windows"], length=SETUP["length"])
    if ROWS[label]:
        method, pattern = ROWS[label]
        if method == "random":
            _zero_random_half(model, pattern)
        else:
            mp.prune(model, calib, method=method, pattern=pattern)
    layers = mp.find_layers(model)
    size = sum(layer.weight.numel() for layer in layers)
    zeros = sum(layer.weight.numel() - int(layer.weight.count_nonzero()) for layer in layers)
    return {
        "zeros": round(zeros / size, 4),
        "perplexity": round(mp.perplexity(model, test), 2),
        "text": mp.generate(model, tokenizer, PROMPT, tokens=24),
    }


def _zero_random_half(model, pattern: str) -> None:
    draw = torch.Generator().manual_seed(SETUP["seed"])
    for layer in mp.find_layers(model):
        scores = torch.rand(layer.weight.shape, generator=draw)
        layer.weight.masked_fill_(~mp.pattern(pattern).with_default("layer").keep(scores), 0)


def draw(results: dict) -> None:
    """Bars on a logarithmic axis: the perplexity of each row."""
    import matplotlib.pyplot as plt

    from minprune.plots import LOOKS, use_style

    use_style()
    rows = results["rows"]
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    for place, (label, row) in enumerate(rows.items()):
        look = LOOKS.get(label.split()[0].lower())
        axes.barh(
            place,
            row["perplexity"],
            color=look.color if look else "#9aa3ab",
            hatch=look.hatch if look else "\\\\\\",
            edgecolor="#fbfaf7",
        )
        axes.text(row["perplexity"] * 1.15, place, _readable(row["perplexity"]), va="center")
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(10, max(row["perplexity"] for row in rows.values()) * 6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("perplexity on held-out Wikipedia articles (log scale, lower is better)")
    axes.set_title("Half of the weights are zero: it matters which half")
    figure.savefig(HERE.parent / "_static" / "intro.png", dpi=160)


def _readable(perplexity: float) -> str:
    return f"{perplexity:.0f}" if perplexity < 1e6 else f"{perplexity / 1e6:.0f} million"


def main() -> None:
    """Measure unless told to draw only."""
    path = HERE / "intro.json"
    if "--figure" not in sys.argv[1:]:
        from provenance import stamp

        results = {
            "command": "python book/results/intro.py",
            "model": "SmolLM2-135M-Instruct, 4-bit checkpoint expanded to float32 (the embedded one)",
            "text": "embedded Wikipedia articles; train articles to calibrate, test articles to evaluate",
            "setup": SETUP,
            "prompt": PROMPT,
            "versions": versions(),
            "date": date.today().isoformat(),
            "machine": f"{os.cpu_count()} cores of a {platform.machine()} {platform.system()} machine, no GPU",
            **stamp(Path(__file__)),
            "rows": {label: measure(label) for label in ROWS},
        }
        path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
