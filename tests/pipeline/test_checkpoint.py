"""prune_checkpoint(): the same tensors as prune(), whatever the family, the files and the interruptions."""

import copy
import json
import os
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, NOT_ON_META, VOCABULARY, loud_model, loud_tokens, tiny_model, tiny_tokens
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import minprune as mp
from minprune.cli.main import main
from minprune.cli.prune_options import table_by_rule
from minprune.evaluation.perplexity import perplexity
from minprune.output import model_files as output
from minprune.pipeline import journal
from minprune.pipeline.layer_pruner import LayerPruner
from minprune.pipeline.recipes import Recipe
from minprune.pipeline.reconstruction import Reconstruction
from minprune.pipeline.sources import StreamedCheckpoint
from minprune.pipeline.staged import BlockPruner
from minprune.pipeline.streaming import open_checkpoint

WHOLE = ("gpt_neox", "mixtral")  # the library renames or merges tensors of these while it loads them
BLOCKS = 4
RECONSTRUCTED = Recipe("wanda", reconstruction=Reconstruction(epochs=2, batch_size=2))


def write_tokenizer(folder):
    """A tokenizer of as many words as the tiny models have."""
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def write_checkpoint(folder, family="llama", dtype=torch.float32, **changes):
    """A tiny model and a tokenizer of as many words on disk."""
    write_tokenizer(folder)
    tiny_model(family, dtype, **changes).save_pretrained(folder)
    return folder


@pytest.fixture
def deep(tmp_path):
    """A Llama of four blocks on disk."""
    return write_checkpoint(tmp_path / "deep", num_hidden_layers=BLOCKS)


def tensors(folder):
    """All tensors of a folder by name."""
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def assert_same_tensors(folder, other):
    mine, theirs = tensors(folder), tensors(other)
    assert mine.keys() == theirs.keys() and len(mine) > 10
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]), name


def stop_after(blocks, monkeypatch, error=KeyboardInterrupt):
    """Let a run be interrupted when so many blocks are finished; returns the list of blocks that are begun."""
    real, begun = BlockPruner.prune, []

    def prune(walk, index, *rest):
        begun.append(index)
        if index == blocks:
            raise error
        return real(walk, index, *rest)

    monkeypatch.setattr(BlockPruner, "prune", prune)
    return begun


def stopped(src, dst, blocks, monkeypatch, **options):
    """Leave DST.partial with so many finished blocks."""
    with monkeypatch.context() as patched:
        stop_after(blocks, patched)
        with pytest.raises(KeyboardInterrupt):
            mp.prune_checkpoint(src, dst, **options)
    return dst.with_name(dst.name + ".partial")


# --- the same as prune()


@pytest.mark.parametrize("batch_size, dtype", [(None, torch.float32), (2, torch.bfloat16)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tensors_rows_and_perplexities_are_those_of_prune(family, batch_size, dtype, tmp_path):
    """Bit for bit: the arithmetic is the same, only the weights come and go."""
    src = write_checkpoint(tmp_path / "src", family, dtype)
    model, test = mp.load_model(src)[0], tiny_tokens(3, seed=7)
    before = mp.perplexity(model, test)
    expected = mp.prune(model, tiny_tokens(), "sparsegpt", batch_size=batch_size)
    report = mp.prune_checkpoint(src, tmp_path / "out", tiny_tokens(), "sparsegpt", batch_size=batch_size, test=test)
    assert isinstance(open_checkpoint(src), StreamedCheckpoint) == (family not in WHOLE)
    assert [(row.name, row.error, row.sparsity) for row in report.layers] == [
        (row.name, row.error, row.sparsity) for row in expected.layers
    ]
    found, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for (name, value), other in zip(model.state_dict().items(), found.state_dict().values(), strict=True):
        assert value.dtype == other.dtype and torch.equal(value, other), name
    with torch.no_grad():
        assert torch.equal(model(test).logits, found(test).logits)
    # a mixture's experts are applied one by one here, and grouped by the model itself
    exact = {"rel": 0.02 if family == "mixtral" else 1e-12}
    assert report.perplexity["before"] == pytest.approx(before, **exact)
    assert report.perplexity["after"] == pytest.approx(mp.perplexity(model, test), **exact)
    assert sorted(os.listdir(tmp_path)) == ["out", "src"]


@pytest.mark.parametrize("family", NOT_ON_META)
def test_every_tensor_is_read_from_the_files_also_where_the_model_without_weights_has_numbers(family, tmp_path):
    src, calib = write_checkpoint(tmp_path / "src", family), tiny_tokens()
    opened = open_checkpoint(src)
    assert isinstance(opened, StreamedCheckpoint)
    for block in (0, 1, 0):  # also after a block was freed, and read again
        opened.load(block)
        stored = tensors(src)
        assert all(torch.equal(value, stored[name]) for name, value in opened.tensors(block).items())
        opened.free(block)
    model = mp.load_model(src)[0]
    before = mp.perplexity(model, calib)
    mp.prune(model, calib, "wanda")
    report = mp.prune_checkpoint(src, tmp_path / "out", calib, "wanda", test=calib)
    found = mp.load_model(tmp_path / "out")[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), found.parameters(), strict=True))
    assert report.perplexity["before"] == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("options", [
    {"method": "magnitude", "calib": None},
    {"method": "wanda", "pattern": "2:4", "sequential": False},
    {"method": "sparsegpt", "allocation": {"*.mlp.*": 0.75}, "exclude": "*.0.*", "damp": 0.1},
    {"method": "wanda", "include": ["*.down_proj", "lm_head"]},
    {"method": "magnitude", "calib": None, "include": ["lm_head"]},
    {"recipe": "best", "pattern": "2:4"},
    {"recipe": RECONSTRUCTED, "batch_size": 2, "include": ["*.down_proj", "*.0.*", "lm_head"]},
])  # fmt: skip
def test_recipes_give_what_prune_gives(deep, tmp_path, options):
    options = {"calib": tiny_tokens(), **options}
    model = mp.load_model(deep)[0]
    expected = mp.prune(model, **options)
    report = mp.prune_checkpoint(deep, tmp_path / "out", **options)
    assert [row.name for row in report.layers] == [row.name for row in expected.layers]
    found = mp.load_model(tmp_path / "out")[0]
    for (name, value), other in zip(model.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def reshard(folder, size):
    """Write the same model in many files."""
    tiny = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    tiny.save_pretrained(folder, max_shard_size=size)
    assert len(list(folder.glob("*.safetensors"))) > 3


def without_prefix(folder):
    """As GPT-2 is stored on the hub: the model without its head, so that no name begins with "transformer."."""
    path = folder / "model.safetensors"
    stored = {name.removeprefix("transformer."): value for name, value in load_file(path).items()}
    save_file(stored, path, metadata={"format": "pt"})


def with_both_tied(folder):
    path = folder / "model.safetensors"
    stored = load_file(path)
    save_file(stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("family, change", [
    ("llama", lambda folder: reshard(folder, "20KB")),
    ("gpt2", without_prefix),
    ("gemma2", with_both_tied),
])  # fmt: skip
def test_other_layouts_of_files_are_streamed_and_give_the_same(family, change, tmp_path):
    src = write_checkpoint(tmp_path / "src", family)
    mp.prune_checkpoint(src, tmp_path / "one", tiny_tokens(), "wanda")
    change(src)
    assert isinstance(open_checkpoint(src), StreamedCheckpoint)
    mp.prune_checkpoint(src, tmp_path / "other", tiny_tokens(), "wanda")
    assert_same_tensors(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_the_dtype_is_kept_unless_another_is_asked_for(stored, tmp_path):
    src = write_checkpoint(tmp_path / "src", dtype=stored)
    for asked, expected in (("auto", stored), ("bfloat16", torch.bfloat16)):
        mp.prune_checkpoint(src, tmp_path / "out", None, "magnitude", dtype=asked, overwrite=True)
        assert {value.dtype for value in tensors(tmp_path / "out").values()} == {expected}
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert loaded.dtype == expected
        assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(expected)[6:]


def test_one_block_at_a_time_has_weights(deep, tmp_path, monkeypatch):
    """Whenever a layer is pruned, the parameters of the other blocks are on the meta device."""
    real, seen = LayerPruner.prune, []

    def prune(run, layer, observed):
        index = int(layer.name.split(".")[2])
        resident = [not next(block.parameters()).is_meta for block in opened[0].blocks]
        seen.append(resident == [block == index for block in range(BLOCKS)])
        return real(run, layer, observed)

    opened = []
    load = StreamedCheckpoint.__init__
    monkeypatch.setattr(StreamedCheckpoint, "__init__", lambda self, *rest: (opened.append(self), load(self, *rest))[1])
    monkeypatch.setattr(LayerPruner, "prune", prune)
    mp.prune_checkpoint(deep, tmp_path / "out", tiny_tokens(), batch_size=2, test=tiny_tokens(2))
    assert seen == [True] * 7 * BLOCKS
    assert all(next(block.parameters()).is_meta for block in opened[0].blocks)


# --- going on


@pytest.mark.parametrize("family, options", [
    ("llama", {"batch_size": None}),
    ("llama", {"batch_size": 2, "test": tiny_tokens(3, seed=7)}),
    ("llama", {"calib": None, "method": "magnitude", "test": tiny_tokens(3, seed=7)}),
    ("mixtral", {"batch_size": 2}),
    ("llama", {"recipe": RECONSTRUCTED, "batch_size": 2}),
])  # fmt: skip
@pytest.mark.parametrize("finished", [1, 3])
def test_a_stopped_run_goes_on_and_ends_with_the_same_tensors(family, options, finished, tmp_path, monkeypatch):
    src, options = (
        write_checkpoint(tmp_path / "src", family, num_hidden_layers=BLOCKS),
        {"calib": tiny_tokens()} | options,
    )
    report = mp.prune_checkpoint(src, tmp_path / "plain", **options)
    if options["calib"] is None:  # nothing walks: stop it at its first layer of that block
        real = LayerPruner.prune

        def prune(run, layer, observed):
            if f".{finished}." in layer.name:
                raise KeyboardInterrupt
            return real(run, layer, observed)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(LayerPruner, "prune", prune)
            mp.prune_checkpoint(src, tmp_path / "out", **options)
    else:
        stopped(src, tmp_path / "out", finished, monkeypatch, **options)
    assert not (tmp_path / "out").exists()
    begun = stop_after(None, monkeypatch)
    again = mp.prune_checkpoint(src, tmp_path / "out", **options, resume=True)
    assert begun == ([] if options["calib"] is None else list(range(finished, BLOCKS)))
    assert_same_tensors(tmp_path / "out", tmp_path / "plain")
    assert [row.error for row in again.layers] == [row.error for row in report.layers]
    assert again.perplexity == report.perplexity
    assert again.reconstruction.get("errors") == report.reconstruction.get("errors")
    assert sorted(os.listdir(tmp_path)) == ["out", "plain", "src"]


def flip(path, at=-100):
    """Change one byte, in the middle of the tensors if no other is said."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def place(path, name):
    """Where a tensor begins in a file."""
    content = path.read_bytes()
    head = int.from_bytes(content[:8], "little")
    return 8 + head + json.loads(content[8 : 8 + head])[name]["data_offsets"][0]


@pytest.mark.parametrize("damage", ["block", "no file", "head", "hidden", "no hidden", "both", "torn line"])
def test_damage_is_found_and_only_what_is_damaged_is_done_again(deep, tmp_path, monkeypatch, damage):
    options = {"calib": tiny_tokens(), "test": tiny_tokens(3, seed=7)}
    report = mp.prune_checkpoint(deep, tmp_path / "plain", **options)
    partial = stopped(deep, tmp_path / "out", 3, monkeypatch, **options)
    redone, weights = [], partial / "unfinished" / "model.safetensors"
    if damage in ("block", "both"):
        flip(weights, place(weights, "model.layers.1.mlp.up_proj.weight") + 5)
        redone = [1]
    if damage == "no file":
        weights.unlink()
        redone = [0, 1, 2]
    if damage == "head":
        flip(weights, 20)
    for path in (partial / "unfinished").glob("hidden-*"):
        if damage in ("hidden", "both"):
            flip(path)
        if damage == "no hidden":
            path.unlink()
    if damage == "torn line":
        with (partial / "unfinished" / "journal.jsonl").open("a") as file:
            file.write('{"block": 3, "sha256": "0')
    begun = stop_after(None, monkeypatch)
    again = mp.prune_checkpoint(deep, tmp_path / "out", **options, resume=True)
    assert begun == [*redone, 3]
    assert_same_tensors(tmp_path / "out", tmp_path / "plain")
    assert again.perplexity == report.perplexity
    (note,) = again.notes
    assert f"{3 - len(redone)} of 3 recorded blocks intact" in note
    assert [int(number) for number in re.findall(r"\d+", note.partition(" of block ")[2])] == redone
    assert report.notes == []


@pytest.mark.parametrize("line", [b"", b"[1]", b"null", b"\xff\xfe", b'{"block": 1}', "another block", "another key"])
def test_a_damaged_line_of_the_journal_does_not_count_and_its_block_is_done_again(deep, tmp_path, monkeypatch, line):
    options = {"calib": tiny_tokens(), "test": tiny_tokens(3, seed=7)}
    report = mp.prune_checkpoint(deep, tmp_path / "plain", **options)
    journal = stopped(deep, tmp_path / "out", 3, monkeypatch, **options) / "unfinished" / "journal.jsonl"
    lines = journal.read_bytes().splitlines()
    changed = {
        "another block": lines[1].replace(b'"block": 1', b'"block": 0'),
        "another key": lines[1].replace(b'"rows"', b'"nows"'),
    }
    lines[1] = changed.get(line, line)
    journal.write_bytes(b"\n".join(lines) + b"\n")
    begun = stop_after(None, monkeypatch)
    again = mp.prune_checkpoint(deep, tmp_path / "out", **options, resume=True)
    assert begun == [1, 3]
    assert_same_tensors(tmp_path / "out", tmp_path / "plain")
    assert again.perplexity == report.perplexity
    assert [row.name for row in again.layers] == [row.name for row in report.layers]


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe", b'{"method"'])
def test_a_damaged_recipe_of_the_earlier_run_is_one_line_and_not_advice_to_resume(
    deep, tmp_path, monkeypatch, capsys, content
):
    partial = stopped(deep, tmp_path / "out", 2, monkeypatch, calib=tiny_tokens())
    (partial / "unfinished" / "recipe.json").write_bytes(content)
    arguments = ["prune", str(deep), "--method", "magnitude", "--output", str(tmp_path / "out"), "--no-test"]
    assert main([*arguments, "--resume"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "recipe.json is damaged" in line and "--resume" not in line and "overwrite" in line
    assert partial.is_dir()
    assert main([*arguments, "--overwrite"]) == 0


def test_hidden_states_that_would_cost_too_much_to_save_are_computed_again(deep, tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_SHARE", 1e9)  # after the first boundary, nothing is worth saving
    mp.prune_checkpoint(deep, tmp_path / "plain", tiny_tokens())
    partial = stopped(deep, tmp_path / "out", 3, monkeypatch, calib=tiny_tokens())
    assert [path.name for path in (partial / "unfinished").glob("hidden-*")] == ["hidden-00001.safetensors"]
    begun = stop_after(None, monkeypatch)
    mp.prune_checkpoint(deep, tmp_path / "out", tiny_tokens(), resume=True)
    assert begun == [3]
    assert_same_tensors(tmp_path / "out", tmp_path / "plain")


@pytest.mark.parametrize("change, said", [
    ({"method": "wanda"}, 'method "sparsegpt", not "wanda"'),
    ({"pattern": "2:4"}, 'pattern "50%", not "2:4"'),
    ({"damp": 0.5}, 'options {}, not {"damp": 0.5}'),
    ({"calib": tiny_tokens(seed=2)}, "calibration"),
    ({"test": tiny_tokens(2)}, "test null, not"),
    ({"dtype": "bfloat16"}, 'dtype "float32", not "bfloat16"'),
    ({"sequential": False}, "sequential true, not false"),
    ({"recipe": Recipe("sparsegpt", reconstruction=Reconstruction(seed=1))}, "reconstruction null, not"),
    ({"allocation": {"*.mlp.*": 0.4}}, "layers"),
    ({"exclude": ["*.0.*"]}, "layers"),
])  # fmt: skip
def test_another_recipe_is_refused_by_what_differs_and_nothing_is_lost(deep, tmp_path, monkeypatch, change, said):
    partial = stopped(deep, tmp_path / "out", 2, monkeypatch, calib=tiny_tokens())
    before = {path: path.read_bytes() for path in partial.rglob("*") if path.is_file()}
    with pytest.raises(mp.PruneError, match="was begun with") as caught:
        mp.prune_checkpoint(deep, tmp_path / "out", **({"calib": tiny_tokens(), "resume": True} | change))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in partial.rglob("*") if path.is_file()} == before


def test_a_run_that_goes_on_keeps_the_sparsities_that_its_rule_made_and_does_not_ask_it_again(
    deep, tmp_path, monkeypatch
):
    asked = []

    def moody(layers):
        asked.append(len(layers))
        return {layer.name: 0.5 + 0.1 / (3 * len(asked) + index) for index, layer in enumerate(layers)}

    options = {"calib": tiny_tokens(), "method": "wanda", "allocation": moody}
    expected = mp.prune_checkpoint(deep, tmp_path / "plain", **options)
    asked.clear()
    stopped(deep, tmp_path / "out", 2, monkeypatch, **options)
    read = table_by_rule(
        Namespace(resume=True, model="no such model"), tmp_path / "out", "moody", None, mp.pattern("50%")
    )
    found = mp.prune_checkpoint(deep, tmp_path / "out", resume=True, **options)
    assert len(asked) == 1
    assert found.allocation == expected.allocation == {"rule": "moody", "table": read([])}
    before, after = tensors(tmp_path / "plain"), tensors(tmp_path / "out")
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    stopped(deep, tmp_path / "out2", 2, monkeypatch, **options)
    with pytest.raises(mp.PruneError, match=r"was begun with (layers|allocation)"):
        mp.prune_checkpoint(deep, tmp_path / "out2", resume=True, **options | {"allocation": lambda layers: {"*": 0.5}})


def test_another_model_is_refused(deep, tmp_path, monkeypatch):
    stopped(deep, tmp_path / "out", 2, monkeypatch, calib=tiny_tokens())
    stored = tensors(deep)
    stored["model.layers.3.mlp.up_proj.weight"][0, 0] += 1
    save_file(stored, deep / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(mp.PruneError, match="begun with model "):
        mp.prune_checkpoint(deep, tmp_path / "out", tiny_tokens(), resume=True)


def test_another_batch_size_may_go_on(deep, tmp_path, monkeypatch):
    """It changes time and memory, not the recipe; the result is the same up to rounding."""
    mp.prune_checkpoint(deep, tmp_path / "plain", tiny_tokens())
    stopped(deep, tmp_path / "out", 2, monkeypatch, calib=tiny_tokens())
    mp.prune_checkpoint(deep, tmp_path / "out", tiny_tokens(), batch_size=2, resume=True)
    for (name, value), other in zip(
        tensors(tmp_path / "plain").items(), tensors(tmp_path / "out").values(), strict=True
    ):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-3, msg=name)


def test_without_resume_the_partial_folder_is_in_the_way_and_overwrite_begins_anew(deep, tmp_path, monkeypatch):
    partial = stopped(deep, tmp_path / "out", 2, monkeypatch, calib=tiny_tokens())
    with pytest.raises(mp.PruneError, match=r"out\.partial is in the way.*resume"):
        mp.prune_checkpoint(deep, tmp_path / "out", tiny_tokens())
    assert partial.exists()
    begun = stop_after(None, monkeypatch)
    mp.prune_checkpoint(deep, tmp_path / "out", tiny_tokens(), overwrite=True)
    assert begun == list(range(BLOCKS)) and not partial.exists()


@pytest.mark.parametrize(
    "name", ["thesis.txt", "unfinished/notes.md", "photos/1.jpg", "unfinished/rehearsals", "a.tmp"]
)
def test_what_somebody_put_into_a_stopped_runs_folder_is_not_overwritten(deep, tmp_path, monkeypatch, name):
    partial = stopped(deep, tmp_path / "out", 2, monkeypatch, calib=tiny_tokens())
    (partial / name).parent.mkdir(exist_ok=True)
    (partial / name).write_text("years of work")
    before = sorted(partial.rglob("*"))
    with pytest.raises(mp.PruneError, match=f"out.partial holds '{name.split('/1')[0]}', which the run .* did not"):
        mp.prune_checkpoint(deep, tmp_path / "out", tiny_tokens(), overwrite=True)
    assert sorted(partial.rglob("*")) == before and (partial / name).read_text() == "years of work"
    (partial / name).rename(tmp_path / "elsewhere")
    if name.startswith("photos"):
        (partial / "photos").rmdir()
    mp.prune_checkpoint(deep, tmp_path / "out", tiny_tokens(), overwrite=True)
    assert not partial.exists()


def test_what_a_run_copied_before_it_was_stopped_is_overwritten(deep, tmp_path, monkeypatch):
    for name in ("LICENSE", "preprocessor_config.json", "vocab.txt"):
        (deep / name).write_text("{}")

    def killed(folder, record):
        if folder.name != "rehearsal":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(output, "write_record", killed)
        mp.prune_checkpoint(deep, tmp_path / "out", tiny_tokens())
    assert (tmp_path / "out.partial" / "LICENSE").exists()
    mp.prune_checkpoint(deep, tmp_path / "out", tiny_tokens(), overwrite=True)
    assert (tmp_path / "out" / "LICENSE").exists() and not (tmp_path / "out.partial").exists()


def test_resume_with_nothing_to_resume_begins(deep, tmp_path):
    mp.prune_checkpoint(deep, tmp_path / "out", None, "magnitude", resume=True)
    assert (tmp_path / "out" / "minprune.json").exists()
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "thesis.txt").write_text("not ours")
    with pytest.raises(mp.PruneError, match="in the way"):
        mp.prune_checkpoint(deep, tmp_path / "other", None, "magnitude", resume=True)
    assert (tmp_path / "other.partial" / "thesis.txt").exists()


@pytest.mark.parametrize("options, reason", [
    ({"method": "guess"}, "unknown method"),
    ({"pattern": "3:5"}, "model.layers.0.self_attn.q_proj: 3:5"),
    ({"calib": None}, "needs calibration"),
    ({"test": tiny_tokens(2, 65)}, "64 positions"),
    ({"test": tiny_tokens(2, 1)}, "length 2"),
    ({"device": "abacus"}, "abacus"),
    ({"src": "no/such/model"}, "no model"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_and_leaves_nothing(deep, tmp_path, options, reason):
    arguments = {"src": deep, "dst": tmp_path / "out", "calib": tiny_tokens()} | options
    with pytest.raises(mp.PruneError, match=reason):
        mp.prune_checkpoint(**arguments)
    assert os.listdir(tmp_path) == ["deep"]


# --- the model card


def test_the_card_has_a_header_that_yaml_reads_and_inherits_the_licence(deep, tmp_path):
    import yaml

    front = "license: apache-2.0\nlanguage: en\nbase_model: org/Big"
    (deep / "README.md").write_text(f"---\n{front}\n---\n# Deep\n", encoding="utf-8")
    mp.prune_checkpoint(deep, tmp_path / "out", tiny_tokens(), "wanda", "2:4", test=tiny_tokens(2))
    text = (tmp_path / "out" / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "apache-2.0" and header["base_model"] == "org/Big" and "minprune" in header["tags"]
    record = json.loads((tmp_path / "out" / "minprune.json").read_text())
    assert "wanda" in text and "2:4" in text and "50.00%" in text
    assert f"{record['perplexity']['after']:,.2f} after" in text


def test_nothing_of_the_model_is_changed_by_opening_it(deep):
    before = {path.name: path.read_bytes() for path in Path(deep).iterdir()}
    source = open_checkpoint(deep)
    state = copy.deepcopy(source.tensors(None))
    source.load(2)
    source.free(2)
    assert all(torch.equal(value, source.tensors(None)[name]) for name, value in state.items())
    assert perplexity(mp.load_model(deep)[0], tiny_tokens()) > 1
    assert {path.name: path.read_bytes() for path in Path(deep).iterdir()} == before


def test_recipe_rule_and_reconstruction_are_in_the_record_the_card_and_the_report(deep, tmp_path):
    def halves(layers):
        return {layer.name: 0.5 if "mlp" in layer.name else 0.75 for layer in layers}

    report = mp.prune_checkpoint(
        deep, tmp_path / "out", tiny_tokens(), pattern="60%", recipe="best", allocation=halves, test=tiny_tokens(2)
    )
    record = json.loads((tmp_path / "out" / "minprune.json").read_text())
    assert record["recipe"] == report.recipe == "best" and record["method"] == "admm"
    assert record["allocation"]["rule"] == "halves"
    assert record["allocation"]["table"] == {row.name: 0.5 if "mlp" in row.name else 0.75 for row in report.layers}
    assert any("before the blocks were reconstructed" in note for note in record["notes"])
    card = (tmp_path / "out" / "README.md").read_text()
    for line in ("best (admm) 60%, sparsities by halves", "| recipe | best |", "halves, 50.00% to 75.00%"):
        assert line in card
    assert "| reconstruction | of each block, 2 epochs of 4 windows a step |" in card
    plain = mp.prune_checkpoint(deep, tmp_path / "plain", tiny_tokens(), "wanda")
    assert (plain.recipe, plain.allocation, plain.notes) == ("", {}, [])
    assert "reconstruct" not in (tmp_path / "plain" / "README.md").read_text()


def test_a_run_goes_on_only_with_the_products_that_it_was_begun_with(deep, tmp_path, monkeypatch):
    """The default is the hardware's answer: another machine's is another run, and so is another choice."""
    whole = tmp_path / "whole"
    options = {"calib": tiny_tokens(), "recipe": Recipe("wanda", reconstruction=Reconstruction(epochs=1, batch_size=2))}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    mp.prune_checkpoint(deep, whole, **options)
    partial = stopped(deep, tmp_path / "out", 2, monkeypatch, **options)
    assert json.loads((whole / "minprune.json").read_text())["reconstruction"]["bfloat16"] is True
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(mp.PruneError, match="products in bfloat16 true, not false"):
        mp.prune_checkpoint(deep, tmp_path / "out", resume=True, **options)
    assert (partial / "unfinished" / "journal.jsonl").read_text().count("\n") == 2
    said = Recipe("wanda", reconstruction=Reconstruction(epochs=1, batch_size=2, bfloat16=True))
    report = mp.prune_checkpoint(deep, tmp_path / "out", resume=True, calib=tiny_tokens(), recipe=said)
    assert report.reconstruction["bfloat16"] is True
    assert_same_tensors(tmp_path / "out", whole)


@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt"])
def test_errors_are_those_of_all_tokens_from_disk_to_disk_too(method, tmp_path):
    src = write_checkpoint(tmp_path / "src")
    loud_model(128, torch.float32).save_pretrained(src)
    model, tokens = AutoModelForCausalLM.from_pretrained(src), loud_tokens(64, 40)
    report = mp.prune_checkpoint(src, tmp_path / "out", tokens, method, batch_size=24)
    seen = []
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    model(tokens)
    X, W = seen[0].detach().double().flatten(0, 1), model.model.layers[0].self_attn.q_proj.weight.detach().double()
    D = W - tensors(tmp_path / "out")["model.layers.0.self_attn.q_proj.weight"].double()
    expected = float((X @ D.T).square().sum() / (X @ W.T).square().sum())
    assert report.layers[0].error == pytest.approx(expected, rel=1e-3)
