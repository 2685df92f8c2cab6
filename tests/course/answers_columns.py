"""Answers to the exercises of chapter 04, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import numpy as np
import torch


def backward_factor_numpy(H):
    return np.linalg.solve(np.linalg.cholesky(H.double().numpy()), np.eye(len(H)))


def backward_factor_loop(H):
    """Row by row: the last row of the inverse of the leading q + 1 inputs, divided by the root of its pivot."""
    rows = []
    for q in range(len(H)):
        row = torch.linalg.inv(H[: q + 1, : q + 1])[q]
        rows.append((row / row[q] ** 0.5).tolist() + [0.0] * (len(H) - q - 1))
    return rows


def surgeon_2_4_numpy(W, U):
    w, U = W.double().numpy().copy(), U.double().numpy()
    for start in range(0, w.shape[1], 4):
        columns = np.arange(start, start + 4)
        order = np.argsort((w[:, columns] / np.diag(U)[columns]) ** 2, axis=1, kind="stable")
        for place in range(4):
            q, gone = start + place, (order[:, :2] == place).any(1)
            w[gone, q + 1 :] -= np.outer(w[gone, q] / U[q, q], U[q, q + 1 :])
            w[gone, q] = 0
    return w


def surgeon_2_4_loop(W, U):
    """Row by row with explicit inverses of what remains, which knows nothing of the factor's rows."""
    H, rows = torch.linalg.inv((U.T @ U).double()), []
    for w in W.double():
        w, pruned = w.clone(), set()
        for q in range(len(w)):
            if q % 4 == 0:
                cost = {p: float(w[p] ** 2 / torch.linalg.inv(H[p:, p:])[0, 0]) for p in range(q, q + 4)}
                pruned |= set(sorted(cost, key=cost.get)[:2])
            if q in pruned:
                inverse = torch.linalg.inv(H[q:, q:])
                w[q:] -= w[q].clone() / inverse[0, 0] * inverse[0]
                w[q] = 0
        rows.append(w)
    return rows


def sparsegpt_numpy(W, G, sparsity, block_size, damp):
    """Lazy blocks and the reversed factor, in NumPy."""
    w, G = W.double().numpy().copy(), G.double().numpy()
    H = G + damp * np.diag(G).mean() * np.eye(len(G))
    U = np.linalg.inv(np.linalg.cholesky(H[::-1, ::-1]))[::-1, ::-1]
    for start in range(0, len(G), block_size):
        end = min(start + block_size, len(G))
        cost = (w[:, start:end] / np.diag(U)[start:end]) ** 2 * (np.diag(G)[start:end] > 0)
        pruned = np.zeros(cost.size, dtype=bool)
        pruned[np.argsort(cost, axis=None, kind="stable")[: round(sparsity * cost.size)]] = True
        pruned, errors = pruned.reshape(cost.shape), np.zeros_like(cost)
        for place in range(end - start):
            q = start + place
            errors[:, place] = np.where(pruned[:, place], w[:, q] / U[q, q], 0)
            w[:, q:end] -= np.outer(errors[:, place], U[q, q:end])
        w[:, end:] -= errors @ U[start:end, end:]
        w[:, start:end][pruned] = 0
    return w.astype(np.float32)


def sparsegpt_loop(W, G, sparsity, block_size, damp):
    """Elimination instead of a factor, and the published way with dead inputs for as long as it prunes no more."""
    d_out, d_in = W.shape
    inverse = torch.linalg.inv((G + damp * G.diagonal().mean() * torch.eye(d_in)).double())
    steps = []
    for q in range(d_in):  # rows of the inverse when all columns before q are gone
        steps.append(inverse[q].clone())
        inverse = inverse - torch.outer(inverse[:, q], inverse[q]) / inverse[q, q]
    w = [[float(v) for v in row] for row in W]
    for start in range(0, d_in, block_size):
        columns = range(start, min(start + block_size, d_in))
        line = [(0 if G[q, q] == 0 else w[i][q] ** 2 / float(steps[q][q]), i, q) for i in range(d_out) for q in columns]
        pruned = {(i, q) for _, i, q in sorted(line)[: round(sparsity * len(line))]}
        for q in columns:
            for i in range(d_out):
                if (i, q) in pruned:
                    factor = w[i][q] / float(steps[q][q])
                    for p in range(q + 1, d_in):
                        w[i][p] -= factor * float(steps[q][p])
                    w[i][q] = 0.0
    return w


def _half_a_bug(W, G, sparsity, block_size, damp):
    """Magnitude in the first block, right in the others."""
    w = sparsegpt_loop(W, G, sparsity, block_size, damp)
    return [[0.0 if abs(v) < 0.5 else v for v in row[:block_size]] + row[block_size:] for row in w]


def surgeon_2_4_near(W, U):
    """In another order, and what goes stays at the rounding of its update."""
    w, U = W.double().numpy().copy(), U.double().numpy()
    for start in range(0, w.shape[1], 4):
        order = np.argsort((w[:, start : start + 4] / np.diag(U)[start : start + 4]) ** 2, axis=1, kind="stable")
        for q in range(start, start + 4):
            gone = (order[:, :2] == q - start).any(1)
            w[gone] -= np.outer(w[gone, q] * (1 / U[q, q]), U[q])
    return w


def sparsegpt_near(W, G, sparsity, block_size, damp):
    """Right, with pruned weights that are as far from zero as float32 leaves them."""
    exact = torch.as_tensor(sparsegpt_numpy(W, G, sparsity, block_size, damp))
    return torch.where(exact == 0, 1e-8 * W, exact)


RIGHT = {
    "backward_factor": [backward_factor_numpy, backward_factor_loop],
    "surgeon_2_4": [surgeon_2_4_numpy, surgeon_2_4_loop],
    "sparsegpt": [sparsegpt_numpy, sparsegpt_loop],
}

REJECTED = {
    "backward_factor": [
        lambda H: torch.linalg.cholesky(H, upper=True),  # factor of H, and transposed
        lambda H: backward_factor_numpy(H) ** 2,
        lambda H: 2 * backward_factor_numpy(H),
        lambda H: -torch.linalg.inv(H),
    ],
    "surgeon_2_4": [
        lambda W, U: surgeon_2_4_numpy(W, 1 + U),
        lambda W, U: surgeon_2_4_numpy(W.flip(1), U)[:, ::-1].copy(),
        lambda W, U: W * (W.abs() > W.abs().median()),
        lambda W, U: -surgeon_2_4_numpy(W, U),
        lambda W, U: surgeon_2_4_numpy(W, torch.linalg.inv(U.T @ U)),  # inverse for the factor, in cost and update
    ],
    "sparsegpt": [
        lambda W, G, s, b, damp: sparsegpt_numpy(W, G, s, 2 * b, damp) * 1.01,
        lambda W, G, s, b, damp: sparsegpt_numpy(W, G, s, len(G), 0 * damp + 1e-5),  # one block, and no damping
        lambda W, G, s, b, damp: sparsegpt_numpy(W, G, 1 - s, len(G), damp),  # one block and the opposite count
        lambda W, G, s, b, damp: sparsegpt_numpy(W.flip(1), G.flip(0, 1), s, b, damp)[:, ::-1].copy(),
        lambda W, G, s, b, damp: sparsegpt_numpy(W, G @ G / len(G), s, b, damp),
        lambda W, G, s, b, damp: torch.tensor(sparsegpt_numpy(W, G, s, b, damp)).round(decimals=1),
        _half_a_bug,
    ],
}
