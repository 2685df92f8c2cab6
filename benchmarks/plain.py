"""The published way, written plainly, for the benchmarks to compare with: not part of the package.

* Every layer builds its own full Gram matrix, also q, k and v, which read the same tensor.
* Cholesky, inverse, Cholesky; then one column at a time, each a rank-1 update of the rest of its block.
* Every block runs twice: dense with hooks that collect statistics, then pruned to make the next block's inputs.
"""

import torch
from torch import Tensor

from minprune.models.forward import BlockwiseForward
from minprune.models.layers import find_layers


def sparsegpt(W: Tensor, gram: Tensor, sparsity: float = 0.5, block_size: int = 128, damp: float = 0.01) -> Tensor:
    """Published SparseGPT on W (d_out, d_in), unstructured by column block -> the pruned weight."""
    W, d_in = W.clone(), W.shape[1]
    H = gram + damp * gram.diagonal().mean() * torch.eye(d_in)
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    for start in range(0, d_in, block_size):
        end = min(start + block_size, d_in)
        block, U_block = W[:, start:end].clone(), U[start:end, start:end]
        errors = torch.zeros_like(block)
        scores = block.square() / U_block.diagonal().square()
        pruned = scores <= scores.flatten().sort().values[int(scores.numel() * sparsity) - 1]
        for q in range(end - start):
            kept = block[:, q].masked_fill(pruned[:, q], 0)
            errors[:, q] = (block[:, q] - kept) / U_block[q, q]
            block[:, q:] -= errors[:, q : q + 1] @ U_block[q : q + 1, q:]
            block[:, q] = kept
        W[:, start:end] = block
        W[:, end:] -= errors @ U[start:end, end:]
    return W


@torch.no_grad()
def prune_two_pass(model, calib: Tensor, sparsity: float = 0.5) -> None:
    """Prune all layers of the blocks with the published loop, one window (1, length) at a time."""
    blocks = model.model.layers
    walk = BlockwiseForward(model, calib.split(1))
    for index in range(len(blocks)):
        layers = [layer for layer in find_layers(model) if layer.name.startswith(f"model.layers.{index}.")]
        grams = {layer: torch.zeros(layer.weight.shape[1], layer.weight.shape[1]) for layer in layers}

        def add(layer, X, grams=grams):
            X = X.reshape(-1, X.shape[-1])  # (tokens, d_in)
            grams[layer] += X.T @ X

        hooks = [
            layer.module.register_forward_pre_hook(lambda module, args, layer=layer, add=add: add(layer, args[0]))
            for layer in layers
        ]
        for window in range(len(calib)):
            walk.rehearse(index, window)
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.weight.copy_(sparsegpt(layer.weight, grams[layer], sparsity))
        walk.run_block(index)
