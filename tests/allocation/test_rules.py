"""rules.py: every rule keeps to the budget; each against its definition, worked out another way."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from test_sensitivity import divergence, inputs, pruned_by_hand
from tiny import tiny_model, tiny_tokens

import minprune as mp
from minprune.allocation import rules
from minprune.allocation.budget import group_layers, project_by_shift, sizes_of
from minprune.allocation.sensitivity import sensitivity
from minprune.cli.main import main

CALIB = tiny_tokens(8, 16)
MODELS = {family: tiny_model(family) for family in ("llama", "gpt2", "mixtral")}
DEEP = tiny_model("llama", torch.float64, num_hidden_layers=4)


def average_of(model, table):
    layers = mp.find_layers(model)
    zeros = sum(table[layer.name] * layer.weight.numel() for layer in layers)
    return zeros / sum(layer.weight.numel() for layer in layers)


@pytest.mark.parametrize("rule", rules.RULES)
@given(family=st.sampled_from(list(MODELS)), sparsity=st.floats(0, 1))
@settings(derandomize=True, max_examples=12, deadline=None)
def test_the_average_of_every_rule_is_exact_and_weighted_by_parameters(rule, family, sparsity):
    model = MODELS[family]
    table = rules.get_rule(rule)(model, mp.find_layers(model), CALIB, mp.Unstructured(sparsity))
    assert average_of(model, table) == pytest.approx(sparsity, abs=1e-9)
    assert all(0 <= value <= 1 for value in table.values())


@pytest.mark.parametrize("rule", rules.RULES)
def test_prune_takes_a_rule_by_name_and_does_what_its_table_says(rule):
    model, other = copy.deepcopy(DEEP), copy.deepcopy(DEEP)
    table = rules.get_rule(rule)(model, mp.find_layers(model), CALIB, "50%")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    report = mp.prune(model, CALIB, "wanda", "50%", allocation=rule)
    mp.prune(other, CALIB, "wanda", "50%", allocation=table)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    for row in report.layers:
        assert row.sparsity == pytest.approx(round(table[row.name] * row.shape[1]) / row.shape[1], abs=1e-9)


def test_owl_from_its_definition():
    layers = mp.find_layers(DEEP)
    X = inputs(DEEP, layers, CALIB)
    shares = []
    for block in range(4):
        scores = np.concatenate(
            [
                (layer.weight.abs() * X[layer.name].norm(dim=0)).flatten().numpy()
                for layer in layers
                if layer.name.startswith(f"model.layers.{block}.")
            ]
        )
        shares.append(np.mean(scores > 3 * scores.mean()))
    shares = np.array(shares)
    expected = 0.6 + 0.1 * (shares.mean() - shares) / np.ptp(shares)  # blocks of one size: clamping has nothing to do
    table = rules.owl(DEEP, layers, CALIB, "60%", outlier=3, spread=0.05)
    for layer in layers:
        assert table[layer.name] == pytest.approx(expected[int(layer.name.split(".")[2])], abs=1e-6)


def test_one_threshold_prunes_what_sorting_all_scores_prunes():
    layers = mp.find_layers(DEEP)
    X = inputs(DEEP, layers, CALIB)
    scores = {layer.name: layer.weight.abs() * X[layer.name].norm(dim=0) for layer in layers}
    for calib, known in ((CALIB, scores), (None, {layer.name: layer.weight.abs() for layer in layers})):
        merged = torch.cat([A.flatten() for A in known.values()]).sort().values
        threshold = merged[len(merged) * 7 // 10]
        table = rules.one_threshold(DEEP, layers, calib, "70%")
        for name, A in known.items():
            assert table[name] == pytest.approx(float(A.lt(threshold).float().mean()), abs=2e-3)


def test_inverse_sensitivity_keeps_the_product_of_sparsity_and_cost_the_same():
    costs = [row.cost for row in sensitivity(DEEP, CALIB, "20%")]
    table = rules.inverse(DEEP, mp.find_layers(DEEP), CALIB, "20%", spread=0.2)
    found = [table[f"model.layers.{block}.mlp.up_proj"] for block in range(4)]
    products = [s * cost for s, cost in zip(found, costs, strict=True) if 0 < s < 0.4]
    assert len(products) >= 3
    assert products == pytest.approx([products[0]] * len(products), rel=1e-6)


def test_the_ramp_is_the_one_that_costs_least_on_windows_that_took_no_part():
    layers = mp.find_layers(DEEP)
    slopes, sizes = (-0.4, 0.0, 0.2, 0.6), sizes_of(group_layers(layers))
    costs, tables = [], []
    for slope in slopes:
        by_block = project_by_shift(slope * np.linspace(-0.5, 0.5, 4), sizes, 0.5)
        tables.append({layer.name: by_block[int(layer.name.split(".")[2])] for layer in layers})
        costs.append(divergence(DEEP, pruned_by_hand(DEEP, tables[-1], CALIB[:-2]), CALIB[-2:]))
    assert rules.ramp(DEEP, layers, CALIB, "50%", slopes=slopes) == tables[int(np.argmin(costs))]
    assert len({round(cost, 9) for cost in costs}) == 4


@pytest.mark.parametrize("seed", range(5))
def test_the_cheapest_table_is_the_best_of_all_on_a_grid(seed):
    """Brute force: every way to give four groups of one size a level, with the right sum."""
    rng = np.random.default_rng(seed)
    levels = np.linspace(0.4, 0.8, 5)
    costs = np.cumsum(np.sort(rng.uniform(0, 1, (4, 5)), axis=1), axis=1)  # convex and growing
    grid = np.linspace(0.4, 0.8, 41)
    fine = np.array([np.interp(grid, levels, curve) for curve in costs])  # straight pieces stay straight
    choices = [c for c in itertools.product(range(5), repeat=4) if sum(c) == 8]
    best = min(sum(costs[g, place] for g, place in enumerate(choice)) for choice in choices)
    found = rules.minimize_cost(grid, fine, np.full(4, 7.0), 0.6)
    assert sum(np.interp(s, levels, curve) for s, curve in zip(found, costs, strict=True)) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(5))
def test_the_cheapest_table_solves_the_linear_program(seed):
    """Minimise sum t_g with t_g above every chord of curve g and sum n_g s_g fixed: groups of different sizes."""
    rng = np.random.default_rng(seed)
    grid, sizes, groups = np.linspace(0.2, 0.9, 71), rng.uniform(1, 9, 5), 5
    curves = rng.uniform(0.1, 2, (5, 1)) * np.exp(rng.uniform(1, 9, (5, 1)) * grid)
    rows, limits = [], []
    for g, curve in enumerate(curves):
        for i, slope in enumerate(np.diff(curve) / np.diff(grid)):
            row = np.zeros(2 * groups)
            row[g], row[groups + g] = slope, -1
            rows.append(row)
            limits.append(slope * grid[i] - curve[i])
    best = linprog(
        np.repeat([0.0, 1.0], groups), rows, limits, [[*sizes, *np.zeros(groups)]], [0.55 * sizes.sum()],
        bounds=[(0.2, 0.9)] * groups + [(None, None)] * groups,
    )  # fmt: skip
    found = rules.minimize_cost(grid, curves, sizes, 0.55)
    assert sum(np.interp(s, grid, curve) for s, curve in zip(found, curves, strict=True)) == pytest.approx(
        best.fun, rel=1e-7
    )


def test_at_the_optimum_all_groups_have_the_same_marginal_cost_per_weight():
    """f_g = a_g exp(b_g s) has the closed form s_g = log(k n_g / (a_g b_g)) / b_g, k such that the budget is met."""
    a, b, sizes = np.array([1.0, 0.5, 2.0]), np.array([4.0, 6.0, 5.0]), np.array([3.0, 1.0, 2.0])
    levels = np.linspace(0.1, 0.9, 9)
    found = rules.minimize_cost(levels, a[:, None] * np.exp(b[:, None] * levels), sizes, 0.5)
    marginal = a * b * np.exp(b * found) / sizes
    assert np.ptp(np.log(marginal)) < 0.1  # a step of the grid is 0.01, which is 0.06 in the steepest logarithm
    assert found @ sizes / sizes.sum() == pytest.approx(0.5, abs=1e-12)


def test_a_group_that_costs_less_when_pruned_more_does_not_mislead():
    """Noise can make a measured curve fall; the convex hull has its slope fixed, and the budget still holds."""
    levels = np.array([0.4, 0.5, 0.6])
    found = rules.minimize_cost(levels, np.array([[1.0, 0.9, 2.0], [1.0, 1.2, 1.1]]), np.ones(2), 0.5)
    assert found.sum() == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(mp.PruneError, match=r"0\.9 is outside"):
        rules.minimize_cost(levels, np.ones((2, 3)), np.ones(2), 0.9)


def test_optimal_lowers_the_cost_that_it_measures():
    layers = mp.find_layers(DEEP)
    uniform = {layer.name: 0.5 for layer in layers}
    best = rules.optimal(DEEP, layers, CALIB, "50%", steps=3)
    cost = {
        name: divergence(DEEP, pruned_by_hand(DEEP, table, CALIB[:-2]), CALIB[-2:])
        for name, table in (("uniform", uniform), ("best", best))
    }
    assert cost["best"] < 0.98 * cost["uniform"]


@pytest.mark.parametrize("rule", rules.RULES)
def test_what_a_rule_cannot_do_is_refused(rule):
    model = copy.deepcopy(DEEP)
    with pytest.raises(mp.PruneError, match=r"2:4.*50%"):
        mp.prune(model, CALIB, "wanda", "2:4", allocation=rule)
    if rule == "global":
        mp.prune(model, None, "magnitude", "50%", allocation=rule)
    else:
        with pytest.raises(mp.PruneError, match="calibration"):
            mp.prune(model, None, "magnitude", "50%", allocation=rule)


@pytest.mark.parametrize("rule", ["owl", "optimal"])
def test_the_command_takes_a_rule_by_name(rule, tmp_path, monkeypatch, capsys, tiny_folder, text_file):
    monkeypatch.chdir(tmp_path)
    asked = (
        "prune",
        str(tiny_folder),
        "--calibration",
        str(text_file),
        "--samples",
        "6",
        "--length",
        "32",
        "--no-test",
    )
    assert main([*asked, "--method", "wanda", "--allocation", rule, "--exclude", "*.v_proj", "--output", "out"]) == 0
    assert f"wanda 50%, sparsities by {rule}: " in capsys.readouterr().out
    model, tokenizer = mp.load_model(tiny_folder)
    calib = mp.load_tokens(tokenizer, text_file, samples=6, length=32, seed=0)
    table = rules.get_rule(rule)(model, mp.find_layers(model, exclude=["*.v_proj"]), calib, "50%")
    record = json.loads((tmp_path / "out" / "minprune.json").read_text())
    assert record["allocation"] == {"rule": rule, "table": table}
    for path in ("report.html", "README.md"):
        assert f"sparsities by {rule}" in (tmp_path / "out" / path).read_text()
    assert len(set(table.values())) == 2
    assert main([*asked, "--pattern", "2:4", "--allocation", rule, "--output", "other"]) == 2
    assert "2:4" in capsys.readouterr().err


def test_a_ramp_with_one_slope_is_straight_and_needs_no_trial():
    layers = mp.find_layers(DEEP)
    table = rules.ramp(DEEP, layers, None, "50%", slopes=[0.3])
    found = [table[f"model.layers.{block}.mlp.up_proj"] for block in range(4)]
    assert found == pytest.approx([0.35, 0.45, 0.55, 0.65])


@pytest.mark.parametrize(("pattern", "groups"), [("60%:row", "rows"), ("60%:layer", "layers")])
def test_the_zeros_of_an_exact_table_are_whole_weights_of_each_group(pattern, groups):
    model, calib = tiny_model("llama"), tiny_tokens()
    report = mp.prune(model, calib, "wanda", pattern, allocation="owl")
    table = report.allocation["table"]
    sizes = {row.name: row.shape[0] * row.shape[1] for row in report.layers}
    average = sum(table[name] * size for name, size in sizes.items()) / sum(sizes.values())
    assert average == pytest.approx(0.6, abs=1e-9)
    for row in report.layers:
        count = row.shape[0] if groups == "rows" else 1
        assert abs(row.sparsity - table[row.name]) * sizes[row.name] <= 0.5 * count + 1e-6, row.name


@pytest.mark.parametrize("rule", [None, *rules.RULES])
def test_in_inference_mode_a_rule_chooses_and_a_sensitivity_is_what_it_is_outside(rule):
    def found(model):
        if rule is None:
            return [row.cost for row in sensitivity(model, tiny_tokens(), "50%")]
        return mp.prune(model, tiny_tokens(), "wanda", "50%", allocation=rule).allocation

    outside, model = found(tiny_model("llama")), tiny_model("llama")
    with torch.inference_mode():
        assert found(model) == outside


@pytest.mark.parametrize("seed", range(20))
def test_the_convex_hull_of_a_curve_is_the_lowest_chord_above_each_of_its_points(seed):
    draw = np.random.default_rng(seed)
    x, y = np.sort(draw.random(9)), draw.normal(size=9)
    hull = y[0] + np.append(0, np.cumsum(rules._convex_slopes(x, y) * np.diff(x)))
    for k in range(9):
        chords = [
            y[i] + (y[j] - y[i]) * (x[k] - x[i]) / (x[j] - x[i]) for i in range(k + 1) for j in range(k, 9) if i < j
        ]
        assert hull[k] == pytest.approx(min([y[k], *chords]))
