"""`minprune eval` against the functions that it calls, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import minprune as mp
from minprune import files
from minprune.evaluation.last_word import grammar, last_word
from minprune.evaluation.protocol import measure

SENTENCES = (
    "The {0} goes around a planet and its light comes from the sun. While rivers carry water down to some sea, the {0} "
    "moves on and on. All of the people in the old town by the river saw it and they called it {1}."
)


pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, tiny_folder):
    model, tokenizer = mp.load_model(tiny_folder)
    mp.prune(model, None, method="magnitude", pattern="70%")
    folder = tmp_path_factory.mktemp("pruned") / "sparse"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def paragraphs(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "paragraphs.txt"
    words = ["moon", "sun", "planet", "river"]
    path.write_text("\n".join(SENTENCES.format(word, last) for word in words for last in (word, "home")))
    return path


def test_each_number_is_that_of_its_function(run, tiny_folder, pruned, paragraphs):
    code, out, err = run(
        "eval", pruned, "--text", paragraphs, "--samples", 4, "--length", 32, "--stride", 16,
        "--against", tiny_folder, "--cloze", "--passages", 4, "--json", "found.json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    row = json.loads(Path("found.json").read_text())["models"][0]
    (model, tokenizer), (dense, _) = mp.load_model(pruned), mp.load_model(tiny_folder)
    measured = measure(model, tokenizer, paragraphs, samples=4, length=32, stride=16)
    assert row["protocol"] == measured.as_dict()["protocol"] and row["x_first"] == 1
    expected = mp.divergence(model, dense, mp.load_tokens(tokenizer, paragraphs, samples=4, length=32))
    words, pairs = last_word(model, tokenizer, paragraphs, count=4), grammar(model, tokenizer)
    for found, wanted in [
        (row["perplexity"], measured.perplexity),
        (row["bits_per_byte"], measured.bits_per_byte),
        (row["against"]["kl"], expected.kl),
        (row["against"]["agreement"], expected.agreement),
        (row["cloze"]["last word"]["value"], words.value),
        (row["cloze"]["pairs"]["value"], pairs.value),
    ]:
        assert found == pytest.approx(wanted, rel=1e-6)
    for text in (f"{expected.kl:.4f}", f"{measured.bits_per_byte:.3f}", f"{pairs.value:.3f} ±{pairs.error:.3f}"):
        assert text in out
    assert "stride 16" in out and max(map(len, out.splitlines())) <= 80


def test_models_with_other_tokenizers_get_no_ratio_and_cannot_be_held_against(run, tiny_folder, pruned, paragraphs):
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(pruned)
    other.add_tokens(["planetary"])
    model, _ = mp.load_model(pruned)
    model.resize_token_embeddings(len(other), mean_resizing=False)
    model.save_pretrained("other")
    other.save_pretrained("other")
    small = ("--text", paragraphs, "--samples", 2, "--length", 16)
    code, out, _ = run("eval", tiny_folder, "other", *small)
    assert code == 0 and [line.split()[2] for line in out.splitlines() if "other " in line] == ["-"]
    code, out, err = run("eval", "other", *small, "--against", tiny_folder)
    assert (code, out) == (2, "") and "another tokenizer" in err and err.count("\n") == 1


def test_tasks_are_run_on_each_model_and_refused_before_one_is_loaded(
    run, tiny_folder, pruned, paragraphs, monkeypatch
):
    from minprune.evaluation import lm_eval as harness

    seen = []
    monkeypatch.setattr(harness, "load_tasks", lambda names: tuple(names))
    monkeypatch.setattr(
        harness,
        "run_tasks",
        lambda model, tokenizer, names, limit, shots, batch_size, progress, manager: (
            seen.append((names, limit, shots, batch_size, manager)) or [harness.TaskScore("piqa", "acc", 0.7, 0.01, 9)]
        ),
    )
    small = ("--text", paragraphs, "--samples", 2, "--length", 16)
    code, out, err = run("eval", tiny_folder, pruned, *small, "--tasks", "piqa,arc_easy", "--limit", 9, "--shots", 2)
    assert (code, err) == (0, "")
    assert seen == [(["piqa", "arc_easy"], 9, 2, 2, ("piqa", "arc_easy"))] * 2
    assert out.count("0.700 ±0.010") == 2


def test_tasks_that_cannot_be_run_are_refused_before_a_model_is_loaded(run):
    for tasks in ("none.yaml", ""):
        code, out, err = run("eval", "no-such-model", "--tasks", tasks)
        assert (code, out) == (2, "") and "task" in err and "no-such-model" not in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--limit", 3], "--tasks"),
        (["--shots", 0], "--tasks"),
        (["--cloze", "--passages", 5], "even number"),
    ],
)
def test_options_that_would_be_ignored_or_fail_later_are_refused_before_a_model_is_loaded(run, options, said):
    code, out, err = run("eval", "no-such-model", *options)
    assert (code, out) == (2, "") and said in err and "no-such-model" not in err and err.count("\n") == 1


def test_a_json_file_without_a_folder_is_refused_and_an_infinite_perplexity_is_null(run, tiny_folder, paragraphs):
    code, out, err = run("eval", tiny_folder, "--json", "none/found.json")
    assert (code, out) == (2, "") and "none/found.json" in err and err.count("\n") == 1
    model, tokenizer = mp.load_model(tiny_folder)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    model.save_pretrained("wild")
    tokenizer.save_pretrained("wild")
    small = ("--text", paragraphs, "--samples", 2, "--length", 16)
    assert run("eval", "wild", *small, "--json", "found.json")[0] == 0
    row = json.loads(Path("found.json").read_text())["models"][0]
    assert row["perplexity"] is None and row["x_first"] is None and row["nats"] > 700


def damaged(folder, name, change):
    """A copy of a model whose tensors were changed."""
    shutil.copytree(folder, name)
    tensors = load_file(Path(name) / "model.safetensors")
    change(tensors)
    save_file(tensors, Path(name) / "model.safetensors", metadata={"format": "pt"})
    return name


def test_a_model_that_cannot_be_loaded_is_refused_before_another_is_measured(run, tiny_folder, paragraphs):
    shutil.copytree(tiny_folder, "half")
    content = Path("half/model.safetensors").read_bytes()
    Path("half/model.safetensors").write_bytes(content[: len(content) // 2])
    small = ("--text", paragraphs, "--samples", 2, "--length", 16)
    for models in (("half",), ("--against", "half")):
        code, out, err = run("eval", tiny_folder, *models, *small, "--json", "found.json")
        assert (code, out) == (2, "") and "half/model.safetensors is damaged" in err and err.count("\n") == 1
        assert not Path("found.json").exists()


def test_what_was_measured_is_kept_when_a_later_model_fails(run, tiny_folder, paragraphs):
    nan = damaged(tiny_folder, "nan", lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    small = ("--text", paragraphs, "--samples", 2, "--length", 16)
    code, out, err = run("eval", tiny_folder, nan, *small, "--json", "found.json")
    assert code == 2 and "model.norm.weight of nan holds NaN" in err and err.count("\n") == 1
    rows = json.loads(Path("found.json").read_text())["models"]
    assert [row["model"] for row in rows] == [str(tiny_folder)] and f"{rows[0]['perplexity']:,.2f}" in out


def test_a_file_for_the_numbers_is_written_whole_or_not_at_all(run, tiny_folder, paragraphs, monkeypatch):
    small = ("--text", paragraphs, "--samples", 2, "--length", 16)
    for path in (".", os.devnull):
        code, out, err = run("eval", tiny_folder, *small, "--json", path)
        assert (code, out) == (2, "") and f"{path} is a folder or a device" in err and err.count("\n") == 1

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "flush", full)
    code, out, err = run("eval", tiny_folder, *small, "--json", "found.json")
    assert code == 2 and "perplexity" in out and err == "minprune: No space left on device\n"
    assert os.listdir() == []


def test_prune_and_sweep_say_how_they_measured_in_the_words_of_eval(run, tiny_folder, paragraphs):
    small = ("--length", 16, "--json", "found.json")
    assert run("eval", tiny_folder, "--text", paragraphs, "--samples", 8, *small)[0] == 0
    row = json.loads(Path("found.json").read_text())["models"][0]
    calibration = ("--calibration", paragraphs, "--samples", 4, "--length", 16)
    assert run("prune", tiny_folder, *calibration, "--test", paragraphs, "--output", "out")[0] == 0
    found = json.loads(Path("out/minprune.json").read_text())["perplexity"]
    assert {key: found["protocol"][key] for key in row["protocol"]} == row["protocol"]
    assert found["before"] == pytest.approx(row["perplexity"], rel=1e-5)
    assert "8 x 16 tokens" in Path("out/README.md").read_text()
    assert "<dt>stride</dt><dd>16</dd>" in Path("out/report.html").read_text()
    texts = ("--texts", paragraphs, "--test-samples", 8, "--methods", "magnitude", "--patterns", "50%")
    assert run("sweep", tiny_folder, "--output", "runs.jsonl", *calibration, *texts)[0] == 0
    for line in map(json.loads, Path("runs.jsonl").read_text().splitlines()):
        assert line["measured"] == {str(paragraphs): row["protocol"]}


@pytest.mark.parametrize("against", [False, True])
def test_a_model_is_gone_before_the_next_one_is_loaded(run, tiny_folder, pruned, paragraphs, monkeypatch, against):
    from minprune.cli import eval as command

    loaded: list[weakref.ref] = []
    alive: list[int] = []
    real = command.load

    def load(*arguments):
        alive.append(sum(model() is not None for model in loaded))
        pair = real(*arguments)
        loaded.append(weakref.ref(pair[0]))
        return pair

    monkeypatch.setattr(command, "load", load)
    more = ("--against", tiny_folder) if against else ()
    models = (tiny_folder, pruned, tiny_folder, pruned)
    code, _, err = run(
        "eval", *models, "--text", paragraphs, "--samples", 2, "--length", 16, "--cloze", "--passages", 4, *more
    )
    assert (code, err) == (0, "")
    assert alive == ([0, 1, 1, 1, 1] if against else [0, 0, 0, 0])


def test_tasks_bring_no_words_of_git_outside_a_repository(tiny_folder, paragraphs, tmp_path):
    """In a process of its own: what a child process writes passes by Python's sys.stderr."""
    (tmp_path / "rows.json").write_text(json.dumps([{"q": "the moon", "a": "goes", "b": "sun"}]))
    task = {
        "task": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}},
        "test_split": "test", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "output_type": "multiple_choice",
        "doc_to_choice": "{{[a, b]}}", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(json.dumps(task))
    words = ["--text", paragraphs, "--samples", "2", "--length", "16", "--tasks", tmp_path / "own.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", "minprune", "eval", tiny_folder, *words],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "GIT_CEILING_DIRECTORIES": "/"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "own" in done.stdout and "git" not in done.stderr
