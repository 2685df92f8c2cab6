"""The page of budgets shows every way of the atlas, its frontier is one, and what the page says of them is so."""

import json
import re

import pytest
from javascript import FOLDER, building, call, script

CELLS = json.loads((FOLDER.parent / "results" / "atlas.json").read_text())["cells"]
NARROW = [cell for cell in CELLS if cell["dtype"] == "bfloat16"]
PAGE = (FOLDER / "budget.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def engine():
    return script("budget.js")


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
