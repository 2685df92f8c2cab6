"""Answers to the exercises of chapter 19, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import numpy as np
import scipy.sparse
import torch


def to_csr_numpy(W, keep):
    rows, columns = np.nonzero(keep.numpy())
    return W.numpy()[rows, columns], columns, np.searchsorted(rows, np.arange(len(W) + 1))


def to_csr_loop(W, keep):
    values, columns, pointers = [], [], [0]
    for w, k in zip(W.tolist(), keep.tolist(), strict=True):
        for j, (value, kept) in enumerate(zip(w, k, strict=True)):
            if kept:
                values.append(value)
                columns.append(j)
        pointers.append(len(values))
    return values, columns, pointers


def csr_matmul_scipy(values, columns, pointers, X):
    shape = (len(pointers) - 1, X.shape[1])
    stored = scipy.sparse.csr_array((values.numpy(), columns.numpy(), pointers.numpy()), shape=shape)
    return (stored @ X.numpy().T).T


def csr_matmul_index_add(values, columns, pointers, X):
    rows = torch.arange(len(pointers) - 1).repeat_interleave(pointers.diff())
    return torch.zeros(len(X), len(pointers) - 1).index_add(1, rows, X[:, columns] * values)


def pack_2_4_numpy(W, keep):
    groups = keep.numpy().reshape(len(W), -1, 4)
    places = np.sort(np.argsort(~groups, axis=2, kind="stable")[..., :2], axis=2)
    values = np.take_along_axis((W * keep).numpy().reshape(groups.shape), places, 2).reshape(len(W), -1)
    digits = places.reshape(len(W), -1, 4)  # two groups a byte
    return values, (digits * 4 ** np.arange(4)).sum(2)


def pack_2_4_by_table(W, keep):
    """Every mask of four has one code: look it up."""
    table = {}
    for mask in range(16):
        kept = [p for p in range(4) if mask >> p & 1][:2]
        free = [p for p in range(4) if p not in kept]
        table[mask] = sorted((kept + free)[:2])
    values, codes = [], []
    for w, k in zip((W * keep).tolist(), keep.tolist(), strict=True):
        places = [table[sum(bit << p for p, bit in enumerate(k[g : g + 4]))] for g in range(0, len(k), 4)]
        values.append([w[4 * g + p] for g, pair in enumerate(places) for p in pair])
        numbers = [one + 4 * two for one, two in places]
        codes.append([low + 16 * high for low, high in zip(numbers[::2], numbers[1::2], strict=True)])
    return values, codes


RIGHT = {
    "to_csr": [to_csr_numpy, to_csr_loop],
    "csr_matmul": [csr_matmul_scipy, csr_matmul_index_add],
    "pack_2_4": [pack_2_4_numpy, pack_2_4_by_table],
}

REJECTED = {
    "to_csr": [
        lambda W, keep: (W[keep], keep.nonzero()[:, 1] + 1, to_csr_numpy(W, keep)[2]),  # columns counted from 1
        lambda W, keep: (W[keep].abs(), *to_csr_numpy(W, keep)[1:]),
        lambda W, keep: (*to_csr_numpy(W, keep)[:2], keep.sum(1)[:-1]),  # counts, and one of them lost
        lambda W, keep: to_csr_numpy(W.T, ~keep.T),  # down the columns, and inverted
    ],
    "csr_matmul": [
        lambda values, columns, pointers, X: torch.zeros(len(X), len(pointers) - 1),
        lambda values, columns, pointers, X: 2 * csr_matmul_index_add(values, columns, pointers, X),
        lambda values, columns, pointers, X: csr_matmul_index_add(values.flip(0), columns, pointers, X),
        lambda values, columns, pointers, X: csr_matmul_index_add(values, columns, pointers, X).T.flip(0),
    ],
    "pack_2_4": [
        lambda W, keep: (pack_2_4_numpy(W, keep)[0], ~torch.tensor(pack_2_4_numpy(W, keep)[1])),
        lambda W, keep: (pack_2_4_numpy(W, keep)[0][:, ::-1].copy(), pack_2_4_numpy(W, keep)[1]),
        lambda W, keep: pack_2_4_numpy(W, ~keep),
        lambda W, keep: pack_2_4_numpy(W.flip(1), keep.flip(1)),
    ],
}
