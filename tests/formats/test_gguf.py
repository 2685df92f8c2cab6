"""GGUF files: transformers reads the weights that the formula gives, zeros and tokens stay, and the rest is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from tiny import tiny_model, tiny_tokens
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import minprune as mp
from minprune.formats.gguf import write_gguf
from minprune.models.layers import find_layers

TEXTS = [
    "the moon goes around a planet",
    "  two blanks, then\n\n\tlines and a tab ",
    "It's 1969: don't you know 20,000 leagues, 3.14159 or x86?",
    "Größe, naïve, 東京, Москва, 🚀🌙",
    "<end>a special token<end> inside",
    "def f(x):\n    return x**2  # squared",
    "ALL CAPITALS AND camelCase_snake",
    "\u00a0no-break\u2003em space\r\nwindows line",
    "... --- !!! ???''\"\"",
    "",
]
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def bpe(cut, ignore_merges=False, special=("<end>",), **wrapped):
    """A byte-level BPE tokenizer trained on the texts, with this pre-tokenizer."""
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer, made.decoder = cut, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=list(special))
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", bos_token="<end>", **wrapped)


def split(digits):
    """The cut of Qwen 2 ("") or Llama 3 ("{1,3}")."""
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS % digits), "isolated"), bytes_of])


def plain():
    """The cut of GPT-2."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def pruned(family="llama", pattern="2:4", **changes):
    """A tiny model, every matrix of its blocks pruned; widths of 64 and 96, four heads on two."""
    sizes = {"vocab_size": 420, "hidden_size": 64, "intermediate_size": 96} | changes
    model = tiny_model(family, **sizes)
    mp.prune(model, None, "magnitude", pattern)
    return model


def rounded(W, kind):
    """The weights on the grid of the type, by the formula, block by block: no code of the package's.

    As in ggml's C, in float32 and with 1 / d: what lies half-way between two levels goes where that says.
    """
    W, one = W.numpy(), np.float32(1)
    if kind == "f32":
        return W
    if kind == "f16":
        return W.astype(np.float16).astype(np.float32)
    out = np.zeros_like(W)
    for i, j in np.ndindex(W.shape[0], W.shape[1] // 32):
        block = W[i, 32 * j : 32 * j + 32]
        largest = block[np.argmax(np.abs(block))]
        d = abs(largest) / np.float32(127) if kind == "q8_0" else largest / np.float32(-8)
        if d == 0:
            continue
        q = block * (one / d)
        if kind == "q8_0":
            q = np.sign(q) * np.floor(np.abs(q.astype(float)) + 0.5)
        else:
            q = np.clip(np.floor(q + np.float32(8.5)), 0, 15) - 8
        out[i, 32 * j : 32 * j + 32] = q * np.float32(np.float16(d))
    return out


def expected(model, kind):
    """The model with every matrix rounded, as the file shall hold it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                in_block = name.startswith("model.layers")
                form = "f16" if parameter.shape[1] % 32 and kind != "f32" else kind
                form = "q8_0" if form == "q4_0" and not in_block else form
                parameter.copy_(torch.from_numpy(rounded(parameter.detach().float(), form)))
    return model


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens(2, 20)).logits


def read(folder):
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def words():
    return bpe(plain())


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "rope_theta": 500.0, "rms_norm_eps": 1e-3}),
        ("llama", {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1}),  # as if heads were removed
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
    ],
)
def test_transformers_computes_what_weights_rounded_by_the_formula_give(family, changes, kind, tmp_path, words):
    model = pruned(family, **changes)
    write_gguf(tmp_path, model, words, kind)
    again = read(tmp_path)
    mine = model.state_dict()
    for name, weight in again.state_dict().items():
        zero = mine[name] == 0
        assert zero.sum() >= 0.5 * zero.numel() or "proj.weight" not in name
        assert (weight[zero] == 0).all(), name
    assert torch.allclose(logits(again), logits(expected(model, kind)), atol=1e-4, rtol=0)


def test_a_bfloat16_model_is_rounded_from_its_own_numbers(tmp_path, words):
    model = pruned()
    for parameter in model.parameters():  # and not the rotary frequencies
        parameter.data = parameter.data.bfloat16()
    write_gguf(tmp_path, model, words, "q8_0")
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    assert torch.allclose(logits(read(tmp_path)), logits(expected(model, "q8_0")), atol=1e-4, rtol=0)


def test_a_width_that_is_no_multiple_of_32_stays_float16(tmp_path, words):
    model = pruned(intermediate_size=80)
    rows = write_gguf(tmp_path, model, words, "q4_0")
    forms = {row.name.split(".")[-1]: row.format for row in rows}
    assert forms == dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"), "Q4_0") | {
        "down_proj": "F16",
        "embed_tokens": "Q8_0",
        "lm_head": "Q8_0",
    }
    assert torch.allclose(logits(read(tmp_path)), logits(expected(model, "q4_0")), atol=1e-4, rtol=0)


def one_matrix(W, folder, words, kind):
    """(the row, the matrix read back) of a model of which W (96, 64) is one gate projection."""
    model = pruned()
    model.model.layers[0].mlp.gate_proj.weight.data.copy_(W)
    rows = {row.name: row for row in write_gguf(folder, model, words, kind)}
    name = "model.layers.0.mlp.gate_proj"
    return rows[name], read(folder).state_dict()[f"{name}.weight"]


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_the_error_is_that_of_the_file_and_within_the_bound(kind, tmp_path, words, generator):
    """Halves of steps too, empty blocks, one sign only, and the weight opposite to the largest."""
    W = torch.randn(96, 64, generator=generator)
    W[0], W[1], W[2] = 0, W[1].abs(), -W[2].abs()
    W[3, :4], W[3, 4:] = torch.tensor([8.0, -8.0, 0.5, -0.5]), torch.arange(60) / 8 - 3.75
    W[4, :2], W[4, 2:] = torch.tensor([127.0, -127.0]), torch.arange(62) - 30.5
    row, back = one_matrix(W, tmp_path, words, kind)
    largest = W.view(96, 2, 32).abs().amax(dim=2, keepdim=True).expand(96, 2, 32).reshape(96, 64)
    step = largest / (127 if kind == "q8_0" else 8)
    error = (back - W).abs()
    beyond = (largest - W.abs() < step / 2) if kind == "q4_0" else torch.zeros_like(W, dtype=torch.bool)
    assert (error <= torch.where(beyond, step, step / 2) + largest / 2000).all()
    assert row.error == pytest.approx(float((back - W).norm() / W.norm()), rel=1e-5)
    assert torch.equal(back, torch.from_numpy(rounded(W, kind)).float())


def test_weights_that_the_file_holds_as_zeros_are_lost_however_small_they_are(tmp_path, words, generator):
    W = torch.randint(-7, 8, (96, 64), generator=generator).float()
    for power in (40, 140):  # below what a scale in float16 can say, and below the smallest normal float32
        kept, back = one_matrix(W * 2.0**-power, tmp_path, words, "q8_0")
        assert kept.error == 1 and not back.any()


def test_weights_of_another_four_bit_grid_are_rounded_once_more(tmp_path, words, generator):
    """A symmetric grid of 15 levels is none of Q4_0; one whose largest weight is -8 steps is kept."""
    codes = torch.randint(-7, 8, (96, 64), generator=generator).float()
    codes[:, ::32] = 7
    assert one_matrix(codes / 16, tmp_path, words, "q4_0")[0].error > 0.01
    codes[:, ::32] = -8
    kept, back = one_matrix(codes / 16, tmp_path, words, "q4_0")
    assert kept.error == 0 and torch.equal(back, codes / 16)


def test_a_weight_that_the_type_cannot_hold_is_refused(tmp_path, words):
    model = pruned()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = 1e6
    with pytest.raises(mp.PruneError, match=r"up_proj.weight has a weight of 1e\+06, too large for F16: use f32"):
        write_gguf(tmp_path, model, words, "f16")
    assert list(tmp_path.iterdir()) == []
    write_gguf(tmp_path, model, words, "f32")
    assert read(tmp_path).model.layers[1].mlp.up_proj.weight[0, 0] == 1e6


# the tokenizer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cut", "name", "options"),
    [
        (plain(), "gpt-2", {}),
        (split(""), "qwen2", {}),
        (split("{1,3}"), "llama-bpe", {"ignore_merges": True}),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain()]), "smollm", {}),
    ],
)
def test_the_tokenizer_in_the_file_encodes_as_the_original(cut, name, options, tmp_path):
    tokenizer = bpe(cut, special=("<end>", "<|im_start|>"), **options)
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template = "{{ messages }}"
    write_gguf(tmp_path, pruned(), tokenizer)
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == name and fields["tokenizer.ggml.model"].contents() == "gpt2"
    types = fields["tokenizer.ggml.token_type"].contents()
    assert len(types) == 420 and types[:3] == [3, 3, 1] and types[len(tokenizer) - 1 :][:2] == [4, 5]
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in [*TEXTS, "<|im_start|>a <think> b"]:
        assert again(text).input_ids == tokenizer(text).input_ids, text
    assert again.eos_token == again.bos_token == "<end>" and again.chat_template == tokenizer.chat_template


def test_a_tokenizer_that_begins_with_a_special_token_says_so(tmp_path, words):
    tokenizer = bpe(plain())
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<end> $A", None, [("<end>", 0)])
    for one, first in ((tokenizer, True), (words, False)):
        (tmp_path / str(first)).mkdir()
        write_gguf(tmp_path / str(first), pruned(), one)
        fields = GGUFReader(tmp_path / str(first) / "model.gguf").fields
        assert fields["tokenizer.ggml.add_bos_token"].contents() is first
        assert fields["tokenizer.ggml.add_eos_token"].contents() is False


def unigram():
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", -1.0), ("<u>", -2.0)], unk_id=1)))


def lowering():
    made = bpe(plain())
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    return made


def twice_around():
    made = bpe(plain())
    made.backend_tokenizer.post_processor = processors.TemplateProcessing("<end> <end> $A", None, [("<end>", 0)])
    return made


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (unigram, "it is Unigram"),
        (lowering, "its normalizer is .*Lowercase"),
        (twice_around, r"it makes \[0, 0, \d+\] of 'a'"),
        (lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)), "its pre-tokenizer is"),
        (lambda: bpe(split("{1,2}")), "its pre-tokenizer is"),
        (lambda: bpe(split("{1,3}")), "its ignore_merges is false"),
        (lambda: bpe(pre_tokenizers.Whitespace()), "its pre-tokenizer is"),
        (object, "it has no tokenizer.json"),
    ],
)
def test_a_tokenizer_that_would_cut_otherwise_is_refused(make, reason, tmp_path):
    with pytest.raises(mp.PruneError, match=f"^no GGUF file: the tokenizer cannot be written .{reason}"):
        write_gguf(tmp_path, pruned(), make())
    assert list(tmp_path.iterdir()) == []


def test_a_token_without_an_embedding_is_refused(tmp_path, words):
    with pytest.raises(mp.PruneError, match=r"its token .* is none of the model's 300"):
        write_gguf(tmp_path, pruned(vocab_size=300), words)


# models that are refused, and the command --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gpt2", {}, "the family 'gpt2' is not llama, mistral, qwen2"),
        ("qwen3", {}, "the family 'qwen3'"),
        ("mixtral", {}, "the family 'mixtral'"),
        ("mistral", {}, "sees only 8 tokens"),
        ("llama", {"attention_bias": True}, "llama with biases"),
        ("llama", {"mlp_bias": True}, "llama with biases"),
        ("llama", {"hidden_act": "gelu"}, "activation is gelu"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "are scaled"),
        ("qwen2", {"head_dim": 8}, "4 heads of 8 do not make up the width 64"),
    ],
)
def test_a_model_that_would_compute_otherwise_is_refused(family, changes, reason, tmp_path, words):
    sizes = {} if family == "gpt2" else {"hidden_size": 64}
    with pytest.raises(mp.PruneError, match=f"^no GGUF file: .*{reason}.*; export it in another format$"):
        write_gguf(tmp_path, tiny_model(family, **sizes, **changes), words)
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_a_parameter_of_its_own_is_refused(tmp_path, words):
    model = pruned()
    model.model.layers[0].mlp.extra = torch.nn.Linear(4, 4)
    with pytest.raises(mp.PruneError, match=r"a llama has no model.layers.0.mlp.extra.weight there"):
        write_gguf(tmp_path, model, words)


def test_the_command_writes_one_file_and_says_the_error(tmp_path, tiny_folder, run):
    assert run("prune", tiny_folder, "--method", "magnitude", "--pattern", "2:4", "--output", "pruned")[0] == 0
    Path("pruned", "LICENSE.txt").write_text("all yours")
    code, out, _ = run("export", "pruned", "--format", "gguf", "--type", "q4_0")
    assert code == 0 and "written to pruned-q4_0" in out
    assert any(line.split()[:3] == ["model.layers.*.mlp.up_proj", "2", "Q4_0"] for line in out.splitlines()), out
    folder = Path("pruned-q4_0")
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE.txt", "minprune.json", "model.gguf"]
    record = json.loads((folder / "minprune.json").read_text())
    assert record["format"] == "gguf q4_0" and record["made from"]["pattern"] == "2:4"
    for layer in find_layers(read(folder)):
        assert (layer.weight == 0).float().mean() >= 0.5
    assert run("export", "pruned", "--format", "gguf", "--type", "q4_0")[0] == 2
    assert run("export", "pruned", "--format", "gguf", "--type", "q4_0", "--overwrite")[0] == 0
    assert run("export", "pruned", "--format", "gguf")[0] == 0 and Path("pruned-q8_0", "model.gguf").exists()
    code, _, error = run("info", "pruned-q4_0")
    assert code == 2 and "holds a GGUF file" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "gguf", "--type", "q5_k"], "unknown GGUF type 'q5_k': use f32, f16, q8_0, q4_0"),
        (["--type", "q8_0"], "--type q8_0 is one of GGUF: add --format gguf"),
    ],
)
def test_a_mistake_of_the_command_is_one_line(words, message, tiny_folder, run):
    code, _, error = run("export", tiny_folder, *words)
    assert code == 2 and message in error and error.count("\n") == 1
    assert not any(Path().iterdir())
