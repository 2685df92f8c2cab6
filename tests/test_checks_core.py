"""How a verdict is told: refused arguments, exits, long errors of torch, a wrong number of zeros."""

import sys

import torch

from minprune import checks
from minprune.checks.core import Case, Exercise, Wrong
from minprune.errors import PruneError


def test_an_exit_in_an_answer_is_told_and_not_obeyed():
    verdict = checks.nm_mask(lambda scores, n, m: sys.exit("done"))
    assert "your function raised SystemExit in its line 1: done." in verdict.message


def test_of_an_error_that_ends_in_a_colon_the_next_lines_are_told():
    verdict = checks.nm_mask(lambda scores, n, m: torch.sort(scores, "inputs", 3))
    assert "TypeError in its line 1" in verdict.message and "but expected one of:" in verdict.message
    assert "int dim = -1" in verdict.message and "\n" not in verdict.message and len(verdict.message) < 500


def test_what_must_be_refused_is_not_answered_nor_refused_by_accident():
    right = checks.nm_mask.reference

    def answered(scores, n, m):
        return torch.ones_like(scores).bool() if scores.shape[1] % m else right(scores, n, m)

    def by_accident(scores, n, m):
        return right(scores.view(len(scores), -1, m).flatten(1), n, m)

    def narrower(scores, n, m):
        if scores.shape[1] % m:
            raise PruneError("no")
        return right(scores, n, m)

    for answer, came in ((answered, "returned a result"), (by_accident, "raised RuntimeError")):
        verdict = checks.nm_mask(answer)
        assert not verdict.passed and verdict.bug is None
        assert f"your function {came}. It should raise ValueError: 4 does not divide 6 inputs" in verdict.message
    assert checks.nm_mask(narrower).passed


def test_a_wrong_number_of_zeros_is_told():
    toy = Exercise(
        name="toy",
        chapter=1,
        title="half of a row",
        reference=lambda w: w * torch.tensor([0, 0, 1, 1]),
        wrong=(Wrong("negated", lambda w: -w, "no"),),
        cases=lambda: [Case("four weights", (torch.arange(1.0, 5.0),))],
    )
    assert toy(lambda w: w * torch.tensor([0, 1, 1, 1])).message.endswith("It should hold 2 zeros, not 1.")
    assert "zeros" not in toy(lambda w: w * torch.tensor([0, 0, 1, 2])).message
