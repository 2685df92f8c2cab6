"""The exercises of chapter 08: layers that share an input, what a layer should reproduce, a chain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import exchanged, given, then
from minprune.course.checks.values import normal


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


# towards_dense(W, X_hat, X, damp): the dense weights that best give the dense outputs on drifted inputs
def _towards(
    W: Tensor, X_hat: Tensor, X: Tensor, damp: float, *, relative: bool = True, stays: bool = True, cross=None
) -> Tensor:
    """relative: damping as a fraction of the mean of the diagonal; stays: damping holds the weights near W, not 0."""
    G = X_hat.T @ X_hat
    size = damp * (G.diagonal().mean() if relative else 1.0)
    I = torch.eye(len(G))
    C = X.T @ X_hat if cross is None else cross(X_hat, X)  # (d_in, d_in)
    return W @ torch.linalg.solve(G + size * I, C + size * I * stays, left=False)


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
            "cross Gram transposed": partial(_towards, cross=lambda a, b: a.T @ b),
            "shrunk towards zero": partial(_towards, stays=False),
            "absolute damping": partial(_towards, relative=False),
            "no damping": given(_towards, damp=0.0),
            "the correction alone": lambda W, X_hat, X, damp: _towards(W, X_hat, X, damp) - W,
        },
        """
        the layer's own outputs on the drifted inputs: These are the old weights: right for the target X_hat W^T. The
          target is what the *dense* model has there, X W^T.
        inputs exchanged: Dense and drifted inputs are exchanged: which of them will the new weights be multiplied by?
        cross Gram transposed: X^T X_hat and X_hat^T X are not the same matrix. Write the normal equations for one
          output, then transpose.
        shrunk towards zero: With much damping your weights go to zero. Damping is to hold them near what they *were*:
          with equal inputs nothing may change.
        absolute damping: The damping is a fraction of the mean of the diagonal, not a number as such.
        no damping: The damping has no effect on your weights.
        the correction alone: This is by how much the weights change. Asked for are the new weights.
        """,
    ),
    cases=lambda: [
        Case("a small drift", (normal(3, 4, seed=830), _drifted(831, 0.3), normal(20, 4, seed=831), 0.01)),
        Case("a large drift", (normal(5, 4, seed=832), _drifted(833, 2.0), normal(20, 4, seed=833), 0.1)),
        Case("loud inputs", (normal(3, 4, seed=834), 10 * _drifted(835, 0.5), 10 * normal(20, 4, seed=835), 0.1)),
        Case("no drift, much damping", (normal(3, 4, seed=836), normal(20, 4, seed=837), normal(20, 4, seed=837), 1.0)),
        Case("fewer tokens than inputs", (normal(3, 6, seed=842), normal(4, 6, seed=843), normal(4, 6, seed=844), 0.1)),
        Case("a square layer", (normal(4, 4, seed=838), _drifted(839, 0.5), normal(20, 4, seed=839), 0.05)),
    ],
)


def _drifted(seed: int, size: float) -> Tensor:
    """normal(20, 4, seed) with an error that depends on the input, as in a pruned model."""
    X = normal(20, 4, seed=seed)
    return X + size * (X @ normal(4, 4, seed=seed + 40)) + 0.1 * size * normal(20, 4, seed=seed + 41)


Prune = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Recipe:
    """The staged driver with every place exposed at which people go wrong; the defaults are right.

    see: which weights made the inputs of a layer: the "pruned" ones before it, the "dense" ones, or "stale": pruned
    ones, but with the last of them still dense. batches: whose inputs count: "all", "last" or "first". mean: the Gram
    matrices are averaged over the batches. each: prune with every batch in turn, the next seeing what is left.
    relu: inputs pass the nonlinearity. kept: Gram sums are not set back to zero between layers of equal width.
    """

    see: str = "pruned"
    batches: str = "all"
    mean: bool = False
    each: bool = False
    relu: bool = True
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
                "stale": done[:-1] + list(weights[max(place - 1, 0) : place]),
            }
            grams = []
            for X in batches:
                for V in before[self.see]:
                    X = (X @ V.T).relu() if self.relu else X @ V.T
                X = X @ W.T if self.outputs else X
                grams.append(X.T @ X)
            chosen = {"all": grams, "last": grams[-1:], "first": grams[:1]}[self.batches]
            if self.each:
                for gram in chosen:
                    W = prune(W, gram)
                done.append(W)
                continue
            total = torch.stack(chosen).sum(0) / (len(chosen) if self.mean else 1)
            if self.kept and carried is not None:
                total = total + carried
            carried = total
            done.append(prune(W, total))
        return torch.stack(done)


def _weakest(W: Tensor, gram: Tensor) -> Tensor:
    """Each output loses the half of its weights with the lowest Wanda scores; it is told how much was seen, too."""
    scores = W.abs() * gram.diagonal().sqrt()
    keep = scores.argsort(dim=1).argsort(dim=1) >= W.shape[1] // 2
    return W * keep * (1 + gram.trace() / 1000)


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
            "pruned once per batch": _Recipe(each=True),
            "nonlinearity forgotten": _Recipe(relu=False),
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
        pruned once per batch: A layer was pruned anew for every batch, on top of the last time. Merge the statistics,
          then prune once.
        nonlinearity forgotten: Between two layers the values pass a ReLU. Your inputs have negative numbers in them.
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


EXERCISES = [shared_inputs, towards_dense, prune_chain]
