"""`checks.sparsegpt` beyond what test_checks.py asks of every exercise: the package agrees, and two bugs at once."""

import pytest
import torch
from torch.testing import assert_close
from variants import both, cases, pairs

import minprune as mp
from minprune import checks
from minprune.course.checks.ch04_sparsegpt import Recipe

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


def test_no_message_gives_the_solution_away():
    right = Recipe()
    for exercise in (checks.backward_factor, checks.surgeon_2_4, checks.sparsegpt):
        for wrong in exercise.wrong:
            text = str(exercise(wrong.function))
            for code in ("torch.linalg", "flip", "outer", ".inv(", "solve_triangular", "diagonal()"):
                assert code not in text, (wrong.name, code)
    assert checks.sparsegpt(right).passed
