"""Whole decoder blocks: which can go, and what the block before a cut can do about it. Chapter 14.

A block adds something to the stream h. Six ways to ask how little:

    influence   1 - mean cos(h_in, h_out) over tokens, of each block by itself      (Men et al. 2024, ShortGPT)
    attention   the same of its attention alone: h_in and h_in + attention          (after He et al. 2024, LLM-Drop)
    angle       arccos cos(h_l, h_l+n) / pi at each window's last token, of n blocks in a row (Gromov et al. 2024)
    taylor      sum of |w dL/dw| over the weights of its matrices                   (Kim et al. 2024, Shortened LLaMA)
    loss        the loss without the block, each block alone
    greedy      the same, one removal after the other, each time of all that are left (Song et al. 2024, SLEB)

Behind a cut the stream lacks R, what the removed blocks would have added. The last matrix before the cut reads Z and
can learn to add it, by ridge regression towards what it is:

    W  <-  W + R^T Z (Z^T Z + damping)^-1        (with Z an MLP's output instead of its neurons: ReplaceMe, 2025)

Left out: parts of blocks, which no configuration can describe.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError
from minprune.evaluation.perplexity import perplexity
from minprune.methods.damping import damped_cholesky
from minprune.models.checks import check_weights
from minprune.models.hooks import input_of
from minprune.models.layers import Layer, backbone, decoder_blocks
from minprune.pipeline.ranks import ALONE, Ranks
from minprune.selection import refuse_nan
from minprune.statistics import Statistics
from minprune.structured.criteria import gradients
from minprune.structured.cut import Cut, become, built
from minprune.structured.units import before_cuts, heads, layers_by_block

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROUNDED = 0.02  # by so much a factor of 1 may be off in 16 bits
DEPTH_SCORES = ("influence", "attention", "angle", "taylor", "loss", "greedy")


@torch.no_grad()
def choose_blocks(model: "PreTrainedModel", calib: Tensor, gone: int, how: str, ranks: Ranks = ALONE) -> list[int]:
    """The indices of the blocks that stay when `gone` of them go. calib (windows, length), shared by the ranks."""
    if how not in DEPTH_SCORES:
        raise PruneError(f"unknown way to choose blocks, {how!r}: choose one of {', '.join(DEPTH_SCORES)}")
    depth = len(decoder_blocks(model)[1])
    if how == "greedy":
        return _greedy(model, calib, gone, ranks)
    if how == "angle":
        mine = ranks.part(calib)
        streams = stream_of(model, mine)
        angles = [angular_distance(streams[i], streams[i + gone]) for i in range(depth - gone + 1)]
        first = int(refuse_nan(ranks.mean(torch.tensor(angles, dtype=torch.float32), len(mine))).argmin())
        lost = set(range(first, first + gone))
    else:
        lost = set(refuse_nan(block_scores(model, calib, how, ranks)).argsort(stable=True)[:gone].tolist())
    return [block for block in range(depth) if block not in lost]


@torch.no_grad()
def block_scores(model: "PreTrainedModel", calib: Tensor, how: str, ranks: Ranks = ALONE) -> Tensor:
    """How much each block seems to be worth by itself, (blocks,): "influence", "attention", "taylor" or "loss"."""
    depth = len(decoder_blocks(model)[1])
    if how == "loss":
        losses = _losses_without(model, calib, {block: {block} for block in range(depth)}, ranks)
        return torch.tensor([losses.get(block, math.inf) for block in range(depth)], dtype=torch.float64)
    if how == "taylor":
        layers = layers_by_block(model)
        found, _ = gradients(model, calib, [layer for block in layers for layer in block], ranks)
        return torch.stack(
            [torch.stack([(x.weight * found[x.name]).abs().sum() for x in block]).sum() for block in layers]
        )
    mine = ranks.part(calib)
    streams = stream_of(model, mine)
    if how == "attention":
        after = [h + out for h, out in zip(streams, attention_outputs(model, mine), strict=False)]
    else:
        after = streams[1:]
    influences = [block_influence(h, out) for h, out in zip(streams, after, strict=False)]
    return ranks.mean(torch.tensor(influences, dtype=torch.float32), len(mine))


def attention_outputs(model: "PreTrainedModel", calib: Tensor) -> list[Tensor]:
    """What the attention of each block adds to the stream, (windows, length, d_model) each.

    Raises `PruneError` for a family whose attention is not found in its blocks.
    """
    found: list[Tensor] = []
    attentions = [model.get_submodule(unit.reader.name.rpartition(".")[0]) for unit in heads(model)[1]]
    handles = [x.register_forward_hook(lambda _, args, out: found.append(_tensor(out))) for x in attentions]
    try:
        backbone(model)(input_ids=calib.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def block_influence(before: Tensor, after: Tensor) -> float:
    """1 - mean cosine of the stream before and after a block, (windows, length, d_model) both."""
    return 1 - float(torch.cosine_similarity(before.double(), after.double(), dim=-1).mean())


def angular_distance(before: Tensor, after: Tensor) -> float:
    """The mean angle between two streams at the last token of each window, as a share of pi."""
    cosine = torch.cosine_similarity(before[:, -1].double(), after[:, -1].double(), dim=-1)
    return float(cosine.clamp(-1, 1).arccos().mean() / torch.pi)


@torch.no_grad()
def stream_of(model: "PreTrainedModel", calib: Tensor) -> list[Tensor]:
    """The stream before the first block and after each: depth + 1 tensors (windows, length, d_model)."""
    blocks, found = decoder_blocks(model)[1], []

    def enter(_: nn.Module, args: tuple, kwargs: dict) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    handles = [blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [block.register_forward_hook(lambda _, args, out: found.append(_tensor(out))) for block in blocks]
    try:
        backbone(model)(input_ids=calib.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def without(model: "PreTrainedModel", gone: set[int]) -> Iterator[None]:
    """While open, the model is the one that is left when these blocks are cut out, and shares its tensors.

    Blocks that are taken out of the list alone would go on counting themselves as they were numbered. Raises
    `PruneError` if no configuration of the family describes what is left.
    """
    left = [block for block in range(len(decoder_blocks(model)[1])) if block not in gone]
    smaller = built(model, Cut(blocks=left))
    before = dict(vars(model))
    become(model, smaller, left)
    try:
        yield
    finally:
        vars(model).clear()
        vars(model).update(before)
        torch.clear_autocast_cache()  # a caller's would hold the smaller model's weights for as long as it is open


def _greedy(model: "PreTrainedModel", calib: Tensor, gone: int, ranks: Ranks) -> list[int]:
    depth = len(decoder_blocks(model)[1])
    left = list(range(depth))
    for _ in range(gone):
        gone_already = set(range(depth)) - set(left)
        losses = _losses_without(model, calib, {block: gone_already | {block} for block in left}, ranks)
        left.remove(min(losses, key=losses.__getitem__))
    return left


@torch.no_grad()
def changed_by_number(model: "PreTrainedModel", windows: Tensor, kept: list[int]) -> list[int]:
    """Which of the blocks that stay compute something else once they are numbered anew, as some families' blocks do.

    Each is given what it reads in the larger model. windows (n, length).
    """
    streams = stream_of(model, windows)
    with without(model, set(range(len(streams) - 1)) - set(kept)):
        blocks = decoder_blocks(model)[1]
        handles = [
            blocks[place].register_forward_pre_hook(partial(_enter, streams[block]), with_kwargs=True)
            for place, block in enumerate(kept)
        ]
        try:
            after = stream_of(model, windows)[1:]
        finally:
            for handle in handles:
                handle.remove()
    pairs = [(block, after[place].float(), streams[block + 1].float()) for place, block in enumerate(kept)]
    return [block for block, found, was in pairs if not (found - was).abs().max() <= _ROUNDED / 20 * was.abs().max()]


def _enter(h: Tensor, _: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Have a block read h, a copy of it: there are blocks that write into what they read."""
    return ((h.clone(), *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": h.clone()})


def _losses_without(model, calib: Tensor, sets: dict[int, set[int]], ranks: Ranks) -> dict[int, float]:
    """The loss without each of these sets of blocks, by its key; those without which there is no model are left out.

    Raises `PruneError` if none can go.
    """
    found, refused, mine = {}, None, ranks.part(calib)
    for key, gone in sets.items():
        try:
            with without(model, gone):
                found[key] = math.log(perplexity(model, mine))
        except PruneError as error:
            refused = error
    if refused and not found:
        raise refused
    everywhere = sorted(set.intersection(*ranks.gather(set(found))))
    means = ranks.mean(torch.tensor([found[key] for key in everywhere], dtype=torch.float64), len(mine))
    return dict(zip(everywhere, means.tolist(), strict=True))


@torch.no_grad()
def repair_cuts(model, calib: Tensor, kept: list[int], damp: float, ranks: Ranks = ALONE) -> list[int]:
    """Refit the last matrix of each block that others used to follow, from the first cut to the last, in place.

    Whatever a block does to this matrix's output before it adds it to the stream (a norm, a number) counts as a factor,
    which is measured. A matrix that brings the stream no nearer to the dense one is put back. Returns the blocks before
    a cut that stay as they were. Raises `PruneError` before anything changes if what is written would be lost.
    """
    gone = set(range(len(decoder_blocks(model)[1]))) - set(kept)
    cuts = before_cuts(model, kept)
    check_weights(model, [layer for _, _, layer in cuts if layer is not None])
    calib, left = ranks.part(calib), []
    targets = stream_of(model, calib)
    for place, behind, layer in cuts:
        if layer is None or not _refit_before(model, calib, gone, place, targets[behind], damp, ranks):
            left.append(kept[place])
    return left


def _refit_before(model, calib: Tensor, gone: set[int], place: int, target: Tensor, damp: float, ranks: Ranks) -> bool:
    """Refit the last matrix of the block at this place of those that stay; False if it does better as it is.

    calib: this rank's windows; target: the dense stream behind the cut, of these.
    """
    with without(model, gone):
        layer = layers_by_block(model)[place][-1]  # its weight is that of the larger model
        before = layer.weight.clone()
        Z, stream = _pass_to(model, calib, layer, place)
        if stream.numel() != Z[..., 0].numel() * len(before):  # of several streams
            return False
        lack = target - stream

        def measured() -> float:
            moved = _pass_to(model, calib[:1], layer, place, lack[:1])[1] - stream[:1]
            return float((moved.double() * lack[:1].double()).sum() / lack[:1].double().square().sum())

        factor = ranks.of_first(measured)
        if not factor > 0:
            return False
        goal = target if abs(factor - 1) < _ROUNDED else stream + lack / factor
        refit(layer.weight, Z, goal, stream, damp, ranks)
        after = _pass_to(model, calib, layer, place)[1]
        errors = torch.stack([part.double().square().sum() for part in (after - target, lack)])
        ranks.add_up(errors)
        if errors[0] < errors[1]:
            return True
        layer.weight.copy_(before)
        torch.clear_autocast_cache()
        return False


def _pass_to(
    model: "PreTrainedModel", windows: Tensor, layer: Layer, place: int, more: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What a layer reads, and the stream behind the block at this place. more: what is added to the layer's output."""
    seen: list[Tensor] = []

    def watch(_: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> Tensor:
        seen.append(input_of(args, kwargs))
        return out if more is None else out + more.reshape(out.shape)

    hook = layer.module.register_forward_hook(watch, with_kwargs=True)
    try:
        streams = stream_of(model, windows)
    finally:
        hook.remove()
    return seen[0], streams[place + 1]


@exact_arithmetic()
def refit(W: Tensor, Z: Tensor, target: Tensor, stream: Tensor, damp: float, ranks: Ranks = ALONE) -> None:
    """W (d_model, d_in), which reads Z (..., d_in), learns to add what the stream (..., d_model) lacks, in place."""
    dtype = torch.promote_types(Z.dtype, torch.float32)
    R = target.to(dtype) - stream.to(dtype)
    Z = Z.reshape(-1, Z.shape[-1])  # (tokens, d_in)
    gram = Statistics(Z.shape[1], dtype=dtype, device=Z.device).update(Z).gram
    cross = Z.to(dtype).T @ R.reshape(len(Z), -1)  # (d_in, d_model)
    ranks.add_up(gram, cross)
    L, _, _ = damped_cholesky(gram, damp)
    W.add_(torch.cholesky_solve(cross, L).T.to(W.dtype))
    ranks.broadcast(W)  # other hardware may have rounded differently
    torch.clear_autocast_cache()  # a caller's autocast may remember the weight as it was


def _tensor(out) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]
