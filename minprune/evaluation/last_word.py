"""What a model does with words: the last word of a passage, and the better of two sentences. Chapter 09.

The last word is LAMBADA's idea (Paperno et al., 2016): a passage is given without its last word, which counts as found
if greedy decoding writes exactly it. Half of our passages have used the word before, so that it can be looked up; for
the other half the model needs what it knows. Sentences come from minimal_pairs.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from minprune.arguments import checked
from minprune.data.tokens import load_text, prefix_of
from minprune.errors import PruneError, check_kind
from minprune.evaluation.minimal_pairs import Pair, minimal_pairs
from minprune.models.causality import check_causal, evaluating
from minprune.models.layers import check_batch_size, check_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Score:
    """A share of right answers.

    Parameters
    ----------
    value : float
        The share, 0 to 1.
    error : float
        Its standard error.
    count : int
        Of how many answers.
    parts : dict of str to Score
        The parts of which it is the mean.

    Examples
    --------
    >>> from minprune.evaluation.last_word import Score
    >>> Score(0.75, 0.22, 4, {}).value
    0.75
    """

    value: float
    error: float
    count: int
    parts: dict[str, "Score"]


@dataclass(frozen=True)
class Passage:
    """A passage without its last word, that word, and whether the passage has used it before (in any case)."""

    context: str
    word: str
    used: bool


@checked()
def last_word(
    model: "PreTrainedModel",
    tokenizer,
    source: str | Path = "wikipedia",
    split: str = "test",
    count: int = 200,
    batch_size: int = 8,
    progress: bool = False,
) -> Score:
    """The share of passages whose last word greedy decoding writes exactly.

    Right means: each token of " word" is the most likely one after those before it, and the most likely token after
    them does not prolong the word.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    source : str or Path, default "wikipedia"
        The text, as for `load_text`.
    split : str, default "test"
        Of the text.
    count : int, default 200
        Passages, an even number, spread evenly over the text (see `passages`).
    batch_size : int, default 8
        Passages in one forward pass.
    progress : bool, default False
        Whether to show a bar on stderr.

    Returns
    -------
    Score
        With the parts "used" (the passage has used the word before) and "new", equally many.

    Raises
    ------
    PruneError
        If the count is odd, the text has too few passages, or the model is not causal.

    Examples
    --------
    >>> import minprune as mp
    >>> model, tokenizer = mp.load_model("smollm2")
    >>> mp.last_word(model, tokenizer, "wikipedia", count=4).parts.keys()
    dict_keys(['used', 'new'])
    """
    check_kind("count", count, int)
    found = passages(load_text(source, split, tokenizer=tokenizer))
    chosen: list[Passage] = []
    for used in (True, False):
        kind = [passage for passage in found if passage.used == used]
        if count < 2 or count % 2 or len(kind) < count // 2:
            raise PruneError(
                f"{source} has {len(kind)} passages whose last word is {'used before' if used else 'new'}, and "
                f"{count} were asked for in all: ask for an even number, at most twice the rarer kind"
            )
        chosen += [kind[index * len(kind) // (count // 2)] for index in range(count // 2)]
    split_ids = [encode_pair(tokenizer, passage.context, f" {passage.word}") for passage in chosen]
    scored = score(model, [context + word for context, word in split_ids], batch_size, progress)
    right: dict[str, list[bool]] = {"used": [], "new": []}
    for passage, (context, word), (_, top1) in zip(chosen, split_ids, scored, strict=True):
        ended = not re.match(r"\w|[-'’]\w", tokenizer.decode(top1[-1:]))
        exact = top1[len(context) - 1 : -1].tolist() == word
        right["used" if passage.used else "new"].append(exact and ended)
    return _mean(right)


def passages(text: str, least: int = 40, most: int = 90) -> list[Passage]:
    """Whole sentences of one paragraph, `least` to `most` words, that end in a lower-case word of 3 letters or more.

    Passages do not overlap. A paragraph gives as many as its sentences fill; the remaining sentences are left out.
    """
    found = []
    for paragraph in text.split("\n"):
        words: list[str] = []
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", paragraph.strip()):
            words += sentence.split()
            if len(words) < least:
                continue
            if len(words) <= most and (last := re.fullmatch(r"([a-z]{3,})[.!?]", words[-1])):
                context = " ".join(words[:-1])
                before = {word.lower() for word in re.findall(r"[^\W\d_]+", context)}
                found.append(Passage(context, last[1], last[1] in before))
            words = []
    return found


@checked()
def grammar(
    model: "PreTrainedModel",
    tokenizer,
    pairs: Sequence[Pair] | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Score:
    """The share of pairs whose grammatical sentence is the more likely one; 0.5 is chance.

    The log-likelihood is that of the whole sentence, its first token included, after the tokenizer's BOS (or else EOS)
    token.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    pairs : sequence of Pair, optional
        By default those of `minimal_pairs`.
    batch_size : int, default 32
        Sentences in one forward pass.
    progress : bool, default False
        Whether to show a bar on stderr.

    Returns
    -------
    Score
        The mean over phenomena, with a part for each.

    Raises
    ------
    PruneError
        If there is no pair, the tokenizer has neither BOS nor EOS, or the model is not causal.

    Examples
    --------
    >>> import minprune as mp
    >>> from minprune.evaluation.minimal_pairs import Pair
    >>> model, tokenizer = mp.load_model("smollm2")
    >>> mp.grammar(model, tokenizer, [Pair("agreement", "The cats sleep.", "The cats sleeps.")]).value
    1.0
    """
    pairs = minimal_pairs() if pairs is None else list(pairs)
    if not pairs:
        raise PruneError("there is no pair of sentences to compare: leave pairs out for those of minimal_pairs")
    texts = [("", text) for pair in pairs for text in (pair.right, pair.wrong)]
    totals = [value for value, _ in log_likelihood(model, tokenizer, texts, batch_size, progress)]
    answers: dict[str, list[bool]] = {}
    for pair, right, wrong in zip(pairs, totals[0::2], totals[1::2], strict=True):
        answers.setdefault(pair.phenomenon, []).append(right > wrong)
    return _mean(answers)


def log_likelihood(
    model: "PreTrainedModel",
    tokenizer,
    requests: Sequence[tuple[str, str]],
    batch_size: int = 16,
    progress: bool = False,
) -> list[tuple[float, bool]]:
    """For each (context, continuation): log p(continuation | context), in nats, and whether it is greedy decoding's."""
    split_ids = [encode_pair(tokenizer, *request) for request in requests]
    scored = score(model, [context + rest for context, rest in split_ids], batch_size, progress)
    return [
        (-float(nats[len(context) - 1 :].sum(dtype=torch.float64)), top1[len(context) - 1 : -1].tolist() == rest)
        for (context, rest), (nats, top1) in zip(split_ids, scored, strict=True)
    ]


def encode_pair(tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The tokens of both together, split where the context's own end, after the tokenizer's prefix.

    An empty context is the prefix alone, or else BOS, or else EOS. A space at the context's end is better moved to the
    continuation, where tokenizers expect it.
    """
    prefix = prefix_of(tokenizer)
    if not context:
        last = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if not prefix and last is None:
            raise PruneError(
                "the tokenizer has neither a BOS nor an EOS token to put before a sentence: give a context"
            )
        return prefix or [last], tokenizer(continuation, add_special_tokens=False)["input_ids"]
    before, whole = (
        [*prefix, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in (context, context + continuation)
    )
    return whole[: len(before)], whole[len(before) :]


def score(
    model: "PreTrainedModel", sequences: Sequence[list[int]], batch_size: int = 16, progress: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """For each list of token ids its (nats (length - 1,), likeliest next token (length,)).

    Sequences of about one length share a batch. The shorter ones are padded on the right, where a causal model cannot
    see it, so the result does not depend on the batch. Raises `PruneError` for a model that is not causal.
    """
    batch_size = check_batch_size(batch_size)
    check_causal(model, max(map(len, sequences), default=0))
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    found: list[tuple[Tensor, Tensor] | None] = [None] * len(sequences)
    device = next(model.parameters()).device
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    with evaluating(model):
        for group in tqdm(groups, desc="scoring", unit="batch", disable=None if progress else True, leave=False):
            rows = [torch.tensor(sequences[index]) for index in group]
            batch = pad_sequence(rows, batch_first=True).to(device)  # (batch, longest)
            check_windows(model, batch)
            for index, row, logits in zip(group, rows, model(input_ids=batch, use_cache=False).logits, strict=True):
                wide = logits[: len(row)].to(torch.promote_types(logits.dtype, torch.float32))  # (length, vocabulary)
                nats = cross_entropy(wide[:-1], row[1:].to(device), reduction="none")
                if nats.isnan().any():
                    raise PruneError("the model's output is NaN: its weights are damaged, or its dtype is too narrow")
                found[index] = (nats.cpu(), wide.argmax(-1).cpu())
    return [pair for pair in found if pair is not None]


def _mean(answers: dict[str, list[bool]]) -> Score:
    """The mean over parts that weigh the same, with the standard error of independent right or wrong answers."""
    parts = {}
    for name, right in answers.items():
        share = sum(right) / len(right)
        parts[name] = Score(share, (share * (1 - share) / len(right)) ** 0.5, len(right), {})
    return Score(
        sum(part.value for part in parts.values()) / len(parts),
        sum(part.error**2 for part in parts.values()) ** 0.5 / len(parts),
        sum(part.count for part in parts.values()),
        parts,
    )
