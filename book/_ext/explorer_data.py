"""What the explorers show that was measured: short lists out of `book/results/`, made when the book is built."""

import json
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "results"


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


DATA: dict[str, Callable[[], object]] = {"quality": sweep, "budget": atlas}
