"""The exercises of chapter 09: perplexity from logits of padded windows, bits per byte, KL divergence."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import exchanged, given, negated, then
from minprune.course.checks.values import normal


# padded_perplexity(logits, tokens, real): windows padded on the right
@dataclass(frozen=True)
class _Recipe:
    """How to get from logits to a perplexity, with every decision that can be taken wrongly."""

    shift: int = 1  # a position's logits predict the token this many places later
    padding: str = "out"  # "out", "in", or "logits": left out where the predicting position is padding
    first: bool = False  # the sum is divided by one prediction more for each window
    average: str = "tokens"  # "tokens", "windows" (their means), "perplexities" (of the windows), "sum"
    base: float = math.e

    def __call__(self, logits: Tensor, tokens: Tensor, real: Tensor) -> Tensor:
        length = tokens.shape[1]
        at = torch.arange(length) + self.shift  # the token that a position's logits are held against
        inside = (at >= 0) & (at < length)
        at = at.clamp(0, length - 1)
        nats = -logits.log_softmax(-1).gather(-1, tokens[:, at, None])[..., 0]  # (windows, length)
        counts = {"out": real[:, at] & real, "in": torch.ones_like(real), "logits": real}[self.padding] & inside
        totals, sizes = (nats * counts).sum(1), counts.sum(1) + self.first
        if self.average == "perplexities":
            return (self.base ** (totals / sizes)).mean()
        if self.average == "windows":
            return self.base ** (totals / sizes).mean()
        return self.base ** (totals.sum() if self.average == "sum" else totals.sum() / sizes.sum())


def _windows(lengths: list[int], seed: int, vocabulary: int = 7, sharp: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Random logits and tokens; the padding is token 0, as it often is."""
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocabulary, real.shape, generator=draw) * real
    return sharp * normal(*real.shape, vocabulary, seed=seed + 1), tokens, real


def _confident(lengths: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of about 150 that are right on most tokens and rule out some that come."""
    logits, tokens, real = _windows(lengths, seed)
    tokens = torch.where(torch.arange(tokens.shape[1]) == 2, tokens, logits.roll(1, 1).argmax(-1)) * real
    return 60 * logits, tokens, real


padded_perplexity = Exercise(
    name="padded_perplexity",
    chapter=9,
    title="perplexity from the logits of windows that are padded on the right",
    reference=_Recipe(),
    difficulty=3,
    wrong=mistakes(
        {
            "not shifted": _Recipe(shift=0),
            "shifted the wrong way": _Recipe(shift=-1),
            "padding counted": _Recipe(padding="in"),
            "mask not shifted": _Recipe(padding="logits"),
            "first tokens counted": _Recipe(first=True),
            "mean of the windows' perplexities": _Recipe(average="perplexities"),
            "windows weighed alike": _Recipe(average="windows"),
            "power of two": _Recipe(base=2.0),
            "sum instead of mean": _Recipe(average="sum"),
        },
        """
        not shifted: The logits at a position were held against the token at that position, which the model has already
          read. What do they predict?
        shifted the wrong way: The logits at a position were held against the token before it. They are about the one
          after it.
        padding counted: Predictions of padding were counted. Only real tokens are to be predicted.
        mask not shifted: A prediction was counted if it was made at a real token. The last real token's prediction is
          of padding: which position does the mask have to look at?
        first tokens counted: The sum was divided by the number of real tokens. Nothing predicts the first token of a
          window: divide by the number of predictions.
        mean of the windows' perplexities: Each window's perplexity was computed and these were averaged. One hard
          window then outweighs all others: average over tokens first, exponentiate once.
        windows weighed alike: The windows' means were averaged, so a token of a short window counts more than one of a
          long window.
        power of two: The logarithm was the natural one and the base of the power 2. Both have to be the same.
        sum instead of mean: This is one over the probability of everything together. Perplexity is per prediction.
        """,
    ),
    cases=lambda: [
        Case("windows of different lengths", _windows([6, 3, 5], 900)),
        Case("an easy window and a hard one", _windows([4, 7], 902, sharp=0.5)),
        Case("a window of two tokens beside a long one", _windows([2, 9], 904)),
        Case("one window without padding", _windows([5], 906)),
        Case("a window of one token", _windows([4, 1, 6], 908)),
        Case("windows so long that their probability is no number", _windows([300, 260], 910)),
        Case("large logits", _confident([6, 4], 912)),
    ],
)


# bits_per_byte(nats, texts): nats of tokens 1.. of a window, and the text of each of its tokens
def _size(text: str) -> int:
    return len(text.encode())


def _bits_per_byte(nats: Tensor, texts: list[str]) -> Tensor:
    return nats.sum() / math.log(2) / sum(map(_size, texts[1:]))


bits_per_byte = Exercise(
    name="bits_per_byte",
    chapter=9,
    title="bits per byte of UTF-8 text from the nats of the predicted tokens",
    reference=_bits_per_byte,
    difficulty=2,
    wrong=mistakes(
        {
            "nats per byte": lambda nats, texts: nats.sum() / sum(map(_size, texts[1:])),
            "multiplied by log 2": lambda nats, texts: nats.sum() * math.log(2) / sum(map(_size, texts[1:])),
            "characters instead of bytes": lambda nats, texts: nats.sum() / math.log(2) / sum(map(len, texts[1:])),
            "bits per token": lambda nats, texts: nats.mean() / math.log(2),
            "the first token's bytes counted": lambda nats, texts: nats.sum() / math.log(2) / sum(map(_size, texts)),
            "mean of the tokens' ratios": lambda nats, texts: (
                nats / torch.tensor([_size(t) for t in texts[1:]]) / math.log(2)
            ).mean(),
            "mean instead of sum": lambda nats, texts: nats.mean() / math.log(2) / sum(map(_size, texts[1:])),
            "bytes per bit": then(_bits_per_byte, torch.reciprocal),
        },
        """
        nats per byte: These are nats per byte. One bit is how many nats?
        multiplied by log 2: The conversion goes the other way: a bit is less than a nat, so there are more bits than
          nats.
        characters instead of bytes: Characters were counted. In UTF-8 many of them take two to four bytes.
        bits per token: These are bits per token, which depend on how the tokenizer cuts. Divide by bytes of text.
        the first token's bytes counted: The bytes of the whole window were counted. Its first token was given, not
          predicted.
        mean of the tokens' ratios: Each token's bits per byte were averaged, so a byte of a short token counts more.
          Divide sum by sum.
        mean instead of sum: The mean over tokens was divided by all bytes: the number of tokens was divided out, too.
        bytes per bit: This is its inverse, bytes per bit.
        """,
    ),
    cases=lambda: [
        Case("English", (normal(5, seed=910).abs(), ["The", " moon", " is", " a", " satell", "ite"])),
        Case("accents and signs", (normal(4, seed=911).abs() * 3, ["Caf", "é", " 5", " €", " ü"])),
        Case("another script", (normal(3, seed=912).abs() + 1, ["北", "京", "市", " 🌍"])),
        Case("one prediction", (torch.tensor([1.5]), ["A", " long-winded"])),
        Case(
            "first and last characters of each length", (torch.ones(6), list("A\x7f\x80\u07ff\u0800\uffff\U00010000"))
        ),
        Case(
            "a text so long that its probability is no number", (normal(400, seed=913).abs() + 3, ["A", *["é "] * 400])
        ),
    ],
)


# kl_divergence(dense, pruned): logits, (positions, vocabulary) each
def _kl(dense: Tensor, pruned: Tensor) -> Tensor:
    p, log_q = dense.softmax(-1), pruned.log_softmax(-1)
    return (p * (dense.log_softmax(-1) - log_q)).sum(-1).mean()


kl_divergence = Exercise(
    name="kl_divergence",
    chapter=9,
    title="the mean over positions of KL(dense || pruned), in nats, from logits",
    reference=_kl,
    difficulty=2,
    wrong=mistakes(
        {
            "the other direction": exchanged(_kl, 0, 1),
            "both directions averaged": lambda dense, pruned: (_kl(dense, pruned) + _kl(pruned, dense)) / 2,
            "averaged over the vocabulary, too": lambda dense, pruned: _kl(dense, pruned) / dense.shape[-1],
            "summed over positions": lambda dense, pruned: _kl(dense, pruned) * len(dense),
            "cross-entropy": lambda dense, pruned: -(dense.softmax(-1) * pruned.log_softmax(-1)).sum(-1).mean(),
            "bits": then(_kl, lambda nats: nats / math.log(2)),
            "logits without softmax": lambda dense, pruned: (dense.softmax(-1) * (dense - pruned)).sum(-1).mean(),
            "negative": negated(_kl),
        },
        """
        the other direction: This is KL(pruned || dense). Whose probabilities are to weigh the logarithms?
        both directions averaged: Both directions were averaged. Only the one weighed by the dense model is asked for.
        averaged over the vocabulary, too: The mean was taken over all numbers. Over the vocabulary the terms are
          summed, over positions averaged. (It is what torch's kl_div does if it is asked for a plain mean.)
        summed over positions: This is the sum over positions, which grows with the text.
        cross-entropy: This is the cross-entropy, which is not 0 for two equal models: the dense model's own entropy is
          still in it.
        bits: These are bits; nats are asked for.
        logits without softmax: Logits were subtracted as if they were log-probabilities. A constant added to all logits
          of a position must change nothing.
        negative: The sign is wrong: a divergence is never negative.
        """,
    ),
    cases=lambda: [
        Case("random logits", (normal(4, 6, seed=920), normal(4, 6, seed=921) * 2)),
        Case("a confident dense model", (normal(3, 5, seed=922) * 5, normal(3, 5, seed=923))),
        Case("logits with another constant at each position", (normal(5, 4, seed=924), normal(5, 4, seed=925) + 3)),
        Case("two equal models", (normal(2, 3, seed=926), normal(2, 3, seed=926))),
        Case("large logits", (normal(3, 5, seed=927) * 150, normal(3, 5, seed=928) * 150)),
    ],
)


# paired_error(one, other): nats (windows, predictions) of two models on the same windows
def _mean_and_error(one: Tensor, other: Tensor) -> Tensor:
    worse = (other.double() - one.double()).mean(1)  # (windows,)
    return torch.stack([worse.mean(), worse.std() / len(worse) ** 0.5])


def _paired(
    order: int = 1, errors: int | None = 1, ddof: int = 1, root: bool = True, paired: bool = True
) -> Callable[[Tensor, Tensor], Tensor]:
    """The wrong ones: a mean and an error. errors: the axis that is averaged before the error is taken, or None;
    ddof, root, paired: how the error is made of what is left."""

    def paired_error(one: Tensor, other: Tensor) -> Tensor:
        one, other = one.double(), other.double()
        means = [(x.flatten() if errors is None else x.mean(errors)) for x in (one, other)]
        apart = means[0].var(correction=ddof) + means[1].var(correction=ddof)
        variance = (means[1] - means[0]).var(correction=ddof) if paired else apart
        return torch.stack([order * (other - one).mean(), (variance / (len(means[0]) if root else 1)).sqrt()])

    return paired_error


def _of_perplexities(one: Tensor, other: Tensor) -> Tensor:
    worse = other.mean(1).exp() - one.mean(1).exp()
    return torch.stack([worse.mean(), worse.std() / len(worse) ** 0.5])


paired_error = Exercise(
    name="paired_error",
    chapter=9,
    title="how much worse one model is than another on the same windows, and the error of that over windows",
    reference=_mean_and_error,
    difficulty=3,
    wrong=mistakes(
        {
            "error over tokens": _paired(errors=None),
            "error over positions": _paired(errors=0),
            "two models apart": _paired(paired=False),
            "spread instead of error": _paired(root=False),
            "divided by all windows": _paired(ddof=0),
            "the other sign": _paired(order=-1),
            "of perplexities": _of_perplexities,
        },
        """
        error over tokens: Every prediction was taken for an independent measurement. Neighbours in a text are not: what
          is independent are the windows, so average over each of them first.
        error over positions: The means are over windows, one for each position. It is the windows that are drawn; take
          the mean over each window's predictions first.
        two models apart: The errors of the two models were put together as if each had its own text. They share their
          windows, and what is hard about a window cancels in the difference.
        spread instead of error: This is by how much windows differ from each other. The mean of several windows is
          surer than one of them.
        divided by all windows: The variance was divided by the number of windows. One of them is spent on the mean.
        the other sign: This is by how much `one` is worse. Asked for is how many nats `other` has more.
        of perplexities: Each window's perplexity was taken first. A hard window then outweighs all others; nats are
          asked for.
        """,
    ),
    cases=lambda: [
        Case("five windows", _pair(5, 7, 930)),
        Case("windows that differ much", _pair(4, 6, 932, hard=3.0)),
        Case("two windows", _pair(2, 5, 934)),
        Case("the better model second", _pair(6, 4, 936, shift=-0.4)),
        Case("no mean difference in one of three windows", _pair(3, 8, 938, hard=2.0, shift=0.0)),
    ],
)


def _pair(windows: int, predictions: int, seed: int, hard: float = 1.0, shift: float = 0.3) -> tuple[Tensor, Tensor]:
    """Nats of two models on windows of their own hardness, the second one worse by about `shift`."""
    base = 3 + hard * normal(windows, 1, seed=seed) + normal(windows, predictions, seed=seed + 1)
    change = 0.2 * normal(windows, 1, seed=seed + 500) + 0.3 * normal(windows, predictions, seed=seed + 501)
    return base.abs(), (base + shift + change).abs()


# with_padding(nats, real, length, easy): the perplexity that is reported if padding is counted
def _with_padding(
    weigh: bool = True, counted: bool = True, easy: Callable[[float], float] = lambda easy: easy
) -> Callable[[Tensor, Tensor, int, float], Tensor]:
    """weigh: each text by its number of predictions; counted: padding is in the sum and in the denominator."""

    def with_padding(nats: Tensor, real: Tensor, length: int, cost: float) -> Tensor:
        nats, real = nats.double(), real.double()
        padding = length - real if counted else torch.zeros_like(real)
        if not weigh:
            return ((nats * real + easy(cost) * padding) / (real + padding)).exp().mean()
        return ((nats * real + easy(cost) * padding).sum() / (real + padding).sum()).exp()

    return with_padding


def _mean_of_perplexities(nats: Tensor, real: Tensor, length: int, easy: float) -> Tensor:
    padding = (length - real).double()
    total = (nats.double().exp() * real).sum() + math.exp(easy) * padding.sum()
    return total / (length * len(nats))


def _numerator_only(nats: Tensor, real: Tensor, length: int, easy: float) -> Tensor:
    return (((nats * real).sum() + easy * (length - real).sum()) / real.sum()).exp()


with_padding = Exercise(
    name="with_padding",
    chapter=9,
    title="the perplexity that is reported if predictions of padding are counted",
    reference=_with_padding(),
    difficulty=2,
    wrong=mistakes(
        {
            "mean of perplexities": _mean_of_perplexities,
            "padding not counted": _with_padding(counted=False),
            "padding for nothing": _with_padding(easy=lambda easy: 0.0),
            "texts one by one": _with_padding(weigh=False),
            "in the numerator only": _numerator_only,
            "nats": then(_with_padding(), torch.log),
            "real and padding exchanged": given(_with_padding(), real=lambda real: real.max() + real.min() - real),
        },
        """
        mean of perplexities: Perplexities were averaged over predictions. Their logarithms are what a perplexity is the
          average of.
        padding not counted: This is the right perplexity. Asked for is the one that is reported with padding.
        padding for nothing: Padding was taken to cost nothing. Each of its predictions costs `easy` nats.
        texts one by one: Each text's perplexity was made first, and these were averaged. Sum over all texts,
          exponentiate once.
        in the numerator only: Padding is in the sum of the nats and not in the number of predictions. Whoever counts it
          counts it in both.
        nats: These are nats. A perplexity is their exponential.
        real and padding exchanged: The numbers of the texts were mixed up: which of them has how many real predictions?
        """,
    ),
    cases=lambda: [
        Case("two texts", (torch.tensor([3.0, 4.0]), torch.tensor([10, 30]), 40, 0.1)),
        Case("three texts of one length", (torch.tensor([2.0, 3.5, 3.0]), torch.tensor([5, 5, 5]), 8, 0.02)),
        Case("one text", (torch.tensor([3.4]), torch.tensor([64]), 96, 0.05)),
        Case("padding that is not easy", (torch.tensor([2.5, 5.0, 4.0]), torch.tensor([20, 7, 12]), 25, 1.5)),
        Case("no padding at all", (torch.tensor([2.0, 4.0]), torch.tensor([6, 6]), 6, 0.3)),
    ],
)


EXERCISES = [padded_perplexity, bits_per_byte, kl_divergence, paired_error, with_padding]
