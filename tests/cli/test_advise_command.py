"""`minprune advise`: what it prints, that its commands are real, and the one line that each mistake gets."""

import re
import shlex
from pathlib import Path

import pytest
from safetensors import safe_open

from minprune.cli import advise, main
from minprune.compress import advice
from minprune.compress.quantize import quantizer
from minprune.methods import get_method
from minprune.patterns import pattern
from minprune.pipeline.recipes import get_recipe
from minprune.structured.removals import removals

WAYS = [tuple(cell["steps"]) for cell in advice.atlas()]


def _fake(*steps, loss=0.1, zeros=0.5, faster=None):
    return {"steps": list(steps), "dtype": "bfloat16", "loss": loss, "error": 0.01, "zeros": zeros, "faster": faster}


@pytest.mark.parametrize("model", ["smollm2", "org/name-7B", "a folder/with spaces"])
@pytest.mark.parametrize("steps", WAYS, ids=" ".join)
def test_the_commands_for_every_way_are_ones_that_the_command_line_takes(steps, model):
    """By its own parser, and the readers of what the parser leaves as text; each begins where the last one ended."""
    here = model
    lines = advise.commands_for(steps, model)
    for line in lines:
        assert line[0] == "minprune" and shlex.split(shlex.join(line)) == line
        found = main._parser().parse_args(line[1:])
        if found.command == "eval":
            assert found.models == [model, here]
            continue
        assert found.model == here
        here = found.output
        if found.command == "prune":
            get_recipe(found.recipe), get_method(found.method or "sparsegpt"), pattern(found.pattern)
        elif found.command == "quantize":
            quantizer(found.method), pattern(found.pattern)
        elif found.command == "shrink":
            removals(found.remove, found.method)
    assert [main._parser().parse_args(line[1:]).command for line in lines[-2:]] == ["export", "eval"]


def test_its_commands_make_a_model_of_the_bytes_that_it_said(run, tiny_folder, text_file, monkeypatch):
    """Two steps and the export, really run; the words that only shorten the calibration are added."""
    made = _fake("prune sparsegpt 50%", "quantize gptq 4")
    monkeypatch.setattr(advice, "atlas", lambda: [_fake(loss=0.0, zeros=0.0, faster=1.0), made])
    code, out, err = run("advise", tiny_folder, "--bytes", "150kB")
    assert code == 0, err
    lines = [shlex.split(line) for line in re.findall(r"^  (minprune .*)$", out, re.M)]
    assert [line[1] for line in lines] == ["prune", "quantize", "export", "eval"]
    for line in lines[:3]:
        short = ["--calibration", text_file, "--samples", 4, "--length", 16, "--no-test"] if line[1] != "export" else []
        code, _, err = run(*line[1:], *short)
        assert code == 0, err
    with safe_open(Path(lines[2][-1]) / "stored.safetensors", "pt") as file:
        held = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118
    said = advice.advise(_dense(tiny_folder), size=150e3).fits[0].bytes
    assert held == pytest.approx(said, rel=0.02)  # rounding makes a few more zeros


def _dense(folder):
    import minprune as mp

    return mp.load_model(folder)[0]


def test_it_says_what_fits_best_first_what_more_would_buy_and_whose_figures_they_are(run, tiny_folder, monkeypatch):
    ways = [_fake("quantize rtn 2", loss=1.0, zeros=0.3), _fake("quantize gptq 3", loss=0.3), _fake("quantize gptq 8")]
    monkeypatch.setattr(advice, "atlas", lambda: [_fake(loss=0.0, zeros=0.0), *ways])
    code, out, err = run("advise", tiny_folder, "--bytes", "0.11MB")
    assert code == 0, err
    assert out.index("gptq 3") < out.index("rtn 2") < out.index("beyond") < out.index("gptq 8")
    assert "0.300 ± 0.010" in out and "1.35" in out and "SmolLM2's" in out and "larger models lose less" in out
    assert "--bits 3" in out and "--bits 2" not in out


def test_a_speed_is_taken_from_this_machine_and_the_measured_ratio(run, tiny_folder, monkeypatch):
    fast = _fake("prune magnitude 50%", faster=1.5)
    dense, untimed = _fake(loss=0.0, zeros=0.0, faster=1.0), _fake("quantize rtn 4", loss=0.01)
    monkeypatch.setattr(advice, "atlas", lambda: [dense, fast, untimed])
    monkeypatch.setattr(advise, "dense_rate", lambda model: 20.0)
    code, out, err = run("advise", tiny_folder, "--tokens-per-second", 30)
    assert code == 0 and "30.0" in out and "--sparse" in out, err
    assert "not listed: 1 ways" in " ".join(out.split()) and "rtn" not in out and "beyond" not in out
    assert run("advise", tiny_folder, "--tokens-per-second", 31)[0] == 2
    code, _, err = run("advise", tiny_folder, "--tokens-per-second", 20)
    assert code == 2 and "keep it dense" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--bytes 120MB"),
        (("--bytes", "12XB"), "24GB"),
        (("--bytes", "-3MB"), "24GB"),
        (("--bytes", "nanMB"), "24GB"),
        (("--bytes", "60"), "24GB"),
        (("--bytes", "1B"), "24GB"),
        (("--bytes", "1kB"), "the smallest is"),
        (("--bytes", "1GB"), "keep it dense"),
        (("--tokens-per-second", "0"), "above 0"),
        (("--tokens-per-second", "nan"), "above 0"),
        (("--tokens-per-second", "fast"), "not a number"),
    ],
    ids=" ".join,
)
def test_a_mistake_gets_one_line_with_the_remedy(run, tiny_folder, words, said):
    code, out, err = run("advise", tiny_folder, *words)
    assert (code, out, err.count("\n")) == (2, "", 1) and said in err, err


def test_the_speed_of_a_model_is_measured(tiny_folder):
    assert 1 < advise.dense_rate(_dense(tiny_folder)) < 1e5
