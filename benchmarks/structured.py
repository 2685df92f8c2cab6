"""SmolLM2 made smaller: neurons, heads, blocks and channels, each with its repairs; and how much faster it then runs.

Writes one JSON file; cells that it already holds are not measured again, and the most telling ones come first.

    python benchmarks/structured.py book/results/structured.json [--only blocks] [--cells 4]
"""

import argparse
import statistics
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from record import fill_in, short

import minprune as mp
from minprune.evaluation.minimal_pairs import minimal_pairs
from minprune.evaluation.perplexity import read_perplexity
from minprune.models.causality import evaluating
from minprune.pipeline.reconstruction import Reconstruction
from minprune.structured.cut import Cut, apply_cut
from minprune.structured.depth import choose_blocks, repair_cuts
from minprune.structured.removals import removal
from minprune.structured.shrink import RECONSTRUCTION, shrink
from minprune.structured.sites import slice_sites

COMMAND = "python benchmarks/structured.py book/results/structured.json"
PROTOCOL = {
    "model": "smollm2 (SmolLM2-135M-Instruct, a 4-bit checkpoint dequantised to float32)",
    "calibration": "wikipedia train, 32 x 256 tokens, seed 0; forward products in bfloat16, solves in float32 or wider",
    "perplexity": "on 8 x 512 tokens of wikipedia test, evenly spaced, products in bfloat16; one calibration seed, so "
    "differences of a few per cent are no order",
    "repair": "none; refit: least squares for the kept inputs (width), or for the last matrix before each cut towards "
    "the dense stream behind it (depth); bias: means of missing inputs; reconstruct: refit, then each block trained "
    "towards the dense one, 2 epochs of 1 window a step at a rate of 0.002, 4 of the 32 windows for the decision "
    "whether a block is put back as it was; refit, 64 x 512 and reconstruct, 64 x 512: on 64 x 512 tokens of the "
    "same text and seed; trained for 2 epochs of 4 windows a step at a rate of 0.01, the best of 0.003, 0.01 and 0.03 "
    "by the error of the first three blocks on the 8 windows that decide",
    "validation": "perplexity on 8 x 512 tokens of wikipedia validation, as above",
    "slicing": "slicegpt: principal axes of the stream, tokens at length one, one basis for all places; channels: "
    "those with the largest share of it; outputs: axes chosen by stream and slope; sites: a basis for each site and "
    "adapters, as published, tokens as they are; unit sites: the same, tokens at length one; adapters in bfloat16, too",
    "method": "of blocks, loss and greedy choose on the first 4 windows of the calibration, all else on 32",
    "last_word, pairs": "shares of right answers with the standard error of independent ones: 100 passages of "
    "wikipedia test, half of them with a last word that was used before; 25 pairs of sentences for each of nine rules, "
    "seed 0; products in bfloat16",
    "remove": "two removals in one run: blocks by influence first, then neurons of those that stay",
    "damp": "what is added to the diagonal in a refit, as a share of its mean",
    "seconds": "of processor time, on one thread of a busy machine",
    "speed": "processor seconds for 24 tokens one by one after a prompt of 8 (median of 5, dense and smaller in turn), "
    "dense / smaller, and the same for reading 256 tokens at once; float32, one thread",
}
SLICES = ("slicegpt", "channels", "sites", "unit sites", "outputs")  # sites: as published, with adapters
TRAINED = Reconstruction(lr=0.002, batch_size=1, epochs=2)
LONG = ", 64 x 512"  # behind a repair: on more text, and trained as shrink does by default


def _cells() -> list[dict[str, Any]]:
    """What is measured, the most telling ones first."""
    width = [("25%", "obd", "refit", 1.0), ("25%", "obd", "none", 0.01)]
    width += [("25%", "obs", "refit", damp) for damp in (1.0, 0.01)]
    more = [("25%", "obd", "refit", 0.01), ("25%", "flap", "bias", 0.01), ("25%", "obd", "refit", 10.0)]
    cells = [_cell("", "dense", "")]
    cells += [_cell(f"neurons:{share}", how, repair, damp) for share, how, repair, damp in width]
    cells += [_cell("blocks:3 neurons:13%", "obd", repair, 1.0) for repair in ("refit", "reconstruct")]
    longer = [("25%", "reconstruct"), ("50%", "reconstruct"), ("25%", "refit")]
    cells += [_cell(f"neurons:{share}", "obd", repair + LONG, 1.0) for share, repair in longer]
    cells += [_cell(f"blocks:{n}", "influence", "none") for n in (3, 5, 1, 2, 8)]
    cells += [_cell(f"blocks:{n}", "influence", "refit", 1.0) for n in (3, 5)]
    cells += [_cell(f"blocks:{n}", how, "none") for n in (3, 5) for how in ("greedy", "angle", "attention", "taylor")]
    cells += [_cell(f"blocks:{n}", "greedy", "refit", 1.0) for n in (3, 5)]
    cells += [_cell(f"blocks:{n}", "influence", "refit", 1.0) for n in (8, 1, 2)]
    cells += [_cell(f"blocks:{n}", "influence", "reconstruct", 1.0) for n in (3, 5)]
    cells += [_cell("blocks:3", "influence", "refit"), _cell("neurons:25%", "obd", "reconstruct", 1.0)]
    cells += [_cell(what, "speed", "") for what in ("neurons:25%", "blocks:8", "hidden:25%")]
    cells += [_cell("neurons:50%", "obd", "refit", 1.0), _cell("heads:1/3", "obd", "refit", 1.0)]
    cells += [_cell(f"hidden:{share}%", how, "none") for share in (25, 12.5) for how in SLICES]
    cells += [_cell(f"neurons:{share}", how, repair, damp) for share, how, repair, damp in more]
    cells += [_cell("neurons:50%", "obd", "reconstruct", 1.0)]
    cells += [_cell("neurons:25%", how, "refit", 1.0) for how in ("magnitude", "taylor")]
    cells += [_cell("blocks:3", "loss", "none")]
    return cells


def _cell(remove: str, method: str, repair: str, damp: float = 0.01) -> dict[str, Any]:
    return {"remove": remove, "method": method, "repair": repair, "damp": damp}


@cache
def patient():
    """The tokenizer, the calibration windows and the test's."""
    _, tokenizer = mp.load_model("smollm2")
    calib = mp.load_tokens(tokenizer, "wikipedia", samples=32, length=256, seed=0)
    return calib, mp.load_tokens(tokenizer, "wikipedia", "test", 8, 512)


@cache
def more():
    """The longer calibration, and the validation's windows."""
    _, tokenizer = mp.load_model("smollm2")
    calib = mp.load_tokens(tokenizer, "wikipedia", samples=64, length=512, seed=0)
    return calib, mp.load_tokens(tokenizer, "wikipedia", "validation", 8, 512)


def recompute(remove: str, method: str, repair: str, damp: float) -> dict[str, Any]:
    """One cell from nothing but the protocol."""
    torch.set_num_threads(1)
    calib, test = patient()
    model, tokenizer = mp.load_model("smollm2")
    if method == "speed":
        return speed(model, remove)
    found: dict[str, Any] = {}
    on_more = repair.endswith(LONG)
    if on_more:
        calib, validation = more()
        repair = repair.removesuffix(LONG)
    if remove:
        start = time.process_time()
        options: dict[str, Any] = {"reconstruction": RECONSTRUCTION if on_more else TRAINED, "damp": damp}
        if not remove.startswith(("blocks", "hidden")):
            options["precision"] = "bfloat16"
        if method.endswith("sites"):
            width = model.config.hidden_size
            slice_sites(model, calib, width - removal(remove).of(width), method == "unit sites")
            notes: list[str] = []
        elif method in ("greedy", "loss"):
            with torch.autocast("cpu", torch.bfloat16):
                notes = few_windows(model, calib, remove, method, repair, damp)
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=remove.startswith("blocks")):
                notes = shrink(model, calib, remove.split(), method, repair, **options).notes[:1]
        found = {"seconds": round(time.process_time() - start, 1), "notes": notes}
    with torch.autocast("cpu", torch.bfloat16):
        found = {"perplexity": short(read_perplexity(model, test))} | found
        if on_more:
            found["validation"] = short(read_perplexity(model, validation))
        if remove in ("", "blocks:3", "blocks:5"):
            found |= abilities(model, tokenizer)
    return found | {"parameters": model.num_parameters()}


def few_windows(model, calib, remove: str, method: str, repair: str, damp: float) -> list[str]:
    """As shrink does, with the choice on 4 windows: it takes dozens of passes. Returns a note as shrink's."""
    depth = model.config.num_hidden_layers
    with evaluating(model):
        kept = choose_blocks(model, calib[:4], removal(remove).of(depth), method)
        if repair == "refit":
            repair_cuts(model, calib, kept, damp)
    apply_cut(model, Cut(blocks=kept))
    return [f"blocks {', '.join(str(block) for block in range(depth) if block not in kept)} of {depth} removed"]


def abilities(model, tokenizer) -> dict[str, Any]:
    """The shares of last words found and of pairs of sentences told apart, each with its error."""
    words = mp.last_word(model, tokenizer, "wikipedia", "test", count=100)
    pairs = mp.grammar(model, tokenizer, minimal_pairs(25))
    return {
        name: {"value": short(score.value), "error": short(score.error), "count": score.count}
        for name, score in (("last_word", words), ("pairs", pairs))
    }


@torch.no_grad()
def speed(dense, remove: str) -> dict[str, Any]:
    """How many times faster the smaller model writes and reads, both in turn."""
    calib, _ = patient()
    smaller, _ = mp.load_model("smollm2")
    shrink(smaller, calib[:2, :64], remove, "channels" if "hidden" in remove else None, "none")
    seconds: dict[tuple, list[float]] = {}
    for _ in range(5):
        for name, model in (("dense", dense), ("smaller", smaller)):
            for task, run in (("write", _write), ("read", _read)):
                start = time.process_time()
                run(model, calib[:1])
                seconds.setdefault((name, task), []).append(time.process_time() - start)
    middle = {key: statistics.median(values) for key, values in seconds.items()}
    ratios = {task: short(middle["dense", task] / middle["smaller", task]) for task in ("write", "read")}
    rate = {f"{name}_tokens_per_second": short(24 / middle[name, "write"]) for name in ("dense", "smaller")}
    return ratios | rate | {"parameters": smaller.num_parameters()}


def _write(model, window) -> None:
    model.generate(window[:, :8], max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0)


def _read(model, window) -> None:
    model(window)


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", default="", help="only cells whose removal begins with this")
    parser.add_argument("--cells", type=int, help="stop after so many new ones")
    args = parser.parse_args()
    wanted = [cell for cell in _cells() if cell["remove"].startswith(args.only)]
    fill_in(args.output, COMMAND, PROTOCOL, wanted, recompute, args.cells)


if __name__ == "__main__":
    main()
