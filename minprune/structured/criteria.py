"""What is a unit worth? Scores of neurons and heads, each one formula on one group of weights. Chapter 13.

A group is a matrix w (units, weights): a row holds all that goes with one unit, its inputs in the last matrix and the
rows of the matrices that compute them. Or it is the last matrix alone, W (d_out, d_in), whose columns are the units.

    l1, l2       sum |w|, sum w^2                               what the weights are
    activation   sum over tokens of x_j^2                       how loud the unit is
    wanda        sum_i |W_ij| ||X_j||                           both (its square, summed, is "obd" of obs.py)
    flap         sum_i W_ij^2 Var(x_j)                          what a bias cannot make up for  (An et al. 2024, FLAP)
    taylor       of w g, with g = dL/dw: by how much the loss L moves to first order, three ways
    fisher       sum w^2 F / 2, with F = sum over windows of g^2                    (Ma et al. 2023, LLM-Pruner)

The signed Taylor sum is the change of the loss itself, to first order: its lowest scores belong to units without which
the loss should fall. In absolute value, of the sum ("vector") or of each weight ("element"), it asks how much a unit
matters instead. The surgeon's own score, which knows that others can make up for a unit, is in methods/columns.py.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from minprune.errors import PruneError
from minprune.models.layers import Layer
from minprune.models.skeleton import plain_outputs
from minprune.pipeline.ranks import ALONE, Ranks
from minprune.structured.units import Units

WAYS = ("element", "vector", "signed")


def l1(w: Tensor) -> Tensor:
    """w (units, weights) -> (units,)."""
    return w.abs().sum(1)


def l2(w: Tensor) -> Tensor:
    """w (units, weights) -> (units,), squares: their roots stand in the same order."""
    return w.square().sum(1)


def wanda(W: Tensor, sq_norm: Tensor) -> Tensor:
    """W (d_out, d_in), sq_norm (d_in,) -> (d_in,)."""
    return W.abs().sum(0) * sq_norm.sqrt()


def flap(W: Tensor, sq_norm: Tensor, mean: Tensor, tokens: int) -> Tensor:
    """W (d_out, d_in), of its inputs the squared norms and the means (d_in,) -> (d_in,): W^2 on the centred inputs."""
    return W.square().sum(0) * (sq_norm - tokens * mean.square()).clamp_min(0)


def missing_mean(W: Tensor, mean: Tensor, keep: Tensor) -> Tensor:
    """W_S m_S (d_out,): what a bias can say in place of the inputs S outside `keep` (d_in,); W as it was."""
    return W[:, ~keep] @ mean[~keep]


def taylor(w: Tensor, gradient: Tensor, way: str = "vector") -> Tensor:
    """w and the gradient of the loss (units, weights) -> (units,). Raises `PruneError` for an unknown way."""
    if way not in WAYS:
        raise PruneError(f"unknown way to add up a Taylor score, {way!r}: choose one of {', '.join(WAYS)}")
    product = w * gradient
    if way == "element":
        return product.abs().sum(1)
    return product.sum(1).abs() if way == "vector" else -product.sum(1)


def fisher(w: Tensor, squares: Tensor) -> Tensor:
    """w and the sum of its squared gradients over windows (units, weights) -> (units,): the diagonal second order."""
    return (w.square() * squares).sum(1) / 2


def group_of(unit: Units, values: dict[str, Tensor], width: int) -> Tensor:
    """The group matrix (units, weights) of a block: values (d_out, d_in) of each layer's weight or gradient, by name.

    width: columns of the reader that are one unit. Keys and values that several units share are not counted.
    """
    reader = values[unit.reader.name]
    d_in = reader.shape[1]
    parts = [reader.T.reshape(d_in // width, -1)]
    for maker, rows in unit.makers:
        own = rows(torch.arange(d_in, device=reader.device))
        if len(own) % d_in == 0:
            copies = values[maker.name][own].unflatten(0, (-1, d_in // width, width))  # (copies, units, width, d_model)
            parts.append(copies.transpose(0, 1).flatten(1))
    return torch.cat(parts, 1)


@torch.inference_mode(False)
def gradients(
    model, calib: Tensor, layers: list[Layer], ranks: Ranks = ALONE
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of each layer's weight, (d_out, d_in) by name: the mean gradient of the loss over windows, the sum of squares.

    The loss of a window is the mean negative log-likelihood of its tokens. One window at a time, which is what makes
    the squares those of windows. Gradients that were there before are gone. ranks: the processes that share calib.
    """
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    if calib.shape[1] < 2:
        raise PruneError("windows of 1 token predict nothing, so the loss has no gradient: use length 2 or more")
    sums = {layer.name: torch.zeros_like(layer.weight, dtype=torch.float32) for layer in layers}
    squares = {name: torch.zeros_like(value) for name, value in sums.items()}
    wanted = {getattr(layer.module, layer.parameter) for layer in layers}
    try:
        for parameter in required:
            parameter.grad = None
            parameter.requires_grad_(parameter in wanted)
        with torch.enable_grad(), plain_outputs(model):
            mine = ranks.part(calib).to(model.device).clone()  # made in inference mode it could not be learnt from
            for window in mine:
                logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
                cross_entropy(logits.float(), window[1:]).backward()
                for layer in layers:
                    parameter = getattr(layer.module, layer.parameter)
                    g = layer.view_as_2d(parameter.grad).float()
                    sums[layer.name] += g / len(calib)
                    squares[layer.name] += g.square()
                for parameter in wanted:
                    parameter.grad = None
    finally:
        for parameter, before in required.items():
            parameter.requires_grad_(before)
            parameter.grad = None
    ranks.add_up(*sums.values(), *squares.values())
    return sums, squares
