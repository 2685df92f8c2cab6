"""The exercises of chapter 02 on what magnitude cannot see: the inputs."""

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import normal
from minprune.patterns import keep_largest

# input_cost(W, X): what the layer's squared output error becomes if one whole input (a column of W) is removed


def _input_cost(W: Tensor, X: Tensor) -> Tensor:
    return W.square().sum(0) * X.square().sum(0)


input_cost = Exercise(
    name="input_cost",
    chapter=2,
    title="the squared output error that removing each whole input would cause",
    reference=_input_cost,
    difficulty=2,
    wrong=(
        Wrong(
            "inputs ignored",
            lambda W, X: W.square().sum(0),
            "This is the squared length of the column: right only if every input has length 1. Where does X come in?",
        ),
        Wrong(
            "not squared",
            lambda W, X: (W.square().sum(0) * X.square().sum(0)).sqrt(),
            "This is the length of the error, not its square. It ranks the inputs alike, but squares are what adds up.",
        ),
        Wrong(
            "averaged over tokens",
            lambda W, X: W.square().sum(0) * X.square().mean(0),
            "The error was averaged over the tokens. ||X W^T - X W'^T||^2 is a sum over all of them.",
        ),
        Wrong(
            "averaged over outputs",
            lambda W, X: W.square().mean(0) * X.square().sum(0),
            "The error was averaged over the outputs. ||X W^T - X W'^T||^2 is a sum over all of them.",
        ),
        Wrong(
            "inputs summed before squaring",
            lambda W, X: W.square().sum(0) * X.sum(0).square(),
            "The inputs were added up before squaring, so positive and negative ones cancelled.",
        ),
        Wrong(
            "weights summed before squaring",
            lambda W, X: W.sum(0).square() * X.square().sum(0),
            "The weights of a column were added up before squaring, so positive and negative ones cancelled. "
            "Each of them belongs to another output.",
        ),
        Wrong(
            "absolute inputs",
            lambda W, X: W.square().sum(0) * X.abs().sum(0),
            "The input enters without a square. Write the error of one token down first, then square it.",
        ),
    ),
    cases=lambda: [
        Case("a small layer", (normal(3, 4, seed=70), normal(10, 4, seed=71))),
        Case("one loud input", (normal(2, 5, seed=72), normal(8, 5, seed=73) * torch.tensor([1, 1, 50, 1, 1.0]))),
        Case(
            "an input that is always zero", (normal(2, 3, seed=74), normal(6, 3, seed=75) * torch.tensor([1, 0, 1.0]))
        ),
        Case("a single token", (normal(4, 3, seed=76), normal(1, 3, seed=77))),
        Case("as many tokens as inputs", (normal(5, 4, seed=78), normal(4, 4, seed=79))),
    ],
)


# best_mask(w, X, zeros): the best mask of one row by trying all of them


def _row_error(w: Tensor, X: Tensor, keep: Tensor) -> Tensor:
    return (X @ (w * ~keep)).square().sum()


def _search(w: Tensor, X: Tensor, zeros: int, error=_row_error) -> Tensor:
    masks = []
    for pruned in combinations(range(len(w)), zeros):
        keep = torch.ones(len(w), dtype=torch.bool)
        keep[list(pruned)] = False
        masks.append(keep)
    return min(masks, key=lambda keep: float(error(w, X, keep)))


def _joint(own: float, cross: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The error with the squares of the contributions, and with the products of two of them, so many times."""

    def error(w: Tensor, X: Tensor, keep: Tensor) -> Tensor:
        parts = X * (w * ~keep)  # (tokens, d_in)
        return own * parts.square().sum() + cross * (parts.sum(1).square().sum() - parts.square().sum())

    return error


def _single_costs(w: Tensor, X: Tensor, keep: Tensor) -> Tensor:
    return (w.square() * X.square().sum(0) * ~keep).sum()


def _greedy(w: Tensor, X: Tensor, zeros: int) -> Tensor:
    keep = torch.ones(len(w), dtype=torch.bool)
    for _ in range(zeros):
        errors = []
        for j in range(len(w)):
            trial = keep.clone()
            trial[j] = False
            errors.append(float(_row_error(w, X, trial)) if keep[j] else float("inf"))
        keep[errors.index(min(errors))] = False
    return keep


def _correlated(tokens: int, inputs: int, seed: int) -> Tensor:
    """Inputs that share two causes, so that removing two weights together costs less or more than one by one."""
    return normal(tokens, 2, seed=seed) @ normal(2, inputs, seed=seed + 1) + 0.3 * normal(tokens, inputs, seed=seed + 2)


best_mask = Exercise(
    name="best_mask",
    chapter=2,
    title="the best keep mask of one output, found by trying all",
    reference=_search,
    difficulty=4,
    wrong=(
        Wrong(
            "magnitude",
            lambda w, X, zeros: keep_largest(w.abs().unsqueeze(0), zeros)[0],
            "This is what magnitude chooses. The inputs decide, too: measure the error of the output.",
        ),
        Wrong(
            "costs added one by one",
            lambda w, X, zeros: _search(w, X, zeros, _single_costs),
            "Each weight's own cost was taken and these were added up. Two removed weights whose inputs move "
            "together can cancel or reinforce each other: compute the output of the whole mask.",
        ),
        Wrong(
            "cross terms counted once",
            lambda w, X, zeros: _search(w, X, zeros, _joint(1, 0.5)),
            "The joint effect of two weights counts half. In the square of a sum each product of two terms stands "
            "twice.",
        ),
        Wrong(
            "inputs centred",
            lambda w, X, zeros: _search(w, X - X.mean(0), zeros),
            "The mean of each input was taken away first. A layer's output has it, so the error does, too.",
        ),
        Wrong(
            "greedy",
            _greedy,
            "One weight was removed after the other, the best at each step. The best pair need not contain the best "
            "single weight: try all masks.",
        ),
        Wrong(
            "counts the kept ones",
            lambda w, X, zeros: _search(w, X, len(w) - zeros),
            "As many weights were *kept* as should have been pruned.",
        ),
        Wrong(
            "inverted mask",
            lambda w, X, zeros: ~_search(w, X, zeros),
            "The mask is the opposite of what was asked for: True means *kept*.",
        ),
        Wrong(
            "worst mask",
            lambda w, X, zeros: _search(w, X, zeros, lambda *args: -_row_error(*args)),
            "Of all masks this one has the *largest* error.",
        ),
        Wrong(
            "absolute error",
            lambda w, X, zeros: _search(w, X, zeros, lambda w, X, keep: (X @ (w * ~keep)).abs().sum()),
            "The absolute differences of the output were added up, not their squares.",
        ),
        Wrong(
            "error of the sum",
            lambda w, X, zeros: _search(w, X, zeros, lambda w, X, keep: (X @ (w * ~keep)).sum().square()),
            "The differences were summed over the tokens before squaring, so that they cancelled.",
        ),
    ),
    cases=lambda: (
        [
            Case(f"correlated inputs, {zeros} of {d} to go", (normal(d, seed=s), _correlated(12, d, seed=s + 1), zeros))
            for s, d, zeros in [(80, 4, 1), (90, 5, 2), (100, 6, 3), (202, 6, 2), (235, 7, 3), (130, 7, 5), (140, 8, 4)]
        ]
        + [
            Case(
                f"{d} inputs with a mean, {zeros} to go",
                (normal(d, seed=s), _correlated(9, d, seed=s + 1) + mean, zeros),
            )
            for s, d, zeros, mean in [(155, 5, 2, 1.0), (160, 6, 3, 0.5), (165, 6, 4, 2.0), (170, 7, 2, 1.0)]
        ]
        + [
            Case("two tokens, two to go", (normal(4, seed=175), normal(2, 4, seed=176), 2)),
            Case("two tokens, three to go", (normal(4, seed=177), normal(2, 4, seed=178), 3)),
            Case("all to go", (normal(3, seed=179), normal(4, 3, seed=180), 3)),
            Case("one loud input", (normal(5, seed=150), normal(9, 5, seed=151) * torch.tensor([1, 1, 40, 1, 1.0]), 2)),
            Case("nothing to prune", (normal(4, seed=152), normal(6, 4, seed=153), 0)),
        ]
    ),
)

EXERCISES = [input_cost, best_mask]
