"""The exercises of chapter 05: the norms of inputs, what scores leave out of an error, RIA, Wanda."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import ROUNDINGS, above, averaged, complement, given, scaled, then
from minprune.course.checks.values import normal
from minprune.patterns import Unstructured, keep_largest

# input_norms(batches, real): the L2 norm of each input over all tokens that are no padding

_Batches = list[Tensor]


def _tokens(batches: _Batches, real: _Batches) -> Tensor:
    """The real tokens of all batches, (tokens, d_in)."""
    return torch.cat([X[mask] for X, mask in zip(batches, real, strict=True)])


def _texts(batches: _Batches, real: _Batches) -> _Batches:
    """The real tokens of each text, (its tokens, d_in)."""
    pairs = [pair for X, mask in zip(batches, real, strict=True) for pair in zip(X, mask, strict=True)]
    return [X[mask] for X, mask in pairs]


def _of_tokens(gather: Callable[[Tensor], Tensor]) -> Callable:
    """What is gathered from the real tokens of all batches."""
    return lambda batches, real: gather(_tokens(batches, real))


def _of_parts(parts: Callable[[_Batches, _Batches], _Batches], gather: Callable[[Tensor], Tensor]) -> Callable:
    """The norms of each part (a batch or a text), stacked and gathered into one."""
    return lambda batches, real: gather(torch.stack([X.norm(dim=0) for X in parts(batches, real)]))


def _input_norms(batches: _Batches, real: _Batches) -> Tensor:
    return _tokens(batches, real).norm(dim=0)


def _each_batch(batches: _Batches, real: _Batches) -> _Batches:
    return [X[mask] for X, mask in zip(batches, real, strict=True)]


def _running_mean(batches: _Batches, real: _Batches) -> Tensor:
    """The root of the mean over batches of each batch's mean square: long and short batches count alike."""
    return torch.stack([X.square().mean(0) for X in _each_batch(batches, real)]).mean(0).sqrt()


def _over_sequences(batches: _Batches, real: _Batches) -> Tensor:
    """The root of the mean over the batch axis, averaged over positions: what `x.pow(2).mean(0)` of a 3-D x gives."""
    means = [(X * mask[..., None]).square().mean(0).sqrt() for X, mask in zip(batches, real, strict=True)]
    return torch.cat(means).mean(0)


input_norms = Exercise(
    name="input_norms",
    chapter=5,
    title="the norm of each input over all real tokens of several padded batches",
    reference=_input_norms,
    difficulty=2,
    wrong=mistakes(
        {
            "padding counted": lambda batches, real: torch.cat([X.flatten(0, 1) for X in batches]).norm(dim=0),
            "padding taken to be at the end": given(
                _input_norms, real=lambda real: [mask.sort(dim=1, descending=True).values for mask in real]
            ),
            "padding instead of tokens": given(_input_norms, real=lambda real: [~mask for mask in real]),
            "last batch only": [
                lambda batches, real: _input_norms(batches[-1:], real[-1:]),
                lambda batches, real: batches[-1].flatten(0, 1).norm(dim=0),
            ],
            "first batch only": lambda batches, real: _input_norms(batches[:1], real[:1]),
            "last text only": lambda batches, real: _texts(batches, real)[-1].norm(dim=0),
            "squared norm": _of_tokens(lambda X: X.square().sum(0)),
            "mean absolute value": _of_tokens(lambda X: X.abs().mean(0)),
            "sum of absolute values": _of_tokens(lambda X: X.abs().sum(0)),
            "largest value": _of_tokens(lambda X: X.abs().amax(0)),
            "inputs summed before squaring": _of_tokens(lambda X: X.sum(0).abs()),
            "mean removed": _of_tokens(lambda X: X.std(0, correction=0) * len(X) ** 0.5),
            "divided by the number of tokens": _of_tokens(lambda X: X.square().mean(0).sqrt()),
            "divided by the number of texts": lambda batches, real: (
                _tokens(batches, real).square().sum(0) / sum(map(len, batches))
            ).sqrt(),
            "mean over batches": _running_mean,
            "mean of the norms of batches": _of_parts(_each_batch, lambda norms: norms.mean(0)),
            "sum of the norms of batches": _of_parts(_each_batch, lambda norms: norms.sum(0)),
            "mean of the norms of texts": _of_parts(_texts, lambda norms: norms.mean(0)),
            "sum of the norms of texts": _of_parts(_texts, lambda norms: norms.sum(0)),
            "mean over the batch axis": _over_sequences,
            "norm of each token": _of_tokens(lambda X: X.norm(dim=1)),
            "one norm for all inputs": _of_tokens(torch.norm),
        },
        """
        padding counted: Padding was counted: it is not part of any text, yet it has inputs like every token. Which
          positions are real?
        padding taken to be at the end: Only how many tokens are real was used, and not which: a batch may be padded at
          the beginning of its texts.
        padding instead of tokens: These are the norms of the padding. In `real`, True marks the tokens that count.
        last batch only: Only the last batch counts: is something set in each turn of the loop, not added to?
        last batch only: Only the last batch counts, and its padding, too: is something set in each turn of the loop,
          not added to?
        first batch only: Only the first batch counts. Does the function return from inside the loop?
        last text only: Only the last text of the last batch counts.
        squared norm: These are the squares of the norms. Wanda multiplies |W| by the norm itself: with the square, loud
          inputs would count twice.
        mean absolute value: This is the mean absolute input. A norm squares each input before adding up and takes the
          root at the end. The two differ most for an input that is rarely but very loud.
        sum of absolute values: Absolute inputs were added up: that is the L1 norm. A norm squares each input before
          adding up and takes the root at the end.
        largest value: This is the largest absolute input. A norm squares each input before adding up and takes the root
          at the end.
        inputs summed before squaring: The inputs were added up with their signs, so that positive and negative ones
          cancelled.
        mean removed: The mean of each input was removed first. An input that always has the same value feeds the layer,
          too.
        divided by the number of tokens: This is the root mean square. It ranks the weights of a layer alike, but asked
          for was the norm of the whole column, a sum over tokens.
        divided by the number of texts: The sum of squares was divided by the number of texts, as Wanda's published code
          does. That changes no mask, but asked for was the norm of the whole column, a sum over tokens.
        mean over batches: Each batch was averaged by itself and then the batches were averaged, so that a token of a
          short batch counts for more. Add up over tokens.
        mean of the norms of batches: The norms of the batches were averaged. Norms do not add up, their squares do.
        sum of the norms of batches: The norms of the batches were added. Norms do not add up, their squares do.
        mean of the norms of texts: Each text's norm was taken and these were averaged. The result must not depend on
          where a text ends: norms do not add up, their squares do.
        sum of the norms of texts: Each text's norm was taken and these were added. Norms do not add up, their squares
          do.
        mean over the batch axis: The first axis of a batch is its texts. An average over it is an average over what
          stands at the same position, padding included. Put all tokens in one line first.
        norm of each token: This is the norm of each token over its inputs. Asked for is that of each input over the
          tokens: which axis should disappear?
        one norm for all inputs: This is a single number for the whole of X. Each input has its own norm.
        """,
    ),
    cases=lambda: _norm_cases(),
)


def _batch(lengths: list[int], d_in: int, seed: int, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """A batch of texts of these lengths, padded on the right with inputs that are not zero, and its mask."""
    longest = max(lengths)
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]  # (texts, longest)
    X = (normal(len(lengths), longest, d_in, seed=seed) + 0.4) * scale
    return torch.where(real[..., None], X, 3.0), real


def _left(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The same batch with its padding before the texts."""
    return batch[0].flip(1), batch[1].flip(1)


def _norm_case(label: str, batches: list[tuple[Tensor, Tensor]]) -> Case:
    return Case(label, ([X for X, _ in batches], [real for _, real in batches]))


def _norm_cases() -> list[Case]:
    loud = torch.tensor([1.0, 20.0, 0.1, 1.0, 0.0])
    return [
        _norm_case("two padded batches", [_batch([6, 2, 4], 3, 501), _batch([3, 5], 3, 502)]),
        _norm_case("batches of unequal size", [_batch([9, 1], 4, 503), _batch([2], 4, 504), _batch([4, 4, 3], 4, 505)]),
        _norm_case("loud, quiet and dead inputs", [_batch([5, 7], 5, 506, loud), _batch([3, 8, 2], 5, 507, loud)]),
        _norm_case("a batch that is padded on the left", [_left(_batch([6, 2, 4], 3, 510)), _batch([2, 5], 3, 511)]),
        _norm_case("a text of padding only", [_batch([3, 0, 2], 4, 512), _batch([1, 0], 4, 513)]),
        _norm_case("as many tokens as inputs", [_batch([2, 1], 5, 508), _batch([2], 5, 509)]),
    ]


# error_split(w, X, keep): what the pruned weights of a row cost one by one, and what their cross terms add
def _split(w: Tensor, X: Tensor, keep: Tensor, own_of: Callable, cross_of: Callable) -> Tensor:
    """own_of and cross_of: (the contributions of the pruned weights (tokens, d_in)) -> a number."""
    parts = X * (w * ~keep)  # (tokens, d_in)
    return torch.stack([own_of(parts), cross_of(parts)])


def _own(parts: Tensor) -> Tensor:
    return parts.square().sum()


def _cross(parts: Tensor) -> Tensor:
    return parts.sum(1).square().sum() - _own(parts)


def _by(own_of: Callable = _own, cross_of: Callable = _cross) -> Callable:
    return lambda w, X, keep: _split(w, X, keep, own_of, cross_of)


def _error_split(w: Tensor, X: Tensor, keep: Tensor) -> Tensor:
    return _split(w, X, keep, _own, _cross)


error_split = Exercise(
    name="error_split",
    chapter=5,
    title="the error of a pruned row: the squared Wanda scores, and the cross terms",
    reference=_error_split,
    difficulty=3,
    wrong=mistakes(
        {
            "each pair counted once": _by(cross_of=then(_cross, lambda cross: cross / 2)),
            "total instead of the cross terms": _by(cross_of=lambda parts: parts.sum(1).square().sum()),
            "kept weights": given(_error_split, keep=torch.logical_not),
            "all weights": given(_error_split, keep=torch.zeros_like),
            "scores not squared": _by(lambda parts: parts.norm(dim=0).sum()),
            "sum of scores squared": _by(lambda parts: parts.norm(dim=0).sum().square()),
            "averaged over tokens": averaged(_error_split, over="X"),
            "absolute cross terms": _by(cross_of=lambda parts: (parts.T @ parts).abs().sum() - _own(parts)),
            "summed over tokens before squaring": _by(cross_of=lambda parts: parts.sum().square() - _own(parts)),
            "order reversed": _by(_cross, _own),
        },
        """
        each pair counted once: The cross terms are half of what they should be: a pair (j, l) stands in the double sum
          twice.
        total instead of the cross terms: Your second number is the whole error. The two numbers should add up to it.
        kept weights: These are the terms of the weights that *stay*. What is lost is what the pruned ones contributed.
        all weights: All weights enter, the kept ones, too. What is lost is what the pruned ones contributed.
        scores not squared: Your first number adds up Wanda's scores. It is their squares that are errors.
        sum of scores squared: Wanda's scores were added up and then squared. Which comes first?
        averaged over tokens: The error was averaged over the tokens. Both numbers are sums over them.
        absolute cross terms: The cross terms were made positive. They have signs: two losses can cancel.
        summed over tokens before squaring: The differences were added up over the tokens before squaring, so that they
          cancelled.
        order reversed: The two numbers are right, but in the wrong order: first the squared scores, then the cross
          terms.
        """,
    ),
    cases=lambda: [
        Case("a few tokens", (normal(6, seed=520), normal(5, 6, seed=521), normal(6, seed=522) > 0)),
        Case("inputs that share a cause", (normal(7, seed=523), _shared(9, 7, 524), normal(7, seed=525) > 0)),
        Case("a single pruned weight", (normal(4, seed=526), normal(6, 4, seed=527), torch.arange(4) != 2)),
        Case("two equal inputs that cancel", (torch.tensor([1.0, -1, 3]), _twins(6), torch.arange(3) == 2)),
        Case("everything pruned", (normal(4, seed=531), normal(3, 4, seed=532), torch.zeros(4, dtype=torch.bool))),
        Case("nothing pruned", (normal(4, seed=529), normal(3, 4, seed=530), torch.ones(4, dtype=torch.bool))),
    ],
)


def _shared(tokens: int, inputs: int, seed: int) -> Tensor:
    return normal(tokens, 1, seed=seed) + 0.5 * normal(tokens, inputs, seed=seed + 100)


def _twins(tokens: int) -> Tensor:
    return normal(tokens, 2, seed=528)[:, [0, 0, 1]]


# ria_scores(W, norms, power): relative importance times a power of the input's norm
def _relative(W: Tensor, norms: Tensor, power: float) -> tuple[Tensor, Tensor, Tensor]:
    """|W| / the sum of its column, |W| / the sum of its row, and norms ** power; 0 / 0 is 0."""
    size = W.abs()
    per_input, per_output = (size.sum(dim, keepdim=True) for dim in (0, 1))
    return (size / per_input).nan_to_num(0.0), (size / per_output).nan_to_num(0.0), norms**power


def _combined(gather: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    return lambda W, norms, power: gather(*_relative(W, norms, power))


def _by_totals(total: Callable[[Tensor, int], Tensor], size: Callable[[Tensor], Tensor] = torch.abs) -> Callable:
    """total: (W, dim) -> what the size of each weight is divided by, of its column or of its row; 0 is 1."""
    return lambda W, n, p: sum(size(W) / _safe(total(W, dim)) for dim in (0, 1)) * n**p


def _safe(sums: Tensor) -> Tensor:
    return torch.where(sums == 0, 1.0, sums)


_ria_scores = _combined(lambda column, row, loud: (column + row) * loud)


ria_scores = Exercise(
    name="ria_scores",
    chapter=5,
    title="the scores of RIA: relative importance times a power of the input's norm",
    reference=_ria_scores,
    difficulty=2,
    wrong=mistakes(
        {
            "0 / 0": lambda W, n, p: sum(W.abs() / W.abs().sum(dim, keepdim=True) for dim in (0, 1)) * n**p,
            "only the output's sum": _combined(lambda column, row, loud: row * loud),
            "only the input's sum": _combined(lambda column, row, loud: column * loud),
            "product of the two shares": _combined(lambda column, row, loud: column * row * loud),
            "one common sum": lambda W, n, p: W.abs() / _safe(W.abs().sum(0) + W.abs().sum(1, keepdim=True)) * n**p,
            "signed weights": _by_totals(lambda W, dim: W.sum(dim, keepdim=True), size=torch.clone),
            "means in place of sums": _by_totals(lambda W, dim: W.abs().mean(dim, keepdim=True)),
            "norms instead of sums": _by_totals(lambda W, dim: W.norm(dim=dim, keepdim=True)),
            "power ignored": given(_ria_scores, power=1.0),
            "inputs ignored": _combined(lambda column, row, loud: column + row),
            "power over everything": lambda W, norms, power: _ria_scores(W, norms, 1.0) ** power,
            "power of a squared norm": given(_ria_scores, power=lambda power: 2 * power),
            "norms on the output's side": _combined(lambda column, row, loud: (column + row) * loud[:, None]),
        },
        """
        0 / 0: A row or a column that is all zero has the sum 0, and 0 / 0 is NaN. The weights in it are 0: what should
          their scores be?
        only the output's sum: Each weight is compared with its row only. Its column counts as well.
        only the input's sum: Each weight is compared with its column only. Its row counts as well.
        product of the two shares: The two shares were multiplied. They are added, so that either of them can save a
          weight.
        one common sum: The two sums were added and then divided by. Two fractions are added here, not their
          denominators.
        signed weights: Signs were kept, so that sums cancel and shares become negative. All is about absolute values.
        means in place of sums: The weight was divided by a mean, not a sum. With as many rows as columns that changes
          nothing but the scale; otherwise the two parts get other weights.
        norms instead of sums: The weight was divided by the L2 norms of its row and column. Published are sums of
          absolute values.
        power ignored: The norms enter as they are, as in Wanda. Where is the power?
        inputs ignored: This is the relative importance alone. The activations are missing.
        power over everything: The power was taken of the whole product. It belongs to the norms alone.
        power of a squared norm: The norms were squared before the power was taken.
        norms on the output's side: The norms multiply the rows of W, which are its outputs. An input belongs to a
          column.
        """,
    ),
    cases=lambda: [
        Case("a small layer", (normal(3, 5, seed=560), normal(5, seed=561).abs(), 0.5)),
        Case("as many outputs as inputs", (normal(4, 4, seed=562), 3 * normal(4, seed=563).abs(), 0.5)),
        Case("another power", (normal(6, 4, seed=564), normal(4, seed=565).abs() + 1, 1.5)),
        Case("power 1", (normal(2, 6, seed=566), normal(6, seed=567).abs() + 1, 1.0)),
        Case("a row and a column of zeros", (_with_zeros(), normal(4, seed=569).abs(), 0.5)),
    ],
)


def _with_zeros() -> Tensor:
    W = normal(3, 4, seed=568)
    W[1], W[:, 2] = 0, 0
    return W


# wanda(W, X, sparsity): the keep mask
@dataclass(frozen=True)
class _Recipe:
    """Wanda with every place exposed at which people go wrong; the defaults are right.

    loudness: X (tokens, d_in) -> what a weight is multiplied by. score: (W, loudness) -> scores (d_out, d_in).
    select: (scores, sparsity) -> keep.
    """

    loudness: Callable[[Tensor], Tensor] = lambda X: X.norm(dim=0)
    score: Callable[[Tensor, Tensor], Tensor] = lambda W, loudness: W.abs() * loudness
    select: Callable[[Tensor, float], Tensor] = lambda scores, s: Unstructured(s, "row").keep(scores)

    def __call__(self, W: Tensor, X: Tensor, sparsity: float) -> Tensor:
        return self.select(self.score(W, self.loudness(X)), sparsity)


def _above(clamp: bool, whole: bool = False) -> Callable[[Tensor, float], Tensor]:
    return lambda scores, s: above(scores.reshape(1, -1) if whole else scores, s, clamp=clamp).view(scores.shape)


def _from(scores: Tensor, s: float) -> Tensor:
    """score >= sorted[round(n * s)] of each row: ties at the threshold all stay."""
    ordered, k = scores.sort(dim=1).values, round(s * scores.shape[1])
    return scores >= ordered[:, [k]] if k < scores.shape[1] else torch.zeros_like(scores, dtype=torch.bool)


def _layer(scores: Tensor, s: float) -> Tensor:
    return Unstructured(s, "layer").keep(scores)


def _counted(to_integer: Callable[[float], int]) -> Callable[[Tensor, float], Tensor]:
    return lambda scores, s: keep_largest(scores, to_integer(s * scores.shape[1]))


wanda = Exercise(
    name="wanda",
    chapter=5,
    title="the keep mask of Wanda from the weights and the inputs",
    reference=_Recipe(),
    difficulty=3,
    wrong=mistakes(
        {
            "magnitude": _Recipe(lambda X: torch.ones(X.shape[1])),
            "magnitude over the layer": _Recipe(lambda X: torch.ones(X.shape[1]), select=_layer),
            "mean absolute activation": _Recipe(lambda X: X.abs().mean(0)),
            "squared norm": _Recipe(lambda X: X.square().sum(0)),
            "weight squared": _Recipe(score=lambda W, loudness: W.square() * loudness),
            "inputs summed with their signs": _Recipe(lambda X: X.sum(0).abs()),
            "largest activation": _Recipe(lambda X: X.abs().amax(0)),
            "last token only": _Recipe(lambda X: X[-1].abs()),
            "mean over the wrong axis": _Recipe(lambda X: X.norm(dim=1)),
            "norm on the output's side": _Recipe(score=lambda W, loudness: W.abs() * loudness[:, None]),
            "signed comparison": _Recipe(score=lambda W, loudness: W * loudness),
            "one threshold for the whole matrix": _Recipe(select=_layer),
            "compared within columns": _Recipe(select=lambda S, s: Unstructured(s, "row").keep(S.T).T),
            "<= sorted[k]": [_Recipe(select=_above(clamp)) for clamp in (False, True)],
            "one threshold, and <= sorted[k]": [_Recipe(select=_above(clamp, whole=True)) for clamp in (False, True)],
            "quantile as threshold": _Recipe(select=lambda S, s: S.quantile(s, dim=1, keepdim=True) < S),
            "one quantile for the whole matrix": _Recipe(select=lambda S, s: S.quantile(s) < S),
            "ties all kept": _Recipe(select=_from),
            **{name: _Recipe(select=_counted(rule)) for name, rule in ROUNDINGS.items()},
            "inverted mask": _Recipe(select=lambda S, s: ~Unstructured(s, "row").keep(S)),
            "largest pruned": _Recipe(select=lambda S, s: keep_largest(-S, round(s * S.shape[1]))),
        },
        """
        magnitude: This is the mask of the magnitudes, row by row: right only if all inputs are equally loud.
        magnitude over the layer: This is the mask of the magnitudes over the whole matrix. Inputs decide, too, and each
          row has a share.
        mean absolute activation: The inputs were averaged by absolute value. Wanda takes the L2 norm, which is what
          makes the squared score an error. The two differ most for an input that is rarely but very loud.
        squared norm: The weight enters once and the norm squared. Square both or neither.
        weight squared: The weight counts twice as much as the norm: it is squared, or the norm has a root. Treat both
          alike.
        inputs summed with their signs: The inputs were added up with their signs, so that positive and negative ones
          cancelled.
        largest activation: Each input is judged by its largest value. A norm adds up the squares of all tokens.
        last token only: Only the last token counts. Add up over all of them.
        mean over the wrong axis: This is the norm of each token over its inputs. It multiplies the weights of an input
          by what belongs to a token: the shapes fit only by chance. Which axis should disappear?
        norm on the output's side: The norms multiply the rows of W, which are its outputs. An input belongs to a
          column.
        signed comparison: Strongly negative weights were treated as worthless. The score has no sign.
        one threshold for the whole matrix: One line was made of the whole matrix, so some rows lost more than their
          share. Published Wanda compares the weights of one output.
        compared within columns: Each column lost its own share, so that the norms made no difference. Compare the
          weights of one output.
        <= sorted[k]: Too many weights went: the sorted scores are counted from 0, and the threshold itself belongs to a
          weight. Count the zeros of each row, on a matrix with equal entries as well.
        one threshold, and <= sorted[k]: One line was made of the whole matrix, so some rows lost more than their share.
          Published Wanda compares the weights of one output. Too many weights went: the sorted scores are counted from
          0, and the threshold itself belongs to a weight. Count the zeros of each row, on a matrix with equal entries
          as well.
        quantile as threshold: The threshold is a quantile, which interpolates between two scores and cannot split a
          tie. Count the zeros of each row, on a matrix with equal entries as well.
        one quantile for the whole matrix: One line was made of the whole matrix, so some rows lost more than their
          share. Published Wanda compares the weights of one output. The threshold is a quantile, which interpolates
          between two scores and cannot split a tie. Count the zeros of each row, on a matrix with equal entries as
          well.
        ties all kept: Every weight whose score equals the threshold stayed, so with ties too few went. Something other
          than a threshold must split a tie.
        rounded down: The number of zeros was rounded down instead of to the nearest integer.
        rounded up: The number of zeros was rounded up instead of to the nearest integer.
        halves rounded up: A half was rounded up. Python's `round` takes a half to the even neighbour, and so does this
          book: round(2.5) is 2 and round(3.5) is 4. Where does your rounding come from?
        inverted mask: The mask is the opposite of what was asked for: True means *kept*.
        largest pruned: The count is right, but the highest scores went and the lowest stayed. Check the order of your
          sort.
        """,
    ),
    cases=lambda: _wanda_cases(),
)


_SIZES = torch.tensor([[0.1], [1], [9]])


def _rarely_loud(tokens: int, d_in: int, seed: int) -> Tensor:
    """Inputs of equal mean size, of which every other is silent but for a few tokens."""
    X = normal(tokens, d_in, seed=seed) + 0.2
    X[2:, ::2] *= 0.05
    X[:2, ::2] *= 6
    return X


def _wanda_cases() -> list[Case]:
    loud = torch.tensor([0.1, 1.0, 8.0, 0.5, 2.0, 1.0, 0.2, 4.0])
    whole = torch.tensor([[1.0, -1, 1, 1, -1, 1], [2, 2, -2, 2, 2, 2], [1, 2, -3, 3, 2, 1], [0, 0, 0, 0, 1, 0]])
    return [
        Case("a small layer", (normal(4, 6, seed=540), normal(20, 6, seed=541) + 0.3, 0.5)),
        Case("loud and quiet inputs", (normal(6, 8, seed=542), (normal(30, 8, seed=543) + 0.3) * loud, 0.25)),
        Case("inputs that are rarely loud", (normal(5, 10, seed=544), _rarely_loud(24, 10, 545), 0.6)),
        Case("rows of unequal size", (normal(3, 7, seed=546) * _SIZES, normal(9, 7, seed=547), 0.5)),
        Case("as many tokens and outputs as inputs", (normal(8, 8, seed=548), normal(8, 8, seed=549) * loud, 0.5)),
        Case("equal weights and equal inputs", (whole, torch.ones(5, 6), 0.5)),
        Case("a count to be rounded", (normal(4, 10, seed=550), normal(12, 10, seed=551), 0.29)),
        Case("a count to be rounded down", (normal(4, 10, seed=556), normal(12, 10, seed=557), 0.22)),
        Case("half of five weights", (normal(4, 5, seed=558), normal(2, 5, seed=559), 0.5)),
        Case("nothing to prune", (normal(3, 4, seed=552), normal(6, 4, seed=553), 0.0)),
        Case("everything to prune", (normal(3, 4, seed=554), normal(6, 4, seed=555), 1.0)),
    ]


# rare_share(ratios): how rarely an input must be 1 for its root mean square to be that many times its mean
def _rare_share(ratios: Tensor) -> Tensor:
    return 1 / ratios.square()


rare_share = Exercise(
    name="rare_share",
    chapter=5,
    title="the share of tokens on which an input is 1, for a given ratio of root mean square to mean absolute value",
    reference=_rare_share,
    difficulty=2,
    wrong=mistakes(
        {
            "not squared": lambda ratios: 1 / ratios,
            "root of the ratio": lambda ratios: 1 / ratios.sqrt(),
            "share of zeros": complement(_rare_share),
            "per cent": scaled(_rare_share, 100),
            "the other way round": lambda ratios: ratios.square(),
            "standard deviation": lambda ratios: 1 / (1 + ratios.square()),
            "mean square": given(_rare_share, ratios=torch.ones_like),
        },
        """
        not squared: With this share the *square* of the ratio is what was asked for. The mean is p; what is the root
          mean square?
        root of the ratio: With this share the ratio is the fourth root of what was asked for. Write down both means.
        share of zeros: This is the share of tokens on which the input is silent.
        per cent: These are per cent; a share lies between 0 and 1.
        the other way round: A share is at most 1. Which of the two, root mean square and mean, is the larger one?
        standard deviation: The mean was subtracted before squaring. Wanda's norm is about zero, not about the mean.
        mean square: The mean square of such an input is its mean, whatever p is. Its *root* is compared.
        """,
    ),
    cases=lambda: [
        Case("a ratio of 2", (torch.tensor([2.0]),)),
        Case("an input that never changes", (torch.tensor([1.0]),)),
        Case("the ratio of a Gaussian and less", (torch.tensor([1.2533, 1.1]),)),
        Case("large ratios", (torch.tensor([10.0, 3.0, 50.0]),)),
    ],
)

EXERCISES = [input_norms, error_split, ria_scores, wanda, rare_share]
