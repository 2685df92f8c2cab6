"""The exercises of chapter 04: the factor for the other direction, 2:4 chosen on the way, SparseGPT."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.linalg import cholesky, inv

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import above, given, then, transposed
from minprune.course.checks.predictions import Predictions
from minprune.course.checks.values import normal
from minprune.patterns import Unstructured, keep_largest


def upper(H: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse, the long way: factorise, invert, factorise."""
    return cholesky(inv(H), upper=True)


_lower = transposed(upper)


# backward_factor(H): what SparseGPT needs if it visits the columns from right to left
def _backward_factor(H: Tensor) -> Tensor:
    return inv(cholesky(H))


def _hessian(d_in: int, seed: int) -> Tensor:
    X = normal(5 * d_in, d_in, seed=seed) + normal(5 * d_in, 1, seed=seed + 1)  # one cause that all inputs share
    return X.T @ X / (5 * d_in) + 0.05 * torch.eye(d_in)


backward_factor = Exercise(
    name="backward_factor",
    chapter=4,
    title="the factor whose rows are the updates when columns are visited from right to left",
    reference=_backward_factor,
    difficulty=3,
    rtol=1e-3,
    atol=1e-4,
    wrong=mistakes(
        {
            "left to right": upper,
            "lower factor of the inverse": transposed(upper),
            "factor of H": cholesky,
            "transposed": transposed(_backward_factor),
            "the inverse itself": inv,
            "reversed on one side only": lambda H: upper(H.flip(0, 1)).flip(0),
            "unit diagonal": lambda H: _backward_factor(H) / _backward_factor(H).diagonal()[:, None],
        },
        """
        left to right: This is the factor for columns visited from left to right. Here the columns still to come are
          those with a *lower* index.
        lower factor of the inverse: It is lower triangular, and F F^T is the inverse. The rows are needed, so F^T F has
          to be.
        factor of H: This is the Cholesky factor of H itself. Its rows tell how inputs go together, not how one stands
          in for another.
        transposed: It is the transpose of what is needed: its columns hold the updates, not its rows.
        the inverse itself: This is the whole inverse. Up to a factor it is right for the first column that is visited.
        reversed on one side only: The order was reversed in the rows, but not in the columns (or the other way round).
        unit diagonal: The rows have the right direction, but their diagonal is 1. It should be the root of the pivot,
          so that F^T F is the inverse.
        """,
    ),
    cases=lambda: [
        Case("two inputs", (torch.tensor([[2.0, 1.0], [1.0, 5.0]]),)),
        Case("four inputs", (_hessian(4, 430),)),
        Case(
            "nine inputs of different loudness", (_hessian(9, 432) * torch.outer(*[torch.arange(1.0, 10.0)] * 2) / 9,)
        ),
        Case("uncorrelated inputs", (torch.diag(torch.tensor([4.0, 1.0, 9.0])),)),
    ],
)


# surgeon_2_4(W, U): two kept of every four, chosen when the group is reached
@dataclass(frozen=True)
class _TwoFour:
    """Column by column with the given factor; the defaults are right.

    price: (w, W, U, columns) -> scores (d_out, 4). choose: scores -> keep (d_out, 4). divide: U -> (d_in,).
    """

    price: Callable[[Tensor, Tensor, Tensor, slice], Tensor] = lambda w, W, U, c: (w[:, c] / U.diagonal()[c]).square()
    choose: Callable[[Tensor], Tensor] = lambda scores: keep_largest(scores, 2)
    divide: Callable[[Tensor], Tensor] = torch.diagonal
    updates: bool = True

    def __call__(self, W: Tensor, U: Tensor) -> Tensor:
        w, keep, scale = W.clone(), torch.ones_like(W, dtype=torch.bool), self.divide(U)
        for q in range(W.shape[1]):
            if q % 4 == 0:
                columns = slice(q, q + 4)
                keep[:, columns] = self.choose(self.price(w, W, U, columns))
            error = w[:, q] / scale[q] * ~keep[:, q]  # (d_out,)
            if self.updates:
                w[:, q:] -= torch.outer(error, U[q, q:])
            w[:, q] *= keep[:, q]
        return w


def _within_groups(U: Tensor) -> Tensor:
    """The factor without what leads from one group of four to another."""
    group = torch.arange(len(U)) // 4
    return U * (group[:, None] == group)


surgeon_2_4 = Exercise(
    name="surgeon_2_4",
    chapter=4,
    title="2:4 with updates: the two cheapest of four go, chosen when their group is reached",
    reference=_TwoFour(),
    difficulty=4,
    rtol=1e-3,
    atol=1e-4,
    zeros=True,
    wrong=mistakes(
        {
            "chosen from the original weights": _TwoFour(price=lambda w, W, U, c: (W[:, c] / U.diagonal()[c]).square()),
            "the same columns for all rows": _TwoFour(choose=lambda S: keep_largest(S.sum(0, True), 2).expand_as(S)),
            "magnitude": _TwoFour(price=lambda w, W, U, c: w[:, c].abs()),
            "diagonal not squared in the cost": _TwoFour(price=lambda w, W, U, c: w[:, c].square() / U.diagonal()[c]),
            "one ranking over all rows": _TwoFour(
                choose=lambda S: keep_largest(S.reshape(1, -1), S.numel() // 2).view(S.shape)
            ),
            "the costliest pruned": _TwoFour(choose=lambda scores: ~keep_largest(scores, 2)),
            "three of four pruned": _TwoFour(choose=lambda scores: keep_largest(scores, 3)),
            "half of each row": _TwoFour(
                lambda w, W, U, c: keep_largest((W / U.diagonal()).square(), W.shape[1] // 2)[:, c], torch.clone
            ),
            "error not divided by the diagonal": _TwoFour(divide=lambda U: torch.ones(len(U)).to(U)),
            "no update": _TwoFour(updates=False),
            "updates stay in their group": given(_TwoFour(), U=_within_groups),
        },
        """
        chosen from the original weights: The costs were taken from W as it was, but when a group is reached the groups
          before it have changed it.
        the same columns for all rows: All rows lost the same two columns of each group. 2:4 lets every row choose its
          own.
        one ranking over all rows: The four columns lost half of their weights, the cheapest of all rows together. 2:4
          asks for two of four in *each* row.
        magnitude: The two smallest magnitudes went. The cost of a weight also depends on its column's pivot.
        diagonal not squared in the cost: The cost divides w^2 by the diagonal of the factor. Which of its powers is the
          pivot of the inverse?
        the costliest pruned: The two cheapest weights of each group stayed and the other two went.
        three of four pruned: Three weights of each group went. Is the threshold's own weight on the right side?
        half of each row: Half of every row went, but not two of every four neighbours.
        error not divided by the diagonal: The updates are off by a factor that differs from column to column. What must
          the update make of weight q itself?
        no update: The weights that stay are as they were. They should make up for those that go: row q of U says how,
          from its diagonal to the right.
        updates stay in their group: A lost weight was made up for by the others of its group only. All columns to its
          right can help.
        """,
    ),
    cases=lambda: [
        Case("one group", (normal(5, 4, seed=440), upper(_hessian(4, 441)))),
        Case("five groups", (normal(9, 20, seed=443), upper(_hessian(20, 444)))),
        Case("inputs of different loudness", (normal(6, 8, seed=446), upper(_spread(8, 447)))),
    ],
)


def _spread(d_in: int, seed: int) -> Tensor:
    """The Hessian of inputs between 0.5 and 4 times as loud as usual."""
    loudness = torch.tensor([0.5, 2.0, 4.0, 1.0]).repeat(d_in // 4)
    return _hessian(d_in, seed) * torch.outer(loudness, loudness)


# sparsegpt(W, G, sparsity, block_size, damp): the pruned and updated weights
def _together(scores: Tensor, s: float) -> Tensor:
    """Keep the best of a block, all of its rows and columns in one line."""
    return Unstructured(s, "layer").keep(scores)


@dataclass(frozen=True)
class Recipe:
    """SparseGPT with every place exposed at which people go wrong; the defaults are right.

    factor: H -> A, whose row q carries the error of column q. divide: A -> what the error is divided by, (d_in,).
    price: (w, A, H) -> scores (d_out, d_in). select: (scores of a block, sparsity) -> keep. damped: (G, damp) -> H.
    fresh: score the weights as updated so far. current: prune them as updated so far. reach: how far an error is
    sent: "right", "block" or "both". dead: weights on dead inputs go "first", are "unknown" or all "zeroed".
    remask: pruned weights are zero at the end. sign: of the update. result: what comes back.
    """

    factor: Callable[[Tensor], Tensor] = upper
    divide: Callable[[Tensor], Tensor] = torch.diagonal
    price: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda w, A, H: (w / A.diagonal()).square()
    select: Callable[[Tensor, float], Tensor] = _together
    damped: Callable[[Tensor, float], Tensor] = lambda G, damp: G + damp * G.diagonal().mean() * torch.eye(len(G)).to(G)
    fresh: bool = True
    current: bool = True
    reach: str = "right"
    dead: str = "first"
    remask: bool = True
    sign: int = 1
    one_block: bool = False
    whole_blocks_only: bool = False
    result: Callable[[Tensor], Tensor] = lambda w: w

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
        return self.result(w * keep if self.remask else w)


def _above(to_integer: Callable[[float], int]) -> Callable[[Tensor, float], Tensor]:
    return lambda scores, s: above(scores.flatten(), s, to_integer).view(scores.shape)


def _by_row(scores: Tensor, s: float) -> Tensor:
    """Keep the best of each row of a block."""
    return Unstructured(s, "row").keep(scores)


def _inverse_price(w: Tensor, A: Tensor, H: Tensor) -> Tensor:
    """The cost if A is an inverse; wrong if it is a factor."""
    return w.square() / A.diagonal()


_WRONG = mistakes(
    {
        "inverse not updated": Recipe(inv, price=_inverse_price),
        "updates from the whole inverse": Recipe(inv, price=lambda w, A, H: (w / upper(H).diagonal()).square()),
        "inverse instead of its Cholesky factor": Recipe(inv),
        "factor of H instead of its inverse": Recipe(factor=lambda H: cholesky(H, upper=True)),
        "lower instead of upper factor, or no update": Recipe(factor=_lower),
        "factor for the other direction": Recipe(factor=transposed(_backward_factor)),
        "w^2/H in place of w^2/[H^-1]": Recipe(price=lambda w, A, H: w.square() / H.diagonal()),
        "w^2 H, Wanda's cost": Recipe(price=lambda w, A, H: w.square() * H.diagonal()),
        "cost from the whole inverse": Recipe(price=lambda w, A, H: w.square() / inv(H).diagonal()),
        "diagonal not squared in the cost": Recipe(price=_inverse_price),
        "magnitude thresholds": [Recipe(price=lambda w, A, H: w.abs(), select=how) for how in (_together, _by_row)],
        "mask from the original weights": Recipe(fresh=False),
        "compared within rows": Recipe(select=_by_row),
        "compared over the whole layer": Recipe(one_block=True),
        "<= sorted[k]": [Recipe(select=_above(int)), Recipe(select=_above(round))],
        "rounded down": Recipe(select=lambda S, s: keep_largest(S.reshape(1, -1), int(s * S.numel())).view(S.shape)),
        "error not divided by the diagonal": Recipe(divide=lambda A: torch.ones(len(A)).to(A)),
        "error divided twice": Recipe(divide=lambda A: A.diagonal().square()),
        "wrong sign": Recipe(sign=-1),
        "error from the weights at the start of the block": Recipe(current=False),
        "errors stay in their block": Recipe(reach="block"),
        "updates leak to the left": [
            Recipe(inv, price=_inverse_price, reach="both"),
            Recipe(factor=_lower, reach="both"),
        ],
        "pruned weights come back": [
            Recipe(inv, price=_inverse_price, reach="both", remask=False),
            Recipe(factor=_lower, reach="both", remask=False),
        ],
        "damping is absolute": Recipe(damped=lambda G, damp: G + damp * torch.eye(len(G)).to(G)),
        "fraction of the trace": Recipe(damped=lambda G, damp: G + damp * G.trace() * torch.eye(len(G)).to(G)),
        "sparsity taken as the share kept": Recipe(select=lambda scores, s: _together(scores, 1 - s)),
        "the costliest pruned": [
            Recipe(select=lambda scores, s: _together(-scores, s)),
            Recipe(select=lambda scores, s: ~_together(scores, s)),
        ],
        "mask instead of weights": Recipe(result=lambda w: w != 0),
        "last block left dense": Recipe(whole_blocks_only=True),
        "dead inputs not recognised": Recipe(dead="unknown"),
        "dead inputs zeroed beyond the count": Recipe(dead="zeroed"),
    },
    """
    inverse not updated: The inverse is the same for every column. When a column is done the others live in a
      smaller problem, and its inverse is another one: compare the row that you use for the last column with 1 / H
      of that column.
    updates from the whole inverse: The costs are right. The updates come from the inverse of all of H, as if the
      columns already dealt with could still help.
    inverse instead of its Cholesky factor: The rows and the diagonal are those of the inverse, used as if it were
      its Cholesky factor.
    factor of H instead of its inverse: This is the Cholesky factor of H itself. Which matrix holds what the other
      weights must do when one is gone?
    lower instead of upper factor, or no update: No weight makes up for any other: what stays is as it was. If you
      do send updates, look at row q of your factor: a lower triangular one has nothing to the right of the
      diagonal, and that is what `cholesky` returns by default.
    factor for the other direction: Your factor is upper triangular and its product with its own transpose is the
      inverse, but in the wrong order: multiply U^T U out and compare.
    w^2/H in place of w^2/[H^-1]: The cost divides by the diagonal of H, so weights on loud inputs look cheap. It is
      the inverse's diagonal.
    w^2 H, Wanda's cost: This is what a weight costs if nothing makes up for it, as in Wanda. Here something does.
    cost from the whole inverse: The updates are right. The costs come from the inverse of all of H, as if the
      columns already dealt with could still help.
    diagonal not squared in the cost: The cost divides w^2 by the diagonal of the factor. Which of its powers is the
      diagonal of the inverse?
    magnitude thresholds: The mask is that of the magnitudes (of the updated weights). The cost of removing a weight
      also depends on how well the inputs still to come can stand in for its own.
    mask from the original weights: The costs were taken from W as it was. By the time a block is reached, the
      blocks before it have changed it.
    compared within rows: Each row of a block lost its own share. Compare the weights of all rows in the block.
    compared over the whole layer: All columns were one block, and the whole mask was chosen before the first of them.
      Choose it block by block. Is there a fixed number, say 128, where `block_size` belongs?
    <= sorted[k]: Too many weights go from a block: the sorted scores are counted from 0, and `<=` prunes the
      threshold too.
    rounded down: The number of zeros was rounded down instead of to the nearest integer.
    error not divided by the diagonal: The updates are too large or too small by a factor that differs from column
      to column. What must the update make of weight q itself?
    error divided twice: The error is divided by the diagonal once too often. What must the update make of weight q
      itself?
    wrong sign: The updates go in the wrong direction: they add to the error instead of making up for it.
    error from the weights at the start of the block: A column's error came from its weights as they were when the
      block began. Columns before it changed them.
    errors stay in their block: Within a block all is well, but no error reaches the columns of the later blocks.
    updates leak to the left: Errors were also sent to the left, to columns that had been dealt with. Weight q may
      be made up for by the columns after it only: what is left of it is settled.
    pruned weights come back: Weights that had been set to zero are not zero in the end: later updates have changed
      them. Which columns may an update touch?
    damping is absolute: `damp` itself was added to the diagonal. It is a fraction of the mean of the diagonal.
    fraction of the trace: The damping is a fraction of the mean of the diagonal, not of its sum.
    sparsity taken as the share kept: `sparsity` is the share of weights that go, not of those that stay.
    the costliest pruned: The weights that cost most went, and the cheapest stayed. Your mask is True for what goes, or
      your scores are sorted from the wrong end.
    mask instead of weights: The mask came back. Return the weights, pruned and updated.
    last block left dense: When block_size does not divide the number of columns, the narrow block at the end was
      not pruned.
    dead inputs not recognised: An input that is always zero has only its damping on the diagonal, so a large weight
      on it looks costly. What does the output lose when it goes?
    dead inputs zeroed beyond the count: All weights on inputs that are always zero went, even where fewer were
      asked for. They go first, but count.
    """,
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
    difficulty=4,
    rtol=1e-3,
    atol=1e-4,
    zeros=True,
    wrong=_WRONG + _ALIVE_ONLY,
    cases=_cases,
)


# predict_changes(changes): whether SparseGPT's result changes with the numbered change, up to that change itself
_CHANGES = (False, False, True, False, False, True, True, False)  # 1 to 8


def _predicted(changes: Tensor, wrong: tuple[int, ...] = ()) -> Tensor:
    right = torch.tensor(_CHANGES)[changes - 1]
    return right ^ torch.isin(changes, torch.tensor(wrong, dtype=changes.dtype))


predict_changes = Predictions(
    name="predict_changes",
    chapter=4,
    title="which of eight changes of the weights, the inputs or the options change SparseGPT's result",
    reference=_predicted,
    difficulty=3,
    wrong=mistakes(
        {
            "twice the tokens": partial(_predicted, wrong=(1,)),
            "louder inputs": partial(_predicted, wrong=(2,)),
            "a factor in H": partial(_predicted, wrong=(1, 2)),
            "a louder row": partial(_predicted, wrong=(3,)),
            "a louder row on its own": partial(_predicted, wrong=(4,)),
            "rows taken the wrong way round": partial(_predicted, wrong=(3, 4)),
            "rows in another order": partial(_predicted, wrong=(5,)),
            "inputs in another order": partial(_predicted, wrong=(6,)),
            "orders taken the wrong way round": partial(_predicted, wrong=(5, 6)),
            "smaller blocks": partial(_predicted, wrong=(7,)),
            "smaller blocks with a given mask": partial(_predicted, wrong=(8,)),
            "blocks taken the wrong way round": partial(_predicted, wrong=(7, 8)),
            "inverted": then(_predicted, torch.logical_not),
        },
        """
        twice the tokens: What becomes of G if every token is there twice, and what of
          the damping, which is a fraction of its diagonal?
        louder inputs: What becomes of G if all inputs are doubled, and what of the
          damping, which is a fraction of its diagonal?
        a factor in H: Both of the first two multiply G by a number. Follow it through the damping, the factor and the
          costs: what is compared with what?
        a louder row: The pattern ranks the costs of all rows of a block in one list. What if the costs of one row are
          four times as high?
        a louder row on its own: With 50%:row a row's costs are compared with each other only. Does a common factor
          change their order?
        rows taken the wrong way round: In which of the two patterns are the costs of different rows compared?
        rows in another order: Do rows know of each other in any way that depends on their order?
        inputs in another order: A weight can be made up for only by those behind it. Who is behind it now?
        orders taken the wrong way round: SparseGPT goes through one of the two, rows or inputs, in order. Which?
        smaller blocks: The mask of a block is chosen when it is reached. With smaller blocks other weights compete, and
          later.
        smaller blocks with a given mask: If the mask is given, all that a block decides is when the updates of the
          columns behind it are added up.
        blocks taken the wrong way round: What does a block decide, apart from the moment of adding up?
        inverted: All eight are the wrong way round: True means that a weight changes.
        """,
    ),
    cases=lambda: [
        *(Case(f"change {place}", (torch.tensor([place]),)) for place in range(1, 9)),
        Case("all eight", (torch.arange(1, 9),)),
        Case("some, in another order", (torch.tensor([6, 2, 7]),)),
    ],
)

EXERCISES = [backward_factor, surgeon_2_4, sparsegpt, predict_changes]
