"""The checks of chapter 07 beyond what test_checks.py asks of every exercise: the package agrees, two bugs at once."""

import pytest
import torch
from answers_optimum import damped
from torch.testing import assert_close
from variants import both, cases, pairs

import minprune as mp
from minprune import checks
from minprune.course.checks import ch07_optimum
from minprune.course.checks.ch07_optimum import _Rounds, _Solve
from minprune.methods.admm import part_of
from minprune.methods.least_squares import least_squares

SAME = {  # two mistakes that together are a third: with no damping on either side G_SS x = G_SS w_S, for one
    ("target of the kept weights only", "damping on one side"): "nothing moved",
    ("target of the kept weights only", "no damping"): "nothing moved",
    ("damping on one side", "damping on one side"): "no damping",
}


def pairs_of(exercise, kind):
    """(exercise, one, other) for the bugs of one kind of recipe."""
    drawn = pairs([wrong for wrong in exercise.wrong if isinstance(wrong.function, kind)])
    return [pytest.param(exercise, *pair.values, id=f"{exercise.name}: {pair.id}") for pair in drawn]


def statistics(G):
    """Statistics (float64) whose Gram matrix is G."""
    return mp.Statistics(len(G), dtype=torch.float64).update(torch.linalg.cholesky(G.double()).T)  # G = L L^T


@pytest.mark.parametrize("case", cases(checks.exact_row))
def test_exact_row_is_the_package(case):
    w, G, keep, damp = case.args
    package = least_squares(w[None].double(), statistics(G), keep[None], damp)[0]
    assert_close(checks.exact_row.reference(*case.args).double(), package, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", cases(checks.admm))
def test_the_rounds_lead_to_exact_least_squares(case):
    W, H, keep, rho, _ = case.args
    far = checks.admm.reference(W, H, keep, rho, 20_000)
    assert_close(far.double(), least_squares(W.double(), statistics(H), keep, 0.0), rtol=1e-4, atol=1e-5)


def test_the_rounds_are_those_of_the_package():
    """The package starts from A = W, U = 0 and scales; with ones on the diagonal it does not scale."""
    G = torch.from_numpy(damped(checks.admm.cases()[2].args[1], 0.0))
    G = G / G.diagonal().sqrt() / G.diagonal().sqrt()[:, None]
    W, _, keep, _, _ = checks.admm.cases()[2].args
    package = mp.METHODS["admm"](W.double(), statistics(G), mp.pattern("50%"), rho=2.0, steps=2, damp=0.0, keep=keep)
    eye, B = torch.eye(len(G)), W.double()
    for _ in range(2):
        Z, U = B * keep, B * ~keep
        B = (W.double() @ G + 2 * (Z - U)) @ torch.inverse(G + 2 * eye) + U
    assert_close(package.weight, B * keep)


@pytest.mark.parametrize("case", cases(checks.swap_change))
def test_the_package_swaps_where_the_change_is_most_negative(case):
    w, G, keep, _, _ = case.args
    changes = {
        (p, u): float(checks.swap_change.reference(w, G, keep, p, u))
        for p in keep.nonzero().flatten().tolist()
        for u in (~keep).nonzero().flatten().tolist()
    }
    row = mp.METHODS["swaps"](w[None].double(), statistics(G), mp.pattern("50%:row"), max_swaps=1, keep=keep[None])
    best = min(changes, key=changes.get)
    expected = keep.clone()
    if changes[best] < 0:
        expected[best[0]], expected[best[1]] = False, True
    assert torch.equal(row.keep[0], expected)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_the_ramp_is_that_of_the_package(sparsity):
    scores = torch.rand(40, 25, generator=torch.Generator().manual_seed(0))
    expected = checks.ramp.reference(torch.arange(1.0, 16.0), sparsity, 15)
    for k, share in enumerate(expected.tolist(), 1):
        keep = part_of(mp.pattern(f"{100 * sparsity:g}%:layer"), scores, 1 - (1 - k / 15) ** 3)
        assert int((~keep).sum()) == pytest.approx(share * 1000, abs=1)


@pytest.mark.parametrize(
    ("exercise", "one", "other"), [*pairs_of(checks.exact_row, _Solve), *pairs_of(checks.admm, _Rounds)]
)
def test_two_bugs_at_once_never_get_the_name_of_a_third(exercise, one, other):
    verdict = exercise(both(one, other))
    together = SAME.get((one.name, other.name))
    assert verdict.bug in (None, one.name, other.name, together), str(verdict)


def test_no_message_gives_the_solution_away():
    for exercise in ch07_optimum.EXERCISES:
        for wrong in exercise.wrong:
            for code in ("torch.", "np.", "solve(", "inverse(", "[keep]", "** 3", "@"):
                assert code not in str(exercise(wrong.function)), (wrong.name, code)
