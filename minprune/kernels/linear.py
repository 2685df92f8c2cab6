"""Linear layers that keep their matrix without its zeros, so that a pruned model is faster. Chapter 20.

`sparsify` replaces the matrices of a model by their stored form and frees the dense ones. The C kernel multiplies a
handful of tokens, as in generation, and torch multiplies more. With many tokens a product is bound by arithmetic; it is
faster to build the dense matrix once than to expand it on the way.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from minprune.errors import PruneError
from minprune.formats.bitmask import Bitmask
from minprune.formats.nm import NMPacked
from minprune.formats.stored import Dense, SparseMatrix
from minprune.kernels.build import kernel
from minprune.kernels.product import Packed, pack_for_kernel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEW = 16  # tokens up to which the kernel is used: above, expanding once for all of them is what torch does better


class SparseLinear(nn.Module):
    """X -> X W^T + b with W in a stored form. It cannot be trained.

    Parameters
    ----------
    stored : SparseMatrix (d_out, d_in)
        The weights.
    bias : Tensor (d_out,), optional
        What is added to the product.

    Examples
    --------
    >>> import torch
    >>> from minprune.formats import Bitmask
    >>> from minprune.kernels.linear import SparseLinear
    >>> SparseLinear(Bitmask.from_dense(torch.eye(8)))(torch.ones(1, 8))
    tensor([[1., 1., 1., 1., 1., 1., 1., 1.]])
    """

    def __init__(self, stored: SparseMatrix, bias: Tensor | None = None):
        super().__init__()
        self.out_features, self.in_features = stored.shape
        self.stored = stored
        self.bias = bias if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.packed: Packed | None = pack_for_kernel(stored) if kernel()[0] else None

    @property
    def weight(self) -> Tensor:
        """The dense matrix, (d_out, d_in), made anew each time."""
        return self.stored.to_dense()

    def forward(self, X: Tensor) -> Tensor:
        if self.packed is None or X.numel() > FEW * self.in_features:
            return linear(X, self.weight.to(X.dtype), self.bias)
        out = self.packed.matmul(X)
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.stored.label}, {self.stored.nbytes:,} bytes"


@torch.no_grad()
def sparsify(model: "PreTrainedModel", format: str = "auto", head: bool = True) -> int:
    """Replace the linear layers of a model's blocks by `SparseLinear` ones, in place.

    Parameters
    ----------
    model : PreTrainedModel
        A pruned causal language model.
    format : str, default "auto"
        "bitmask", "nm" (2:4), "dense" (the kernel's own dense product), or "auto", the smallest that fits each matrix.
    head : bool, default True
        Also the output head, as a dense matrix whose product reads memory as fast as it can.

    Returns
    -------
    int
        The bytes that the new layers hold.

    Raises
    ------
    PruneError
        For an unknown format, or a matrix that does not fit it.

    Examples
    --------
    >>> import minprune as mp
    >>> from minprune.kernels.linear import sparsify
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=1))
    >>> report = mp.prune(model, None, "magnitude", "2:4")
    >>> sparsify(model, "bitmask", head=False) < sum(row.shape[0] * row.shape[1] for row in report.layers) * 4
    True
    """
    makers = {"bitmask": Bitmask.from_dense, "nm": NMPacked.from_dense, "dense": Dense.from_dense}
    if format != "auto" and format not in makers:
        raise PruneError(f"unknown format {format!r}: choose auto, {', '.join(makers)}")
    total, output = 0, model.get_output_embeddings() if head else None
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or (module is model.get_output_embeddings() and not head):
            continue
        W = module.weight.detach()
        stored = Dense.from_dense(W) if module is output else _stored(W, format, makers)
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], SparseLinear(stored, module.bias))
        total += stored.nbytes
    return total


def _stored(W: Tensor, format: str, makers: dict) -> SparseMatrix:
    if format != "auto":
        return makers[format](W)
    fits = W.shape[1] % 8 == 0 and not bool(((W != 0).view(len(W), -1, 4).sum(2) > 2).any())
    candidates: list[SparseMatrix] = [NMPacked.from_dense(W)] if fits else []  # as small as a bitmask, and more regular
    candidates += [Bitmask.from_dense(W), Dense.from_dense(W)]
    return min(candidates, key=lambda stored: stored.nbytes)
