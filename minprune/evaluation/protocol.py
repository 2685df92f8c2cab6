"""Measuring a perplexity by a protocol: which windows of a text a model reads, and which of their tokens count.

Chapter 09. What the protocol says, and when two measurements may be compared, is in measurement.py.
"""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import ordinary_tensors, type_around
from minprune.data.documents import has_splits
from minprune.data.tokens import check_normalizer, cut, fingerprint, load_text, load_tokens, prefix_of, window_starts
from minprune.errors import PruneError
from minprune.evaluation.measurement import Measurement, Protocol
from minprune.evaluation.perplexity import token_nll
from minprune.models.tokenizer import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@checked()
@ordinary_tensors()
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

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    source : str or Path, default "wikipedia"
        The text, as for `load_tokens`.
    split : str, default "test"
        Of the text.
    samples : int or None, default 32
        How many windows, spread evenly over the text; None takes all.
    length : int, default 512
        Tokens in each window.
    stride : int or None, default None
        Tokens from one window to the next. None: the windows do not overlap, and each token but the first of its window
        counts, as in `perplexity`. A smaller stride gives each counted token at least length - stride tokens of
        context: a window counts its last `stride` tokens, a text's first window all but the first.
    bos : bool or None, default None
        Whether each window begins with the tokenizer's BOS token, which does not count. None: with what the tokenizer
        itself puts before a text.
    batch_size : int, default 2
        Windows in one forward pass.
    progress : bool, default False
        Whether to show a bar on stderr.

    Returns
    -------
    Measurement

    Raises
    ------
    PruneError
        For a stride outside 1..length (less what begins each window), bos=True without such a token, and as
        `load_tokens` and `perplexity` do.

    Examples
    --------
    >>> import minprune as mp
    >>> model, tokenizer = mp.load_model("smollm2")
    >>> found = mp.measure(model, tokenizer, "news", samples=2, length=32)
    >>> found.protocol.tokens, 1 < found.perplexity < 1000
    (62, True)
    """
    _check_shape(samples, length)
    text = load_text(source, split, tokenizer)
    dtype = str(type_around(model.dtype, model.device.type)).removeprefix("torch.")
    windows, counted, protocol = plan(tokenizer, text, source, split, samples, length, stride, bos, dtype)
    nats = token_nll(model, windows, batch_size, progress)[counted[:, 1:]].double()
    return Measurement(float(nats.mean()), protocol)


def _check_shape(samples: int | None, length: int) -> None:
    if samples is not None and samples < 1:
        raise PruneError(f"asked for {samples} windows: there must be at least 1")
    if length < 2:
        raise PruneError(f"windows of {length} token predict nothing: use length 2 or more")


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

    text: of that source and split, see `load_text`. dtype: in which the model will run that reads it. The rest: as for
    `measure`.
    """
    ids, sizes = encode(tokenizer, text)
    first = prefix_of(tokenizer) if bos is None else _forced(tokenizer, bos)
    body = length - len(first)  # tokens of text in a window
    stride = body if stride is None else stride
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


@ordinary_tensors()
def windows_of(
    tokenizer,
    source: str | Path,
    split: str,
    samples: int,
    length: int,
    dtype: str = "",
) -> tuple[Tensor, dict[str, Any]]:
    """Windows (windows, length) as `load_tokens` cuts them without a seed, and how a perplexity on them is recorded.

    That is the `Protocol` of `perplexity`, as a dict. If the tokenizer cannot map tokens to bytes, it holds only the
    text, its split and the windows' shape.
    """
    _check_shape(samples, length)
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

    The bytes add up to those of the text up to its last token, also where a token holds a part of a character. A
    byte-level tokenizer writes one character of its own for each byte. For others, tokens with the same characters
    share these evenly, which is exact for one token a byte. Raises `PruneError` if the tokenizer cannot say where in
    the text a token comes from.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise PruneError(f"the tokenizer {tokenizer.name_or_path} cannot map tokens to bytes: use a fast tokenizer")
    check_normalizer(tokenizer, text)
    encoded = tokenize(tokenizer, text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
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
