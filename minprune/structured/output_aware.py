"""Which axes of the stream may go, asked of the loss and not of the stream alone. Chapter 15.

PCA cuts the axes in which the stream h is small. But an axis may be small and still be read by everything behind it, or
large and read by nobody. With g the slope of the loss in h, removing the span of U (orthonormal columns) moves the loss
by -g^T U U^T h to first order, and if the two were independent, the mean of its square would be

    tr(U^T C U  U^T F U),    C = E[h h^T],    F = E[g g^T]    (F with labels that the model itself draws: Fisher's).

This has no closed form. Each t > 0 gives a candidate, the axes of the smallest eigenvalues of t C + F / t, since
2 sqrt(c f) <= t c + f / t for every axis; the best of a few is taken. Large t is PCA, small t asks the slope alone.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError
from minprune.models.layers import decoder_blocks
from minprune.pipeline.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BALANCES = (0.1, 0.3, 1.0, 3.0, 10.0)  # t, with C and F of trace one


@exact_arithmetic()
def output_axes(model: "PreTrainedModel", calib: Tensor, kept: int, ranks: Ranks = ALONE) -> Tensor:
    """The basis (d_model, kept), float64, without the axes that matter least to the loss.

    ranks: the processes that share the windows; each draws labels of its own, so their number makes a difference.
    """
    C, F = stream_moments(model, ranks.part(calib), seed=ranks.rank)
    ranks.add_up(C, F)
    return keep_axes(C, F, kept)


def keep_axes(C: Tensor, F: Tensor, kept: int) -> Tensor:
    """The basis (d_model, kept) that leaves out the candidate with the lowest cost; C and F (d_model, d_model)."""
    C, F = C / C.trace(), F / F.trace()
    found = [torch.linalg.eigh(t * C + F / t).eigenvectors for t in BALANCES]  # by rising eigenvalue
    gone = C.shape[0] - kept
    costs = [float(removal_cost(C, F, axes[:, :gone])) for axes in found]
    return found[costs.index(min(costs))][:, gone:].flip(1)


def removal_cost(C: Tensor, F: Tensor, U: Tensor) -> Tensor:
    """tr(U^T C U U^T F U) of the axes U (d_model, gone)."""
    return ((U.T @ C @ U) * (U.T @ F @ U)).sum()


def stream_moments(model: "PreTrainedModel", calib: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """C and F (d_model, d_model), float64, added up over the stream before each block and before the head.

    Each token counts with length one, and its slope with as much more: what a norm reads has the same loss at each
    length, so h / |h| and |h| g belong together.
    """
    d = model.config.get_text_config().hidden_size
    C, F = torch.zeros(2, d, d, dtype=torch.float64, device=model.device)
    random = torch.Generator().manual_seed(seed)
    for windows in calib.clone().split(2):  # those made in inference mode cannot be learnt from
        for h, g in _streams_and_slopes(model, windows.to(model.device), random):
            length = h.norm(dim=-1, keepdim=True)  # (tokens, 1)
            u, s = normalize(h, dim=-1), g * length
            C += u.T @ u
            F += s.T @ s
    return C, F


@torch.enable_grad()
def _streams_and_slopes(
    model: "PreTrainedModel", windows: Tensor, random: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """(h, g), float64 (tokens, d_model), of each place between blocks; the labels are drawn from the model itself."""
    blocks, streams = decoder_blocks(model)[1], []

    def enter(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        h = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
        streams.append(h)
        return ((h, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": h})

    handles = [blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [
        block.register_forward_hook(lambda _, args, out: streams.append(out if isinstance(out, Tensor) else out[0]))
        for block in blocks
    ]
    try:
        logits = model(input_ids=windows, use_cache=False).logits.float().flatten(0, 1)
    finally:
        for handle in handles:
            handle.remove()
    if not bool(logits.isfinite().all()):
        raise PruneError(f"the predictions of {type(model).__name__} are NaN or infinite: check its weights and dtype")
    labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=random)[:, 0].to(logits.device)
    slopes = torch.autograd.grad(cross_entropy(logits, labels, reduction="sum"), streams)
    return [
        (h.detach().flatten(0, -2).double(), g.flatten(0, -2).double()) for h, g in zip(streams, slopes, strict=True)
    ]
