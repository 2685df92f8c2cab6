"""budget.py: the average is exact, the bounds hold, and the result is the nearest to what was wanted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from tiny import tiny_model

import minprune as mp
from minprune.allocation.budget import group_layers, project_by_scale, project_by_shift, sizes_of, table_of

SETTINGS = settings(derandomize=True, max_examples=200, deadline=None)
GROUP = st.tuples(st.floats(-2, 2), st.integers(1, 10**7))


@given(st.lists(GROUP, min_size=1, max_size=12), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
@SETTINGS
def test_the_average_is_exact_after_clamping_and_weighted_by_parameters(groups, a, b, place):
    wanted, sizes = (np.array(column, dtype=float) for column in zip(*groups, strict=True))
    low, high = sorted((a, b))
    average = low + place * (high - low)
    for found in (
        project_by_shift(wanted, sizes, average, low, high),
        project_by_scale(np.exp(wanted), sizes, average, low, high),
    ):
        assert found @ sizes / sizes.sum() == pytest.approx(average, abs=1e-9)
        assert (found >= low).all() and (found <= high).all()
        assert (np.diff(found[np.argsort(wanted)]) >= 0).all()  # who wants more gets no less


@pytest.mark.parametrize("seed", range(5))
def test_a_shift_is_the_nearest_table_that_keeps_to_the_budget(seed):
    rng = np.random.default_rng(seed)
    wanted, sizes, average = rng.uniform(-0.3, 1.3, 6), rng.uniform(1, 5, 6), 0.6
    found = project_by_shift(wanted, sizes, average, 0.1, 0.9)
    best = minimize(
        lambda s: sizes @ (s - wanted) ** 2,
        np.full(6, average),
        bounds=[(0.1, 0.9)] * 6,
        constraints={"type": "eq", "fun": lambda s: sizes @ s / sizes.sum() - average},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(found, best.x, atol=1e-5)


def test_a_scale_keeps_the_ratios_of_all_that_no_bound_holds():
    found = project_by_scale(np.array([1.0, 2.0, 3.0, 100.0]), np.array([4.0, 3.0, 2.0, 1.0]), 0.4, 0.0, 0.9)
    assert found[3] == 0.9
    np.testing.assert_allclose(found[:3] / found[0], [1, 2, 3], rtol=1e-12)


@pytest.mark.parametrize("average", [0.2, 0.95])
def test_an_average_outside_the_bounds_is_refused(average):
    with pytest.raises(mp.PruneError, match=r"0\.3\.\.0\.9"):
        project_by_shift(np.array([0.1, 0.2]), np.array([1.0, 1.0]), average, 0.3, 0.9)


@pytest.mark.parametrize(
    "family, by, names",
    [
        ("llama", "block", ["model.layers.0", "model.layers.1"]),
        ("gpt2", "block", ["transformer.h.0", "transformer.h.1"]),
        ("gpt2", "type", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
        ("mixtral", "block", ["model.layers.0", "model.layers.1"]),
    ],
)
def test_the_groups_partition_the_layers(family, by, names):
    layers = mp.find_layers(tiny_model(family))
    groups = group_layers(layers, by)
    assert list(groups) == names
    assert sorted(layer.name for members in groups.values() for layer in members) == sorted(x.name for x in layers)
    assert sizes_of(groups).sum() == sum(layer.weight.numel() for layer in layers)
    assert table_of(groups, np.arange(len(groups)) / 10)[groups[names[1]][0].name] == 0.1


def test_a_mixtures_experts_of_one_matrix_are_one_type_and_an_output_head_is_its_own_group():
    assert "mlp.experts.gate_up_proj.*" in group_layers(mp.find_layers(tiny_model("mixtral")), "type")
    model = tiny_model("llama", tie_word_embeddings=False)
    layers = mp.find_layers(model, include=["*"])
    assert list(group_layers(layers)) == ["model.layers.0", "model.layers.1", "lm_head"]
    with pytest.raises(mp.PruneError, match=r"'depth'.*block, type, layer"):
        group_layers(layers, "depth")
