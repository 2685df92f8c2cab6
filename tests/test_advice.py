"""The pages of advice quote the measured data: every "N x" on them and every row of their tables."""

import json
import math
import re
from pathlib import Path

import pytest

BOOK = Path(__file__).parent.parent / "book"
NAMES = {"sparsegpt": "SparseGPT", "admm": "ADMM"}
PATIENT = {"kind": "recovery", "pattern": "60%", "way": "full", "seed": 0, "steps": 42}
PARTS = {  # as the page calls them -> as recipe.json does
    "SparseGPT, two passes": "sparsegpt, two-pass",
    "SparseGPT, one pass": "sparsegpt",
    "ADMM, one pass": "admm",
    "Wanda, blocks reconstructed": "wanda + reconstruction",
    "SparseGPT, blocks reconstructed": "sparsegpt + reconstruction",
    "ADMM, blocks reconstructed: `best`": "best",
    "`best`, sparsity rising over depth": "best + ramp",
}
PAGES = ("which-method.md", "trouble-shooting.md")


def sweep():
    """(method, pattern) -> the run with seed 0, or without one."""
    runs = map(json.loads, (BOOK / "results" / "sweep.jsonl").read_text().splitlines())
    return {(run["method"], run["pattern"]): run for run in runs if run["seed"] in (None, 0)}


def shown(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


@pytest.mark.parametrize("page", PAGES)
def test_every_multiple_of_dense_stands_in_the_sweep(page):
    known = {shown(value) for run in sweep().values() for value in run["relative"].values()}
    quoted = re.findall(r"([\d.,]*\d) x(?! \d)", (BOOK / page).read_text())
    assert len(quoted) > 5
    assert not set(quoted) - known


def test_the_table_of_methods_and_patterns_is_the_sweeps():
    lines = (BOOK / "which-method.md").read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| method | 10 %"))
    patterns = [cell.strip().replace(" ", "") for cell in lines[start].split("|")[2:-1]]
    rows = [line for line in lines[start + 2 : start + 9] if line.startswith("|")]
    assert len(rows) >= 4
    runs = sweep()
    for row in rows:
        method, *cells = (cell.strip() for cell in row.split("|")[1:-1])
        for pattern, cell in zip(patterns, cells, strict=True):
            run = runs.get((method, pattern))
            assert cell == (shown(run["relative"]["wikipedia"]) if run else ""), (method, pattern)


def test_what_each_part_brings_is_what_was_measured():
    cells = json.loads((BOOK / "results" / "recipe.json").read_text())["cells"]
    measured = {
        (cell["part"], cell["pattern"]): f"{cell['wikipedia']:.1f}, {cell.get('seconds', 0):.0f} s" for cell in cells
    }
    lines = (BOOK / "which-method.md").read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| what was done | 70 %"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[start + 2 : start + 2 + len(PARTS)]]
    assert [label for label, *_ in rows] == list(PARTS)
    for label, *shown in rows:
        for pattern, cell in zip(("70%", "2:4"), shown, strict=True):
            assert cell == measured.get((PARTS[label], pattern), ""), (label, pattern)


@pytest.mark.parametrize("page", PAGES)
def test_seconds_of_one_core_are_the_sweeps(page):
    text = (BOOK / page).read_text()
    quoted = {method: re.search(rf"(?:{name})\D{{0,40}}?(\d+) s\b", text) for method, name in NAMES.items()}
    for method, found in quoted.items():
        assert found, method
        assert int(found[1]) == round(sweep()[method, "50%"]["seconds"]["processor"])


def test_the_table_of_zeros_is_the_measured_one():
    cells = json.loads((BOOK / "results" / "zeros.json").read_text())["cells"]
    ratios = {(cell["storage"], cell["sparsity"], cell["tokens"]): cell["ratio"] for cell in cells}
    table = (BOOK / "which-method.md").read_text().split(":name: tbl-zeros")[1].split("```")[0]
    rows = [re.findall(r"- (.+)", row) for row in table.split("* ")[2:]]
    assert [row[0] for row in rows] == ["50 %", "90 %", "99 %"]
    for row in rows:
        sparsity = float(row[0].split()[0]) / 100
        wanted = [ratios[storage, sparsity, tokens] for tokens in (1, 512) for storage in ("dense", "csr")]
        assert row[1:] == [f"{ratio:.2g}" for ratio in wanted]


def test_what_training_gives_back_is_the_measured_share():
    cells = json.loads((BOOK / "results" / "recovery.json").read_text())["cells"]
    (dense,) = (cell["perplexity"] for cell in cells if cell["kind"] == "dense")
    (full,) = (c for c in cells if PATIENT.items() <= c.items())
    (control,) = (cell for cell in cells if cell.get("way") == "control" and cell["seed"] == 0 and cell["steps"] == 42)
    page = " ".join((BOOK / "which-method.md").read_text().split())
    tokens, seconds = full["rows"][-1][0], full["seconds"]
    assert f"{full['steps']} steps on {tokens:,} tokens of Wikipedia, {seconds:.0f} seconds of one core" in page
    for text, column in (("Wikipedia", 2), ("news", 3)):
        before, after = (f"{row[column]:.1f}" for row in (full["rows"][0], full["rows"][-1]))
        assert f"from perplexity {before} to {after} on {text}" in page or f"from {before} to {after} on {text}" in page
    trained = [f"{value:.1f}" for value in control["rows"][-1][2:]]
    assert f"{dense['wikipedia']:.1f} and {dense['news']:.1f}, and {' and '.join(trained)} when" in page
    before, after = (math.log(row[2]) for row in (full["rows"][0], full["rows"][-1]))
    lost = before - math.log(dense["wikipedia"])
    fair = 1 - (after - math.log(control["rows"][-1][2])) / lost
    page = (BOOK / "trouble-shooting.md").read_text()
    assert (
        f"gave back {(before - after) / lost:.0%} of the lost nats in {seconds:.0f} seconds".replace("%", " %") in page
    )
    assert f"{fair:.0%} without what the dense model gains".replace("%", " %") in page


def test_the_speeds_in_the_readme_are_the_measured_ones():
    cells = json.loads((BOOK / "results" / "decode.json").read_text())["cells"]
    measured = {(c["model"], c["pattern"]): f"{c['x dense']:.2f}" for c in cells if c["threads"] == 1}
    models = ["SmolLM2, float32", "Llama of 1.2 billion random weights, bfloat16"]
    readme = (BOOK.parent / "README.md").read_text()
    text = re.search(r"\*\*Do zeros save time\?\*\*.*?An engine made for speed", readme, re.S)[0]
    quoted = re.findall(r"\b\d\.\d\d\b", text)
    assert quoted == [measured[model, pattern] for model in models for pattern in ("50%", "70%", "2:4")]


def test_who_wins_is_said_as_measured_and_in_the_first_paragraph_of_the_chapter():
    """llama.cpp in four bits against our model with half of its weights zero: speed and perplexity on all pages."""
    cells = {c["way"]: c for c in json.loads((BOOK / "results" / "rivals.json").read_text())["cells"]}
    four, ours = cells["llama.cpp, Q4_0"], cells["minprune, 50%, bfloat16"]
    faster, smaller, better = (
        four[name] / ours[name] for name in ("tokens a second, 1 thread", "peak MB", "perplexity")
    )
    speed = f"{faster:.1f} times as many tokens a second as"
    chapter = json.loads((BOOK.parent / "notebooks" / "20-speed.ipynb").read_text())
    first = " ".join("".join(chapter["cells"][0]["source"]).split("\n\n")[1].split())
    assert f"in {smaller:.2f} of its memory" in first
    pages = (
        (page, " ".join(page.read_text().split())) for page in (BOOK / "which-method.md", BOOK.parent / "README.md")
    )
    for page, text in (("chapter 20", first), *pages):
        assert speed in text and re.search(rf"at {better:.2f} of (its|that model's) perplexity", text), page
