"""tokenizer.py: a text has the same tokens each time, and a tokenizer is written as it was read."""

import json
import shutil
import time

import pytest
import torch

import minprune as mp
from minprune.formats import save_model
from minprune.load import load_tokenizer
from minprune.models import tokenizer as module
from minprune.output.folder import OutputFolder
from minprune.output.model_files import write_model


@pytest.fixture
def dropping(tiny_folder, tmp_path):
    """A function from a dropout to the tiny model's folder with it."""

    def made(value):
        folder = tmp_path / f"dropout-{value}"
        shutil.copytree(tiny_folder, folder)
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"]["dropout"] = value
        (folder / "tokenizer.json").write_text(json.dumps(content))
        return folder

    return made


def dropout_in(folder):
    return json.loads((folder / "tokenizer.json").read_text())["model"]["dropout"]


@pytest.mark.parametrize("value", [None, 0.0, 0.1, 0.5, 1.0])
def test_dropout_changes_no_window_and_stays_in_what_is_written(dropping, tiny_folder, text_file, tmp_path, value):
    folder = dropping(value)
    bare, (model, tokenizer) = mp.load_model(tiny_folder)[1], mp.load_model(folder)
    expected = mp.load_tokens(bare, text_file, samples=4, length=16, seed=0)
    for each in (tokenizer, load_tokenizer(folder, folder)):
        assert torch.equal(mp.load_tokens(each, text_file, samples=4, length=16, seed=0), expected)
    report = mp.prune(model, expected, method="magnitude", pattern="50%")
    with OutputFolder(tmp_path / "out").open() as partial:
        write_model(partial, model, tokenizer, report.as_dict())
    save_model(model, tokenizer, tmp_path / "exported")
    for written in (tmp_path / "out", tmp_path / "exported"):
        assert dropout_in(written) == value
    assert torch.equal(mp.load_tokens(tokenizer, text_file, samples=4, length=16, seed=0), expected)


def test_a_tokenizer_that_breaks_down_on_a_text_is_given_up(tiny_folder, tmp_path):
    folder = tmp_path / "endless"
    shutil.copytree(tiny_folder, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    expression = {"Regex": "(a|a|aa)+$"}  # its library stops after ten million steps
    content["pre_tokenizer"] = {"type": "Split", "pattern": expression, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "text.txt").write_text("aaaaaaaaaaaaaaaaaaaaaaaaaaaaab " * 200)
    with pytest.raises(mp.PruneError, match="the tokenizer breaks down on this text"):
        mp.load_tokens(load_tokenizer(folder, folder), tmp_path / "text.txt", samples=4, length=16)


def test_a_tokenizer_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.2)
    with pytest.raises(mp.PruneError, match=r"has not split 4 characters in \d+ s: its tokenizer.json"):
        module.tokenize(lambda text: time.sleep(20), "text")


def test_what_a_tokenizer_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        module.tokenize(lambda text: 1 / 0, "a")
    assert module.tokenize(lambda text, more: text + more, "a", more="b") == "ab"
