"""The exercises of chapter 08: targets, one pass, shared inputs, a chain, the origin of errors, a prediction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import exchanged, given, scaled, then
from minprune.course.checks.values import normal


# towards_dense(W, X_hat, X, damp): the dense weights that best give the dense outputs on drifted inputs
def _cross(X_hat: Tensor, X: Tensor) -> Tensor:
    return X.T @ X_hat


def _turned(X_hat: Tensor, X: Tensor) -> Tensor:
    return X_hat.T @ X


def _from_the_right(H: Tensor, C: Tensor) -> Tensor:
    return torch.linalg.solve(H, C, left=False)


def _towards(
    W: Tensor,
    X_hat: Tensor,
    X: Tensor,
    damp: float,
    *,
    gram: Callable[[Tensor, Tensor], Tensor] = lambda X_hat, X: X_hat.T @ X_hat,
    size: Callable[[Tensor, Tensor], Tensor] = lambda G, X_hat: G.diagonal().mean(),
    stays: bool = True,
    cross: Callable[[Tensor, Tensor], Tensor] = _cross,
    solve: Callable[[Tensor, Tensor], Tensor] = _from_the_right,
    left: bool = False,
) -> Tensor:
    """size: what the damping is a fraction of; stays: it holds the weights near W, not 0; left: W is multiplied from
    there."""
    G = gram(X_hat, X)
    more = damp * size(G, X_hat) * torch.eye(len(G))
    M = solve(G + more, cross(X_hat, X) + more * stays)  # (d_in, d_in)
    return M @ W if left else W @ M


towards_dense = Exercise(
    name="towards_dense",
    chapter=8,
    title="the weights that best give the dense model's outputs from drifted inputs",
    reference=_towards,
    difficulty=3,
    rtol=1e-3,
    wrong=mistakes(
        {
            "the layer's own outputs on the drifted inputs": lambda W, X_hat, X, damp: W.clone(),
            "inputs exchanged": exchanged(_towards, 1, 2),
            "cross Gram transposed": partial(_towards, cross=_turned),
            "Gram matrix of the dense inputs": [
                partial(_towards, gram=lambda X_hat, X: X.T @ X, size=size)
                for size in (lambda G, X_hat: G.diagonal().mean(), lambda G, X_hat: X_hat.square().sum(0).mean())
            ],
            "shrunk towards zero": partial(_towards, stays=False),
            "absolute damping": partial(_towards, size=lambda G, X_hat: torch.ones(())),
            "no damping": given(_towards, damp=0.0),
            "wrong sign": lambda W, X_hat, X, damp: 2 * W - _towards(W, X_hat, X, damp),
            "solved from the other side": [
                partial(_towards, solve=torch.linalg.solve, cross=cross) for cross in (_cross, _turned)
            ],
            "W on the wrong side": [
                partial(_towards, left=True, solve=solve, cross=cross)
                for solve in (torch.linalg.solve, _from_the_right)
                for cross in (_cross, _turned)
            ],
            "the correction alone": lambda W, X_hat, X, damp: _towards(W, X_hat, X, damp) - W,
        },
        """
        the layer's own outputs on the drifted inputs: These are the old weights: right for the target X_hat W^T. The
          target is what the *dense* model has there, X W^T.
        inputs exchanged: Dense and drifted inputs are exchanged: which of them will the new weights be multiplied by?
        cross Gram transposed: X^T X_hat and X_hat^T X are not the same matrix. Write the normal equations for one
          output, then transpose.
        Gram matrix of the dense inputs: You inverted the Gram matrix of the dense inputs. The new weights are fitted on
          the drifted ones: whose Gram matrix do the normal equations ask for?
        shrunk towards zero: With much damping your weights go to zero. Damping is to hold them near what they *were*:
          with equal inputs nothing may change.
        absolute damping: The damping is a fraction of the mean of the diagonal, not a number as such.
        no damping: The damping has no effect on your weights.
        wrong sign: The correction is right but for its sign, so your weights double what the drift does.
        solved from the other side: H^-1 stands on the left of the cross Gram matrix. In the formula it is on the right,
          next to the inputs that the new weights will read: what is to be transposed?
        W on the wrong side: W was multiplied from its left, where its outputs are. Only a square layer lets you.
        the correction alone: This is by how much the weights change. Asked for are the new weights.
        """,
    ),
    cases=lambda: [
        Case("a small drift", (normal(3, 4, seed=830), _drifted(831, 0.3), normal(20, 4, seed=831), 0.01)),
        Case("a large drift", (normal(5, 4, seed=832), _drifted(833, 2.0), normal(20, 4, seed=833), 0.1)),
        Case("loud inputs", (normal(3, 4, seed=834), 10 * _drifted(835, 0.5), 10 * normal(20, 4, seed=835), 0.1)),
        Case("no drift, much damping", (normal(3, 4, seed=836), normal(20, 4, seed=837), normal(20, 4, seed=837), 1.0)),
        Case("hardly more tokens than inputs", (normal(3, 6, seed=842), *_few(8, 6, 843), 0.1)),
        Case("a square layer", (normal(4, 4, seed=838), _drifted(839, 0.5), normal(20, 4, seed=839), 0.05)),
    ],
)


def _drifted(seed: int, size: float) -> Tensor:
    """normal(20, 4, seed) with an error that depends on the input, as in a pruned model."""
    X = normal(20, 4, seed=seed)
    return X + size * (X @ normal(4, 4, seed=seed + 40)) + 0.1 * size * normal(20, 4, seed=seed + 41)


def _few(tokens: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Drifted and dense inputs that have little to do with each other."""
    return normal(tokens, d, seed=seed), normal(tokens, d, seed=seed + 1)


# prune_in_one_pass(windows, model, observe, prune): every linear layer pruned right before it is applied
Prune = Callable[[Tensor, Tensor], Tensor]


class SameTensorError(ValueError):
    """Raised by the check's `observe`."""


@dataclass(eq=False)
class _Observe:
    """The Gram matrix of a layer's inputs (..., d_in). Refuses what it was given the time before."""

    last: Tensor | None = None

    def __call__(self, X: Tensor) -> Tensor:
        X = X.flatten(0, -2)
        if self.last is not None and torch.equal(X, self.last):
            raise SameTensorError("observe was given the same inputs twice in a row: use their statistics again")
        self.last = X.clone()
        return X.T @ X


def _linear(d_out: int, d_in: int, seed: int) -> nn.Linear:
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, d_in, d_out, bias=False)  # draws nothing
    layer.requires_grad_(False)
    layer.weight.copy_(normal(d_out, d_in, seed=seed) / d_in**0.5)
    return layer


class _Block(nn.Module):
    """The wiring of a Llama block, without tokens that look at each other. `down` is made first and applied last."""

    down: nn.Linear
    gate: nn.Linear
    up: nn.Linear
    o: nn.Linear
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear

    def __init__(self, d: int, wide: int, seed: int):
        super().__init__()
        shapes = {"down": (d, wide), "gate": (wide, d), "up": (wide, d)} | dict.fromkeys("oqkv", (d, d))
        for i, (name, (d_out, d_in)) in enumerate(shapes.items()):
            self.add_module(name, _linear(d_out, d_in, seed + i))

    def forward(self, h: Tensor) -> Tensor:
        x = nn.functional.rms_norm(h, h.shape[-1:])
        h = h + self.o(self.q(x).tanh() * self.k(x) + self.v(x))
        x = nn.functional.rms_norm(h, h.shape[-1:])
        return h + self.down(self.gate(x).relu() * self.up(x))


def _stack(blocks: int, d: int, wide: int, seed: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(d, wide, seed + 10 * i) for i in range(blocks)))


class _Front(nn.Module):
    """Two layers, one of all tokens and one of the first of them: two tensors that begin at the same address."""

    def __init__(self, d: int, first: int, seed: int):
        super().__init__()
        self.first, self.all, self.front = first, _linear(d, d, seed), _linear(d, d, seed + 1)

    def forward(self, h: Tensor) -> Tensor:
        return self.all(h)[:, : self.first] + self.front(h[:, : self.first])


def _front(d: int, first: int, seed: int) -> nn.Sequential:
    return nn.Sequential(_Front(d, first, seed))


class _Shared(nn.Module):
    """A layer whose weight a table shares, as embeddings and a head do, and one that reads what the table gives."""

    def __init__(self, d: int, seed: int):
        super().__init__()
        self.read, self.last = _linear(d, d, seed), _linear(d, d, seed + 1)
        self.table = self.read.weight

    def forward(self, h: Tensor) -> Tensor:
        return self.last(self.read(h) @ self.table)


def _shared(d: int, seed: int) -> nn.Sequential:
    return nn.Sequential(_Shared(d, seed))


def _pass(
    windows: Tensor,
    model: nn.Module,
    observe: _Observe,
    prune: Prune,
    *,
    before: bool = True,
    new: Callable[[Tensor, Tensor | None], bool] = lambda X, last: X is not last,
    calls: Callable[[Tensor], Sequence[Tensor]] = lambda windows: [windows],
    change: Callable[[nn.Linear, Tensor, bool], object] = lambda layer, W, fresh: layer.weight.copy_(W),
    outputs: bool = False,
    leave: bool = False,
) -> tuple[Tensor, ...]:
    """before: prune in a pre-hook; new: whether X is another tensor than the last one; calls: with what the model is
    called; change: how a layer gets its new weight, fresh being the answer of `new`; leave: the hooks stay."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    last: Tensor | None = None
    stats: Any = None

    def hook(layer: nn.Linear, args: tuple[Any, ...], *output: Tensor) -> None:
        nonlocal last, stats
        X: Tensor = args[0]
        fresh = new(X, last)
        if fresh:
            last, stats = X, observe(X @ layer.weight.T if outputs else X)
        change(layer, prune(layer.weight, stats), fresh)

    hooks = [layer.register_forward_pre_hook(hook) if before else layer.register_forward_hook(hook) for layer in layers]
    for part in calls(windows):
        model(part)
    for handle in [] if leave else hooks:
        handle.remove()
    return tuple(layer.weight for layer in layers)


def _block_at_once(windows: Tensor, model: nn.Sequential, observe: _Observe, prune: Prune) -> list[Tensor]:
    """The published loop: statistics of a whole block while it is dense, then a second run."""
    h = windows
    for block in model:
        seen: dict[nn.Linear, Tensor] = {}
        handles = [
            layer.register_forward_pre_hook(lambda layer, args, seen=seen: seen.update({layer: args[0]}))
            for layer in block.modules()
            if isinstance(layer, nn.Linear)
        ]
        block(h)
        for handle in handles:
            handle.remove()
        for layer, X in seen.items():
            layer.weight.copy_(prune(layer.weight, X.flatten(0, -2).T @ X.flatten(0, -2)))
        h = block(h)
    return [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]


def _as_applied(windows: Tensor, model: nn.Module, observe: _Observe, prune: Prune) -> list[Tensor]:
    applied: list[nn.Linear] = []

    def note(layer: nn.Linear, W: Tensor, fresh: bool) -> None:
        layer.weight.copy_(W)
        applied.append(layer)

    _pass(windows, model, observe, prune, change=note)
    return [layer.weight for layer in applied]


def _replaced(layer: nn.Linear, W: Tensor, fresh: bool) -> None:
    layer.weight = nn.Parameter(W, requires_grad=False)


def _first_of_a_group(layer: nn.Linear, W: Tensor, fresh: bool) -> None:
    if fresh:
        layer.weight.copy_(W)


def _weakest(W: Tensor, gram: Tensor) -> Tensor:
    """Each output loses the half of its weights with the lowest Wanda scores; it is told how much was seen, too."""
    scores = W.abs() * gram.diagonal().sqrt()
    keep = scores.argsort(dim=1).argsort(dim=1) >= W.shape[1] // 2
    return W * keep * (1 + gram.trace() / 1000)


prune_in_one_pass = Exercise(
    name="prune_in_one_pass",
    chapter=8,
    title="all linear layers of a model, each pruned on its true input right before it is applied",
    reference=_pass,
    difficulty=4,
    wrong=mistakes(
        {
            "dense inputs": partial(_pass, before=False),
            "block at once": _block_at_once,
            "statistics made again": partial(_pass, new=lambda X, last: True),
            "the first statistics for all": partial(_pass, new=lambda X, last: last is None),
            "equal shapes taken for the same tensor": partial(
                _pass, new=lambda X, last: last is None or X.shape != last.shape
            ),
            "only the first layer of a group": partial(_pass, change=_first_of_a_group),
            "weights not changed": partial(_pass, change=lambda layer, W, fresh: None),
            "a new tensor in its place": partial(_pass, change=_replaced),
            "outputs instead of inputs": partial(_pass, outputs=True),
            "one window after the other": partial(_pass, calls=lambda windows: windows.split(1)),
            "first window only": partial(_pass, calls=lambda windows: [windows[:1]]),
            "pruned in two passes": partial(_pass, calls=lambda windows: [windows, windows]),
            "in the order of application": _as_applied,
            "hooks left behind": partial(_pass, leave=True),
            "address instead of identity": partial(
                _pass, new=lambda X, last: last is None or X.data_ptr() != last.data_ptr()
            ),
        },
        """
        dense inputs: Every layer was calibrated on what *dense* layers before it produce. When is your weight changed:
          before the layer's output is computed, or after?
        block at once: Between blocks the inputs are right. Inside a block every layer was calibrated on what the dense
          layers of that block produce.
        statistics made again: observe was called again with a tensor that it had just seen. q, k and v read the same
          one: keep it, and ask for it.
        the first statistics for all: All layers were pruned by the statistics of the first input. What has to happen
          when another tensor comes?
        equal shapes taken for the same tensor: Two inputs of equal shape were taken for one tensor: o_proj got the
          statistics of q, k and v.
        only the first layer of a group: Of the layers that read one tensor only the first was pruned. Statistics are
          taken once, weights are pruned in each.
        weights not changed: The layers still hold the weights that they had. What `prune` returns has to get into the
          layer's own tensor, in place.
        a new tensor in its place: Your layers have new tensors as weights. What else held the old one, a table that
          shares it or an optimizer, still has the dense weights: change the numbers *in* the tensor.
        outputs instead of inputs: Your statistics are those of what a layer *produces*. A method needs those of what it
          reads.
        one window after the other: The model was called once for each window, and each call pruned every layer again,
          on top of the last time.
        first window only: Only the first window counts. Every layer is to be calibrated on all of them.
        pruned in two passes: The windows went through the model twice, and each time every layer was pruned.
        in the order of application: The weights are right, in another order than that of model.modules(): down is made
          first in this model, and applied last.
        hooks left behind: The weights are right, but your hooks are still there: the next time that somebody calls the
          model, all layers are pruned once more.
        address instead of identity: Two tensors that begin at the same address were taken for one. A part of a tensor
          begins where the whole does, and memory is used again as soon as it is free.
        """,
    ),
    cases=lambda: [
        Case("one block", (normal(3, 5, 4, seed=850), _stack(1, 4, 6, 851), _Observe(), _weakest)),
        Case("three blocks", (normal(2, 6, 4, seed=852), _stack(3, 4, 6, 853), _Observe(), _weakest)),
        Case("an MLP as wide as the stream", (normal(2, 5, 6, seed=856), _stack(2, 6, 6, 857), _Observe(), _weakest)),
        Case("one window", (normal(1, 7, 4, seed=858), _stack(2, 4, 8, 859), _Observe(), _weakest)),
        Case(
            "a layer that reads the first tokens", (normal(2, 6, 4, seed=862), _front(4, 3, 863), _Observe(), _weakest)
        ),
        Case("a layer whose weight a table shares", (normal(2, 6, 4, seed=866), _shared(4, 867), _Observe(), _weakest)),
    ],
)


# shared_inputs(inputs): for each layer the number of its group; layers that are given the same tensor share one
def _numbered(inputs: Sequence[Tensor], same: Callable[[Tensor, Tensor], bool]) -> Tensor:
    """The place, among the first tensors of all groups, of the first one that is the same."""
    firsts: list[Tensor] = []
    numbers = []
    for X in inputs:
        known = [i for i, first in enumerate(firsts) if same(first, X)]
        if not known:
            firsts.append(X)
        numbers.append(known[0] if known else len(firsts) - 1)
    return torch.tensor(numbers)


def _neighbours(inputs: Sequence[Tensor]) -> Tensor:
    new = [int(i > 0 and X is not inputs[i - 1]) for i, X in enumerate(inputs)]
    return torch.tensor(new).cumsum(0)


def _shared_inputs(inputs: Sequence[Tensor]) -> Tensor:
    return _numbered(inputs, lambda a, b: a is b)


def _one_buffer() -> list[Tensor]:
    """Two pairs of layers; the memory of the first pair's input is used again, in part, for that of the second."""
    memory = normal(6, 4, seed=820)
    first, second = memory[:4], memory[:4] * 1.0
    late = memory[:2]  # the same address as `first`, another tensor
    return [first, first, second, late, late]


shared_inputs = Exercise(
    name="shared_inputs",
    chapter=8,
    title="which layers are given the same tensor",
    reference=_shared_inputs,
    difficulty=2,
    wrong=mistakes(
        {
            "address instead of identity": partial(_numbered, same=lambda a, b: a.data_ptr() == b.data_ptr()),
            "equal values": partial(_numbered, same=torch.equal),
            "equal shapes": partial(_numbered, same=lambda a, b: a.shape == b.shape),
            "equal widths": partial(_numbered, same=lambda a, b: a.shape[-1] == b.shape[-1]),
            "only neighbours compared": _neighbours,
            "a group for each layer": lambda inputs: torch.arange(len(inputs)),
            "counted from one": then(_shared_inputs, lambda numbers: numbers + 1),
        },
        """
        address instead of identity: Two tensors with the same address need not be the same tensor: memory is used again
          as soon as it is free, and a part of a tensor begins where the whole does.
        equal values: Tensors with equal values were put into one group. That reads every number of every input, and it
          is another question: ask whether it is the same object.
        equal shapes: Tensors of equal shape were put into one group. In a decoder block nearly all inputs have one
          shape.
        equal widths: Tensors with equally many features were put into one group. o_proj has as many as q_proj, and
          another input.
        only neighbours compared: A tensor that came before, with another one in between, got a new number. Some
          families apply attention and MLP to the same input.
        a group for each layer: Every layer has a group of its own: the Gram matrix of q, k and v would be made three
          times.
        counted from one: The grouping is right, but the first group is number 0.
        """,
    ),
    cases=lambda: [
        Case("a Llama block", (_block(),)),
        Case("a block that reads one tensor twice", ([X := normal(2, 4, seed=823), X, normal(2, 4, seed=824), X],)),
        Case("memory that is used again", (_one_buffer(),)),
        Case("equal values in different tensors", ([Y := normal(3, 4, seed=821), Y, Y.clone(), Y.clone()],)),
        Case("a single layer", ([normal(2, 3, seed=825)],)),
    ],
)


def _block() -> list[Tensor]:
    """The inputs of q, k and v, of o, of gate and up, and of down."""
    attention, heads, mlp, inner = (normal(2, 5, d, seed=822 + 100 * i) for i, d in enumerate((4, 4, 4, 6)))
    return [attention] * 3 + [heads] + [mlp] * 2 + [inner]


# prune_chain(weights, batches, prune): a chain of layers, stage by stage
@dataclass(frozen=True)
class _Recipe:
    """The staged driver with every place exposed at which people go wrong; the defaults are right.

    see: which weights made the inputs of a layer: the "pruned" ones before it, the "dense" ones, "none", or "stale":
    pruned ones, but with the last of them still dense. batches: whose inputs count: "all", "last" or "first". mean: the
    Gram matrices are averaged over the batches; share: over tokens. each: prune with every batch in turn, the next
    seeing what is left. relu: inputs pass the nonlinearity; front: the first ones, too. turned: layers multiply by W,
    not by its transpose. kept: Gram sums are not set back to zero between layers of equal width.
    """

    see: str = "pruned"
    batches: str = "all"
    mean: bool = False
    share: bool = False
    each: bool = False
    relu: bool = True
    front: bool = False
    turned: bool = False
    kept: bool = False
    outputs: bool = False

    def __call__(self, weights: Tensor, batches: Sequence[Tensor], prune: Prune) -> Tensor:
        """weights (layers, d, d), batches each (tokens, d) -> the pruned weights (layers, d, d)."""
        done: list[Tensor] = []
        carried: Tensor | None = None
        for place, W in enumerate(weights):
            before = {
                "pruned": done,
                "dense": list(weights[:place]),
                "none": [],
                "stale": done[:-1] + list(weights[max(place - 1, 0) : place]),
            }
            grams = []
            for X in batches:
                X = X.relu() if self.front else X
                for V in before[self.see]:
                    X = X @ (V if self.turned else V.T)
                    X = X.relu() if self.relu else X
                X = X @ W.T if self.outputs else X
                grams.append(X.T @ X)
            chosen = {"all": grams, "last": grams[-1:], "first": grams[:1]}[self.batches]
            if self.each:
                for gram in chosen:
                    W = prune(W, gram)
                done.append(W)
                continue
            total = torch.stack(chosen).sum(0) / (len(chosen) if self.mean else 1)
            total = total / sum(map(len, batches)) if self.share else total
            if self.kept and carried is not None:
                total = total + carried
            carried = total
            done.append(prune(W, total))
        return torch.stack(done)


prune_chain = Exercise(
    name="prune_chain",
    chapter=8,
    title="a chain of layers, each pruned on what the pruned layers before it make of all batches",
    reference=_Recipe(),
    difficulty=4,
    zeros=True,
    wrong=mistakes(
        {
            "dense inputs": _Recipe(see="dense"),
            "one layer late": _Recipe(see="stale"),
            "last batch only": _Recipe(batches="last"),
            "first batch only": _Recipe(batches="first"),
            "averaged over batches": _Recipe(mean=True),
            "averaged over tokens": _Recipe(share=True),
            "pruned once per batch": _Recipe(each=True),
            "the first inputs for all": _Recipe(see="none"),
            "nonlinearity forgotten": _Recipe(relu=False),
            "nonlinearity in front": _Recipe(front=True),
            "weights not transposed": _Recipe(turned=True),
            "sums not set back": _Recipe(kept=True),
            "outputs instead of inputs": _Recipe(outputs=True),
        },
        """
        dense inputs: Every layer was calibrated on what the *dense* layers before it produce. After pruning it will
          never see those inputs again.
        one layer late: The layer right before the current one still had its dense weight when the statistics were
          taken. In which order do you prune, and run?
        last batch only: Only the last batch counts. Is there an = where a sum should grow?
        first batch only: Only the first batch counts: a layer may be pruned when *all* batches have reached it, no
          earlier.
        averaged over batches: The Gram matrices were averaged over the batches. Sums over tokens do not depend on how
          the tokens were dealt out to batches.
        averaged over tokens: The sums were divided by the number of tokens. A Gram matrix is the sum over tokens, not
          their mean.
        pruned once per batch: A layer was pruned again for every batch, on top of the last time. Merge the statistics,
          then prune once.
        the first inputs for all: Every layer was calibrated on the inputs of the first. The batches have to go through
          the layers that are done.
        nonlinearity forgotten: Between two layers the values pass a ReLU. Your inputs have negative numbers in them.
        nonlinearity in front: The inputs of the first layer went through a ReLU, too. It stands between layers, and in
          front of the first there is none.
        weights not transposed: Your layers multiply by W. A layer of this book gives X W^T: a row of W is an output.
        sums not set back: The statistics of a layer still hold what the layer before it saw.
        outputs instead of inputs: Your statistics are those of the layer's *outputs*. That is what a hook after the
          layer sees.
        """,
    ),
    cases=lambda: [
        Case("three layers, two batches", (normal(3, 4, 4, seed=840), _batches([5, 3], 4, 841), _weakest)),
        Case("four layers, three batches", (normal(4, 6, 6, seed=842), _batches([4, 2, 6], 6, 843), _weakest)),
        Case("one batch", (normal(2, 4, 4, seed=844), _batches([7], 4, 845), _weakest)),
        Case("batches of one token", (normal(3, 4, 4, seed=848), _batches([1, 1, 1], 4, 849), _weakest)),
        Case("one layer", (normal(1, 4, 4, seed=846), _batches([3, 3], 4, 847), _weakest)),
    ],
)


def _batches(sizes: list[int], width: int, seed: int) -> list[Tensor]:
    return [normal(n, width, seed=seed + 100 * i) for i, n in enumerate(sizes)]


# shares_by_origin(growth, arising): of the error behind the last block, the share that arose in each
def _by_origin(
    growth: Tensor,
    arising: Tensor,
    *,
    square: bool = True,
    own: bool = False,
    before: bool = False,
    roots: bool = False,
    divide: bool = True,
) -> Tensor:
    """square: growth is that of a norm; own: a block amplifies its own error; before: blocks before it do, too."""
    factors = growth.square() if square else growth  # (blocks,)
    later = [factors[l + (not own) :].prod() for l in range(len(arising))]
    if before:
        later = [factors[:l].prod() for l in range(len(arising))]
    sizes = (arising.sqrt() if roots else arising) * torch.stack(later)
    return sizes / sizes.sum() if divide else sizes


def _of_what_is_there(growth: Tensor, arising: Tensor) -> Tensor:
    """The share of each block's own error in the error behind that block."""
    error, shares = torch.zeros(()), []
    for factor, own in zip(growth.square(), arising, strict=True):
        error = factor * error + own
        shares.append(own / error)
    return torch.stack(shares)


shares_by_origin = Exercise(
    name="shares_by_origin",
    chapter=8,
    title="which share of the error behind the last block arose in which block",
    reference=_by_origin,
    difficulty=3,
    wrong=mistakes(
        {
            "as they arise": lambda growth, arising: arising / arising.sum(),
            "growth not squared": partial(_by_origin, square=False),
            "own growth counted": partial(_by_origin, own=True),
            "blocks before instead of behind": partial(_by_origin, before=True),
            "sizes instead of squares": partial(_by_origin, square=False, roots=True),
            "not divided": partial(_by_origin, divide=False),
            "per cent": scaled(_by_origin, 100),
            "behind each block": _of_what_is_there,
            "the last block first": then(_by_origin, lambda shares: shares.flip(0)),
        },
        """
        as they arise: These are the shares of the errors where they arise. What do the blocks behind make of them?
        growth not squared: `growth` is a ratio of norms, and the errors in `arising` are squares.
        own growth counted: A block does not amplify what it adds itself: that arises behind it. Which factors stand in
          front of the error of block l in the sum over blocks?
        blocks before instead of behind: You multiplied by the growth of the blocks in front. An error travels
          forwards.
        sizes instead of squares: You added up lengths. Errors that are orthogonal add up in squares.
        not divided: These are the contributions. Their sum is the squared error, not 1.
        per cent: These are per cent; shares add up to 1.
        behind each block: This compares each block's own error with the error right behind it. Asked for is what
          becomes of it behind the *last* block.
        the last block first: The shares are right, and stand in the opposite order.
        """,
    ),
    cases=lambda: [
        Case("blocks that amplify nothing", (torch.ones(3), torch.tensor([1.0, 2.0, 1.0]))),
        Case("one block doubles", (torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 1.0]))),
        Case("a block that adds nothing", (torch.tensor([1.1, 1.3, 0.9, 1.2]), torch.tensor([4.0, 0.0, 1.0, 2.0]))),
        Case("a single block", (torch.tensor([1.5]), torch.tensor([0.3]))),
        Case("thirty blocks", (1 + 0.2 * normal(30, seed=870).abs(), normal(30, seed=871).square() + 0.1)),
    ],
)


# predict_inputs(drivers): whether the named layer is calibrated on what it receives in the finished model
_RIGHT_INPUTS = (True, True, False, True, False, True, True, False)  # 1 to 8


def _predicted(drivers: Tensor, wrong: tuple[int, ...] = ()) -> Tensor:
    right = torch.tensor(_RIGHT_INPUTS)[drivers - 1]
    return right ^ torch.isin(drivers, torch.tensor(wrong, dtype=drivers.dtype))


predict_inputs = Exercise(
    name="predict_inputs",
    chapter=8,
    title="in which of eight runs a layer is calibrated on what it receives in the finished model",
    reference=_predicted,
    difficulty=3,
    wrong=mistakes(
        {
            "between blocks": partial(_predicted, wrong=(1,)),
            "behind a dense attention": partial(_predicted, wrong=(2,)),
            "behind a pruned half": partial(_predicted, wrong=(3,)),
            "the published loop all dense": partial(_predicted, wrong=(1, 2)),
            "a layer that stays dense": partial(_predicted, wrong=(4,)),
            "from the last block to the first": partial(_predicted, wrong=(5,)),
            "pruned twice": partial(_predicted, wrong=(6,)),
            "other weights to begin with": partial(_predicted, wrong=(7,)),
            "something else changed afterwards": partial(_predicted, wrong=(8,)),
            "inverted": then(_predicted, torch.logical_not),
        },
        """
        between blocks: One of the first three is wrong. What does the published loop send into block 1: what dense
          blocks produce, or pruned ones?
        behind a dense attention: One of the first three is wrong. Which layers stand between the input of block 1 and
          its gate_proj, and does any of them change?
        behind a pruned half: One of the first three is wrong. Which layers of the same block does down_proj read, and
          what are they when the statistics are taken?
        the published loop all dense: The published loop runs each block a second time. What is that run for?
        a layer that stays dense: v_proj stays as it is, in the pass and in the finished model. Is what o_proj reads any
          different?
        from the last block to the first: When the statistics of block 1 are taken, what is block 0? What is it in the
          end?
        pruned twice: The second pass takes statistics of its own. What stands before the layer then, and what in the
          end?
        other weights to begin with: What is moved there is the weight, before it is pruned. Where do the inputs come
          from?
        something else changed afterwards: The layers are the same as in the pass. Is all that stands between them?
        inverted: All eight are the wrong way round: True means that the inputs are those of the finished model.
        """,
    ),
    cases=lambda: [
        *(Case(f"run {place}", (torch.tensor([place]),)) for place in range(1, 9)),
        Case("all eight", (torch.arange(1, 9),)),
        Case("some, in another order", (torch.tensor([8, 2, 5]),)),
    ],
)

EXERCISES = [towards_dense, prune_in_one_pass, shared_inputs, prune_chain, shares_by_origin, predict_inputs]
