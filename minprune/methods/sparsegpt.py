"""SparseGPT: optimal-brain-surgeon updates for every row at once, column by column. Chapter 04.

Frantar and Alistarh 2023. Columns are visited left to right. When weight q of a row is pruned, the weights of that
row that are still to come make up for it as well as they can:

    w  <-  w - w_q / [H^-1]_qq * [H^-1]_q:          at a cost of  w_q^2 / [H^-1]_qq        (H = gram + damping)

where H^-1 is the inverse for the columns not yet visited. All of these shrinking inverses are the rows of one
matrix, the upper Cholesky factor U of the full inverse (H^-1 = U^T U): row q of the inverse without the first q
columns is U_qq * U_q:, so each step is  w -= (w_q / U_qq) * U_q:  and costs  (w_q / U_qq)^2.

Column j needs what all earlier columns sent it. That sum is a matrix product, so it is brought up to date lazily: once
for a block of columns, and only inside the block for each column. Here stand the lazy blocks; the columns inside one
are `sparsegpt_block.py`.
"""

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError
from minprune.methods.damping import checked_gram, damped_cholesky, invert_triangular_
from minprune.methods.result import Result
from minprune.methods.sparsegpt_block import Block, prune_block
from minprune.patterns import NM, Pattern, Unstructured
from minprune.statistics import Statistics


@checked()
@exact_arithmetic()
def sparsegpt(
    W: Tensor,
    stats: Statistics,
    pattern: Pattern,
    *,
    block_size: int = 128,
    damp: float = 0.01,
    keep: Tensor | None = None,
) -> Result:
    """Prune W and update what is kept, so that X W'^T stays close to X W^T.

    Plain "50%" chooses within each block of `block_size` columns, all rows together, as published, and N:M within each
    group when it is reached. Both see the weights as updated so far. Other patterns are chosen at the start.

    Parameters
    ----------
    W : Tensor (d_out, d_in), floating
    stats : Statistics, with a Gram matrix
    pattern : Pattern
    block_size : int, default 128
        Columns that are chosen together, and updated together.
    damp : float, default 0.01
        Fraction of mean(diag(gram)) added to the diagonal, raised tenfold (and noted) until it can be factorised.
    keep : Tensor (d_out, d_in), bool, optional
        A given mask instead of the pattern.

    Returns
    -------
    Result

    Raises
    ------
    PruneError
        If the pattern does not fit the shape, the statistics cannot be used, or an option is out of range.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> stats = mp.Statistics(2).update(torch.ones(3, 2))
    >>> mp.METHODS["sparsegpt"](torch.tensor([[1.0, 2.0]]), stats, "50%", damp=1e-4).weight.round(decimals=2)
    tensor([[0., 3.]])
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

    weight, chosen = torch.empty_like(W), torch.empty_like(W, dtype=torch.bool)
    E = U.new_empty(W.shape[1], W.shape[0])  # (d_in, d_out), row q: w_q / U_qq where q was pruned, 0 where kept
    for start in range(0, len(E), block_size):
        cols = slice(start, start + block_size)
        w = W[:, cols].T.to(U.dtype).clone(memory_format=torch.contiguous_format)  # (block, d_out): W's columns as rows
        w.addmm_(U[:start, cols].T, E[:start], alpha=-1)  # what all earlier blocks sent
        gain = 1 / U.diagonal()[cols, None]  # (block, 1)
        if by_block:  # one threshold for the block; of equal scores the leftmost column goes first
            kept = Unstructured(pattern.sparsity, "layer").keep((w * gain).square_())
        else:
            kept = torch.empty_like(w, dtype=torch.bool) if keep is None else keep[:, cols].T.contiguous()
        prune_block(Block(w, E[cols], kept, gain, U[cols, cols].T.tril(-1)), groups)
        weight[:, cols], chosen[:, cols] = w.T, kept.T
    return Result(weight, chosen, note)


@checked()
def inverse_factor(gram: Tensor, damp: float) -> tuple[Tensor, str]:
    """The upper Cholesky factor U of the inverse of H = gram + damp * mean(diag(gram)) * I: H^-1 = U^T U.

    gram (d_in, d_in) -> U (d_in, d_in) and a note. With J the reversal of the order, J H J = L L^T gives
    H = (J L J)(J L J)^T with J L J upper triangular, so U = (J L J)^-1 = J L^-1 J: one factorisation and one
    triangular inverse, half the operations of factorising, inverting, and factorising the inverse.
    """
    L, _, note = damped_cholesky(gram.flip(0, 1), damp)
    invert_triangular_(L)
    return L.flip(0, 1), note
