"""Two processes on one output: the second is told who is writing, and touches nothing; who was killed is replaced."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import minprune as mp
from minprune.output.folder import OutputFolder
from minprune.output.lock import absolute, lock
from minprune.pipeline.journal import unfinished
from minprune.sweep.results import read_runs
from minprune.sweep.sweep import sweep
from minprune.training.output import training_folder


def output_folder(path, kept=str, **more):
    return OutputFolder(path, **more).open(kept)


FOLDERS = {"output_folder": output_folder, "unfinished": unfinished, "training_folder": training_folder}
OWNER = """
import sys
from importlib import import_module

homes = {"output_folder": "output.folder", "unfinished": "pipeline.journal", "training_folder": "training.output"}
home = import_module(f"minprune.{homes[sys.argv[1]]}")
plain = sys.argv[1] == "output_folder"
with home.OutputFolder(sys.argv[2]).open() if plain else getattr(home, sys.argv[1])(sys.argv[2]) as made:
    (getattr(made, "folder", made) / "shard").write_text("theirs")
    print("ready", flush=True)
    sys.stdin.readline()
"""


def start(*command, **more):
    """A process that has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", *map(str, command)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **more,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def owner(tmp_path):
    """owner(kind): a process that is writing tmp_path / "out" until it gets a line; killed in the end."""
    running = []

    def begin(kind):
        running.append(start(OWNER, kind, tmp_path / "out"))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.wait()


def everything(folder):
    """Path, kind, content and time of change of all below a folder."""
    return {
        path: (path.lstat().st_mode, path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_second_process_is_told_who_is_writing_and_touches_nothing(tmp_path, owner, kind):
    first = owner(kind)
    (tmp_path / "link").symlink_to(tmp_path)
    before = everything(tmp_path)
    said = rf"another run is writing .*/out, process {first.pid} since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d: wait"
    for name, folder in FOLDERS.items():
        for more in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(mp.PruneError, match=said), folder(tmp_path / "link" / "out", **more):
                raise AssertionError(f"two at once: {kind} and {name}")
    assert everything(tmp_path) == before
    first.communicate("go on\n")
    assert first.returncode == 0
    assert (tmp_path / "out" / "shard").read_text() == "theirs"
    assert sorted(os.listdir(tmp_path)) == ["link", "out"]


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_killed_owner_is_replaced_at_once(tmp_path, owner, kind):
    first = owner(kind)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (tmp_path / "out.partial" / "shard").exists()
    before = everything(tmp_path / "out.partial")
    with (
        pytest.raises(mp.PruneError, match=r"out\.partial is in the way: a run was stopped"),
        FOLDERS[kind](tmp_path / "out"),
    ):
        pass
    others = [other for other in FOLDERS if other != kind and other != "output_folder"]
    for other in others:
        with (
            pytest.raises(mp.PruneError, match="was left by another command"),
            FOLDERS[other](tmp_path / "out", resume=True),
        ):
            pass
    assert everything(tmp_path / "out.partial") == before
    with pytest.raises(ZeroDivisionError), FOLDERS[kind](tmp_path / "out", resume=True):
        raise ZeroDivisionError
    assert everything(tmp_path / "out.partial") == before  # what a run did not make it does not remove
    with FOLDERS[kind](tmp_path / "out", resume=True):
        pass
    assert (tmp_path / "out" / "shard").read_text() == "theirs" and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("left", ["nothing", "empty", "torn"])
@pytest.mark.parametrize("more", [{}, {"overwrite": True}, {"resume": True}], ids=["", "overwrite", "resume"])
def test_who_was_killed_before_it_could_say_what_it_was_is_in_nobodys_way(tmp_path, left, more):
    work = tmp_path / "out.partial" / "unfinished"
    (work.parent if left == "nothing" else work).mkdir(parents=True)
    if left == "torn":
        (work / "kind.tmp").write_text("pr")
    for folder in FOLDERS.values():
        with folder(tmp_path / "out", **more):
            pass
        assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == []
        (tmp_path / "out").rmdir()


def test_a_stale_lock_file_and_nonsense_in_it_block_nobody(tmp_path):
    (tmp_path / ".out.lock").write_bytes(b"\xff no pid")
    with lock(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_or_a_partial_that_is_a_link_is_not_followed(tmp_path):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "unfinished").mkdir()
    (thesis / "chapter").write_text("years of work")
    (tmp_path / "out.partial").symlink_to(thesis)
    for more in ({}, {"overwrite": True}, {"resume": True}):
        for folder in FOLDERS.values():
            with pytest.raises(mp.PruneError, match="no such run left it"), folder(tmp_path / "out", **more):
                pass
    assert (thesis / "chapter").read_text() == "years of work" and os.path.islink(tmp_path / "out.partial")
    (tmp_path / ".other.lock").symlink_to(thesis / "chapter")
    with pytest.raises(mp.PruneError, match="cannot write"), output_folder(tmp_path / "other"):
        pass
    assert (thesis / "chapter").read_text() == "years of work"


def test_the_owner_may_take_its_lock_again_and_another_thread_may_not(tmp_path):
    refused = []

    def intrude():
        try:
            with lock(tmp_path / "out"):
                pass
        except mp.PruneError as error:
            refused.append(str(error))

    with lock(tmp_path / "out"), lock(tmp_path / "out"):
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
    assert len(refused) == 1 and str(os.getpid()) in refused[0]
    intrude()
    assert len(refused) == 1


RACE = """
import os, sys, time
from pathlib import Path
from minprune.errors import PruneError
from minprune.output.lock import lock

place, inside = Path(sys.argv[1]), Path(sys.argv[1] + ".inside")
print("ready", flush=True)
sys.stdin.readline()
entered = 0
end = time.monotonic() + 1.5
while time.monotonic() < end:
    try:
        with lock(place):
            os.mkdir(inside)  # fails if another is in here
            entered += 1
            os.rmdir(inside)
    except PruneError:
        pass
print(entered)
"""


def test_no_two_are_ever_in_although_the_lock_file_comes_and_goes(tmp_path):
    racers = [start(RACE, tmp_path / "deep" / "out") for _ in range(3)]
    (tmp_path / "deep").mkdir()
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    counts = [int(racer.communicate()[0]) for racer in racers]
    assert all(racer.returncode == 0 for racer in racers)
    assert sum(counts) > 10
    assert os.listdir(tmp_path / "deep") == []


def test_folders_made_for_a_run_that_fails_are_gone_again(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ZeroDivisionError), output_folder(tmp_path / "a" / "b" / "c" / "out"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == []


@pytest.mark.parametrize("name", ["~nosuchuser/x", "circle/out", os.fsdecode(b"caf\xe9")])
def test_a_path_that_leads_nowhere_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.symlink("circle", tmp_path / "circle")
    for use in (output_folder, unfinished, training_folder, lambda path: lock(absolute(path))):
        with pytest.raises(mp.PruneError) as caught, use(name):
            pass
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["circle"]


# --- whole commands


def command(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "minprune.cli.main", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(found, process):
    end = time.monotonic() + 60
    while not found() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def test_a_second_prune_with_overwrite_or_resume_leaves_the_first_alone(tmp_path, tiny_folder, text_file, run):
    (tmp_path / "long.txt").write_text(text_file.read_text() * 8)
    arguments = ["prune", tiny_folder, "--method", "sparsegpt", "--calibration", "long.txt", "--samples", 200]
    arguments += ["--length", 64, "--no-test", "--output", "out"]
    first = command(*arguments, "--batch-size", 1, cwd=tmp_path)
    wait_for((tmp_path / "out.partial" / "unfinished" / "recipe.json").exists, first)
    os.kill(first.pid, signal.SIGSTOP)  # in the middle of its work, for as long as the others try
    try:
        before = everything(tmp_path)
        for more in (["--overwrite"], ["--resume"], ["--resume", "--pattern", "60%"]):
            code, out, err = run(*arguments, *more)
            assert (code, out) == (2, "") and err.count("\n") == 1
            assert re.search(rf"another run is writing .*/out, process {first.pid} since", err)
        assert everything(tmp_path) == before
    finally:
        os.kill(first.pid, signal.SIGCONT)
    out, err = first.communicate()
    assert first.returncode == 0, err
    assert json.loads((tmp_path / "out" / "minprune.json").read_text())["sparsity"] == 0.5
    assert sorted(os.listdir(tmp_path)) == ["long.txt", "out"]


SWEEP = """
import logging, sys
from minprune.sweep.sweep import sweep
import minprune as mp

model, tokenizer = mp.load_model(sys.argv[1])
sizes = dict(calibration=sys.argv[2], samples=2, length=16, texts=[sys.argv[2]], test_samples=2)

class Stop(logging.Handler):
    def emit(self, record):
        print("ready", flush=True)
        sys.stdin.readline()

logging.getLogger("minprune").addHandler(Stop())
logging.getLogger("minprune").setLevel("INFO")
sweep(model, tokenizer, "runs.jsonl", ["magnitude"], ["50%", "60%"], **sizes)
"""


def test_two_sweeps_do_not_write_one_file(tmp_path, monkeypatch, tiny_folder, text_file):
    monkeypatch.chdir(tmp_path)
    first = start(SWEEP, tiny_folder, text_file)  # one line is written
    try:
        with Path("runs.jsonl").open("a") as file:
            file.write('{"method": "half a line')  # what another process may see at any time
        before = Path("runs.jsonl").read_bytes()
        text = str(text_file)
        sizes = {"calibration": text, "samples": 2, "length": 16, "texts": [text], "test_samples": 2}
        model, tokenizer = mp.load_model(tiny_folder)
        with pytest.raises(mp.PruneError, match=f"another run is writing .*runs.jsonl, process {first.pid}"):
            sweep(model, tokenizer, "runs.jsonl", ["magnitude"], ["50%"], **sizes)
        assert Path("runs.jsonl").read_bytes() == before
    finally:
        first.kill()
        first.wait()
    sweep(model, tokenizer, "runs.jsonl", ["magnitude"], ["50%"], **sizes)  # the torn line of the killed one is cut
    assert [run["method"] for run in read_runs("runs.jsonl")] == ["dense", "magnitude"]
    assert os.listdir() == ["runs.jsonl"]
