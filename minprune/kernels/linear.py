"""Linear layers that keep their matrix without its zeros, so that a pruned model is faster. Chapter 20.

`sparsify` replaces the matrices of a model by their stored form and frees the dense ones. The C kernel multiplies a
handful of tokens, as in generation, and torch multiplies more. With many tokens a product is bound by arithmetic; it is
faster to build the dense matrix once than to expand it on the way.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from minprune.arguments import checked
from minprune.errors import PruneError
from minprune.formats.bitmask import Bitmask
from minprune.formats.integers import Integers
from minprune.formats.nm import NMPacked
from minprune.formats.stored import Dense, SparseMatrix
from minprune.kernels.build import kernel
from minprune.kernels.product import Packed, pack_for_kernel
from minprune.models.hooks import hand_on_hooks
from minprune.models.memory import return_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)
_DTYPES, _ONLY = (torch.float32, torch.bfloat16), "the kernel multiplies float32 and bfloat16"
FEW = 64  # tokens up to which the kernel is used
_MAKERS: dict[str, Callable[[Tensor], SparseMatrix]] = {
    "bitmask": Bitmask.from_dense,
    "nm": NMPacked.from_dense,
    "dense": Dense.from_dense,
}


class _Product(torch.autograd.Function):
    """X -> X W^T by the kernel, with the gradient in X, for what lies before it."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        return packed.matmul(X)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.packed.to_dense().to(gradient.dtype), None


class SparseLinear(nn.Module):
    """X -> X W^T + b with W in a stored form. It cannot be trained, moved or saved.

    Parameters
    ----------
    stored : SparseMatrix (d_out, d_in)
        The weights.
    bias : nn.Parameter (d_out,), optional
        What is added to the product.

    Examples
    --------
    >>> import torch
    >>> from minprune.formats import Bitmask
    >>> from minprune.kernels.linear import SparseLinear
    >>> SparseLinear(Bitmask.from_dense(torch.eye(8)))(torch.ones(1, 8))
    tensor([[1., 1., 1., 1., 1., 1., 1., 1.]])
    """

    @checked()
    def __init__(self, stored: SparseMatrix, bias: nn.Parameter | None = None):
        super().__init__()
        self.out_features, self.in_features = stored.shape
        self.format, self.label, self.weight_dtype = stored.name, stored.label, stored.weight_dtype
        self.bias = bias
        self.packed: Packed = pack_for_kernel(stored)
        self.nbytes = self.packed.nbytes if isinstance(stored, Integers) else stored.nbytes

    @property
    def weight(self) -> Tensor:
        """The dense matrix, (d_out, d_in), made anew each time."""
        return self.packed.to_dense().to(self.weight_dtype)

    def numbers(self) -> list[Tensor]:
        """What is stored in floating point: the values, or the scales of integers."""
        both = (self.packed.values, self.packed.scales)
        return [part for part in both if part is not None and part.is_floating_point()]

    def forward(self, X: Tensor) -> Tensor:
        if X.numel() > FEW * self.in_features:
            return linear(X, self.packed.to_dense().to(X.dtype), self.bias)
        out = _Product.apply(X, self.packed) if X.requires_grad else self.packed.matmul(X)
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.label}, {self.nbytes:,} bytes"

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> NoReturn:
        """Without its matrices a checkpoint would look complete and not be."""
        raise PruneError(f"{prefix}weight is stored in the format {self.label}: save the model before sparsify")


@checked()
@torch.no_grad()
def sparsify(model: "PreTrainedModel", format: str = "auto", head: bool = True) -> int:
    """Replace the linear layers of a model by `SparseLinear` ones, in place.

    Where there is no kernel, the log says why and the model stays as it is.

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
        The bytes that the matrices take.

    Raises
    ------
    PruneError
        For an unknown format, a matrix that does not fit it, or a layer that is more than its matrix, or in another
        type. No layer is replaced then.

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
    if format != "auto" and format not in _MAKERS:
        raise PruneError(f"unknown format {format!r}: choose auto, {', '.join(_MAKERS)}")
    output = model.get_output_embeddings()
    chosen = [(name, m) for name, m in model.named_modules() if type(m) is nn.Linear and (head or m is not output)]
    if reason := why_dense(model):
        _log.warning(f"the matrices stay dense: {reason}")
        return sum(module.weight.nbytes for _, module in chosen)
    for name, module in chosen:
        _check_replaceable(name, module)
    _tell_of_others(model)
    for _, module in chosen if format != "auto" else ():  # else a part of them would be replaced already
        if module is not output:
            _stored(module.weight.detach(), format)
    for name, module in chosen:
        W = module.weight.detach()
        place_stored(model, name, Dense.from_dense(W) if module is output else _stored(W, format))
    return sum(module.nbytes for module in model.modules() if isinstance(module, SparseLinear))


def why_dense(model: "PreTrainedModel") -> str:
    """Why the kernel cannot multiply this model's matrices; "" if it can."""
    if model.dtype not in _DTYPES:
        return f"{_ONLY}, not {model.dtype}"
    if model.device.type not in ("cpu", "meta"):
        return f"the kernel runs on a CPU, the model is on {model.device}"
    return kernel()[1]


def place_stored(model: "PreTrainedModel", name: str, stored: SparseMatrix) -> bool:
    """Put a stored matrix where the linear layer of that name is; whether that is possible.

    A matrix in a format that has no product is stored anew, in the smallest that has one.
    """
    module = dict(model.named_modules()).get(name)  # an expert may be a part of a parameter
    if type(module) is not nn.Linear or why_dense(model):
        return False
    try:
        made = SparseLinear(stored, module.bias)
    except PruneError:
        made = SparseLinear(_stored(stored.to_dense(), "auto"), module.bias)
    hand_on_hooks(module, made)
    model.set_submodule(name, made.train(module.training))
    return_memory()  # what was needed to check and to pack it lies between pieces that stay
    return True


def _check_replaceable(name: str, module: nn.Linear) -> None:
    """Raise `PruneError` unless the layer is its weight's product, in a type that the kernel multiplies."""
    W = module._parameters.get("weight")
    if W is None or "forward" in vars(module):
        raise PruneError(
            f"{name}: a mask, a norm or an offloading hook computes its weight or its product, which a stored matrix "
            "would not have: remove that first, or make it permanent"
        )
    if W.is_meta:
        raise PruneError(f"{name}: its weight is elsewhere (on the meta device): load the model without offloading")
    if W.dtype not in _DTYPES:
        raise PruneError(f"{name}: {_ONLY}, not {W.dtype}: bring the whole model to one of them, as model.float() does")


def _tell_of_others(model: "PreTrainedModel") -> None:
    """A line in the log if there are linear layers of a class of its own, whose product nobody knows here."""
    own = [f"{name} ({type(m).__name__})" for name, m in model.named_modules() if _is_own(m)]
    if own:
        more = f" and {len(own) - 1} more" if len(own) > 1 else ""
        _log.warning(f"{own[0]}{more} of another class than torch.nn.Linear: left dense")


def _is_own(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and type(module) is not nn.Linear


def _stored(W: Tensor, format: str) -> SparseMatrix:
    if format != "auto":
        return _MAKERS[format](W)
    fits = W.shape[1] % 8 == 0 and not bool(((W != 0).view(len(W), -1, 4).sum(2) > 2).any())
    candidates: list[SparseMatrix] = [NMPacked.from_dense(W)] if fits else []  # as small as a bitmask, and more regular
    candidates += [Bitmask.from_dense(W), Dense.from_dense(W)]
    return min(candidates, key=lambda stored: stored.nbytes)
