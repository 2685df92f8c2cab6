"""A model's folder as input: nothing outside it is read, nothing hangs, and every mistake in it is one line."""

import json
import os
import random
import shutil
import socket
import sys

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, UNSUPPORTED_EXPERTS, tiny_model

import minprune as mp
from minprune.cli.main import main
from minprune.formats.disk import save_model
from minprune.models.extras import NOT_LOADED, copy_files
from minprune.models.folder import is_name, read_all_json
from minprune.models.skeleton import describe, fill_tables, read_config
from minprune.models.weight_files import INDEX, SINGLE, check_counts, stored_tensors
from minprune.pipeline.streaming import open_checkpoint

PART = "model-00001-of-00001.safetensors"


@pytest.fixture
def folder(tmp_path, tiny_folder):
    """A copy of the tiny model that a test may spoil."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture
def exported(tmp_path, tiny_folder):
    """An export of the tiny model that a test may spoil."""
    save_model(*mp.load_model(tiny_folder), tmp_path / "exported", "dense")
    return tmp_path / "exported"


def refused(folder, *said):
    for load in (mp.load_model, open_checkpoint):
        with pytest.raises(mp.PruneError) as caught:
            load(folder)
        message = str(caught.value)
        assert all(text in message for text in said) and "\n" not in message and len(message) < 600, message


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def with_index(folder, name):
    """The weights as one part, which the index calls by that name."""
    (folder / SINGLE).rename(folder / PART)
    weight_map = dict.fromkeys(load_file(folder / PART), name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


# --- nothing outside the folder


@pytest.mark.parametrize("name", ["../outside/x.safetensors", "sub/x.safetensors", "..", ".", "", "a\\b", "a\0b", None])
def test_an_index_may_name_files_of_its_folder_only(folder, name):
    with_index(folder, str(folder.parent / "outside" / "x.safetensors") if name is None else name)
    for place in (folder.parent / "outside", folder / "sub"):
        place.mkdir()
        shutil.copy(folder / PART, place / "x.safetensors")
    refused(folder, INDEX, "no file of")


@pytest.mark.parametrize(
    "name", [SINGLE, "config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"]
)
def test_a_link_that_leads_out_of_the_folder_is_refused(folder, name):
    outside = folder.parent / "outside"
    if (folder / name).exists():
        (folder / name).rename(outside)
    else:
        outside.write_text("{{ messages }}")
    (folder / name).symlink_to(outside)
    refused(folder, str(folder / name), "leads out of its folder")


@pytest.mark.parametrize("blobs", ["models--a--b/blobs", "blobs/ab"])
def test_links_within_the_folder_and_into_the_hubs_cache_are_followed(folder, blobs):
    snapshot, store = folder.parent / "models--a--b" / "snapshots" / "rev", folder.parent / blobs
    snapshot.mkdir(parents=True)
    store.mkdir(parents=True)
    for path in folder.iterdir():
        path.rename(store / path.name)
        (snapshot / path.name).symlink_to(os.path.relpath(store / path.name, snapshot))
    (snapshot / "README.md").symlink_to("config.json")
    assert open_checkpoint(snapshot).streamed and mp.load_model(snapshot)


@pytest.mark.parametrize(
    "name", [SINGLE, "config.json", "tokenizer.json", "vocab.txt", "spiece.model", "README.md", "new.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device"])
def test_what_is_no_regular_file_is_refused_before_it_is_opened(folder, name, kind):
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
        if path.suffix not in (".json", ".safetensors"):
            return  # a folder of another name is not read
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(folder)  # the name of a socket is short
        socket.socket(socket.AF_UNIX).bind(name)
        os.chdir(here)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    refused(folder, str(path), "not a regular file")


def test_a_loop_of_links_and_a_link_to_nothing_are_one_line(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("tokenizer.json")
    refused(folder, str(folder / "tokenizer.json"))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("nothing.json")
    refused(folder, str(folder / "tokenizer.json"))


@pytest.mark.parametrize("name", ["formats.json", "stored.safetensors", "config.json", "tokenizer.json"])
def test_an_export_is_read_as_carefully(exported, name):
    (exported / name).rename(exported.parent / "outside")
    (exported / name).symlink_to(exported.parent / "outside")
    refused(exported, str(exported / name), "leads out of its folder")
    (exported / name).unlink()
    os.mkfifo(exported / name)
    if name != "formats.json":  # without which it is no export
        refused(exported, str(exported / name), "not a regular file")


# --- JSON


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", INDEX]
)
@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 6000 + "}", "[1]", "3", "null", ""]
)
def test_json_that_no_reader_takes_is_one_line(folder, name, content):
    if name == INDEX:
        with_index(folder, PART)
    (folder / name).write_text(content)
    refused(folder, name)


@pytest.mark.parametrize("name, values", [
    ("config.json", {"architectures": [1]}),
    ("config.json", {"architectures": "LlamaForCausalLM"}),
    ("config.json", {"model_type": ["llama"]}),
    ("config.json", {"eos_token_id": "x"}),
    ("config.json", {"eos_token_id": [1, "x"]}),
    ("config.json", {"pad_token_id": 10**400}),
    ("config.json", {"max_position_embeddings": 10**30}),
    ("config.json", {"transformers_weights": "../x.safetensors"}),
    ("config.json", {"configuration_files": ["../config.1.0.0.json"]}),
    ("generation_config.json", {"eos_token_id": "x"}),
    ("generation_config.json", {"temperature": "x"}),
    ("generation_config.json", {"max_length": [1]}),
    ("tokenizer_config.json", {"model_max_length": "x"}),
    ("tokenizer_config.json", {"eos_token": 5}),
    ("tokenizer_config.json", {"tokenizer_class": 5}),
    ("tokenizer_config.json", {"chat_template": [{"name": "../../x", "template": "{{ 1 }}"}]}),
    ("tokenizer_config.json", {"chat_template": 5}),
    ("tokenizer_config.json", {"init_inputs": ["/etc/passwd"]}),
    ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.1.0.0.json"]}),
])  # fmt: skip
def test_a_value_of_another_type_is_named_with_its_file(folder, name, values):
    change(folder / name, **values)
    refused(folder, str(folder / name), next(iter(values)))


@pytest.mark.parametrize("name", [
    *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim", "rope_theta"),
    *("rms_norm_eps", "hidden_act", "rope_parameters", "tie_word_embeddings", "num_key_value_heads", "dtype"),
])  # fmt: skip
def test_any_value_in_a_configuration_ends_in_a_model_or_one_line(folder, name):
    for value in ("x", [], -1, 10**15, {"a": 1}):
        change(folder / "config.json", **{name: value})
        try:
            mp.load_model(folder)
        except mp.PruneError as error:
            assert "\n" not in str(error)


JSON_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json")
STRANGE = ("x", None, [], {}, -1, 0, 1.5, 10**15, True, "\ud83d", [1], {"a": 1}, "a" * 3000, [[]], "../x", "(a+)+$")


def disturb(folder, rounds, dice):
    """Put something strange at a random place of a JSON file, prune, and put the file back; how many were refused."""
    refusals = 0
    for _ in range(rounds):
        path = folder / dice.choice(JSON_FILES)
        before = path.read_text()
        content = json.loads(before)
        node = content
        while True:
            key = dice.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if not isinstance(node[key], (dict, list)) or not node[key] or dice.random() < 0.3:
                break
            node = node[key]
        node[key] = dice.choice(STRANGE)
        path.write_text(json.dumps(content))
        try:
            mp.prune_checkpoint(folder, folder.parent / "out", None, "magnitude", overwrite=True)
        except mp.PruneError as error:
            refusals += 1
            assert "\n" not in str(error) and len(str(error)) < 900
        path.write_text(before)
    return refusals


def test_anything_anywhere_in_a_json_file_ends_in_a_model_or_one_line(folder):
    assert 0 < disturb(folder, 25, random.Random(0)) < 25


@pytest.mark.slow
def test_many_things_anywhere_in_a_json_file_end_in_a_model_or_one_line(folder):
    assert 0 < disturb(folder, 600, random.Random(1)) < 600


def test_a_tokenizer_that_panics_is_one_line(folder):
    from minprune import load

    class PanicException(BaseException):
        """What a library in Rust raises: no `Exception`."""

    def panic(*arguments, **named):
        raise PanicException("called `Option::unwrap()` on a `None` value")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hf.AutoTokenizer, "from_pretrained", panic)
        with pytest.raises(mp.PruneError, match=r"cannot load the model.*unwrap"):
            load.load_tokenizer(folder, folder)


@pytest.mark.parametrize("normalizer", [
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000},
    {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "aa"}] * 40},
    {"type": "Prepend", "prepend": "a" * 100_000},
])  # fmt: skip
def test_a_normalizer_that_multiplies_the_text_is_refused(folder, normalizer):
    change(folder / "tokenizer.json", normalizer=normalizer)
    refused(folder, "normalizer", "times longer")


def test_the_normalizers_of_real_tokenizers_are_accepted(folder):
    change(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        {"type": "NFKC"},
    ]})  # fmt: skip
    assert read_all_json(folder)["model_type"] == "llama"


# --- the configuration and the stored tensors


@pytest.mark.parametrize("values", [
    {"num_hidden_layers": 10**9},
    {"num_hidden_layers": 100_000},
    {"vocab_size": 10**12},
    {"hidden_size": 2**40},
    {"intermediate_size": 10**13},
])  # fmt: skip
def test_a_configuration_far_larger_than_the_weights_is_refused_before_anything_is_built(folder, values):
    change(folder / "config.json", **values)
    refused(folder, "config.json", "get both from one source")


@pytest.mark.parametrize("values", [
    {"num_labels": 10**9},
    {"num_labels": 2**40, "id2label": None},
    {"_num_labels": 10**9},
    {"text_config": {"num_labels": 10**9}},
    {"first_k_dense_replace": 10**9},
    {"num_nextn_predict_layers": 10**9},
])  # fmt: skip
def test_a_number_of_which_the_library_makes_a_list_is_refused_before_it_sees_it(folder, values, monkeypatch):
    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", None)
    monkeypatch.setattr(hf.AutoTokenizer, "from_pretrained", None)
    change(folder / "config.json", **values)
    refused(folder, str(folder / "config.json"), "0000000" if 2**40 not in values.values() else str(2**40))


@pytest.mark.parametrize("values", [
    {"block_size": 10**6},
    {"attention_chunk_size": 10**6, "group_size": 10**6, "layer_norm_interval": 10**6},
    {"max_window_layers": 10**6, "num_experts_per_tok_max": 10**6, "head_chunk": 10**6},
    {"num_labels": 1000, "max_position_embeddings": 10**6, "block_list_size": 10**9},
])  # fmt: skip
def test_a_number_that_counts_no_modules_may_be_large(folder, values):
    change(folder / "config.json", **values)
    assert mp.load_model(folder) and open_checkpoint(folder).streamed


NAMES = [b"a:b.txt", "my\u202fnotes.md".encode(), b"\xe9t\xe9.txt", b"a\\b.json", b"c:\xe9.safetensors"]


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="the file system takes no such names")
@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_nobody_names_may_have_any_name(folder, tmp_path, name):
    path = os.path.join(os.fsencode(folder), name)
    with open(path, "w") as file:
        file.write("{}")
    assert mp.load_model(folder) and open_checkpoint(folder).identity()
    copy_files(folder, tmp_path)
    os.unlink(path)
    os.mkfifo(path)
    refused(folder, "is a pipe")
    os.unlink(path)
    os.symlink(os.path.abspath(__file__), path)
    refused(folder, "a link that leads out")


def test_a_table_far_larger_than_the_weights_is_refused(tmp_path):
    tiny_model("gptj").save_pretrained(tmp_path)
    change(tmp_path / "config.json", n_positions=10**12)
    stored = stored_tensors(tmp_path)
    from minprune.models.weight_files import check_sizes

    with pytest.raises(mp.PruneError, match="tables of"):
        check_sizes(tmp_path, describe(read_config(tmp_path), None), stored)


@pytest.mark.parametrize("family", FAMILIES | UNSUPPORTED_EXPERTS)
def test_every_family_fits_its_own_weights_and_its_tables_are_those_of_the_library(family, tmp_path):
    """In narrow dtypes they are computed in float32 and rounded, as `from_pretrained` does it."""
    from minprune.models.weight_files import check_sizes

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tiny_model(family, dtype).save_pretrained(tmp_path)
        stored = stored_tensors(tmp_path)
        check_counts(tmp_path / "config.json", json.loads((tmp_path / "config.json").read_text()), stored)
        model = describe(read_config(tmp_path), dtype)
        check_sizes(tmp_path, model, stored)
        assert all(parameter.is_meta for parameter in model.parameters())
        fill_tables(model)
        expected = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
        found = {name: table for name, table in model.named_buffers() if not table.is_meta}
        for name, table in expected.named_buffers():
            if name not in expected.state_dict():
                assert found[name].dtype == table.dtype and torch.equal(found[name], table), (dtype, name)


# --- what a folder is


@pytest.mark.parametrize("rename, said", [
    (lambda name: f"_orig_mod.{name}", "torch.compile"),
    (lambda name: f"module.{name}", "DataParallel"),
    (lambda name: name.replace("q_proj.weight", "q_proj.weight_orig"), "torch.nn.utils.prune"),
    (lambda name: f"base_model.model.{name}", "merge_and_unload"),
    (lambda name: name.replace("q_proj.weight", "q_proj.lora_A.default.weight"), "merge_and_unload"),
    (lambda name: name.replace("q_proj.weight", "q_proj.parametrizations.weight.original0"), "parametrizations"),
])  # fmt: skip
def test_names_that_a_wrapper_left_are_told_with_the_remedy(folder, rename, said):
    stored = {rename(name): tensor for name, tensor in load_file(folder / SINGLE).items()}
    save_file(stored, folder / SINGLE, metadata={"format": "pt"})
    refused(folder, "the tensors of", said)


def test_a_folder_of_an_adapter_or_of_gguf_is_called_so(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')
    refused(folder, "adapter (LoRA)", "merge it")
    (folder / "adapter_config.json").unlink()
    for path in folder.iterdir():
        path.unlink()
    (folder / "model.Q4.gguf").write_bytes(b"GGUF")
    refused(folder, "GGUF", "folder that it was made from")


@pytest.mark.parametrize("name, said", [
    ("m.gguf", "a GGUF file"),
    (SINGLE, "a file of weights"),
    ("pytorch_model.bin", "pickled"),
    ("model.pth", "pickled"),
])  # fmt: skip
def test_a_single_file_is_called_what_it_is(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path / name, said)


def test_names_of_files():
    assert all(map(is_name, ["a", "model-1.safetensors", "...", "\u00e9"]))
    assert not any(map(is_name, ["", ".", "..", "a/b", "/a", "a\\b", "c:x", "a\nb", "a\0", "\ufffd", 5, None]))


# --- what training scripts leave in a configuration


@pytest.mark.parametrize("flags", [
    {"return_dict": False},
    {"output_attentions": True},
    {"output_hidden_states": True},
    {"use_cache": False},
    {"torchscript": True},
    {"gradient_checkpointing": True},
    {"return_dict": False, "output_attentions": True, "output_hidden_states": True, "use_cache": False},
])  # fmt: skip
def test_flags_of_training_change_nothing(folder, tmp_path, text_file, flags, capsys):
    words = ["--method", "wanda", "--calibration", text_file, "--samples", 4, "--length", 24, "--test", text_file]
    assert main([str(word) for word in ["prune", folder, *words, "--output", tmp_path / "plain"]]) == 0
    change(folder / "config.json", **flags)
    assert main([str(word) for word in ["prune", folder, *words, "--output", tmp_path / "out"]]) == 0
    plain, out = ({n: t for p in sorted((tmp_path / name).glob("*.safetensors")) for n, t in load_file(p).items()}
        for name in ("plain", "out"))  # fmt: skip
    assert plain.keys() == out.keys() and all(torch.equal(plain[name], out[name]) for name in plain)
    command = ["eval", folder, "--text", text_file, "--samples", 4, "--length", 24]
    assert main([str(word) for word in command]) == 0
    save_model(*mp.load_model(folder), tmp_path / "small")
    assert mp.load_model(tmp_path / "small")


def test_flags_of_a_model_in_memory_change_no_perplexity(folder):
    model = mp.load_model(folder)[0]
    tokens = torch.arange(48).reshape(2, 24)
    before = mp.perplexity(model, tokens)
    model.config.return_dict = False
    assert mp.perplexity(model, tokens) == before
    for batch_size in (None, 1):
        assert mp.prune(model, tokens, "wanda", "50%", batch_size=batch_size).sparsity == 0.5


# --- what the folder holds beside the model


def with_more(folder, family="qwen2"):
    """Processor files, a licence, code and pickles in the folder."""
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        (folder / name).write_text('{"a": 1}')
    for name in ("LICENSE", "NOTICE.txt", "modeling_own.py", "pytorch_model.bin", "optimizer.pt", "trainer_state.json"):
        (folder / name).write_text("text")
    return {
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
        "LICENSE",
        "NOTICE.txt",
    }


def test_processor_files_and_licences_are_copied_and_code_is_not(folder, tmp_path):
    more = with_more(folder)
    mp.prune_checkpoint(folder, tmp_path / "out", None, "magnitude")
    assert main(["export", str(tmp_path / "out"), "--output", str(tmp_path / "small")]) == 0
    for output in ("out", "small"):
        names = {path.name for path in (tmp_path / output).iterdir()}
        assert more <= names
        assert not names & {"modeling_own.py", "pytorch_model.bin", "optimizer.pt", "trainer_state.json"}
    assert (tmp_path / "out" / "LICENSE").read_text() == "text"


MORE = {"mtp.fc.weight": torch.arange(6.0).reshape(2, 3), "mtp.norm.weight": torch.ones(3, dtype=torch.bfloat16)}


@pytest.mark.parametrize("whole", [False, True])
def test_tensors_that_the_library_does_not_load_are_copied_and_noted(folder, tmp_path, tiny_folder, monkeypatch, whole):
    monkeypatch.setattr(hf.LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"^mtp.*"], raising=False)
    if whole:
        monkeypatch.setattr(hf.LlamaForCausalLM, "_keep_in_fp32_modules", {"nothing"})
    save_file(load_file(folder / SINGLE) | MORE, folder / SINGLE, metadata={"format": "pt"})
    report = mp.prune_checkpoint(folder, tmp_path / "out", None, "magnitude")
    assert any("mtp.fc.weight" in note and "2 tensors" in note for note in report.notes)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    stored = {
        name: tensor for path in (tmp_path / "out").glob("*.safetensors") for name, tensor in load_file(path).items()
    }
    assert set(index["weight_map"]) == set(stored)
    assert all(name in load_file(tmp_path / "out" / file) for name, file in index["weight_map"].items())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())
    for name, tensor in MORE.items():
        assert stored[name].dtype == tensor.dtype and torch.equal(stored[name], tensor)
    assert mp.load_model(tmp_path / "out")
    save_model(*mp.load_model(tmp_path / "out"), tmp_path / "plain")
    assert main(["export", str(tmp_path / "out"), "--output", str(tmp_path / "small")]) == 0
    mp.prune_checkpoint(tmp_path / "small", tmp_path / "again", None, "magnitude", "75%")
    assert all(torch.equal(load_file(tmp_path / "again" / NOT_LOADED)[name], tensor) for name, tensor in MORE.items())


# --- one read, and why it is not block by block


def test_a_model_that_is_not_streamed_says_why_and_how_much(tmp_path, tiny_folder, caplog):
    tiny_model("mixtral").save_pretrained(tmp_path / "src")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, tmp_path / "src")
    report = mp.prune_checkpoint(tmp_path / "src", tmp_path / "out", None, "magnitude")
    (note,) = [note for note in report.notes if "loaded whole" in note]
    assert "203 kB" in note and "renames or merges" in note and note in caplog.text
    assert note in json.loads((tmp_path / "out" / "minprune.json").read_text())["notes"]


@pytest.mark.parametrize("hidden", ["_adjust_missing_and_unexpected_keys", "get_model_conversion_mapping"])
def test_what_another_version_of_the_library_lacks_switches_streaming_off_with_the_reason(folder, monkeypatch, hidden):
    from transformers import conversion_mapping

    from minprune.pipeline import streaming as stream

    loaded = mp.load_model(folder)

    def gone(model):
        raise AttributeError(hidden)

    if hidden.startswith("_"):
        monkeypatch.setattr(hf.LlamaForCausalLM, hidden, property(gone))
    else:
        monkeypatch.delattr(conversion_mapping, hidden)
    monkeypatch.setattr(stream, "load_model", lambda *arguments: loaded)
    source = open_checkpoint(folder)
    assert not source.streamed and hidden in source.notes[0] and source.model is loaded[0]


def test_every_byte_is_read_once_and_another_time_only_to_verify(folder, tmp_path, monkeypatch):
    from minprune.pipeline import sources
    from minprune.pipeline.sources import StreamedCheckpoint

    read, hashed, real = [], [], StreamedCheckpoint._read

    def counted(self, names):
        for name, value in real(self, names):
            read.append(name)
            yield name, value

    monkeypatch.setattr(StreamedCheckpoint, "_read", counted)
    monkeypatch.setattr(sources, "sha256", lambda path: hashed.append(path.name) or "x")
    mp.prune_checkpoint(folder, tmp_path / "out", None, "magnitude")
    assert sorted(read) == sorted(load_file(folder / SINGLE)) and hashed == []
    mp.prune_checkpoint(folder, tmp_path / "verified", None, "magnitude", verify=True)
    assert hashed == [SINGLE]


def test_a_checkpoint_is_known_by_header_size_and_time_or_by_all_its_bytes(folder):
    source = open_checkpoint(folder)
    quick, full = source.identity(), source.identity(verify=True)
    assert (quick, full) == (open_checkpoint(folder).identity(), open_checkpoint(folder).identity(verify=True))
    content, about = bytearray((folder / SINGLE).read_bytes()), (folder / SINGLE).stat()
    content[-3] ^= 1
    (folder / SINGLE).write_bytes(content)
    os.utime(folder / SINGLE, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert open_checkpoint(folder).identity() == quick
    assert open_checkpoint(folder).identity(verify=True) != full
    os.utime(folder / SINGLE)
    assert open_checkpoint(folder).identity() != quick
