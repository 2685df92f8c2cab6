"""allocate.py: which pattern each layer gets."""

import json
from fnmatch import fnmatchcase
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model

import minprune as mp
from minprune.allocation.allocate import allocate

LAYERS = mp.find_layers(tiny_model("llama"))
GLOBS = ["*", "*.mlp.*", "*.self_attn.*", "model.layers.0.*", "model.layers.1.mlp.up_proj", "*.[qk]_proj"]
SETTINGS = settings(derandomize=True, max_examples=50, deadline=None)


@given(st.dictionaries(st.sampled_from(GLOBS), st.floats(0, 1)), st.sampled_from(["30%", "50%:row", "block4:25%"]))
@SETTINGS
def test_the_last_glob_that_matches_a_layer_decides(table, text):
    base = mp.pattern(text)
    patterns = allocate(LAYERS, base, table)
    assert list(patterns) == LAYERS
    for layer, found in patterns.items():
        sparsity = base.sparsity
        for glob, value in table.items():
            if fnmatchcase(layer.name, glob):
                sparsity = value
        assert found.sparsity == sparsity
        assert type(found) is type(base)
        assert getattr(found, "group", None) == getattr(base, "group", None)
        assert getattr(found, "size", None) == getattr(base, "size", None)


def test_a_function_of_the_layers_may_make_the_table():
    patterns = allocate(LAYERS, mp.pattern("50%"), lambda layers: {layers[0].name: 0.1, layers[-1].name: 0.9})
    assert [pattern.sparsity for pattern in patterns.values()] == [0.1, *[0.5] * 12, 0.9]


def test_no_allocation_gives_every_layer_the_pattern_itself():
    for text in ("50%", "2:4", "block8:50%"):
        assert set(allocate(LAYERS, mp.pattern(text)).values()) == {mp.pattern(text)}


@pytest.mark.parametrize(
    "table, reason",
    [
        ({"*.w1": 0.5}, r"'\*\.w1' matches no layer"),
        ({"*": 1.5}, r"1\.5 is outside"),
        ({"*": -0.1}, r"-0\.1 is outside"),
        ({"*": float("nan")}, "nan is outside"),
        ({"*": "50%"}, "'50%'.*number"),
        ({"*": True}, "True.*number"),
        ([("*", 0.5)], "table.*list"),
        ("owl", "'owl' needs the whole model"),
        ("fair", "unknown allocation 'fair'.*owl"),
    ],
)
def test_a_table_that_means_nothing_is_refused(table, reason):
    with pytest.raises(mp.PruneError, match=reason):
        allocate(LAYERS, mp.pattern("50%"), table)


def test_n_m_has_no_sparsity_to_change():
    with pytest.raises(mp.PruneError, match="2:4"):
        allocate(LAYERS, mp.pattern("2:4"), {"*": 0.3})
    assert set(allocate(LAYERS, mp.pattern("2:4"), {}).values()) == {mp.pattern("2:4")}


@pytest.mark.parametrize("value", [np.float32(0.25), np.float64(0.25), Fraction(1, 4)])
def test_a_table_may_hold_numbers_of_any_library(value, tmp_path):
    assert allocate(LAYERS, mp.pattern("50%"), {"*": value})[LAYERS[0]] == mp.Unstructured(0.25)
    report = mp.prune(tiny_model("llama"), None, "magnitude", allocation={"*.mlp.*": value})
    report.to_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["allocation"]["table"] == {"*.mlp.*": 0.25}


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf"), 10**400])
def test_a_sparsity_that_is_none_is_refused_with_its_glob(value):
    with pytest.raises(mp.PruneError, match=r"'\*\.mlp\.\*'.*is outside 0\.\.1") as caught:
        allocate(LAYERS, mp.pattern("50%"), {"*.mlp.*": value})
    assert len(str(caught.value)) < 200
