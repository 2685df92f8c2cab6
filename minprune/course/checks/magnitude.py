"""The exercises of chapter 02 on masks: exact counts within blocks, and one threshold over the whole model."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import HALVES, half_up, normal
from minprune.patterns import Unstructured, keep_largest

# block_mask(W, sparsity, block_size): the keep mask of magnitude pruning within blocks of neighbouring columns


def _block_mask(W: Tensor, sparsity: float, block_size: int) -> Tensor:
    return Unstructured(sparsity, "block").keep(W.abs(), block_size)


def _per_block(W: Tensor, block_size: int, keep_of: Callable[[Tensor], Tensor]) -> Tensor:
    """A mask put together from `keep_of(scores of one block, flattened)`, each (size,) -> (size,)."""
    blocks = W.abs().split(block_size, dim=1)
    return torch.cat([keep_of(B.flatten()).view(B.shape) for B in blocks], dim=1)


def _count(scores: Tensor, zeros: int) -> Tensor:
    return keep_largest(scores.unsqueeze(0), zeros)[0]


def _above(scores: Tensor, s: float, clamp: bool) -> Tensor:
    """score > sorted[int(n * s)], as in published code; beyond the end of the list at sparsity 1 unless clamped."""
    k = int(s * len(scores))
    return scores > scores.sort().values[min(k, len(scores) - 1) if clamp else k]


def _from_threshold(scores: Tensor, s: float, clamp: bool) -> Tensor:
    """score >= sorted[round(n * s)]: with ties at the threshold all of them stay."""
    k = round(s * len(scores))
    return scores >= scores.sort().values[min(k, len(scores) - 1) if clamp else k]


def _above_kth(at_zero: Callable[[Tensor], Tensor]) -> Callable:
    """score > the k-th smallest, k = round(n * s): right unless scores are equal. at_zero: what becomes of k = 0."""

    def keep_of(scores: Tensor, s: float) -> Tensor:
        k = round(s * len(scores))
        return scores > scores.kthvalue(k).values if k else at_zero(scores)

    return lambda W, s, b: _per_block(W, b, lambda v: keep_of(v, s))


def _full_blocks_only(W: Tensor, s: float, block_size: int) -> Tensor:
    whole = W.shape[1] // block_size * block_size
    keep = torch.ones_like(W, dtype=torch.bool)
    if whole:
        keep[:, :whole] = _block_mask(W[:, :whole], s, block_size)
    return keep


def _row_blocks(W: Tensor, s: float, block_size: int) -> Tensor:
    return _block_mask(W.T, s, block_size).T


_LE = (
    "Every weight whose magnitude *equals* the threshold went as well, and the threshold itself belongs to a weight. "
    "Count the zeros on a matrix with equal entries: how many of the tied weights may go?"
)
_GE = (
    "Every weight whose magnitude equals the threshold stayed, so on matrices with ties too few were pruned. "
    "Comparing with a threshold cannot split a tie; something else must."
)
_KTH = (
    "Where all magnitudes differ this is right. Where several equal the threshold, all of them went and not as many as "
    "were asked for: a comparison with a threshold cannot split a tie. What does it do at 0 %, where nothing may go?"
)
_QUANTILE = (
    "It looks as if a quantile was the threshold. It lies at s (n - 1) of the way through n sorted magnitudes, between "
    "two of them or on one. How many are below it, also at 0 % and 100 % and where magnitudes are equal?"
)

block_mask = Exercise(
    name="block_mask",
    chapter=2,
    title="the keep mask of magnitude pruning within blocks of columns, with exact counts",
    reference=_block_mask,
    difficulty=2,
    wrong=(
        Wrong("<= threshold", lambda W, s, b: _per_block(W, b, lambda v: _above(v, s, clamp=False)), _LE),
        Wrong("<= threshold", lambda W, s, b: _per_block(W, b, lambda v: _above(v, s, clamp=True)), _LE),
        Wrong("ties all kept", lambda W, s, b: _per_block(W, b, lambda v: _from_threshold(v, s, clamp=False)), _GE),
        Wrong("ties all kept", lambda W, s, b: _per_block(W, b, lambda v: _from_threshold(v, s, clamp=True)), _GE),
        Wrong("ties all pruned", _above_kth(lambda v: v.kthvalue(0).values), _KTH),
        Wrong("ties all pruned", _above_kth(lambda v: torch.ones_like(v, dtype=torch.bool)), _KTH),
        Wrong("ties all pruned", _above_kth(lambda v: v > v.min()), _KTH),
        Wrong("ties all pruned", _above_kth(lambda v: v > v.max()), _KTH),
        Wrong("threshold from a quantile", lambda W, s, b: _per_block(W, b, lambda v: v > v.quantile(s)), _QUANTILE),
        Wrong("threshold from a quantile", lambda W, s, b: _per_block(W, b, lambda v: v >= v.quantile(s)), _QUANTILE),
        Wrong(
            "one too many",
            lambda W, s, b: _per_block(W, b, lambda v: _count(v, min(round(s * len(v)) + 1, len(v)))),
            "One weight too many went from every block. Does your threshold's own weight fall on the right side?",
        ),
        Wrong(
            "rounded down",
            lambda W, s, b: _per_block(W, b, lambda v: _count(v, int(s * len(v)))),
            "The number of zeros was rounded down instead of to the nearest integer. "
            "What is 0.29 * 100 in floating point?",
        ),
        Wrong(
            "rounded up",
            lambda W, s, b: _per_block(W, b, lambda v: _count(v, math.ceil(s * len(v)))),
            "The number of zeros was rounded up instead of to the nearest integer.",
        ),
        Wrong("halves rounded up", lambda W, s, b: _per_block(W, b, lambda v: _count(v, half_up(s * len(v)))), HALVES),
        Wrong(
            "inverted mask",
            lambda W, s, b: ~_block_mask(W, s, b),
            "The mask is the opposite of what was asked for: in minprune True means *kept*.",
        ),
        Wrong(
            "largest pruned",
            lambda W, s, b: _per_block(W, b, lambda v: _count(-v, round(s * len(v)))),
            "The count is right, but the largest weights went and the smallest stayed. Check the order of your sort.",
        ),
        Wrong(
            "signed comparison",
            lambda W, s, b: Unstructured(s, "block").keep(W, b),
            "Strongly negative weights were treated as small. Magnitude has no sign.",
        ),
        Wrong(
            "compared within rows",
            lambda W, s, b: Unstructured(s, "row").keep(W.abs()),
            "Each row lost its own share. The comparison group asked for is a block of columns, all rows together.",
        ),
        Wrong(
            "compared over the whole layer",
            lambda W, s, b: Unstructured(s, "layer").keep(W.abs()),
            "One line was made of the whole matrix, so some blocks lost more than their share and others less.",
        ),
        Wrong(
            "rows of each block",
            lambda W, s, b: torch.cat([Unstructured(s, "row").keep(B.abs()) for B in W.split(b, dim=1)], dim=1),
            "Inside each block every row lost its own share. All weights of a block should stand in one line.",
        ),
        Wrong(
            "blocks of rows",
            _row_blocks,
            "The matrix was cut into blocks of rows. Columns are the second dimension of W (d_out, d_in).",
        ),
        Wrong(
            "last block left dense",
            _full_blocks_only,
            "When block_size does not divide the number of columns, the narrow block at the end was not pruned.",
        ),
        Wrong(
            "last of the ties pruned first",
            lambda W, s, b: _per_block(W, b, lambda v: _count(v.flip(0), round(s * len(v))).flip(0)),
            "The count is right, but of equal magnitudes the *lower* index (in row-major order of the block) is to "
            "go first.",
        ),
    ),
    cases=lambda: [
        Case("a random matrix", (normal(4, 6, seed=0), 0.5, 3)),
        Case("a random matrix at low sparsity", (normal(6, 8, seed=1), 0.2, 4)),
        Case("a count that is no whole number", (normal(3, 14, seed=2), 0.75, 7)),
        Case("a matrix of few distinct values", (normal(6, 8, seed=3).mul(2).round(), 0.5, 4)),
        Case(
            "rows of very different size", (normal(4, 8, seed=4) * torch.tensor([[0.1], [1.0], [5.0], [9.0]]), 0.4, 4)
        ),
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


def _relative(weights: list[Tensor], sparsity: float) -> Tensor:
    return _global_sparsities([W / W.abs().mean() for W in weights], sparsity)


def _of_the_model(weights: list[Tensor], sparsity: float) -> Tensor:
    sizes = torch.tensor([float(W.numel()) for W in weights])
    return _global_sparsities(weights, sparsity) * sizes / sizes.sum()


def _signed_global(weights: list[Tensor], sparsity: float) -> Tensor:
    return _pruned_shares(_global_keep(weights, round(sparsity * _total(weights))))


def _layers(*scales: float, seed: int) -> list[Tensor]:
    shapes = [(4, 6), (8, 5), (3, 7)]
    return [normal(*shapes[i % 3], seed=seed + i) * scale for i, scale in enumerate(scales)]


global_sparsities = Exercise(
    name="global_sparsities",
    chapter=2,
    title="how much of each layer goes when one threshold is used for the whole model",
    reference=_global_sparsities,
    difficulty=3,
    wrong=(
        Wrong(
            "same for every layer",
            lambda weights, s: torch.tensor([round(s * W.numel()) / W.numel() for W in weights]),
            "Every layer lost the same share, as if each had a threshold of its own. All magnitudes of all layers "
            "must stand in one line.",
        ),
        Wrong(
            "average of thresholds",
            _mean_threshold,
            "It looks as if each layer's own threshold was computed and these were averaged. The threshold of all "
            "weights together is something else.",
        ),
        Wrong(
            "kept instead of pruned",
            lambda weights, s: 1 - _global_sparsities(weights, s),
            "These are the fractions *kept*. Sparsity is the fraction pruned.",
        ),
        Wrong(
            "divided by the whole model",
            _of_the_model,
            "Each layer's zeros were divided by the number of weights of the whole model, not of that layer: "
            "the shares of different layers cannot be compared like that.",
        ),
        Wrong(
            "layers normalised first",
            _relative,
            "The magnitudes were divided by a layer's own mean before they were compared. That is a defensible "
            "method, but not this one: here a weight's value counts, wherever it stands.",
        ),
        Wrong(
            "signed comparison",
            _signed_global,
            "Strongly negative weights were treated as small. Magnitude has no sign.",
        ),
        Wrong(
            "rounded down",
            lambda weights, s: _global_sparsities(weights, s, int),
            "The number of zeros was rounded down instead of to the nearest integer.",
        ),
        Wrong(
            "rounded up",
            lambda weights, s: _global_sparsities(weights, s, math.ceil),
            "The number of zeros was rounded up instead of to the nearest integer.",
        ),
        Wrong("halves rounded up", lambda weights, s: _global_sparsities(weights, s, half_up), HALVES),
        Wrong(
            "everything at sparsity 0",
            lambda weights, s: _global_sparsities(weights, s or 1.0),
            "At sparsity 0 all weights went. If the threshold is the k-th smallest magnitude, which one is it if k is "
            "0?",
        ),
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

EXERCISES = [block_mask, global_sparsities]
