"""Answers to the exercises of chapter 14, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

from itertools import pairwise

import numpy as np
import torch


def influences_loop(streams):
    found = []
    for before, after in pairwise(streams):
        pairs = zip(before.flatten(0, 1).double(), after.flatten(0, 1).double(), strict=True)
        cosines = [float(x @ y / (x.norm() * y.norm())) for x, y in pairs]
        found.append(1 - sum(cosines) / len(cosines))
    return found


def influences_units(streams):
    """Half the squared distance of vectors of length 1."""
    units = [(h / h.norm(dim=-1, keepdim=True)).numpy() for h in streams]
    return np.array([np.square(b - a).sum(-1).mean() / 2 for a, b in pairwise(units)])


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


def made_to_order_numpy(h, u, length, influence):
    """The parts along and across from two equations: the angle, and the length of the addition."""
    h, u = h.numpy(), u.numpy()
    along, across = -1.0, np.sqrt(max(length**2 - 1, 0))  # a right angle: all that was along the stream is gone
    if influence != 1:  # (1 + along) tangent = across, along^2 + across^2 = length^2
        square = np.tan(np.arccos(1 - influence)) ** 2
        along = np.roots([1 + square, 2 * square, square - length**2]).max()
        across = np.sqrt(square) * (1 + along)
    return h + along * h + across * np.linalg.norm(h, axis=1, keepdims=True) * u


def made_to_order_bisected(h, u, length, influence):
    """By trial: how long the stream is to become, token by token, until the addition has the right length."""
    angle, streams = np.arccos(1 - influence), []
    for token, side in zip(h.double(), u.double(), strict=True):
        ray = np.cos(angle) * token + np.sin(angle) * token.norm() * side
        low, high = max(np.cos(angle), 0.0), 1 + length  # from the ray's nearest place to `token` on
        for _ in range(80):
            middle = (low + high) / 2
            longer = (middle * ray - token).norm() > length * token.norm()
            low, high = (low, middle) if longer else (middle, high)
        streams.append(low * ray)
    return torch.stack(streams)


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
    "influences": [influences_loop, influences_units],
    "blocks_left": [blocks_left_numpy, blocks_left_loop],
    "made_to_order": [made_to_order_numpy, made_to_order_bisected],
    "fold": [fold_lstsq, fold_dual],
}

REJECTED = {
    "influences": [
        lambda streams: influences_units(streams) ** 0.5,
        lambda streams: influences_units(streams[::-1]),
        lambda streams: [sum(influences_loop(streams))],
        lambda streams: influences_units([h.cumsum(1) for h in streams]),
    ],
    "blocks_left": [
        lambda removals, depth: blocks_left_numpy(removals, depth)[::-1].copy(),
        lambda removals, depth: [block + 1 for block in blocks_left_loop(removals, depth)],
        lambda removals, depth: blocks_left_loop(removals.sort(descending=True).values, depth),  # from the last
        lambda removals, depth: blocks_left_loop(removals[:-1], depth),
    ],
    "made_to_order": [
        lambda h, u, length, influence: made_to_order_bisected(h, u, length**2, influence),
        lambda h, u, length, influence: 2 * h - made_to_order_bisected(h, u, length, influence),
        lambda h, u, length, influence: h + length * h.norm(dim=-1, keepdim=True) * (h + u),
        lambda h, u, length, influence: made_to_order_bisected(h.flip(0), u.flip(0), length, influence),
    ],
    "fold": [
        lambda W, Z, R, damp: fold_dual(W, Z, -R, damp) - W,  # downhill, and the correction alone
        lambda W, Z, R, damp: 2 * torch.as_tensor(fold_lstsq(W, Z, R, damp)),
        lambda W, Z, R, damp: fold_dual(W, Z, R, damp**2 + 1),
        lambda W, Z, R, damp: W,
    ],
}
