"""protocol.py: which predictions count, how many bytes they cover, and which numbers may be compared."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

import minprune as mp
from minprune.evaluation.protocol import Measurement, encode, measure, windows_of

MIXED = "Gödel und 北京 🌍 le café coûte 5 € à Kraków; naïve ὀξύς. " * 4


@pytest.fixture(scope="module")
def pair(tiny_folder):
    return mp.load_model(tiny_folder)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixed") / "mixed.txt"
    path.write_text(MIXED, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def fallback():
    """A tokenizer as Llama's: words begin with ▁, unknown characters become one token a byte, and a BOS token."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "<unk>", *bytes_], show_progress=False)
    core.train_from_iterator(["the moon goes around a planet and the light of the sun"], trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", name_or_path="fallback")


def small_llama(vocabulary):
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(1)
    return LlamaForCausalLM(config).eval()


def test_without_overlap_it_is_the_perplexity_of_load_tokens(pair, text_file):
    tokens = mp.load_tokens(pair[1], text_file, samples=9, length=40)
    found = measure(*pair, text_file, samples=9, length=40)
    assert found.perplexity == pytest.approx(mp.perplexity(pair[0], tokens), rel=1e-9)
    protocol = found.protocol
    assert (protocol.windows, protocol.window, protocol.stride, protocol.tokens) == (9, 40, 40, 9 * 39)
    assert protocol.split is None and not protocol.bos


def test_a_callers_autocast_is_in_the_protocol_as_it_is_in_a_report_of_prune(pair, text_file):
    asked = {"source": text_file, "samples": 9, "length": 40}
    alone = measure(*pair, **asked)
    with torch.autocast("cpu", torch.bfloat16):
        around = measure(*pair, **asked)
        report = mp.prune(copy.deepcopy(pair[0]), torch.randint(90, (2, 8)), "wanda")
        assert measure(copy.deepcopy(pair[0]).double(), pair[1], **asked).protocol.dtype == "float64"
    with torch.autocast("cpu", torch.float16, enabled=False):
        assert measure(*pair, **asked).protocol == alone.protocol
    assert (alone.protocol.dtype, around.protocol.dtype, report.precision) == ("float32", "bfloat16", "bfloat16")
    assert around.nats != alone.nats and str(around.protocol).endswith("bfloat16")


@pytest.mark.parametrize("stride", [1, 7, 19, 20])
def test_a_stride_counts_each_token_once_with_the_context_that_its_window_gives(pair, mixed, stride):
    """Written out: token t is predicted from the first window that holds it, counting from that window's beginning."""
    model, tokenizer = pair
    length, ids = 20, torch.tensor(tokenizer(MIXED)["input_ids"][:64])
    mixed_short = mixed.with_name("short.txt")
    mixed_short.write_text(tokenizer.decode(ids), encoding="utf-8")
    ids = torch.tensor(tokenizer(mixed_short.read_text(encoding="utf-8"))["input_ids"])
    nats = []
    covered = (len(ids) - length) // stride * stride + length
    for t in range(1, covered):
        begin = max(0, math.ceil((t + 1 - length) / stride)) * stride
        if t == begin:
            continue  # without overlap: the first token of a window
        with torch.no_grad():
            logits = model(ids[None, begin:t]).logits[0, -1].double()
        nats.append(float(torch.logsumexp(logits, 0) - logits[ids[t]]))
    found = measure(model, tokenizer, mixed_short, samples=None, length=length, stride=stride, batch_size=64)
    assert found.protocol.tokens == len(nats)
    assert found.nats == pytest.approx(sum(nats) / len(nats), rel=1e-5)


def test_a_bos_token_is_read_but_not_counted(fallback, text_file):
    model = small_llama(len(fallback))
    tokens = mp.load_tokens(fallback, text_file, samples=4, length=24)
    assert (tokens[:, 0] == 0).all()
    own = measure(model, fallback, text_file, samples=4, length=24)
    assert own.perplexity == pytest.approx(mp.perplexity(model, tokens), rel=1e-9)
    assert own.protocol.bos and own.protocol.tokens == 4 * 23 and own.protocol.stride == 23
    without = measure(model, fallback, text_file, samples=4, length=24, bos=False)
    assert not without.protocol.bos and without.nats != own.nats
    with pytest.raises(mp.PruneError, match="bos is True here"):
        own.ratio(without)


def test_the_bytes_of_byte_level_tokens_are_those_that_the_text_has_there(pair):
    """GPT-2's own table turns tokens back into bytes: piece by piece they must spell the text."""
    ids, sizes = encode(pair[1], MIXED)
    back = {character: value for value, character in bytes_to_unicode().items()}
    pieces = [bytes(back[c] for c in token) for token in pair[1].convert_ids_to_tokens(ids)]
    assert b"".join(pieces) == MIXED.encode()
    assert sizes == [len(piece) for piece in pieces]
    assert any(piece.decode(errors="ignore") == "" for piece in pieces)  # a token that is only a part of a character


def test_the_bytes_of_byte_fallback_tokens_are_those_that_the_text_has_there(fallback):
    ids, sizes = encode(fallback, MIXED)
    tokens = fallback.convert_ids_to_tokens(ids)
    assert sum(sizes) == len(MIXED.encode())
    single = [size for token, size in zip(tokens, sizes, strict=True) if token.startswith("<0x")]
    assert len(single) > 50 and set(single) == {1}
    words = [(t, s) for t, s in zip(tokens, sizes, strict=True) if not t.startswith("<0x")]
    assert all(size == len(token.replace("▁", " ").encode()) for token, size in words)


@pytest.mark.parametrize("length", [2, 3, 5, 11])
def test_bits_per_byte_of_equal_logits_count_the_bytes_written_out(pair, mixed, length):
    """A model that knows nothing gives log2(vocabulary) bits a token; windows cut through characters."""
    tokenizer = pair[1]
    model = small_llama(len(tokenizer))
    model.lm_head.weight.data.zero_()
    found = measure(model, tokenizer, mixed, samples=None, length=length, batch_size=200)
    back = {character: value for value, character in bytes_to_unicode().items()}
    pieces = [bytes(back[c] for c in token) for token in tokenizer.tokenize(MIXED)]
    whole = len(pieces) // length * length
    counted = [pieces[t] for t in range(whole) if t % length]
    expected = len(counted) * math.log2(len(tokenizer)) / len(b"".join(counted))
    assert found.bits_per_byte == pytest.approx(expected, rel=1e-6)
    assert found.protocol.bytes == len(b"".join(counted))


def test_equal_protocols_give_the_ratio_and_each_other_one_is_refused_by_name(pair, text_file, mixed):
    model, tokenizer = pair
    pruned, _ = mp.load_model(tokenizer.name_or_path)
    mp.prune(pruned, None, method="magnitude", pattern="80%")
    base = measure(model, tokenizer, text_file, samples=4, length=32)
    other = measure(pruned, tokenizer, text_file, samples=4, length=32)
    assert other.ratio(base) == pytest.approx(other.perplexity / base.perplexity)
    assert other.ratio(base, per="byte") == pytest.approx(other.nats / base.nats)
    for field, changed in {
        "window": measure(model, tokenizer, text_file, samples=4, length=31),
        "stride": measure(model, tokenizer, text_file, samples=4, length=32, stride=16),
        "tokens_hash": measure(model, tokenizer, text_file, samples=5, length=32),
        "text_hash": measure(model, tokenizer, mixed, samples=4, length=32),
        "vocabulary": Measurement(base.nats, replace(base.protocol, vocabulary="f" * 64)),
        "bos": Measurement(base.nats, replace(base.protocol, bos=True)),
    }.items():
        with pytest.raises(mp.PruneError, match=rf"\b{field}\b"):
            changed.ratio(base)
    with pytest.raises(mp.PruneError, match="per 'word'"):
        other.ratio(base, per="word")


def test_two_tokenizers_compare_by_the_byte_on_the_whole_text_only(pair, fallback, text_file):
    one = measure(*pair, text_file, samples=None, length=64, batch_size=50)
    model = small_llama(len(fallback))
    two = measure(model, fallback, text_file, samples=None, length=64, bos=False, batch_size=50)
    assert two.ratio(one, per="byte") == pytest.approx(two.bits_per_byte / one.bits_per_byte)
    with pytest.raises(mp.PruneError, match="vocabulary"):
        two.ratio(one)
    with_bos = measure(model, fallback, text_file, samples=None, length=64, batch_size=50)
    assert with_bos.ratio(one, per="byte") == pytest.approx(with_bos.bits_per_byte / one.bits_per_byte)
    overlapping = measure(model, fallback, text_file, samples=9, length=64, stride=60, bos=False)
    with pytest.raises(mp.PruneError, match="overlap is 4 here and 0 there"):
        overlapping.ratio(one, per="byte")
    part = measure(model, fallback, text_file, samples=3, length=64, bos=False)
    with pytest.raises(mp.PruneError, match="coverage"):
        part.ratio(one, per="byte")


def test_the_hash_tells_which_predictions_were_made(pair, text_file):
    found = [measure(*pair, text_file, samples=samples, length=24).protocol.tokens_hash for samples in (3, 3, 4)]
    assert found[0] == found[1] != found[2]


def test_the_protocol_is_told_in_words_and_as_json(pair, text_file):
    found = measure(*pair, text_file, samples=3, length=24, stride=12)
    assert "3 windows of 24 tokens, stride 12, no BOS token" in str(found.protocol)
    content = found.as_dict()
    assert content["perplexity"] == pytest.approx(math.exp(content["nats"]))
    assert content["protocol"]["tokenizer"] == "tiny"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"stride": 33}, "stride of 33"),
        ({"stride": -1}, "stride of -1"),
        ({"length": 1}, "1 token"),
        ({"samples": 10**6}, "too few"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(pair, text_file, options, named):
    with pytest.raises(mp.PruneError, match=named):
        measure(*pair, text_file, **({"length": 32} | options))


def test_a_bos_token_that_does_not_exist_and_a_slow_tokenizer_are_refused(pair, text_file, fallback, monkeypatch):
    monkeypatch.setattr(fallback, "_special_tokens_map", {**fallback._special_tokens_map, "bos_token": None})
    with pytest.raises(mp.PruneError, match="no BOS token"):
        measure(pair[0], fallback, text_file, samples=2, length=16, bos=True)

    class Slow:
        is_fast, name_or_path = False, "slow"

    with pytest.raises(mp.PruneError, match="fast tokenizer"):
        encode(Slow(), "a")


def test_windows_come_with_the_protocol_of_their_perplexity(pair, text_file):
    windows, told = windows_of(pair[1], text_file, "test", 5, 32, "float32")
    assert torch.equal(windows, mp.load_tokens(pair[1], text_file, samples=5, length=32))
    assert told == measure(*pair, text_file, samples=5, length=32).as_dict()["protocol"]


def test_a_tokenizer_that_cannot_map_tokens_to_bytes_still_gives_windows(pair, text_file):
    class Slow:
        is_fast, bos_token_id = False, pair[1].bos_token_id

        def __call__(self, text, **how):
            return pair[1](text, **how)

    windows, told = windows_of(Slow(), text_file, "test", 5, 32)
    assert torch.equal(windows, mp.load_tokens(pair[1], text_file, samples=5, length=32))
    assert told == {"text": str(text_file), "split": None, "windows": 5, "window": 32}
