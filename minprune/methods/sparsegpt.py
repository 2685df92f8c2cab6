"""SparseGPT: optimal-brain-surgeon updates for every row at once, column by column. Chapter 04.

Frantar and Alistarh 2023. Columns are visited left to right. When weight q of a row is pruned, the weights of that
row that are still to come make up for it as well as they can:

    w  <-  w - w_q / [H^-1]_qq * [H^-1]_q:          at a cost of  w_q^2 / [H^-1]_qq        (H = gram + damping)

where H^-1 is the inverse for the columns not yet visited. All of these shrinking inverses are the rows of one
matrix, the upper Cholesky factor U of the full inverse (H^-1 = U^T U): row q of the inverse without the first q
columns is U_qq * U_q:, so each step is  w -= (w_q / U_qq) * U_q:  and costs  (w_q / U_qq)^2.

Column j needs what all earlier columns sent it. That sum is a matrix product, so it is brought up to date in
stages, never column by column: once for a block of columns, once for a panel inside it, and only inside a panel
for one column.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from minprune.errors import PruneError
from minprune.methods.damping import checked_gram, damped_cholesky
from minprune.methods.result import Result
from minprune.patterns import NM, Pattern, Unstructured
from minprune.statistics import Statistics

_LEAF = 4  # columns that are solved together; more of them would cost more rounds, fewer more Python


@torch.no_grad()
def sparsegpt(
    W: Tensor,
    stats: Statistics,
    pattern: Pattern,
    *,
    block_size: int = 128,
    damp: float = 0.01,
    keep: Tensor | None = None,
) -> Result:
    """Prune W (d_out, d_in) and update what is kept so that X W'^T stays close to X W^T.

    Plain "50%" chooses within each block of `block_size` columns, all rows together, as published, and N:M within
    each group when it is reached; both see the weights as updated so far. Other patterns are chosen at the start.
    keep: (d_out, d_in) bool, a given mask instead of the pattern. damp: fraction of mean(diag(gram)) added to the
    diagonal, raised tenfold (and noted in the result) while the Gram matrix cannot be factorised.
    Raises `ValueError` if the pattern does not fit the shape, the statistics have no Gram matrix, saw no input or
    only zeros, or hold NaN; or an option is out of range.
    """
    pattern = pattern.with_default("block")
    pattern.check(*W.shape)
    if block_size < 1:
        raise PruneError(f"block size {block_size} is not positive: 128 is the published one")
    gram = checked_gram(W, stats, damp, keep)  # (d_in, d_in)
    U, note = inverse_factor(gram, damp)  # (d_in, d_in)
    U.diagonal()[gram.diagonal() == 0] = float("inf")  # an input that is always 0: its weights cost nothing, go first
    groups = pattern if keep is None and isinstance(pattern, NM) else None
    by_block = keep is None and isinstance(pattern, Unstructured) and pattern.group == "block"
    if keep is None and not (groups or by_block):
        keep = pattern.keep((W / U.diagonal()).square())
    block_size += -block_size % groups.m if groups else 0  # so that no group of M lies in two blocks

    w = W.to(U.dtype).T.clone(memory_format=torch.contiguous_format)  # (d_in, d_out): a column of W is a row in memory
    E = torch.empty_like(w)  # row q: w_q / U_qq where q was pruned, 0 where kept
    kept = torch.zeros_like(w, dtype=torch.bool) if keep is None else keep.T.contiguous()  # (d_in, d_out)
    for start in range(0, len(w), block_size):
        cols = slice(start, start + block_size)
        w[cols].addmm_(U[:start, cols].T, E[:start], alpha=-1)  # what all earlier blocks sent
        if by_block:  # one threshold for the block; of equal scores the leftmost column goes first
            scores = (w[cols] / U.diagonal()[cols, None]).square_()
            kept[cols] = Unstructured(pattern.sparsity, "layer").keep(scores)
        _prune_block(w[cols], U[cols, cols], E[cols], kept[cols], groups)
    weight = w.mul_(kept).add_(0.0).T.contiguous().to(W.dtype)  # adding 0 turns the product's -0.0 into 0.0
    return Result(weight, kept.T.contiguous(), note)


class _Block(NamedTuple):
    """One block of columns and its working memory: w, E, kept, gain (block, d_out), diag (block, 1).

    gain: 1 / U_qq where weight q goes, 0 where it stays. later (block, block): later[p, q] is what one unit of error in
    column q takes off column p > q.
    """

    w: Tensor
    E: Tensor
    kept: Tensor
    gain: Tensor
    diag: Tensor
    later: Tensor
    groups: NM | None


def _prune_block(w: Tensor, U: Tensor, E: Tensor, kept: Tensor, groups: NM | None) -> None:
    """Prune one block of columns in place: w, E, kept (block, d_out), U (block, block).

    groups: choose N:M when a group is reached; None: `kept` is given.
    """
    diag = U.diagonal()[:, None]
    _visit(_Block(w, E, kept, ~kept / diag, diag, U.triu(1).T, groups), 0, len(w))


def _visit(block: _Block, start: int, end: int) -> None:
    """Columns start to end: the left half first, then what it sends to the right half, then the right half."""
    w, E, kept, gain, diag, later, groups = block
    here, size = slice(start, end), end - start
    if groups and size == groups.m:
        kept[here] = keep_here = groups.keep_places((w[here] / diag[here]).square())
        torch.div(~keep_here, diag[here], out=gain[here])
    whole_groups = groups is not None and size > groups.m  # none of them chosen yet: never cut one in two
    if size > _LEAF or whole_groups:
        unit = groups.m if groups and whole_groups else 1
        middle = start + size // unit // 2 * unit
        _visit(block, start, middle)
        w[middle:end].addmm_(later[middle:end, start:middle], E[start:middle], alpha=-1)
        _visit(block, middle, end)
        return
    w_here, gain_here, errors, sends = w[here], gain[here], E[here], later[here, here]
    before = w_here.clone()
    torch.mul(w_here, gain_here, out=errors)  # right for the first column
    for _ in range(size - 1):  # each round makes one more column right, for all rows at once
        torch.addmm(before, sends, errors, alpha=-1, out=w_here)
        torch.mul(w_here, gain_here, out=errors)


def inverse_factor(gram: Tensor, damp: float) -> tuple[Tensor, str]:
    """The upper Cholesky factor U of the inverse of H = gram + damp * mean(diag(gram)) * I: H^-1 = U^T U.

    gram (d_in, d_in) -> U (d_in, d_in) and a note. With J the reversal of the order, J H J = L L^T gives
    H = (J L J)(J L J)^T with J L J upper triangular, so U = (J L J)^-1 = J L^-1 J: one factorisation and one
    triangular inverse, half the operations of factorising, inverting, and factorising the inverse.
    """
    L, _, note = damped_cholesky(gram.flip(0, 1), damp)
    return triangular_inverse(L).flip(0, 1), note


def triangular_inverse(L: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix, (n, n) -> (n, n), by halves, so that matrix products do the work:

    [[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]
    """
    n = len(L)
    if n <= 256:
        return torch.linalg.solve_triangular(L, torch.eye(n).to(L), upper=False)
    half = n // 2
    A, C = triangular_inverse(L[:half, :half]), triangular_inverse(L[half:, half:])
    inverse = torch.zeros_like(L)
    inverse[:half, :half], inverse[half:, half:] = A, C
    inverse[half:, :half] = -C @ (L[half:, :half] @ A)
    return inverse
