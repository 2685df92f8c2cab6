"""precision=: the products of forward passes alone, the same in every form of the driver, and on record."""

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_tokens

import minprune as mp
from minprune.models.hooks import capture_inputs, once
from minprune.pipeline import precision as module
from minprune.pipeline.recipes import Recipe
from minprune.pipeline.reconstruction import Reconstruction


def weights(model):
    return {layer.name: layer.weight.clone() for layer in mp.find_layers(model)}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("sequential", [True, False])
def test_narrow_products_are_those_of_an_autocast_around_the_run(batch_size, sequential):
    given = {"method": "sparsegpt", "pattern": "50%", "batch_size": batch_size, "sequential": sequential}
    one, other, wide = (tiny_model("llama", torch.float32) for _ in range(3))
    report = mp.prune(one, tiny_tokens(), **given, precision="bfloat16")
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        around = mp.prune(other, tiny_tokens(), **given)
    assert_same(weights(one), weights(other))
    assert report.precision == around.precision == "bfloat16"
    assert mp.prune(wide, tiny_tokens(), **given).precision == "float32"
    assert any(not torch.equal(a, b) for a, b in zip(weights(one).values(), weights(wide).values(), strict=True))


def test_what_a_layer_is_pruned_on_is_what_the_narrow_pass_brings():
    model, seen = tiny_model("llama", torch.float32), {}
    first = mp.find_layers(model)[:3]  # q, k, v of the first block: nothing before them is pruned
    dense = {layer.name: layer.weight.clone() for layer in first}
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16),
        capture_inputs(first, once(lambda layer, X: seen.__setitem__(layer.name, X.float()))),
    ):
        model(tiny_tokens())
    report = mp.prune(model, tiny_tokens(), "sparsegpt", "50%", precision="bfloat16")
    for row in report.layers[:3]:
        X, layer = seen[row.name].flatten(0, 1), next(x for x in first if x.name == row.name)
        lost, whole = X @ (dense[row.name] - layer.weight).T, X @ dense[row.name].T
        assert row.error == pytest.approx(float(lost.square().sum() / whole.square().sum()), rel=1e-4)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_callers_autocast_is_named_in_the_report_and_does_not_change_what_was_asked_for(batch_size):
    given = {"calib": tiny_tokens(), "method": "sparsegpt", "batch_size": batch_size}
    wide, asked = (tiny_model("llama", torch.float32) for _ in range(2))
    mp.prune(wide, **given)
    with torch.autocast("cpu", torch.bfloat16):
        assert mp.prune(asked, **given, precision="float32").precision == "float32"
        assert mp.prune(tiny_model("llama", torch.float64), **given).precision == "float64"  # autocast leaves it
    assert_same(weights(asked), weights(wide))
    with torch.autocast("cpu", torch.float16):
        assert mp.prune(tiny_model("llama", torch.float32), **given).precision == "float16"


def test_a_model_that_is_not_in_float32_keeps_its_products():
    one, other = (tiny_model("llama", torch.bfloat16) for _ in range(2))
    report = mp.prune(one, tiny_tokens(), "wanda", "50%", precision="bfloat16")
    mp.prune(other, tiny_tokens(), "wanda", "50%")
    assert_same(weights(one), weights(other))
    assert report.precision == "bfloat16"
    assert mp.prune(
        tiny_model("llama", torch.float64), tiny_tokens(), "wanda", "2:4", precision="bfloat16"
    ).precision == ("float64")


@pytest.mark.parametrize(("asked", "expected"), [("auto", True), ("float32", False), ("bfloat16", True)])
def test_a_recipe_that_trains_takes_what_the_hardware_likes_unless_told(monkeypatch, asked, expected):
    monkeypatch.setattr("minprune.pipeline.reconstruction.multiplies_bfloat16", lambda device: True)
    recipe = Recipe("wanda", reconstruction=Reconstruction(epochs=1))
    report = mp.prune(tiny_model("llama", torch.float32), tiny_tokens(), pattern="50%", recipe=recipe, precision=asked)
    assert report.reconstruction["bfloat16"] is expected
    assert report.precision == ("bfloat16" if expected else "float32")


def test_without_calibration_there_are_no_products():
    assert (
        mp.prune(tiny_model("llama", torch.float32), None, "magnitude", "50%", precision="bfloat16").precision is None
    )


def test_another_word_is_refused():
    with pytest.raises(mp.PruneError, match=r"unknown precision 'half'.*float32, bfloat16"):
        mp.prune(tiny_model("llama", torch.float32), tiny_tokens(), "wanda", "50%", precision="half")
    assert set(module.PRECISIONS) == {"auto", "float32", "bfloat16"}


def test_the_command_line_records_it_and_goes_on_with_no_other(run, tiny_folder, text_file):
    given = ("prune", tiny_folder, "--method", "wanda", "--calibration", text_file, "--samples", 4, "--length", 16)
    code, _, err = run(*given, "--precision", "bfloat16", "--dtype", "float32", "--output", "out")
    assert code == 0, err
    assert json.loads(Path("out/minprune.json").read_text())["precision"] == "bfloat16"
    model, tokenizer = mp.load_model(tiny_folder, "float32")
    calib = mp.load_tokens(tokenizer, text_file, samples=4, length=16, seed=0)
    mp.prune(model, calib, "wanda", "50%", precision="bfloat16")
    assert_same(weights(mp.load_model("out", "float32")[0]), weights(model))
    assert run(*given, "--precision", "8", "--output", "other")[0] == 2
