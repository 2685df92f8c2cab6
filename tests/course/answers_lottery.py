"""Answers to the exercises of chapter 16, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import math

import numpy as np
import torch


def next_mask_numpy(W, keep, rate):
    size = np.where(keep, np.abs(W), np.inf).ravel()
    goes = np.argsort(size, kind="stable")[: round(rate * int(keep.sum()))]
    new = keep.numpy().copy().ravel()
    new[goes] = False
    return new.reshape(keep.shape)


def next_mask_loop(W, keep, rate):
    alive = [(abs(W[i][j]), i, j) for i in range(len(W)) for j in range(len(W[0])) if keep[i][j]]
    new = keep.tolist()
    for _, i, j in sorted(alive)[: round(rate * len(alive))]:
        new[i][j] = False
    return new


def global_numpy(weights, masks, rate):
    keep = np.concatenate([mask.numpy().ravel() for mask in masks])
    size = np.concatenate([np.abs(W.numpy()).ravel() for W in weights])
    candidates = np.flatnonzero(keep)
    order = candidates[np.argsort(size[candidates], kind="stable")]
    keep = keep.copy()
    keep[order[: round(rate * len(candidates))]] = False
    cuts = np.cumsum([W.numel() for W in weights])[:-1]
    return [part.reshape(W.shape) for part, W in zip(np.split(keep, cuts), weights, strict=True)]


def global_loop(weights, masks, rate):
    alive = sorted(
        (abs(float(W[i, j])), number, i, j)
        for number, (W, keep) in enumerate(zip(weights, masks, strict=True))
        for i, j in keep.nonzero().tolist()
    )
    new = [mask.clone() for mask in masks]
    for _, number, i, j in alive[: round(rate * len(alive))]:
        new[number][i, j] = False
    return new


def cost_logarithm(sizes, rate, sparsity, steps, rewind):
    rounds = math.ceil(round(math.log(1 - sparsity) / math.log(1 - rate), 9))
    return [rounds, rewind + (rounds + 1) * (steps - rewind)]


def cost_numpy(sizes, rate, sparsity, steps, rewind):
    """Every round that could be needed, and the first that is sparse enough."""
    history = [sizes.numpy()]
    for _ in range(50):
        history.append(history[-1] - np.rint(rate * history[-1]).astype(int))
    rounds = int(np.argmax(1 - np.sum(history, axis=1) / history[0].sum() >= sparsity - 1e-12))
    return np.array([rounds, (rounds + 1) * (steps - rewind) + rewind])


def cost_recursive(left, rate, sparsity, steps, rewind, total=None):
    total = total or int(left.sum())
    if total - int(left.sum()) >= sparsity * total:
        return 0, steps
    rounds, spent = cost_recursive(left - (rate * left.double()).round().long(), rate, sparsity, steps, rewind, total)
    return rounds + 1, spent + steps - rewind


RIGHT = {
    "next_mask": [next_mask_numpy, next_mask_loop],
    "global_masks": [global_numpy, global_loop],
    "ticket_cost": [cost_numpy, cost_recursive],
}

REJECTED = {
    "next_mask": [
        lambda W, keep, rate: ~torch.tensor(next_mask_numpy(W.square() * W.sign(), keep, 1 - rate)),  # several at once
        lambda W, keep, rate: next_mask_numpy(W - 0.3, keep, rate),
        lambda W, keep, rate: next_mask_numpy(W, keep, rate * rate),
        lambda W, keep, rate: next_mask_numpy(W.T, keep.T, rate).T[::-1].copy(),
        lambda W, keep, rate: torch.rand(W.shape) > rate,
    ],
    "global_masks": [
        lambda weights, masks, rate: [~torch.tensor(m) for m in global_numpy(weights, masks, 1 - rate)],
        lambda weights, masks, rate: global_numpy([W.max() - W for W in weights], masks, rate),
        lambda weights, masks, rate: global_numpy(weights[::-1], masks[::-1], rate)[::-1][:1],
        lambda weights, masks, rate: global_numpy([W * W.numel() for W in weights], masks, rate),
    ],
    "ticket_cost": [
        lambda sizes, rate, sparsity, steps, rewind: (math.ceil(sparsity / rate), steps * math.ceil(sparsity / rate)),
        lambda *args: cost_logarithm(*args)[::-1],
        lambda sizes, rate, sparsity, steps, rewind: cost_logarithm(sizes, rate, sparsity, steps + 1, rewind),
        lambda sizes, rate, sparsity, steps, rewind: cost_logarithm(sizes, sparsity, rate, steps, rewind),
    ],
}
