"""Answers to the exercises of chapter 18, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import math

import numpy as np
import torch


def step_torch(W, grad, m, v, t, keep, lr, decay):
    """By torch's own optimizer, told what it remembers."""
    parameter = torch.nn.Parameter(W.clone())
    optimizer = torch.optim.AdamW([parameter], lr=lr, weight_decay=decay)
    optimizer.state[parameter] = {"step": torch.tensor(t - 1.0), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    parameter.grad = grad * keep
    optimizer.step()
    state = optimizer.state[parameter]
    return parameter.detach().masked_fill(~keep, 0), state["exp_avg"], state["exp_avg_sq"]


def step_loop(W, grad, m, v, t, keep, lr, decay):
    W, m, v = W.tolist(), m.tolist(), v.tolist()
    for i, row in enumerate(keep.tolist()):
        for j, kept in enumerate(row):
            g = float(grad[i, j]) if kept else 0.0
            m[i][j] += 0.1 * (g - m[i][j])
            v[i][j] += 0.001 * (g * g - v[i][j])
            step = m[i][j] / (1 - 0.9**t) / (math.sqrt(v[i][j] / (1 - 0.999**t)) + 1e-8)
            W[i][j] = W[i][j] - lr * (step + decay * W[i][j]) if kept else 0
    return [W, m, v]


def merged_numpy(W, keep, up, down, alpha):
    return np.where(keep, W.numpy() + alpha / up.shape[1] * np.einsum("ir,rj->ij", up, down), 0.0)


def merged_loop(W, keep, up, down, alpha):
    return [
        [float(W[i, j] + alpha * (up[i] * down[:, j]).mean()) if keep[i, j] else 0.0 for j in range(W.shape[1])]
        for i in range(W.shape[0])
    ]


def distillation_by_hand(student, teacher, tokens, T, share):
    """Position by position, with the largest logit taken off before anything is exponentiated."""

    def logs(logits):
        rest = logits - logits.max()
        return rest - rest.exp().sum().log()

    taught, said = [], []
    for window, lessons, ids in zip(student.double(), teacher.double(), tokens.tolist(), strict=True):
        for t, (x, y) in enumerate(zip(window, lessons, strict=True)):
            p, q = logs(y / T), logs(x / T)
            taught.append((p.exp() * (p - q)).sum())
            if t + 1 < len(ids):
                said.append(-logs(x)[ids[t + 1]])
    return share * T * T * sum(taught) / len(taught) + (1 - share) * sum(said) / len(said)


def distillation_torch(student, teacher, tokens, T, share):
    p, q = (torch.log_softmax(x.flatten(0, 1) / T, dim=-1) for x in (teacher, student))
    taught = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    text = torch.nn.functional.cross_entropy(student[:, :-1].transpose(1, 2), tokens[:, 1:])
    return share * T**2 * taught + (1 - share) * text


def back_loop(before, after, dense, control):
    """Text by text, with logarithms of ratios."""
    plain, fair = [], []
    for b, a, d, c in zip(*(values.tolist() for values in (before, after, dense, control)), strict=True):
        plain.append(math.log(b / a) / math.log(b / d))
        fair.append((math.log(b / a) - math.log(d / c)) / math.log(b / d))
    return [plain, fair]


def back_numpy(*perplexities):
    b, a, d, c = np.log(np.stack(perplexities))
    return np.array([b - a, (b - d) - (a - c)]) / (b - d)


def too_short_loop(grad, keep, limit):
    """Both loops, and the kept gradients that they leave."""

    def clipped(g):
        norm = math.sqrt(sum(value * value for value in g))
        return [value * min(1.0, limit / norm) for value in g]

    first = [value for value, kept in zip(clipped(grad.tolist()), keep.tolist(), strict=True) if kept]
    second = clipped(grad[keep].tolist())
    return sum(abs(value) for value in first) / sum(abs(value) for value in second)


def too_short_torch(grad, keep, limit):
    wrong, right = torch.nn.Parameter(grad.double()), torch.nn.Parameter(grad[keep].double())
    for parameter in (wrong, right):
        parameter.grad = parameter.detach().clone()
        torch.nn.utils.clip_grad_norm_([parameter], limit)
    return wrong.grad[keep].norm() / right.grad.norm()


RIGHT = {
    "sparse_step": [step_torch, step_loop],
    "merged": [merged_numpy, merged_loop],
    "distillation": [distillation_by_hand, distillation_torch],
    "came_back": [back_loop, back_numpy],
    "too_short": [too_short_loop, too_short_torch],
}

REJECTED = {
    "sparse_step": [
        lambda W, grad, m, v, t, keep, lr, decay: step_torch(W, grad, m, v, t + 1, ~keep, lr, decay),  # two at once
        lambda W, grad, m, v, t, keep, lr, decay: step_torch(W, grad, m * 0, v * 0, 1, keep, lr, decay),
        lambda W, grad, m, v, t, keep, lr, decay: step_torch(W, -grad, m, v, t, keep, lr, decay),
        lambda W, grad, m, v, t, keep, lr, decay: (step_torch(W, grad, m, v, t, keep, lr, decay)[0], v, m),
        lambda W, grad, m, v, t, keep, lr, decay: (W * keep - lr * grad * keep, m, v),
    ],
    "merged": [
        lambda W, keep, up, down, alpha: merged_numpy(W, ~keep, up, down, alpha * up.shape[1]),  # two at once
        lambda W, keep, up, down, alpha: merged_numpy(W, keep, up, -down, alpha),
        lambda W, keep, up, down, alpha: merged_numpy(W, keep, up, down, alpha * up.shape[1] / len(W)),
        lambda W, keep, up, down, alpha: torch.where(keep, W, 0.0),
    ],
    "distillation": [
        lambda student, teacher, tokens, T, share: distillation_by_hand(teacher, student, tokens, 1.0, share),
        lambda student, teacher, tokens, T, share: distillation_by_hand(student, teacher, tokens, 1 / T, share),
        lambda student, teacher, tokens, T, share: (student - teacher).square().mean(),
        lambda *args: distillation_torch(*args).item(),  # no gradient
        lambda *args: distillation_torch(*args).detach().numpy(),
        lambda *args: torch.tensor(distillation_torch(*args).item(), requires_grad=True),
        lambda student, *args: (distillation_torch(student, *args) + distillation_torch(student.detach(), *args)) / 2,
        lambda student, teacher, tokens, T, share: distillation_by_hand(student, teacher, tokens, T, share**2),
        lambda student, teacher, tokens, T, share: distillation_by_hand(student, teacher, tokens, T, 1 - share) / T,
    ],
    "came_back": [
        lambda b, a, d, c: 1 - back_numpy(b, a, c, d),  # two at once
        lambda b, a, d, c: torch.stack([(b - a) / b, (a - c) / b]),
        lambda b, a, d, c: [back_numpy(b, a, d, c)[0].tolist(), [1.0] * len(b)],
        lambda b, a, d, c: back_numpy(a, b, d, c),
        lambda b, a, d, c: back_numpy(*([values.mean()] for values in (b, a, d, c))),
    ],
    "too_short": [
        lambda grad, keep, limit: too_short_torch(grad, keep, 2 * limit),
        lambda grad, keep, limit: too_short_loop(grad, keep, limit) ** 2,
        lambda grad, keep, limit: 0.63,
    ],
}
