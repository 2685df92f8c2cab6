"""Token windows: where they come from, that they do not overlap, and that a seed decides."""

import itertools
import re

import pytest
import torch

import minprune as mp
from minprune.data.texts import SPLITS, articles
from minprune.data.tokens import fingerprint

NUMBERS = " ".join(str(number) for number in range(1000))


class Counting:
    """A tokenizer for texts of numbers: a number is its own token. bos: put before every text, as some do."""

    def __init__(self, bos: int | None = None, puts_it: bool = True):
        self.bos_token_id, self.puts_it = bos, puts_it

    def __call__(self, text, add_special_tokens=True, verbose=True):
        ids = [int(word) for word in re.findall(r"\d+", text)]
        put = add_special_tokens and self.puts_it and self.bos_token_id is not None
        return {"input_ids": ([self.bos_token_id] if put else []) + ids}


@pytest.fixture
def numbers(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text(NUMBERS)
    return path


@pytest.mark.parametrize("seed", [None, 0, 7])
@pytest.mark.parametrize("samples, length", [(5, 10), (100, 10), (3, 333), (1, 1), (1, 1000)])
def test_windows_are_consecutive_pieces_that_do_not_overlap(numbers, seed, samples, length):
    windows = mp.load_tokens(Counting(), numbers, samples=samples, length=length, seed=seed)
    assert windows.shape == (samples, length) and windows.dtype == torch.long
    assert torch.equal(windows, windows[:, :1] + torch.arange(length))  # the text is 0, 1, 2, ...
    assert bool((windows[:, 0] % length == 0).all()) and len(windows.unique()) == windows.numel()


def test_without_a_seed_windows_are_spread_evenly(numbers):
    starts = mp.load_tokens(Counting(), numbers, samples=4, length=10)[:, 0]
    assert starts.tolist() == [0, 250, 500, 750]
    assert mp.load_tokens(Counting(), numbers, samples=None, length=10)[:, 0].tolist() == list(range(0, 1000, 10))


def test_a_seed_decides_and_another_decides_otherwise(numbers):
    first, again, other = (mp.load_tokens(Counting(), numbers, samples=20, length=10, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    few = mp.load_tokens(Counting(), numbers, samples=5, length=10, seed=3)
    assert torch.equal(few, first[:5])  # more samples of one seed are a larger set, not another one


def test_a_drawn_window_can_be_any_window(numbers):
    seen = {
        int(start)
        for seed in range(100)
        for start in mp.load_tokens(Counting(), numbers, samples=1, length=200, seed=seed)[:, 0]
    }
    assert seen == {0, 200, 400, 600, 800}


def test_bos_begins_each_window_if_the_tokenizer_puts_it_before_a_text(numbers):
    windows = mp.load_tokens(Counting(bos=5000), numbers, samples=None, length=11)
    assert windows.shape == (100, 11) and bool((windows[:, 0] == 5000).all())
    assert windows[:, 1:].flatten().tolist() == list(range(1000))
    without = mp.load_tokens(Counting(bos=5000, puts_it=False), numbers, samples=None, length=10)
    assert without.flatten().tolist() == list(range(1000))


@pytest.mark.parametrize("samples, length", [(101, 10), (1, 1001), (2, 501)])
def test_a_text_that_is_too_short_is_refused(numbers, samples, length):
    with pytest.raises(mp.PruneError, match=rf"1000 tokens, too few for {samples} windows of {length}"):
        mp.load_tokens(Counting(), numbers, samples=samples, length=length)


@pytest.mark.parametrize("samples, length", [(0, 10), (-1, 10), (1, 0), (None, 0)])
def test_no_windows_are_refused(numbers, samples, length):
    with pytest.raises(mp.PruneError, match="at least 1"):
        mp.load_tokens(Counting(), numbers, samples=samples, length=length)


def test_a_negative_seed_is_refused(numbers):
    with pytest.raises(mp.PruneError, match="seed -1 is negative"):
        mp.load_tokens(Counting(), numbers, samples=1, length=8, seed=-1)


@pytest.mark.parametrize("name, count", [("wikipedia", 106), ("news", 293), ("python", None)])
def test_splits_are_whole_articles_and_share_none(name, count):
    splits = {split: articles(name, split) for split in SPLITS}
    everything = [text for texts in splits.values() for text in texts]
    count = count or len(everything)  # Python's manual differs by version
    assert len(everything) == count == len(set(everything))
    assert all(text.strip() for text in everything)
    assert len(splits["train"]) == pytest.approx(0.6 * count, abs=2)
    with pytest.raises(mp.PruneError, match="unknown split 'dev'"):
        articles(name, "dev")


def test_python_topics_repeat_each_other_in_no_more_than_a_few_sentences():
    texts = [text for split in SPLITS for text in articles("python", split)]
    assert len(texts) > 40 and sum(map(len, texts)) > 200_000
    for one, other in itertools.combinations(texts, 2):
        shared = {p for p in one.split("\n\n") if len(p) > 100} & {p for p in other.split("\n\n") if len(p) > 100}
        assert sum(map(len, shared)) < 0.1 * min(len(one), len(other)), (one[:60], other[:60])


def test_wikipedia_is_prose_without_markup():
    text = mp.load_text("wikipedia", split="train")
    assert len(text) > 1_000_000
    for markup in ("[[", "]]", "{{", "}}", "<ref", "'''", "== References"):
        assert text.count(markup) < 10, markup  # the dump has some broken markup of its own


def test_windows_of_the_bundled_text_come_from_its_split(tiny_folder):
    tokenizer = mp.load_model(tiny_folder)[1]
    text = mp.load_text("news", split="test")
    windows = mp.load_tokens(tokenizer, "news", split="test", samples=3, length=64, seed=0)
    for window in windows:
        assert tokenizer.decode(window[2:-2]).strip("\ufffd") in text


def test_a_fingerprint_tells_tokens_and_shapes_apart():
    tokens = torch.arange(12).view(3, 4)
    assert fingerprint(tokens) == fingerprint(tokens.clone())
    others = [tokens.view(4, 3), tokens + 1, tokens.flip(0)]
    assert len({fingerprint(other) for other in [tokens, *others]}) == 4


def special(tiny_folder, template, tokens):
    """The tiny tokenizer with a post-processor of that template."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    pairs = [(token, tokenizer.convert_tokens_to_ids(token)) for token in [*tokens, "<end>"]]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=pairs)
    return tokenizer


@pytest.mark.parametrize(
    ("template", "prefix"),
    [
        ("[gMASK] <sop> $A", ["[gMASK]", "<sop>"]),  # GLM's
        ("[gMASK] <sop> $A <end>", ["[gMASK]", "<sop>"]),
        ("<end> $A", ["<end>"]),
        ("$A <end>", []),  # add_eos_token
        ("<end> $A <end>", ["<end>"]),
    ],
)
def test_windows_prompts_and_sentences_begin_as_the_tokenizers_texts_do_and_end_without_eos(
    tiny_folder, text_file, monkeypatch, template, prefix
):
    from minprune.evaluation.last_word import encode_pair
    from minprune.evaluation.protocol import plan, windows_of

    tokenizer = special(tiny_folder, template, ["[gMASK]", "<sop>"])
    bare = mp.load_model(tiny_folder)[1]
    ids, begin = bare(text_file.read_text())["input_ids"], tokenizer.convert_tokens_to_ids(prefix)
    windows = mp.load_tokens(tokenizer, text_file, samples=None, length=20)
    assert all(window[: len(begin)] == begin for window in windows.tolist())
    body = windows[:, len(begin) :].flatten().tolist()
    assert body == ids[: len(body)]
    found, counted, protocol = plan(tokenizer, text_file.read_text(), text_file, "test", None, 20)
    assert torch.equal(found, windows) and protocol.prefix == begin and protocol.bos == bool(begin)
    assert not counted[:, : len(begin)].any() and bool(counted[:, max(1, len(begin)) :].all())
    assert windows_of(tokenizer, text_file, "test", 3, 20)[1]["tokens"] == 3 * 19  # as `perplexity` counts
    assert encode_pair(tokenizer, "the moon", " goes") == (
        [*begin, *bare("the moon")["input_ids"]],
        bare(" goes")["input_ids"],
    )
    model, seen = mp.load_model(tiny_folder)[0], []
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    real = model.generate
    monkeypatch.setattr(model, "generate", lambda inputs, **more: seen.append(inputs.tolist()) or real(inputs, **more))
    mp.generate(model, tokenizer, "the moon", tokens=1)
    assert seen == [[[*begin, *bare("the moon")["input_ids"]]]]


def test_a_normalizer_that_multiplies_the_text_is_refused_before_it_does(tiny_folder, text_file):
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("a", "aa")] * 60)
    with pytest.raises(mp.PruneError, match="normalizer makes"):
        mp.load_tokens(tokenizer, text_file, samples=1, length=8)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase()])
    assert mp.load_tokens(tokenizer, text_file, samples=1, length=8).shape == (1, 8)
