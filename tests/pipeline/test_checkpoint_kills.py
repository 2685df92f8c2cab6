"""A run that is killed at any moment goes on and ends with the same bytes, and no finished block is done again."""

import hashlib
import json
import multiprocessing
import random
import shutil
import signal
import time

import pytest
import torch
from drawn import seed
from test_checkpoint import write_checkpoint
from tiny import tiny_tokens

import minprune as mp
from minprune.output import folder, shards
from minprune.pipeline import journal
from minprune.pipeline.staged import BlockPruner

BLOCKS = {"llama": 6, "gemma4": 4}  # whose later blocks read the keys and values of earlier ones
OPTIONS = {"method": "sparsegpt", "batch_size": 2, "test": tiny_tokens(2, seed=7)}
LIMITS = {"llama": 50_000, "gemma4": 2 * 10**9}  # of a file: a block of this Llama has 31 kB
HEAVY = ["torch", "scipy.special", "pytest", "minprune.pipeline.checkpoint"]  # imported once for all children
HEAVY += [f"transformers.models.{family}.modeling_{family}" for family in BLOCKS]
pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signal.setitimer")


def prune_and_note(src, dst, log, seconds, limit):
    """Prune in a process of its own, and note each block that is begun.

    seconds: after so many the kernel ends the process, by a signal that no Python code sees; 0 leaves it alone.
    """
    torch.set_num_threads(1)  # the bits of a sum depend on how many add
    real = BlockPruner.prune

    def prune(walk, index, *rest):
        with log.open("a") as file:
            file.write(f"{index}\n")
        return real(walk, index, *rest)

    BlockPruner.prune = prune
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    mp.prune_checkpoint(src, dst, tiny_tokens(), resume=True, max_shard_size=limit, **OPTIONS)
    signal.setitimer(signal.ITIMER_REAL, 0)


def run(*arguments):
    """The exit code of `prune_and_note`. A fork of this process would have its pools of threads half."""
    clean = multiprocessing.get_context("forkserver")
    clean.set_forkserver_preload(HEAVY)
    child = clean.Process(target=prune_and_note, args=arguments)
    child.start()
    child.join(timeout=120)
    assert child.exitcode is not None, "the run did not end"
    return child.exitcode


def finished(partial):
    """The blocks that the journal of an unfinished output holds."""
    path = partial / "unfinished" / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return {json.loads(line)["block"] for line in lines if line.endswith("\n")}


def weights(folder):
    """A hash of each file of weights."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}


def kill_and_resume(tmp_path, kills, family, seed):
    """Runs that are killed `kills` times at random moments, and what must hold after each."""
    chance, limit = random.Random(seed), LIMITS[family]
    src = write_checkpoint(tmp_path / "src", family, num_hidden_layers=BLOCKS[family])
    mp.prune_checkpoint(src, tmp_path / "plain", tiny_tokens(), max_shard_size=limit, **OPTIONS)
    expected = weights(tmp_path / "plain")
    for name in ("first", "timed"):  # the first of all children waits for the imports
        start = time.monotonic()
        assert run(src, tmp_path / name, tmp_path / "log", 0, limit) == 0
        whole = time.monotonic() - start  # with the start of a process, so that some runs end in time
        assert weights(tmp_path / name) == expected
    done = number = 0
    while done < kills:
        number += 1
        dst, log, before = tmp_path / f"out{number}", tmp_path / f"log{number}", set()
        while not dst.exists():
            log.unlink(missing_ok=True)
            code = run(src, dst, log, chance.uniform(1e-3, whole) if done < kills else 0, limit)
            assert code in (0, -signal.SIGALRM)
            begun = [int(line) for line in log.read_text().split()] if log.exists() else []
            assert not before & set(begun), "a finished block was done again"
            assert len(begun) == len(set(begun))
            done += code != 0
            before = finished(dst.with_name(dst.name + ".partial")) or before
        assert weights(dst) == expected and not list(dst.rglob("*.tmp"))
        record = json.loads((dst / "minprune.json").read_text())
        assert {row["sparsity"] for row in record["layers"]} == {0.5}
        shutil.rmtree(dst)


@pytest.mark.parametrize("family", BLOCKS)
def test_killed_at_a_few_random_moments(family, tmp_path, one_thread):
    kill_and_resume(tmp_path, 6 if family == "llama" else 3, family, seed())


@pytest.mark.slow
@pytest.mark.parametrize("family", BLOCKS)
def test_killed_a_hundred_times_at_random_moments(family, tmp_path, one_thread):
    kill_and_resume(tmp_path, 100, family, seed())


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
            patched.setattr(shards, "flush", dying(at))
            patched.setattr(journal.shutil, "rmtree", lambda *_, **__: None)  # who is killed cleans nothing up
            try:
                mp.prune_checkpoint(src, tmp_path / "out", tiny_tokens(), resume=True, **OPTIONS)
            except Killed:
                assert not (tmp_path / "out").exists()
    assert at > 3
    assert weights(tmp_path / "out") == weights(tmp_path / "plain")


def test_a_kill_before_the_output_has_its_name_costs_no_block(tmp_path, monkeypatch):
    src = write_checkpoint(tmp_path / "src", num_hidden_layers=2)
    mp.prune_checkpoint(src, tmp_path / "plain", tiny_tokens(), **OPTIONS)

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(folder, "move", killed)
        with pytest.raises(Killed):
            mp.prune_checkpoint(src, tmp_path / "out", tiny_tokens(), **OPTIONS)
    monkeypatch.setattr(BlockPruner, "prune", killed)
    mp.prune_checkpoint(src, tmp_path / "out", tiny_tokens(), resume=True, **OPTIONS)
    assert weights(tmp_path / "out") == weights(tmp_path / "plain")
