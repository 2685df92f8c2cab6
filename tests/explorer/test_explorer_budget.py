"""The page of budgets shows every way of the atlas, its frontier is one, and what the page says of them is so."""

import json
import re

import numpy as np
import pytest
from javascript import FOLDER, building, call, script

CELLS = json.loads((FOLDER.parent / "results" / "atlas.json").read_text())["cells"]
NARROW = [cell for cell in CELLS if cell["dtype"] == "bfloat16"]
PAGE = (FOLDER / "budget.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def engine():
    return script("budget.js")


LINES = {tuple(x["steps"]): x for x in map(json.loads, (FOLDER.parent / "results" / "atlas.jsonl").open())
         if x["dtype"] == "bfloat16"}  # fmt: skip
HALF = "prune sparsegpt 50%"


def _nats(*steps, what="nats"):
    """Of each window."""
    return np.array(LINES[steps][what])


def _told(values, digits=2):
    """Mean and standard error."""
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1) / len(values) ** 0.5:.{digits}f}"


def _in_quantize(pruning="", rounding="", bits=16, order=""):
    """The same model on the other processor, of each window."""
    asked = {"model": "smollm2 rescaled", "pruning": pruning, "rounding": rounding, "bits": bits, "order": order}
    cells = json.loads((FOLDER.parent / "results" / "quantize.json").read_text())["cells"]
    (cell,) = [cell for cell in cells if all(cell[key] == value for key, value in asked.items())]
    return np.array(cell["nats"])


def test_what_chapter_21_quotes_of_the_atlas():
    chapter = (FOLDER.parents[1] / "notebooks" / "21-quantize.ipynb").read_text(encoding="utf-8")
    gptq, half, both = _nats("quantize gptq 3"), _nats(HALF), _nats(HALF, "quantize gptq 3")
    assert abs((_nats("quantize rtn 3") - _in_quantize("", "rtn", 3)).mean()) < 0.002
    apart = abs((gptq - _in_quantize("", "gptq", 3)).mean())
    later = (_in_quantize("sparsegpt 50%", "gptq", 3, "prune first") - both).mean()
    assert f"Those of GPTQ are {apart:.2f} apart, and after SparseGPT {later:.2f}" in chapter
    assert f"on another processor the two sweeps came out {later:.2f} better" in chapter
    assert f"({(both - half - gptq + _nats()).mean():.2f} beside" in chapter
    pairs = "prune sparsegpt 2:4"
    assert f"{_told(_nats(pairs, 'quantize gptq 8') - _nats(pairs), 3)} more with SparseGPT and GPTQ" in chapter


def test_what_the_page_says_it_found():
    """Each number by its own arithmetic from the lines; a loss is the difference from the dense model by window."""
    text = " ".join(PAGE.split())
    dense, mega = _nats(), lambda *steps: f"{LINES[steps]['bytes'] / 1e6:.0f} MB"
    eight, four, three = (f"quantize gptq {bits}" for bits in (8, 4, 3))
    assert f"at 8 bits take {mega(eight)} and lose {_told(_nats(eight) - dense)} nats".replace("-0.00", "0.00") in text
    assert f"take {mega(HALF)} and lose {_told(_nats(HALF) - dense)}. At 4 bits it is {mega(four)} and" in text
    assert f"and {_told(_nats(four) - dense)}. Between" in text
    assert f"GPTQ with 3 bits loses {_told(_nats(three) - dense)}." in text
    assert f"ahead by {_told(_nats(three) - _nats(HALF, four))}, which is nearly two errors" in text
    recipe = _nats("prune best 50%", four)
    assert f"and by {_told(_nats(three) - recipe)} with the best recipe" in text
    assert abs((recipe - _nats("shrink neurons:25%", four)).mean()) < 0.03  # "no more"
    most = ("prune best 60%", four)
    assert f"then 4 bits, loses {_told(_nats(*most) - dense)} at {mega(*most)}." in text
    narrow = ("shrink neurons:25%", four)
    assert f"then 4 bits, takes {mega(*narrow)} and is ahead by {_told(_nats(three) - _nats(*narrow))}," in text
    eighth, half = ((f"shrink neurons:{share}%", four) for share in (12.5, 50))
    shown = [f"{_told(_nats(*way) - dense)} at {mega(*way)}" for way in (eighth, half)]
    assert f"it is {shown[0]} and {shown[1]}, where half zeros and 3 bits lose" in text
    assert f"and 3 bits lose {_told(_nats(HALF, three) - dense)}. Two bits" in text
    assert f"out of the question: {_told(_nats('quantize gptq 2') - dense)}." in text
    free = [cell for cell in NARROW if LINES[four,]["bytes"] <= cell["bytes"] < LINES[()]["bytes"]]
    assert all(cell["steps"][-1].startswith("quantize") for cell in free if cell["loss"] <= _loss(four, cell["bytes"]))
    found = [LINES[way]["last_word"]["value"] for way in ((), (three,), (HALF, four))]
    assert [round(100 * value) for value in found] == [47, 21, 32]
    saved = (LINES[four,]["bytes"] - LINES[three,]["bytes"]) / LINES[four,]["bytes"]
    assert f"saves {100 * saved:.0f} % of the file and costs {(_nats(three) - _nats(four)).mean():.2f} nats" in text
    embeddings = 2 * 49152 * 576  # bytes, tokens, channels
    assert f"The embeddings, {embeddings / 1e6:.0f} MB in 16 bits, are half of the {mega(four)}" in text
    assert embeddings / LINES[four,]["bytes"] == pytest.approx(0.5, abs=0.01)


def _loss(step, size):
    """The lowest loss of what is only rounded, to 4 bits or more, in so many bytes."""
    ways = [x for x in NARROW if len(x["steps"]) == 1 and x["steps"][0].split()[0] == "quantize" and x["bytes"] <= size]
    return min(cell["loss"] for cell in ways)


def _way(*steps):
    return next(cell for cell in NARROW if cell["steps"] == list(steps))


def test_every_way_of_16_bits_or_less_is_on_the_page_under_a_name_of_its_own(engine):
    data = building().DATA["budget"]()
    assert data == NARROW
    names = [call(engine, "nameOf", cell) for cell in data]
    assert len(set(names)) == len(names) and not any(re.search("undefined|null", name) for name in names)
    drawn = call(engine, "budget.draw", call(engine, "(() => budget.start)"), data)
    assert drawn["picture"].count("data-say=") == drawn["table"].count("<tr") - 1 == len(data)
    for cell in data:
        assert f"{cell['bytes'] / 1e6:.1f}" in drawn["table"]


@pytest.mark.parametrize("measure", ["loss", "kl"])
def test_the_frontier_is_what_no_other_way_beats(engine, measure):
    """By comparing each way with each other one."""
    found = call(engine, "frontier", NARROW, measure)
    free = []
    for cell in NARROW:
        rivals = [x for x in NARROW if x["bytes"] <= cell["bytes"] and x[measure] <= cell[measure] and x is not cell]
        if not rivals:
            free.append(cell)
    assert sorted(found, key=lambda cell: cell["bytes"]) == sorted(free, key=lambda cell: cell["bytes"])


@pytest.mark.parametrize("budget", [10, 85, 95, 101, 115, 150, 200, 270])
def test_what_the_page_recommends_is_the_cheapest_of_what_fits(engine, budget):
    fits = [cell for cell in NARROW if cell["bytes"] <= budget * 1e6]
    found = call(engine, "bestWithin", NARROW, budget, "loss")
    assert found == (min(fits, key=lambda cell: (cell["loss"], cell["bytes"])) if fits else None)


def test_kinds_are_told_apart(engine):
    kinds = {"dense": [], "rounded": ["quantize rtn 3"], "zeros": ["prune best 60%"], "smaller": ["shrink blocks:3"],
             "both": ["quantize gptq 4 50%"], "thin": ["low-rank 75%"]}  # fmt: skip
    for kind, steps in kinds.items():
        assert call(engine, "kindOf", {"steps": steps}) == kind
    assert call(engine, "kindOf", {"steps": ["prune sparsegpt 2:4", "quantize gptq 4"]}) == "both"
