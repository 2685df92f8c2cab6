"""The output folder is complete or not there, whatever happens."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import minprune as mp
from minprune import checkpoint, files, output
from minprune.files import write_text
from minprune.journal import unfinished
from minprune.output import check_space, output_folder, write_model
from minprune.training.output import training_folder


def finish(path, content="{}"):
    with output_folder(path, overwrite=path.exists()) as partial:
        (partial / "minprune.json").write_text(content)


def test_a_written_model_loads_with_equal_logits(tmp_path, tiny_folder, text_file):
    model, tokenizer = mp.load_model(tiny_folder)
    calib = mp.load_tokens(tokenizer, text_file, samples=4, length=32, seed=0)
    report = mp.prune(model, calib, method="sparsegpt", pattern="2:4")
    with output_folder(tmp_path / "out") as partial:
        write_model(partial, model, tokenizer, report.as_dict())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=calib).logits, model(input_ids=calib).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("the moon") == tokenizer.encode("the moon")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "model.safetensors",
        "README.md",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "minprune.json",
    } <= files
    record = json.loads((tmp_path / "out" / "minprune.json").read_text())
    assert [row["name"] for row in record["layers"]] == [layer.name for layer in mp.find_layers(model)]
    assert os.listdir(tmp_path) == ["out"]


def test_the_name_appears_only_when_the_block_has_ended(tmp_path):
    with output_folder(tmp_path / "a" / "out") as partial:
        assert partial.name == "out.partial" and partial.is_dir()
        assert not (tmp_path / "a" / "out").exists()
        (partial / "file").write_text("1")
    assert (tmp_path / "a" / "out" / "file").read_text() == "1" and not partial.exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_half_written_stays_and_the_old_output_does(tmp_path, error):
    finish(tmp_path / "out", "old")
    with pytest.raises(error), output_folder(tmp_path / "out", overwrite=True) as partial:
        (partial / "model.safetensors").write_bytes(b"half")
        raise error
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out" / "minprune.json").read_text() == "old"


def test_a_finished_output_is_replaced_only_when_asked(tmp_path):
    finish(tmp_path / "out", "old")
    with pytest.raises(mp.PruneError, match=r"out exists already.*--overwrite"), output_folder(tmp_path / "out"):
        pass
    finish(tmp_path / "out", "new")
    assert (tmp_path / "out" / "minprune.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_may_become_the_output(tmp_path):
    (tmp_path / "out").mkdir()
    with output_folder(tmp_path / "out") as partial:
        (partial / "minprune.json").write_text("new")
    assert (tmp_path / "out" / "minprune.json").exists() and os.listdir(tmp_path) == ["out"]


def test_what_minprune_did_not_write_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(mp.PruneError, match="other things"), output_folder(tmp_path, overwrite=True):
        pass
    with (
        pytest.raises(mp.PruneError, match=r"thesis\.txt is a file"),
        output_folder(tmp_path / "thesis.txt", overwrite=True),
    ):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_folder_that_another_run_is_writing_is_left_alone_unless_overwritten(tmp_path):
    killed = output_folder(tmp_path / "out")
    (killed.__enter__() / "shard").write_text("theirs")
    with pytest.raises(mp.PruneError, match=r"out\.partial is in the way.*overwrite"), output_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out.partial" / "shard").read_text() == "theirs"
    with output_folder(tmp_path / "out", overwrite=True) as partial:
        assert not (partial / "shard").exists()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("folder", [output_folder, unfinished, training_folder])
def test_a_partial_folder_that_minprune_did_not_make_is_never_removed(tmp_path, folder):
    thesis = tmp_path / "out.partial" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with (
        pytest.raises(mp.PruneError, match=r"out\.partial is in the way.*move it"),
        folder(tmp_path / "out", overwrite=True),
    ):
        pass
    assert thesis.read_text() == "years of work"


def test_a_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "flush", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "found.json", "{}")
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    started = False
    with (
        pytest.raises(mp.PruneError, match=r"cannot write to .*file \(Not a directory\)"),
        output_folder(tmp_path / "file" / "out"),
    ):
        started = True
    assert not started


def test_the_old_output_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    finish(tmp_path / "out", "old")
    rename, calls = os.rename, []

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(output.os, "rename", second_fails)
    with pytest.raises(OSError, match="Input/output"), output_folder(tmp_path / "out", overwrite=True):
        pass
    assert (tmp_path / "out" / "minprune.json").read_text() == "old" and os.listdir(tmp_path) == ["out"]


def test_too_little_room_is_said_before_the_work(tmp_path, tiny_folder, monkeypatch):
    model, _ = mp.load_model(tiny_folder)
    usage = namedtuple("usage", "total used free")
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, size - 1))
    with pytest.raises(mp.PruneError, match=r"needs 0\.4 MB and .* has 0\.4 MB left"):
        check_space(tmp_path, model)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, size))
    check_space(tmp_path, model)


def write_with_a_limit(tmp_path, tiny_folder, limit):
    """Prune in a process whose files may not grow beyond `limit` bytes: a write that really fails, on any machine."""
    command = [sys.executable, "-m", "minprune.cli", "prune", tiny_folder, "--method", "magnitude", "--output", "out"]
    return subprocess.run(
        [str(part) for part in command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


def test_a_write_that_fails_gives_one_line_and_leaves_nothing(tmp_path, tiny_folder):
    done = write_with_a_limit(tmp_path, tiny_folder, 100_000)  # the weights have 450 kB
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("minprune: cannot write the model to ") and done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_full_disk_gives_one_line_and_what_is_finished_can_go_on(tmp_path, tiny_folder, monkeypatch, capsys):
    from minprune.cli import main

    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=200k", "none", disk]).returncode:
        pytest.skip("only root may mount a small disk; the test before this one needs no rights")
    try:
        assert main(["prune", str(tiny_folder), "--method", "magnitude", "--output", str(disk / "out")]) == 2
        assert capsys.readouterr().err == (
            f"minprune: the model needs 0.4 MB and {disk} has 0.2 MB left: free some space or choose another output\n"
        )
        monkeypatch.setattr(checkpoint, "check_space", lambda folder, model, there: None)  # it fills up during the run
        prune = ["prune", str(tiny_folder), "--method", "magnitude", "--output", str(disk / "out")]
        assert main(prune) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"minprune: cannot write the model to {disk} (") and error.count("\n") == 1
        assert "No space left on device" in error and "1 of 2 blocks are kept" in error
        assert os.listdir(disk) == ["out.partial"]
        subprocess.run([mount, "-o", "remount,size=2m", disk], check=True)
        assert main([*prune, "--resume"]) == 0 and os.listdir(disk) == ["out"]
        assert main([*prune[:-1], str(tmp_path / "plain")]) == 0
        for path in (tmp_path / "plain").glob("*.safetensors"):
            assert path.read_bytes() == (disk / "out" / path.name).read_bytes()
    finally:
        subprocess.run(["umount", disk], check=True)
