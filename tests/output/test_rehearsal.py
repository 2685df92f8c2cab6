"""What would fail after the work fails before it, with one line, and leaves nothing; and the disk has room for it."""

import json
import os
import re
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_checkpoint import BLOCKS, stopped, write_checkpoint
from tiny import tiny_tokens

import minprune as mp
from minprune.output import model_files as output
from minprune.output.model_files import check_space
from minprune.output.shards import Shards
from minprune.pipeline import checkpoint
from minprune.pipeline.journal import Journal
from minprune.pipeline.layer_pruner import LayerPruner
from minprune.training import recover as training

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
USAGE = namedtuple("usage", "total used free")


@pytest.fixture
def no_work(monkeypatch):
    """Pruning a layer and training a step are mistakes."""

    def reached(*_):
        raise AssertionError("the work was begun")

    monkeypatch.setattr(LayerPruner, "prune", reached)
    monkeypatch.setattr(training._Run, "learn", reached)


@pytest.fixture
def copied(tiny_folder, tmp_path):
    """copied(change): the tiny model's folder after change(folder); the current folder is beside it."""
    (tmp_path / "here").mkdir()
    os.chdir(tmp_path / "here")

    def make(change):
        shutil.copytree(tiny_folder, tmp_path / "model")
        change(tmp_path / "model")
        return tmp_path / "model"

    return make


def edited(name, **changes):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))

    return change


ELSEWHERE = os.path.join(tempfile.gettempdir(), "x")
FAULTS = {
    "template": edited("tokenizer_config.json", chat_template=[{"name": "../../../x", "template": "a"}]),
    "absolute": edited("tokenizer_config.json", chat_template=[{"name": ELSEWHERE, "template": "a"}]),
    "pattern": edited("minprune.json", pattern=5),
    "method": edited("minprune.json", method=["a"], pattern="50%"),
}


@pytest.mark.parametrize(
    ("command", "fault"),
    [(command, fault) for command in ("recover", "export") for fault in FAULTS]
    + [("prune", fault) for fault in FAULTS if fault not in ("pattern", "method")],  # which it does not read
)
def test_what_cannot_be_written_is_refused_before_the_work(run, copied, no_work, text_file, command, fault):
    folder = copied(FAULTS[fault])
    more = {
        "prune": ("--method", "magnitude"),
        "recover": ("--data", text_file, "--test", text_file, "--steps", 2, "--length", 16, "--test-samples", 2),
        "export": (),
    }[command]
    before = sorted(os.listdir(folder.parent))
    code, out, err = run(command, folder, *more)
    assert (code, out) == (2, "") and err.startswith("minprune: ") and err.count("\n") == 1, err
    assert (
        os.listdir() == [] and sorted(os.listdir(folder.parent)) == before and not os.path.exists(f"{ELSEWHERE}.jinja")
    )


@pytest.mark.parametrize("flag", ["output_attentions", "output_hidden_states"])
def test_a_flag_that_the_library_does_not_save_is_no_surprise_in_the_end(run, copied, flag):
    code, _, err = run(
        "prune", copied(edited("config.json", **{flag: True})), "--method", "magnitude", "--output", "out"
    )
    assert (code, err) == (0, "") or (code == 2 and err.count("\n") == 1 and "blocks are kept" not in err)
    assert os.listdir() == (["out"] if code == 0 else [])


@pytest.mark.parametrize("part", ["model_card", "_write_config", "write_tokenizer", "to_json"])
@pytest.mark.parametrize("error", [ValueError("two\nlines"), TypeError(), OSError(36, "File name too long")])
def test_whatever_part_of_the_output_cannot_be_written(tmp_path, no_work, monkeypatch, part, error):
    src = write_checkpoint(tmp_path / "src")

    def fails(*_):
        raise error

    monkeypatch.setattr(output, part, fails)
    with pytest.raises(mp.PruneError) as caught:
        mp.prune_checkpoint(src, tmp_path / "out", tiny_tokens(), "wanda")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["src"]


def test_a_name_that_is_not_utf_8_is_refused_or_written_whole(run, tiny_folder, tmp_path, text_file, no_work):
    code, out, err = run("prune", tiny_folder, "--method", "magnitude", "--output", os.fsdecode(b"caf\xe9"))
    assert (code, out) == (2, "") and "is not UTF-8" in err and err.count("\n") == 1
    assert os.listdir() == []


def test_a_calibration_file_whose_name_is_not_utf_8_is_told_in_the_output(run, tiny_folder, text_file):
    shutil.copy(text_file, b"caf\xe9.txt")
    name = os.fsdecode(b"caf\xe9.txt")
    more = ("--samples", 4, "--length", 16, "--output", "out")
    code, _, err = run("prune", tiny_folder, "--calibration", name, *more)
    assert (code, err) == (0, "")
    record = json.loads(Path("out/minprune.json").read_text())
    assert record["calibration"]["source"] == "caf\ufffd.txt" and record["command"][:2] == ["minprune", "prune"]
    for page in ("out/README.md", "out/report.html"):
        assert "caf\ufffd.txt" in Path(page).read_text()


# --- the disk


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("recipe", [None, "best"])
def test_what_is_asked_of_the_disk_is_enough_and_not_much_more(tmp_path, monkeypatch, family, recipe):
    src = write_checkpoint(tmp_path / "src", family, num_hidden_layers=3)
    used, asked = [0], []

    def weigh(folder):
        files = [path.stat() for path in folder.rglob("*") if path.is_file()]
        used.append(sum(min(file.st_size, 512 * file.st_blocks) for file in files))  # a file may have empty places

    def watched(owner, name, folder):
        real = getattr(owner, name)

        def call(*arguments):
            result = real(*arguments)
            weigh(folder(arguments))
            return result

        monkeypatch.setattr(owner, name, call)

    watched(Journal, "_save", lambda arguments: arguments[0].folder)
    watched(Shards, "write", lambda arguments: arguments[0].folder)
    watched(checkpoint, "write_model", lambda arguments: arguments[0])

    def keep(folder, model, there):
        asked.append(sum(parameter.nbytes for parameter in model.parameters()) - there)

    monkeypatch.setattr(checkpoint, "check_space", keep)
    options = {"recipe": recipe, "pattern": "60%", "test": tiny_tokens(4), "batch_size": 2}
    mp.prune_checkpoint(src, tmp_path / "out", tiny_tokens(16), **options)
    assert max(used) <= asked[0] <= 1.3 * max(used)


def test_what_is_on_the_disk_already_is_not_asked_for_again(tmp_path, monkeypatch, tiny_folder):
    model, _ = mp.load_model(tiny_folder)
    size = sum(parameter.nbytes for parameter in model.parameters())
    monkeypatch.setattr(output.shutil, "disk_usage", lambda folder: USAGE(0, 0, size - 1000))
    check_space(tmp_path, model, 1000)
    with pytest.raises(mp.PruneError, match="the model needs"):
        check_space(tmp_path, model, 999)
    monkeypatch.undo()
    src = write_checkpoint(tmp_path / "deep", num_hidden_layers=BLOCKS)
    stopped(src, tmp_path / "out", 2, monkeypatch, calib=tiny_tokens(), method="wanda")
    there = sum(
        one.nbytes for name, one in load_file(src / "model.safetensors").items() if re.search(r"\.[01]\.", name)
    )
    asked = []
    monkeypatch.setattr(checkpoint, "check_space", lambda folder, model, known: asked.append(known))
    mp.prune_checkpoint(src, tmp_path / "out", tiny_tokens(), "wanda", resume=True)
    mp.prune_checkpoint(src, tmp_path / "other", tiny_tokens(), "wanda")
    assert asked[0] - asked[1] == pytest.approx(there, abs=10_000) and there > 10_000
