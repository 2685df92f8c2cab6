"""Answers to the exercises of chapter 13, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import numpy as np
import torch


def set_cost_by_refit(W, H, S):
    """The loss of the best weights on what is left."""
    kept = [j for j in range(W.shape[1]) if j not in S.tolist()]
    L = torch.linalg.cholesky(H)  # X of as many rows as inputs, with X^T X = H
    X, Y = L.T, L.T @ W.T
    return (Y - X[:, kept] @ torch.linalg.lstsq(X[:, kept], Y).solution).square().sum()


def set_cost_by_schur(W, H, S):
    kept = np.setdiff1d(np.arange(W.shape[1]), S.numpy())
    h, s, w = H.numpy(), S.numpy(), W.numpy()
    schur = h[np.ix_(s, s)] - h[np.ix_(s, kept)] @ np.linalg.solve(h[np.ix_(kept, kept)], h[np.ix_(kept, s)])
    return np.trace(w[:, s] @ schur @ w[:, s].T)


def group_heads_numpy(scores, groups, gone):
    rows = scores.numpy().reshape(groups, -1)
    ranks = np.argsort(np.argsort(rows, axis=1, kind="stable"), axis=1)
    return (ranks >= gone).ravel()


def group_heads_loop(scores, groups, gone):
    values, size = scores.tolist(), len(scores) // groups
    keep = [True] * len(values)
    for start in range(0, len(values), size):
        for head in sorted(range(start, start + size), key=lambda h: (values[h], h))[:gone]:
            keep[head] = False
    return keep


def slim_mlp_index(gate, up, down, keep):
    places = keep.nonzero().squeeze(1)
    return gate.index_select(0, places), up.index_select(0, places), down.index_select(1, places)


def slim_mlp_loop(gate, up, down, keep):
    places = [j for j, kept in enumerate(keep.tolist()) if kept]
    return (
        np.stack([gate[j].numpy() for j in places]),
        np.stack([up[j].numpy() for j in places]),
        np.stack([down[:, j].numpy() for j in places], axis=1),
    )


RIGHT = {
    "set_cost": [set_cost_by_refit, set_cost_by_schur],
    "group_heads": [group_heads_numpy, group_heads_loop],
    "slim_mlp": [slim_mlp_index, slim_mlp_loop],
}

REJECTED = {
    "set_cost": [
        lambda W, H, S: set_cost_by_schur(W, H, S) ** 0.5,
        lambda W, H, S: W[:, S].square().sum(),  # magnitude
        lambda W, H, S: set_cost_by_schur(W, torch.diag(H.diagonal()), S),
        lambda W, H, S: set_cost_by_schur(W, H, S) / len(W),
    ],
    "group_heads": [
        lambda scores, groups, gone: [True] * len(scores),
        lambda scores, groups, gone: ~torch.tensor(group_heads_loop(-scores, groups, gone)),
        lambda scores, groups, gone: group_heads_numpy(scores.abs(), groups, gone)[::-1].copy(),
        lambda scores, groups, gone: scores > scores.median(),
    ],
    "slim_mlp": [
        lambda gate, up, down, keep: slim_mlp_index(up, gate, down, ~keep),  # gate and up exchanged, inverted
        lambda gate, up, down, keep: [part.flip(0) for part in slim_mlp_index(gate, up, down, keep)],
        lambda gate, up, down, keep: [2 * part for part in slim_mlp_index(gate, up, down, keep)],
        lambda gate, up, down, keep: [gate[keep], up[keep], down[keep]] if len(down) == len(keep) else [gate, up, down],
    ],
}
