"""book/results/plan.json: how far off plan's predictions are, and one of them made and measured again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from drawn import drawn
from transformers import LlamaForCausalLM

from minprune.models.layers import find_layers
from minprune.pipeline.estimate import Run, memory_bytes, sizes_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cells():
    return json.loads((ROOT / "book" / "results" / "plan.json").read_text())["cells"]


def test_runs_of_at_least_four_sizes_take_the_memory_and_the_time_that_was_planned(cells):
    assert len({cell["parameters"] for cell in cells}) >= 4 and len({cell["method"] for cell in cells}) >= 3
    for cell in cells:
        said, taken = cell["planned"], cell["measured"]
        assert said["peak_gb"] == pytest.approx(taken["peak_gb"], rel=0.1), cell
        assert sum(said["seconds"].values()) == pytest.approx(taken["total"], rel=0.4), cell
        assert said["disk_gb"] == pytest.approx(taken["disk_gb"], rel=0.01), cell


def test_the_memory_that_is_planned_is_that_of_the_formulas_as_they_are(cells, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from memory import configuration

    for cell in cells:
        with torch.device("meta"):
            model = LlamaForCausalLM(configuration(cell["blocks"], cell["width"])).bfloat16()
        run = Run(cell["method"], cell["windows"], 512, cell["batch_size"])
        said = sum(memory_bytes(sizes_of(model, find_layers(model)), run).values())
        assert cell["planned"]["beyond_process_gb"] == pytest.approx(said / 1e9, rel=1e-6), cell


def test_the_parts_of_a_measured_run_add_up(cells):
    for cell in cells:
        assert sum(cell["measured"]["seconds"].values()) == pytest.approx(cell["measured"]["total"], rel=1e-4)
        assert set(cell["measured"]["seconds"]) == set(cell["planned"]["seconds"])


@pytest.mark.slow
def test_a_cell_is_planned_and_measured_again(cells, tmp_path, monkeypatch):
    """Memory alone: seconds are those of a machine, and of what else it does."""
    cell = drawn([cell for cell in cells if cell["parameters"] < 2e8])
    file = tmp_path / "plan.json"
    results = json.loads((ROOT / "book" / "results" / "plan.json").read_text())
    del results["measured"]  # it counts the cell that is taken out
    file.write_text(json.dumps(results | {"cells": [other for other in cells if other != cell]}))
    command = [sys.executable, "benchmarks/plan.py", "--folder", str(tmp_path), "--output", str(file)]
    subprocess.run(command, cwd=ROOT, check=True)
    again = json.loads(file.read_text())["cells"][-1]
    assert again["measured"]["peak_gb"] == pytest.approx(cell["measured"]["peak_gb"], rel=0.15)
    assert again["planned"]["peak_gb"] == pytest.approx(again["measured"]["peak_gb"], rel=0.2)
