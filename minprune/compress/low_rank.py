"""Low rank in closed form: two thin matrices in the place of one, best for the layer's output. Chapter 21.

With G = L L^T the loss tr((W - W') G (W - W')^T) is |W L - W' L|^2, so by Eckart and Young W' L should be the best
approximation of W L of that rank. Its left singular vectors are the eigenvectors of W L L^T W^T, and

    W' = U_r U_r^T W,        U_r the top r eigenvectors of W G W^T        loss = the sum of the other eigenvalues

the principal components of the layer's outputs. Nothing is inverted, so a singular G does no harm. SVD-LLM (Wang et al.
2025) takes W L and L^-1; with G = 1 it is the plain SVD. r (d_out + d_in) numbers are fewer than d_out d_in for r below
d_out d_in / (d_out + d_in).

Left out: bias and means, and ranks that differ from layer to layer.
"""

from numbers import Integral

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError
from minprune.methods.damping import check_finite
from minprune.selection import as_matrix


@checked("rank")
@exact_arithmetic()
def low_rank(W: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The two factors whose product of that rank changes the layer's outputs least.

    Parameters
    ----------
    W : Tensor (d_out, d_in), floating
    gram : Tensor (d_in, d_in)
        Of the inputs; the identity for the plain SVD.
    rank : int
        From 1 to d_out.

    Returns
    -------
    tuple of Tensor
        (d_out, rank), orthonormal columns, and (rank, d_in), in the dtype of W.

    Raises
    ------
    PruneError
        If the rank is out of range, the shapes do not fit or are empty, or there is NaN or infinity.

    Examples
    --------
    >>> import torch
    >>> from minprune.compress.low_rank import low_rank
    >>> W = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> left, right = low_rank(W, torch.diag(torch.tensor([0.01, 1.0])), rank=1)  # the first input is hardly there
    >>> (left @ right).round(decimals=3).abs()
    tensor([[0., 0.],
            [0., 1.]])
    """
    if not as_matrix(W, "weights").numel():
        raise PruneError(f"weights {tuple(W.shape)} have no factors: give a matrix (d_out, d_in) of 1 x 1 or more")
    if isinstance(rank, bool) or not isinstance(rank, Integral) or not 1 <= rank <= len(W):
        raise PruneError(f"rank {rank!r} is not from 1 to {len(W)}, the number of outputs")
    if gram.shape != (W.shape[1], W.shape[1]):
        raise PruneError(f"a Gram matrix {tuple(gram.shape)} does not fit {W.shape[1]} inputs: give that of this layer")
    check_finite(W)
    check_finite(gram, "the Gram matrix contains")
    wide = W.double()
    outputs = wide @ gram.to(W.device, torch.float64) @ wide.T  # (d_out, d_out)
    left = torch.linalg.eigh(outputs).eigenvectors[:, -rank:].flip(1)  # (d_out, rank), falling eigenvalues
    return left.to(W.dtype), (left.T @ wide).to(W.dtype)
