"""What later layers are calibrated on: dense inputs or drifted ones, block by block or layer by layer; and to what end.

SmolLM2 at one sparsity, the order of the pass being the only difference: perplexity, the error of the residual stream
after each block, processor seconds. Writes one JSON file; cells that it already holds are not measured again.

    python benchmarks/depth.py book/results/pipeline.json [--cells 10]
"""

import argparse
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from record import fill_in
from torch import Tensor

import minprune as mp
from minprune.methods import get_method
from minprune.models.layers import Layer

PROTOCOL = {
    "model": "smollm2 (SmolLM2-135M-Instruct, a 4-bit checkpoint dequantised), in bfloat16; sums and solves in float32",
    "calibration": "wikipedia train, 16 x 512 tokens, seed 0",
    "test": "16 x 512 tokens of wikipedia test, evenly spaced",
    "drift": "after each block: ||h - h_dense||^2 / ||h_dense||^2 over positions 16 to 511 of 2 windows of wikipedia "
    "validation (the first tokens of a window are so loud that they would decide the sum)",
    "seconds": "of processor time, on one thread",
    "order": "one pass: each layer on what the pruned layers before it produce; block at once: all layers of a block "
    "on what the pruned blocks before it produce (sequential=False); dense inputs: all layers on what the dense model "
    "produces; towards dense: one pass, in which a layer is first moved to the least-squares solution for the output "
    "that the dense model has there, by the share `blend` (for the layers of `only`)",
}
MATRICES = ("o_proj", "down_proj")  # those that write to the residual stream
HALF = {"order": "towards dense", "pattern": "60%", "blend": 0.5, "only": "all"}
CELLS: list[dict[str, Any]] = [  # the most telling ones first
    {"order": "none", "method": "dense"},
    {"order": "one pass", "method": "sparsegpt", "pattern": "60%"},
    {"order": "dense inputs", "method": "sparsegpt", "pattern": "60%"},
    {"order": "block at once", "method": "sparsegpt", "pattern": "60%"},
    *({**HALF, "method": "sparsegpt", "blend": blend} for blend in (1.0, 0.5)),
    {"order": "one pass", "method": "wanda", "pattern": "60%"},
    {**HALF, "method": "wanda"},
    {**HALF, "method": "sparsegpt", "blend": 0.25},
    {"order": "dense inputs", "method": "wanda", "pattern": "60%"},
    {**HALF, "method": "sparsegpt", "blend": 0.75},
    {"order": "one pass", "method": "sparsegpt", "pattern": "50%"},
    {**HALF, "method": "sparsegpt", "pattern": "50%"},
    {**HALF, "method": "sparsegpt", "only": "residual"},
    {"order": "one pass", "method": "sparsegpt", "pattern": "70%"},
    {**HALF, "method": "sparsegpt", "pattern": "70%"},
    {"order": "block at once", "method": "wanda", "pattern": "60%"},
]


@cache
def patient() -> tuple[Any, Any, list[tuple[Layer, Tensor]]]:
    """The model, its tokenizer, and its layers with a copy of the dense weight of each."""
    model, tokenizer = mp.load_model("smollm2", dtype="bfloat16")
    return model, tokenizer, [(layer, layer.weight.clone()) for layer in mp.find_layers(model)]


@contextmanager
def hooked(layers, receive):
    """While open, receive(layer, X) is called with the input of each layer right before it is used."""
    hooks = [x.module.register_forward_pre_hook(lambda m, args, x=x: receive(x, args[0])) for x in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def inputs_of(model, layers, tokens: Tensor) -> dict[Layer, Tensor]:
    """The input (windows, length, d_in) of every layer; layers that read the same tensor hold the same tensor."""
    seen: dict[Layer, Tensor] = {}
    with hooked(layers, seen.__setitem__):
        model.base_model(input_ids=tokens, use_cache=False)
    return seen


def prune_on_dense_inputs(model, layers, tokens: Tensor, method: str, pattern: str) -> None:
    """Every layer with the statistics of the dense model."""
    last, stats = None, None
    for layer, X in inputs_of(model, layers, tokens).items():
        if X is not last:
            last, stats = X, mp.Statistics(X.shape[-1]).update(X)
        layer.weight.copy_(get_method(method)(layer.weight, stats, mp.pattern(pattern)).weight)


def prune_towards_dense(model, layers, tokens: Tensor, method: str, pattern: str, blend: float, only: str) -> None:
    """One pass; W is replaced by W + blend * W (X_dense - X)^T X H^-1 before it is pruned, H as in SparseGPT."""
    dense = inputs_of(model, layers, tokens)
    last: Any = None

    def receive(layer, X):
        nonlocal last
        if last is None or X is not last[0]:
            stats = mp.Statistics(X.shape[-1]).update(X)
            H = stats.gram + 0.01 * stats.gram.diagonal().mean() * torch.eye(stats.d_in)
            missing = (dense[layer] - X).flatten(0, 1).float()  # (tokens, d_in)
            last = X, stats, torch.linalg.solve(H, X.flatten(0, 1).float().T @ missing)  # (d_in, d_in)
        _, stats, M = last
        W = layer.weight
        moved = W.float()
        if only == "all" or layer.name.endswith(MATRICES):
            moved = moved + blend * moved @ M.T
        W.copy_(get_method(method)(moved, stats, mp.pattern(pattern)).weight)

    with hooked(layers, receive):
        model.base_model(input_ids=tokens, use_cache=False)


def states(model, tokens: Tensor) -> Tensor:
    """The residual stream after each block, (blocks, windows, length, d_model), without the final norm."""
    found: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda m, a, out: found.append(out)) for b in model.base_model.layers]
    model.base_model(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(found).float()


@torch.no_grad()
def recompute(setting: dict) -> dict:
    """Perplexity, the drift after each block, and the seconds of one cell's setting."""
    model, tokenizer, dense_weights = patient()
    layers = [layer for layer, _ in dense_weights]
    calib = mp.load_tokens(tokenizer, "wikipedia", samples=16, length=512, seed=0)
    held = mp.load_tokens(tokenizer, "wikipedia", "validation", 2, 512)
    before = states(model, held)
    order, method, pattern = setting["order"], setting["method"], setting.get("pattern", "")
    start = time.process_time()
    try:
        if order == "dense inputs":
            prune_on_dense_inputs(model, layers, calib, method, pattern)
        elif order == "towards dense":
            prune_towards_dense(model, layers, calib, method, pattern, setting["blend"], setting["only"])
        elif order != "none":
            mp.prune(model, calib, method=method, pattern=pattern, sequential=order == "one pass")
        seconds = time.process_time() - start
        after = states(model, held)
        drift = (
            (after - before)[:, :, 16:].square().sum((1, 2, 3)) / before[:, :, 16:].square().sum((1, 2, 3))
        ).tolist()
        perplexity = mp.perplexity(model, mp.load_tokens(tokenizer, "wikipedia", "test", 16, 512))
    finally:
        for layer, W in dense_weights:
            layer.weight.copy_(W)
    return {
        "perplexity": float(f"{perplexity:.6g}"),
        "drift": [float(f"{d:.4g}") for d in drift],
        "seconds": float(f"{seconds:.4g}"),
    }


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--cells", type=int, help="stop after so many new cells")
    args = parser.parse_args()
    torch.set_num_threads(1)
    command = f"python benchmarks/depth.py {args.output.as_posix()}"
    fill_in(args.output, command, PROTOCOL, CELLS, lambda **setting: recompute(setting), args.cells)


if __name__ == "__main__":
    main()
