"""Answers to the exercises of chapter 07, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

from itertools import combinations

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar

import minprune as mp


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


def fastest_rho_search(low, high):
    """The penalty for which a start away from the limit is forgotten most in 25 rounds of ADMM itself."""

    def left(log_rho, energies):
        rho, worst = np.exp(log_rho), 0.0
        for h in energies:
            kept, pruned = 1.0, 1.0  # Z - w where the weight is kept, U - h w / rho where it is pruned; w = 1
            for _ in range(25):
                kept = (h + rho * (kept + 1)) / (h + rho) - 1
                U = pruned + h / rho
                pruned = U + (h - rho * U) / (h + rho) - h / rho
            worst = max(worst, abs(kept), abs(pruned))
        return np.log(worst)

    found = []
    for energies in zip(low.double().tolist(), high.double().tolist(), strict=True):
        around = (np.log(energies[0]) - 1, np.log(energies[1]) + 1)
        found.append(float(np.exp(minimize_scalar(left, around, around, args=(energies,), options={"xatol": 1e-9}).x)))
    return found


def fastest_rho_logarithms(low, high):
    return ((low.double().log() + high.double().log()) / 2).exp()


def fooling_search(kept, pruned):
    """Where what the search believes of the swap changes its sign, by bisection on the two prices."""

    def believed(r, p, u):
        H, w = np.array([[p * p, r * p * u], [r * p * u, u * u]]), np.ones(2)
        g = H @ (w * [0, 1])
        return 2 * g[0] + H[0, 0] - 2 * g[1] + H[1, 1]

    return [
        -1.0 if believed(-1, p, u) >= 0 else brentq(believed, -1, 1, args=(p, u), xtol=1e-14)
        for p, u in zip(kept.double().tolist(), pruned.double().tolist(), strict=True)
    ]


def fooling_ratio(kept, pruned):
    ratio = kept.double() / pruned.double()
    return np.maximum(-1, (1 / ratio - ratio) / 2)


def _best(w, H, pruned):
    """The least loss of a row that prunes these places."""
    P = np.linalg.inv(H)[np.ix_(pruned, pruned)]
    return float(w[list(pruned)] @ np.linalg.solve(P, w[list(pruned)]))


def _claims(w, H):
    """Whether each of the eight claims holds for one row of six weights; None where it says nothing of this row."""
    two, three = ({p: _best(w, H, p) for p in combinations(range(6), n)} for n in (2, 3))
    old = {p: float(w[list(p)] @ H[np.ix_(p, p)] @ w[list(p)]) for p in three}
    best = min(three, key=three.get)
    scale = np.array([2.0, 1, 1, 1, 1, 1])
    stats = mp.Statistics(6, dtype=torch.float64).update(torch.linalg.cholesky(torch.from_numpy(H)).T)
    keep = torch.ones(1, 6, dtype=torch.bool)
    keep[0, list(best)] = False
    new = mp.METHODS["sparsegpt"](torch.from_numpy(w)[None], stats, mp.pattern("50%"), damp=0.0, keep=keep).weight[0]
    left, scores = w - new.numpy(), w**2 * np.diag(H)
    stuck = [p for p in three if all(three[q] >= three[p] for q in three if len({*p} & {*q}) == 2)]
    return [
        all(three[p] >= two[q] - 1e-12 for p in three for q in two if {*q} < {*p}),
        {*min(two, key=two.get)} < {*best},
        sorted(three, key=old.get) == sorted(three, key=three.get),
        left @ H @ left >= three[best] - 1e-12,
        {*np.argsort(scores)[:3]} == {*min(three, key=lambda p: _best(w, np.diag(np.diag(H)), p))},
        stuck == [best],
        best == min(three, key=lambda p: _best(w / scale, H * np.outer(scale, scale), p)),
        all(two[a, b] >= _best(w, H, (a,)) + _best(w, H, (b,)) - 1e-12 for a, b in two),
    ]


def always_holds_run(claims):
    """By looking for a row that contradicts, among 60 with inputs that are closely related."""
    random = np.random.default_rng(0)
    held = np.ones(8, dtype=bool)
    for _ in range(60):
        X = random.normal(size=(8, 2)) @ random.normal(size=(2, 6)) + 0.2 * random.normal(size=(8, 6))
        held &= _claims(random.normal(size=6), X.T @ X + 0.01 * np.eye(6))
    return held[claims.numpy() - 1]


def always_holds_table(claims):
    return [k in (1, 4, 5, 7) for k in claims.tolist()]


RIGHT = {
    "exact_row": [exact_row_fit, exact_row_pruned_side],
    "admm": [admm_one_variable, admm_by_rows],
    "swap_change": [swap_change_brute_force, swap_change_by_step],
    "ramp": [ramp_loop, ramp_numpy],
    "fastest_rho": [fastest_rho_search, fastest_rho_logarithms],
    "fooling_correlation": [fooling_search, fooling_ratio],
    "always_holds": [always_holds_run, always_holds_table],
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
    "fastest_rho": [
        lambda low, high: fastest_rho_logarithms(low, high).square() / 2,
        lambda low, high: fastest_rho_logarithms(low, high) / 2,
        lambda low, high: high - low,
        lambda low, high: (low.square() + high.square()).sqrt(),
    ],
    "fooling_correlation": [
        lambda kept, pruned: -2 * fooling_ratio(kept, pruned),  # two known bugs at once
        lambda kept, pruned: fooling_ratio(kept, pruned).square(),
        lambda kept, pruned: -pruned / kept,
        lambda kept, pruned: pruned - kept,
    ],
    "always_holds": [
        lambda claims: [k in (1, 4, 5, 8) for k in claims.tolist()],
        lambda claims: [True for _ in claims.tolist()],
        lambda claims: [k < 5 for k in claims.tolist()],
    ],
}  # fmt: skip
