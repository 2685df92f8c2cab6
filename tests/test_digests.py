"""benchmarks/digests.py sees every method, and a number that has changed."""

from pathlib import Path

import pytest
import torch

import minprune as mp
from minprune.allocation.rules import RULES
from minprune.structured.removals import METHODS as CRITERIA


@pytest.fixture
def digests(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import digests

    return digests


def test_every_method_and_criterion_is_among_the_ways_and_none_twice(digests):
    told = [f"{what}, {family}" for what, family, _ in digests.ways()]
    assert len(set(told)) == len(told)
    for name in [*mp.METHODS, *RULES, *(way for ways in CRITERIA.values() for way in ways)]:
        assert any(name in line for line in told), name


def test_a_line_changes_with_the_last_bit_of_a_weight_and_not_from_run_to_run(digests):
    def change(model, index, value):
        weight = model.lm_head.weight.data.flatten()
        weight[index] = torch.nextafter(weight[index], torch.tensor(value))

    nothing, last = (
        digests.line("x", "llama", way) for way in (lambda model: None, lambda model: change(model, -1, 9.0))
    )
    first = digests.line("x", "llama", lambda model: change(model, 0, 9.0))
    assert nothing == digests.line("x", "llama", lambda model: None) and len({nothing, last, first}) == 3


def test_a_line_tells_the_errors_and_what_is_refused(digests):
    method = next(way for what, _, way in digests.ways() if what == "wanda 50% True")
    rows = mp.prune(digests.tiny_model("llama"), digests.tiny_tokens(), "wanda", "50%").layers
    assert digests.line("x", "llama", method).endswith(f" {sum(row.error for row in rows)}")
    refused = digests.line("x", "llama", lambda model: mp.prune(model, None, "wanda", "50%"))
    assert refused.startswith("x, llama: refused: ") and "calibration" in refused
