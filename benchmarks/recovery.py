"""What training gives back after pruning: SmolLM2, one-shot SparseGPT, then full, adapters or distillation.

Writes one JSON file with the command, versions and machine; cells that it already holds are not measured again, and
the most telling ones come first. A pattern is pruned once and kept in a temporary folder during the run.

    python benchmarks/recovery.py book/results/recovery.json [--cells 4]
"""

import argparse
import math
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from record import load_cells, save

import minprune as mp
from minprune.training.distill import Distillation
from minprune.training.recover import Recipe, recover

PROTOCOL = {
    "model": "smollm2 (SmolLM2-135M-Instruct, a 4-bit checkpoint dequantised to float32)",
    "pruning": "SparseGPT where no other method is named, at once, wikipedia train, 32 x 512 tokens, seed 0",
    "training": "wikipedia train, steps of 2 x 256 tokens, AdamW without decay, gradients clipped at norm 1, warm-up "
    "for a tenth of the steps and half a cosine down to zero, products in bfloat16; the seed orders the windows",
    "ways": "full: every weight that is not zero; adapters: rank 8, alpha 16, merged under the mask; distilled: every "
    "weight, from the dense model's logits alone, temperature 1; control: the dense model itself, as full, no mask",
    "perplexity": "on 12 x 256 tokens of wikipedia test, the kind of text that is trained on, and 12 x 256 of news "
    "test, which is not; evenly spaced windows, matrix products in bfloat16",
    "back": "the share of the lost nats that came back: (ln before - ln after) / (ln before - ln dense), by text, and "
    "for each thousand tokens trained on",
    "rates": "16 steps at 60 %, perplexity on 8 x 256 tokens of wikipedia validation: the best rate of each way is "
    "used in all its other cells, the control has that of full",
    "steps": "10 % more of the weights pruned at a time, each time as many steps of training, with a warm-up and a "
    "cosine of their own; at once: 60 % pruned first, then as many steps altogether",
    "seconds": "of processor time in the steps of training, on one thread",
}
STEPS, SEEDS, BATCH, LENGTH = 42, 3, 2, 256
RATES = {"full": (1e-4, 3e-4, 1e-3), "adapters": (1e-3, 3e-3, 1e-2), "distilled": (1e-4, 3e-4, 1e-3)}
_FIRST, _OTHERS = slice(0, 1), slice(1, None)
TEXTS = {"wikipedia": ("test", 12), "news": ("test", 12), "validation": ("validation", 8)}


def cells_wanted() -> list[dict]:
    """Every cell but for its learning rate, the most telling first."""
    ways = list(RATES)

    def trained(pattern: str, seed: int = 0, steps: int = STEPS) -> list[dict]:
        return [{"kind": "recovery", "pattern": pattern, "way": w, "seed": seed, "steps": steps} for w in ways]

    def gradual(way: str, method: str) -> dict:
        return {"kind": "steps", "pattern": "60%", "way": way, "method": method, "seed": 0, "steps": STEPS}

    def control(seed: int) -> dict:
        return {"kind": "recovery", "pattern": "dense", "way": "control", "seed": seed, "steps": STEPS}

    scans = [{"kind": "rate", "pattern": "60%", "way": way, "lr": lr, "steps": 16} for way in ways for lr in RATES[way]]
    at_once, in_steps = (gradual(way, "magnitude") for way in ("at once", "in steps"))
    full, rest = ({pattern: trained(pattern)[part] for pattern in ("2:4", "70%", "50%")} for part in (_FIRST, _OTHERS))
    return [
        {"kind": "dense"}, *scans, *trained("60%"), control(0), *full["2:4"], at_once, in_steps, *full["70%"],
        *full["50%"], *trained("60%", 1), *rest["2:4"], *rest["70%"], *rest["50%"],
        gradual("in steps", "sparsegpt"),  # at once is the cell of full training
        *trained("60%", 2), *(trained(pattern, steps=4 * STEPS)[0] for pattern in ("60%", "2:4")),
    ]  # fmt: skip


class Bench:
    """The model, the texts, and pruned models that were already made."""

    def __init__(self, folder: Path):
        torch.set_num_threads(1)
        self.folder = folder
        self.dense, self.tokenizer = mp.load_model("smollm2")
        self.train = mp.load_tokens(self.tokenizer, "wikipedia", samples=None, length=LENGTH)

    @cache  # noqa: B019 - one bench a process
    def windows(self, text: str) -> torch.Tensor:
        """The windows of TEXTS that perplexity is measured on."""
        split, samples = TEXTS[text]
        source = "news" if text == "news" else "wikipedia"
        return mp.load_tokens(self.tokenizer, source, split=split, samples=samples, length=LENGTH)

    def prune(self, model, pattern: str, method: str) -> None:
        """Prune what the model is now."""
        calib = mp.load_tokens(self.tokenizer, "wikipedia", samples=32, length=512, seed=0)
        mp.prune(model, None if method == "magnitude" else calib, method=method, pattern=pattern)

    def pruned(self, pattern: str, method: str = "sparsegpt"):
        """A model of its own, pruned from the dense weights; pattern "dense" is the dense model."""
        model, _ = mp.load_model("smollm2")
        kept = self.folder / f"{method}-{pattern.replace(':', '-')}.pt"
        if pattern != "dense" and kept.exists():
            model.load_state_dict(torch.load(kept))
        elif pattern != "dense":
            self.prune(model, pattern, method)
            torch.save(model.state_dict(), kept)
        return model

    @cache  # noqa: B019
    def nats(self, text: str) -> float:
        """The dense model's mean nats a token."""
        with torch.autocast("cpu", torch.bfloat16):
            return math.log(mp.perplexity(self.dense, self.windows(text)))

    def learn(self, model, cell: dict, texts: list[str], steps: int, seed: int, evaluate: int):
        """Train as the cell says; the rows and seconds."""
        recipe = Recipe(
            steps, BATCH, cell["lr"], max(1, steps // 10), seed=seed, evaluate=evaluate, bfloat16=True,
            mode="adapters" if cell["way"] == "adapters" else "full",
        )  # fmt: skip
        teacher = Distillation(self.dense) if cell["way"] == "distilled" else None
        masks = {} if cell["pattern"] == "dense" else None
        test = {text: self.windows(text) for text in texts}
        return recover(model, self.train, recipe, masks=masks, test=test, teacher=teacher)

    def recompute(self, cell: dict) -> dict:
        """What the cell holds besides its settings, from nothing but these."""
        if cell["kind"] == "dense":
            return {"perplexity": {text: _short(math.exp(self.nats(text))) for text in TEXTS}}
        if cell["kind"] == "rate":
            done = self.learn(self.pruned("60%"), cell, ["validation"], cell["steps"], 0, cell["steps"])
            found = [row["perplexity"]["validation"] for row in done.rows]
            return {"before": _short(found[0]), "validation": _short(found[-1]), "seconds": round(done.seconds, 1)}
        if cell["way"] == "in steps":
            return self.in_steps(cell)
        model = self.pruned(cell["pattern"], cell.get("method", "sparsegpt"))
        done = self.learn(model, cell, ["wikipedia", "news"], cell["steps"], cell["seed"], cell["steps"] // 3)
        return self.told(done.rows, done.seconds, done.zeros)

    def in_steps(self, cell: dict) -> dict:
        """Prune a little, train a little, until 60 %."""
        model, _ = mp.load_model("smollm2")
        rows, seconds, tokens = [], 0.0, 0
        for number in range(1, 7):
            self.prune(model, f"{10 * number}%", cell["method"])
            texts = ["wikipedia", "news"] if number == 6 else []
            done = self.learn(model, cell, texts, cell["steps"] // 6, 100 * cell["seed"] + number, cell["steps"] // 6)
            rows += [row | {"tokens": row["tokens"] + tokens} for row in done.rows if row["perplexity"]]
            seconds, tokens = seconds + done.seconds, tokens + done.rows[-1]["tokens"]
        return self.told(rows, seconds, done.zeros)

    def told(self, rows: list[dict], seconds: float, zeros: float) -> dict:
        """Rows of [tokens, loss, perplexity on wikipedia, on news], and what came back."""
        shown = [[row["tokens"], _short(row["loss"]), *map(_short, row["perplexity"].values())] for row in rows]
        found = {"rows": shown, "seconds": round(seconds, 1), "zeros": round(zeros, 6)}
        if not zeros or rows[0]["tokens"]:
            return found
        back = {}
        for text in ("wikipedia", "news"):
            before, after = (math.log(row["perplexity"][text]) for row in (rows[0], rows[-1]))
            back[text] = _short((before - after) / (before - self.nats(text)))
        thousands = rows[-1]["tokens"] / 1000
        return found | {"back": back, "back_per_thousand": {text: _short(b / thousands) for text, b in back.items()}}


def best_rates(cells: list[dict]) -> dict[str, float]:
    """The learning rate of each way with the lowest perplexity on the validation text."""
    scans = [cell for cell in cells if cell["kind"] == "rate"]
    found = {
        way: min((cell for cell in scans if cell["way"] == way), key=lambda cell: cell["validation"])["lr"]
        for way in RATES
    }
    return found | {way: found["full"] for way in ("control", "at once", "in steps")}


def recompute(cell: dict) -> dict:
    """One cell from nothing but its settings and the protocol."""
    with tempfile.TemporaryDirectory() as folder:
        return Bench(Path(folder)).recompute(cell)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--cells", type=int, default=len(cells_wanted()), help="stop after so many new ones")
    args = parser.parse_args()
    cells = load_cells(args.output)
    missing = [cell for cell in cells_wanted() if not any(cell.items() <= found.items() for found in cells)]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for cell in missing[: args.cells]:
            if cell["kind"] in ("recovery", "steps"):
                cell = cell | {"lr": best_rates(cells)[cell["way"]]}
            cells.append(cell | bench.recompute(cell))
            print(cells[-1], file=sys.stderr, flush=True)
            save(args.output, "python benchmarks/recovery.py book/results/recovery.json", PROTOCOL, cells)


if __name__ == "__main__":
    main()
