"""Sweeps: each run is what prune and perplexity give by themselves, and a sweep that was stopped anywhere goes on."""

import json
import math
import random
import re

import numpy as np
import pytest

import minprune as mp
from minprune.cli.main import main
from minprune.sweep import sweep as module
from minprune.sweep.results import read_runs, summarise

METHODS, PATTERNS, SEEDS = ("magnitude", "wanda", "sparsegpt"), ("50%", "2:4"), (0, 7)
CELLS = [("dense", "", None)] + [
    (method, pattern, None if method == "magnitude" else seed)
    for seed in SEEDS
    for pattern in PATTERNS
    for method in METHODS
    if method != "magnitude" or seed == SEEDS[0]
]


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return mp.load_model(tiny_folder)


@pytest.fixture
def run(tiny, text_file, tmp_path):
    """run(...): the whole small sweep into tmp_path / "runs.jsonl", unless the arguments say otherwise."""

    def run(path=None, methods=METHODS, patterns=PATTERNS, seeds=SEEDS, **changes):
        usual = {"name": "tiny", "calibration": str(text_file), "samples": 6, "length": 32, "test_samples": 3}
        given = usual | {"texts": [str(text_file)]} | changes
        return module.sweep(*tiny, path or tmp_path / "runs.jsonl", methods, patterns, seeds, **given)

    return run


def test_each_run_is_what_prune_and_perplexity_give_by_themselves(run, tmp_path, tiny_folder, text_file):
    runs = run()
    assert [(r["method"], r["pattern"], r["seed"]) for r in runs] == CELLS
    for found in runs:
        model, tokenizer = mp.load_model(tiny_folder)
        zeros, error = 0.0, None
        if found["method"] != "dense":
            seed = found["seed"]
            calib = None if seed is None else mp.load_tokens(tokenizer, text_file, "train", 6, 32, seed)
            report = mp.prune(model, calib, found["method"], found["pattern"])
            errors = [row.error for row in report.layers]
            zeros, error = report.sparsity, None if seed is None else np.median(errors)
        expected = mp.perplexity(model, mp.load_tokens(tokenizer, text_file, "test", 3, 32))
        assert found["perplexity"][str(text_file)] == pytest.approx(expected, rel=1e-5)
        assert found["relative"][str(text_file)] == pytest.approx(expected / found["dense"][str(text_file)], rel=1e-5)
        assert found["zeros"] == pytest.approx(zeros, abs=1e-5)
        assert found["error"] == (None if error is None else pytest.approx(error, rel=1e-5))
    assert read_runs(tmp_path / "runs.jsonl") == runs


def test_two_texts_are_measured_each(run, text_file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("rivers carry the moon down to the sun " * 60)
    runs = run(methods=["wanda"], patterns=["50%"], seeds=[0], texts=[str(text_file), str(other)])
    for found in runs:
        assert set(found["perplexity"]) == set(found["relative"]) == {str(text_file), str(other)}
        assert found["perplexity"][str(text_file)] != found["perplexity"][str(other)]


def test_the_model_is_left_as_it_came(run, tiny):
    before = {name: tensor.clone() for name, tensor in tiny[0].state_dict().items()}
    run(patterns=["80%"])
    for name, tensor in tiny[0].state_dict().items():
        assert tensor.equal(before[name]), name


def test_a_recipe_stands_among_the_methods_and_leaves_the_model_as_it_came(run, tiny_folder, text_file):
    _, best, wanda = run(methods=["best", "wanda"], patterns=["50%"], seeds=[3])
    assert (best["method"], best["seed"]) == ("best", 3)
    for found, which in ((best, {"recipe": "best"}), (wanda, {"method": "wanda"})):
        model, tokenizer = mp.load_model(tiny_folder)
        mp.prune(model, mp.load_tokens(tokenizer, text_file, "train", 6, 32, 3), pattern="50%", **which)
        expected = mp.perplexity(model, mp.load_tokens(tokenizer, text_file, "test", 3, 32))
        assert found["perplexity"][str(text_file)] == pytest.approx(expected, rel=1e-5), which


@pytest.mark.parametrize("attempt", range(4))
def test_a_sweep_killed_at_any_byte_goes_on_and_repeats_nothing(run, tmp_path, monkeypatch, attempt):
    path = tmp_path / "runs.jsonl"
    numbers = [(r["perplexity"], r["error"]) for r in run(tmp_path / "whole.jsonl")]
    run()
    content = path.read_bytes()
    cut = random.Random(attempt).randrange(len(content)) if attempt else content.index(b"\n") + 1
    path.write_bytes(content[:cut])
    complete = content[:cut].count(b"\n")
    pruned = []

    def prune(model, calib, method, pattern, **more):
        pruned.append((method, pattern))
        return mp.prune(model, calib, method, pattern, **more)

    monkeypatch.setattr(module, "prune", prune)
    assert [(r["perplexity"], r["error"]) for r in run()] == numbers
    assert len(pruned) == len(CELLS) - max(complete, 1)  # the dense run prunes nothing
    assert path.read_bytes()[:cut].count(b"\n") == complete and path.read_bytes().startswith(
        b"\n".join(content.split(b"\n")[:complete])
    )
    assert [(r["method"], r["pattern"], r["seed"]) for r in read_runs(path)] == CELLS


def test_a_file_grows_over_several_calls(run, tmp_path):
    run(methods=["wanda"], seeds=[0])
    first = (tmp_path / "runs.jsonl").read_text()
    assert len(run(methods=["wanda", "sparsegpt"], seeds=[0, 7])) == 9  # dense, and 2 methods x 2 patterns x 2 seeds
    assert (tmp_path / "runs.jsonl").read_text().startswith(first)
    assert len(read_runs(tmp_path / "runs.jsonl")) == 9


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"samples": 5}, "calibration samples 6 instead of 5"),
        ({"length": 16}, "calibration length 32 instead of 16"),
        ({"test_samples": 2}, "samples 3 instead of 2"),
        ({"name": "another"}, "model tiny instead of another"),
    ],
)
def test_a_file_of_another_protocol_is_refused_by_name_and_left_alone(run, tmp_path, changes, named):
    run(methods=["magnitude"])
    before = (tmp_path / "runs.jsonl").read_bytes()
    with pytest.raises(mp.PruneError, match=named):
        run(**changes)
    assert (tmp_path / "runs.jsonl").read_bytes() == before


def test_another_calibration_text_under_the_same_name_is_refused(run, tmp_path):
    """Runs of one seed and of another would be averaged, though they were calibrated on different texts."""
    text = tmp_path / "calibration.txt"
    text.write_text("rivers carry the moon down to the sun " * 60)
    run(methods=["wanda"], patterns=["50%"], seeds=[0], calibration=str(text))
    before = (tmp_path / "runs.jsonl").read_bytes()
    text.write_text("the sun comes down to some sea and its light " * 60)
    with pytest.raises(mp.PruneError, match=r"other calibration windows of seed 0.*calibration\.txt has changed"):
        run(methods=["wanda"], patterns=["50%"], seeds=[7], calibration=str(text))
    assert (tmp_path / "runs.jsonl").read_bytes() == before


def test_other_weights_under_the_same_name_are_refused(run, tiny):
    run(methods=["magnitude"])
    with pytest.raises(mp.PruneError, match=r"weights \w{12} instead of \w{12}"):
        weight = tiny[0].model.norm.weight.data
        weight[0] += 1
        try:
            run(methods=["magnitude"])
        finally:
            weight[0] -= 1


def test_runs_without_the_protocol_of_their_perplexity_are_read_and_not_made_again(run, tmp_path, caplog):
    """Files from before it was recorded go on."""
    path = tmp_path / "runs.jsonl"
    before = run(methods=["magnitude"])
    path.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "measured"}) + "\n" for r in before))
    caplog.set_level("INFO", "minprune")
    after = run(methods=["magnitude"])
    assert not caplog.messages and [r["perplexity"] for r in after] == [r["perplexity"] for r in before]
    assert "measured" in before[0] and "measured" not in after[0] and len(summarise(after)) == len(before)


@pytest.mark.parametrize("content", ["my notes", "my notes\n", '{"method": "wanda"}\n', "[]\n", "\n"])
def test_a_file_that_is_no_sweeps_is_refused_and_left_alone(run, tmp_path, content):
    (tmp_path / "runs.jsonl").write_text(content)
    with pytest.raises(mp.PruneError, match=r"line 1 of .* is not a run of a sweep"):
        run()
    assert (tmp_path / "runs.jsonl").read_text() == content


def test_a_run_that_fails_is_told_and_the_others_are_made(run, tmp_path, caplog):
    caplog.set_level("INFO", "minprune")
    runs = run(methods=["magnitude"], patterns=["block48:50%", "50%"])
    assert [("failed" in r) for r in runs] == [False, True, False]
    assert "needs sides that 48 divides" in runs[1]["failed"] and runs[1]["failed"] in caplog.messages[1]
    assert [r["pattern"] for r in read_runs(tmp_path / "runs.jsonl")] == ["", "50%"]
    assert [row.pattern for row in summarise(runs)] == ["", "50%"]


def test_mistakes_show_before_anything_is_measured(run, tmp_path):
    for changes, match in [
        ({"methods": ["wanda", "wander"]}, "unknown method 'wander'"),
        ({"patterns": ["50%", "5:4"]}, "5:4"),
        ({"seeds": []}, "at least one method, one pattern and one seed"),
        ({"texts": ["nowhere.txt"]}, "no text 'nowhere.txt'"),
        ({"texts": []}, "at least one text to measure on"),
        ({"methods": "wander"}, "unknown method 'wander'"),
        ({"patterns": "5:4"}, "5:4"),
        ({"texts": "nowhere.txt"}, "no text 'nowhere.txt'"),
        ({"seeds": [0.5]}, "seeds is .0.5.: it must be a list, each of it a whole number"),
        ({"seeds": [-1]}, "seed -1 is negative"),
        ({"methods": [mp.METHODS["wanda"]]}, "each of it a text"),
    ]:
        with pytest.raises(mp.PruneError, match=match):
            run(**changes)
    assert not (tmp_path / "runs.jsonl").exists()


def test_means_and_spreads_are_numpys():
    values = [3.0, 4.5, 9.0]
    runs = [
        {
            "method": method,
            "pattern": "50%",
            "seed": seed,
            "perplexity": {"a": 2 * value},
            "relative": {"a": value},
            "zeros": 0.5,
            "error": None if method == "magnitude" else value / 100,
            "seconds": {"processor": seed},
        }
        for method, some in (("magnitude", values[:1]), ("wanda", values))
        for seed, value in enumerate(some)
    ]
    single, several = summarise(runs)
    assert (single.method, single.runs, single.spread, single.error) == ("magnitude", 1, {"a": None}, None)
    assert several.runs == 3 and several.error == pytest.approx(np.mean(values) / 100)
    assert several.perplexity["a"] == pytest.approx(2 * np.mean(values))
    assert several.relative["a"] == pytest.approx(np.mean(values))
    assert several.spread["a"] == pytest.approx(np.std(values, ddof=1))
    assert math.isclose(several.seconds, 1.0)


def test_the_command_prints_a_table_and_goes_on_from_its_file(tiny_folder, text_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text(text_file.read_text())
    command = ["sweep", str(tiny_folder), "--output", "runs.jsonl", "--calibration", "t.txt", "--texts", "t.txt"]
    command += ["--samples", "6", "--length", "32", "--test-samples", "3", "--methods", "magnitude,wanda"]
    assert main([*command, "--seeds", "0,1"]) == 0
    out, err = capsys.readouterr()
    lines = {tuple(line.split()[:2]): line for line in out.splitlines() if line}
    runs = {(r["method"], r["pattern"], r["seed"]): r for r in map(json.loads, (tmp_path / "runs.jsonl").open())}
    assert len(runs) == 1 + 2 + 4 and err.count("pruned in") == 7
    relative = [runs["wanda", "2:4", seed]["relative"]["t.txt"] for seed in (0, 1)]
    assert f"{np.mean(relative):.2f} ± {np.std(relative, ddof=1):.2f}" in lines["wanda", "2:4"]
    assert f"{runs['magnitude', '50%', None]['perplexity']['t.txt']:.1f}" in lines["magnitude", "50%"]
    assert max(map(len, out.splitlines())) <= 80
    assert main([*command, "--seeds", "0"]) == 0  # all there
    assert "pruned in" not in capsys.readouterr().err
    assert main([*command, "--dtype", "bfloat16"]) == 2
    assert "dtype float32 instead of bfloat16" in capsys.readouterr().err
    assert main([*command, "--patterns", "block48:50%"]) == 2
    assert "2 of 3 runs failed, the first is magnitude block48:50%" in capsys.readouterr().err


def test_no_word_of_the_table_is_broken_at_80_columns(capsys, monkeypatch):
    """Two texts, ruined models and the longest names: what is wider than the terminal would be folded."""
    from minprune.cli import sweep as command

    monkeypatch.setenv("COLUMNS", "80")
    values = {"wikipedia": 2884.83, "news": 161234.5}
    runs = [
        {
            "method": method,
            "pattern": "50%:layer",
            "seed": seed,
            "perplexity": {text: value + seed for text, value in values.items()},
            "relative": {text: value * (1 + seed / 100) / 7 for text, value in values.items()},
            "zeros": 0.5,
            "error": 0.1234,
            "seconds": {"processor": 1234.0},
        }
        for method in ("magnitude", "sparsegpt+swaps")
        for seed in (0, 1)
    ]
    monkeypatch.setattr("minprune.sweep.sweep.sweep", lambda *args, **options: runs)
    monkeypatch.setattr(command, "load", lambda *place: (None, None))
    assert main(["sweep", "tiny", "--output", "runs.jsonl"]) == 0
    out = capsys.readouterr().out
    for text in values:
        assert f"perplexity on {text}\n" in out
    for line in (line for line in out.splitlines() if line.startswith(("magnitude", "sparsegpt+swaps"))):
        assert re.fullmatch(r"\S+ +50%:layer +2 +[\d,.]+ +[\d,.]+ ± [\d,.]+ +0\.1234 +1234", line.strip()), line
    for word in ("magnitude", "sparsegpt+swaps", "50%:layer", "2,885", "161,235"):
        assert word in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "wonder"], "unknown method 'wonder'"),
        (["--methods", "wand"], "or a recipe: best"),
        (["--patterns", "2:4,half"], "half"),
        (["--seeds", "0,-1"], "'-1' is not a whole number"),
        ([], "--output"),
    ],
)
def test_a_mistake_of_the_command_line_is_one_line(arguments, said, tiny_folder, tmp_path, capsys):
    output = ["--output", str(tmp_path / "runs.jsonl")] if arguments else []
    assert main(["sweep", str(tiny_folder), *output, *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_one_name_is_a_list_of_one_and_a_seed_may_be_numpys(run, text_file, tmp_path):
    given = {"methods": ["wanda"], "patterns": ["2:4"], "seeds": [7], "texts": [str(text_file)]}
    expected = [row["perplexity"] for row in run(**given)]
    other = tmp_path / "other.jsonl"
    again = {"methods": "wanda", "patterns": "2:4", "seeds": np.array([7]), "texts": str(text_file)}
    assert [row["perplexity"] for row in run(other, **again)] == expected
    assert [row["seed"] for row in read_runs(other)] == [None, 7]
