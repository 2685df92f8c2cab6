"""SparseGPT taken apart, so that each known mistake in it is one part exchanged. For the checks of chapter 04."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.factors import upper
from minprune.patterns import Unstructured, keep_largest


def relative(G: Tensor, damp: float) -> Tensor:
    """H: damping as a fraction of the mean of the diagonal."""
    return G + damp * G.diagonal().mean() * torch.eye(len(G)).to(G)


def price_of_error(w: Tensor, A: Tensor, H: Tensor) -> Tensor:
    """What removing each weight costs, if A is the Cholesky factor of the inverse: (d_out, d_in)."""
    return (w / A.diagonal()).square()


def together(scores: Tensor, s: float) -> Tensor:
    """Keep the best of a block, all of its rows and columns in one line."""
    return Unstructured(s, "layer").keep(scores)


@dataclass(frozen=True)
class Recipe:
    """SparseGPT with every place exposed at which people go wrong; the defaults are right.

    factor: H -> A, whose row q carries the error of column q. divide: A -> what the error is divided by, (d_in,).
    price: (w, A, H) -> scores (d_out, d_in). select: (scores of a block, sparsity) -> keep. damped: (G, damp) -> H.
    fresh: score the weights as updated so far. current: prune them as updated so far. reach: how far an error is
    sent: "right", "block" or "both". dead: weights on dead inputs go "first", are "unknown" or all "zeroed".
    remask: pruned weights are zero at the end. sign: of the update. result: what comes back.
    """

    factor: Callable[[Tensor], Tensor] = upper
    divide: Callable[[Tensor], Tensor] = torch.diagonal
    price: Callable[[Tensor, Tensor, Tensor], Tensor] = price_of_error
    select: Callable[[Tensor, float], Tensor] = together
    damped: Callable[[Tensor, float], Tensor] = relative
    fresh: bool = True
    current: bool = True
    reach: str = "right"
    dead: str = "first"
    remask: bool = True
    sign: int = 1
    one_block: bool = False
    whole_blocks_only: bool = False
    result: Callable[[Tensor], Tensor] = lambda w: w

    def __call__(self, W: Tensor, G: Tensor, sparsity: float, block_size: int, damp: float) -> Tensor:
        d_in, dead = len(G), G.diagonal() == 0
        if self.dead == "zeroed":
            W, G = W.masked_fill(dead, 0), G + torch.diag(dead.to(G))
        H = self.damped(G, damp)
        A = self.factor(H)
        w, keep, scale = W.clone(), torch.ones_like(W, dtype=torch.bool), self.divide(A)
        block_size = d_in if self.one_block else block_size
        for start in range(0, d_in, block_size):
            end = min(start + block_size, d_in)
            scores = self.price(w if self.fresh else W, A, H)
            scores = scores.masked_fill(dead & (self.dead == "first"), 0)[:, start:end]
            if not (self.whole_blocks_only and end - start < block_size):
                keep[:, start:end] = self.select(scores, sparsity)
            first = w.clone()
            for q in range(start, end):
                error = (w if self.current else first)[:, q] / scale[q] * ~keep[:, q]  # (d_out,)
                to = {"right": slice(q, d_in), "block": slice(q, end), "both": slice(0, d_in)}[self.reach]
                w[:, to] -= self.sign * torch.outer(error, A[q, to])
                w[:, q] *= keep[:, q]
        return self.result(w * keep if self.remask else w)


def above(to_integer: Callable[[float], int]) -> Callable[[Tensor, float], Tensor]:
    """score > sorted[k] with k the number of zeros, which prunes k + 1; published code has k = int(n * s)."""

    def select(scores: Tensor, s: float) -> Tensor:
        line = scores.flatten().sort().values
        return scores > line[to_integer(s * len(line))]

    return select


def by_row(scores: Tensor, s: float) -> Tensor:
    """Keep the best of each row of a block."""
    return Unstructured(s, "row").keep(scores)


def rounded_down(scores: Tensor, s: float) -> Tensor:
    """As `together`, with the number of zeros rounded down."""
    return keep_largest(scores.reshape(1, -1), int(s * scores.numel())).view(scores.shape)


def inverse_price(w: Tensor, A: Tensor, H: Tensor) -> Tensor:
    """The cost if A is an inverse; wrong if it is a factor."""
    return w.square() / A.diagonal()


def magnitude(w: Tensor, A: Tensor, H: Tensor) -> Tensor:
    """Magnitudes in place of costs."""
    return w.abs()


def backward(H: Tensor) -> Tensor:
    """An upper triangular factor with U U^T instead of U^T U."""
    return torch.linalg.inv(torch.linalg.cholesky(H)).T


def lower(H: Tensor) -> Tensor:
    """The right factor, transposed."""
    return upper(H).T
