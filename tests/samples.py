"""Layers with correlated inputs, and the plain linear algebra that the methods are compared with."""

import torch

import minprune as mp


def correlated(d_out, d_in, tokens=None, seed=0, dtype=torch.float64, sizes=False):
    """(W, X): random weights and correlated inputs; with `sizes` some inputs are larger than others."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens or 4 * d_in, d_in, generator=generator, dtype=torch.float64)
    mix = torch.eye(d_in, dtype=torch.float64) + 0.3 * torch.randn(d_in, d_in, generator=generator, dtype=torch.float64)
    X = X @ mix
    if sizes:
        X *= 0.3 + torch.rand(d_in, generator=generator, dtype=torch.float64)
    return torch.randn(d_out, d_in, generator=generator, dtype=torch.float64).to(dtype), X.to(dtype)


def statistics(X):
    """The statistics of inputs X (tokens, d_in), with a Gram matrix, in the width of X or float32."""
    return mp.Statistics(X.shape[1], dtype=torch.promote_types(X.dtype, torch.float32)).update(X)


def observed(d_out, d_in, **options):
    """(W, statistics of its inputs), as from `correlated`."""
    W, X = correlated(d_out, d_in, **options)
    return W, statistics(X)


def hessian(X, damp=0.01):
    """X^T X with damp times the mean of its diagonal added to it."""
    gram = X.T @ X
    return gram + damp * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def exact(W, H, keep):
    """The best weights on a mask: for each row, minimise (w - w') H (w - w')^T with w' zero where not kept."""
    best = torch.zeros_like(W)
    for w, b, k in zip(W, best, keep, strict=True):
        if k.any():
            b[k] = torch.linalg.solve(H[k][:, k], H[k] @ w)
    return best


def cost(W, W_pruned, H):
    """tr((W - W') H (W - W')^T)."""
    return float((((W - W_pruned) @ H) * (W - W_pruned)).sum())


def lifelike(d_out, d_in, windows=72, length=32, loud=100.0, seed=0, dtype=torch.float64):
    """(W, X) as in a real language model, X (windows * length, d_in): correlated inputs, three channels that are always
    ten times as large, a first position whose two channels are `loud` times as large, and two inputs that are always 0.
    """
    W, X = correlated(d_out, d_in, tokens=windows * length, seed=seed, sizes=True)
    X[:, 2:5] *= 10
    X.view(windows, length, d_in)[:, 0, :2] *= loud
    X[:, -2:] = 0
    return W.to(dtype), X.to(dtype)
