"""`minprune shrink`: what it writes, how it goes on after a kill, and the one line that each mistake gets."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import minprune as mp
from minprune.structured import progress
from minprune.structured import shrink as module


@pytest.fixture
def shrink(run, tmp_path, tiny_folder, text_file):
    """shrink(...): `minprune shrink` of the tiny model on a few short windows."""

    def shrink(*more, model=tiny_folder, **changes):
        options = {"calibration": text_file, "samples": 6, "length": 16, "output": "out"} | changes
        given = [(f"--{name.replace('_', '-')}", value) for name, value in options.items() if value is not None]
        removed = () if "--remove" in more else ("--remove", "neurons:25%", "--remove", "blocks:1")
        return run("shrink", model, *removed, *(part for pair in given for part in pair), *more)

    return shrink


def test_it_writes_a_smaller_model_that_loads_and_says_how_it_was_made(shrink, tiny_folder, run, text_file):
    code, out, err = shrink("--test", text_file, "--repair", "reconstruct")
    assert (code, err.count("\n") <= 2) == (0, True), err
    model, before = (AutoModelForCausalLM.from_pretrained(folder) for folder in ("out", tiny_folder))
    assert model.config.num_hidden_layers == before.config.num_hidden_layers - 1
    assert model.config.intermediate_size == before.config.intermediate_size * 3 // 4
    record = json.loads(Path("out/minprune.json").read_text())
    assert record["parameters"] == {"before": before.num_parameters(), "after": model.num_parameters()}
    assert record["pattern"] == "blocks:1 neurons:25%" and record["method"] == "influence+obs"
    assert set(record["reconstruction"]["errors"]) == {f"model.layers.{i}" for i in range(len(model.model.layers))}
    assert f"{model.num_parameters():,} after" in out and record["perplexity"]["after"] > 1
    assert "are left" in Path("out/README.md").read_text() and " M" in Path("out/report.html").read_text()
    assert not [path for path in Path("out").rglob("*") if "unfinished" in path.parts]
    code, _, err = run("prune", "out", "--method", "wanda", "--pattern", "2:4", "--calibration", text_file,
                       "--samples", 4, "--length", 16, "--output", "half")  # fmt: skip
    assert code == 0, err
    again = AutoModelForCausalLM.from_pretrained("half")
    assert float((again.model.layers[0].mlp.down_proj.weight == 0).float().mean()) == 0.5
    code, _, err = run("recover", "half", "--data", text_file, "--samples", 4, "--length", 16, "--steps", 1,
                       "--test", text_file, "--test-samples", 2, "--output", "trained")  # fmt: skip
    assert code == 0, err


@pytest.mark.parametrize("at", ["second removal", "block"])
def test_a_stopped_run_goes_on_to_the_same_bytes(shrink, monkeypatch, at):
    assert shrink("--repair", "reconstruct", output="whole")[0] == 0
    name = {"second removal": "remove_one", "block": "reconstruct"}[at]
    original, calls = getattr(module, name), []

    def stopping(*arguments, **named):
        calls.append(0)
        if at == "block":
            note = named.pop("after")
            return original(*arguments, **named, after=lambda *told: (note(*told), stop()))
        return original(*arguments, **named) if len(calls) == 1 else stop()

    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, name, stopping)
        code, _, err = shrink("--repair", "reconstruct")
    assert code == 130 and "continue with --resume" in err and not Path("out").exists()
    assert "in the way" in shrink("--repair", "reconstruct")[2]
    code, _, err = shrink("--repair", "reconstruct", "--resume", samples=5)
    assert code == 2 and "another calibration" in err
    assert shrink("--repair", "reconstruct", "--resume")[0] == 0
    assert Path("out/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    assert Path("out/config.json").read_bytes() == Path("whole/config.json").read_bytes()


@pytest.mark.parametrize("changed", ["type of products", "configuration or weights"])
def test_a_stopped_run_does_not_go_on_as_another_one(shrink, tiny_folder, tmp_path, monkeypatch, changed):
    """Whether products are in bfloat16 is the hardware's answer; a configuration changes what the same weights say."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    train, narrow = ("--repair", "reconstruct"), changed == "type of products"
    monkeypatch.setattr("minprune.structured.repair.multiplies_bfloat16", lambda device: narrow)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "reconstruct", stop)
        assert shrink(*train, model=folder)[0] == 130
    with monkeypatch.context() as patched:
        if narrow:
            patched.setattr("minprune.structured.repair.multiplies_bfloat16", lambda device: False)
        else:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
        code, _, err = shrink(*train, "--resume", model=folder)
        assert code == 2 and f"had another {changed}" in err
        if not narrow:
            (folder / "config.json").write_text(json.dumps(config))
    assert shrink(*train, "--resume", model=folder)[0] == 0


def test_the_folder_computes_what_the_model_in_memory_does(shrink, tiny_folder, text_file):
    assert shrink("--no-test")[0] == 0
    model, tokenizer = mp.load_model(tiny_folder)
    calib = mp.load_tokens(tokenizer, text_file, samples=6, length=16, seed=0)
    mp.shrink(model, calib, ["neurons:25%", "blocks:1"])
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained("out")(calib).logits
        torch.testing.assert_close(found, model(calib).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--remove", "neurons:100%"), "removes nothing or everything"),
        (("--remove", "layers:2"), "cannot remove 'layers:2'"),
        (("--remove", "blocks:99"), "99 of"),
        (("--remove", "blocks:1", "--method", "obs"), "unknown way to choose blocks"),
        (("--remove", "blocks:1", "--repair", "pray"), "unknown repair 'pray'"),
        (("--remove", "blocks:1", "--damp", "-1"), "'-1' is not a number from 0 on"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(shrink, more, why):
    code, out, err = shrink(*more)
    assert code == 2 and why in err and err.count("\n") == 1 and not out
    assert not Path("out").exists() and not Path("out.partial").exists()


@pytest.mark.parametrize("at", ["second removal", "block"])
def test_what_a_stopped_run_left_is_replaced_if_asked(shrink, monkeypatch, at):
    stops = {"second removal": "after_block", "block": "_write"}[at]  # one removal is made; one block is trained

    def stop(made, *_):
        if at == "second removal" or made.errors:
            raise KeyboardInterrupt
        original(made)

    original = getattr(progress.Progress, stops)
    with monkeypatch.context() as patched:
        patched.setattr(progress.Progress, stops, stop)
        assert shrink("--repair", "reconstruct", "--no-test")[0] == 130
    Path("out.partial/unfinished/thesis.txt").write_text("years of work")
    assert "thesis.txt" in shrink("--no-test", "--overwrite")[2]
    Path("out.partial/unfinished/thesis.txt").unlink()
    assert shrink("--no-test", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    "changes",
    [{"kept": ["x"]}, {"kept": [1, 0]}, {"removed": 7}, {"removed": 1}, {"errors": {"model.layers.9": [1.0, 1.0]}}],
    ids=str,
)
def test_a_state_that_no_run_leaves_is_refused_in_a_line(shrink, monkeypatch, changes):
    """Each is valid JSON, and the files beside it are as they were."""
    original = progress.Progress._write

    def stop(made):
        original(made)
        if made.errors:
            raise KeyboardInterrupt

    plan = ("--remove", "neurons:25%", "--remove", "heads:1/2", "--repair", "reconstruct", "--no-test")
    with monkeypatch.context() as patched:
        patched.setattr(progress.Progress, "_write", stop)
        assert shrink(*plan)[0] == 130
    path = Path("out.partial/unfinished/removals.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    code, _, err = shrink(*plan, "--resume")
    assert code == 2 and "is damaged: begin anew with --overwrite" in err and err.count("\n") == 1


def test_a_finished_output_is_replaced_only_if_asked(shrink):
    assert shrink("--no-test")[0] == 0
    assert "--overwrite" in shrink("--no-test")[2]
    assert shrink("--no-test", "--overwrite")[0] == 0
