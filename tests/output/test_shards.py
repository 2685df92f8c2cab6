"""Shards: what safetensors reads and transformers writes, in whatever order the places are filled, and how often."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_model

import minprune as mp
from minprune.output.model_files import write_model
from minprune.output.record import RunRecord
from minprune.output.shards import SHARD, Shards

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
SHAPES = st.lists(st.integers(0, 5), max_size=3)
FEW = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5), "c": torch.zeros(4)}


def begun(folder, tensors, limit, **named):
    """Files for these tensors in a new folder, with nothing in them."""
    (Path(folder) / "unfinished").mkdir(exist_ok=True)
    shards = Shards(Path(folder), tensors, limit, **named)
    shards.begin()
    return shards


def same(tensors, others):
    alike = tensors.keys() == others.keys()
    return alike and all(
        one.dtype == others[name].dtype and one.shape == others[name].shape and torch.equal(one, others[name])
        for name, one in tensors.items()
    )


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DTYPES), SHAPES), min_size=1, max_size=9), st.integers(1, 400), st.randoms())
def test_tensors_that_are_written_in_any_order_are_in_the_files_and_none_is_too_large(kinds, limit, chance):
    tensors = {
        f"x.{at}": torch.tensor([chance.randrange(256) for _ in range(torch.Size(shape).numel())])
        .to(dtype)
        .reshape(shape)
        for at, (dtype, shape) in enumerate(kinds)
    }
    with tempfile.TemporaryDirectory() as place:
        shards, waiting, written = begun(place, tensors, limit), [*tensors], {}
        chance.shuffle(waiting)
        while waiting:
            part = {waiting.pop(): None for _ in range(chance.randint(1, len(waiting)))}
            part = {name: tensors[name] for name in part}
            written[shards.write(part)] = part
            if chance.random() < 0.5:  # another process goes on
                shards = begun(place, tensors, limit)
        for digest, part in written.items():
            assert shards.intact(part, digest) and same(shards.read(part), part)
        shards.finish()
        files = sorted(Path(place).glob("*.safetensors"))
        found = {path.name: load_file(path) for path in files}
        assert same({name: one for held in found.values() for name, one in held.items()}, tensors)
        assert {name: file for file, held in found.items() for name in held} == shards.file_of
        sizes = [sum(one.nbytes for one in held.values()) for held in found.values()]
        assert all(size <= limit or len(held) == 1 for size, held in zip(sizes, found.values(), strict=True))
        expected = [f"model-{at + 1:05d}-of-{len(files):05d}.safetensors" for at in range(len(files))]
        assert [*found] == (expected if len(files) > 1 else ["model.safetensors"])
        for path in files:
            with safe_open(path, "pt") as opened:
                assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("limit", [1, 24, 40, 60, SHARD])
def test_a_file_of_one_dtype_is_the_file_of_safetensors(limit, tmp_path):
    shards = begun(tmp_path, FEW, limit)
    shards.write(FEW)
    shards.finish()
    for file in set(shards.file_of.values()):
        held = {name: one for name, one in FEW.items() if shards.file_of[name] == file}
        save_file(held, tmp_path / "theirs", metadata={"format": "pt"})
        assert (tmp_path / file).read_bytes() == (tmp_path / "theirs").read_bytes()


def test_an_empty_file_takes_no_room_and_a_full_one_what_is_in_it(tmp_path):
    large = {name: torch.ones(250_000) for name in "abc"}
    shards = begun(tmp_path, large, 10**7)
    path = tmp_path / "unfinished" / "model.safetensors"

    assert path.stat().st_size > 3_000_000 and 512 * path.stat().st_blocks < 10_000
    for name, full in (("b", 1_000_000), ("b", 1_000_000), ("a", 2_000_000), ("c", 3_000_000)):
        shards.write({name: large[name]})
        assert 512 * path.stat().st_blocks == pytest.approx(full, abs=10_000)
        assert shards.occupied() == pytest.approx(full, abs=10_000)
    assert shards.occupied() == 3_000_000


def test_what_is_damaged_is_not_intact_and_can_be_written_again(tmp_path):
    shards = begun(tmp_path, FEW, SHARD)
    digests = {name: shards.write({name: one}) for name, one in FEW.items()}
    path = tmp_path / "unfinished" / "model.safetensors"
    whole = path.read_bytes()

    def intact():
        return [name for name, digest in digests.items() if shards.intact([name], digest)]

    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        shards.begin()
        assert len(intact()) >= (2 if at >= len(whole) - 60 else 3)  # three tensors of 60 bytes, behind the head
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        assert not intact()
        shards.begin()
        kept = intact()
        shards.write({name: one for name, one in FEW.items() if name not in kept})
        assert path.read_bytes() == whole
    path.unlink()
    assert not intact()


def test_a_tensor_of_another_size_would_run_into_its_neighbour_and_is_refused(tmp_path):
    shards = begun(tmp_path, FEW, SHARD)
    for other in (torch.ones(6), torch.ones(5, dtype=torch.float64)):
        with pytest.raises(ValueError, match="b is torch"):
            shards.write({"b": other})


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "model.safetensors").symlink_to(tmp_path / "thesis")
    with pytest.raises(OSError, match="symbolic links"):
        begun(tmp_path, FEW, SHARD)
    assert (tmp_path / "thesis").read_text() == "years of work"


def test_files_that_were_moved_are_found_and_written_to_where_they_are(tmp_path):
    shards = begun(tmp_path, FEW, 24)
    digest = shards.write(FEW)
    os.replace(tmp_path / "unfinished" / shards.file_of["a"], tmp_path / shards.file_of["a"])  # then it was killed
    again = begun(tmp_path, FEW, 24)
    assert again.intact(FEW, digest)
    again.write({"a": FEW["a"] + 1})
    again.finish()
    again.finish()
    assert os.listdir(tmp_path / "unfinished") == []
    assert torch.equal(load_file(tmp_path / shards.file_of["a"])["a"], FEW["a"] + 1)


@pytest.mark.parametrize("indexed", [False, True])
def test_one_file_that_an_index_will_name_is_not_called_as_one_without(tmp_path, indexed):
    shards = begun(tmp_path, FEW, SHARD, indexed=indexed)
    name = "model-00001-of-00001.safetensors" if indexed else "model.safetensors"
    assert set(shards.file_of.values()) == {name} and os.listdir(tmp_path / "unfinished") == [name]


@pytest.mark.parametrize("limit", [None, 20_000])
def test_a_model_from_memory_is_split_at_the_same_size(tmp_path, tiny_folder, monkeypatch, limit):
    model, tokenizer = tiny_model("llama"), mp.load_model(tiny_folder)[1]
    asked, real = [], type(model).save_pretrained

    def save(self, folder, **named):
        asked.append(named)
        real(self, folder, **named)

    monkeypatch.setattr(type(model), "save_pretrained", save)
    write_model(tmp_path, model, tokenizer, RunRecord(), **({"limit": limit} if limit else {}))
    assert asked == [{"max_shard_size": limit or 2 * 10**9}]
    assert len(list(tmp_path.glob("model*.safetensors"))) == (1 if limit is None else 5)
