"""Answers to the exercises of chapter 21, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import math
from fractions import Fraction

import numpy as np
import torch


def sweep_surgeon(W, H, nearest, keep):
    """With the inverse of what is left, taken anew for each column."""
    w = W.clone()
    for j in range(len(H)):
        inverse = torch.linalg.inv(H[j:, j:])
        q = torch.where(keep[:, j], nearest(w[:, j], j), 0)
        w[:, j:] = w[:, j:] - ((w[:, j] - q) / inverse[0, 0])[:, None] * inverse[0]
        w[:, j] = q
    return w


def sweep_refit(W, H, nearest, keep):
    """Each column is what least squares makes of it, with the columns before it as they have been settled."""
    done = torch.zeros_like(W)
    for j in range(len(H)):
        lost = (W - done)[:, :j]  # (d_out, j)
        w = W[:, j:] + torch.linalg.solve(H[j:, j:], H[j:, :j] @ lost.T).T
        done[:, j] = nearest(w[:, 0], j) * keep[:, j]
    return done


def whole_zero_numpy(W, bits):
    rows = []
    for w in W.numpy():
        low, high = min(w.min(), 0.0), max(w.max(), 0.0)
        scale = (high - low) / (2**bits - 1)
        first = -np.rint(-low / scale)  # the lowest level, in steps from 0
        rows.append(scale * np.clip(np.rint(w / scale), first, first + 2**bits - 1))
    return np.stack(rows)


def whole_zero_levels(W, bits):
    """Each weight to the nearest of a written list of levels."""
    found = torch.empty_like(W)
    for row, w in enumerate(W):
        low, high = min(float(w.min()), 0.0), max(float(w.max()), 0.0)
        step = (high - low) / (2**bits - 1)
        first = round(low / step)
        levels = torch.tensor([step * (first + n) for n in range(2**bits)], dtype=W.dtype)
        found[row] = levels[(w[:, None] - levels).abs().argmin(1)]
    return found


def pays_from_search(bits, dense_bits):
    found = []
    for b, dense in zip(bits.tolist(), dense_bits.tolist(), strict=True):
        s = Fraction(0)
        while 1 + (1 - s) * b > dense:
            s += Fraction(1, 240)
        found.append(float(s))
    return found


def pays_from_words(bits, dense_bits):
    saved = np.maximum(bits.numpy() + 1 - dense_bits.numpy(), 0)  # bits a weight that zeros have to save
    return saved / bits.numpy()


def excess_factors(dense, pruned, quantised, both):
    return torch.log((both / dense) / ((pruned / dense) * (quantised / dense)))


def excess_second_step(dense, pruned, quantised, both):
    claims = zip(*(part.tolist() for part in (dense, pruned, quantised, both)), strict=True)
    return [math.log(b / p) - math.log(q / d) for d, p, q, b in claims]  # rounding after pruning, and before


RIGHT = {
    "sweep": [sweep_surgeon, sweep_refit],
    "whole_zero": [whole_zero_numpy, whole_zero_levels],
    "pays_from": [pays_from_search, pays_from_words],
    "excess": [excess_factors, excess_second_step],
}

REJECTED = {
    "sweep": [
        lambda W, H, nearest, keep: sweep_surgeon(W, H.diagonal().diag() + H, nearest, keep),
        lambda W, H, nearest, keep: sweep_surgeon(W, H, lambda w, j: nearest(w, 0), keep),
        lambda W, H, nearest, keep: sweep_surgeon(W.flip(0), H, nearest, keep),
        lambda W, H, nearest, keep: W * keep,
    ],
    "whole_zero": [
        lambda W, bits: whole_zero_numpy(W.abs(), bits),
        lambda W, bits: whole_zero_numpy(W.flip(0), bits),
        lambda W, bits: whole_zero_numpy(W, bits + 1),
        lambda W, bits: W,
        lambda W, bits: torch.where(W == 0, 0, torch.tensor(whole_zero_numpy(W + 0.3, bits)) - 0.3),
    ],
    "pays_from": [
        lambda bits, dense_bits: 0.5 + 0 * bits,
        lambda bits, dense_bits: 100 * (1 - dense_bits / bits).clamp(0),  # mask forgotten, per cent
        lambda bits, dense_bits: (1 - (dense_bits - 2) / bits).clamp(0),  # two bits of index
    ],
    "excess": [
        lambda dense, pruned, quantised, both: (both - pruned - quantised + dense) / both,
        lambda dense, pruned, quantised, both: excess_factors(dense, pruned, quantised, both).abs(),
        lambda dense, pruned, quantised, both: excess_factors(dense, pruned, quantised, both) / both.log(),
    ],
}
