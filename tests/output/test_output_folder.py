"""The output folder is complete or not there, whatever happens."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from contextlib import suppress

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import minprune as mp
from minprune import files
from minprune.files import write_text
from minprune.formats import save_model
from minprune.output import folder as output
from minprune.output.folder import OutputFolder
from minprune.output.model_files import check_space, write_model
from minprune.pipeline import checkpoint
from minprune.pipeline.journal import unfinished
from minprune.training.output import training_folder


def output_folder(path, kept=str, **more):
    return OutputFolder(path, **more).open(kept)


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


def entries(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("failing", [1, 2])
def test_the_old_output_stays_and_the_new_one_is_kept_if_it_cannot_take_its_place(tmp_path, monkeypatch, failing):
    finish(tmp_path / "out", "old")
    rename, calls = os.rename, []

    def fails(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(output, "_exchange", lambda one, other: False)
    monkeypatch.setattr(output.os, "rename", fails)
    with (
        pytest.raises(mp.PruneError, match=r"cannot rename .*\(Input/output error\): it is complete"),
        output_folder(tmp_path / "out", overwrite=True) as partial,
    ):
        (partial / "minprune.json").write_text("new")
    assert (tmp_path / "out" / "minprune.json").read_text() == "old"
    assert (tmp_path / "out.partial" / "minprune.json").read_text() == "new"
    assert entries(tmp_path) == ["out", "out.partial"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("exchange", [True, False])
def test_whenever_it_is_killed_the_old_or_the_new_output_can_be_found(tmp_path, monkeypatch, exchange):
    """Each call of the system in move() is the last one once. Without an exchange the old one may be moved aside."""
    if not exchange:
        monkeypatch.setattr(output, "_exchange", lambda one, other: False)
    real, calls, last = {name: getattr(output.os, name) for name in ("rename", "rmdir")}, [], 0

    def dying(name):
        def call(*arguments, **more):
            calls.append(name)
            if len(calls) > last:
                raise Killed
            return real[name](*arguments, **more)

        return call

    finish(tmp_path / "old", "old")
    for last in range(4):
        place = tmp_path / str(last)
        shutil.copytree(tmp_path / "old", place / "out")
        shutil.copytree(tmp_path / "old", place / "out.partial")
        (place / "out.partial" / "minprune.json").write_text("new")
        calls.clear()
        with monkeypatch.context() as patched:
            for name in real:
                patched.setattr(output.os, name, dying(name))
            with suppress(Killed):
                output.move(place / "out.partial", place / "out")
        found = {path.read_text() for path in place.rglob("minprune.json")}
        assert "new" in found
        assert (place / "out" / "minprune.json").exists() or (not exchange and found == {"old", "new"})


def test_no_moment_without_an_output_where_names_can_be_exchanged(tmp_path):
    for name in ("out", "out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    if not output._exchange(tmp_path / "out.partial", tmp_path / "out"):
        pytest.skip("this file system cannot exchange two names")
    assert (tmp_path / "out" / "name").read_text() == "out.partial"
    assert (tmp_path / "out.partial" / "name").read_text() == "out"


def test_what_a_run_needed_is_gone_before_the_output_has_its_name(tmp_path, monkeypatch):
    """A kill right after the renaming, so that nothing is tidied up any more, leaves no hidden states behind."""

    def killed(path, **_):
        raise Killed

    with pytest.raises(Killed), output_folder(tmp_path / "out") as partial:
        (partial / "unfinished" / "hidden-00001.safetensors").write_bytes(b"x" * 10_000)
        (partial / "minprune.json").write_text("{}")
        monkeypatch.setattr(output.shutil, "rmtree", killed)
    monkeypatch.undo()
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) < 100
    finish(tmp_path / "out", "new")
    assert entries(tmp_path) == ["out"] and entries(tmp_path / "out") == ["minprune.json"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_a_run_goes_on_with_stays_until_the_output_has_its_name(tmp_path, monkeypatch, moment):
    needed = {"recipe.json", "journal.jsonl", "training.state", "block-00001.safetensors", "files", "kind"}

    def killed(*_, **__):
        raise Killed

    with pytest.raises(Killed), output_folder(tmp_path / "out", kept=lambda: "all of it") as partial:
        for name in needed - {"kind"}:
            (partial / "unfinished" / name).write_text("minprune.json" if name == "files" else name)
        (partial / "minprune.json").write_text("{}")
        if moment == "before":
            monkeypatch.setattr(output, "move", killed)
        else:
            monkeypatch.setattr(output.shutil, "rmtree", killed)
    monkeypatch.undo()
    where = "out.partial" if moment == "before" else "out"
    assert entries(tmp_path) == [where] and set(os.listdir(tmp_path / where / "unfinished")) == needed
    if moment == "after":  # and it is no stranger there
        finish(tmp_path / "out", "new")
        assert entries(tmp_path / "out") == ["minprune.json"]


def test_too_little_room_is_said_before_the_work(tmp_path, tiny_folder, monkeypatch):
    model, _ = mp.load_model(tiny_folder)
    usage = namedtuple("usage", "total used free")
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, size - 1))
    with pytest.raises(mp.PruneError, match=r"needs 450 kB and .* has 450 kB left"):
        check_space(tmp_path, model)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, size))
    check_space(tmp_path, model)


def write_with_a_limit(tmp_path, tiny_folder, limit):
    """Prune in a process whose files may not grow beyond `limit` bytes: a write that really fails, on any machine."""
    command = [
        sys.executable,
        "-m",
        "minprune.cli.main",
        "prune",
        tiny_folder,
        "--method",
        "magnitude",
        "--output",
        "out",
    ]
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
    from minprune.cli.main import main

    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=200k", "none", disk]).returncode:
        pytest.skip("only root may mount a small disk; the test before this one needs no rights")
    try:
        assert main(["prune", str(tiny_folder), "--method", "magnitude", "--output", str(disk / "out")]) == 2
        said = (  # the record is counted, and so the paths in it
            rf"minprune: the model needs 5\d\d kB and {re.escape(str(disk))} has 18\d kB left: free some space or "
            r"choose another output\n"
        )
        assert re.fullmatch(said, capsys.readouterr().err)
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


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_whoever_may_read_one_file_of_an_output_may_read_all(tmp_path, tiny_folder, umask):
    """Libraries make files that are their writer's alone, and copies take the permissions of what they copy."""
    source = shutil.copytree(tiny_folder, tmp_path / "source")
    for path in source.iterdir():
        path.chmod(0o400)
    before = os.umask(umask)
    try:
        save_model(*mp.load_model(source), tmp_path / "stored")  # by safetensors itself
        with output_folder(tmp_path / "copied") as partial:
            for path in source.iterdir():
                shutil.copy(path, partial)
    finally:
        os.umask(before)
    files = [path for name in ("stored", "copied") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert len(files) > 6 and {oct(path.stat().st_mode & 0o777) for path in files} == {oct(0o666 & ~umask)}
