"""The exercises of chapter 02: exact counts in blocks, one threshold for a model, what magnitude cannot see."""

from collections.abc import Callable
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import ROUNDINGS, above, complement, given, inverted, then
from minprune.course.checks.values import normal
from minprune.patterns import Unstructured, keep_largest


# block_mask(W, sparsity, block_size): the keep mask of magnitude pruning within blocks of neighbouring columns
def _block_mask(W: Tensor, sparsity: float, block_size: int) -> Tensor:
    return Unstructured(sparsity, "block").keep(W.abs(), block_size)


def _per_block(W: Tensor, block_size: int, keep_of: Callable[[Tensor], Tensor]) -> Tensor:
    """A mask put together from `keep_of(scores of one block, flattened)`, each (size,) -> (size,)."""
    blocks = W.abs().split(block_size, dim=1)
    return torch.cat([keep_of(B.flatten()).view(B.shape) for B in blocks], dim=1)


def _blocks(keep_of: Callable[[Tensor, float], Tensor]) -> Callable:
    return lambda W, s, b: _per_block(W, b, lambda v: keep_of(v, s))


def _count(scores: Tensor, zeros: int) -> Tensor:
    return keep_largest(scores.unsqueeze(0), min(zeros, len(scores)))[0]


def _rounded(to_integer: Callable[[float], int]) -> Callable:
    return _blocks(lambda v, s: _count(v, to_integer(s * len(v))))


def _from_threshold(scores: Tensor, s: float, clamp: bool) -> Tensor:
    """score >= sorted[round(n * s)]: with ties at the threshold all of them stay."""
    k = round(s * len(scores))
    return scores >= scores.sort().values[min(k, len(scores) - 1) if clamp else k]


def _above_kth(at_zero: Callable[[Tensor], Tensor]) -> Callable:
    """score > the k-th smallest, k = round(n * s): right unless scores are equal. at_zero: what becomes of k = 0."""

    def keep_of(scores: Tensor, s: float) -> Tensor:
        k = round(s * len(scores))
        return scores > scores.kthvalue(k).values if k else at_zero(scores)

    return _blocks(keep_of)


def _full_blocks_only(W: Tensor, s: float, block_size: int) -> Tensor:
    whole = W.shape[1] // block_size * block_size
    keep = torch.ones_like(W, dtype=torch.bool)
    if whole:
        keep[:, :whole] = _block_mask(W[:, :whole], s, block_size)
    return keep


def _rows(W: Tensor, s: float) -> Tensor:
    return Unstructured(s, "row").keep(W.abs())


block_mask = Exercise(
    name="block_mask",
    chapter=2,
    title="the keep mask of magnitude pruning within blocks of columns, with exact counts",
    reference=_block_mask,
    difficulty=2,
    wrong=mistakes(
        {
            "<= threshold": [_blocks(partial(above, clamp=clamp)) for clamp in (False, True)],
            "ties all kept": [_blocks(partial(_from_threshold, clamp=clamp)) for clamp in (False, True)],
            "ties all pruned": [
                _above_kth(lambda v: v.kthvalue(0).values),
                _above_kth(lambda v: torch.ones_like(v, dtype=torch.bool)),
                _above_kth(lambda v: v > v.min()),
                _above_kth(lambda v: v > v.max()),
            ],
            "threshold from a quantile": [
                _blocks(lambda v, s: v > v.quantile(s)),
                _blocks(lambda v, s: v >= v.quantile(s)),
            ],
            "one too many": _rounded(lambda zeros: round(zeros) + 1),
            **{name: _rounded(rule) for name, rule in ROUNDINGS.items()},
            "inverted mask": inverted(_block_mask),
            "largest pruned": _blocks(lambda v, s: _count(-v, round(s * len(v)))),
            "signed comparison": lambda W, s, b: Unstructured(s, "block").keep(W, b),
            "compared within rows": lambda W, s, b: _rows(W, s),
            "compared over the whole layer": lambda W, s, b: Unstructured(s, "layer").keep(W.abs()),
            "rows of each block": lambda W, s, b: torch.cat([_rows(B, s) for B in W.split(b, dim=1)], dim=1),
            "blocks of rows": lambda W, s, b: _block_mask(W.T, s, b).T,
            "last block left dense": _full_blocks_only,
            "last of the ties pruned first": _blocks(lambda v, s: _count(v.flip(0), round(s * len(v))).flip(0)),
        },
        """
        <= threshold: Every weight whose magnitude *equals* the threshold went as well, and the threshold itself belongs
          to a weight. Count the zeros on a matrix with equal entries: how many of the tied weights may go?
        ties all kept: Every weight whose magnitude equals the threshold stayed, so on matrices with ties too few were
          pruned. Comparing with a threshold cannot split a tie; something else must.
        ties all pruned: Where all magnitudes differ this is right. Where several equal the threshold, all of them went
          and not as many as were asked for: a comparison with a threshold cannot split a tie. What does it do at 0 %,
          where nothing may go?
        threshold from a quantile: It looks as if a quantile was the threshold. It lies at s (n - 1) of the way through
          n sorted magnitudes, between two of them or on one. How many are below it, also at 0 % and 100 % and where
          magnitudes are equal?
        one too many: One weight too many went from every block. Does your threshold's own weight fall on the right
          side?
        rounded down: The number of zeros was rounded down instead of to the nearest integer. What is 0.29 * 100 in
          floating point?
        rounded up: The number of zeros was rounded up instead of to the nearest integer.
        halves rounded up: A half was rounded up. Python's `round` takes a half to the even neighbour, and so does this
          book: round(2.5) is 2 and round(3.5) is 4. Where does your rounding come from?
        inverted mask: The mask is the opposite of what was asked for: in minprune True means *kept*.
        largest pruned: The count is right, but the largest weights went and the smallest stayed. Check the order of
          your sort.
        signed comparison: Strongly negative weights were treated as small. Magnitude has no sign.
        compared within rows: Each row lost its own share. The comparison group asked for is a block of columns, all
          rows together.
        compared over the whole layer: One line was made of the whole matrix, so some blocks lost more than their share
          and others less.
        rows of each block: Inside each block every row lost its own share. All weights of a block should stand in one
          line.
        blocks of rows: The matrix was cut into blocks of rows. Columns are the second dimension of W (d_out, d_in).
        last block left dense: When block_size does not divide the number of columns, the narrow block at the end was
          not pruned.
        last of the ties pruned first: The count is right, but of equal magnitudes the *lower* index (in row-major order
          of the block) is to go first.
        """,
    ),
    cases=lambda: [
        Case("a random matrix", (normal(4, 6, seed=0), 0.5, 3)),
        Case("a random matrix at low sparsity", (normal(6, 8, seed=1), 0.2, 4)),
        Case("a count that is no whole number", (normal(3, 14, seed=2), 0.75, 7)),
        Case("a matrix of few distinct values", (normal(6, 8, seed=3).mul(2).round(), 0.5, 4)),
        Case("rows of very different size", (normal(4, 8, seed=4) * torch.tensor([[0.1], [1], [5], [9]]), 0.4, 4)),
        Case("a last block that is narrower", (normal(4, 7, seed=8), 0.5, 3)),
        Case("a matrix of equal entries", (torch.full((3, 10), -0.5), 0.4, 5)),
        Case("a block wider than the matrix", (normal(4, 5, seed=9), 0.3, 128)),
        Case("sparsity 0", (normal(3, 4, seed=5), 0.0, 2)),
        Case("sparsity 1", (normal(3, 4, seed=6), 1.0, 2)),
        Case("0.29 of 100 weights", (normal(10, 20, seed=7), 0.29, 10)),
        Case("half of five weights and half of seven", (normal(1, 12, seed=11), 0.5, 5)),
        Case("half of three, five and seven weights", (normal(1, 7, seed=12), 0.5, 7)),
        Case("a block of each column", (normal(3, 4, seed=13), 0.5, 1)),
    ],
)


# global_sparsities(weights, sparsity): how much of each layer one threshold over the whole model prunes
def _global_keep(weights: list[Tensor], zeros: int) -> list[Tensor]:
    keep = keep_largest(torch.cat([W.flatten() for W in weights]).unsqueeze(0), zeros)
    return [
        part.view(W.shape) for part, W in zip(keep.split([W.numel() for W in weights], dim=1), weights, strict=True)
    ]


def _total(weights: list[Tensor]) -> int:
    return sum(W.numel() for W in weights)


def _pruned_shares(keeps: list[Tensor]) -> Tensor:
    return torch.stack([1 - keep.float().mean() for keep in keeps])


def _global_sparsities(weights: list[Tensor], sparsity: float, to_integer: Callable[[float], int] = round) -> Tensor:
    return _pruned_shares(_global_keep([W.abs() for W in weights], to_integer(sparsity * _total(weights))))


def _mean_threshold(weights: list[Tensor], sparsity: float) -> Tensor:
    """The average of the layers' own thresholds, applied everywhere."""
    own = [W.abs().flatten().sort().values[max(round(sparsity * W.numel()) - 1, 0)] for W in weights]
    return _pruned_shares([W.abs() > torch.stack(own).mean() for W in weights])


def _of_the_model(weights: list[Tensor], sparsity: float) -> Tensor:
    sizes = torch.tensor([float(W.numel()) for W in weights])
    return _global_sparsities(weights, sparsity) * sizes / sizes.sum()


def _layers(*scales: float, seed: int) -> list[Tensor]:
    shapes = [(4, 6), (8, 5), (3, 7)]
    return [normal(*shapes[i % 3], seed=seed + i) * scale for i, scale in enumerate(scales)]


global_sparsities = Exercise(
    name="global_sparsities",
    chapter=2,
    title="how much of each layer goes when one threshold is used for the whole model",
    reference=_global_sparsities,
    difficulty=3,
    wrong=mistakes(
        {
            "same for every layer": lambda weights, s: torch.tensor(
                [round(s * W.numel()) / W.numel() for W in weights]
            ),
            "average of thresholds": _mean_threshold,
            "kept instead of pruned": complement(_global_sparsities),
            "divided by the whole model": _of_the_model,
            "layers normalised first": lambda weights, s: _global_sparsities([W / W.abs().mean() for W in weights], s),
            "signed comparison": lambda weights, s: _pruned_shares(_global_keep(weights, round(s * _total(weights)))),
            **{name: partial(_global_sparsities, to_integer=rule) for name, rule in ROUNDINGS.items()},
            "everything at sparsity 0": lambda weights, s: _global_sparsities(weights, s or 1.0),
        },
        """
        same for every layer: Every layer lost the same share, as if each had a threshold of its own. All magnitudes of
          all layers must stand in one line.
        average of thresholds: It looks as if each layer's own threshold was computed and these were averaged. The
          threshold of all weights together is something else.
        kept instead of pruned: These are the fractions *kept*. Sparsity is the fraction pruned.
        divided by the whole model: Each layer's zeros were divided by the number of weights of the whole model, not of
          that layer: the shares of different layers cannot be compared like that.
        layers normalised first: The magnitudes were divided by a layer's own mean before they were compared. That is a
          defensible method, but not this one: here a weight's value counts, wherever it stands.
        signed comparison: Strongly negative weights were treated as small. Magnitude has no sign.
        rounded down: The number of zeros was rounded down instead of to the nearest integer.
        rounded up: The number of zeros was rounded up instead of to the nearest integer.
        halves rounded up: A half was rounded up. Python's `round` takes a half to the even neighbour, and so does this
          book: round(2.5) is 2 and round(3.5) is 4. Where does your rounding come from?
        everything at sparsity 0: At sparsity 0 all weights went. If the threshold is the k-th smallest magnitude, which
          one is it if k is 0?
        """,
    ),
    cases=lambda: [
        Case("two layers of the same scale", (_layers(1.0, 1.0, seed=10), 0.5)),
        Case("three layers of different scales", (_layers(1.0, 0.5, 2.0, seed=20), 0.5)),
        Case("a layer that is much smaller than the others", (_layers(1.0, 0.01, 1.0, seed=30), 0.4)),
        Case("a low sparsity", (_layers(0.7, 1.3, 1.0, seed=40), 0.1)),
        Case("a single layer", (_layers(1.0, seed=50), 0.25)),
        Case("sparsity 1", (_layers(1.0, 3.0, seed=60), 1.0)),
        Case("sparsity 0", (_layers(1.0, 0.5, seed=63), 0.0)),
        Case("a count that is rounded up", (_layers(1.0, 2.0, 0.5, seed=65), 0.35)),
        Case("a count that is rounded down", (_layers(1.0, 2.0, 0.5, seed=71), 0.13)),
        Case("half of 85 weights", (_layers(1.0, 2.0, 0.5, seed=68), 0.5)),
        Case("half of three weights", ([torch.tensor([[2.0, -1.0]]), torch.tensor([[3.0]])], 0.5)),
        Case("half of five weights", ([torch.tensor([[2.0, -1.0]]), torch.tensor([[3.0, 0.5, -4.0]])], 0.5)),
    ],
)


# input_cost(W, X): what the layer's squared output error becomes if one whole input (a column of W) is removed
def _input_cost(W: Tensor, X: Tensor) -> Tensor:
    return W.square().sum(0) * X.square().sum(0)


input_cost = Exercise(
    name="input_cost",
    chapter=2,
    title="the squared output error that removing each whole input would cause",
    reference=_input_cost,
    difficulty=2,
    wrong=mistakes(
        {
            "inputs ignored": lambda W, X: W.square().sum(0),
            "not squared": then(_input_cost, torch.sqrt),
            "averaged over tokens": lambda W, X: W.square().sum(0) * X.square().mean(0),
            "averaged over outputs": lambda W, X: W.square().mean(0) * X.square().sum(0),
            "inputs summed before squaring": lambda W, X: W.square().sum(0) * X.sum(0).square(),
            "weights summed before squaring": lambda W, X: W.sum(0).square() * X.square().sum(0),
            "absolute inputs": lambda W, X: W.square().sum(0) * X.abs().sum(0),
        },
        """
        inputs ignored: This is the squared length of the column: right only if every input has length 1. Where does X
          come in?
        not squared: This is the length of the error, not its square. It ranks the inputs alike, but squares are what
          adds up.
        averaged over tokens: The error was averaged over the tokens. ||X W^T - X W'^T||^2 is a sum over all of them.
        averaged over outputs: The error was averaged over the outputs. ||X W^T - X W'^T||^2 is a sum over all of them.
        inputs summed before squaring: The inputs were added up before squaring, so positive and negative ones
          cancelled.
        weights summed before squaring: The weights of a column were added up before squaring, so positive and negative
          ones cancelled. Each of them belongs to another output.
        absolute inputs: The input enters without a square. Write the error of one token down first, then square it.
        """,
    ),
    cases=lambda: [
        Case("a small layer", (normal(3, 4, seed=70), normal(10, 4, seed=71))),
        Case("one loud input", (normal(2, 5, seed=72), normal(8, 5, seed=73) * torch.tensor([1, 1, 50, 1, 1.0]))),
        Case("an input that is always zero", (normal(2, 3, seed=74), normal(6, 3, seed=75) * torch.tensor([1, 0, 1]))),
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


def _by(error: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    """The search by another error: of the inputs (tokens, d_in) and the pruned weights (d_in,)."""
    return partial(_search, error=lambda w, X, keep: error(X, w * ~keep))


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
    difficulty=2,
    wrong=mistakes(
        {
            "magnitude": lambda w, X, zeros: keep_largest(w.abs().unsqueeze(0), zeros)[0],
            "costs added one by one": _by(lambda X, w: (X * w).square().sum()),
            "cross terms counted once": _by(lambda X, w: ((X * w).square().sum() + (X @ w).square().sum()) / 2),
            "inputs centred": given(_search, X=lambda X: X - X.mean(0)),
            "greedy": _greedy,
            "counts the kept ones": lambda w, X, zeros: _search(w, X, len(w) - zeros),
            "inverted mask": inverted(_search),
            "worst mask": _by(lambda X, w: -(X @ w).square().sum()),
            "absolute error": _by(lambda X, w: (X @ w).abs().sum()),
            "error of the sum": _by(lambda X, w: (X @ w).sum().square()),
        },
        """
        magnitude: This is what magnitude chooses. The inputs decide, too: measure the error of the output.
        costs added one by one: Each weight's own cost was taken and these were added up. Two removed weights whose
          inputs move together can cancel or reinforce each other: compute the output of the whole mask.
        cross terms counted once: The joint effect of two weights counts half. In the square of a sum each product of
          two terms stands twice.
        inputs centred: The mean of each input was taken away first. A layer's output has it, so the error does, too.
        greedy: One weight was removed after the other, the best at each step. The best pair need not contain the best
          single weight: try all masks.
        counts the kept ones: As many weights were *kept* as should have been pruned.
        inverted mask: The mask is the opposite of what was asked for: True means *kept*.
        worst mask: Of all masks this one has the *largest* error.
        absolute error: The absolute differences of the output were added up, not their squares.
        error of the sum: The differences were summed over the tokens before squaring, so that they cancelled.
        """,
    ),
    cases=lambda: (
        [
            Case(f"correlated inputs, {zeros} of {d} to go", (normal(d, seed=s), _correlated(12, d, seed=s + 1), zeros))
            for s, d, zeros in [(80, 4, 1), (90, 5, 2), (100, 6, 3), (202, 6, 2), (235, 7, 3), (130, 7, 5), (140, 8, 4)]
        ]
        + [
            Case(f"{d} inputs with a mean, {zeros} to go", (normal(d, seed=s), _correlated(9, d, s + 1) + mean, zeros))
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


# worst_loudness(w): inputs that turn the order of the magnitudes upside down
def _worst_loudness(w: Tensor) -> Tensor:
    return 1 / w.square()


worst_loudness = Exercise(
    name="worst_loudness",
    chapter=2,
    title="the root mean square of inputs for which each weight's price is one over its square",
    reference=_worst_loudness,
    difficulty=2,
    wrong=mistakes(
        {
            "all prices equal": lambda w: 1 / w.abs(),
            "mean square": lambda w: 1 / w.square().square(),
            "the price itself": lambda w: 1 / w.abs() ** 3,
            "loud where weights are large": lambda w: w.abs(),
            "signed": lambda w: 1 / (w * w.abs()),
            "brought to a mean of one": lambda w: _worst_loudness(w) / _worst_loudness(w).mean(),
            "alike": lambda w: torch.ones_like(w),
        },
        """
        all prices equal: With these inputs every weight costs the same, 1. The order was to be upside down, not level.
        mean square: That is the mean square of each input; its root is asked for.
        the price itself: The loudness was divided by the weight once more than the price asks for. Put it into the
          formula of the price: does 1 / w^2 come out?
        loud where weights are large: Such inputs make large weights even more costly. Magnitude is at its best on
          them.
        signed: A root mean square is never negative.
        brought to a mean of one: The order is right, but the prices are not 1 / w^2: no scaling was asked for.
        alike: On inputs that are all alike magnitude ranks as the prices do.
        """,
    ),
    cases=lambda: [
        Case("one large and one small weight", (torch.tensor([2.0, 0.5]),)),
        Case("weights of both signs", (torch.tensor([1.0, -3.0, 0.25, -0.1]),)),
        Case("a single weight", (torch.tensor([-4.0]),)),
        Case("weights of a random row", (normal(9, seed=260),)),
        Case("weights that are all alike", (torch.full((3,), 0.5),)),
    ],
)

EXERCISES = [block_mask, global_sparsities, input_cost, best_mask, worst_loudness]
