"""`checks.sparsegpt` beyond what test_checks.py asks of every exercise: the package agrees, and two bugs at once."""

from dataclasses import replace

import pytest
import torch
from answers_columns import sparsegpt_near, surgeon_2_4_near
from torch.testing import assert_close
from variants import both, cases, pairs

import minprune as mp
from minprune import checks
from minprune.course.checks.ch04_sparsegpt import Recipe
from minprune.course.checks.mutations import then

CASES = cases(checks.sparsegpt)


@pytest.mark.parametrize("case", CASES)
def test_the_reference_is_the_package(case):
    W, G, sparsity, block_size, damp = case.args
    values, vectors = torch.linalg.eigh(G)
    stats = mp.Statistics(len(G)).update((vectors * values.clamp(min=0).sqrt()).T)  # inputs with this Gram matrix
    stats.gram.copy_(G)
    result = mp.METHODS["sparsegpt"](W, stats, mp.Unstructured(sparsity), block_size=block_size, damp=damp)
    assert_close(checks.sparsegpt.reference(*case.args), result.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_no_choice_hangs_on_rounding(case):
    """In float64, in float32 and with inputs disturbed in the sixth digit the zeros are the same."""
    W, G, *rest = case.args
    zeros = checks.sparsegpt.reference(W, G, *rest) == 0
    noise = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = W * (1 + 1e-5 * torch.randn(W.shape, generator=noise))
        assert torch.equal(checks.sparsegpt.reference(other, G, *rest) == 0, zeros)
    assert torch.equal(checks.sparsegpt.reference(W.double(), G.double(), *rest) == 0, zeros)


@pytest.mark.parametrize(("one", "other"), pairs(checks.sparsegpt.wrong, 30, seed=4))
def test_two_bugs_at_once_never_get_the_name_of_a_third(one, other):
    verdict = checks.sparsegpt(both(one, other))
    assert not verdict.passed and verdict.bug in (None, one.name, other.name), str(verdict)


@pytest.mark.parametrize(
    ("exercise", "answer"), [(checks.sparsegpt, sparsegpt_near), (checks.surgeon_2_4, surgeon_2_4_near)]
)
def test_a_pruned_weight_is_exactly_zero(exercise, answer):
    """However small what is left of it, and in whichever places: the mistake has its name."""
    assert exercise(answer).bug == "pruned weights are nearly zero"


@pytest.mark.parametrize("exercise", [e for e in checks.EXERCISES.values() if e.zeros], ids=lambda e: e.name)
def test_what_is_nearly_zero_has_one_name_in_all_exercises(exercise):
    verdict = exercise(then(exercise.reference, lambda w: torch.where(w == 0, 1e-9, w)))
    assert not verdict.passed and verdict.bug == "pruned weights are nearly zero"


def test_exercises_that_prune_ask_for_zeros():
    names = {name for name, exercise in checks.EXERCISES.items() if exercise.zeros}
    assert names == {"remove_several", "obs_row", "surgeon_2_4", "sparsegpt", "exact_row", "admm", "prune_chain",
                     "sparse_step", "masked_steps", "merged"}  # fmt: skip


def test_a_kept_weight_that_is_zero_is_no_pruned_one():
    """Where the right answer has a number, however small, zero is not right."""
    exercise = replace(checks.merged, rtol=1.0, atol=100.0)  # numbers alone would agree
    assert not exercise(then(exercise.reference, torch.zeros_like)).passed
    assert replace(exercise, zeros=False)(then(exercise.reference, torch.zeros_like)).passed


@pytest.mark.parametrize(
    ("wrong", "change"), [((1, 7), 1), ((2, 3, 8), 2), ((3, 6), 3), ((4, 5), 4), ((5, 8), 5), ((6, 7), 6)]
)
def test_of_several_wrong_predictions_the_first_is_told(wrong, change):
    right = checks.predict_changes.reference
    verdict = checks.predict_changes(lambda changes: right(changes, wrong))
    hint = next(w.message for w in checks.predict_changes.wrong if w.function.keywords["wrong"] == (change,))
    assert verdict.bug is None and verdict.message.startswith(f"The first that is wrong is change {change}. {hint}")
    assert "Right on" in verdict.message


def test_no_message_gives_the_solution_away():
    right = Recipe()
    for exercise in (checks.backward_factor, checks.surgeon_2_4, checks.sparsegpt):
        for wrong in exercise.wrong:
            text = str(exercise(wrong.function))
            for code in ("torch.linalg", "flip", "outer", ".inv(", "solve_triangular", "diagonal()"):
                assert code not in text, (wrong.name, code)
    assert checks.sparsegpt(right).passed
