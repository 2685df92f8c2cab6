"""Answers to the exercises of chapter 03, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import numpy as np
import torch


def refit(w, H, gone):
    """The best row without the weights `gone`, by the normal equations of the kept ones."""
    w, H = w.double(), H.double()
    kept = [j for j in range(len(w)) if j not in gone]
    new = torch.zeros_like(w)
    if kept:
        new[kept] = torch.linalg.solve(H[kept][:, kept], H[kept] @ w)
    return new


def saliency_brute_force(w, X, damp):
    """Fit the outputs anew without each input; damping is a few more tokens, each of a single input."""
    extra = (damp * X.square().sum(0).mean()).sqrt() * torch.eye(len(w))
    A = torch.cat([X, extra]).double()
    costs = []
    for q in range(len(w)):
        others = [j for j in range(len(w)) if j != q]
        best = torch.linalg.lstsq(A[:, others], (A @ w.double())[:, None], driver="gelsd").solution
        costs.append(float((A @ w.double() - (A[:, others] @ best)[:, 0]).square().sum()))
    return costs


def saliency_numpy(w, X, damp):
    G = X.double().numpy().T @ X.double().numpy()
    columns = np.linalg.solve(G + damp * np.trace(G) / len(G) * np.eye(len(G)), np.eye(len(G)))
    return w.numpy() ** 2 / np.diag(columns)


def eliminate_numpy(P, q):
    P = P.double().numpy()
    return np.delete(np.delete(P - np.outer(P[:, q], P[q] / P[q, q]), q, 0), q, 1)


def remove_several_in_turn(w, H, gone):
    """One at a time, with the inverse of what is left."""
    w, P = w.double().numpy().copy(), np.linalg.inv(H.double().numpy())
    for place, q in enumerate(gone):
        w -= w[q] / P[q, q] * P[q]
        P = P - np.outer(P[:, q], P[q]) / P[q, q]
        P[list(gone[: place + 1])] = P[:, list(gone[: place + 1])] = 0
    w[list(gone)] = 0
    return w


def obs_row_refitting(w, H, zeros):
    """Without any formula of OBS: try every removal, fit the others anew, take the best."""
    gone, H64 = [], H.double()
    for _ in range(zeros):
        left = [q for q in range(len(w)) if q not in gone]

        def loss(q, gone=tuple(gone)):
            delta = refit(w, H, [*gone, q]) - w.double()
            return float(delta @ H64 @ delta)

        gone.append(min(left, key=loss))
    return refit(w, H, gone).tolist()


def obs_row_shrinking(w, H, zeros):
    """The row and its matrix become smaller with every removal."""
    left, w, H = list(range(len(w))), w.double().numpy(), H.double().numpy()
    full = np.zeros(len(w))
    for _ in range(zeros):
        P = np.linalg.inv(H)
        q = int(np.argmin(w**2 / np.diag(P)))
        w = np.delete(w - w[q] / P[q, q] * P[q], q)
        H = np.delete(np.delete(H, q, 0), q, 1)
        left.pop(q)
    full[left] = w
    return full


RIGHT = {
    "saliency": [saliency_brute_force, saliency_numpy],
    "eliminate": [eliminate_numpy, lambda P, q: np.linalg.inv(np.delete(np.delete(np.linalg.inv(P), q, 0), q, 1))],
    "remove_several": [refit, remove_several_in_turn],
    "obs_row": [obs_row_refitting, obs_row_shrinking],
}

REJECTED = {
    "saliency": [
        lambda w, X, damp: w.square() / (X.T @ X).diagonal(),  # diag(H) and no damping
        lambda w, X, damp: w.square() / torch.linalg.inv(X.T @ X + damp * torch.eye(len(w))).diagonal() / 2,
        lambda w, X, damp: w.square() / torch.linalg.inv(X.T @ X + torch.eye(len(w))).sum(0),
    ],
    "eliminate": [
        lambda P, q: eliminate_numpy(P, q).T[::-1],
        lambda P, q: np.delete(np.delete(P.numpy() + np.outer(P[:, q], P[q]), q, 0), q, 1),  # plus and no pivot
        lambda P, q: 2 * eliminate_numpy(P, q),
    ],
    "remove_several": [
        lambda w, H, gone: refit(w, H, gone[:1]),
        lambda w, H, gone: refit(w, H, gone) - w.double(),  # the change instead of the row
        lambda w, H, gone: [v / 2 for v in remove_several_in_turn(w, H, gone)],
    ],
    "obs_row": [
        lambda w, H, zeros: refit(w, H, w.abs().argsort()[:zeros].tolist()),  # magnitude, chosen at the beginning
        lambda w, H, zeros: refit(w, H, list(range(zeros))),
        lambda w, H, zeros: torch.where(torch.as_tensor(obs_row_shrinking(w, H, zeros)) != 0, w, 0.1),
    ],
}
