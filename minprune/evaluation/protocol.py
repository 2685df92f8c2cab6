"""A perplexity together with how it was measured, so that two of them can be compared, or refused. Chapter 09.

The same model on the same text has another perplexity for another window, stride or first token, and per-token numbers
of different tokenizers do not even count the same things. bits per byte count the text itself:

    bits per byte = (sum of -log2 p(token | before) over the counted tokens) / (bytes of text in these tokens)
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minprune.data.documents import has_splits
from minprune.data.tokens import check_normalizer, cut, fingerprint, load_text, load_tokens, prefix_of, window_starts
from minprune.errors import PruneError
from minprune.evaluation.perplexity import exp, token_nll

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ENOUGH = 0.95  # share of a text that has to be counted before two tokenizers are compared on it


@dataclass(frozen=True)
class Protocol:
    """What a perplexity depends on besides the model.

    text, split: the source as it was named, and its split; text_hash: sha256 of the text as UTF-8. tokenizer: its
    name; vocabulary: sha256 of its tokens and their ids. window: tokens that the model reads at once, with those that
    begin it; stride: tokens from one window's beginning to the next one's. bos: whether special tokens begin each
    window; prefix: which ones, mostly one BOS token. windows: how many; tokens: how many predictions count;
    tokens_hash: sha256 over the windows. bytes: bytes of text in the counted tokens; coverage: their share of the
    text. dtype: in which the model ran (told, but never a reason to refuse).
    """

    text: str
    split: str | None
    text_hash: str
    tokenizer: str
    vocabulary: str
    window: int
    stride: int
    bos: bool
    windows: int
    tokens: int
    tokens_hash: str
    bytes: int
    coverage: float
    dtype: str
    prefix: list[int] = field(default_factory=list)

    @property
    def overlap(self) -> int:
        """Tokens of text that a window shares with the one before it."""
        return self.window - len(self.prefix) - self.stride

    def __str__(self) -> str:
        where = f"{self.text} ({self.split})" if self.split else self.text
        several = f"{len(self.prefix)} special tokens first"
        start = several if len(self.prefix) > 1 else "a BOS token first" if self.bos else "no BOS token"
        windows = "1 window" if self.windows == 1 else f"{self.windows} windows"
        return (
            f"{where}: {windows} of {self.window} tokens, stride {self.stride}, {start}; "
            f"{self.tokens:,} predictions of {self.bytes:,} bytes count; tokens {self.tokens_hash[:8]}, "
            f"tokenizer {self.tokenizer} {self.vocabulary[:8]}, {self.dtype}"
        )


@dataclass(frozen=True)
class Measurement:
    """The mean of -log p over the counted tokens, in nats, and the protocol that it was measured by."""

    nats: float
    protocol: Protocol

    @property
    def perplexity(self) -> float:
        """exp(nats): per token, so it compares models with one tokenizer."""
        return exp(self.nats)

    @property
    def bits_per_byte(self) -> float:
        """-log2 p of the counted tokens over the bytes of text in them: compares tokenizers, too."""
        return self.nats * self.protocol.tokens / math.log(2) / self.protocol.bytes

    def ratio(self, other: "Measurement", per: str = "token") -> float:
        """How many times as large this one is: perplexity (per="token") or bits per byte (per="byte").

        Raises `PruneError`, naming the field, if the two were not measured alike. Per token everything must agree that
        decides which predictions are made. Per byte the tokenizers may differ, if both counted nearly the whole text.
        """
        mine, theirs = self.protocol, other.protocol
        if per not in _ALIKE:
            raise PruneError(f"a ratio per {per!r} is not defined: choose token or byte")
        for name in _ALIKE[per]:
            here, there = getattr(mine, name), getattr(theirs, name)
            if here != there:
                raise PruneError(
                    f"not measured alike: {name} is {_short(here)} here and {_short(there)} there; measure both with "
                    f"the same {_WHAT[name]}"
                )
        if per == "token":
            return self.perplexity / other.perplexity
        if mine.tokens_hash != theirs.tokens_hash and (low := min(mine.coverage, theirs.coverage)) < _ENOUGH:
            raise PruneError(
                f"coverage is {low:.0%} of the text: different tokens are compared on the whole text only, so measure "
                "both with samples=None"
            )
        return self.bits_per_byte / other.bits_per_byte

    def as_dict(self) -> dict:
        """Everything for a JSON file, which cannot hold an infinite perplexity: None then."""
        perplexity = self.perplexity if math.isfinite(self.perplexity) else None
        numbers = {"perplexity": perplexity, "nats": self.nats, "bits_per_byte": self.bits_per_byte}
        return {**numbers, "protocol": asdict(self.protocol)}


_ALIKE = {
    "token": ("text_hash", "window", "vocabulary", "bos", "prefix", "stride", "tokens_hash"),
    "byte": ("text_hash", "window", "overlap"),
}
_WHAT = {
    "text_hash": "text",
    "window": "window length",
    "stride": "stride",
    "overlap": "overlap (window minus stride)",
    "vocabulary": "tokenizer, or compare bits per byte on the whole text",
    "bos": "first token",
    "prefix": "tokenizer",
    "tokens_hash": "windows of the text",
}


def measure(
    model: "PreTrainedModel",
    tokenizer,
    source: str | Path = "wikipedia",
    split: str = "test",
    samples: int | None = 32,
    length: int = 512,
    stride: int | None = None,
    bos: bool | None = None,
    batch_size: int = 2,
    progress: bool = False,
) -> Measurement:
    """The perplexity of a model on a text, with its protocol.

    source, split, samples, length: which windows, as for `load_tokens` without a seed; samples=None takes them all.
    stride: tokens from one window to the next. None: the windows do not overlap, and each token but the first of its
    window counts, as in `perplexity`. A smaller stride gives each counted token at least length - stride tokens
    of context: a window counts its last `stride` tokens, a text's first window all but the first. bos: whether each
    window begins with the tokenizer's BOS token, which does not count (None: with what the tokenizer by itself puts
    before a text).
    Raises `PruneError` for a stride outside 1..length, a tokenizer without BOS, and as `load_tokens` and `perplexity`.
    """
    if length < 2:
        raise PruneError(f"windows of {length} token predict nothing: use length 2 or more")
    text = load_text(source, split, tokenizer)
    dtype = str(model.dtype).removeprefix("torch.")
    windows, counted, protocol = plan(tokenizer, text, source, split, samples, length, stride, bos, dtype)
    nats = token_nll(model, windows, batch_size, progress)[counted[:, 1:]].double()
    return Measurement(float(nats.mean()), protocol)


def plan(
    tokenizer,
    text: str,
    source: str | Path,
    split: str,
    samples: int | None,
    length: int,
    stride: int | None = None,
    bos: bool | None = None,
    dtype: str = "",
) -> tuple[Tensor, Tensor, Protocol]:
    """What `measure` reads of a text: windows (windows, length), which of their tokens count, and the protocol.

    text: of that source and split, see `load_text`; dtype: of the model that will read it; the rest as for `measure`.
    """
    ids, sizes = encode(tokenizer, text)
    first = prefix_of(tokenizer) if bos is None else _forced(tokenizer, bos)
    body = length - len(first)  # tokens of text in a window
    stride = stride or body
    if not 1 <= stride <= body:
        raise PruneError(f"a stride of {stride} leaves tokens out or stands still: choose 1 to {body}")
    starts = window_starts(len(ids), body, samples, step=stride, source=str(source))
    windows = cut(torch.tensor(ids), starts, length, first)
    counted = torch.zeros(windows.shape, dtype=torch.bool)
    counted[:, -stride:] = True
    counted[starts == 0] = True
    counted[:, : max(1, len(first))] = False  # nothing predicts the first token, and the prefix is no text
    size = int(cut(torch.tensor(sizes), starts, length, [0] * len(first))[counted].sum())
    protocol = Protocol(
        text=str(source),
        split=split if has_splits(source) else None,
        text_hash=hashlib.sha256(text.encode()).hexdigest(),
        tokenizer=Path(tokenizer.name_or_path).name,
        vocabulary=hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest(),
        window=length,
        stride=stride,
        bos=bool(first),
        windows=len(windows),
        tokens=int(counted.sum()),
        tokens_hash=_hash(windows, counted),
        bytes=size,
        coverage=size / len(text.encode()),
        dtype=dtype,
        prefix=first,
    )
    return windows, counted, protocol


def windows_of(
    tokenizer,
    source: str | Path,
    split: str,
    samples: int,
    length: int,
    dtype: str = "",
) -> tuple[Tensor, dict[str, Any]]:
    """Windows (windows, length) as `load_tokens` cuts them without a seed, and how a perplexity on them is recorded.

    That is the `Protocol` of `perplexity`, as a dict. Of a tokenizer that cannot map tokens to bytes, only the text,
    its split and the windows' shape are known.
    """
    if not getattr(tokenizer, "is_fast", False):
        windows = load_tokens(tokenizer, source, split, samples, length)
        known = {"text": str(source), "split": split if has_splits(source) else None}
        return windows, {**known, "windows": len(windows), "window": windows.shape[1]}
    text = load_text(source, split, tokenizer)
    windows, counted, protocol = plan(tokenizer, text, source, split, samples, length, dtype=dtype)
    counted[:, 1:] = True  # as `perplexity` counts, which is not told how many tokens are a prefix
    found = replace(protocol, tokens=int(counted.sum()), tokens_hash=_hash(windows, counted))
    return windows, asdict(found)


def encode(tokenizer, text: str) -> tuple[list[int], list[int]]:
    """(ids, bytes): the tokens of a text without special ones, and how many of its UTF-8 bytes are in each.

    The bytes add up to those of the text up to its last token, also where a token holds a part of a character: a
    byte-level tokenizer writes one character of its own for each byte; for others, tokens with the same characters
    share these evenly, which is exact for one token a byte. Raises `PruneError` if the tokenizer cannot say where in
    the text a token comes from.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise PruneError(f"the tokenizer {tokenizer.name_or_path} cannot map tokens to bytes: use a fast tokenizer")
    check_normalizer(tokenizer, text)
    encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    if '"ByteLevel"' in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]):
        sizes = [len(piece) for piece in tokenizer.convert_ids_to_tokens(ids)]
        if sum(sizes) == len(text.encode()):  # not so if a normaliser changed the text or a special token stands in it
            return ids, sizes
    return ids, _from_offsets(text, encoded["offset_mapping"])


def _from_offsets(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Bytes from the end of the tokens before to the end of this one; tokens of the same characters share theirs."""
    ends = [0]  # ends[i]: bytes before character i
    for character in text:
        ends.append(ends[-1] + len(character.encode()))
    sizes: list[int] = []
    done = at = 0
    while at < len(offsets):
        after = at + 1
        while after < len(offsets) and offsets[after] == offsets[at] and offsets[at][1] > offsets[at][0]:
            after += 1
        end = max(done, ends[offsets[after - 1][1]])
        share, rest = divmod(end - done, after - at)
        sizes += [share + (index < rest) for index in range(after - at)]
        done, at = end, after
    return sizes


def _forced(tokenizer, bos: bool) -> list[int]:
    if bos and tokenizer.bos_token_id is None:
        raise PruneError(f"the tokenizer {Path(tokenizer.name_or_path).name} has no BOS token: use bos=False")
    return [tokenizer.bos_token_id] if bos else []


def _hash(windows: Tensor, counted: Tensor) -> str:
    """Equal only for the same windows with the same predictions counted."""
    return hashlib.sha256((fingerprint(windows) + fingerprint(counted)).encode()).hexdigest()


def _short(value) -> str:
    return value[:8] if isinstance(value, str) else str(value)
