"""Reconstruct a block: let the weights that are left do together what the dense block did. Chapter 12.

A method answers for one layer. What a block does wrong in the end is the business of all its layers, and of the
errors of the blocks before it, too. So after the layers of a block are pruned, what they keep is trained, block by
block, and each block learns to give what the *dense* model has at that depth, from the *drifted* inputs it really
gets:

    minimise  sum over tokens of ||f'(h') - f(h)||^2 / ||f(h)||^2

over the kept weights, norms and biases of the pruned block f'; f is the dense block, h its input in the dense model,
h' what the pruned blocks before it make of that. Dividing by the energy of each token is what the norm at the beginning
of the next block does. The mask stays as it is. Adam, with steps in units of each tensor's own root mean square.

Guo et al. 2024 (EBFT) train blocks like that, towards the dense output on the drifted input; Li et al. 2021 (BRECQ)
did so for quantisation.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minprune.errors import PruneError
from minprune.models.forward import BlockwiseForward
from minprune.models.layers import Layer
from minprune.pipeline.layer_pruner import LayerPruner
from minprune.pipeline.plan import PruningPlan
from minprune.pipeline.precision import multiplies_bfloat16, narrow_products
from minprune.pipeline.ranks import ALONE, Ranks
from minprune.pipeline.recipes import Reconstruction as Reconstruction
from minprune.pipeline.staged import BlockPruner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WARMUP = 5  # steps in which the rate rises: Adam's first steps are as large as any, whatever the gradient


def run_reconstructed(model: "PreTrainedModel", pruner: LayerPruner, how: Reconstruction, whole_block: bool) -> None:
    """Prune the layers of a plan, block by block, and reconstruct each block.

    whole_block: as in `run_staged`.
    """
    targets = DenseTargets(model, pruner, *resolved(how, model, pruner.plan))
    walk = BlockwiseForward(model, targets.batches, targets.products, targets.dense.left)
    blocks = BlockPruner(walk, pruner)
    for index in range(len(blocks.forward.blocks)):
        targets.record(index)
        targets.prune(blocks, index, whole_block)
    blocks.prune_head()


def resolved(how: Reconstruction, model: "PreTrainedModel", plan: PruningPlan) -> tuple[Reconstruction, str]:
    """The settings that a run really has, the hardware's answer among them, and why nothing is trained, if so.

    Where too little is pruned nothing is trained, and products are as for the method alone, bit for bit.
    """
    wanted = plan.sparsity
    if how.epochs and wanted < how.min_sparsity - 1e-9:  # an average of shares is rounded
        why = f"{wanted:.0%} zeros are too few for reconstruction to pay: no block was reconstructed"
        return replace(how, epochs=0, bfloat16=plan.bfloat16), why
    chosen = how.epochs > 0 and multiplies_bfloat16(_device(model)) if how.bfloat16 is None else how.bfloat16
    return replace(how, bfloat16=chosen and model.dtype == torch.float32), ""


class DenseTargets:
    """What the dense model makes of the calibration windows, and the training of blocks towards it.

    Only the block that is named need have its weights at hand. how, skipped: as they were `resolved`; they go to
    the log, and so do seconds and each block's errors. dense: the windows as they come in steps, on their
    way through the dense model: this rank's part of each step. batches: the windows as the pruned model has to be given
    them.
    Raises `PruneError` if no gradient comes through this family's blocks.
    """

    def __init__(self, model: "PreTrainedModel", pruner: LayerPruner, how: Reconstruction, skipped: str = ""):
        plan, self.log = pruner.plan, pruner.log
        assert plan.calib is not None  # a recipe that reconstructs has tokens
        self.plan, self.how, self.device = plan, how, _device(model)
        steps = plan.calib.split(how.batch_size) if how.epochs else ()
        self.ranks, self.steps = pruner.ranks, len(steps)
        mine = tuple(part for part in map(self.ranks.part, steps) if len(part))
        self.dense = BlockwiseForward(model, mine, self.products)
        self.batches = _in_whole_steps(plan.batches, self.dense)
        self.targets: list[Tensor] = []
        if self.dense.batches:
            check_trainable(model, self.dense)
            _check_apart(model, self.dense, plan.layers)
        self.log.reconstruction = {  # a run that goes on has some of it already
            **asdict(how),
            "seconds": 0.0,
            "errors": {},
            **({"skipped": skipped} if skipped else {}),
            **self.log.reconstruction,
        }

    def record(self, index: int) -> None:
        """Note what block `index` makes of the windows while it is dense."""
        start = time.perf_counter()
        self.targets = self.dense.run_block(index, keep=True)
        self.log.reconstruction["seconds"] += time.perf_counter() - start

    def prune(self, blocks: BlockPruner, index: int, whole_block: bool = False) -> None:
        """Prune block `index`, whose targets are recorded, train it, and send the batches through it."""
        walk = blocks.forward
        layers = self.plan.layers_under(f"{walk.prefix}.{index}.")
        trains = bool(self.how.epochs and layers)
        blocks.prune(index, whole_block, trains)
        if not trains:
            return
        start = time.perf_counter()
        forward, steps = self._drifted(walk, index), self.steps
        errors = fit_block(walk.blocks[index], layers, forward, self.targets, self.how, self.ranks, steps)
        walk.run_block(index)
        self.log.reconstruction["errors"][f"{walk.prefix}.{index}"] = errors
        self.log.reconstruction["seconds"] += time.perf_counter() - start

    def _drifted(self, walk: BlockwiseForward, index: int) -> Callable[[int], Tensor]:
        """Step -> what the block makes of the step's windows as `walk` brings them."""
        if walk.calls is None:  # its batches are the steps
            return lambda step: walk.rehearse(index, step)
        axis, inputs = walk.calls.axis, []
        for hidden, batch in zip(walk.hidden, walk.batches, strict=True):
            inputs += hidden.split(hidden.shape[axis] // len(batch) * len(self.dense.batches[0]), axis)
        return lambda step: self.dense.rehearse(index, step, inputs[step])

    def products(self) -> AbstractContextManager[Any]:
        """While open, forward passes take their products in bfloat16, if that was chosen."""
        return narrow_products(self.device, bool(self.how.bfloat16))


def _device(model: "PreTrainedModel") -> str:
    embeddings: Any = model.get_input_embeddings()
    return embeddings.weight.device.type


def check_trainable(model: "PreTrainedModel", walk: BlockwiseForward) -> None:
    """Raise `PruneError` if no gradient comes through the first block."""
    block = walk.blocks[0]
    with _learning(block, dict.fromkeys(block.parameters(), torch.ones(()))):
        try:
            walk.rehearse(0, 0).sum().backward()
        except RuntimeError as error:
            if "out of memory" in str(error) or "can't allocate" in str(error):
                raise
            raise PruneError(
                f"the blocks of {type(model).__name__} cannot be reconstructed, for no gradient comes through them "
                f"({str(error).splitlines()[0][:120]}): use a method without a recipe"
            ) from error


def _check_apart(model: "PreTrainedModel", walk: BlockwiseForward, layers: list[Layer]) -> None:
    """Raise `PruneError` if something that would be pruned or trained in one block serves in another one, too."""
    blocks = Counter(parameter for block in walk.blocks for parameter in block.parameters())
    pruned = {getattr(layer.module, layer.parameter) for layer in layers}
    if any(count > 1 and (parameter.ndim == 1 or parameter in pruned) for parameter, count in blocks.items()):
        raise PruneError(
            f"blocks of {type(model).__name__} share weights, so training one would change others: use a method "
            "without a recipe"
        )


def _in_whole_steps(batches: tuple[Tensor, ...], dense: BlockwiseForward) -> tuple[Tensor, ...]:
    """The batches, each cut anew to hold a whole number of the steps of `dense`, so that none straddles two of them.

    One step each if a walk is a forward pass for each batch, which cannot be cut at all.
    """
    if not dense.batches or (dense.alone and len(batches) == 1):
        return batches
    step = len(dense.batches[0])
    size = max(1, len(batches[0]) // step) * step if dense.alone else step
    return torch.cat(batches).split(size)


def fit_block(
    block: nn.Module,
    layers: list[Layer],
    forward: Callable[[int], Tensor],
    targets: list[Tensor],
    how: Reconstruction,
    ranks: Ranks = ALONE,
    steps: int | None = None,
) -> list[float]:
    """Train a block in place; what is zero in `layers` stays zero, and other matrices stay as they are.

    targets: for each step what the block should give, (windows, length, d_model) in most families. forward: step ->
    what it gives, in that shape. ranks: processes that train the block together, each on its part of each step, of
    which the first ones may be all that it has; steps: their number, if it is not that of the targets.
    Returns the mean relative error of each epoch, measured before each step.
    """
    steps = len(targets) if steps is None else steps
    kept = _trainable(block, layers)
    masters = [p.detach().to(torch.promote_types(p.dtype, torch.float32)).clone() for p in kept]
    rates = [how.lr * _size(master) for master in masters]
    optimizer = torch.optim.Adam(
        [{"params": [master], "lr": rate} for master, rate in zip(masters, rates, strict=True)],
        betas=(0.9, 0.95),
        eps=1e-12,
        fused=True,
    )
    generator, total, step, errors = torch.Generator().manual_seed(how.seed), how.epochs * steps, 0, []
    tokens = sum(ranks.gather(sum(h[..., 0].numel() for h in targets)))
    with _learning(block, kept):
        for _ in range(how.epochs):
            error = 0.0
            for batch in torch.randperm(steps, generator=generator).tolist():
                share = min(1, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / total))
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * share
                loss = masters[0].new_zeros(())
                if batch < len(targets):
                    loss = lost_energy(forward(batch), targets[batch])
                    loss.backward()
                for (parameter, keep), master in zip(kept.items(), masters, strict=True):
                    master.grad = None if parameter.grad is None else parameter.grad.to(master) * keep
                    parameter.grad = None
                lost = _add_up(ranks, loss.detach(), masters)
                optimizer.step()
                with torch.no_grad():
                    for parameter, master in zip(kept, masters, strict=True):
                        parameter.copy_(master)
                step, error = step + 1, error + lost
            errors.append(error / tokens)
    for parameter in kept:
        ranks.broadcast(parameter)  # other hardware may have rounded differently
    torch.clear_autocast_cache()  # a caller's autocast may remember the block as it was
    if not math.isfinite(sum(errors)):
        raise PruneError(f"{layers[0].name}: its block's reconstruction diverged: use a lower rate than {how.lr:g}")
    return errors


def lost_energy(out: Tensor, target: Tensor) -> Tensor:
    """The relative error of each token, (..., d_model) both, summed over tokens."""
    wide = torch.promote_types(target.dtype, torch.float32)
    out, target = out.to(wide), target.to(wide)
    energy = target.square().sum(-1).clamp_min(torch.finfo(wide).tiny)
    return ((out - target).square().sum(-1) / energy).sum()


def _add_up(ranks: Ranks, loss: Tensor, masters: list[Tensor]) -> float:
    """Have the gradients of a step be those of all ranks' windows, in place; returns the loss of all."""
    if ranks.size == 1:
        return float(loss)
    mine = [torch.zeros_like(master) if master.grad is None else master.grad for master in masters]
    sums = torch.cat([loss.to(mine[0]).view(1), *(gradient.flatten() for gradient in mine)])  # one message
    ranks.add_up(sums)
    parts = sums[1:].split([gradient.numel() for gradient in mine])
    for master, part in zip(masters, parts, strict=True):
        master.grad = part.view_as(master).to(master)
    return float(sums[0])


def _trainable(block: nn.Module, layers: list[Layer]) -> dict[nn.Parameter, Tensor]:
    """What is trained of a block, with what may move of it: bool, in the parameter's shape.

    Of the layers the weights that are not zero; norms and biases whole; nothing of matrices that were left out.
    """
    found = {p: torch.ones_like(p, dtype=torch.bool) for p in block.parameters() if p.ndim == 1}
    for layer in layers:
        parameter = getattr(layer.module, layer.parameter)
        keep = found.setdefault(parameter, torch.zeros_like(parameter, dtype=torch.bool))
        layer.view_as_2d(keep).copy_(layer.weight != 0)
    return found


def _size(tensor: Tensor) -> float:
    """The root mean square of what is not zero; of a tensor of zeros, such as fresh biases, 0: it stays as it is."""
    return math.sqrt(float(tensor.square().sum()) / max(1, int(tensor.count_nonzero())))


@contextmanager
def _learning(block: nn.Module, trained: dict[nn.Parameter, Tensor]) -> Iterator[None]:
    """While open, gradients reach these parameters of the block and no others; a caller's do not count among them."""
    before = {parameter: (parameter.requires_grad, parameter.grad) for parameter in block.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(parameter in trained)
            parameter.grad = None
        with torch.enable_grad():
            yield
    finally:
        for parameter, (required, gradient) in before.items():
            parameter.requires_grad_(required)
            parameter.grad = gradient
