"""One model made smaller in many ways, on one protocol, for the page *What to do with a budget* and `minprune advise`.

SmolLM2, moved off its 4-bit grid as in benchmarks/quantize.py, is pruned, narrowed, cut in depth, rounded, or several
of these one after the other. Writes a line for each way, the most telling ones first; those that the file already holds
are not measured again. Beside it, a .json file says how it was made, and compares each way with the dense model.

    python benchmarks/atlas.py book/results/atlas.jsonl [--cells 4] [--only quantize]

Tokens a second are those of decode.json, where that very thing was measured. `minprune advise` has its copy of the
comparison, minprune/compress/atlas.json, from here, too.
"""

import argparse
import copy
import datetime
import statistics
import sys
import time
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import quantize
import structured
import torch
from record import load_cells, save, short
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

import minprune as mp
from minprune.compress.low_rank import low_rank
from minprune.evaluation.perplexity import exp
from minprune.files import append_json, json_lines, to_json, write_text
from minprune.formats.choose import store
from minprune.methods.method import Method
from minprune.methods.result import Result
from minprune.models.causality import evaluating
from minprune.models.layers import find_layers
from minprune.structured.shrink import shrink

PATIENT = "smollm2 rescaled"
GROUP = 64
PACKAGED = Path(mp.__file__).parent / "compress" / "atlas.json"
PROTOCOL = {
    "model": f"SmolLM2-135M-Instruct, dequantised from 4 bits, then {quantize.PROTOCOL[PATIENT]}",
    "calibration": "wikipedia train, 32 x 256 tokens, seed 0, forward products in bfloat16; one seed",
    "test": "8 x 512 tokens of wikipedia test, evenly spaced, products in bfloat16 (of the model in float32: in "
    "float32); nats: the mean of each window; kl: of the dense model's predictions from these, in nats, by window",
    "steps": "one after the other. prune METHOD PATTERN; quantize METHOD BITS, groups of 64, a whole zero point, zeros "
    "kept; quantize METHOD BITS PATTERN: zeros chosen in the same sweep; shrink: obd and influence, refit with damping "
    "1, hidden: slicegpt, no refit; low-rank SHARE: the principal components of each matrix's outputs, of its numbers",
    "bytes": "as `minprune export --format auto` stores them: every matrix of the blocks in the smallest format, all "
    "else, embeddings and head included, in 16 bits a number; float32: in 32. low-rank: two factors in 16 bits",
    "last_word, pairs": structured.PROTOCOL["last_word, pairs"],
    "loss, error": "nats a token more than the dense model in bfloat16 on the same windows, and the standard error of "
    "the mean of the differences by window; kl_error likewise",
    "tokens_per_second, faster": "decode.json, SmolLM2 in bfloat16, one thread: tokens a second, and times dense in "
    "the same run; null: not measured",
    "seconds": "of processor time, on one thread of a busy machine; a first step done already is used again",
}
_DETAILED = {
    ("",), ("quantize gptq 4",), ("quantize gptq 3",), ("prune sparsegpt 50%",), ("prune sparsegpt 2:4",),
    ("shrink blocks:3",), ("shrink neurons:25%",), ("prune sparsegpt 50%", "quantize gptq 4"),
}  # fmt: skip


def _cells() -> list[dict[str, Any]]:
    """What is measured, the most telling ones first; what shares a first step stands together."""
    half, sixty, pairs = (f"prune sparsegpt {pattern}" for pattern in ("50%", "60%", "2:4"))
    ways: list[tuple[str, ...]] = [()]
    ways += [(f"quantize {way} {bits}",) for bits in (4, 3, 8) for way in ("gptq", "rtn")]
    ways += [(half,), (half, "quantize gptq 4"), (half, "quantize gptq 3"), ("quantize gptq 4 50%",)]
    ways += [("shrink blocks:3",), ("shrink neurons:25%",), ("shrink neurons:25%", "quantize gptq 4")]
    ways += [(pairs,), (pairs, "quantize gptq 4"), (pairs, "quantize gptq 8")]
    ways += [("shrink neurons:12.5%",), ("shrink neurons:12.5%", "quantize gptq 4"), ("prune sparsegpt 30%",)]
    ways += [("quantize gptq 2",), ("shrink neurons:50%",), ("shrink neurons:50%", "quantize gptq 4")]
    ways += [("quantize rtn 2",), (sixty,), (sixty, "quantize gptq 4")]
    ways += [("prune admm 50%",), ("prune sparsegpt 70%",), ("shrink blocks:1",), ("shrink blocks:5",)]
    ways += [("prune sparsegpt 40%",), ("prune admm 60%",), ("shrink hidden:25%",)]
    ways += [("low-rank 75%",), ("prune admm 70%",), ("prune sparsegpt 80%",)]
    ways += [("prune best 60%",), ("prune best 50%",), ("prune best 50%", "quantize gptq 4")]
    ways += [("prune best 2:4",), ("prune best 2:4", "quantize gptq 4"), ("prune best 70%",)]
    ways += [("prune best 60%", "quantize gptq 4")]
    cells = [{"steps": list(way), "dtype": "bfloat16"} for way in ways]
    return [cells[0], {"steps": [], "dtype": "float32"}, *cells[1:]]


def act(network, step: str) -> None:
    """One step, in place."""
    calib, _ = quantize.texts(PATIENT)
    verb, way, *rest = step.split()
    if verb == "quantize":
        bits, pattern = rest[0], "".join(rest[1:]) or "0%"
        quantize.act(network, PATIENT, f"{way} {bits} asymmetric {GROUP}", pattern)
    elif verb == "prune" and way == "best":
        mp.prune(network, calib, recipe="best", pattern=rest[0])
    elif verb == "prune":
        quantize.act(network, PATIENT, f"{way} {rest[0]}")
    elif verb == "shrink" and way.startswith("neurons"):
        shrink(network, calib, way, "obd", precision="bfloat16", damp=1.0)
    elif verb == "shrink":
        blocks = way.startswith("blocks")
        with torch.autocast("cpu", torch.bfloat16, enabled=blocks):
            shrink(network, calib, way, repair="refit" if blocks else "none", damp=1.0)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            mp.prune(network, calib, Method(_thin(float(way.rstrip("%")) / 100), needs="gram"), "0%")


def _thin(share: float):
    def method(W: Tensor, stats, pattern) -> Result:
        left, right = low_rank(W, stats.gram, rank_of(W, share))
        return Result(left @ right, torch.ones_like(W, dtype=torch.bool))

    return method


def rank_of(W: Tensor, share: float) -> int:
    """The rank at which two factors have that share of the numbers of W (d_out, d_in)."""
    return int(share * W.numel() / sum(W.shape))


@lru_cache(maxsize=1)
def after(step: str):
    """The patient after a first step, and the seconds that it took."""
    network, start = quantize.dense(PATIENT), time.process_time()
    if step:
        act(network, step)
    return network, time.process_time() - start


@cache
def reference() -> list[Tensor]:
    """log p of the dense model for each window of the test, (length, vocabulary) each."""
    return list(_log_p(quantize.dense(PATIENT), bfloat16=True))


def _log_p(network, bfloat16: bool):
    _, test = quantize.texts(PATIENT)
    with evaluating(network), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        for window in test:
            yield log_softmax(network(input_ids=window[None], use_cache=False).logits[0].float(), dim=-1)


def bytes_of(network, steps: list[str], dtype: str) -> int:
    """What the protocol's export of the network stores; grid and rank are those of the steps."""
    layers = find_layers(network)
    width = 4 if dtype == "float32" else 2
    total = width * (sum(p.numel() for p in network.parameters()) - sum(layer.weight.numel() for layer in layers))
    bits = next((int(step.split()[2]) for step in steps if step.startswith("quantize")), 0)
    share = next((float(step.split()[1].rstrip("%")) / 100 for step in steps if step.startswith("low-rank")), 0.0)
    for layer in layers:
        W = layer.weight.detach()
        if share:
            total += width * rank_of(W, share) * sum(W.shape)
        else:
            total += store(W if width == 4 else W.half(), grid=(bits, GROUP) if bits else None).nbytes
    return total


def recompute(steps: list[str], dtype: str) -> dict[str, Any]:
    """One cell from nothing but the protocol."""
    first, seconds = after("".join(steps[:1]))
    network = copy.deepcopy(first)
    start = time.process_time()
    for step in steps[1:]:
        act(network, step)
    seconds += time.process_time() - start
    _, test = quantize.texts(PATIENT)
    nats, kl, same = [], [], []
    for log_q, log_p, window in zip(_log_p(network, dtype == "bfloat16"), reference(), test, strict=True):
        nats.append(-float(log_q[:-1].gather(1, window[1:, None]).double().mean()))
        kl.append(float(kl_div(log_q, log_p, reduction="sum", log_target=True)) / len(window))
        same.append(float((log_q.argmax(-1) == log_p.argmax(-1)).double().mean()))
    weights = [layer.weight for layer in find_layers(network)]
    found: dict[str, Any] = {"nats": [short(x) for x in nats], "kl": [short(x) for x in kl]}
    found |= {"agreement": short(sum(same) / len(same)), "bytes": bytes_of(network, steps, dtype)}
    found["zeros"] = short(sum(int((W == 0).sum()) for W in weights) / sum(W.numel() for W in weights))
    if (tuple(steps) or ("",)) in _DETAILED and dtype == "bfloat16":
        _, tokenizer = mp.load_model("smollm2")
        with torch.autocast("cpu", torch.bfloat16):
            found |= structured.abilities(network, tokenizer)
    return found | {"parameters": network.num_parameters(), "seconds": round(seconds, 1)}


def read(path: Path) -> list[dict[str, Any]]:
    """The cells of the file; a last line that a killed run left unfinished is not one."""
    return [line.value for line in json_lines(path) if line.value is not None]


def compare(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each cell beside the dense model, in the order in which they are measured; see "loss, error" of the protocol."""
    order = [(cell["steps"], cell["dtype"]) for cell in _cells()]
    dense = next(cell for cell in cells if (cell["steps"], cell["dtype"]) == order[0])["nats"]
    rates = measured_rates()
    rows = []
    for cell in sorted(cells, key=lambda cell: order.index((cell["steps"], cell["dtype"]))):
        loss, error = _mean([ours - theirs for ours, theirs in zip(cell["nats"], dense, strict=True)])
        kl, kl_error = _mean(cell["kl"])
        row = {"steps": cell["steps"], "dtype": cell["dtype"], "perplexity": short(_perplexity(cell["nats"]))}
        row |= {"loss": loss, "error": error, "kl": kl, "kl_error": kl_error}
        row |= {key: cell[key] for key in ("agreement", "bytes", "zeros", "parameters")}
        row |= {key: cell[key] for key in ("last_word", "pairs") if key in cell}
        pruned = [step.split()[2] for step in cell["steps"] if step.startswith("prune")]
        of = (pruned or ["dense"])[0] if len(cell["steps"]) == len(pruned) and cell["dtype"] == "bfloat16" else ""
        rows.append(row | rates.get(of, {"tokens_per_second": None, "faster": None}))
    return rows


def measured_rates() -> dict[str, dict[str, float]]:
    """Tokens a second by pattern of zeros, and of the dense model, from decode.json."""
    cells = load_cells(Path(__file__).parent.parent / "book" / "results" / "decode.json")
    cells = [cell for cell in cells if cell["model"] == "SmolLM2, bfloat16" and cell["threads"] == 1]
    dense = short(statistics.median(cell["dense tokens a second"] for cell in cells))
    found = {"dense": {"tokens_per_second": dense, "faster": 1.0}}
    for cell in cells:
        found[cell["pattern"]] = {"tokens_per_second": cell["sparse tokens a second"], "faster": cell["x dense"]}
    return found


def _mean(values: list[float]) -> tuple[float, float]:
    """The mean, and its standard error."""
    return short(statistics.mean(values)), short(statistics.stdev(values) / len(values) ** 0.5)


def _perplexity(nats: list[float]) -> float:
    return exp(statistics.mean(nats))


def write_comparison(path: Path) -> None:
    """Beside the file at path a .json file, and the part of it that the package carries."""
    command = "python benchmarks/atlas.py book/results/atlas.jsonl"
    cells = compare(read(path))
    save(path.with_suffix(".json"), command, PROTOCOL, cells)
    write_text(PACKAGED, to_json(cells, 1))


def main() -> None:
    """Fill in what is missing of the results file."""
    cells = _cells()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--cells", type=int, default=len(cells), help="stop after so many new ones; 0: only compare")
    parser.add_argument("--only", default="", help="only those whose first step begins with this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    done = [(cell["steps"], cell["dtype"]) for cell in read(args.output)]
    left = [cell for cell in cells if (cell["steps"], cell["dtype"]) not in done]
    left = [cell for cell in left if "".join(cell["steps"][:1]).startswith(args.only)]
    for cell in left[: args.cells]:
        found = {**cell, **recompute(**cell), "date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")}
        append_json(args.output, found)
        print(found, file=sys.stderr, flush=True)
    write_comparison(args.output)


if __name__ == "__main__":
    main()
