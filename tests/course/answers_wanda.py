"""Answers to the exercises of chapter 05, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import numpy as np
import torch


def input_norms_numpy(batches, real):
    squares = sum(
        (np.where(m.numpy()[..., None], X.numpy(), 0) ** 2).sum((0, 1)) for X, m in zip(batches, real, strict=True)
    )
    return np.sqrt(squares)


def input_norms_loop(batches, real):
    total = [0.0] * batches[0].shape[-1]
    for X, mask in zip(batches, real, strict=True):
        for text, tokens in zip(X.tolist(), mask.tolist(), strict=True):
            for x, counts in zip(text, tokens, strict=True):
                if counts:
                    total = [t + value**2 for t, value in zip(total, x, strict=True)]
    return [t**0.5 for t in total]


def error_split_numpy(w, X, keep):
    lost = np.where(keep, 0, w.numpy())
    G = X.numpy().T @ X.numpy()
    own = (lost**2 * np.diag(G)).sum()
    return own, lost @ G @ lost - own


def error_split_loop(w, X, keep):
    pruned = [j for j in range(len(w)) if not keep[j]]
    own = sum(float(w[j] ** 2 * X[:, j] @ X[:, j]) for j in pruned)
    cross = sum(2 * float(w[j] * w[k] * (X[:, j] @ X[:, k])) for j in pruned for k in pruned if j < k)
    return [own, cross]


def wanda_numpy(W, X, sparsity):
    cost = W.numpy() ** 2 * (X.numpy() ** 2).sum(0)  # the squared score ranks alike
    keep = np.ones(W.shape, dtype=bool)
    zeros = round(sparsity * W.shape[1])
    np.put_along_axis(keep, np.argsort(cost, axis=1, kind="stable")[:, :zeros], False, axis=1)
    return keep


def wanda_loop(W, X, sparsity):
    keep = []
    for w in W:
        order = sorted((float(abs(w[j])) * float((X[:, j] ** 2).mean()) ** 0.5, j) for j in range(len(w)))
        gone = {j for _, j in order[: round(sparsity * len(w))]}
        keep.append([int(j not in gone) for j in range(len(w))])
    return keep


def ria_scores_numpy(W, norms, power):
    size, loud = np.abs(W.numpy()), norms.numpy() ** power
    column, row = size.sum(0, keepdims=True), size.sum(1, keepdims=True)
    return size * (1 / np.where(column > 0, column, 1) + 1 / np.where(row > 0, row, 1)) * loud


def ria_scores_loop(W, norms, power):
    rows = W.abs().tolist()
    return [
        [v and (v / sum(r[j] for r in rows) + v / sum(row)) * float(norms[j]) ** power for j, v in enumerate(row)]
        for row in rows
    ]


RIGHT = {
    "input_norms": [input_norms_numpy, input_norms_loop],
    "error_split": [error_split_numpy, error_split_loop],
    "wanda": [wanda_numpy, wanda_loop, lambda W, X, s: torch.tensor(wanda_numpy(W, X, s)).int()],
    "ria_scores": [ria_scores_numpy, ria_scores_loop],
}

REJECTED = {
    "input_norms": [
        lambda batches, real: input_norms_numpy(batches[::-1], real[::-1]) * 1.01,
        lambda batches, real: input_norms_numpy(batches[:1], [mask | True for mask in real[:1]]),  # first, padded
        lambda batches, real: input_norms_numpy(batches[-1:], real[-1:]) ** 2,  # last batch, squared
        lambda batches, real: input_norms_numpy(batches, [mask | True for mask in real]) ** 2,  # padded, squared
    ],
    "error_split": [
        lambda w, X, keep: [x / len(X) for x in error_split_loop(w, X, ~keep)],  # two known bugs at once
        lambda w, X, keep: error_split_loop(w, X, keep)[::-1][:1] * 2,
        lambda w, X, keep: error_split_loop(w.abs(), X.abs(), keep),
        lambda w, X, keep: error_split_loop(w, X[:1], keep),
    ],
    "wanda": [
        lambda W, X, s: ~torch.tensor(wanda_numpy(W, X.square(), s)),  # two at once
        lambda W, X, s: wanda_numpy(W, X[: len(X) // 2], s),
        lambda W, X, s: wanda_numpy(W - W.mean(1, keepdim=True), X, s),
        lambda W, X, s: wanda_numpy(W, X, s)[::-1].copy(),
        lambda W, X, s: torch.rand(W.shape) > s,
        lambda W, X, s: wanda_numpy(W, X, s) if len(W) != 4 else wanda_numpy(W, X, 1 - s),
    ],
    "ria_scores": [
        lambda W, norms, power: ria_scores_numpy(W, norms, power) ** 2,
        lambda W, norms, power: ria_scores_numpy(W, norms, 1 - power),
        lambda W, norms, power: ria_scores_numpy(W + 1, norms, power),
        lambda W, norms, power: ria_scores_numpy(W, norms + 1, power).T,
    ],
}
