"""prune_checkpoint(): the files of weights are those of transformers, whatever the family, the size and the kills."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoint import BLOCKS, WHOLE, stopped, write_checkpoint
from tiny import FAMILIES, tiny_model, tiny_tokens
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import minprune as mp
from minprune.cli.main import main
from minprune.output import model_files, shards
from minprune.pipeline import checkpoint
from minprune.pipeline.staged import BlockPruner

INDEX = "model.safetensors.index.json"


class Killed(BaseException):
    pass


def weights(folder):
    """The bytes of each file of weights, and what the index says."""
    found = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    return found | ({INDEX: json.loads((folder / INDEX).read_text())} if (folder / INDEX).exists() else {})


@pytest.mark.parametrize("limit", [1, 20_000, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_files_and_the_index_are_those_of_save_pretrained(family, limit, tmp_path):
    """Byte by byte; among the families are some with tied embeddings, and some that are loaded as a whole.

    Of a model that it has loaded the library sorts the tensors by name before it fills files, so this one is not.
    """
    dtype = torch.bfloat16 if family == "qwen2" else torch.float32
    src = write_checkpoint(tmp_path / "src", family, dtype)
    model = mp.load_model(src)[0] if family in WHOLE else tiny_model(family, dtype)
    mp.prune(model, None, "magnitude")
    model.save_pretrained(tmp_path / "theirs", **({"max_shard_size": limit} if limit else {}))
    mp.prune_checkpoint(src, tmp_path / "out", None, "magnitude", **({"max_shard_size": limit} if limit else {}))
    assert weights(tmp_path / "out") == weights(tmp_path / "theirs")
    assert (INDEX in weights(tmp_path / "out")) == (limit is not None)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), found.parameters(), strict=True))


@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_model_that_just_fits_is_one_file_and_one_byte_more_makes_two(family, beyond, tmp_path):
    src = write_checkpoint(tmp_path / "src", family)
    size = sum(parameter.nbytes for parameter in mp.load_model(src)[0].parameters())  # tied ones once
    mp.prune_checkpoint(src, tmp_path / "out", None, "magnitude", max_shard_size=size - beyond)
    files = {name for name in weights(tmp_path / "out") if name != INDEX}
    several = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    assert files == (several if beyond else {"model.safetensors"})


@pytest.mark.parametrize("limit", [9_000, 40_000, 2 * 10**9])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_what_reads_a_folder_reads_one_of_several_files(family, limit, tmp_path, capsys):
    """Pruned again, evaluated, exported, and looked at."""
    src = write_checkpoint(tmp_path / "src", family)
    mp.prune_checkpoint(src, tmp_path / "out", tiny_tokens(), "wanda", max_shard_size=limit)
    first = mp.load_model(tmp_path / "out")[0]
    for command in (
        ["info", str(tmp_path / "out")],
        ["export", str(tmp_path / "out"), "--output", str(tmp_path / "small")],
        ["prune", str(tmp_path / "out"), "--method", "magnitude", "--output", str(tmp_path / "again")],
    ):
        assert main(command) == 0, capsys.readouterr().err
    for name in ("small", "again"):  # pruned again at 50 % by another method, the zeros that are there come first
        found = mp.load_model(tmp_path / name)[0]
        assert all(torch.equal(one, two) for one, two in zip(first.parameters(), found.parameters(), strict=True))


def test_the_shard_size_belongs_to_the_recipe(tmp_path, monkeypatch):
    src = write_checkpoint(tmp_path / "src", num_hidden_layers=BLOCKS)
    stopped(src, tmp_path / "out", 2, monkeypatch, calib=tiny_tokens(), max_shard_size=40_000)
    with pytest.raises(mp.PruneError, match="begun with shard 40000, not 2000000000"):
        mp.prune_checkpoint(src, tmp_path / "out", tiny_tokens(), resume=True)


def test_what_lies_there_until_the_run_is_over_looks_like_no_model(tmp_path, monkeypatch):
    src = write_checkpoint(tmp_path / "src", num_hidden_layers=BLOCKS)
    partial = stopped(src, tmp_path / "out", 2, monkeypatch, calib=tiny_tokens(), max_shard_size=40_000)
    assert [path.name for path in partial.iterdir()] == ["unfinished"]
    with pytest.raises(mp.PruneError):
        mp.load_model(partial)
    mp.prune_checkpoint(src, tmp_path / "out", tiny_tokens(), resume=True, max_shard_size=40_000)
    assert not (tmp_path / "out" / "unfinished").exists()


POINTS = {  # what a run is killed at, and how many such moments are passed over from one try to the next
    "before a tensor is written": (shards, "_bytes", 5),
    "before a file is flushed": (shards, "flush", 3),
    "before a file is moved": (shards.os, "replace", 2),
    "before the rest is written": (checkpoint, "write_model", 1),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(("family", "limit"), [("llama", 9_000), ("gemma2", 2 * 10**9), ("mixtral", 40_000)])
def test_a_kill_at_any_moment_leaves_what_a_resume_finishes_bit_by_bit(point, family, limit, tmp_path, monkeypatch):
    src = write_checkpoint(tmp_path / "src", family)
    options = {"calib": tiny_tokens(), "batch_size": 2, "max_shard_size": limit}
    mp.prune_checkpoint(src, tmp_path / "plain", **options)
    (owner, name, step), left, kills = POINTS[point], [0], 0
    real, remove = getattr(owner, name), shutil.rmtree

    def dying(*arguments, **named):
        left[0] -= 1
        if not left[0]:
            raise Killed
        return real(*arguments, **named)

    def rmtree(*arguments, **named):
        if left[0] > 0:  # who is killed cleans nothing up
            remove(*arguments, **named)

    for at in range(1, 1000, step):
        left[0] = at
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, dying)
            patched.setattr(shutil, "rmtree", rmtree)
            try:
                mp.prune_checkpoint(src, tmp_path / "out", resume=True, **options)
                break
            except Killed:
                kills += 1
                assert not (tmp_path / "out").exists()
    assert kills and weights(tmp_path / "out") == weights(tmp_path / "plain")


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_a_kill_while_the_files_are_moved_costs_no_block(tmp_path, monkeypatch, moved):
    src = write_checkpoint(tmp_path / "src", num_hidden_layers=BLOCKS)
    options = {"calib": tiny_tokens(), "max_shard_size": 40_000}
    mp.prune_checkpoint(src, tmp_path / "plain", **options)
    real, done = shards.os.replace, []

    def replace(source, target):
        if Path(target).parent == tmp_path / "out.partial" and "safetensors" in str(target):
            if len(done) == moved:
                raise Killed
            done.append(target)
        real(source, target)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(shards.os, "replace", replace)
        mp.prune_checkpoint(src, tmp_path / "out", **options)
    assert len(list((tmp_path / "out.partial").glob("*.safetensors"))) == moved

    def again(*_):
        raise AssertionError("a finished block was done again")

    monkeypatch.setattr(BlockPruner, "prune", again)
    mp.prune_checkpoint(src, tmp_path / "out", resume=True, **options)
    assert weights(tmp_path / "out") == weights(tmp_path / "plain")


@pytest.mark.parametrize("limit", [40_000, 2 * 10**9])
def test_tensors_that_are_not_loaded_are_added_once_however_late_a_run_is_killed(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"^mtp.*"], raising=False)
    src = write_checkpoint(tmp_path / "src")
    more = {"mtp.fc.weight": torch.arange(6.0).reshape(2, 3)}
    save_file(load_file(src / "model.safetensors") | more, src / "model.safetensors", metadata={"format": "pt"})
    options = {"calib": tiny_tokens(), "max_shard_size": limit}
    mp.prune_checkpoint(src, tmp_path / "plain", **options)
    assert not (tmp_path / "plain" / "model.safetensors").exists()  # it would go before the index

    def killed(folder, record):
        if folder.name != "rehearsal":
            raise Killed

    def again(*_):
        raise AssertionError("a finished block was done again")

    with monkeypatch.context() as patched:
        patched.setattr(model_files, "write_record", killed)
        for _ in range(2):
            with pytest.raises(Killed):
                mp.prune_checkpoint(src, tmp_path / "out", resume=True, **options)
            patched.setattr(BlockPruner, "prune", again)
    mp.prune_checkpoint(src, tmp_path / "out", resume=True, **options)
    assert weights(tmp_path / "out") == weights(tmp_path / "plain")
    stored = {name: one for path in (tmp_path / "out").glob("*.safetensors") for name, one in load_file(path).items()}
    assert torch.equal(stored["mtp.fc.weight"], more["mtp.fc.weight"])
    assert stored.keys() == weights(tmp_path / "out")[INDEX]["weight_map"].keys()
