"""Narrower, shallower, with fewer channels, or with zeros: which model is best at equal size, and at equal time?

SmolLM2 made smaller in each way with three draws of calibration text, on two texts and two tasks; how fast each of
these models writes and reads; and small models of bytes, made smaller against trained smaller. Writes one JSON file;
cells that it already holds are not measured again.

    python benchmarks/frontier.py book/results/frontier.json [--cells 4]
"""

import argparse
import statistics
import time
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from record import fill_in, short
from small import STEPS, Language

import minprune as mp
from minprune.evaluation.minimal_pairs import minimal_pairs
from minprune.evaluation.perplexity import token_nll

COMMAND = "python benchmarks/frontier.py book/results/frontier.json"
SHRUNK = {"neurons": "obd", "heads": "obd", "blocks": "influence", "hidden": "channels"}  # kind -> criterion
WAYS = (  # what is done to the model, the most telling first
    "neurons:25%", "blocks:5", "sparsegpt 50%", "hidden:12.5%", "sparsegpt 2:4", "blocks:2", "neurons:12.5%",
    "sparsegpt 20%", "heads:1/3", "blocks:8", "neurons:50%", "sparsegpt 70%",
)  # fmt: skip
EQUAL = ("neurons:25%", "blocks:5", "hidden:12.5%", "sparsegpt 20%")  # 113 to 117 million parameters each
SEEDS = range(3)
WIDTHS, LONG = (128, 112, 96, 80), 4 * STEPS
SMALL = ("neurons:37.5%", "hidden:12.5%", "blocks:1", "sparsegpt 25%", "sparsegpt 45%", "sparsegpt 60%")
PROTOCOL = {
    "model": "smollm2 (SmolLM2-135M-Instruct, a 4-bit checkpoint dequantised to float32)",
    "calibration": "wikipedia train, 32 x 256 tokens, drawn with the seed; forward products in bfloat16",
    "ways": "neurons and heads by Wanda's scores squared, blocks by influence, both refitted with damping 1; channels "
    "by their share of the stream's energy, no refit; SparseGPT with damping 0.01; nothing is trained",
    "nats": "the mean of each of 8 x 512 tokens of the test split, evenly spaced, products in bfloat16",
    "last_word, pairs": "shares of right answers with the standard error of independent ones: 100 passages of "
    "wikipedia test, half of them with a last word that was used before; 25 pairs of sentences for each of nine rules, "
    "seed 0; products in bfloat16",
    "parameters": "that are not zero, embeddings included",
    "speed": "one thread's processor seconds for 24 tokens one by one after a prompt of 8 (median of 5), and for "
    "reading 256 tokens at once, all models in turn; float32; zeros are stored with one bit a weight",
    "trained": f"bytes: models of benchmarks/small.py with d = {', '.join(map(str, WIDTHS))}, {LONG} steps at 0.32 / "
    "d, the same bytes for all; the first also made smaller, on 128 x 64 bytes of wikipedia train; bits a byte on "
    "64 x 64 bytes of wikipedia test, by the seed of the weights",
}


def _cells() -> list[dict[str, Any]]:
    """What is measured, the most telling ones first."""
    order = ("dense", *WAYS, "speed")
    cells = [{"way": way, "seed": 0} for way in order]
    cells += [{"way": way, "seed": seed} for seed in SEEDS[1:] for way in EQUAL]
    cells += [{"way": "trained", "seed": seed} for seed in SEEDS]
    return [*cells, *({"way": way, "seed": seed} for seed in SEEDS[1:] for way in WAYS if way not in EQUAL)]


@cache
def patient():
    """SmolLM2's tokenizer, and the test windows of two texts."""
    _, tokenizer = mp.load_model("smollm2")
    return tokenizer, {text: mp.load_tokens(tokenizer, text, "test", 8, 512) for text in ("wikipedia", "news")}


@lru_cache(1)
def calibration(seed: int) -> torch.Tensor:
    """The windows of one draw."""
    return mp.load_tokens(patient()[0], "wikipedia", samples=32, length=256, seed=seed)


def recompute(way: str, seed: int) -> dict[str, Any]:
    """One cell from nothing but the protocol."""
    torch.set_num_threads(1)
    if way in ("speed", "trained"):
        return speed() if way == "speed" else trained(seed)
    tokenizer, texts = patient()
    start = time.process_time()
    model, _ = mp.load_model("smollm2")
    if way != "dense":
        smaller(model, way, calibration(seed), bfloat16=True)
    found: dict[str, Any] = {"seconds": short(time.process_time() - start), "parameters": _parameters(model)}
    with torch.autocast("cpu", torch.bfloat16):
        found["nats"] = {text: [short(nats) for nats in token_nll(model, test).mean(1).tolist()]
                         for text, test in texts.items()}  # fmt: skip
        words = mp.last_word(model, tokenizer, "wikipedia", "test", count=100)
        pairs = mp.grammar(model, tokenizer, minimal_pairs(25))
    for name, score in (("last_word", words), ("pairs", pairs)):
        found[name] = {"value": short(score.value), "error": short(score.error), "count": score.count}
    return found


def smaller(model: torch.nn.Module, way: str, calib: torch.Tensor, bfloat16: bool) -> None:
    """Make a model smaller in place: by `shrink`, or by zeros."""
    precision = "bfloat16" if bfloat16 else "float32"
    if way.startswith("sparsegpt"):
        mp.prune(model, calib, "sparsegpt", way.split()[1], precision=precision)
        return
    kind = way.split(":")[0]
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16 and kind in ("blocks", "hidden")):
        mp.shrink(model, calib, way, SHRUNK[kind], damp=1.0, precision=precision)


def _parameters(model: torch.nn.Module) -> int:
    return sum(int(parameter.count_nonzero()) for parameter in model.parameters())


@torch.no_grad()
def speed() -> dict[str, Any]:
    """Tokens a second that models of each size write and read, all in turn. What they say does not matter."""
    models, window = {}, calibration(0)[:1]
    for way in ("dense", *WAYS):
        models[way], _ = mp.load_model("smollm2")
        if way.startswith("sparsegpt"):
            mp.prune(models[way], None, "magnitude", way.split()[1])
            mp.sparsify(models[way], "nm" if way.endswith("2:4") else "bitmask")
        elif way != "dense":
            kind = way.split(":")[0]
            mp.shrink(models[way], window, way, "magnitude" if kind in ("neurons", "heads") else SHRUNK[kind], "none")
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(6):
        for way, model in models.items():
            for task, run in (("write", _write), ("read", _read)):
                start = time.process_time()
                run(model, window)
                seconds.setdefault((way, task), []).append(time.process_time() - start)
    tokens = {"write": 24, "read": window.shape[1]}  # the first round is not counted
    return {
        task: {way: short(count / statistics.median(seconds[way, task][1:])) for way in models}
        for task, count in tokens.items()
    }


def _write(model, window) -> None:
    model.generate(window[:, :8], max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0)


def _read(model, window) -> None:
    model(window)


def trained(seed: int) -> dict[str, Any]:
    """Bits a byte and parameters of models that were trained smaller, and of the largest, made smaller."""
    found: dict[str, dict[str, Any]] = {}
    for width in WIDTHS:
        job = Language(LONG, lr=0.32 / width, width=width)
        network = job.network(seed)
        job.train(network, {}, 0, LONG)
        found[f"d = {width}"] = {"bits": short(job.measure(network)), "parameters": _parameters(network)}
        if width == WIDTHS[0]:
            state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    job = Language(LONG, lr=0.32 / WIDTHS[0], width=WIDTHS[0])
    places = torch.randint(len(job.text) - 64, (128,), generator=torch.Generator().manual_seed(0))
    calib = job.text[places[:, None] + torch.arange(64)]
    for way in SMALL:
        network = job.network(seed)
        network.load_state_dict(state)
        smaller(network, way, calib, bfloat16=False)
        found[way] = {"bits": short(job.measure(network)), "parameters": _parameters(network)}
    return {"models": found}


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--cells", type=int, help="stop after so many new ones")
    args = parser.parse_args()
    fill_in(args.output, COMMAND, PROTOCOL, _cells(), recompute, args.cells)


if __name__ == "__main__":
    main()
