"""Answers to the exercises of chapter 12, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import math

import numpy as np
import torch


def masked_steps_by_the_optimizer(W, keep, gradients, rate):
    """PyTorch's own Adam, and the zeros put back after each step."""
    weight = W.clone()
    adam = torch.optim.Adam([weight], betas=(0.9, 0.95), eps=1e-12)
    size, total = float((W.square().sum() / keep.sum()).sqrt()), len(gradients)
    for step, gradient in enumerate(gradients):
        adam.param_groups[0]["lr"] = rate * size * min(1, (step + 1) / 5) * math.cos(math.pi * step / total / 2) ** 2
        weight.grad = gradient.clone()
        adam.step()
        weight[~keep] = 0
    return weight


def masked_steps_sum(W, keep, gradients, rate):
    """Each weight by itself, both running means as sums over all gradients so far."""
    found, total = W.double().numpy().copy(), len(gradients)
    size = np.sqrt(np.mean(found[keep.numpy()] ** 2))
    for place in np.argwhere(keep.numpy()):
        g = gradients[(slice(None), *place)].double().numpy()
        for step in range(total):
            ago = np.arange(step, -1, -1)
            m, v = (np.average(g[: step + 1] ** power, weights=beta**ago) for power, beta in ((1, 0.9), (2, 0.95)))
            pace = min(1, (step + 1) / 5) * (1 + np.cos(np.pi * step / total)) / 2
            found[tuple(place)] -= rate * size * pace * m / (np.sqrt(v) + 1e-12)
    return found


def repair_gradient_autograd(W, keep, X_hat, Y):
    W = W.clone().requires_grad_()
    with torch.enable_grad():
        error = (X_hat @ W.T - Y).norm(dim=1) ** 2 / Y.norm(dim=1) ** 2
        (gradient,) = torch.autograd.grad(error.mean(), W)
    return gradient.masked_fill(~keep, 0)


def repair_gradient_loop(W, keep, X_hat, Y):
    found = np.zeros(W.shape)
    for x, y in zip(X_hat.double().numpy(), Y.double().numpy(), strict=True):
        found += 2 * np.outer(W.double().numpy() @ x - y, x) / (y @ y) / len(Y)
    return np.where(keep, found, 0)


def leftover_by_the_optimizer(gradients, after, rate):
    """PyTorch's own Adam, which is never told of the pruning."""
    weight = torch.zeros((), requires_grad=True)
    adam = torch.optim.Adam([weight], lr=rate, betas=(0.9, 0.95), eps=1e-12)
    for step, g in enumerate([*gradients.tolist(), *after * [0.0]]):
        if step == len(gradients):
            weight.data.zero_()
        weight.grad = torch.tensor(g)
        adam.step()
    return weight.detach() * (after > 0)


def leftover_sum(gradients, after, rate):
    """Both means at the moment of pruning, and then a sum: they only fade."""
    g, n = gradients.double().numpy(), len(gradients)
    fading = [beta ** np.arange(n)[::-1] * (1 - beta) for beta in (0.9, 0.95)]
    m, v = fading[0] @ g, fading[1] @ g**2
    k = np.arange(1, after + 1)
    first, second = m * 0.9**k / (1 - 0.9 ** (n + k)), v * 0.95**k / (1 - 0.95 ** (n + k))
    return -rate * (first / (np.sqrt(second) + 1e-12)).sum()


RIGHT = {
    "masked_steps": [masked_steps_by_the_optimizer, masked_steps_sum],
    "repair_gradient": [repair_gradient_autograd, repair_gradient_loop],
    "leftover": [leftover_by_the_optimizer, leftover_sum],
}

REJECTED = {
    "masked_steps": [
        lambda W, keep, gradients, rate: masked_steps_sum(W, keep, gradients, 2 * rate),
        lambda W, keep, gradients, rate: masked_steps_sum(W, keep, gradients.flip(0), rate),
        lambda W, keep, gradients, rate: masked_steps_sum(W, keep, gradients[:-1], rate),
        lambda W, keep, gradients, rate: W - rate * keep * gradients.sum(0),
        lambda W, keep, gradients, rate: W,
    ],
    "repair_gradient": [
        lambda W, keep, X_hat, Y: 3 * repair_gradient_loop(W, keep, X_hat, Y),
        lambda W, keep, X_hat, Y: -repair_gradient_loop(W, ~keep, X_hat, Y),  # two at once
        lambda W, keep, X_hat, Y: repair_gradient_loop(W, keep, X_hat.abs(), Y),
    ],
    "leftover": [
        lambda gradients, after, rate: 2 * leftover_sum(gradients, after, rate),
        lambda gradients, after, rate: leftover_sum(gradients, max(after - 1, 0), rate),
        lambda gradients, after, rate: -rate * after * gradients.mean(),
    ],
}
