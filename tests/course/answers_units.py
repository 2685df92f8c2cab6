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


def slim_attention_heads(q, k, v, o, keep, groups):
    """With an axis for the heads, and one for the groups."""
    asked = keep.unflatten(0, (groups, -1)).sum(1) > 0
    q, k, v = (W.unflatten(0, (n, -1)) for W, n in ((q, len(keep)), (k, groups), (v, groups)))  # (heads, size, d)
    o = o.unflatten(1, (len(keep), -1))[:, keep].flatten(1)
    return q[keep].flatten(0, 1), k[asked].flatten(0, 1), v[asked].flatten(0, 1), o


def slim_attention_loop(q, k, v, o, keep, groups):
    size, each = o.shape[1] // len(keep), len(keep) // groups
    heads = [h for h in range(len(keep)) if keep[h]]
    rows, shared = [], []
    for head in heads:
        rows += range(head * size, (head + 1) * size)
    for group in sorted({head // each for head in heads}):
        shared += range(group * size, group * size + size)
    q, k, v, o = (W.numpy() for W in (q, k, v, o))
    return [q[rows], k[shared], v[shared], np.stack([o[:, row] for row in rows], axis=1)]


RIGHT = {
    "set_cost": [set_cost_by_refit, set_cost_by_schur],
    "group_heads": [group_heads_numpy, group_heads_loop],
    "slim_attention": [slim_attention_heads, slim_attention_loop],
}

REJECTED = {
    "set_cost": [
        lambda W, H, S: set_cost_by_schur(W, H, S) ** 0.5,
        lambda W, H, S: W[:, S].square().sum(),  # magnitude
        lambda W, H, S: set_cost_by_schur(W, H + torch.diag(H.diagonal()), S),
        lambda W, H, S: set_cost_by_schur(W, H, S) / len(W),
    ],
    "group_heads": [
        lambda scores, groups, gone: [True] * len(scores),
        lambda scores, groups, gone: ~torch.tensor(group_heads_loop(-scores, groups, gone)),
        lambda scores, groups, gone: group_heads_numpy(scores.abs(), groups, gone)[::-1].copy(),
        lambda scores, groups, gone: scores > scores.median(),
    ],
    "slim_attention": [
        lambda q, k, v, o, keep, groups: slim_attention_loop(q, v, k, o, keep, groups),  # keys and values exchanged
        lambda q, k, v, o, keep, groups: [2 * part for part in slim_attention_heads(q, k, v, o, keep, groups)],
        lambda q, k, v, o, keep, groups: slim_attention_loop(q, k, v, o, keep.flip(0), groups),
        lambda q, k, v, o, keep, groups: slim_attention_heads(q, k, v, o, ~keep, groups)[::-1],
        lambda q, k, v, o, keep, groups: [q, k, v, o],
    ],
}
