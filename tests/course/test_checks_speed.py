"""The checks of chapter 20 beyond what test_checks.py asks of every exercise: the package agrees, two bugs at once."""

import pytest
import torch
from torch.testing import assert_close
from variants import both, cases, pairs

from minprune import checks
from minprune.formats import Bitmask, NMPacked


@pytest.mark.parametrize("case", cases(checks.two_of_four))
def test_two_of_four_is_the_package(case):
    values, codes, X = case.args
    stored = NMPacked((len(values), X.shape[1]), values, codes.to(torch.uint8), 2, 4)
    if bool(X.isfinite().all()):
        assert_close(checks.two_of_four.reference(*case.args), stored.matmul(X))
    read = X.where((stored.to_dense() != 0).any(0), 0)  # zero times infinity is not zero
    assert_close(checks.two_of_four.reference(*case.args), read @ stored.to_dense().T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("gain", [1.0, 1.4])
def test_a_model_with_the_needed_zeros_takes_the_bytes_of_that_gain(dtype, gain):
    """Count the bytes of a real bitmask and of a dense head beside it."""
    bits, W, head = torch.tensor([8.0 * dtype.itemsize]), torch.ones(64, 800, dtype=dtype), 10_000
    share = head / (head + W.nbytes / dtype.itemsize)
    s = float(checks.needed_sparsity.reference(bits, share, gain))
    W.view(-1)[: round(s * W.numel())] = 0
    stored = Bitmask.from_dense(W).nbytes + head * dtype.itemsize
    assert_close((W.nbytes + head * dtype.itemsize) / stored, gain, rtol=1e-4, atol=0)


# two bugs that together are a third: what needs no room is always found
TOGETHER = {frozenset({"itself forgotten", "only itself"}): "a cache without end"}


@pytest.mark.parametrize("name", ["two_of_four", "from_memory", "needed_sparsity"])
def test_two_bugs_at_once_never_get_the_name_of_a_third(name):
    exercise = checks.EXERCISES[name]
    recipes = [wrong for wrong in exercise.wrong if hasattr(wrong.function, "__dataclass_fields__")]
    for one, other in (drawn.values for drawn in pairs(recipes, 15, seed=20)):
        verdict = exercise(both(one, other))
        known = TOGETHER.get(frozenset({one.name, other.name}))
        assert verdict.passed or verdict.bug in (None, one.name, other.name, known), (one.name, other.name, verdict)


def test_no_message_gives_the_solution_away():
    for exercise in (checks.needed_sparsity, checks.two_of_four, checks.from_memory):
        for wrong in exercise.wrong:
            text = str(exercise(wrong.function))
            for code in ("4 * (k // 2)", "1 / b", ">>", "set(", "torch.", "X[:, "):
                assert code not in text, (wrong.name, code)
