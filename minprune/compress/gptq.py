"""GPTQ: optimal-brain-surgeon updates for weights that are rounded, and for those that are pruned in the same sweep.

Frantar, Ashkboos, Hoefler and Alistarh 2023. It is SparseGPT (`minprune.methods.sparsegpt`, chapter 04) with "round" in
the place of "zero". With H = gram + damping and the same upper Cholesky factor of its inverse, H^-1 = U^T U, column
after column:

    q = round(w_j)    or 0 where weight j is pruned
    e = (w_j - q) / U_jj            at a cost of e^2, the loss added up to the row's in the end
    w_k  <-  w_k - e U_jk           for all columns k > j

A weight that is zero when the sweep comes is pruned already and stays zero (a fixed mask). With a pattern the sweep
chooses further zeros where SparseGPT does: the block's when it reaches a block, N:M for each group (its joint mode).
order="activation" goes by falling diag(gram), the costliest inputs first, while many others can still make up for them.
The grids are those of neighbours as stored, fixed from the dense matrix ("static groups"), so that whoever reads the
result need not know the order.

Left out: grids from the weights as updated so far, which the published code makes when it reaches a group.
"""

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import exact_arithmetic
from minprune.compress.grids import make_grid
from minprune.errors import PruneError
from minprune.methods.damping import check_finite, checked_gram
from minprune.methods.result import Result
from minprune.methods.sparsegpt import inverse_factor
from minprune.patterns import NM, Pattern, Unstructured
from minprune.statistics import Statistics

ORDERS = ("stored", "activation")


@checked("bits", "group")
@exact_arithmetic()
def rtn(
    W: Tensor, stats: Statistics | None, pattern: Pattern, *, bits: int = 4, group: int = 64, grid: str = "asymmetric"
) -> Result:
    """Round each weight of W to the nearest level; weights that are zero stay zero.

    Parameters
    ----------
    W : Tensor (d_out, d_in), floating
    stats : Statistics or None
        Not needed.
    pattern : Pattern
        Of sparsity 0: rounding chooses no zeros.
    bits, group, grid
        As for `minprune.compress.grids.make_grid`.

    Returns
    -------
    Result

    Raises
    ------
    PruneError
        If the pattern asks for zeros, W is not finite, or there is no such grid.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> from minprune.compress.gptq import rtn
    >>> rtn(torch.tensor([[-3.0, 0.6, 2.0, 0.0]]), None, mp.pattern("0%"), bits=3, group=4, grid="symmetric").weight
    tensor([[-3.,  1.,  2.,  0.]])
    """
    if pattern.sparsity:
        raise PruneError(f"rtn rounds and chooses no zeros, pattern {pattern} asks for some: prune first, or use gptq")
    check_finite(W)
    keep = W != 0
    return Result(torch.where(keep, make_grid(W, bits, group, grid).round(W), 0).to(W.dtype), keep)


@checked("bits", "group")
@exact_arithmetic()
def gptq(
    W: Tensor,
    stats: Statistics,
    pattern: Pattern,
    *,
    bits: int = 4,
    group: int = 64,
    grid: str = "asymmetric",
    order: str = "stored",
    block_size: int = 128,
    damp: float = 0.01,
) -> Result:
    """Round the weights of W, and prune with the pattern, so that X W'^T stays close to X W^T.

    Parameters
    ----------
    W : Tensor (d_out, d_in), floating
    stats : Statistics, with a Gram matrix
    pattern : Pattern
        "0%" rounds only. Another one chooses zeros in the same sweep, those of W among them.
    bits, group, grid
        As for `minprune.compress.grids.make_grid`.
    order : {"stored", "activation"}, default "stored"
        In which order the columns are visited.
    block_size, damp
        As for SparseGPT.

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
    >>> from minprune.compress.gptq import gptq
    >>> stats = mp.Statistics(3).update(torch.ones(5, 3))
    >>> W = torch.tensor([[1.4, 1.4, 3.0]])
    >>> gptq(W, stats, mp.pattern("0%"), bits=3, group=3, grid="symmetric", damp=1e-4).weight
    tensor([[1., 2., 3.]])
    """
    pattern = pattern.with_default("block")
    pattern.check(*W.shape)
    if order not in ORDERS:
        raise PruneError(f"unknown order {order!r}: choose one of {', '.join(ORDERS)}")
    if block_size < 1:
        raise PruneError(f"block size {block_size} is not positive: 128 is the published one")
    gram = checked_gram(W, stats, damp)  # (d_in, d_in)
    levels = make_grid(W, bits, group, grid)
    visit = _order(gram, order)  # (d_in,)
    U, note = inverse_factor(gram[visit][:, visit], damp)  # (d_in, d_in)
    U.diagonal()[gram.diagonal()[visit] == 0] = float("inf")  # an input that is always 0: errors there cost nothing
    # from here on columns lie as rows, in the order of the visit
    w = W.T[visit].to(U.dtype).contiguous()  # (d_in, d_out)
    scales, zeros, offsets = (part.T[visit].contiguous() for part in levels.columns(W.shape[1]))
    there, gain = w != 0, 1 / U.diagonal()[:, None]  # (d_in, d_out), (d_in, 1)
    groups = pattern if pattern.sparsity and isinstance(pattern, NM) and order == "stored" else None
    by_block = bool(pattern.sparsity) and isinstance(pattern, Unstructured) and pattern.group == "block"
    kept = there.clone()
    if pattern.sparsity and not (groups or by_block):
        scores = torch.empty_like(W, dtype=U.dtype)
        scores[:, visit] = _scores(w, gain, there).T
        kept &= pattern.keep(scores).T[visit]
    block_size += -block_size % groups.m if groups else 0  # so that no group of M lies in two blocks

    E = torch.zeros_like(w)  # (d_in, d_out): the errors e
    for start in range(0, len(w), block_size):
        end = min(start + block_size, len(w))
        w[start:end].addmm_(U[:start, start:end].T, E[:start], alpha=-1)  # what all earlier blocks sent
        if by_block and isinstance(pattern, Unstructured):
            of_block = _scores(w[start:end], gain[start:end], there[start:end])
            kept[start:end] &= Unstructured(pattern.sparsity, "layer").keep(of_block)
        for j in range(start, end):
            if groups and j % groups.m == 0:
                here = slice(j, j + groups.m)
                kept[here] &= torch.as_tensor(groups.keep_places(_scores(w[here], gain[here], there[here])))
            code = levels.codes_at(w[j], scales[j], zeros[j], offsets[j])  # (d_out,)
            q = (offsets[j] + scales[j] * (code - zeros[j])).mul_(kept[j])
            E[j] = (w[j] - q) * gain[j]
            w[j] = q
            w[j + 1 : end].addr_(U[j, j + 1 : end], E[j], alpha=-1)
    weight, keep = torch.empty_like(W), torch.empty_like(W, dtype=torch.bool)
    weight[:, visit], keep[:, visit] = w.T.to(W.dtype) + 0.0, kept.T  # + 0.0: no -0.0
    return Result(weight, keep, note)


def _order(gram: Tensor, order: str) -> Tensor:
    """The columns as they are visited, (d_in,): of equal ones the lower index first."""
    if order == "stored":
        return torch.arange(len(gram), device=gram.device)
    return gram.diagonal().argsort(descending=True, stable=True)


def _scores(w: Tensor, gain: Tensor, there: Tensor) -> Tensor:
    """What it costs to prune each weight; those that are pruned already come before all others."""
    return (w * gain).square_().masked_fill_(~there, -1)
