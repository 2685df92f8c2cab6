"""Answers to the exercises of chapter 07, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import numpy as np
import torch


def damped(G, damp):
    G = np.asarray(G, dtype=np.float64)
    return G + damp * np.diag(G).mean() * np.eye(len(G))


def exact_row_fit(w, G, keep, damp):
    """Least squares on tokens that have this Gram matrix; damping is one token for each input."""
    tokens = torch.linalg.cholesky(torch.from_numpy(damped(G, damp))).T.numpy()  # H = L L^T
    kept = np.flatnonzero(keep)
    best = np.zeros(len(w))
    if len(kept):
        best[kept] = np.linalg.lstsq(tokens[:, kept], tokens @ w.double().numpy(), rcond=None)[0]
    return best


def exact_row_pruned_side(w, G, keep, damp):
    """The repair of chapter 03, all pruned weights at once."""
    P, gone, w = np.linalg.inv(damped(G, damp)), ~keep.numpy(), w.double().numpy()
    new = w - np.linalg.solve(P[gone][:, gone], w[gone]) @ P[gone] if gone.any() else w.copy()
    new[gone] = 0
    return new.tolist()


def admm_one_variable(W, H, keep, rho, rounds):
    """As the package does it: only B = A + U is kept, and a Cholesky factor solves."""
    W, H, keep = W.double(), H.double(), keep.bool()
    L = torch.linalg.cholesky(H + rho * torch.eye(len(H)))
    Z, U = W * keep, torch.zeros_like(W)
    for _ in range(rounds):
        B = U + W + rho * torch.cholesky_solve((Z - U - W).T, L).T
        Z = torch.where(keep, B, 0)
        U = B - Z
    return Z


def admm_by_rows(W, H, keep, rho, rounds):
    out = []
    for w, k in zip(W.double().numpy(), keep.numpy(), strict=True):
        H64 = H.double().numpy()
        z, u = np.where(k, w, 0), np.zeros_like(w)
        for _ in range(rounds):
            a = np.linalg.solve(H64 + rho * np.eye(len(w)), H64 @ w + rho * (z - u))
            z = np.where(k, a + u, 0)
            u = u + a - z
        out.append(z.tolist())
    return out


def swap_change_brute_force(w, G, keep, p, u):
    def loss(mask):
        lost = w.double().numpy() * ~mask
        return lost @ G.double().numpy() @ lost

    after = keep.numpy().copy()
    after[[p, u]] = after[[u, p]]
    return loss(after) - loss(keep.numpy())


def swap_change_by_step(w, G, keep, p, u):
    w, G = w.double(), G.double()
    r, step = torch.where(keep, 0, w), torch.zeros_like(w)
    step[p], step[u] = w[p], -w[u]
    return (2 * r + step) @ G @ step


def ramp_loop(k, sparsity, gradual):
    return [sparsity if i >= gradual else sparsity * (1 - ((gradual - i) / gradual) ** 3) for i in k.tolist()]


def ramp_numpy(k, sparsity, gradual):
    left = np.maximum(1 - k.numpy() / gradual, 0)
    return sparsity - sparsity * left * left * left


RIGHT = {
    "exact_row": [exact_row_fit, exact_row_pruned_side],
    "admm": [admm_one_variable, admm_by_rows],
    "swap_change": [swap_change_brute_force, swap_change_by_step],
    "ramp": [ramp_loop, ramp_numpy],
}

REJECTED = {
    "exact_row": [
        lambda w, G, keep, damp: exact_row_fit(w, G, ~keep, 0.0),  # inverted and undamped
        lambda w, G, keep, damp: 2 * exact_row_fit(w, G, keep, damp),
        lambda w, G, keep, damp: exact_row_fit(w, torch.diag(torch.diag(G) + 1e-3), keep, 1.0) + damp,
        lambda w, G, keep, damp: exact_row_fit(w, G, keep, damp / len(w)),
    ],
    "admm": [
        lambda W, H, keep, rho, rounds: admm_one_variable(W, H, keep, 1 / rho, rounds),
        lambda W, H, keep, rho, rounds: admm_one_variable(W, H, ~keep, rho, rounds + 1),
        lambda W, H, keep, rho, rounds: torch.stack([torch.from_numpy(exact_row_fit(w, H, k, 0.0)) for w, k in
                                                     zip(W, keep, strict=True)]),
        lambda W, H, keep, rho, rounds: W * 1.0,
    ],
    "swap_change": [
        lambda w, G, keep, p, u: -swap_change_brute_force(w, G, ~keep, p, u) * 2,
        lambda w, G, keep, p, u: abs(swap_change_brute_force(w, G, keep, p, u)),
        lambda w, G, keep, p, u: swap_change_brute_force(w.abs(), G, keep, p, u),
        lambda w, G, keep, p, u: 1.0,
    ],
    "ramp": [
        lambda k, sparsity, gradual: torch.full_like(k, sparsity / 2),
        lambda k, sparsity, gradual: ramp_numpy(k, sparsity, 2 * gradual),
        lambda k, sparsity, gradual: ramp_numpy(k - 1, sparsity, gradual) * 100,
        lambda k, sparsity, gradual: ramp_numpy(k.flip(0), sparsity, gradual),
    ],
}  # fmt: skip
