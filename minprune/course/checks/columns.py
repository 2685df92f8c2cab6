"""The last exercise of chapter 04: SparseGPT from an empty cell, told from each of its known bugs by name."""

from dataclasses import replace

import torch
from torch import Tensor

from minprune.course.checks.column_recipe import (
    Recipe,
    above,
    backward,
    by_row,
    inverse_price,
    lower,
    magnitude,
    rounded_down,
    together,
)
from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.factors import upper
from minprune.course.checks.values import normal

# sparsegpt(W, G, sparsity, block_size, damp): the pruned and updated weights

_NOTHING = (
    "No weight makes up for any other: what stays is as it was. If you do send updates, look at row q of your factor: "
    "a lower triangular one has nothing to the right of the diagonal, and that is what `cholesky` returns by default."
)
_MAGNITUDE = (
    "The mask is that of the magnitudes (of the updated weights). The cost of removing a weight also depends on how "
    "well the inputs still to come can stand in for its own."
)
_LEFT = (
    "Errors were also sent to the left, to columns that had been dealt with. Weight q may be made up for by the "
    "columns after it only: what is left of it is settled."
)
_BACK = (
    "Weights that had been set to zero are not zero in the end: later updates have changed them. Which columns may an "
    "update touch?"
)
_THRESHOLD = (
    "Too many weights go from a block: the sorted scores are counted from 0, and `<=` prunes the threshold too."
)

_WRONG = (
    Wrong(
        "inverse not updated",
        Recipe(factor=torch.linalg.inv, price=inverse_price),
        "The inverse is the same for every column. When a column is done the others live in a smaller problem, and "
        "its inverse is another one: compare the row that you use for the last column with 1 / H of that column.",
    ),
    Wrong(
        "updates from the whole inverse",
        Recipe(factor=torch.linalg.inv, price=lambda w, A, H: (w / upper(H).diagonal()).square()),
        "The costs are right. The updates come from the inverse of all of H, as if the columns already dealt with "
        "could still help.",
    ),
    Wrong(
        "inverse instead of its Cholesky factor",
        Recipe(factor=torch.linalg.inv),
        "The rows and the diagonal are those of the inverse, used as if it were its Cholesky factor.",
    ),
    Wrong(
        "factor of H instead of its inverse",
        Recipe(factor=lambda H: torch.linalg.cholesky(H, upper=True)),
        "This is the Cholesky factor of H itself. Which matrix holds what the other weights must do when one is gone?",
    ),
    Wrong("lower instead of upper factor, or no update", Recipe(factor=lower), _NOTHING),
    Wrong(
        "factor for the other direction",
        Recipe(factor=backward),
        "Your factor is upper triangular and its product with its own transpose is the inverse, but in the wrong "
        "order: multiply U^T U out and compare.",
    ),
    Wrong(
        "w^2/H in place of w^2/[H^-1]",
        Recipe(price=lambda w, A, H: w.square() / H.diagonal()),
        "The cost divides by the diagonal of H, so weights on loud inputs look cheap. It is the inverse's diagonal.",
    ),
    Wrong(
        "w^2 H, Wanda's cost",
        Recipe(price=lambda w, A, H: w.square() * H.diagonal()),
        "This is what a weight costs if nothing makes up for it, as in Wanda. Here something does.",
    ),
    Wrong(
        "cost from the whole inverse",
        Recipe(price=lambda w, A, H: w.square() / torch.linalg.inv(H).diagonal()),
        "The updates are right. The costs come from the inverse of all of H, as if the columns already dealt with "
        "could still help.",
    ),
    Wrong(
        "diagonal not squared in the cost",
        Recipe(price=inverse_price),
        "The cost divides w^2 by the diagonal of the factor. Which of its powers is the diagonal of the inverse?",
    ),
    Wrong("magnitude thresholds", Recipe(price=magnitude), _MAGNITUDE),
    Wrong("magnitude thresholds", Recipe(price=magnitude, select=by_row), _MAGNITUDE),
    Wrong(
        "mask from the original weights",
        Recipe(fresh=False),
        "The costs were taken from W as it was. By the time a block is reached, the blocks before it have changed it.",
    ),
    Wrong(
        "compared within rows",
        Recipe(select=by_row),
        "Each row of a block lost its own share. Compare the weights of all rows in the block.",
    ),
    Wrong(
        "compared over the whole layer",
        Recipe(one_block=True),
        "The whole mask was chosen before the first column. Choose it block by block.",
    ),
    Wrong("<= sorted[k]", Recipe(select=above(int)), _THRESHOLD),
    Wrong("<= sorted[k]", Recipe(select=above(round)), _THRESHOLD),
    Wrong(
        "rounded down",
        Recipe(select=rounded_down),
        "The number of zeros was rounded down instead of to the nearest integer.",
    ),
    Wrong(
        "error not divided by the diagonal",
        Recipe(divide=lambda A: torch.ones(len(A)).to(A)),
        "The updates are too large or too small by a factor that differs from column to column. What must the update "
        "make of weight q itself?",
    ),
    Wrong(
        "error divided twice",
        Recipe(divide=lambda A: A.diagonal().square()),
        "The error is divided by the diagonal once too often. What must the update make of weight q itself?",
    ),
    Wrong(
        "wrong sign",
        Recipe(sign=-1),
        "The updates go in the wrong direction: they add to the error instead of making up for it.",
    ),
    Wrong(
        "error from the weights at the start of the block",
        Recipe(current=False),
        "A column's error came from its weights as they were when the block began. Columns before it changed them.",
    ),
    Wrong(
        "errors stay in their block",
        Recipe(reach="block"),
        "Within a block all is well, but no error reaches the columns of the later blocks.",
    ),
    Wrong("updates leak to the left", Recipe(factor=torch.linalg.inv, price=inverse_price, reach="both"), _LEFT),
    Wrong("updates leak to the left", Recipe(factor=lower, reach="both"), _LEFT),
    Wrong(
        "pruned weights come back",
        Recipe(factor=torch.linalg.inv, price=inverse_price, reach="both", remask=False),
        _BACK,
    ),
    Wrong(
        "pruned weights come back",
        Recipe(factor=lower, reach="both", remask=False),
        _BACK,
    ),
    Wrong(
        "damping is absolute",
        Recipe(damped=lambda G, damp: G + damp * torch.eye(len(G)).to(G)),
        "`damp` itself was added to the diagonal. It is a fraction of the mean of the diagonal.",
    ),
    Wrong(
        "fraction of the trace",
        Recipe(damped=lambda G, damp: G + damp * G.trace() * torch.eye(len(G)).to(G)),
        "The damping is a fraction of the mean of the diagonal, not of its sum.",
    ),
    Wrong(
        "sparsity taken as the share kept",
        Recipe(select=lambda scores, s: together(scores, 1 - s)),
        "`sparsity` is the share of weights that go, not of those that stay.",
    ),
    Wrong(
        "mask instead of weights",
        Recipe(result=lambda w: w != 0),
        "The mask came back. Return the weights, pruned and updated.",
    ),
    Wrong(
        "last block left dense",
        Recipe(whole_blocks_only=True),
        "When block_size does not divide the number of columns, the narrow block at the end was not pruned.",
    ),
    Wrong(
        "dead inputs not recognised",
        Recipe(dead="unknown"),
        "An input that is always zero has only its damping on the diagonal, so a large weight on it looks dear. "
        "What does the output lose when it goes?",
    ),
    Wrong(
        "dead inputs zeroed beyond the count",
        Recipe(dead="zeroed"),
        "All weights on inputs that are always zero went, even where fewer were asked for. They go first, but count.",
    ),
)

# Who makes one of these mistakes has often not thought of dead inputs, either: the first mistake is the one to name.
_SAME_ON_DEAD = ("inverse instead of its Cholesky factor", "damping is absolute")  # on the cases it makes no difference
_ALIVE_ONLY = tuple(
    replace(wrong, function=replace(wrong.function, dead="unknown"))
    for wrong in _WRONG
    if isinstance(wrong.function, Recipe) and wrong.function.dead == "first" and wrong.name not in _SAME_ON_DEAD
)


def _gram(tokens: int, d_in: int, seed: int, scale: Tensor | float = 1.0) -> Tensor:
    """The Gram matrix of inputs that share a cause, (d_in, d_in)."""
    mixing = torch.eye(d_in) + 0.4 * normal(d_in, d_in, seed=seed + 1)
    X = (normal(tokens, d_in, seed=seed) @ mixing + 0.8 * normal(tokens, 1, seed=seed + 2)) * scale
    return X.T @ X


def _cases() -> list[Case]:
    loud = torch.tensor([4.0, 0.3, 1.0, 0.2, 3.0, 1.0, 0.5, 2.0])
    alive = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    on_dead = normal(5, 8, seed=415) + 9 * (1 - alive)
    return [
        Case("a small layer in one block", (normal(4, 6, seed=401), _gram(50, 6, 402), 0.5, 128, 0.01)),
        Case("three blocks", (normal(5, 12, seed=405), _gram(60, 12, 406), 0.5, 4, 0.01)),
        Case("a last block that is narrower", (normal(4, 7, seed=409), _gram(40, 7, 410), 0.5, 3, 0.01)),
        Case("loud and quiet inputs", (normal(6, 8, seed=412), _gram(60, 8, 413, loud), 0.25, 4, 0.01)),
        Case("an input that is always zero", (on_dead, _gram(60, 8, 416, alive), 0.5, 4, 0.01)),
        Case("nothing to prune and an input that is always zero", (on_dead, _gram(60, 8, 416, alive), 0.0, 4, 0.01)),
        Case("half of nine weights, where round(4.5) is 4", (normal(3, 9, seed=422), _gram(40, 9, 423), 0.5, 3, 0.01)),
        Case("strong damping and a count to be rounded", (normal(3, 10, seed=419), _gram(30, 10, 420), 0.45, 5, 0.4)),
    ]


sparsegpt = Exercise(
    name="sparsegpt",
    chapter=4,
    title="SparseGPT: choose block by block, prune column by column, update what is still to come",
    reference=Recipe(),
    difficulty=5,
    rtol=1e-3,
    atol=1e-4,
    wrong=_WRONG + _ALIVE_ONLY,
    cases=_cases,
)


EXERCISES = [sparsegpt]
