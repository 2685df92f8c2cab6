"""`minprune quantize`: what it writes, that a stopped run goes on, and the one line that each mistake gets."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import minprune as mp
from minprune.compress.grids import make_grid
from minprune.pipeline.journal import Journal


@pytest.fixture
def quantize(run, tiny_folder, text_file):
    """quantize(...): `minprune quantize` of the tiny model on a few short windows."""

    def quantize(*more, model=tiny_folder, **changes):
        options = {"calibration": text_file, "samples": 6, "length": 16, "group": 16, "output": "out"} | changes
        given = [(f"--{name.replace('_', '-')}", value) for name, value in options.items() if value is not None]
        return run("quantize", model, *(part for pair in given for part in pair), *more)

    return quantize


def test_the_folder_holds_what_quantize_makes_in_memory_and_says_how(quantize, tiny_folder, text_file):
    code, out, err = quantize("--test", text_file, bits=3)
    assert (code, "gptq 3 bits in groups of 16" in out) == (0, True), err
    record = json.loads(Path("out/minprune.json").read_text())
    assert record["options"] == {"bits": 3, "group": 16, "grid": "asymmetric"} and record["perplexity"]["after"] > 1
    assert all(0 < row["error"] < 1 for row in record["layers"])
    assert "3 bits" in Path("out/README.md").read_text() and "3 bits" in Path("out/report.html").read_text()
    model, tokenizer = mp.load_model(tiny_folder)
    calib = mp.load_tokens(tokenizer, text_file, "train", samples=6, length=16, seed=0)
    report = mp.quantize(model, calib, bits=3, group=16)
    assert [row.name for row in report.layers] == [row["name"] for row in record["layers"]]
    written = AutoModelForCausalLM.from_pretrained("out").state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(written[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_the_zeros_of_a_pruned_folder_stay_and_its_weights_are_on_a_grid(quantize, run, tiny_folder, text_file, method):
    code, _, err = run("prune", tiny_folder, "--method", "wanda", "--pattern", "2:4", "--calibration", text_file,
                       "--samples", 4, "--length", 16, "--output", "half", "--no-test")  # fmt: skip
    assert code == 0, err
    assert quantize("--no-test", model="half", method=method)[0] == 0
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in ("half", "out"))
    for layer, found in zip(mp.find_layers(before), mp.find_layers(after), strict=True):
        assert not found.weight[layer.weight == 0].any()
        assert torch.equal(make_grid(layer.weight, 4, 16, "asymmetric").round(found.weight), found.weight)


def test_joint_pruning_and_rounding_makes_the_zeros_that_are_asked_for(quantize):
    code, out, err = quantize("--no-test", pattern="2:4")
    assert (code, "4 bits in groups of 16, 2:4" in out) == (0, True), err
    for layer in mp.find_layers(AutoModelForCausalLM.from_pretrained("out")):
        assert ((layer.weight != 0).unflatten(1, (-1, 4)).sum(2) <= 2).all()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["recover", "--steps", 1, "--batch-size", 2, "--test", ","], True),
        (["shrink", "--remove", "neurons:25%", "--no-test", "--samples", 6], True),
        (["prune", "--method", "sparsegpt", "--no-test", "--samples", 6], True),
        (["prune", "--method", "wanda", "--no-test", "--samples", 6], False),
    ],
)
def test_who_moves_the_weights_of_a_quantised_model_is_told_and_what_stays_is_stored(
    quantize, run, text_file, command, said
):
    """Zeros are on every grid. What training and least squares make of a weight is on none."""
    assert quantize("--no-test")[0] == 0
    text = "--data" if command[0] == "recover" else "--calibration"
    code, _, err = run(command[0], "out", *command[1:], text, text_file, "--length", 16, "--output", "then")
    assert code == 0 and ("rounded to 4 bits" in err) == said, err
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in ("out", "then"))
    moved = {
        b.name
        for a, b in zip(mp.find_layers(before), mp.find_layers(after), strict=True)
        if a.weight.shape != b.weight.shape or not bool(((a.weight == b.weight) | (b.weight == 0)).all())
    }
    assert bool(moved) == said
    code, out, err = run("export", "then", "--output", "stored")
    on_grid = command[0] == "shrink" or not said  # shrink moves one of seven matrices, Wanda's zeros move none
    assert code == 0 and ("integers of 4 bits" in out) == on_grid, out


def test_a_stopped_run_goes_on_to_the_same_bytes(quantize, monkeypatch):
    assert quantize("--no-test", output="whole")[0] == 0
    original, calls = Journal.add, []

    def add(*arguments):
        original(*arguments)
        calls.append(0)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add)
        code, _, err = quantize("--no-test")
    assert code == 130 and "continue with --resume" in err
    code, _, err = quantize("--no-test", "--resume", bits=3)
    assert code == 2 and "options" in err
    assert quantize("--no-test", "--resume")[0] == 0
    names = [path.name for path in Path("whole").glob("*.safetensors")]
    assert names and all(Path("out", name).read_bytes() == Path("whole", name).read_bytes() for name in names)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"bits": 1}, "not a whole number from 2 to 8"),
        ({"bits": 9}, "not a whole number from 2 to 8"),
        ({"group": 5}, "groups of 5 do not divide"),
        ({"method": "awq"}, "unknown way to quantise 'awq'"),
        ({"grid": "log"}, "unknown grid 'log'"),
        ({"order": "random"}, "unknown order 'random'"),
        ({"method": "rtn", "order": "stored"}, "does not know the option 'order'"),
        ({"method": "rtn", "pattern": "50%"}, "prune first, or use gptq"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(quantize, changes, why):
    code, out, err = quantize("--no-test", **changes)
    assert (code, out, err.count("\n")) == (2, "", 1) and why in err and not list(Path().glob("out*"))


def test_a_finished_output_is_replaced_only_if_asked(quantize):
    assert quantize("--no-test", method="rtn")[0] == 0
    assert "--overwrite" in quantize("--no-test", method="rtn")[2]
    assert quantize("--no-test", "--overwrite", method="rtn")[0] == 0


def test_prune_with_bits_is_quantize_with_a_pattern(run, quantize, tiny_folder, text_file):
    assert quantize("--no-test", pattern="50%", bits=3)[0] == 0
    given = ("--calibration", text_file, "--samples", 6, "--length", 16, "--no-test", "--bits", 3, "--group", 16)
    code, out, err = run("prune", tiny_folder, "--method", "sparsegpt", *given, "--output", "joint")
    assert (code, "3 bits in groups of 16, 50%" in out) == (0, True), err
    assert Path("joint/model.safetensors.index.json").exists() == Path("out/model.safetensors.index.json").exists()
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in ("joint", "out"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    for wrong in (("--method", "wanda"), ("--recipe", "best")):
        code, _, err = run("prune", tiny_folder, *wrong, *given, "--output", "none")
        assert code == 2 and "prune first, and then minprune quantize" in err and err.count("\n") == 1
