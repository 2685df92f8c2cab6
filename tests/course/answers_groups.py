"""Answers to the exercises of chapter 06, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import numpy as np
import torch

from minprune.errors import PruneError


def nm_mask_numpy(scores, n, m):
    if scores.shape[1] % m:
        raise ValueError("m does not divide d_in")
    groups = scores.numpy().reshape(-1, m)
    ranks = np.argsort(np.argsort(groups, axis=1, kind="stable"), axis=1)
    return (ranks >= m - n).reshape(scores.shape)


def nm_mask_loop(scores, n, m):
    """Of equal scores the one that comes later is kept."""
    keep = [[False] * len(row) for row in scores]
    if len(keep[0]) % m:
        raise PruneError("m does not divide d_in")
    for i, row in enumerate(scores.tolist()):
        for start in range(0, len(row), m):
            best = sorted(range(start, start + m), key=lambda j: (row[j], j))[m - n :]
            for j in best:
                keep[i][j] = True
    return keep


def snake_deal_numpy(scores, m):
    bands = np.argsort(-scores.numpy().sum(0), kind="stable").reshape(m, -1)
    return np.stack([band[:: 1 - 2 * (p % 2)] for p, band in enumerate(bands)], axis=1).ravel()


def snake_deal_loop(scores, m):
    """As at a table: one card to each player, then one to each on the way back."""
    left = sorted(range(scores.shape[1]), key=lambda j: -float(scores[:, j].sum()))
    players = [[] for _ in range(len(left) // m)]
    for band in range(m):
        for player in players if band % 2 == 0 else players[::-1]:
            player.append(left.pop(0))
    return [card for player in players for card in player]


def fold_output_numpy(O, order, heads):
    order = order.numpy()
    blocks = np.split(O.numpy(), heads, axis=1)
    return np.concatenate([B[:, order[h * len(order) // heads]] for h, B in enumerate(blocks)], axis=1)


def fold_output_loop(O, order, heads):
    new, head_dim = torch.empty_like(O), order.shape[1]
    for h in range(heads):
        for k in range(head_dim):
            new[:, h * head_dim + k] = O[:, h * head_dim + int(order[h // (heads // len(order)), k])]
    return new


def fold_stream_gather(weight, name, order):
    if any(part in name for part in ("o_proj", "down_proj", "norm")):
        return torch.stack([weight[k] for k in order.tolist()])
    return weight.T[order].T


def fold_stream_matrix(weight, name, order):
    """With a permutation matrix on the side of the stream."""
    P = torch.eye(len(order))[order]  # new = P old
    writes = name.endswith(("o_proj.weight", "down_proj.weight", "norm.weight"))
    return P @ weight if writes else weight @ P.T


RIGHT = {
    "nm_mask": [nm_mask_numpy, nm_mask_loop],
    "snake_deal": [snake_deal_numpy, snake_deal_loop],
    "fold_output": [fold_output_numpy, fold_output_loop],
    "fold_stream": [fold_stream_gather, fold_stream_matrix],
}

REJECTED = {
    "nm_mask": [
        lambda scores, n, m: torch.ones_like(scores, dtype=torch.bool),
        lambda scores, n, m: ~torch.tensor(nm_mask_numpy(scores.T, n, m)).T,  # along the outputs, and inverted
        lambda scores, n, m: torch.tensor(nm_mask_numpy(scores, n, m)).roll(1, 1),
        lambda scores, n, m: nm_mask_numpy(-scores, m - n, m),  # zeros counted, and the smallest kept
        lambda scores, n, m: nm_mask_numpy(scores.view(len(scores), -1, m).flatten(1), n, m),  # refuses by accident
    ],
    "snake_deal": [
        lambda scores, m: list(range(scores.shape[1])),
        lambda scores, m: np.roll(snake_deal_numpy(scores, m), 1),
        lambda scores, m: np.argsort(snake_deal_numpy(-scores, m)),  # the worst first, and the inverse
        lambda scores, m: snake_deal_numpy(scores, m)[::-1].copy(),
    ],
    "fold_output": [
        lambda O, order, heads: O.flip(1),
        lambda O, order, heads: fold_output_loop(O, order.argsort(1).flip(0), heads),  # inverse, and heads exchanged
        lambda O, order, heads: 2 * fold_output_loop(O, order, heads),
        lambda O, order, heads: fold_output_loop(fold_output_loop(O, order, heads), order, heads),  # twice
    ],
    "fold_stream": [
        lambda weight, name, order: weight.flip(0),
        lambda weight, name, order: fold_stream_gather(fold_stream_gather(weight, name, order), name, order),  # twice
        lambda weight, name, order: fold_stream_gather(weight, name.replace("up_proj", "down_proj"), order),
        lambda weight, name, order: 2 * fold_stream_gather(weight, name, order),
    ],
}
