"""SliceGPT as published: a rotation for every site of the stream, and a matrix wherever two of them meet. Chapter 15.

A site is a place where the stream is read: behind the embeddings, then behind each attention and each MLP. Its basis
Q_k is of the principal axes of what arrives there once all before it is sliced (Ashkboos et al. 2024). What attention
or MLP adds is written in the basis behind it, the stream comes in the one before it, so the skip connection needs an
adapter (d', d'):

    z_k+1 = Q_k+1^T Q_k z_k + Q_k+1^T W f(norm(z_k))

In the full space that is the dense model with its stream projected on Q_k Q_k^T at each site, which is how the bases
are found and how the result is checked. With all d axes kept nothing changes; with fewer, two adapters a block are the
price, and no configuration of transformers knows them: such a model lives in memory only.

Left out: the published default leaves the last site and the head unsliced.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minprune.arithmetic import exact_arithmetic
from minprune.models.layers import backbone, decoder_blocks
from minprune.structured.cut import become, built
from minprune.structured.slicing import check_sliced, parts_of_stream, rotated

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AtSite = Callable[[int, Tensor], Tensor]  # the number of a site and its stream -> the stream from there on


class AdaptedBlock(nn.Module):
    """A decoder block whose skip connections change the basis: adapters (d', d') of the attention and of the MLP."""

    def __init__(self, block: nn.Module, norms: list[str], parts: list[str], adapters: list[Tensor]):
        super().__init__()
        self.block, self.norms, self.parts = block, norms, parts
        self.adapters = nn.ParameterList(nn.Parameter(adapter, requires_grad=False) for adapter in adapters)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """The stream (windows, length, d') behind the block, in the basis there."""
        z = hidden_states
        norms, (attention, mlp) = map(self.block.get_submodule, self.norms), map(self.block.get_submodule, self.parts)
        z = z @ self.adapters[0] + attention(hidden_states=next(norms)(z), **kwargs)[0]
        return z @ self.adapters[1] + mlp(next(norms)(z))


@torch.no_grad()
def slice_sites(model: "PreTrainedModel", calib: Tensor, kept: int, unit_length: bool = False) -> list[Tensor]:
    """Leave `kept` axes of the stream at each site, in place; returns the bases (d_model, kept), one a site.

    calib (windows, length); unit_length: see `site_bases`.
    Raises `PruneError`, before anything changes, for a family that cannot be sliced, as `slice_stream` does.
    """
    _, writers, norms = parts_of_stream(model)
    bases = site_bases(model, calib, kept, unit_length)
    smaller = built(model, rotated(model, bases))
    prefix, blocks = decoder_blocks(smaller)
    for index in range(len(blocks)):
        inside = f"{prefix}.{index}."
        site = 2 * index
        adapters = [(bases[k].T @ bases[k + 1]).to(model.dtype) for k in (site, site + 1)]
        names = [name.removeprefix(inside).removesuffix(".weight") for name in norms[site : site + 2]]
        parents = [name.removeprefix(inside).rsplit(".", 2)[0] for name in writers[site : site + 2]]
        blocks[index] = AdaptedBlock(blocks[index], names, parents, adapters)
    with projected_sites(model, bases):
        check_sliced(model, smaller, calib)
    become(model, smaller)
    return bases


@torch.no_grad()
@exact_arithmetic()
def site_bases(model: "PreTrainedModel", calib: Tensor, kept: int, unit_length: bool = False) -> list[Tensor]:
    """The basis (d_model, kept), float64, of each site: behind the embeddings, each attention and each MLP.

    calib (windows, length). Each is found on the stream that the bases before it have left. unit_length: whether every
    token counts alike, as a norm sees it; published code adds up h h^T as it is.
    """
    bases: list[Tensor] = []

    def find(site: int, h: Tensor) -> Tensor:
        x = h.flatten(0, -2).double()
        x = nn.functional.normalize(x, dim=-1) if unit_length else x
        bases.append(torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, :kept])
        return _project(h, bases[site])

    with at_sites(model, find):
        backbone(model)(input_ids=calib.to(model.device), use_cache=False)
    return bases


@contextmanager
def projected_sites(model: "PreTrainedModel", bases: list[Tensor]) -> Iterator[None]:
    """While open, the stream is projected on the basis of each site, the model being as it was."""
    with at_sites(model, lambda site, h: _project(h, bases[site])):
        yield


@contextmanager
def at_sites(model: "PreTrainedModel", change: AtSite) -> Iterator[None]:
    """While open, the stream at each site is what `change` makes of it, for what reads it and for the skip connection.

    The stream that a norm reads is the tensor that the block goes on with, so it is changed where it stands.
    """
    norms = [model.get_submodule(name.removesuffix(".weight")) for name in parts_of_stream(model)[2]]

    def replace(site: int, h: Tensor) -> None:
        h.copy_(change(site, h))

    handles = [
        norm.register_forward_pre_hook(lambda _, args, site=site: replace(site, args[0]))
        for site, norm in enumerate(norms)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _project(h: Tensor, Q: Tensor) -> Tensor:
    return (h.double() @ (Q @ Q.T)).to(h.dtype)
