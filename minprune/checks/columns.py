"""The last exercise of chapter 04: SparseGPT from an empty cell, told from each of its known bugs by name."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.checks.core import Case, Exercise, Wrong
from minprune.checks.factors import upper
from minprune.checks.values import normal
from minprune.patterns import Unstructured, keep_largest

# sparsegpt(W, G, sparsity, block_size, damp): the pruned and updated weights


def _relative(G: Tensor, damp: float) -> Tensor:
    return G + damp * G.diagonal().mean() * torch.eye(len(G)).to(G)


def _price(w: Tensor, A: Tensor, H: Tensor) -> Tensor:
    return (w / A.diagonal()).square()


def _together(scores: Tensor, s: float) -> Tensor:
    return Unstructured(s, "layer").keep(scores)


@dataclass(frozen=True)
class _Recipe:
    """SparseGPT with every place exposed at which people go wrong; the defaults are right.

    factor: H -> A, whose row q carries the error of column q. divide: A -> what the error is divided by, (d_in,).
    price: (w, A, H) -> scores (d_out, d_in). select: (scores of a block, sparsity) -> keep. damped: (G, damp) -> H.
    fresh: score the weights as updated so far. current: prune them as updated so far. reach: how far an error is
    sent: "right", "block" or "both". dead: weights on dead inputs go "first", are "unknown" or all "zeroed".
    remask: pruned weights are zero at the end. sign: of the update.
    """

    factor: Callable[[Tensor], Tensor] = upper
    divide: Callable[[Tensor], Tensor] = torch.diagonal
    price: Callable[[Tensor, Tensor, Tensor], Tensor] = _price
    select: Callable[[Tensor, float], Tensor] = _together
    damped: Callable[[Tensor, float], Tensor] = _relative
    fresh: bool = True
    current: bool = True
    reach: str = "right"
    dead: str = "first"
    remask: bool = True
    sign: int = 1
    one_block: bool = False
    whole_blocks_only: bool = False

    def __call__(self, W: Tensor, G: Tensor, sparsity: float, block_size: int, damp: float) -> Tensor:
        d_in, dead = len(G), G.diagonal() == 0
        if self.dead == "zeroed":
            W, G = W.masked_fill(dead, 0), G + torch.diag(dead.to(G))
        H = self.damped(G, damp)
        A = self.factor(H)
        w, keep, scale = W.clone(), torch.ones_like(W, dtype=torch.bool), self.divide(A)
        block_size = d_in if self.one_block else block_size
        for start in range(0, d_in, block_size):
            end = min(start + block_size, d_in)
            scores = self.price(w if self.fresh else W, A, H)
            scores = scores.masked_fill(dead & (self.dead == "first"), 0)[:, start:end]
            if not (self.whole_blocks_only and end - start < block_size):
                keep[:, start:end] = self.select(scores, sparsity)
            first = w.clone()
            for q in range(start, end):
                error = (w if self.current else first)[:, q] / scale[q] * ~keep[:, q]  # (d_out,)
                to = {"right": slice(q, d_in), "block": slice(q, end), "both": slice(0, d_in)}[self.reach]
                w[:, to] -= self.sign * torch.outer(error, A[q, to])
                w[:, q] *= keep[:, q]
        return w * keep if self.remask else w


def _above(to_integer: Callable[[float], int]) -> Callable[[Tensor, float], Tensor]:
    """score > sorted[k] with k the number of zeros, which prunes k + 1; published code has k = int(n * s)."""

    def select(scores: Tensor, s: float) -> Tensor:
        line = scores.flatten().sort().values
        return scores > line[to_integer(s * len(line))]

    return select


def _rows(scores: Tensor, s: float) -> Tensor:
    return Unstructured(s, "row").keep(scores)


def _rounded_down(scores: Tensor, s: float) -> Tensor:
    return keep_largest(scores.reshape(1, -1), int(s * scores.numel())).view(scores.shape)


def _inverse_price(w: Tensor, A: Tensor, H: Tensor) -> Tensor:
    return w.square() / A.diagonal()  # right if A is an inverse, wrong if it is a factor


def _size(w: Tensor, A: Tensor, H: Tensor) -> Tensor:
    return w.abs()


def _backward(H: Tensor) -> Tensor:
    """An upper triangular factor with U U^T instead of U^T U."""
    return torch.linalg.inv(torch.linalg.cholesky(H)).T


def _lower(H: Tensor) -> Tensor:
    return upper(H).T


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

WRONG = (
    Wrong(
        "inverse not updated",
        _Recipe(factor=torch.linalg.inv, price=_inverse_price),
        "The inverse is the same for every column. When a column is done the others live in a smaller problem, and "
        "its inverse is another one: compare the row that you use for the last column with 1 / H of that column.",
    ),
    Wrong(
        "inverse instead of its Cholesky factor",
        _Recipe(factor=torch.linalg.inv),
        "The rows and the diagonal are those of the inverse, used as if it were its Cholesky factor.",
    ),
    Wrong(
        "factor of H instead of its inverse",
        _Recipe(factor=lambda H: torch.linalg.cholesky(H, upper=True)),
        "This is the Cholesky factor of H itself. Which matrix holds what the other weights must do when one is gone?",
    ),
    Wrong("lower instead of upper factor, or no update", _Recipe(factor=_lower), _NOTHING),
    Wrong(
        "factor for the other direction",
        _Recipe(factor=_backward),
        "Your factor is upper triangular and its product with its own transpose is the inverse, but in the wrong "
        "order: multiply U^T U out and compare.",
    ),
    Wrong(
        "w^2/H in place of w^2/[H^-1]",
        _Recipe(price=lambda w, A, H: w.square() / H.diagonal()),
        "The cost divides by the diagonal of H, so weights on loud inputs look cheap. It is the inverse's diagonal.",
    ),
    Wrong(
        "w^2 H, Wanda's cost",
        _Recipe(price=lambda w, A, H: w.square() * H.diagonal()),
        "This is what a weight costs if nothing makes up for it, as in Wanda. Here something does.",
    ),
    Wrong(
        "cost from the whole inverse",
        _Recipe(price=lambda w, A, H: w.square() / torch.linalg.inv(H).diagonal()),
        "The updates are right. The costs come from the inverse of all of H, as if the columns already dealt with "
        "could still help.",
    ),
    Wrong(
        "diagonal not squared in the cost",
        _Recipe(price=_inverse_price),
        "The cost divides w^2 by the diagonal of the factor. Which of its powers is the diagonal of the inverse?",
    ),
    Wrong("magnitude thresholds", _Recipe(price=_size), _MAGNITUDE),
    Wrong("magnitude thresholds", _Recipe(price=_size, select=_rows), _MAGNITUDE),
    Wrong(
        "mask from the original weights",
        _Recipe(fresh=False),
        "The costs were taken from W as it was. By the time a block is reached, the blocks before it have changed it.",
    ),
    Wrong(
        "compared within rows",
        _Recipe(select=_rows),
        "Each row of a block lost its own share. Compare the weights of all rows in the block.",
    ),
    Wrong(
        "compared over the whole layer",
        _Recipe(one_block=True),
        "The whole mask was chosen before the first column. Choose it block by block.",
    ),
    Wrong("<= sorted[k]", _Recipe(select=_above(int)), _THRESHOLD),
    Wrong("<= sorted[k]", _Recipe(select=_above(round)), _THRESHOLD),
    Wrong(
        "rounded down",
        _Recipe(select=_rounded_down),
        "The number of zeros was rounded down instead of to the nearest integer.",
    ),
    Wrong(
        "error not divided by the diagonal",
        _Recipe(divide=lambda A: torch.ones(len(A)).to(A)),
        "The updates are too large or too small by a factor that differs from column to column. What must the update "
        "make of weight q itself?",
    ),
    Wrong(
        "error divided twice",
        _Recipe(divide=lambda A: A.diagonal().square()),
        "The error is divided by the diagonal once too often. What must the update make of weight q itself?",
    ),
    Wrong(
        "wrong sign",
        _Recipe(sign=-1),
        "The updates go in the wrong direction: they add to the error instead of making up for it.",
    ),
    Wrong(
        "error from the weights at the start of the block",
        _Recipe(current=False),
        "A column's error came from its weights as they were when the block began. Columns before it changed them.",
    ),
    Wrong(
        "errors stay in their block",
        _Recipe(reach="block"),
        "Within a block all is well, but no error reaches the columns of the later blocks.",
    ),
    Wrong("updates leak to the left", _Recipe(factor=torch.linalg.inv, price=_inverse_price, reach="both"), _LEFT),
    Wrong("updates leak to the left", _Recipe(factor=_lower, reach="both"), _LEFT),
    Wrong(
        "pruned weights come back",
        _Recipe(factor=torch.linalg.inv, price=_inverse_price, reach="both", remask=False),
        _BACK,
    ),
    Wrong(
        "pruned weights come back",
        _Recipe(factor=_lower, reach="both", remask=False),
        _BACK,
    ),
    Wrong(
        "damping is absolute",
        _Recipe(damped=lambda G, damp: G + damp * torch.eye(len(G)).to(G)),
        "`damp` itself was added to the diagonal. It is a fraction of the mean of the diagonal.",
    ),
    Wrong(
        "last block left dense",
        _Recipe(whole_blocks_only=True),
        "When block_size does not divide the number of columns, the narrow block at the end was not pruned.",
    ),
    Wrong(
        "dead inputs not recognised",
        _Recipe(dead="unknown"),
        "An input that is always zero has only its damping on the diagonal, so a large weight on it looks dear. "
        "What does the output lose when it goes?",
    ),
    Wrong(
        "dead inputs zeroed beyond the count",
        _Recipe(dead="zeroed"),
        "All weights on inputs that are always zero went, even where fewer were asked for. They go first, but count.",
    ),
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
        Case("strong damping and a count to be rounded", (normal(3, 10, seed=419), _gram(30, 10, 420), 0.45, 5, 0.4)),
    ]


sparsegpt = Exercise(
    name="sparsegpt",
    chapter=4,
    title="SparseGPT: choose block by block, prune column by column, update what is still to come",
    reference=_Recipe(),
    difficulty=5,
    rtol=1e-3,
    atol=1e-4,
    wrong=WRONG,
    cases=_cases,
)


EXERCISES = [sparsegpt]
