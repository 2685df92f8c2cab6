"""Answers to the exercises of chapter 14, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import numpy as np
import torch


def blocks_left_numpy(removals, depth):
    left = np.arange(depth)
    for index in removals.tolist():
        left = np.delete(left, index)
    return left


def blocks_left_loop(removals, depth):
    """Which block a place holds, from the last removal to the first."""
    places = list(range(depth - len(removals)))
    for index in reversed(removals.tolist()):
        places = [place + (place >= index) for place in places]
    return places


def silent_stream_numpy(h, length):
    h = h.numpy()
    return h + length * h


def silent_stream_loop(h, length):
    return [[value * (length + 1) for value in token] for token in h.tolist()]


def fold_lstsq(W, Z, R, damp):
    """The ridge as rows more: as many tokens as channels, whose output is to stay nothing."""
    M = (Z @ W.T).numpy()
    root = np.sqrt(damp * np.square(M).sum(0).mean())
    rows = np.vstack([M, root * np.eye(M.shape[1])])
    T = np.linalg.lstsq(rows, np.vstack([R.numpy(), np.zeros((M.shape[1],) * 2)]), rcond=None)[0]
    return (np.eye(len(T)) + T.T) @ W.numpy()


def fold_dual(W, Z, R, damp):
    """T = M^T (M M^T + ridge)^-1 R, a system of as many unknowns as tokens."""
    M = Z @ W.T
    kernel = M @ M.T
    kernel.diagonal().add_(damp * kernel.trace() / M.shape[1])
    return W + (M.T @ torch.linalg.inv(kernel) @ R).T @ W


RIGHT = {
    "blocks_left": [blocks_left_numpy, blocks_left_loop],
    "silent_stream": [silent_stream_numpy, silent_stream_loop],
    "fold": [fold_lstsq, fold_dual],
}

REJECTED = {
    "blocks_left": [
        lambda removals, depth: blocks_left_numpy(removals, depth)[::-1].copy(),
        lambda removals, depth: [block + 1 for block in blocks_left_loop(removals, depth)],
        lambda removals, depth: blocks_left_loop(removals.sort(descending=True).values, depth),  # from the last
        lambda removals, depth: blocks_left_loop(removals[:-1], depth),
    ],
    "silent_stream": [
        lambda h, length: h + length * h.flip(0),
        lambda h, length: h + length * h.norm(dim=-1, keepdim=True),
        lambda h, length: (1 + length) * h.abs(),
        lambda h, length: (1 + length) ** 2 * h,
    ],
    "fold": [
        lambda W, Z, R, damp: fold_dual(W, Z, -R, damp) - W,  # downhill, and the correction alone
        lambda W, Z, R, damp: 2 * torch.as_tensor(fold_lstsq(W, Z, R, damp)),
        lambda W, Z, R, damp: fold_dual(W, Z, R, damp**2 + 1),
        lambda W, Z, R, damp: W,
    ],
}
