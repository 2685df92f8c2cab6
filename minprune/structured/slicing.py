"""A narrower residual stream: rotate, then slice (SliceGPT), or choose channels and keep the tie. Chapter 15.

Every block reads the stream h through a norm and adds to it. RMSNorm divides by a length, which a rotation Q leaves as
it is, so with the norms' weights g folded into the matrices behind them

    embeddings E Q,    readers W diag(g) Q,    writers Q^T W,    head  E diag(g) Q

compute the same. With Q the principal axes of the stream (its outer products added up over all sites and tokens), the
last axes hold little and are cut off. Published SliceGPT (Ashkboos et al. 2024) has a Q for each site and an extra
matrix where two meet (sites.py); one Q for all needs none, and what is left is a plain model of the family, if its
norms are told: they average over d' < d channels now and should divide as before, so

    eps  <-  eps d / d'        and each weight of a norm  <-  sqrt(d / d').

Without that every norm's output is too small by sqrt(d' / d), and nothing says so.

The head is E diag(g) Q and the embeddings are E Q: tied they cannot be, which costs vocabulary x d' numbers. Choosing
d' channels instead is a Q of zeros and ones, which commutes with diag(g): embeddings and head stay one matrix.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError
from minprune.models.layers import Layer, block_layers, decoder_blocks, is_tied
from minprune.pipeline.ranks import ALONE, Ranks
from minprune.structured.cut import Cut, become, built, check_same
from minprune.structured.depth import stream_of
from minprune.structured.output_aware import output_axes
from minprune.structured.units import heads, neurons

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WAYS = ("slicegpt", "channels", "outputs")


@torch.no_grad()
def slice_stream(model: "PreTrainedModel", calib: Tensor, kept: int, how: str, ranks: Ranks = ALONE) -> Tensor:
    """Leave so many channels of the stream, in place; returns the basis (d_model, kept) that they are.

    ranks: the processes that share the windows, here and below.
    Raises `PruneError`, before anything changes, if the smaller model would not compute what the larger one does with
    its stream projected on the basis: its family does something else with the stream than norms and matrices.
    """
    if how not in WAYS:
        raise PruneError(f"unknown way to choose channels, {how!r}: choose one of {', '.join(WAYS)}")
    parts_of_stream(model)
    if how == "slicegpt":
        Q = principal_axes(model, calib, ranks)[:, :kept]
    else:
        Q = (loud_channels if how == "channels" else output_axes)(model, calib, kept, ranks)
    ranks.broadcast(Q)  # other hardware may have rounded differently
    smaller = built(model, rotated(model, Q))
    with projected(model, Q):
        check_sliced(model, smaller, calib)
    become(model, smaller)
    return Q


def check_sliced(model: "PreTrainedModel", smaller: "PreTrainedModel", calib: Tensor) -> None:
    """Raise `PruneError` if the smaller model does not compute what the larger one does as it is set up now."""
    why = "what it computes is not what its matrices and norms say"
    check_same(model, smaller, calib[:1, :64], f"cannot have a narrower stream: {why}")


@contextmanager
def projected(model: "PreTrainedModel", Q: Tensor) -> Iterator[None]:
    """While open, all that is written to the stream is projected on Q (d_model, d'), the model being as it was."""
    P = Q @ Q.T
    names = set(parts_of_stream(model)[1])
    writers = [layer.module for layer in block_layers(model) if f"{layer.name}.weight" in names]
    project = [
        module.register_forward_hook(lambda _, args, out: (out.double() @ P.to(out.device)).to(out.dtype))
        for module in (model.get_input_embeddings(), *writers)
    ]
    try:
        yield
    finally:
        for handle in project:
            handle.remove()


@torch.no_grad()
@exact_arithmetic()
def principal_axes(model: "PreTrainedModel", calib: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Q (d_model, d_model), float64: the axes of the stream by falling variance, over all sites and tokens.

    Each token counts with length one, as the norms make it: the few loud ones would decide everything otherwise.
    """
    d = model.config.get_text_config().hidden_size
    C = torch.zeros(d, d, dtype=torch.float64, device=model.device)
    for h in stream_of(model, ranks.part(calib)):
        unit = nn.functional.normalize(h.flatten(0, -2).double(), dim=-1)  # (tokens, d_model)
        C += unit.T @ unit
    ranks.add_up(C)
    return torch.linalg.eigh(C).eigenvectors.flip(1)


@torch.no_grad()
@exact_arithmetic()
def loud_channels(model: "PreTrainedModel", calib: Tensor, kept: int, ranks: Ranks = ALONE) -> Tensor:
    """The basis (d_model, kept), zeros and ones, of the channels with the largest share of the normalised stream."""
    d = model.config.get_text_config().hidden_size
    energy = torch.zeros(d, dtype=torch.float64, device=model.device)
    for h in stream_of(model, ranks.part(calib)):
        energy += nn.functional.normalize(h.flatten(0, -2).double(), dim=-1).square().sum(0)
    ranks.add_up(energy)
    chosen = energy.argsort(descending=True, stable=True)[:kept].sort().values
    return torch.eye(len(energy), dtype=torch.float64, device=energy.device)[:, chosen]


@torch.no_grad()
@exact_arithmetic()
def rotated(model: "PreTrainedModel", Q: Tensor | list[Tensor]) -> Cut:
    """The cut that expresses the stream in the basis Q (d_model, d'), orthonormal columns; the norms are told.

    Q may be a list of bases, one a site (see sites.py). A Q of zeros and ones leaves the norms' weights where they are,
    and the embeddings tied. Raises `PruneError` for a family whose stream is not read through norms, or has other
    readers and writers than matrices.
    """
    readers, writers, norms = parts_of_stream(model)
    bases = Q if isinstance(Q, list) else [Q] * len(norms)
    d, kept = bases[0].shape
    selects = not isinstance(Q, list) and bool(((Q == 0) | (Q == 1)).all())
    eps = _eps(model)
    config: dict[str, Any] = {"hidden_size": kept, eps: getattr(model.config.get_text_config(), eps) * d / kept}
    config["head_dim"] = heads(model)[0].width
    state = model.state_dict()
    scale = (d / kept) ** 0.5
    values: dict[str, Tensor] = {}
    for name, basis in zip(norms, bases, strict=True):
        g = state[name].double()
        values[name] = (basis.T @ g if selects else g.new_ones(kept)) * scale
    for name, norm in readers.items():
        W = state[name].double()
        values[name] = (W if selects else W * state[norm].double()) @ bases[norms.index(norm)]
    for name, basis in zip(writers, bases[1:], strict=True):
        values[name] = basis.T @ state[name].double()
        if (bias := name.replace(".weight", ".bias")) in state:
            values[bias] = basis.T @ state[bias].double()
    embeddings, head = _name_of(model, model.get_input_embeddings()), _name_of(model, model.get_output_embeddings())
    tied = is_tied(model, Layer("", model.get_output_embeddings()))
    values[embeddings] = state[embeddings].double() @ bases[0]
    if selects and tied:
        values[head] = values[embeddings]
    else:
        config["tie_word_embeddings"] = False
        values[head] = (state[head].double() * (1 if selects else state[norms[-1]].double())) @ bases[-1]
    return Cut(config, values={name: value.to(model.dtype).contiguous() for name, value in values.items()})


def parts_of_stream(model: "PreTrainedModel") -> tuple[dict[str, str], list[str], list[str]]:
    """(readers -> the norm before each, writers, norms), names of tensors, in the order in which they are used.

    Writer k adds to what norm k + 1 reads; the last norm is the head's.

    Raises `PruneError` unless each block is: norm, attention, norm, MLP, and all norms are RMSNorms without a bias.
    """
    _eps(model)
    prefix, blocks = decoder_blocks(model)
    readers: dict[str, str] = {}
    writers: list[str] = []
    norms: list[str] = []
    units = zip(heads(model)[1], neurons(model)[2], strict=True)
    d = model.config.get_text_config().hidden_size
    for index, parts in enumerate(units):
        own = [f"{prefix}.{index}.{n}" for n, p in blocks[index].named_parameters() if p.shape == (d,) and "norm" in n]
        if len(own) != 2:
            raise _refusal(model, f"a block of it has {len(own)} norms of the stream, not 2")
        norms += own
        for unit, norm in zip(parts, own, strict=True):
            writers.append(f"{unit.reader.name}.weight")
            readers |= {f"{maker.name}.weight": norm for maker, _ in unit.makers}
    outside = [n for n, p in model.named_parameters() if not n.startswith(f"{prefix}.") and p.ndim == 1]
    every = {f"{layer.name}.weight" for layer in block_layers(model)}
    if len(outside) != 1 or every != {*readers, *writers}:
        raise _refusal(model, "something else than its attention and MLP matrices reads or writes the stream")
    return readers, writers, [*norms, *outside]


def _eps(model: "PreTrainedModel") -> str:
    name = "rms_norm_eps"
    if not hasattr(model.config.get_text_config(), name):
        raise _refusal(model, "its configuration has no rms_norm_eps, and only RMSNorms may be rotated")
    return name


def _name_of(model: "PreTrainedModel", module: nn.Module) -> str:
    return next(f"{name}.weight" for name, found in model.named_modules() if found is module)


def _refusal(model: "PreTrainedModel", why: str) -> PruneError:
    return PruneError(f"{type(model).__name__} cannot have a narrower stream: {why}")
