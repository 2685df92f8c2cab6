"""Answers to the exercises of chapter 10, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import numpy as np
import torch


def cut_with_bos_loop(ids, length, bos):
    ids, windows = ids.tolist(), []
    while len(ids) >= length - 1:
        windows.append([bos, *ids[: length - 1]])
        ids = ids[length - 1 :]
    return windows


def cut_with_bos_unfold(ids, length, bos):
    windows = np.full((len(ids) // (length - 1), length), bos)
    windows[:, 1:] = ids.unfold(0, length - 1, length - 1).numpy()
    return windows


def draw_windows_list(ids, length, samples, seed):
    ids, windows = ids.tolist(), []
    while len(ids) >= length:
        windows.append(ids[:length])
        ids = ids[length:]
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed)).tolist()
    return torch.tensor([windows[place] for place in order[:samples]])


def draw_windows_unfold(ids, length, samples, seed):
    windows, generator = ids.unfold(0, length, length), torch.Generator()
    generator.manual_seed(seed)
    return windows.index_select(0, torch.randperm(windows.shape[0], generator=generator)).narrow(0, 0, samples)


def contaminated_unfold(train, test, n):
    seen = train.unfold(1, n, 1).reshape(-1, n)  # (runs, n)
    runs = test.unfold(1, n, 1)  # (windows, places, n)
    return (runs[:, :, None] == seen).all(-1).any(-1).any(-1)


def contaminated_text(train, test, n):
    lines = ["".join(chr(100 + t) for t in window) for window in train.tolist()]
    verdicts = []
    for window in test.tolist():
        text = "".join(chr(100 + t) for t in window)
        verdicts.append(any(text[i : i + n] in line for i in range(len(text) - n + 1) for line in lines))
    return verdicts


def mix_grams_numpy(grams, tokens, shares):
    means = np.stack([G.numpy() / n for G, n in zip(grams, tokens, strict=True)])
    return sum(tokens) * np.einsum("k,kij->ij", np.array(shares), means)


def mix_grams_loop(grams, tokens, shares):
    total = torch.zeros_like(grams[0])
    for G, n, share in zip(grams, tokens, shares, strict=True):
        wanted = share * sum(tokens)
        total += G * (wanted / n)
    return total


def damping_by_left_out(W, grams, damps, prune, measure=lambda D, G: np.trace(D @ G @ D.T)):
    """With the mean of the other pieces and in NumPy; the damping is relative, so a mean is as good as a sum."""
    best, least = None, np.inf
    for damp in damps:
        error = 0.0
        for k, piece in enumerate(grams):
            others = [G for i, G in enumerate(grams) if i != k]
            D = (W - prune(W, sum(others) / len(others), damp)).numpy()
            error += measure(D, piece.numpy())
        if error < least:
            best, least = damp, error
    return best


def damping_by_difference(W, grams, damps, prune):
    total, errors = sum(grams), dict.fromkeys(damps, 0)
    for piece in grams:
        for damp in damps:
            D = (prune(W, total - piece, damp) - W).double()
            errors[damp] += torch.einsum("ri,ij,rj->", D, piece.double(), D)
    return torch.tensor(min(errors, key=errors.get)).double()


RIGHT = {
    "draw_windows": [draw_windows_list, draw_windows_unfold],
    "cut_with_bos": [cut_with_bos_loop, cut_with_bos_unfold],
    "contaminated": [contaminated_unfold, contaminated_text],
    "mix_grams": [mix_grams_numpy, mix_grams_loop],
    "damping_from_one_text": [damping_by_left_out, damping_by_difference],
}

REJECTED = {
    "draw_windows": [
        lambda ids, length, samples, seed: draw_windows_list(ids, length, samples, seed + 1),
        lambda ids, length, samples, seed: draw_windows_list(ids[1:], length, samples, seed),
        lambda ids, length, samples, seed: draw_windows_list(ids, length, samples, seed).flip(0),
        lambda ids, length, samples, seed: draw_windows_list(ids, length + 1, samples, seed),
    ],
    "cut_with_bos": [
        lambda ids, length, bos: torch.tensor(cut_with_bos_loop(ids, length, bos)).flip(0),
        lambda ids, length, bos: cut_with_bos_loop(ids, length, bos + 1),
        lambda ids, length, bos: torch.tensor(cut_with_bos_loop(ids, length, bos)).flip(1)[:-1],  # two at once
    ],
    "contaminated": [
        lambda train, test, n: ~contaminated_unfold(test, train, n),  # two at once
        lambda train, test, n: contaminated_unfold(train[:1], test, n + 1),
        lambda train, test, n: [place % 2 == 0 for place in range(len(test))],
        lambda train, test, n: contaminated_unfold(train.flip(1), test, n),
    ],
    "mix_grams": [
        lambda grams, tokens, shares: mix_grams_numpy(grams, tokens, shares[::-1]),
        lambda grams, tokens, shares: mix_grams_numpy(grams, tokens, [s**0.5 for s in shares]),
        lambda grams, tokens, shares: mix_grams_numpy(grams, tokens[::-1], shares),
    ],
    "damping_from_one_text": [
        lambda W, grams, damps, prune: damps[1],
        lambda W, grams, damps, prune: 2 * damping_by_left_out(W, grams, damps, prune),
        lambda W, grams, damps, prune: damping_by_left_out(W, grams[:-1], damps, prune),  # the last has no say at all
        lambda W, grams, damps, prune: damping_by_left_out(W, [sum(grams[::2]), sum(grams[1::2])], damps, prune),
    ],
}
