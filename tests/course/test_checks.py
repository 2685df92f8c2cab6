"""Every exercise knows the right answer however it is written, names each known mistake, and never guesses."""

import math
import re
from itertools import combinations

import answers_allocation
import answers_calibration
import answers_claims
import answers_columns
import answers_construct
import answers_depth
import answers_formats
import answers_groups
import answers_lottery
import answers_optimum
import answers_pipeline
import answers_predictions
import answers_quantize
import answers_reconstruction
import answers_recovery
import answers_scale
import answers_schedules
import answers_slicing
import answers_speed
import answers_surgeon
import answers_units
import answers_wanda
import numpy as np
import pytest
import torch

from minprune import checks
from minprune.course.checks.core import Case, Exercise, Wrong, collect
from minprune.errors import PruneError

EXERCISES = list(checks.EXERCISES.values())
VARIANTS = [pytest.param(e, w, id=f"{e.name}-{w.name}-{i}") for e in EXERCISES for i, w in enumerate(e.wrong)]

# Differently written right answers --------------------------------------------------------------------------------


def block_mask_numpy(W, sparsity, block_size):
    keep = np.ones(W.shape, dtype=bool)
    for start in range(0, W.shape[1], block_size):
        block = np.abs(W.numpy()[:, start : start + block_size])
        part = np.ones(block.size, dtype=bool)
        part[np.argsort(block, axis=None, kind="stable")[: round(sparsity * block.size)]] = False
        keep[:, start : start + block_size] = part.reshape(block.shape)
    return keep


def block_mask_loop(W, sparsity, block_size):
    keep = [[1] * W.shape[1] for _ in range(W.shape[0])]
    for start in range(0, W.shape[1], block_size):
        columns = range(start, min(start + block_size, W.shape[1]))
        places = sorted((abs(float(W[i, j])), i, j) for i in range(W.shape[0]) for j in columns)
        for _, i, j in places[: round(sparsity * len(places))]:
            keep[i][j] = 0
    return keep


def global_sparsities_numpy(weights, sparsity):
    sizes = [W.numel() for W in weights]
    order = np.argsort(np.abs(np.concatenate([W.numpy().ravel() for W in weights])), kind="stable")
    owner = np.repeat(np.arange(len(weights)), sizes)
    return np.bincount(owner[order[: round(sparsity * sum(sizes))]], minlength=len(weights)) / sizes


def global_sparsities_loop(weights, sparsity):
    line = sorted((abs(v), i) for i, W in enumerate(weights) for v in W.flatten().tolist())
    gone = [i for _, i in line[: round(sparsity * len(line))]]
    return [gone.count(i) / W.numel() for i, W in enumerate(weights)]


def input_cost_numpy(W, X):
    return np.diag(W.numpy().T @ W.numpy()) * np.diag(X.numpy().T @ X.numpy())


def input_cost_loop(W, X):
    costs = []
    for j in range(W.shape[1]):
        without = W.clone()
        without[:, j] = 0
        costs.append((X @ without.T - X @ W.T).square().sum())
    return costs


def best_mask_numpy(w, X, zeros):
    gram = X.T.numpy() @ X.numpy()
    best, best_error = None, np.inf
    for pruned in combinations(range(len(w)), zeros):
        lost = np.where(np.isin(np.arange(len(w)), pruned), w.numpy(), 0)
        if (error := lost @ gram @ lost) < best_error:
            best, best_error = lost == 0, error
    return best


def best_mask_loop(w, X, zeros):
    def search(j, left, lost):  # one branch for every choice of the weights from j on
        if j == len(w):
            return (float("inf") if left else float(lost.square().sum()), [])
        kept = search(j + 1, left, lost)
        kept = (kept[0], [True, *kept[1]])
        if not left:
            return kept
        pruned = search(j + 1, left - 1, lost + X[:, j] * w[j])
        return min(kept, (pruned[0], [False, *pruned[1]]))

    return search(0, zeros, torch.zeros(len(X)))[1]


def cut_windows_loop(ids, length):
    full = []
    while len(ids) >= length:
        full.append(ids[:length].tolist())
        ids = ids[length:]
    return full


def count_parameters_by_shapes(config):
    d, wide = config["hidden_size"], config["intermediate_size"]
    q, kv = (config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value"))
    block = [(q, d), (kv, d), (kv, d), (d, q), (wide, d), (wide, d), (d, wide), (1, d), (1, d)]
    shapes = [*block * config["num_hidden_layers"], (1, d), (config["vocab_size"], d)]
    if not config["tie_word_embeddings"]:
        shapes.append((config["vocab_size"], d))
    return sum(rows * columns for rows, columns in shapes)


def perplexity_of_probabilities(nlls):
    """The geometric mean of the inverse probabilities, window by window."""
    predictions = sum(len(nll) for nll in nlls)
    return float(np.prod([np.prod(np.exp(nll.double().numpy()) ** (1 / predictions)) for nll in nlls]))


def zero_shares_loop(weights):
    zeros = [sum(value == 0 for row in W.tolist() for value in row) for W in weights]
    sizes = [W.numel() for W in weights]
    return [*(z / n for z, n in zip(zeros, sizes, strict=True)), sum(zeros) / sum(sizes)]


RIGHT = {
    "cut_windows": [
        cut_windows_loop,
        lambda ids, length: np.array(ids)[: len(ids) - len(ids) % length].reshape(-1, length),
    ],
    "count_parameters": [count_parameters_by_shapes, lambda config: np.int64(count_parameters_by_shapes(config))],
    "perplexity": [
        perplexity_of_probabilities,
        lambda nlls: math.exp(sum(float(nll.sum()) for nll in nlls) / sum(map(len, nlls))),
    ],
    "zero_shares": [
        zero_shares_loop,
        lambda weights: (
            1 - np.array([np.count_nonzero(W) / W.numel() for W in [*weights, torch.cat([w.ravel() for w in weights])]])
        ),
    ],
    "block_mask": [block_mask_numpy, block_mask_loop],
    "global_sparsities": [global_sparsities_numpy, global_sparsities_loop],
    "input_cost": [
        input_cost_numpy,
        input_cost_loop,
        lambda W, X: ((W**2).sum(0) * (X**2).sum(0)).tolist(),
    ],
    "best_mask": [best_mask_numpy, best_mask_loop],
    **answers_surgeon.RIGHT,
    **answers_calibration.RIGHT,
    **answers_columns.RIGHT,
    **answers_construct.RIGHT,
    **answers_groups.RIGHT,
    **answers_lottery.RIGHT,
    **answers_optimum.RIGHT,
    **answers_pipeline.RIGHT,
    **answers_predictions.RIGHT,
    **answers_reconstruction.RIGHT,
    **answers_recovery.RIGHT,
    **answers_schedules.RIGHT,
    **answers_wanda.RIGHT,
    **answers_allocation.RIGHT,
    **answers_formats.RIGHT,
    **answers_speed.RIGHT,
    **answers_units.RIGHT,
    **answers_quantize.RIGHT,
    **answers_claims.RIGHT,
    **answers_slicing.RIGHT,
    **answers_depth.RIGHT,
    **answers_scale.RIGHT,
}

# Two bugs at once, and bugs that nobody foresaw -------------------------------------------------------------------

REJECTED = {
    "cut_windows": [
        lambda ids, length: ids[: len(ids) // length * length].view(length, -1),  # the two sides exchanged
        lambda ids, length: ids[len(ids) % length :].view(length, -1).T,  # from the end and down the columns
        lambda ids, length: torch.tensor(cut_windows_loop(ids[1:], length) or [[0] * length]),
        lambda ids, length: ids.flip(0).split(length),  # left over and backwards
    ],
    "count_parameters": [
        lambda config: count_parameters_by_shapes(config | {"head_dim": 1, "num_hidden_layers": 1}),
        lambda config: count_parameters_by_shapes(  # wide keys and an untied head
            config | {"num_key_value_heads": config["num_attention_heads"], "tie_word_embeddings": False}
        ),
        lambda config: count_parameters_by_shapes(config) + 1,
    ],
    "perplexity": [
        lambda nlls: 2 ** float(torch.stack([nll.mean() for nll in nlls]).mean()),  # windows alike, base 2
        lambda nlls: torch.cat(nlls).median().exp(),
        lambda nlls: nlls[0].mean().exp(),
    ],
    "zero_shares": [
        lambda weights: [100 - 100 * share for share in zero_shares_loop(weights)],  # density in per cent
        lambda weights: zero_shares_loop(weights)[::-1],
        lambda weights: [*zero_shares_loop(weights)[:-1], 0.5],
    ],
    "block_mask": [
        # inverted on one case only
        lambda W, s, b: torch.tensor(block_mask_loop(W, s, b)) if W.shape[0] != 10 else 1 - block_mask_numpy(W, s, b),
        lambda W, s, b: W.abs() <= W.abs().flatten().sort().values[int(s * (W.numel() - 1))],  # <= and whole layer
        lambda W, s, b: ~torch.tensor(block_mask_numpy(W - W.abs().max(), s, b)),  # signed and inverted
        lambda W, s, b: torch.rand(W.shape) > s,
        lambda W, s, b: W - torch.quantile(W, s) > 0,  # signed, and the quantile of the whole layer
        lambda W, s, b: torch.tensor(block_mask_numpy(W, s, b)).T,
    ],
    "global_sparsities": [
        lambda weights, s: [1 - float((W > 0).float().mean()) for W in weights],
        lambda weights, s: [1 - v for v in global_sparsities_loop([W - 100 for W in weights], s)],  # signed, kept
        lambda weights, s: sorted(global_sparsities_loop(weights, s), reverse=True),
        lambda weights, s: s,
    ],
    "input_cost": [
        lambda W, X: (W.square().sum(0) * X.square().mean(0)).sqrt(),  # not squared, averaged
        lambda W, X: 2 * W.square().sum(0) * X.square().sum(0),
        lambda W, X: W.square() * X.square().sum(0),
        lambda W, X: W.abs().sum(0) * X.abs().sum(0),
    ],
    "best_mask": [
        lambda w, X, zeros: ~torch.tensor(best_mask_loop(w, X, len(w) - zeros)),  # two known bugs at once
        lambda w, X, zeros: ~torch.tensor(best_mask_loop(w.abs(), X.abs(), zeros)),
        lambda w, X, zeros: [True] * len(w),
        lambda w, X, zeros: best_mask_loop(w, X[:1], zeros),
    ],
    **answers_surgeon.REJECTED,
    **answers_calibration.REJECTED,
    **answers_columns.REJECTED,
    **answers_construct.REJECTED,
    **answers_groups.REJECTED,
    **answers_lottery.REJECTED,
    **answers_optimum.REJECTED,
    **answers_pipeline.REJECTED,
    **answers_predictions.REJECTED,
    **answers_reconstruction.REJECTED,
    **answers_recovery.REJECTED,
    **answers_schedules.REJECTED,
    **answers_wanda.REJECTED,
    **answers_allocation.REJECTED,
    **answers_formats.REJECTED,
    **answers_speed.REJECTED,
    **answers_units.REJECTED,
    **answers_quantize.REJECTED,
    **answers_claims.REJECTED,
    **answers_slicing.REJECTED,
    **answers_depth.REJECTED,
    **answers_scale.REJECTED,
}


def test_every_exercise_has_answers_here():
    """An exercise without differently written answers and unknown bugs is not tested."""
    assert set(RIGHT) == set(REJECTED) == set(checks.EXERCISES)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_reference_passes(exercise):
    verdict = exercise(exercise.reference)
    assert verdict.passed and verdict.bug is None and verdict.points == exercise.difficulty > 0


@pytest.mark.parametrize(("exercise", "wrong"), VARIANTS)
def test_variant_is_caught_under_its_own_name(exercise, wrong):
    verdict = exercise(wrong.function)
    assert (verdict.passed, verdict.bug, verdict.message) == (False, wrong.name, wrong.message)
    assert verdict.points == 0


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_reference_and_variants_are_pairwise_distinguishable(exercise):
    functions = [exercise.reference, *(w.function for w in exercise.wrong)]
    assert not [(i, j) for (i, f), (j, g) in combinations(enumerate(functions), 2) if exercise.agree(f, g)]
    assert len({w.name for w in exercise.wrong}) >= 3


@pytest.mark.parametrize(
    ("name", "answer"), [pytest.param(n, f, id=f"{n}-{i}") for n in RIGHT for i, f in enumerate(RIGHT[n])]
)
def test_differently_written_answers_pass(name, answer):
    verdict = checks.EXERCISES[name](answer)
    assert verdict.passed, str(verdict)


@pytest.mark.parametrize(
    ("name", "answer"), [pytest.param(n, f, id=f"{n}-{i}") for n in REJECTED for i, f in enumerate(REJECTED[n])]
)
def test_unknown_bugs_are_rejected_without_a_name(name, answer):
    verdict = checks.EXERCISES[name](answer)
    assert not verdict.passed and verdict.bug is None and verdict.message, str(verdict)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_generic_mistakes_are_told_plainly(exercise):
    def changes_its_input(*args):
        result = exercise.reference(*args)
        if isinstance(args[0], dict):
            args[0]["hidden_size"] = 0
        else:
            for tensor in args[0] if isinstance(args[0], list) else args[:1]:
                tensor += 1
        return result

    def raises(*args):
        raise KeyError("lost")

    def todo(*args):
        raise NotImplementedError

    if not isinstance(exercise.cases()[0].args[0], str):  # a text cannot be changed
        assert "changed its argument" in exercise(changes_its_input).message
    assert "returned None" in exercise(lambda *args: None).message
    assert "raised KeyError in its line 2: 'lost'" in exercise(raises).message
    assert "Nothing is written yet" in exercise(todo).message
    assert "takes 0 positional arguments" in exercise(lambda: 0).message
    assert "not a str" in exercise(lambda *args: "keep").message
    result = exercise.reference(*exercise.cases()[0].args)
    if isinstance(result, tuple) and len({torch.as_tensor(part).shape for part in result}) > 1:
        assert f"list of {len(result)} results was expected, not a Tensor" in exercise(lambda *a: torch.ones(1)).message
    else:
        wanted = torch.as_tensor(result)
        shape = r"should be of shape \([\d, ]+\)," if wanted.ndim else "should be a single number,"
        assert re.search(rf"{shape} not of shape \(2, 2, 2\)", exercise(lambda *args: torch.zeros(2, 2, 2)).message)
    assert "Pass the function itself" in exercise(torch.ones(3)).message


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_cases_are_the_same_at_every_call(exercise):
    for one, other in zip(exercise.cases(), exercise.cases(), strict=True):
        assert one.label == other.label and str(one.args) == str(other.args)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_the_check_leaves_the_random_state_alone(exercise):
    state = torch.get_rng_state()
    exercise(lambda *args: torch.rand(3))
    assert torch.equal(state, torch.get_rng_state())


# The machinery itself ---------------------------------------------------------------------------------------------


def _double(x, factor):
    return x * factor, float(x.sum())


TOY = Exercise(
    name="toy",
    chapter=99,
    title="scale and sum",
    reference=_double,
    wrong=(Wrong("no scale", lambda x, factor: (x, float(x.sum())), "The factor is missing."),),
    cases=lambda: [Case("ones", (torch.ones(2, 2), 3.0)), Case("zeros", (torch.zeros(2), 2.0))],
    difficulty=4,
)


def test_several_results():
    assert TOY(_double).passed
    assert TOY(lambda x, factor: [(factor * x).numpy(), np.float64(x.sum())]).passed
    assert TOY(lambda x, factor: (x.clone(), x.sum())).bug == "no scale"
    assert "a tuple or list of 2 results was expected, not a float" in TOY(lambda x, f: float(f)).message
    assert "a tuple or list of 2 results was expected, not a tuple of 3" in TOY(lambda x, f: (x * f, 4, 4)).message
    assert "item 1 of your result should be 4, not 0" in TOY(lambda x, f: (x * f, 0)).message
    assert "holds NaN" in TOY(lambda x, f: ((x - x) / (x - x), x.sum())).message


def test_a_name_needs_agreement_on_every_case():
    """An answer that makes a known mistake on one case and another mistake on the next has no known bug."""
    verdict = TOY(lambda x, factor: (x, float(x.sum())) if x.ndim == 2 else (x + 1, float(x.sum())))
    assert not verdict.passed and verdict.bug is None
    assert "On ones (x = [[1.0, 1.0], [1.0, 1.0]], factor = 3.0)" in verdict.message
    assert verdict.message.endswith("None of the 2 cases is right.")


def test_a_known_mistake_that_also_changes_its_input_is_not_named():
    def both(x, factor):
        total = float(x.sum())
        return x.add_(0.5).sub(0.5), total

    verdict = TOY(both)
    assert verdict.bug is None and "changed its argument x" in verdict.message


def test_gradients_and_half_precision_are_no_obstacle():
    assert TOY(lambda x, factor: ((x * factor).requires_grad_(), x.sum().bfloat16())).passed


def test_masks_are_told_by_their_counts_then_by_the_place():
    exercise = checks.block_mask
    everything = exercise(lambda W, s, b: torch.ones_like(W, dtype=torch.bool)).message
    assert "sparsity = 0.5, block_size = 3) your result should hold 12 True of 24, not 24" in everything
    assert "(W = [[-1.126, " in everything and "Right on sparsity 0; wrong on a random matrix; " in everything
    assert "only True and False" in exercise(lambda W, s, b: W.abs()).message
    shuffled = exercise(lambda W, s, b: torch.tensor(block_mask_numpy(W, s, b)).flip(0)).message
    assert "places, first at [" in shuffled and "was expected, not" in shuffled


def _block_mask_by(keep_of):
    """The mask that keep_of(magnitudes, count, sparsity) gives for each block."""

    def answer(W, sparsity, block_size):
        parts = []
        for block in W.abs().split(block_size, dim=1):
            parts.append(keep_of(block, round(sparsity * block.numel()), sparsity))
        return torch.cat(parts, dim=1)

    return answer


@pytest.mark.parametrize(
    ("name", "keep_of"),
    [
        ("ties all pruned", lambda v, k, s: v > v.flatten().kthvalue(k).values),
        ("ties all pruned", lambda v, k, s: v > v.flatten().sort().values[k - 1]),
        ("ties all pruned", lambda v, k, s: ~(v <= v.flatten().sort().values[k - 1]) if k else v > -1),
        ("ties all pruned", lambda v, k, s: v > v.flatten().kthvalue(max(k, 1)).values),
        ("threshold from a quantile", lambda v, k, s: v > torch.quantile(v, s)),
        ("threshold from a quantile", lambda v, k, s: v >= float(np.quantile(v.numpy(), s))),
    ],
)
def test_likely_ways_to_take_a_threshold_are_named(name, keep_of):
    assert checks.block_mask(_block_mask_by(keep_of)).bug == name


@pytest.mark.parametrize(
    "answer",
    [
        lambda ids, length: ids.split(length),
        lambda ids, length: [ids[i : i + length] for i in range(0, len(ids), length)],
    ],
)
def test_a_window_that_is_not_full_is_named(answer):
    assert checks.cut_windows(answer).bug == "left-over window kept"


def test_verdicts_read_well_in_a_terminal_and_in_a_notebook():
    passed, failed = TOY(_double), TOY(TOY.wrong[0].function)
    assert str(passed) == repr(passed) == "✓ toy: passed. Right on all 2 cases."
    assert str(failed) == "✗ toy: not yet (no scale). The factor is missing."
    assert failed._repr_markdown_() == "✗ **`toy`**: not yet: *no scale*. The factor is missing."
    assert (passed.points, failed.points) == (4, 0)


def test_the_registry_is_complete_and_speaks_up():
    assert all(getattr(checks, name) is exercise and name in dir(checks) for name, exercise in checks.EXERCISES.items())
    assert all(1 <= e.difficulty <= 5 and e.chapter >= 1 and e.name in repr(e) for e in EXERCISES)
    with pytest.raises(AttributeError, match=r"no exercise 'nonsense'.*block_mask"):
        _ = checks.nonsense
    with pytest.raises(PruneError, match="two exercises are called 'toy'"):
        collect([TOY], [TOY])


def test_rounds_are_counted_exactly_where_the_sparsity_is_met_exactly():
    """(1 - 0.8) * 100 is less than 20, and 0.07 * 100 more than 7."""
    cost = checks.ticket_cost.reference
    assert cost(torch.full((20,), 5), 0.3, 0.8, 100, 0).tolist() == [3, 400]  # 5, 3, 2, 1 of each
    assert cost(torch.tensor([100]), 0.07, 0.07, 100, 0).tolist() == [1, 200]
    with pytest.raises(PruneError, match=r"0\.9 is never reached"):
        cost(torch.full((20,), 5), 0.3, 0.9, 100, 0)


def test_no_exercise_hides_behind_a_module():
    """`checks.NAME` must be the exercise, so no module of the package may have its name."""
    assert not [name for name in checks.EXERCISES if not isinstance(getattr(checks, name), Exercise)]
