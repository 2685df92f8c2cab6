"""The checks of chapter 05 beyond what test_checks.py asks of every exercise: the package agrees, two bugs at once."""

import pytest
import torch
from torch.testing import assert_close
from variants import both, cases, pairs

import minprune as mp
from minprune import checks
from minprune.course.checks.ch05_wanda import _Recipe
from minprune.methods.ria import ria_scores

SAME = {
    ("magnitude", "one threshold for the whole matrix"): "magnitude over the layer"
}  # two mistakes that are a third


@pytest.mark.parametrize("case", cases(checks.wanda))
def test_wanda_is_the_package(case):
    W, X, sparsity = case.args
    stats = mp.Statistics(W.shape[1], gram=False).update(X)
    result = mp.METHODS["wanda"](W, stats, mp.Unstructured(sparsity))
    assert torch.equal(checks.wanda.reference(*case.args), result.keep)


@pytest.mark.parametrize("case", cases(checks.wanda))
def test_no_mask_hangs_on_rounding(case):
    """The same mask from float64 and from norms disturbed in the sixth digit, unless all scores of a row are equal."""
    W, X, sparsity = case.args
    keep = checks.wanda.reference(W, X, sparsity)
    assert torch.equal(checks.wanda.reference(W.double(), X.double(), sparsity), keep)
    noise = torch.Generator().manual_seed(0)
    if case.label != "equal weights and equal inputs":
        for _ in range(20):
            other = W * (1 + 1e-5 * torch.randn(W.shape, generator=noise))
            assert torch.equal(checks.wanda.reference(other, X, sparsity), keep)


@pytest.mark.parametrize("case", cases(checks.ria_scores))
def test_ria_scores_are_the_package(case):
    W, norms, power = case.args
    stats = mp.Statistics(W.shape[1], gram=False).update(torch.diag(norms))  # one token for each input
    assert_close(checks.ria_scores.reference(W, norms, power), ria_scores(W, stats, power))


@pytest.mark.parametrize("case", cases(checks.input_norms))
def test_input_norms_are_the_statistics(case):
    batches, real = case.args
    stats = mp.Statistics(batches[0].shape[-1], gram=False)
    for X, mask in zip(batches, real, strict=True):
        stats.update(X[mask])
    assert_close(checks.input_norms.reference(batches, real), stats.sq_norm.sqrt())


@pytest.mark.parametrize("case", cases(checks.error_split))
def test_the_two_numbers_add_up_to_the_error_of_the_row(case):
    w, X, keep = case.args
    own, cross = checks.error_split.reference(w, X, keep)
    assert_close(own + cross, (X @ w - X @ (w * keep)).square().sum())


@pytest.mark.parametrize(("one", "other"), pairs(checks.wanda.wrong, 40, seed=5))
def test_two_bugs_at_once_never_get_the_name_of_a_third(one, other):
    verdict = checks.wanda(both(one, other))
    together = SAME.get((one.name, other.name))
    assert not verdict.passed and verdict.bug in (None, one.name, other.name, together), str(verdict)


def test_no_message_gives_the_solution_away():
    for exercise in (checks.input_norms, checks.error_split, checks.wanda, checks.ria_scores):
        for wrong in exercise.wrong:
            text = str(exercise(wrong.function))
            for code in ("dim=", ".norm(", "argsort", "square()", "sqrt", "clamp", "keepdim", "stable"):
                assert code not in text, (wrong.name, code)
    assert checks.wanda(_Recipe()).passed
