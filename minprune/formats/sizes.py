"""Bits per weight of every format, and from which sparsity on it pays. Chapter 19.

s: the share of zeros; value_bits b: 32, 16, 8, 4. The formulas count every array of the format, for matrices whose rows
fill whole bytes; the formats' own `nbytes` must agree with them.
"""

import math

from minprune.formats.nm import code_bits


def dense_bits(value_bits: float) -> float:
    """b, whatever the zeros."""
    return value_bits


def csr_bits(
    sparsity: float, value_bits: float, index_bits: int = 16, length: float = math.inf, pointer_bits: int = 32
) -> float:
    """(1 - s) (b + i) + p / n, for lines of length n (one pointer more than lines is left out)."""
    return (1 - sparsity) * (value_bits + index_bits) + pointer_bits / length


def block_bits(
    sparsity: float,
    value_bits: float,
    size: int,
    index_bits: int = 8,
    length: float = math.inf,
    pointer_bits: int = 32,
) -> float:
    """(1 - t) (b + i / size^2) + p / (size n); here the sparsity t is the share of blocks that are all zero."""
    return (1 - sparsity) * (value_bits + index_bits / size**2) + pointer_bits / (size * length)


def bitmask_bits(sparsity: float, value_bits: float) -> float:
    """(1 - s) b + 1."""
    return (1 - sparsity) * value_bits + 1


def nm_bits(n: int, m: int, value_bits: float) -> float:
    """N / M (b + ceil(log2 M))."""
    return n / m * (value_bits + code_bits(m))


def entropy_bits(sparsity: float, value_bits: float) -> float:
    """(1 - s) b + H(s): no format can store independently placed zeros in fewer bits, on average (Shannon 1948)."""
    shares = [share for share in (sparsity, 1 - sparsity) if share > 0]
    return (1 - sparsity) * value_bits - sum(share * math.log2(share) for share in shares)


def csr_break_even(value_bits: float, index_bits: int, length: float = math.inf, pointer_bits: int = 32) -> float:
    """The sparsity above which CSR is smaller than dense: (i + p / n) / (b + i)."""
    return (index_bits + pointer_bits / length) / (value_bits + index_bits)


def bitmask_break_even(value_bits: float) -> float:
    """The sparsity above which a bitmask is smaller than dense: 1 / b."""
    return 1 / value_bits
