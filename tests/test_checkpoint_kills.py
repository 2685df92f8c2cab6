"""A run that is killed at any moment goes on and ends with the same bytes, and no finished block is done again."""

import hashlib
import json
import os
import random
import signal
import sys
import time

import pytest
from test_checkpoint import write_checkpoint
from tiny import tiny_tokens

import minprune as mp
from minprune import journal
from minprune.stages import Walk

BLOCKS = 6
OPTIONS = {"method": "sparsegpt", "batch_size": 2, "test": tiny_tokens(2, seed=7)}
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def run(src, dst, log):
    """Prune in a fork of this process, which has everything imported, and note each block that is begun."""
    child = os.fork()
    if child:
        return child
    try:
        real = Walk.prune

        def prune(walk, index, *rest):
            with log.open("a") as file:
                file.write(f"{index}\n")
            return real(walk, index, *rest)

        Walk.prune = prune
        mp.prune_checkpoint(src, dst, tiny_tokens(), resume=True, **OPTIONS)
    except BaseException as error:  # the fork must not return into pytest
        sys.stderr.write(f"{error!r}\n")
        os._exit(1)
    os._exit(0)


def finished(partial):
    """The blocks that the journal of an unfinished output holds."""
    path = partial / "unfinished" / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return {json.loads(line)["block"] for line in lines if line.endswith("\n")}


def weights(folder):
    """A hash of each file of weights."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}


def kill_and_resume(tmp_path, kills, seed):
    """Runs that are killed `kills` times at random moments; returns at how many different states they were.

    With one thread: a fork of a process with a pool of threads would wait for them.
    """
    chance, states = random.Random(seed), set()
    src = write_checkpoint(tmp_path / "src", num_hidden_layers=BLOCKS)
    began = time.monotonic()
    mp.prune_checkpoint(src, tmp_path / "plain", tiny_tokens(), **OPTIONS)
    seconds, expected = time.monotonic() - began, weights(tmp_path / "plain")
    done = number = 0
    while done < kills:
        number += 1
        dst, log, before = tmp_path / f"out{number}", tmp_path / f"log{number}", set()
        while not dst.exists():
            log.unlink(missing_ok=True)
            child, killed = run(src, dst, log), done < kills
            if killed:
                time.sleep(chance.uniform(0, 1.2 * seconds))
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
            begun = [int(line) for line in log.read_text().split()] if log.exists() else []
            assert not before & set(begun), "a finished block was done again"
            assert len(begun) == len(set(begun))
            if os.waitstatus_to_exitcode(status) != 0:
                done += 1
                states.add((len(finished(dst.with_name(dst.name + ".partial"))), len(begun)))
            before = finished(dst.with_name(dst.name + ".partial")) or before
        assert weights(dst) == expected and not list(dst.rglob("*.tmp"))
        record = json.loads((dst / "minprune.json").read_text())
        assert [row["sparsity"] for row in record["layers"]] == [0.5] * 7 * BLOCKS
    return len(states)


def test_killed_at_a_few_random_moments(tmp_path, one_thread):
    assert kill_and_resume(tmp_path, kills=6, seed=time.time_ns()) > 1


@pytest.mark.slow
def test_killed_a_hundred_times_at_random_moments(tmp_path, one_thread):
    assert kill_and_resume(tmp_path, kills=100, seed=time.time_ns()) > 10


def test_a_kill_within_any_write_leaves_what_was_there(tmp_path, monkeypatch):
    """Between writing and renaming, between renaming and the journal's line: each point of the protocol once."""
    src = write_checkpoint(tmp_path / "src", num_hidden_layers=2)
    mp.prune_checkpoint(src, tmp_path / "plain", tiny_tokens(), **OPTIONS)

    class Killed(BaseException):
        pass

    calls = {"flush": 0}
    real = journal.flush

    def dying(at):
        def flush(file):
            calls["flush"] += 1
            if calls["flush"] == at:
                raise Killed
            real(file)

        return flush

    at = 0
    while not (tmp_path / "out").exists():
        at, calls["flush"] = at + 1, 0
        with monkeypatch.context() as patched:
            patched.setattr(journal, "flush", dying(at))
            patched.setattr(journal.shutil, "rmtree", lambda *_, **__: None)  # who is killed cleans nothing up
            try:
                mp.prune_checkpoint(src, tmp_path / "out", tiny_tokens(), resume=True, **OPTIONS)
            except Killed:
                assert not (tmp_path / "out").exists()
    assert at > 3
    assert weights(tmp_path / "out") == weights(tmp_path / "plain")
