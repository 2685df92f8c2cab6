"""weight_files.py: a checkpoint that is damaged or no causal model is refused with its file's name and what to do."""

import json
import shutil

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, tiny_model

import minprune as mp
from minprune.models.causality import check_causal
from minprune.models.weight_files import INDEX, SINGLE, check_folder
from minprune.pipeline.streaming import open_checkpoint

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path, tiny_folder):
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def configure(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def store(folder, tensors):
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def in_parts(folder, *parts):
    """Rename the weights to the first of two parts, with an index that names the parts in turn."""
    names = sorted(load_file(folder / SINGLE))
    (folder / SINGLE).rename(folder / parts[0])
    weight_map = {name: parts[min(place, len(parts) - 1)] for place, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refused(folder, *said):
    """Whether the model is refused in one line that says this, when loaded and when read block by block."""
    for load in (mp.load_model, open_checkpoint):
        with pytest.raises(mp.PruneError) as caught:
            load(folder)
        message = str(caught.value)
        assert all(text in message for text in said) and "\n" not in message and len(message) < 500, message


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ['{"a": ', "[]", "\xff"])
def test_a_damaged_json_file_is_named(folder, name, content):
    (folder / name).write_text(content, encoding="latin-1")
    refused(folder, f"{folder / name} ", "copy or download it again")


def test_a_wrong_value_in_the_configuration_is_named(folder):
    configure(folder, num_attention_heads=5)
    refused(folder, "config.json is wrong", "hidden size (64) is not a multiple", "heads (5)", "again")
    configure(folder, num_attention_heads=4, hidden_size="64")
    refused(folder, "config.json is wrong", "'hidden_size' expected int", "again")


def test_a_model_of_another_kind_is_refused_in_words(folder):
    configure(folder, model_type="t5")
    refused(folder, "no causal language model")
    configure(folder, model_type="tomorrow")
    refused(folder, "model_type", "upgrade transformers")


def test_what_is_wrong_with_the_parts_of_a_checkpoint_is_said(folder):
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    in_parts(folder, first, second)
    refused(folder, f"{folder / second} is missing", INDEX, "again")
    (folder / INDEX).write_text("{}")
    refused(folder, str(folder / INDEX), "which file", "again")
    (folder / INDEX).unlink()
    refused(folder, f"no {INDEX}", "again")


@pytest.mark.parametrize("size", [0, 5, 100_000])
def test_truncated_weights_are_named_from_the_header_alone(folder, size):
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:size])
    refused(folder, f"{folder / SINGLE} is damaged or incomplete", "again")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.ckpt", "model.pt"])
def test_pickled_weights_are_refused_whatever_lies_beside_them(folder, name):
    (folder / SINGLE).rename(folder / "adapter_model.safetensors")
    refused(folder, f"no .safetensors weights of a model: {SINGLE}")
    (folder / name).write_bytes(b"pickled")
    refused(folder, "pickled weights", "convert them to safetensors")


def test_quantised_weights_are_refused_with_or_without_their_configuration(folder):
    configure(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(folder, "quantised", "use the model that it was made from")
    configure(folder, quantization_config=None)
    tensors = load_file(folder / SINGLE)
    store(folder, tensors | {UP: (100 * tensors[UP]).to(torch.int8)})
    refused(folder, f"{SINGLE}: {UP} holds I8", "use the model that it was made from")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64, torch.complex64])
@pytest.mark.parametrize("bare", [False, True])
def test_a_parameter_that_is_no_floats_is_refused_whatever_its_name(folder, dtype, bare):
    """Loading would convert it: what was -0.1 to a quantiser would become -13."""
    configure(folder, attention_bias=True)
    tensors = load_file(folder / SINGLE)
    for name in [name for name in tensors if "self_attn" in name]:
        tensors[name.replace(".weight", ".bias")] = torch.ones(len(tensors[name]))
    store(folder, tensors)
    assert mp.load_model(folder) and open_checkpoint(folder).streamed
    bias = "model.layers.0.self_attn.o_proj.bias"
    tensors[bias] = torch.ones(64).to(dtype)
    if bare:  # as a model that was saved without its head
        tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
        bias = bias.removeprefix("model.")
    store(folder, tensors)
    refused(folder, f"{SINGLE}: {bias} holds ", "not floats", "use the model that it was made from")


def test_a_tensor_in_two_files_is_refused_with_the_names_of_both(folder):
    """The library takes that of the last file, whichever the index names."""
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    tensors = load_file(folder / SINGLE)
    in_parts(folder, *parts)
    index = json.loads((folder / INDEX).read_text())
    for part in parts:
        named = {name: tensors[name] for name, file in index["weight_map"].items() if file == part}
        save_file(named | {UP: torch.full_like(tensors[UP], 7.0)}, folder / part, metadata={"format": "pt"})
    refused(folder, UP, "stored twice", *parts)


def test_a_block_that_the_configuration_leaves_out_is_refused(folder):
    configure(folder, num_hidden_layers=1)
    refused(folder, "no place for 9 of its tensors, such as model.layers.1.", "one source")


def test_what_the_library_leaves_out_on_purpose_is_no_reason_to_refuse(folder):
    tensors = load_file(folder / SINGLE)
    store(folder, tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    source = open_checkpoint(folder)
    assert source.streamed
    configure(folder, tie_word_embeddings=True)
    store(folder, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    assert mp.load_model(folder) and open_checkpoint(folder).streamed


def test_two_tensors_that_the_configuration_calls_one_are_told_as_two(folder):
    configure(folder, tie_word_embeddings=True)
    source = open_checkpoint(folder)
    said = "config.json says that lm_head.weight and model.embed_tokens.weight are one, but two are stored"
    assert not source.streamed and any(said in note for note in source.notes)


def test_a_masked_language_model_is_refused(folder):
    for name in ("config.json", SINGLE):
        (folder / name).unlink()
    config = hf.BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    hf.BertForMaskedLM(config).save_pretrained(folder)
    tokens = torch.randint(5, 300, (2, 16))
    for use in (mp.load_model, lambda path: mp.prune_checkpoint(path, path.with_name("out"), tokens, "wanda", "50%")):
        with pytest.raises(mp.PruneError, match=r"BertForMaskedLM.*is not causal.*predict the next token"):
            use(folder)
    assert not folder.with_name("out").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_causal_with_and_without_its_head(family, tmp_path):
    model = tiny_model(family)
    for part in (model, model.base_model):
        part.save_pretrained(tmp_path)
        check_causal(hf.AutoModelForCausalLM.from_pretrained(tmp_path))
    check_folder(tmp_path)
