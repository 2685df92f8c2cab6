"""Answers to the exercises of chapter 15, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import math
from itertools import combinations

import numpy as np
import torch


def _sizes(config):
    inner = config["num_attention_heads"] * config["head_dim"]
    shared = config["num_key_value_heads"] * config["head_dim"]
    block = inner + shared + shared + inner + 3 * config["intermediate_size"]
    return config["vocab_size"], config["hidden_size"], config["num_hidden_layers"], block


def break_even_formula(config):
    """The root of a parabola, rounded to the whole number below it."""
    vocab, d, layers, block = _sizes(config)
    a = 2 * layers - 1
    b = vocab + layers * block - config["intermediate_size"] + d
    c = d * layers * block - d * config["intermediate_size"] - (0 if config["tie_word_embeddings"] else -d * vocab)
    return max(0, math.ceil((math.sqrt(b * b + 4 * a * c) - b) / (2 * a) - 1e-9) - 1)


def break_even_shapes(config):
    """From the shapes of all matrices, by bisection."""
    vocab, d, layers, _ = _sizes(config)
    inner, shared, ff = (
        config["num_attention_heads"] * config["head_dim"],
        config["num_key_value_heads"] * config["head_dim"],
        config["intermediate_size"],
    )

    def size(kept, last, adapted):
        shapes = [(vocab, kept)]
        for layer in range(layers):
            out = last if layer == layers - 1 else kept
            shapes += [(inner, kept), (shared, kept), (shared, kept), (kept, inner)]
            shapes += [(ff, kept), (ff, kept), (out, ff)]
            shapes += [(kept, kept), (kept, out)] if adapted else []
        shapes += [] if config["tie_word_embeddings"] and not adapted else [(vocab, last)]
        return sum(rows * columns for rows, columns in shapes)

    low, high = 0, d + 1  # smaller at low (or nowhere), not at high
    while high - low > 1:
        kept = (low + high) // 2
        low, high = (kept, high) if size(kept, d, True) < size(d, d, False) else (low, kept)
    return low


def bake_mean_projection(W, b):
    P = np.eye(len(b)) - 1 / len(b)
    return P @ W.numpy(), P @ b.numpy()


def bake_mean_columns(W, b):
    columns = [column - column.sum() / len(column) for column in W.unbind(1)]
    return torch.stack(columns, 1), b - b.sum() / len(b)


def cheapest_channels_projected(C, F, gone):
    """With the columns of the identity as axes U."""
    d, best = len(C), None
    for S in combinations(range(d), gone):
        U = torch.eye(d, dtype=C.dtype)[:, list(S)]
        cost = torch.trace(U.T @ C @ U @ U.T @ F @ U) if gone else 0.0
        if best is None or cost < best[0]:
            best = (cost, S)
    return [j not in best[1] for j in range(d)]


def cheapest_channels_bits(C, F, gone):
    product, d = (C * F).numpy(), len(C)
    masks = [np.array([m >> j & 1 for j in range(d)], dtype=float) for m in range(2**d) if m.bit_count() == gone]
    return min(masks, key=lambda s: s @ product @ s) == 0


def express_block_numpy(b, Q0, Q1, Q2):
    b = {name: part.numpy() for name, part in b.items()}
    first, second, third = (np.asarray(Q) for Q in (Q0, Q1, Q2))
    attention, mlp = np.diag(b["norm1"]) @ first, np.diag(b["norm2"]) @ second  # (d, d'), what a reader meets
    skips = np.einsum("di,dj->ij", first, second), np.einsum("di,dj->ij", second, third)
    inside = *(b[n] @ attention for n in "qkv"), (b["o"].T @ second).T, *(b[n] @ mlp for n in ("gate", "up"))
    return [*inside, (b["down"].T @ third).T, *skips]


def express_block_by_effect(b, Q0, Q1, Q2):
    """Each matrix is what it does to the axes of the new stream, one by one; no rule for readers and writers."""

    def reads(W, norm, Q):
        return torch.stack([W @ (norm * axis) for axis in Q.T], 1)

    def writes(W, Q):
        return torch.stack([axis @ W for axis in Q.T])

    skips = writes(b["skip1"] @ Q1, Q0), writes(b["skip2"] @ Q2, Q1)
    pair = (reads(b[n], b["norm2"], Q1) for n in ("gate", "up"))
    return *(reads(b[n], b["norm1"], Q0) for n in "qkv"), writes(b["o"], Q1), *pair, writes(b["down"], Q2), *skips


RIGHT = {
    "express_block": [express_block_numpy, express_block_by_effect],
    "break_even": [break_even_formula, break_even_shapes],
    "bake_mean": [bake_mean_projection, bake_mean_columns],
    "cheapest_channels": [cheapest_channels_projected, cheapest_channels_bits],
}

REJECTED = {
    "express_block": [
        lambda b, Q0, Q1, Q2: express_block_numpy(b, Q2, Q1, Q0),
        lambda b, Q0, Q1, Q2: express_block_by_effect(b | {"up": b["gate"], "gate": b["up"]}, Q0, Q1, Q2),
        lambda b, Q0, Q1, Q2: express_block_numpy(b | {"norm1": b["norm1"] ** 2}, Q0, Q1, Q2),
        lambda b, Q0, Q1, Q2: [2 * part for part in express_block_numpy(b, Q0, Q1, Q2)],
    ],
    "break_even": [
        lambda config: 3 * config["hidden_size"] // 4,
        lambda config: break_even_formula(config | {"intermediate_size": 2 * config["intermediate_size"]}),
        lambda config: config["hidden_size"] - break_even_formula(config | {"tie_word_embeddings": False}),
        lambda config: break_even_formula(config | {"num_hidden_layers": 1}) + 1,
    ],
    "bake_mean": [
        lambda W, b: (W - W.median(0).values, b - b.median()),
        lambda W, b: (W - W.mean(0), b + b.mean()),
        lambda W, b: (W - W[:1], b - b[:1]),
        lambda W, b: (2 * (W - W.mean(0)), 2 * (b - b.mean())),
    ],
    "cheapest_channels": [
        lambda C, F, gone: [True] * len(C),
        lambda C, F, gone: [j >= gone for j in range(len(C))],
        lambda C, F, gone: ~torch.tensor(cheapest_channels_projected(-C, F, gone)),
        lambda C, F, gone: cheapest_channels_projected(C, torch.linalg.inv(F), gone),
    ],
}
