"""Answers to the exercises of chapter 20, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import math
from collections import OrderedDict

import numpy as np
import torch


def by_bits_iterator(values, bits, x):
    """The values as an iterator, and the bits as text."""
    left, y = iter(values.tolist()), []
    for row in bits:
        text = "".join(f"{byte:08b}"[::-1] for byte in row)
        y.append(sum(next(left) * x[j] for j, bit in enumerate(text) if bit == "1"))
    return y


def by_bits_nonzero(values, bits, x):
    """No loop: the places of all bits that are set, and a sum for each row."""
    rows, columns = np.nonzero(np.unpackbits(bits, axis=1, bitorder="little"))
    return np.bincount(rows, values * x[columns], minlength=len(bits))


def by_table_unpacked(values, bits, x):
    where = np.unpackbits(bits, axis=1, bitorder="little", count=len(x)).astype(bool)
    W = torch.zeros(where.shape)
    W.masked_scatter_(torch.from_numpy(where), torch.from_numpy(values))
    return W @ torch.from_numpy(x)


def needed_sparsity_by_halving(bits, head, gain):
    """The smallest share that is enough, by halving an interval: no formula is solved."""
    found = []
    for b in bits.tolist():

        def read(s, b=b):
            return head + (1 - head) * ((1 - s) * b + 1) / b  # of the dense bytes

        low, high = 0.0, 1.0
        if read(high) > 1 / gain:
            found.append(math.inf)
            continue
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if read(middle) <= 1 / gain else (middle, high)
        found.append(high)
    return found


def needed_sparsity_numpy(bits, head, gain):
    kept = (bits.numpy() * (1 / gain - head) / (1 - head) - 1) / bits.numpy()  # of the values
    return np.where(kept < 0, np.inf, 1 - kept)


def two_of_four_numpy(values, codes, X):
    places = (codes.numpy()[:, :, None].astype(int) >> np.array([0, 2, 4, 6])) % 4
    columns = places.reshape(len(values), -1, 2) + 4 * np.arange(values.shape[1] // 2)[:, None]
    picked = X.numpy()[:, columns.reshape(len(values), -1)]  # (tokens, d_out, stored)
    return np.einsum("tok,ok->to", picked, values.numpy())


def two_of_four_gather(values, codes, X):
    """One pass over the columns: the inputs are taken from groups of four by their places."""
    places = torch.stack([codes.long() // 4**k % 4 for k in range(4)], dim=2).view(len(codes), -1, 2)
    groups = X.view(len(X), -1, 4)[:, None].expand(-1, len(codes), -1, -1)
    picked = groups.gather(3, places[None].expand(len(X), -1, -1, -1)).flatten(2)
    return (picked * values).sum(2)


def from_memory_ordered(sizes, visits, cache):
    """What the cache really does: move to the end, throw out from the front."""
    held, read = OrderedDict(), []
    for one in visits.tolist():
        read.append(one not in held)
        held[one] = int(sizes[one])
        held.move_to_end(one)
        while sum(held.values()) > cache:
            held.popitem(last=False)
    return read


def from_memory_by_time(sizes, visits, cache):
    last, read = np.full(len(sizes), -1), []
    for now, one in enumerate(visits.numpy()):
        newer = sizes.numpy()[last >= last[one]].sum() if last[one] >= 0 else cache + 1
        read.append(bool(newer > cache))
        last[one] = now
    return np.array(read)


RIGHT = {
    "by_bits": [by_bits_iterator, by_bits_nonzero],
    "by_table": [by_table_unpacked, by_bits_nonzero],
    "needed_sparsity": [needed_sparsity_by_halving, needed_sparsity_numpy],
    "two_of_four": [two_of_four_numpy, two_of_four_gather],
    "from_memory": [from_memory_ordered, from_memory_by_time],
}

REJECTED = {
    "by_bits": [
        lambda values, bits, x: by_bits_nonzero(values, bits[:, ::-1].copy(), np.resize(x, 8 * bits.shape[1])),
        lambda values, bits, x: by_bits_nonzero(values[::-1], bits, x),
        lambda values, bits, x: by_bits_nonzero(values, bits, np.ones_like(x)),
        lambda values, bits, x: by_bits_nonzero(abs(values), bits, x),
    ],
    "by_table": [
        lambda values, bits, x: by_bits_nonzero(values[::-1], bits, x),
        lambda values, bits, x: np.roll(by_bits_nonzero(values, bits, x), 1) + 1,
        lambda values, bits, x: np.zeros(len(bits)),
        lambda values, bits, x: by_bits_nonzero(values, bits, x).sum(),
    ],
    "needed_sparsity": [
        lambda bits, head, gain: 1 - 1 / (gain * bits),
        lambda bits, head, gain: needed_sparsity_numpy(bits - 1, head, gain),
        lambda bits, head, gain: needed_sparsity_numpy(bits, 0, 1 / gain),  # the head and the direction
        lambda bits, head, gain: 100 * torch.tensor(needed_sparsity_numpy(bits, 0.0, gain)),  # per cent, no head
    ],
    "two_of_four": [
        lambda values, codes, X: two_of_four_numpy(values.flip(1), codes, X),
        lambda values, codes, X: two_of_four_numpy(values, codes.flip(1), X),
        lambda values, codes, X: two_of_four_numpy(values, codes, X).T[::-1].copy(),
        lambda values, codes, X: two_of_four_numpy(values, 255 - codes, X),
    ],
    "from_memory": [
        lambda sizes, visits, cache: [not read for read in from_memory_ordered(sizes, visits, cache // 2)],
        lambda sizes, visits, cache: from_memory_ordered(sizes, visits.flip(0), cache)[::-1],
        lambda sizes, visits, cache: from_memory_ordered(sizes.flip(0), visits, cache),
        lambda sizes, visits, cache: [True] * len(visits),
    ],
}
