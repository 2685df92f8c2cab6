"""layers.py: which layers are found, how they are named and viewed, and what is refused."""

import copy
import json

import pytest
import torch
import transformers as hf
from tiny import FAMILIES, UNSUPPORTED_EXPERTS, VOCABULARY, tiny_model, tiny_tokens
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import minprune as mp
from minprune.load import check_device
from minprune.models.layers import check_windows, decoder_blocks, is_conv1d


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_the_blocks_is_found_once_and_no_other(family):
    model = tiny_model(family)
    linear = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Linear, Conv1D))}
    linear -= {id(model.get_output_embeddings().weight)}
    stacks = {id(p) for p in model.parameters() if p.ndim == 3}
    layers = mp.find_layers(model)
    found = [id(getattr(layer.module, layer.parameter)) for layer in layers]
    assert set(found) == linear | stacks
    experts = sum(len(p) for p in model.parameters() if p.ndim == 3)
    assert len(layers) == len({layer.name for layer in layers}) == len(linear) + experts


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layers_weight_is_the_matrix_that_multiplies_its_input(family):
    """y = x W^T + b, whatever way the module stores W."""
    model = tiny_model(family, torch.float64)
    for layer in mp.find_layers(model):
        if layer.expert_index is not None:
            continue
        x = torch.randn(3, layer.weight.shape[1], dtype=torch.float64)
        bias = getattr(layer.module, "bias", None)
        expected = x @ layer.weight.T + (0 if bias is None else bias)
        torch.testing.assert_close(layer.module(x), expected)
        assert is_conv1d(layer.module) == (family == "gpt2")


def test_writing_to_a_layers_weight_changes_the_model():
    for family in ("llama", "gpt2", "mixtral"):
        model = tiny_model(family)
        before = model(tiny_tokens()).logits
        for layer in mp.find_layers(model):
            layer.weight.zero_()
        assert not torch.equal(model(tiny_tokens()).logits, before)


def test_layers_come_block_by_block_in_the_order_of_the_model():
    names = [layer.name for layer in mp.find_layers(tiny_model("llama"))]
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    parts += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert names == [f"model.layers.{block}.{part}" for block in (0, 1) for part in parts]


def test_include_and_exclude_are_globs_over_full_names():
    model = tiny_model("llama", tie_word_embeddings=False)

    def names(**globs):
        return [layer.name for layer in mp.find_layers(model, **globs)]

    assert names(include="*.q_proj") == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    assert names(include=["model.layers.1.mlp.*"], exclude=["*.up_proj"]) == [
        "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.down_proj",
    ]
    assert names(exclude=["lm_head"]) == names()
    assert names(include=["lm_head"]) == ["lm_head"]
    assert names(include=["*"]) == [*names(), "lm_head"]


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_glob_that_matches_nothing_is_refused_with_an_example(option):
    with pytest.raises(mp.PruneError, match=rf"{option} '\*\.w1'.*model\.layers\.0\.self_attn\.q_proj"):
        mp.find_layers(tiny_model("llama"), **{option: ["*.w1"]})


def test_leaving_no_layer_is_refused():
    with pytest.raises(mp.PruneError, match="no layer"):
        mp.find_layers(tiny_model("llama"), include=["*.q_proj"], exclude=["*"])


@pytest.mark.parametrize("family", ["gemma2", "opt", "gpt2", "falcon", "bloom", "starcoder2", "cohere"])
def test_an_output_head_tied_to_the_embeddings_is_refused_with_the_reason(family):
    with pytest.raises(mp.PruneError, match="lm_head is tied to the input embeddings"):
        mp.find_layers(tiny_model(family, tie_word_embeddings=True), include=["lm_head"])


@pytest.mark.parametrize("family", UNSUPPORTED_EXPERTS)
def test_experts_in_another_layout_are_refused_by_name_unless_excluded(family):
    model = tiny_model(family)
    with pytest.raises(mp.PruneError, match=r"model\.layers\.0\..*experts\.gate_up_proj\.0 .*layout.*exclude"):
        mp.find_layers(model)
    layers = mp.find_layers(model, exclude=["*.experts.*"])
    assert layers and all(layer.expert_index is None for layer in layers)


TEXT = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}


def seeing(kind, depth, tower_last):
    """A tiny model with a tower for images of that depth, before the language model or after it."""
    if kind == "llava":
        config = hf.LlavaConfig(
            text_config=hf.LlamaConfig(**TEXT),
            vision_config=hf.CLIPVisionConfig(**VISION, num_hidden_layers=depth),
            image_token_index=5,
        )
        model = hf.LlavaForConditionalGeneration(config).eval()
    else:
        config = hf.Gemma3Config(
            text_config=hf.Gemma3TextConfig(**TEXT, head_dim=8),
            vision_config=hf.SiglipVisionConfig(**VISION, num_hidden_layers=depth),
            mm_tokens_per_image=4,
        )
        model = AutoModelForCausalLM.from_config(config).eval()
    parts = model.model._modules
    if tower_last:
        parts["vision_tower"] = parts.pop("vision_tower")
    return model


@pytest.mark.parametrize("tower_last", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kind", ["llava", "gemma3"])
def test_of_a_model_that_sees_the_language_model_is_pruned_and_never_the_tower(kind, depth, tower_last):
    for method in ("magnitude", "wanda"):
        model = seeing(kind, depth, tower_last)
        dense = copy.deepcopy(model)
        report = mp.prune(model, tiny_tokens(), method, "50%")
        names = {f"{row.name}.weight" for row in report.layers}
        assert len(names) == 14 and report.sparsity == 0.5
        for (name, value), other in zip(model.named_parameters(), dense.named_parameters(), strict=True):
            assert (name in names) == ("language_model.layers" in name and value.ndim == 2)
            assert torch.equal(value, other[1]) == (name not in names), name


BLOCKS = {  # a configuration -> the name of the list of its blocks
    "model.decoder.layers": hf.BartConfig(
        vocab_size=96, d_model=32, encoder_layers=2, decoder_layers=3, decoder_ffn_dim=48, decoder_attention_heads=4
    ),
    "model.layers": hf.LongcatFlashConfig(
        **{**TEXT, "num_key_value_heads": 4, "num_hidden_layers": 4},
        num_layers=2,
        n_routed_experts=4,
        zero_expert_num=2,
        moe_topk=2,
        expert_ffn_hidden_size=24,
        ffn_hidden_size=48,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
    ),
    "bert.encoder.layer": hf.BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, is_decoder=True
    ),
}


@pytest.mark.parametrize("expected", BLOCKS)
def test_decoder_blocks_are_those_of_the_decoder_whatever_the_configuration_calls_their_number(expected):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(BLOCKS[expected])
    name, blocks = decoder_blocks(model)
    assert name == expected and len(blocks) == {"bert": 2, "bart": 3, "longcat_flash": 2}[model.config.model_type]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_much_of_a_block_that_is_in_no_linear_layer_is_said_to_stay_dense(batch_size):
    class Product(nn.Module):
        def __init__(self, kernel):
            super().__init__()
            self.kernel = nn.Parameter(kernel)

        def forward(self, X):
            return X @ self.kernel.T

    model = tiny_model("llama")
    assert mp.prune(copy.deepcopy(model), tiny_tokens(), "wanda", batch_size=batch_size).notes == []
    for block in model.model.layers:
        block.mlp.up_proj = Product(block.mlp.up_proj.weight.data)
    share = 2 * 48 * 32 / sum(p.numel() for p in model.model.layers.parameters())
    (note,) = mp.prune(model, tiny_tokens(), "wanda", batch_size=batch_size).notes
    assert note.startswith(f"2 tensors of the blocks, {share:.0%} of their weights, are in no linear layer")
    assert note.endswith("such as model.layers.0.mlp.up_proj.kernel")


def test_blocks_that_are_several_lists_side_by_side_are_refused_by_name():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf.XLMConfig(vocab_size=96, emb_dim=32, n_layers=2, n_heads=4))
    with pytest.raises(mp.PruneError, match=r"XLMWithLMHeadModel.*attentions, transformer\.ffns"):
        decoder_blocks(model)


@pytest.mark.slow
def test_every_causal_model_of_the_library_has_blocks_in_its_language_model_or_is_refused_by_name():
    """In the sizes that the library's own defaults give, without weights; what cannot be made that way is passed by."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    refused, made = set(), 0
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(hf.CONFIG_MAPPING[kind]())
        except Exception:  # of any kind: defaults that do not fit, packages that are not there
            continue
        made += 1
        try:
            name, blocks = decoder_blocks(model)
        except mp.PruneError as error:
            refused.add(kind)
            assert type(model).__name__ in str(error)
            continue
        assert not any(word in name for word in ("vision", "visual", "audio", "image", "tower")), name
        apart = ("embed", "head", "vision", "image", "audio")
        others = [p for n, p in model.named_parameters() if not n.startswith(name) and not any(w in n for w in apart)]
        assert sum(p.numel() for p in blocks.parameters()) > sum(p.numel() for p in others), name
    assert refused == {"blt", "hrm_text", "xlm"} and made > 150


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("globs", [5, None, ["*", 5], [None], b"*.mlp.*"])
def test_globs_that_are_none_are_refused_with_what_they_should_be(option, globs):
    if (option, globs) == ("include", None):
        return
    with pytest.raises(mp.PruneError, match=rf"{option} is a glob.*'\*\.mlp\.\*'"):
        mp.prune(tiny_model("llama"), None, "magnitude", **{option: globs})


def test_globs_tell_upper_from_lower_case():
    with pytest.raises(mp.PruneError, match="matches no layer"):
        mp.find_layers(tiny_model("llama"), include=["*.Q_PROJ"])


def test_decoder_blocks_are_found_and_their_absence_is_an_error():
    name, blocks = decoder_blocks(tiny_model("gpt_neox"))
    assert name == "gpt_neox.layers" and len(blocks) == 2
    model = tiny_model("llama")
    model.config.num_hidden_layers = 3
    with pytest.raises(mp.PruneError, match=r"3 decoder blocks .* in LlamaForCausalLM"):
        decoder_blocks(model)


@pytest.mark.parametrize(
    "tokens, reason",
    [
        (torch.zeros(2, 65, dtype=torch.long), "65 tokens.*64 positions"),
        (torch.full((2, 8), VOCABULARY), "vocabulary"),
        (torch.full((2, 8), -1), "vocabulary"),
        (torch.zeros(8, dtype=torch.long), r"\(windows, length\)"),
        (torch.zeros(2, 8), "int64"),
        (torch.zeros(0, 8, dtype=torch.long), "windows"),
        (torch.zeros(2, 0, dtype=torch.long), "tokens"),
        (torch.zeros(2, 8, dtype=torch.long, device="meta"), "meta"),
        (torch.zeros(2, 8, dtype=torch.long).to_sparse(), "sparse"),
    ],
)
def test_windows_that_the_model_cannot_read_are_refused(tokens, reason):
    with pytest.raises(mp.PruneError, match=reason):
        check_windows(tiny_model("llama"), tokens)


def test_an_unknown_device_is_refused():
    for device in ("cuda:99", "abacus"):
        with pytest.raises(mp.PruneError, match=device):
            check_device(device)


def test_a_folder_without_a_configuration_or_weights_is_refused(tmp_path, tiny_folder):
    with pytest.raises(mp.PruneError, match=r"config\.json"):
        mp.load_model(tmp_path)
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    with pytest.raises(mp.PruneError, match=r"no \.safetensors"):
        mp.load_model(tmp_path)


def test_missing_weights_are_refused_instead_of_drawn_at_random(tmp_path, tiny_folder):
    from safetensors.torch import load_file, save_file

    for path in tiny_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(mp.PruneError, match=r"model\.layers\.1\.mlp\.up_proj"):
        mp.load_model(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_loads_as_saved_in_eval_mode_and_in_the_dtype_asked_for(tmp_path, tiny_folder, dtype):
    model, tokenizer = mp.load_model(tiny_folder, dtype=str(dtype).removeprefix("torch."))
    expected = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=dtype)
    assert not model.training and model.dtype == dtype
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(parameter, other)
    assert tokenizer.decode(tokenizer("the moon")["input_ids"]) == "the moon"
    with pytest.raises(mp.PruneError, match=r"'int8'.*bfloat16"):
        mp.load_model(tiny_folder, dtype="int8")


def test_code_of_a_repository_is_never_run(tmp_path, tiny_folder):
    for path in tiny_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {k: "own.Own" for k in ("AutoConfig", "AutoModelForCausalLM")}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(mp.PruneError, match="cannot load"):
        mp.load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_layers_are_compared_by_identity_so_two_models_never_share_one():
    model = tiny_model("llama")
    first, second = mp.find_layers(model), mp.find_layers(copy.deepcopy(model))
    assert all(a != b for a, b in zip(first, second, strict=True))
