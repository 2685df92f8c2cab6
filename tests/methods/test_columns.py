"""Whole columns: greedy surgery against brute force and least squares; the pattern that asks for them."""

import itertools

import pytest
import torch

import minprune as mp
from minprune.methods import get_method
from minprune.methods.columns import cheapest_columns, refit, unit_costs
from minprune.patterns import Lines


def layer(d_out=5, d_in=8, tokens=40, seed=0):
    draw = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens, d_in, generator=draw, dtype=torch.float64) @ torch.randn(
        d_in, d_in, generator=draw, dtype=torch.float64
    )
    return torch.randn(d_out, d_in, generator=draw, dtype=torch.float64), X, X.T @ X


def loss_of(W, X, kept, damp=0.0):
    """The squared error of least squares with these inputs alone, by numpy-like lstsq on the outputs."""
    H_root = torch.cat([X, (damp * (X.square().sum(0).mean())).sqrt() * torch.eye(X.shape[1], dtype=X.dtype)])
    Y = H_root @ W.T
    best = torch.linalg.lstsq(H_root[:, kept], Y).solution
    return float((Y - H_root[:, kept] @ best).square().sum()), best.T


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_cost_of_a_unit_is_what_least_squares_loses_without_it(size):
    W, X, gram = layer()
    costs = unit_costs(W, torch.linalg.inv(gram), size)
    for unit, cost in enumerate(costs.tolist()):
        kept = [j for j in range(8) if j // size != unit]
        assert cost == pytest.approx(loss_of(W, X, kept)[0], rel=1e-8)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("damp", [0.0, 0.01])
def test_each_greedy_step_takes_the_column_whose_loss_by_least_squares_is_lowest(seed, damp):
    W, X, gram = layer(seed=seed)
    gone: list[int] = []
    for _ in range(4):
        left = [j for j in range(8) if j not in gone]
        gone.append(min(left, key=lambda j: loss_of(W, X, [k for k in left if k != j], damp)[0]))
    weight, keep, note = cheapest_columns(W, gram, Lines("columns", 0.5), damp)
    assert sorted(gone) == (~keep).nonzero().flatten().tolist() and not note
    kept = keep.nonzero().flatten().tolist()
    assert torch.allclose(weight[:, kept], loss_of(W, X, kept, damp)[1])
    assert not weight[:, gone].any()


def test_greedy_is_never_better_than_the_best_of_all_sets_and_often_as_good():
    same = 0
    for seed in range(20):
        W, X, gram = layer(seed=seed)
        _, keep, _ = cheapest_columns(W, gram, Lines("columns", 0.5), 0.0)
        found = loss_of(W, X, keep.nonzero().flatten().tolist())[0]
        best = min(loss_of(W, X, list(kept))[0] for kept in itertools.combinations(range(8), 4))
        assert found >= best * (1 - 1e-9)
        same += found < best * (1 + 1e-9)
    assert same > 5


def test_no_other_weights_on_the_kept_columns_lose_less():
    W, X, gram = layer()
    keep = torch.tensor([True, False, True, True, False, True, True, False])
    best = refit(W, gram, keep, 0.0)
    error = (X @ (W - best).T).square().sum()
    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        other = best + 1e-3 * torch.randn(W.shape, generator=draw, dtype=W.dtype) * keep
        assert (X @ (W - other).T).square().sum() > error


def test_uncorrelated_inputs_make_the_surgeon_the_sum_of_squared_wanda_scores():
    W, _, _ = layer()
    stats = mp.Statistics(8, dtype=torch.float64).update(torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64)))
    for text in ("columns:50%", "columns2:50%", "columns:50%:2"):
        found = mp.METHODS["obs"](W, stats, text, damp=0.0)
        assert torch.equal(found.keep, mp.METHODS["obd"](W, stats, text).keep), text


def test_an_input_that_is_always_zero_goes_first():
    W, X, _ = layer()
    X[:, 3] = 0
    found = mp.METHODS["obs"](W, mp.Statistics(8, dtype=torch.float64).update(X), "columns:12.5%")
    assert (~found.keep).nonzero()[:, 1].unique().tolist() == [3]


@pytest.mark.parametrize(
    "method", ["magnitude", "wanda", "ria", "obd", "obs", "wanda+exact", "sparsegpt", "admm", "alps"]
)
@pytest.mark.parametrize("text", ["columns:25%", "columns2:50%", "columns2:50%:2", "rows:40%"])
def test_every_method_removes_whole_lines_and_as_many_as_it_should(method, text):
    W, X, _ = layer(d_out=10)
    keep = get_method(method)(W, mp.Statistics(8, dtype=torch.float64).update(X), text).keep
    pattern = mp.pattern(text)
    lines = keep.all(0) if pattern.axis == "columns" else keep.all(1)
    either = keep.any(0) if pattern.axis == "columns" else keep.any(1)
    assert torch.equal(lines, either)
    units = lines.view(pattern.parts, -1, pattern.width)
    assert (units.all(2) == units.any(2)).all()
    assert ((~units.all(2)).sum(1) == pattern.zeros(len(lines))).all()
    assert str(mp.pattern(str(pattern))) == str(pattern)


@pytest.mark.parametrize("width", [1, 2])
def test_inputs_that_are_one_another_up_to_rounding_are_removed_with_more_damping_and_a_note(width):
    """Such a matrix may have a factor as a whole, by rounding, and a part of it none."""
    notes = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        W, X = (torch.randn(rows, 8 + 8 * (seed % 3), generator=generator) for rows in (6, 24))
        X[:, 0] *= 3000
        X[:, 1] = X[:, 0] * (1 + 1e-7)
        stats = mp.Statistics(X.shape[1]).update(X)
        result = mp.METHODS["obs"](W, stats, Lines("columns", 0.5, width), damp=0.0)
        out, without = (X.double() @ weight.double().T for weight in (result.weight, W * result.keep))
        whole = X.double() @ W.double().T
        assert (out - whole).norm() <= (without - whole).norm() * (1 + 1e-6)
        notes.append(result.note)
    assert any("damping raised from 0" in note for note in notes)
