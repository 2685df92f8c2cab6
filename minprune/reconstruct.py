"""Reconstruct a block: let the weights that are left do together what the dense block did. Chapter 08.

A method answers for one layer. What a block does wrong in the end is the business of all its layers, and of the
errors of the blocks before it, too. So after the layers of a block are pruned, what they keep is trained, block by
block, and each block learns to give what the *dense* model has at that depth, from the *drifted* inputs it really
gets:

    minimise  sum over tokens of ||f'(h') - f(h)||^2 / ||f(h)||^2

over the kept weights, norms and biases of the pruned block f'; f is the dense block, h its input in the dense model,
h' what the pruned blocks before it make of that. Dividing by the energy of each token is what the norm at the beginning
of the next block does. The mask stays as it is. Adam, with steps in units of each tensor's own root mean square.

Guo et al. 2024 (EBFT) train blocks like that, towards the dense output on the drifted input.
"""

import math
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minprune.errors import PruneError
from minprune.model import Layer
from minprune.stages import Walk

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WARMUP = 5  # steps in which the rate rises: Adam's first steps are as large as any, whatever the gradient


@dataclass(frozen=True)
class Reconstruction:
    """How blocks are trained. epochs: passes over the calibration windows for each block, 0 for none.

    rate: the largest step, relative to the root mean square of what each tensor keeps; it falls to 0 as half a cosine.
    windows: in one step. seed: of the order of the steps. bfloat16: whether matrix products are taken in that type
    (sums, weights and statistics stay in float32); None: where the hardware multiplies it faster. Models that are not
    in float32 keep their type. Raises `PruneError` for a setting that cannot be.
    """

    epochs: int = 4
    rate: float = 0.03
    windows: int = 4
    seed: int = 0
    bfloat16: bool | None = None

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.windows < 1 or not 0 < self.rate < math.inf:
            raise PruneError(
                f"{self.epochs} epochs of {self.windows} windows at rate {self.rate:g} cannot be trained: "
                "use 4 epochs, 4 windows and 0.03, or 0 epochs for none"
            )


def run_reconstructed(model: "PreTrainedModel", run, how: Reconstruction, whole_block: bool) -> None:
    """Prune the layers of `run`, the driver's `Run`, block by block, and reconstruct each block.

    whole_block: as in `run_staged`. Adds the seconds and each block's errors before and after to `run.reconstruction`.
    """
    with _products(model, how.bfloat16):
        walk = Walk(model, run.batches)
        dense = Walk(model, run.calib.split(how.windows)) if how.epochs else None  # the same windows, never pruned
        errors, seconds = [], 0.0
        for index, block in enumerate(walk.blocks):
            layers, inputs, start = run.layers_under(f"{walk.prefix}.{index}."), list(walk.hidden), time.perf_counter()
            if dense:
                dense.through(index)
            seconds += time.perf_counter() - start
            walk.prune(index, run, whole_block)
            if not dense or not layers:
                continue
            start = time.perf_counter()
            calls = [calls[index] for calls in dense.calls]
            errors.append(fit_block(block, layers, calls, torch.cat(inputs).split(how.windows), dense.hidden, how))
            walk.hidden = inputs
            walk.through(index)
            seconds += time.perf_counter() - start
        walk.prune_head(run)
    run.reconstruction = {**asdict(how), "seconds": seconds, "errors": errors}


def fit_block(block: nn.Module, layers: list[Layer], calls, inputs, targets, how: Reconstruction) -> list[float]:
    """Train a block in place; what is zero in `layers` stays zero, and other matrices stay as they are.

    calls: how to call it for each step's windows (see `Walk`). inputs, targets: for each step (windows, length,
    d_model). Returns the mean relative error of each epoch, measured before each step.
    """
    kept = _trainable(block, layers)
    masters = [p.detach().to(torch.promote_types(p.dtype, torch.float32)).clone() for p in kept]
    rates = [how.rate * _size(master) for master in masters]
    optimizer = torch.optim.Adam(
        [{"params": [master], "lr": rate} for master, rate in zip(masters, rates, strict=True)],
        betas=(0.9, 0.95),
        eps=1e-12,
        fused=True,
    )
    generator, total, step, errors = torch.Generator().manual_seed(how.seed), how.epochs * len(inputs), 0, []
    tokens = sum(h[..., 0].numel() for h in inputs)
    with _learning(block, kept):
        for _ in range(how.epochs):
            error = 0.0
            for batch in torch.randperm(len(inputs), generator=generator).tolist():
                share = min(1, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / total))
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * share
                loss = _lost(calls[batch].replay(block, inputs[batch]), targets[batch])
                loss.backward()
                for (parameter, keep), master in zip(kept.items(), masters, strict=True):
                    master.grad = None if parameter.grad is None else parameter.grad.to(master) * keep
                    parameter.grad = None
                optimizer.step()
                with torch.no_grad():
                    for parameter, master in zip(kept, masters, strict=True):
                        parameter.copy_(master)
                step, error = step + 1, error + float(loss.detach())
            errors.append(error / tokens)
    if not math.isfinite(sum(errors)):
        raise PruneError(f"{layers[0].name}: its block's reconstruction diverged: use a lower rate than {how.rate:g}")
    return errors


def _lost(out: Tensor, target: Tensor) -> Tensor:
    """The relative error of each token, (..., d_model) both, summed over tokens."""
    wide = torch.promote_types(target.dtype, torch.float32)
    out, target = out.to(wide), target.to(wide)
    energy = target.square().sum(-1).clamp_min(torch.finfo(wide).tiny)
    return ((out - target).square().sum(-1) / energy).sum()


def _trainable(block: nn.Module, layers: list[Layer]) -> dict[nn.Parameter, Tensor]:
    """What is trained of a block, with what may move of it: bool, in the parameter's shape.

    Of the layers the weights that are not zero; norms and biases whole; nothing of matrices that were left out.
    """
    found = {p: torch.ones_like(p, dtype=torch.bool) for p in block.parameters() if p.ndim == 1}
    for layer in layers:
        parameter = getattr(layer.owner, layer.parameter)
        keep = found.setdefault(parameter, torch.zeros_like(parameter, dtype=torch.bool))
        layer.matrix(keep).copy_(layer.weight != 0)
    return found


def _size(tensor: Tensor) -> float:
    """The root mean square of what is not zero; of a tensor of zeros, such as fresh biases, 0: it stays as it is."""
    return math.sqrt(float(tensor.square().sum()) / max(1, int(tensor.count_nonzero())))


@contextmanager
def _learning(block: nn.Module, trained: dict[nn.Parameter, Tensor]):
    """While open, gradients reach these parameters of the block and no others."""
    before = {parameter: parameter.requires_grad for parameter in block.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(parameter in trained)
        with torch.enable_grad():
            yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
            parameter.grad = None


@contextmanager
def _products(model: "PreTrainedModel", bfloat16: bool | None):
    """While open, a float32 model multiplies in bfloat16, if that is asked for or, with None, faster on its device."""
    device = next(model.parameters()).device.type
    if bfloat16 is None:
        able = torch.cpu.get_capabilities() if device == "cpu" else {}
        bfloat16 = bool(able.get("amx_bf16")) if device == "cpu" else torch.cuda.is_bf16_supported()
    wanted = bfloat16 and model.dtype == torch.float32
    with torch.autocast(device, torch.bfloat16, enabled=wanted, cache_enabled=False):  # weights change while it is open
        yield
