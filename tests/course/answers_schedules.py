"""Answers to the exercises of chapter 17, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import numpy as np
import torch


def staircase_replay(steps, begin, end, every, initial, final, power=3):
    """Live through the training, step by step, and write down what the masks have."""
    now, found = 0.0, {}
    for step in range(int(max(steps)) + 1):
        if begin <= step <= end and ((step - begin) % every == 0 or step == end):
            now = final - (final - initial) * ((end - step) / (end - begin)) ** power
        found[step] = now
    return [found[int(step)] for step in steps]


def staircase_updates(steps, begin, end, every, initial, final):
    """List the updates, then look up the last one before each step."""
    updates = np.array([*range(begin, end, every), end])
    levels = initial + (final - initial) * (1 - (1 - (updates - begin) / (end - begin)) ** 3)
    return np.concatenate([[0.0], levels])[np.searchsorted(updates, steps.numpy(), side="right")]


def gradual_numpy(dense, keep, sparsity):
    order = np.argsort(np.abs(dense.numpy()), axis=None, kind="stable")
    new = np.ones(dense.numel(), dtype=bool)
    new[order[: round(sparsity * dense.numel())]] = False
    new = new.reshape(dense.shape)
    return new, np.count_nonzero(new & ~keep.numpy())


def gradual_loop(dense, keep, sparsity):
    rows, columns = dense.shape
    line = sorted((abs(float(dense[i, j])), i, j) for i in range(rows) for j in range(columns))
    gone = {(i, j) for _, i, j in line[: round(sparsity * rows * columns)]}
    new = [[(i, j) not in gone for j in range(columns)] for i in range(rows)]
    returned = sum(new[i][j] and not keep[i][j] for i in range(rows) for j in range(columns))
    return new, returned


def sparse_loop(W, X, threshold):
    Y, skipped = torch.zeros(len(X), len(W)), 0
    for t, x in enumerate(X):
        for j, value in enumerate(x):
            if abs(value) > threshold:
                Y[t] += value * W[:, j]
            else:
                skipped += 1
    return Y, skipped / X.numel()


def sparse_where(W, X, threshold):
    large = np.where(np.abs(X.numpy()) <= threshold, 0, X.numpy())
    return [torch.from_numpy(large @ W.numpy().T), float((np.abs(X.numpy()) <= threshold).mean())]


def exposing_interval_replay(steps, final, gap):
    """The loop itself, for one interval after the other."""
    begin, *_, end = steps.tolist()
    every = 0
    while True:
        every += 1
        last = max(step for step in range(begin, end) if (step - begin) % every == 0)
        left = (end - last) / (end - begin)
        if final * left * left * left > gap:
            return every


def exposing_interval_numpy(steps, final, gap):
    begin, end = int(steps[0]), int(steps[-1])
    intervals = np.arange(1, end - begin + 1)
    left = (end - 1 - begin) % intervals + 1
    return intervals[final * (left / (end - begin)) ** 3 > gap].min()


RIGHT = {
    "staircase": [staircase_replay, staircase_updates],
    "gradual_mask": [gradual_numpy, gradual_loop],
    "sparse_outputs": [sparse_loop, sparse_where],
    "exposing_interval": [exposing_interval_replay, exposing_interval_numpy],
}

REJECTED = {
    "staircase": [
        lambda *args: staircase_replay(*args, power=2),
        lambda *args: 1 - torch.tensor(staircase_replay(*args)),
        lambda steps, begin, end, every, initial, final: staircase_replay(steps, begin, end, every, 0.0, final),
        lambda *args: [100 * share for share in staircase_replay(*args)],
        lambda *args: [*staircase_replay(*args, power=1)[:-1], args[-1] / 2],  # linear and not held
    ],
    "gradual_mask": [
        lambda dense, keep, sparsity: (~gradual_numpy(dense, keep, sparsity)[0], 0),  # upside down, nothing counted
        lambda dense, keep, sparsity: gradual_numpy(dense * keep, keep, 1 - sparsity),
        lambda dense, keep, sparsity: (gradual_numpy(dense, keep, sparsity)[0], 1),
        lambda dense, keep, sparsity: gradual_numpy(dense.square() + keep, keep, sparsity),
        lambda dense, keep, sparsity: (keep.clone(), 0),
    ],
    "sparse_outputs": [
        lambda W, X, threshold: (sparse_loop(W, X, threshold)[0], 0.5),
        lambda W, X, threshold: sparse_loop(W, X.sign() * X.square(), threshold),
        lambda W, X, threshold: sparse_loop(W.abs(), X, threshold),
        lambda W, X, threshold: (X @ W.T, sparse_loop(W, X, threshold)[1]),
        lambda W, X, threshold: sparse_loop(W * (W.abs() > threshold), X, 0.0),  # weights pruned instead
    ],
    "exposing_interval": [
        lambda steps, final, gap: exposing_interval_numpy(steps, final, gap) + 1,
        lambda steps, final, gap: len(steps) // 10,
        lambda steps, final, gap: exposing_interval_numpy(steps, 1.0, gap / 2),
    ],
}
