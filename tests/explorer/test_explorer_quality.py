"""The quality page shows every run of the sweep, as the file has it, and what the page says of them is so."""

import json
from statistics import mean

import pytest
from javascript import FOLDER, building, call, script

RUNS = [json.loads(line) for line in (FOLDER.parent / "results" / "sweep.jsonl").read_text().splitlines()]
PRUNED = [run for run in RUNS if run["method"] != "dense"]
CALIBRATED = ("wanda", "sparsegpt", "admm", "best")


@pytest.fixture(scope="module")
def engine():
    return script("quality.js")


@pytest.fixture(scope="module")
def data():
    return building().DATA["quality"]()


def _mean(method, pattern, text):
    return mean(r["relative"][text] for r in PRUNED if (r["method"], r["pattern"]) == (method, pattern))


def test_every_run_is_on_the_page(engine, data):
    assert len(data["runs"]) == len(PRUNED) == 82  # as book/explorer/index.md says
    assert call(engine, "(() => quality.start.methods)") == ["magnitude", "wanda", "sparsegpt", "admm", "best"]
    patterns = call(engine, "patternsOf", data["runs"])
    assert patterns == [f"{tens}0%" for tens in range(1, 9)] + ["2:4", "4:8"]
    seen = 0
    for method in {run["method"] for run in PRUNED}:
        for pattern in patterns:
            for text in ("wikipedia", "news"):
                cell = call(engine, "cellOf", data["runs"], method, pattern, text)
                runs = [r for r in PRUNED if (r["method"], r["pattern"]) == (method, pattern)]
                assert cell["times"] == [r["relative"][text] for r in runs]
                assert cell["relative"] == pytest.approx(_mean(method, pattern, text))
                assert cell["perplexity"] == pytest.approx(mean(r["perplexity"][text] for r in runs))
                seen += len(runs)
    assert seen == 2 * len(PRUNED)


def test_what_fits_a_budget_is_the_highest_sparsity_with_all_lower_ones(engine, data):
    for method in ("magnitude", *CALIBRATED):
        for budget in (1.01, 1.2, 2.0, 5.0, 1e7):
            expected = None
            for tens in range(1, 9):
                if _mean(method, f"{tens}0%", "news") > budget:
                    break
                expected = f"{tens}0%"
            assert call(engine, "fits", data["runs"], method, "news", budget) == expected


def test_the_texts_are_those_of_the_first_page(data):
    rows = json.loads((FOLDER.parent / "results" / "intro.json").read_text())["rows"]
    assert {entry["label"]: entry["text"] for entry in data["texts"]} == {k: row["text"] for k, row in rows.items()}


def test_what_the_page_says_to_try():
    for pattern in ("20%", "30%", "40%", "50%", "60%", "70%"):
        assert all(_mean(method, pattern, "news") > _mean(method, pattern, "wikipedia") for method in CALIBRATED)
    assert _mean("magnitude", "50%", "news") == pytest.approx(_mean("magnitude", "50%", "wikipedia"), rel=0.02)
    for method in ("magnitude", *CALIBRATED):
        half, two, four = (_mean(method, pattern, "wikipedia") for pattern in ("50%", "2:4", "4:8"))
        assert half < four < two
    assert _mean("sparsegpt", "2:4", "wikipedia") == pytest.approx(_mean("sparsegpt", "60%", "wikipedia"), rel=0.01)
    for method in ("wanda", "admm", "best"):
        assert _mean(method, "2:4", "wikipedia") > 1.05 * _mean(method, "60%", "wikipedia")
