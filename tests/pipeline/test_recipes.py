"""recipe.py: what a recipe brings, and what takes its place."""

import copy

import pytest
import torch
from tiny import tiny_model, tiny_tokens

import minprune as mp
from minprune.pipeline.recipes import RECIPES, Recipe, get_recipe
from minprune.pipeline.reconstruction import Reconstruction

CALIB = tiny_tokens(windows=8)
QUICK = Reconstruction(epochs=1, bfloat16=False)


def pruned(*args, **options):
    """A pruned tiny Llama, and the report."""
    model = tiny_model("llama")
    return model, mp.prune(model, CALIB, *args, **options)


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("pattern", ["50%", "70%:row", "2:4", "4:8"])
def test_the_best_recipe_leaves_exactly_the_patterns_zeros(pattern):
    model, report = pruned(recipe="best", pattern=pattern)
    layers = mp.find_layers(model)
    share = mp.pattern(pattern).sparsity if "%" in pattern else 0.5
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
    assert zeros / sum(layer.weight.numel() for layer in layers) == pytest.approx(share, abs=1e-2)
    for layer, row in zip(layers, report.layers, strict=True):
        keep = layer.weight != 0
        if ":row" in pattern:  # the same number in every row
            assert int(keep.sum(1).min()) == int(keep.sum(1).max())
        elif "%" not in pattern:
            n, m = map(int, pattern.split(":"))
            assert (keep.unflatten(1, (-1, m)).sum(-1) == n).all()
        assert row.sparsity == pytest.approx(1 - int(keep.sum()) / keep.numel())
    assert report.method == RECIPES["best"].method
    assert len(report.reconstruction["errors"]) == 2


def test_a_recipe_of_a_method_alone_is_that_method():
    assert same(pruned(recipe=Recipe("admm", {"steps": 3}), pattern="50%")[0], pruned("admm", "50%", steps=3)[0])
    assert same(pruned(pattern="60%")[0], pruned("sparsegpt", "60%")[0])


def test_what_is_given_beside_a_recipe_takes_the_place_of_its_own():
    recipe = Recipe("admm", {"steps": 3, "damp": 0.1}, {"*.mlp.*": 0.7}, QUICK)
    _, other = pruned("wanda", "50%", recipe=recipe, allocation={"*": 0.75})
    assert (other.method, other.options) == ("wanda", {})  # ADMM's options mean nothing to Wanda
    assert other.sparsity == pytest.approx(0.75)
    assert len(other.reconstruction["errors"]) == 2
    _, own = pruned(pattern="50%", recipe=recipe, damp=0.2)
    assert (own.method, own.options) == ("admm", {"steps": 3, "damp": 0.2})
    assert {row.sparsity > 0.6 for row in own.layers if ".mlp." in row.name} == {True}


def test_a_report_of_a_recipe_can_be_written(tmp_path):
    _, report = pruned(recipe=Recipe("wanda", reconstruction=QUICK), pattern="50%")
    report.to_json(tmp_path / "report.json")
    assert '"reconstruction"' in (tmp_path / "report.json").read_text()


def test_an_unknown_recipe_is_refused_and_the_known_ones_are_named():
    with pytest.raises(mp.PruneError, match="unknown recipe 'worst': choose one of best"):
        pruned(recipe="worst")
    recipe = Recipe("wanda")
    assert get_recipe(recipe) is recipe


def test_a_reconstruction_without_text_is_refused_before_anything_is_changed():
    model = tiny_model("llama")
    before = copy.deepcopy(model)
    with pytest.raises(mp.PruneError, match="needs calibration tokens"):
        mp.prune(model, None, recipe=Recipe("magnitude", reconstruction=QUICK))
    assert same(model, before)


@pytest.mark.parametrize("pattern", ["0%", "4:4", "40%", "100%"])
def test_the_best_recipe_from_the_command_line_takes_every_sparsity(run, tiny_folder, text_file, pattern):
    code, _, err = run(
        "prune", tiny_folder, "--recipe", "best", "--pattern", pattern, "--calibration", text_file,
        "--samples", 4, "--length", 16, "--no-test", "--output", "out",
    )  # fmt: skip
    assert code == 0, err
