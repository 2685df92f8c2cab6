"""`checks.obs_row` beyond what test_checks.py asks of every exercise: the package agrees, and two bugs at once."""

import pytest
import torch
from answers_surgeon import obs_row_refitting
from torch.testing import assert_close
from variants import both, cases, pairs

import minprune as mp
from minprune import checks

CASES = cases(checks.obs_row)


@pytest.mark.parametrize("case", CASES)
def test_the_reference_is_the_package(case):
    w, H, zeros = case.args
    stats = mp.Statistics(len(w), dtype=torch.float64).update(torch.linalg.cholesky(H.double()).T)  # H = L L^T
    result = mp.METHODS["obs"](w[None].double(), stats, mp.Unstructured(zeros / len(w), "row"), damp=0.0)
    assert_close(checks.obs_row.reference(*case.args).double(), result.weight[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_no_choice_hangs_on_rounding(case):
    """With inputs disturbed in the fourth digit the zeros are the same."""
    w, H, zeros = case.args
    right = torch.as_tensor(obs_row_refitting(w, H, zeros)) == 0
    noise = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = w * (1 + 1e-3 * torch.randn(w.shape, generator=noise))
        assert torch.equal(checks.obs_row.reference(other, H, zeros) == 0, right)


@pytest.mark.parametrize(("one", "other"), pairs(checks.obs_row.wrong))
def test_two_bugs_at_once_never_get_the_name_of_a_third(one, other):
    verdict = checks.obs_row(both(one, other))
    assert verdict.bug in (None, one.name, other.name), str(verdict)


def test_no_message_gives_the_solution_away():
    for exercise in (checks.eliminate, checks.remove_several, checks.obs_row, checks.return_gains):
        for wrong in exercise.wrong:
            text = str(exercise(wrong.function))
            for code in ("torch.", "np.", ".inv(", "outer", "diagonal()", "@"):
                assert code not in text, (wrong.name, code)
