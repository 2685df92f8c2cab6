"""What the explorers show that was measured: short lists out of `book/results/`, made when the book is built."""

import json
import re
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "results"
CHAPTER = Path(__file__).parents[2] / "notebooks" / "20-speed.ipynb"


def sweep() -> dict:
    """Every run of the sweep (chapter 09), and what pruned models wrote when the first page was made.

    runs: one a line of the file, {method, pattern, seed, perplexity: {text: value}, relative: {text: value}}, relative
    to the dense model. texts: {label, method, pattern, perplexity, text}.
    """
    lines = (RESULTS / "sweep.jsonl").read_text(encoding="utf-8").splitlines()
    runs = [json.loads(line) for line in lines]
    shown = ("method", "pattern", "seed", "perplexity", "relative")
    intro = json.loads((RESULTS / "intro.json").read_text(encoding="utf-8"))
    return {
        "dense": next(run["perplexity"] for run in runs if run["method"] == "dense"),
        "runs": [{key: run[key] for key in shown} for run in runs if run["method"] != "dense"],
        "prompt": intro["prompt"],
        "texts": [{"label": label, "text": row["text"]} for label, row in intro["rows"].items()],
    }


def atlas() -> list[dict]:
    """Every way of the atlas whose numbers take 16 bits or less, as book/results/atlas.json has it."""
    cells = json.loads((RESULTS / "atlas.json").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["dtype"] == "bfloat16"]


def speed() -> dict:
    """One core of speed.json: our products in three formats, and the two limits of the roofline.

    bandwidth: bytes a second, the highest at which anything read float32. rate: operations a second; the file has none,
    so it is what chapter 20 printed when it measured that. points: {bits, format, zeros, tokens, megabytes, ms, gain
    over our dense product}. expanding: bits -> seconds a weight at 90 % zeros, where hardly a byte is left to wait for.
    """
    stored = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    (rate,) = re.findall(r"calculates (\d+) Gflop/s", CHAPTER.read_text(encoding="utf-8"))
    rows, columns = map(int, re.findall(r"(\d+) x (\d+)", stored["protocol"]["matrices"])[0])
    widths = {"float32": 32, "bfloat16": 16, "int8": 8}  # int4 has scales, which the roofline leaves out
    cells = [cell for cell in stored["cells"] if cell["threads"] == 1 and cell["dtype"] in widths]
    points = []
    for cell in cells:
        if cell["form"] not in ("own", "sparse"):
            continue
        pattern = cell.get("pattern", "0%")
        points.append({
            "bits": widths[cell["dtype"]],
            "format": "dense" if cell["form"] == "own" else "nm24" if pattern == "2:4" else "bitmask",
            "zeros": 0.5 if pattern == "2:4" else int(pattern[:-1]) / 100,
            "tokens": cell["tokens"], "megabytes": cell["MB"], "ms": cell["ms"], "gain": cell["x own"],
        })  # fmt: skip
    return {
        "matrix": [rows, columns],
        "bandwidth": 1e9 * max(c["GB/s"] for c in cells if c["dtype"] == "float32"),
        "rate": 1e9 * int(rate),
        "points": points,
        "expanding": {
            str(point["bits"]): point["ms"] / 1e3 / (rows * columns) for point in points if point["zeros"] == 0.9
        },
    }


DATA: dict[str, Callable[[], object]] = {"quality": sweep, "budget": atlas, "roofline": speed}
