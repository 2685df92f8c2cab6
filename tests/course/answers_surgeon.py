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


def loss_without(w, H, gone):
    delta = refit(w, H, gone) - w.double()
    return float(delta @ H.double() @ delta)


def return_gains_refitting(w, H, gone):
    """Without any formula of OBS: fit the row with and without each of them."""
    return [loss_without(w, H, gone) - loss_without(w, H, [q for q in gone if q != back]) for back in gone]


def return_gains_on_the_kept(w, H, gone):
    """The slope at the repaired row, and what H leaves of an input when the kept ones have imitated it."""
    H64, row = H.double().numpy(), refit(w, H, gone).numpy()
    kept = [j for j in range(len(w)) if j not in gone]
    slope = H64 @ (w.double().numpy() - row)
    own = [H64[q, q] - H64[q, kept] @ np.linalg.solve(H64[np.ix_(kept, kept)], H64[kept, q]) for q in gone]
    return slope[gone] ** 2 / np.array(own)


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
    "eliminate": [eliminate_numpy, lambda P, q: np.linalg.inv(np.delete(np.delete(np.linalg.inv(P), q, 0), q, 1))],
    "remove_several": [refit, remove_several_in_turn],
    "obs_row": [obs_row_refitting, obs_row_shrinking],
    "return_gains": [return_gains_refitting, return_gains_on_the_kept],
}

REJECTED = {
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
    "return_gains": [
        lambda w, H, gone: return_gains_refitting(w, H, gone[:1]) * len(gone),
        lambda w, H, gone: [loss_without(w, H, gone) - loss_without(w, H, [back]) for back in gone],
        lambda w, H, gone: [loss_without(w, H, [back]) for back in gone[::-1]],  # a first removal, in another order
        lambda w, H, gone: [2 * gain for gain in return_gains_refitting(w, H, sorted(gone))],  # two at once
    ],
}
