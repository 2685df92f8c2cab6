"""Answers to the exercises of chapter 08, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import numpy as np
import torch
from torch import nn

import minprune as mp
from minprune.models.hooks import capture_inputs
from minprune.models.layers import Layer


def shared_inputs_by_id(inputs):
    places = {}
    return [places.setdefault(id(X), len(places)) for X in inputs]


def shared_inputs_loop(inputs):
    numbers = np.zeros(len(inputs), dtype=int)
    for i, X in enumerate(inputs):
        before = [j for j in range(i) if inputs[j] is X]
        numbers[i] = numbers[before[0]] if before else (numbers[:i].max() + 1 if i else 0)
    return numbers


def towards_dense_lstsq(W, X_hat, X, damp):
    """Damping as more tokens: for each input one at which the output is to stay."""
    more = np.sqrt(damp * (X_hat**2).sum(0).mean().item()) * np.eye(W.shape[1])
    inputs, targets = np.vstack([X_hat, more]), np.vstack([X @ W.T, more @ W.numpy().T])
    return np.linalg.lstsq(inputs, targets, rcond=None)[0].T


def towards_dense_step(W, X_hat, X, damp):
    H = X_hat.T @ X_hat
    H = H + damp * H.diagonal().mean() * torch.eye(len(H))
    return W + W @ (X - X_hat).T @ X_hat @ torch.linalg.inv(H)


def prune_chain_batches_on_their_way(weights, batches, prune):
    done, batches = [], list(batches)
    for W in weights:
        done.append(prune(W, sum(X.T @ X for X in batches)))
        batches = [(X @ done[-1].T).clamp(min=0) for X in batches]
    return done


def prune_chain_in_one(weights, batches, prune):
    X, done = torch.cat(list(batches)), ()
    for W in weights:
        done += (prune(W, X.T @ X),)
        X = torch.maximum(X @ done[-1].T, torch.zeros(()))
    return done


def one_pass_with_forward_replaced(windows, model, observe, prune):
    """No hooks: each layer's own forward takes the statistics and prunes."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    known = []  # (tensor, statistics), all kept

    def before(layer):
        forward = layer.forward

        def pruned(X):
            if not any(X is seen for seen, _ in known):
                known.append((X, observe(X)))
            layer.weight.data = prune(layer.weight, next(stats for seen, stats in known if seen is X))
            return forward(X)

        return pruned

    for layer in layers:
        layer.forward = before(layer)
    model(windows)
    return [layer.weight for layer in layers]


def one_pass_of_the_package(windows, model, observe, prune):
    """The package's own way to see an input, with statistics by the identity of a tensor that is kept."""
    layers, kept = [Layer(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)], {}

    def receive(layer, X):
        if id(X) not in kept:
            kept[id(X)] = X, observe(X)
        layer.weight.copy_(prune(layer.weight, kept[id(X)][1]))

    with capture_inputs(layers, receive):
        model(windows)
    return [layer.weight for layer in layers]


def by_origin_walk(growth, added):
    """Each block's error alone, sent through the blocks behind it."""
    sizes = []
    for origin in range(len(added)):
        error = 0.0
        for block, factor in enumerate(growth.double().tolist()):
            error = factor**2 * error + (float(added[origin]) if block == origin else 0.0)
        sizes.append(error)
    return np.array(sizes) / sum(sizes)


def by_origin_cumulative(growth, added):
    later = torch.cat([growth[1:].double().square(), torch.ones(1)]).flip(0).cumprod(0).flip(0)
    return (added * later / (added * later).sum()).tolist()


class _Tiny(nn.Module):
    """Blocks of attention and MLP without tokens that look at each other, with the names of a Llama."""

    def __init__(self, d=12, wide=16, blocks=3):
        super().__init__()
        names = [*"qkvo", "gate", "up", "down"]
        shapes = [(d, d)] * 4 + [(d, wide)] * 2 + [(wide, d)]
        random = torch.Generator().manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(*shape, bias=False) for name, shape in zip(names, shapes, strict=True)})
            for _ in range(blocks)
        )
        self.gain = 1.0
        for weight in self.parameters():
            weight.requires_grad_(False).copy_(torch.randn(weight.shape, generator=random) / weight.shape[1] ** 0.5)

    def forward(self, h):
        for b in self.blocks:
            x = self.gain * nn.functional.rms_norm(h, h.shape[-1:])
            h = h + b["o"](b["q"](x).tanh() * b["k"](x) + b["v"](x))
            x = self.gain * nn.functional.rms_norm(h, h.shape[-1:])
            h = h + b["down"](b["gate"](x).relu() * b["up"](x))
        return h


def predict_inputs_run(drivers):
    """By running all eight on a small model, with half of each row gone by its Wanda score."""
    X = torch.randn(60, 12, generator=torch.Generator().manual_seed(1))

    def inputs_of(model, on_the_spot=None):
        seen = {}

        def hook(layer, args):
            seen[layer] = args[0]
            if on_the_spot and layer in on_the_spot:
                thin(layer, args[0])

        hooks = [m.register_forward_pre_hook(hook) for m in model.modules() if isinstance(m, nn.Linear)]
        model(X)
        for handle in hooks:
            handle.remove()
        return seen

    def thin(layer, X, pattern="50%:row"):
        stats = mp.Statistics(X.shape[1]).update(X)
        layer.weight.copy_(mp.METHODS["wanda"](layer.weight, stats, mp.pattern(pattern)).weight)

    def published(model, names):
        used = {}
        for block in model.blocks:
            seen = inputs_of(model)
            for name in names:
                used[block[name]] = seen[block[name]]
                thin(block[name], seen[block[name]])
        return used

    def one_pass(model, without=()):
        return inputs_of(model, [layer for b in model.blocks for name, layer in b.items() if name not in without])

    def run(number):
        model = _Tiny()
        place = {1: (1, "k"), 2: (1, "gate"), 3: (1, "down"), 4: (1, "o"), 5: (1, "o"), 6: (1, "down"), 7: (1, "up"),
                 8: (0, "down")}[number]  # fmt: skip
        if number in (1, 2, 3):
            used = published(model, model.blocks[0].keys() if number == 1 else ("gate", "up", "down"))
        elif number == 5:
            used = {}
            for block in reversed(model.blocks):
                used |= {k: v for k, v in inputs_of(model, block.values()).items() if k in block.values()}
        elif number == 6:
            one_pass(model)
            used = one_pass(model)
        elif number == 7:
            for weight in model.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
            used = one_pass(model)
        else:
            used = one_pass(model, without=("v",) if number == 4 else ())
        if number == 8:
            model.gain = 1.1
        layer = model.blocks[place[0]][place[1]]
        return torch.allclose(used[layer], inputs_of(model)[layer], rtol=1e-4)

    return [run(number) for number in drivers.tolist()]


def predict_inputs_table(drivers):
    return [number not in (3, 5, 8) for number in drivers.tolist()]


def forgetful(weights, batches, prune):
    """Right for two layers; from the third on calibrated on the dense model."""
    right, X = prune_chain_in_one(weights, batches, prune), torch.cat(list(batches))
    wrong = []
    for W in weights:
        wrong.append(prune(W, X.T @ X))
        X = (X @ W.T).relu()
    return torch.stack([*right[:2], *wrong[2:]])


RIGHT = {
    "shared_inputs": [
        shared_inputs_by_id,
        shared_inputs_loop,
        lambda inputs: torch.tensor(shared_inputs_by_id(inputs)),
    ],
    "towards_dense": [towards_dense_lstsq, towards_dense_step],
    "prune_chain": [prune_chain_batches_on_their_way, prune_chain_in_one],
    "prune_in_one_pass": [one_pass_with_forward_replaced, one_pass_of_the_package],
    "shares_by_origin": [by_origin_walk, by_origin_cumulative],
    "predict_inputs": [predict_inputs_run, predict_inputs_table],
}

REJECTED = {
    "shared_inputs": [
        lambda inputs: [len(inputs) - 1 - n for n in shared_inputs_by_id(inputs)],
        lambda inputs: [0] * len(inputs),
        lambda inputs: [sum(X is Y for Y in inputs) for X in inputs],
    ],
    "towards_dense": [
        lambda W, X_hat, X, damp: towards_dense_step(W, X, X_hat, damp) - W,  # two at once
        lambda W, X_hat, X, damp: towards_dense_step(W, X_hat, X, 2 * damp),
        lambda W, X_hat, X, damp: towards_dense_step(W, X_hat, (X + X_hat) / 2, damp),  # half of the way
    ],
    "prune_chain": [
        forgetful,
        lambda weights, batches, prune: prune_chain_in_one(weights, [batches[-1] / 2], prune),
        lambda weights, batches, prune: prune_chain_in_one([-W for W in weights], batches, prune),
    ],
    "prune_in_one_pass": [
        lambda windows, model, observe, prune: one_pass_of_the_package(windows[:, :2], model, observe, prune),
        lambda windows, model, observe, prune: one_pass_of_the_package(windows, model[:1], observe, prune),
        lambda windows, model, observe, prune: one_pass_of_the_package(
            windows, model, observe, lambda W, G: W * (W.abs() > 0.3)
        ),
        lambda windows, model, observe, prune: one_pass_of_the_package(windows, model, lambda X: 2 * observe(X), prune),
    ],
    "shares_by_origin": [
        lambda growth, added: [100 * a / float(added.sum()) for a in added.tolist()],  # two known bugs at once
        lambda growth, added: by_origin_walk(growth.mean() * torch.ones_like(growth), added),
        lambda growth, added: by_origin_walk(growth, torch.ones_like(added)),
    ],
    "predict_inputs": [
        lambda drivers: [number < 5 for number in drivers.tolist()],
        lambda drivers: [True for _ in drivers.tolist()],
        lambda drivers: [number in (1, 4, 6) for number in drivers.tolist()],
    ],
}
