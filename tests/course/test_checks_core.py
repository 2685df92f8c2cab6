"""How a verdict is told: refused arguments, exits, long errors of torch, a wrong number of zeros."""

import sys

import pytest
import torch

from minprune import checks
from minprune.course.checks.core import Case, Exercise, Wrong
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


@pytest.mark.parametrize("exercise", checks.EXERCISES.values(), ids=lambda e: e.name)
def test_floats_are_no_answer_where_whole_numbers_or_booleans_are_asked_for(exercise):
    """A float may be any whole number that was asked for, but it indexes nothing; other types of numbers are fine."""

    def as_type(dtype):
        def convert(value):
            return value if torch.as_tensor(value).is_floating_point() else torch.as_tensor(value).to(dtype)

        def answer(*args):
            value = exercise.reference(*args)
            return type(value)(map(convert, value)) if isinstance(value, (tuple, list)) else convert(value)

        return answer

    value = exercise.reference(*exercise.cases()[0].args)
    kinds = [torch.as_tensor(v).dtype for v in (value if isinstance(value, (tuple, list)) else [value])]
    verdict = exercise(as_type(torch.float64))
    assert verdict.passed == all(kind.is_floating_point for kind in kinds)
    if not verdict.passed:
        kind = "True and False" if kinds[0] == torch.bool else "whole numbers"
        assert f"should hold {kind}, and holds floats (float64). The values are right." in verdict.message
    assert exercise(as_type(torch.int64)).passed


def _toy(reference, *cases, **more):
    return Exercise("toy", 1, "a toy", reference, (Wrong("negated", lambda *args: -reference(*args), "no"),),
                    lambda: [Case(label, args) for label, args in cases], **more)  # fmt: skip


def test_the_small_inputs_are_printed_and_the_right_cases_named():
    many = [(f"case {i}", (torch.full((3, 10), float(i)), 2)) for i in range(6)]
    toy = _toy(lambda x, k: x.sum() * k, *many, ("a small one", (torch.tensor([0.5, -2]), 2)))
    message = toy(lambda x, k: abs(x.sum() * k)).message
    assert message == (
        "On a small one (x = [0.5, -2.0], k = 2) your result should be -3, not 3. "
        "Right on case 0; case 1; case 2; case 3 and 2 more; wrong on a small one."
    )
    assert "On case 0 (x: 3 x 10, k = 2)" in _toy(lambda x, k: x.sum() * k, *many)(lambda x, k: x.sum() + 1).message


def test_a_function_among_the_arguments_is_told_without_its_address():
    toy = _toy(lambda x, f: f(x), ("one", (torch.ones(1), lambda x: x + 1)))
    assert "x = [1.0], f: a function" in toy(lambda x, f: x).message


def test_a_loss_needs_its_gradient():
    toy = _toy(lambda x, y: (x * y).square().sum(), ("two", (torch.tensor([1.0, 2]), torch.tensor([3.0, 1]))), slope=0)
    assert toy(lambda x, y: (x**2 * y**2).sum()).passed
    for lost in (lambda x, y: (x * y).square().sum().item(), lambda x, y: (x.detach() * y).square().sum()):
        assert "the value is right, but it has no gradient in `x`" in toy(lost).message
    assert "its gradient in `x` is not" in toy(lambda x, y: (x.detach() * x * y * y).sum()).message
    assert toy(lambda x, y: -(x * y).square().sum().detach()).bug == "negated"


def test_an_infinity_or_nan_that_was_replaced_in_an_argument_is_a_change():
    toy = _toy(lambda x: x.isfinite().sum(), ("odd numbers", (torch.tensor([1.0, torch.inf, torch.nan]),)))
    assert toy(lambda x: x.isfinite().sum()).passed

    def repairs(x):
        return x.isfinite().sum() + 0 * x.nan_to_num_().sum().long()

    assert "changed its argument x" in toy(repairs).message


def test_complex_numbers_are_no_answer():
    toy = _toy(lambda x: x * 1, ("one", (torch.ones(1),)))
    assert not toy(lambda x: x + 0j).passed
