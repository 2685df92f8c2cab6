"""Answers to the exercises of chapter 09, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import math

import numpy as np
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import entropy, sem


def padded_perplexity_loop(logits, tokens, real):
    total = count = 0
    for window, ids, mask in zip(logits.tolist(), tokens.tolist(), real.tolist(), strict=True):
        for t in range(1, sum(mask)):
            weights = [math.exp(value) for value in window[t - 1]]
            total -= math.log(weights[ids[t]] / sum(weights))
            count += 1
    return math.exp(total / count)


def padded_perplexity_numpy(logits, tokens, real):
    chances = softmax(logits.double().numpy(), axis=-1)[:, :-1]
    target = np.take_along_axis(chances, tokens.numpy()[:, 1:, None], axis=-1)[..., 0]
    return 1 / np.exp(np.log(target[real.numpy()[:, 1:]]).mean())


def bits_per_byte_numpy(nats, texts):
    return np.log2(np.exp(nats.numpy().astype(float))).sum() / len("".join(texts[1:]).encode("utf-8"))


def bits_per_byte_loop(nats, texts):
    size = 0
    for text in texts[1:]:
        for character in text:
            code = ord(character)
            size += 1 + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF)
    return sum(nats.tolist()) * 1.4426950408889634 / size


def kl_divergence_scipy(dense, pruned):
    return entropy(*(softmax(logits.double().numpy(), -1) for logits in (dense, pruned)), axis=1).mean()


def kl_divergence_terms(dense, pruned):
    return rel_entr(*(softmax(logits.double().numpy(), -1) for logits in (dense, pruned))).sum() / len(dense)


def paired_error_numpy(one, other):
    worse = np.asarray(other, dtype=float).mean(axis=1) - np.asarray(one, dtype=float).mean(axis=1)
    return [worse.mean(), sem(worse)]


def paired_error_loop(one, other):
    gaps = [sum(b) / len(b) - sum(a) / len(a) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    mean = sum(gaps) / len(gaps)
    return mean, math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1) / len(gaps))


def with_padding_numpy(nats, real, length, easy):
    texts = zip(nats.tolist(), real.tolist(), strict=True)
    costs = [np.r_[np.full(k, cost), np.full(length - k, easy)] for cost, k in texts]
    return np.exp(np.concatenate(costs).mean())


def with_padding_product(nats, real, length, easy):
    share = [k / length / len(nats) for k in real.tolist()]
    found = math.exp(easy * (1 - sum(share)))
    for cost, part in zip(nats.tolist(), share, strict=True):
        found *= math.exp(cost * part)
    return found


RIGHT = {
    "padded_perplexity": [padded_perplexity_loop, padded_perplexity_numpy],
    "bits_per_byte": [bits_per_byte_numpy, bits_per_byte_loop],
    "kl_divergence": [kl_divergence_scipy, kl_divergence_terms],
    "paired_error": [paired_error_numpy, paired_error_loop],
    "with_padding": [with_padding_numpy, with_padding_product],
}

REJECTED = {
    "padded_perplexity": [
        lambda logits, tokens, real: math.log2(padded_perplexity_loop(logits, tokens, real)),
        lambda logits, tokens, real: padded_perplexity_loop(logits[:1], tokens[:1], real[:1]),
        lambda logits, tokens, real: padded_perplexity_loop(logits / 2, tokens, real),
        lambda logits, tokens, real: padded_perplexity_numpy(logits, tokens, real | True) ** math.log(2),  # two at once
    ],
    "bits_per_byte": [
        lambda nats, texts: float(nats.sum()) / len("".join(texts[1:])),  # nats, per character
        lambda nats, texts: bits_per_byte_loop(nats, texts[1:]),
        lambda nats, texts: bits_per_byte_numpy(nats, [text.strip() for text in texts]),
    ],
    "kl_divergence": [
        lambda dense, pruned: kl_divergence_terms(pruned, dense) * len(dense),  # direction and sum
        lambda dense, pruned: np.abs(log_softmax(dense.numpy(), -1) - log_softmax(pruned.numpy(), -1)).mean(),
        lambda dense, pruned: kl_divergence_scipy(dense[:1], pruned[:1]),
    ],
    "paired_error": [
        lambda one, other: (paired_error_loop(one, other)[0], 2 * paired_error_loop(one, other)[1]),
        lambda one, other: (-paired_error_numpy(one, other)[0], (other - one).std()),  # sign and spread over tokens
        lambda one, other: ((other / one).log().mean(), paired_error_loop(one, other)[1]),
    ],
    "with_padding": [
        lambda nats, real, length, easy: with_padding_numpy(nats, real, length + 1, easy),
        lambda nats, real, length, easy: 2 ** (with_padding_product(nats, real, length, easy)),
        lambda nats, real, length, easy: with_padding_numpy(nats.flip(0), real, length, 0.0),
    ],
}
