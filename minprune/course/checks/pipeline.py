"""The exercises of chapter 08 on layers that share an input, and on what a layer should reproduce."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
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


def _one_buffer() -> list[Tensor]:
    """Two pairs of layers; the memory of the first pair's input is used again, in part, for that of the second."""
    memory = normal(6, 4, seed=820)
    first, second = memory[:4], memory[:4] * 1.0
    late = memory[:2]  # the same address as `first`, another tensor
    return [first, first, second, late, late]


def _again() -> list[Tensor]:
    X = normal(2, 4, seed=823)
    return [X, X, normal(2, 4, seed=824), X]


def _twins() -> list[Tensor]:
    X = normal(3, 4, seed=821)
    return [X, X, X.clone(), X.clone()]


shared_inputs = Exercise(
    name="shared_inputs",
    chapter=8,
    title="which layers are given the same tensor",
    reference=lambda inputs: _numbered(inputs, lambda a, b: a is b),
    difficulty=2,
    wrong=(
        Wrong(
            "address instead of identity",
            lambda inputs: _numbered(inputs, lambda a, b: a.data_ptr() == b.data_ptr()),
            "Two tensors with the same address need not be the same tensor: memory is used again as soon as it is "
            "free, and a part of a tensor begins where the whole does.",
        ),
        Wrong(
            "equal values",
            lambda inputs: _numbered(inputs, lambda a, b: a.shape == b.shape and bool((a == b).all())),
            "Tensors with equal values were put into one group. That reads every number of every input, and it is "
            "another question: ask whether it is the same object.",
        ),
        Wrong(
            "equal shapes",
            lambda inputs: _numbered(inputs, lambda a, b: a.shape == b.shape),
            "Tensors of equal shape were put into one group. In a decoder block nearly all inputs have one shape.",
        ),
        Wrong(
            "equal widths",
            lambda inputs: _numbered(inputs, lambda a, b: a.shape[-1] == b.shape[-1]),
            "Tensors with equally many features were put into one group. o_proj has as many as q_proj, and another "
            "input.",
        ),
        Wrong(
            "only neighbours compared",
            _neighbours,
            "A tensor that came before, with another one in between, got a new number. Some families apply attention "
            "and MLP to the same input.",
        ),
        Wrong(
            "a group for each layer",
            lambda inputs: torch.arange(len(inputs)),
            "Every layer has a group of its own: the Gram matrix of q, k and v would be made three times.",
        ),
        Wrong(
            "counted from one",
            lambda inputs: _numbered(inputs, lambda a, b: a is b) + 1,
            "The grouping is right, but the first group is number 0.",
        ),
    ),
    cases=lambda: [
        Case("a Llama block", (_repeated([3, 1, 2, 1], [(2, 5, 4)] * 3 + [(2, 5, 6)], 822),)),
        Case("a block that reads one tensor twice", (_again(),)),
        Case("memory that is used again", (_one_buffer(),)),
        Case("equal values in different tensors", (_twins(),)),
        Case("a single layer", ([normal(2, 3, seed=825)],)),
    ],
)


def _repeated(counts: list[int], shapes: Sequence[tuple[int, ...]], seed: int) -> list[Tensor]:
    """Tensors of these shapes, each as often as its count says."""
    return [
        X for i, (n, s) in enumerate(zip(counts, shapes, strict=True)) for X in [normal(*s, seed=seed + 100 * i)] * n
    ]


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
    wrong=(
        Wrong(
            "the layer's own outputs on the drifted inputs",
            lambda W, X_hat, X, damp: W.clone(),
            "These are the old weights: right for the target X_hat W^T. The target is what the *dense* model has "
            "there, X W^T.",
        ),
        Wrong(
            "inputs exchanged",
            lambda W, X_hat, X, damp: _towards(W, X, X_hat, damp),
            "Dense and drifted inputs are exchanged: which of them will the new weights be multiplied by?",
        ),
        Wrong(
            "cross Gram transposed",
            lambda W, X_hat, X, damp: _towards(W, X_hat, X, damp, cross=lambda a, b: a.T @ b),
            "X^T X_hat and X_hat^T X are not the same matrix. Write the normal equations for one output, then "
            "transpose.",
        ),
        Wrong(
            "shrunk towards zero",
            lambda W, X_hat, X, damp: _towards(W, X_hat, X, damp, stays=False),
            "With much damping your weights go to zero. Damping is to hold them near what they *were*: with equal "
            "inputs nothing may change.",
        ),
        Wrong(
            "absolute damping",
            lambda W, X_hat, X, damp: _towards(W, X_hat, X, damp, relative=False),
            "The damping is a fraction of the mean of the diagonal, not a number as such.",
        ),
        Wrong(
            "no damping",
            lambda W, X_hat, X, damp: _towards(W, X_hat, X, 0.0),
            "The damping has no effect on your weights.",
        ),
        Wrong(
            "the correction alone",
            lambda W, X_hat, X, damp: _towards(W, X_hat, X, damp) - W,
            "This is by how much the weights change. Asked for are the new weights.",
        ),
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


EXERCISES = [shared_inputs, towards_dense]
