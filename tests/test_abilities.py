"""The abilities of pruned models that chapter 09 quotes can be measured again."""

import json
from pathlib import Path

import pytest
from drawn import drawn

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "book" / "results" / "abilities.json"


@pytest.mark.slow
def test_abilities_drawn_anew_each_time_are_measured_again(monkeypatch):
    """One cell, from nothing but its protocol. 16-bit arithmetic differs between processors: a few answers may flip."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import abilities

    cell = drawn(json.loads(RESULTS.read_text())["cells"])
    found = abilities.recompute(cell["method"], cell["pattern"])
    assert found["perplexity"] == pytest.approx(cell["perplexity"], rel=0.05)
    for name in ("kl", "agreement"):
        if name in cell:
            assert found[name] == pytest.approx(cell[name], rel=0.05)
    for name in ("last_word", "pairs"):
        assert found[name]["count"] == cell[name]["count"]
        assert found[name]["value"] == pytest.approx(cell[name]["value"], abs=0.05)


def test_no_ability_is_better_than_its_parts_allow():
    """The value is the mean of the parts, and the counts add up: what a table made by hand would get wrong."""
    for cell in json.loads(RESULTS.read_text())["cells"]:
        for score in (cell["last_word"], cell["pairs"]):
            parts = score["parts"].values()
            assert score["value"] == pytest.approx(sum(part["value"] for part in parts) / len(parts))
            assert score["count"] == sum(part["count"] for part in parts)
        if "kl" in cell:
            assert cell["kl"] > 0 and 0 < cell["agreement"] < 1
