"""The exercises of chapter 21: the sweep, a grid on which 0 is, zeros that pay for their mask, what both cost."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import complement, exchanged, given, negated, scaled, then
from minprune.course.checks.values import normal

# sweep(W, H, nearest, keep): column by column rounded or set to zero, and the error passed on
Nearest = Callable[[Tensor, int], Tensor]


def _upper(H: Tensor) -> Tensor:
    return torch.linalg.cholesky(torch.linalg.inv(H), upper=True)


@dataclass(frozen=True)
class _Sweep:
    """GPTQ with a mask; right unless a field says otherwise.

    factor: H -> what carries the error. divide: factor -> what it is divided by, (d_in,). level: (weights, rounded,
    kept) -> the values of a column. error: (updated, original, value, rounded) -> what is passed on.
    """

    factor: Callable[[Tensor], Tensor] = _upper
    divide: Callable[[Tensor], Tensor] = torch.diagonal
    level: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda w, rounded, kept: rounded * kept
    error: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = lambda w, first, q, rounded: w - q
    sign: int = 1

    def __call__(self, W: Tensor, H: Tensor, nearest: Nearest, keep: Tensor) -> Tensor:
        U, w = self.factor(H), W.clone()
        scale = self.divide(U)
        for j in range(len(H)):
            rounded = nearest(w[:, j], j)  # (d_out,)
            q = self.level(w[:, j], rounded, keep[:, j])
            e = self.error(w[:, j], W[:, j], q, rounded) / scale[j]
            w[:, j] = q
            w[:, j + 1 :] -= self.sign * torch.outer(e, U[j, j + 1 :])
        return w


def _backwards(W: Tensor, H: Tensor, nearest: Nearest, keep: Tensor) -> Tensor:
    last = len(H) - 1
    return _Sweep()(W.flip(1), H.flip(0, 1), lambda w, j: nearest(w, last - j), keep.flip(1)).flip(1)


sweep = Exercise(
    name="sweep",
    chapter=21,
    title="GPTQ with a mask: column by column rounded or set to zero, the error passed on to the later ones",
    reference=_Sweep(),
    difficulty=3,
    wrong=mistakes(
        {
            "nothing passed on, or a lower factor": _Sweep(sign=0),
            "factor of H": _Sweep(factor=lambda H: torch.linalg.cholesky(H, upper=True)),
            "the inverse itself": _Sweep(factor=torch.linalg.inv),
            "not divided": _Sweep(divide=lambda U: torch.ones(len(U)).to(U)),
            "divided twice": _Sweep(divide=lambda U: U.diagonal().square()),
            "wrong sign": _Sweep(sign=-1),
            "error of the zeros kept back": _Sweep(error=lambda w, first, q, rounded: w - rounded),
            "only the zeros passed on": _Sweep(error=lambda w, first, q, rounded: rounded - q),
            "error against the original weights": _Sweep(error=lambda w, first, q, rounded: first - q),
            "mask forgotten": _Sweep(level=lambda w, rounded, kept: rounded),
            "mask inverted": _Sweep(level=lambda w, rounded, kept: rounded * ~kept),
            "not rounded": _Sweep(level=lambda w, rounded, kept: w * kept),
            "from right to left": _backwards,
        },
        """
        nothing passed on, or a lower factor: Each weight was rounded alone: no later column has changed. If you do pass
          errors on, look at the factor: `cholesky` returns the lower one, with nothing to the right of the diagonal.
        factor of H: This is the Cholesky factor of H. The inverse says how the others make up for one.
        the inverse itself: These are rows of the whole inverse, as if the columns that are done could still move. Its
          factor is needed.
        not divided: The error has to be divided by the diagonal of the factor: what does the step make of column j?
        divided twice: The error was divided by the diagonal once too often.
        wrong sign: The errors are passed on with the wrong sign, and add up.
        error of the zeros kept back: What is lost by rounding was passed on, what is lost by a zero was not: the error
          is that of the value which stands there in the end.
        only the zeros passed on: Only the error of the mask was passed on. Rounding has one, too.
        error against the original weights: The error was taken from W as it was. What has been passed on to a column
          before its turn belongs to its weights.
        mask forgotten: Weights outside of `keep` are not zero.
        mask inverted: The weights in `keep` are those that stay. Yours are zero.
        not rounded: The zeros are right, but no weight was rounded.
        from right to left: You began with the last column. The factor is for an order from left to right.
        """,
    ),
    cases=lambda: [
        Case("two columns", _layer(3, 2, 2120, torch.ones(3, 2, dtype=torch.bool))),
        Case("nothing pruned", _layer(5, 6, 2121, torch.ones(5, 6, dtype=torch.bool))),
        Case("half of the weights pruned", _layer(6, 9, 2122, normal(6, 9, seed=2123) > 0)),
        Case("a column without a weight", _layer(4, 5, 2124, (torch.arange(5) != 2).expand(4, 5))),
        Case("one row", _layer(1, 8, 2125, normal(1, 8, seed=2126) > -0.5)),
    ],
)


@dataclass(frozen=True, eq=False)
class _Rounded:
    """Seven values about 0 in steps of their own for each column. step (d_in,)."""

    step: Tensor

    def __call__(self, w: Tensor, j: int) -> Tensor:
        return self.step[j] * (w / self.step[j]).round().clamp(-3, 3)


def _layer(d_out: int, d_in: int, seed: int, keep: Tensor) -> tuple:
    """A layer whose inputs share a cause, and a grid with a step of its own for each column."""
    X = (normal(4 * d_in, d_in, seed=seed) + normal(4 * d_in, 1, seed=seed + 50)).double()
    step = torch.linspace(0.4, 0.9, d_in).double()
    return (
        normal(d_out, d_in, seed=seed + 100).double(),
        X.T @ X,
        _Rounded(step),
        keep,
    )


# whole_zero(W, bits): each row rounded to its own grid, which has a level at 0
@dataclass(frozen=True)
class _Grid:
    """The asymmetric grid; right unless a field says otherwise.

    holds_zero: the range is stretched to hold 0. zero: what becomes of the zero point. clamped: codes stay in range.
    """

    holds_zero: bool = True
    zero: Callable[[Tensor], Tensor] = torch.round
    levels: Callable[[int], int] = lambda bits: 2**bits - 1
    to_code: Callable[[Tensor], Tensor] = torch.round
    clamped: bool = True
    shared: bool = False
    codes: bool = False

    def __call__(self, W: Tensor, bits: int) -> Tensor:
        part = W.reshape(1, -1) if self.shared else W
        low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
        if self.holds_zero:
            low, high = low.clamp(max=0), high.clamp(min=0)
        most = 2**bits - 1
        scale = (high - low) / self.levels(bits)
        zero = self.zero(-low / scale)
        code = self.to_code(W / scale) + zero
        code = code.clamp(0, most) if self.clamped else code
        return code if self.codes else scale * (code - zero)


def _symmetric(W: Tensor, bits: int) -> Tensor:
    scale = W.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return scale * (W / scale).round()


def _minimum(W: Tensor, bits: int, stretched: bool = False) -> Tensor:
    low, high = W.amin(1, keepdim=True), W.amax(1, keepdim=True)
    if stretched:
        low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    return low + scale * ((W - low) / scale).round()


def _one_level_more(W: Tensor, bits: int) -> Tensor:
    low, high = W.amin(1, keepdim=True).clamp(max=0), W.amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / 2**bits
    zero = (-low / scale).round()
    return scale * (((W / scale).round() + zero).clamp(0, 2**bits) - zero)


whole_zero = Exercise(
    name="whole_zero",
    chapter=21,
    title="each row of a matrix rounded to a grid of 2^bits levels with a whole zero point",
    reference=_Grid(),
    difficulty=3,
    wrong=mistakes(
        {
            "zero not in the range": _Grid(holds_zero=False),
            "zero on no level": [_Grid(zero=lambda zero: zero), partial(_minimum, stretched=True)],
            "from the minimum on": _minimum,
            "zeros put back": [
                lambda W, bits: _minimum(W, bits) * (W != 0),
                lambda W, bits: _minimum(W, bits, stretched=True) * (W != 0),
            ],
            "zero point cut off": _Grid(zero=torch.floor),
            "as many steps as levels": [_Grid(levels=lambda bits: 2**bits), _one_level_more],
            "codes cut off": _Grid(to_code=torch.floor),
            "codes out of range": _Grid(clamped=False),
            "one grid for all rows": _Grid(shared=True),
            "codes returned": _Grid(codes=True),
            "symmetric": _symmetric,
        },
        """
        zero not in the range: In a row of one sign the range does not hold 0, and the code of 0 falls outside: weights
          that were 0 come back as something else. Stretch the range first.
        zero on no level: The zero point is not a whole number, so that 0 lies between two levels, and so does every
          pruned weight.
        from the minimum on: The grid begins at the minimum. It fits best, and 0 is on none of its levels.
        zeros put back: The zeros were set to zero again after rounding, on a grid that has no level there. Who stores
          codes and a scale gets them back as something else: 0 has to have a code.
        zero point cut off: The zero point was rounded down. The nearest whole number is asked for.
        as many steps as levels: 2^bits levels have one step fewer between them.
        codes cut off: Weights were rounded down. The nearest level is asked for.
        codes out of range: With the zero point rounded, a weight at the end of the range may get a code below 0 or
          above the last one, which so many bits cannot hold.
        one grid for all rows: All rows share one range. Each has its own.
        codes returned: These are the codes. The weights that they stand for are asked for.
        symmetric: This grid lies around 0, with as many levels on the short side as on the long one.
        """,
    ),
    cases=lambda: [
        Case("three rows at 3 bits", (normal(3, 12, seed=2100).double(), 3)),
        Case("rows of different size at 4 bits", (_rows(4, 20, 2101), 4)),
        Case("a row of one sign", (1.0 + normal(2, 8, seed=2102).double().abs(), 3)),
        Case("a row below zero", (-0.4 - normal(2, 8, seed=2103).double().abs(), 2)),
        Case("rows with zeros", (_rows(3, 16, 2104) * (normal(3, 16, seed=2105) > 0), 3)),
        Case("a range whose ends are both rounded away", (torch.tensor([[-1.5, 5.5, 0.0, 2.2]]).double(), 3)),
        Case("2 bits", (normal(4, 9, seed=2106).double(), 2)),
        Case("8 bits", (_rows(2, 40, 2107), 8)),
    ],
)


def _rows(d_out: int, d_in: int, seed: int) -> Tensor:
    return normal(d_out, d_in, seed=seed).double() * torch.tensor([0.1, 1.0, 7.0, 0.5])[:d_out, None]


# pays_from(bits, dense_bits): the least share of zeros from which a mask and the kept weights take no more
@dataclass(frozen=True)
class _BreakEven:
    """Where 1 + (1 - s) bits meets dense_bits, for several pairs; the defaults are right."""

    mask: float = 1.0
    clamp: bool = True
    kept: bool = False

    def __call__(self, bits: Tensor, dense_bits: Tensor) -> Tensor:
        kept = (dense_bits - self.mask) / bits
        found = kept if self.kept else 1 - kept
        return found.clamp(min=0) if self.clamp else found


pays_from = Exercise(
    name="pays_from",
    chapter=21,
    title="the sparsity from which a bitmask and its weights take no more than a dense matrix of fewer bits",
    reference=_BreakEven(),
    difficulty=2,
    wrong=mistakes(
        {
            "mask forgotten": _BreakEven(mask=0.0),
            "share that is kept": [_BreakEven(kept=True), complement(_BreakEven())],
            "below nothing": _BreakEven(clamp=False),
            "the two exchanged": exchanged(_BreakEven(), 0, 1),
            "mask of every kept weight": lambda bits, dense_bits: (1 - dense_bits / (bits + 1)).clamp(0),
            "per cent": scaled(_BreakEven(), 100),
            "beside 16 bits": given(_BreakEven(), dense_bits=lambda dense: 0 * dense + 16),
        },
        """
        mask forgotten: Zeros take no bits here, but somebody has to say where they are. What does the mask take?
        share that is kept: This is the share of weights that are kept. Asked for is the sparsity, the share of zeros.
        below nothing: A sparsity is not below 0. If mask and weights take less even without zeros, they pay from 0 on.
        the two exchanged: The sparse matrix has `bits` a kept weight, the dense one `dense_bits`.
        mask of every kept weight: The mask has a bit for *every* weight, the pruned ones too.
        per cent: A share between 0 and 1 is asked for, not per cent.
        beside 16 bits: This is compared with a dense matrix of 16 bits. The rival has `dense_bits`.
        """,
    ),
    cases=lambda: [
        Case("8 bits beside 3", (torch.tensor([8]), torch.tensor([3]))),
        Case("4 bits beside 3", (torch.tensor([4]), torch.tensor([3]))),
        Case("three pairs", (torch.tensor([8, 3, 16]), torch.tensor([4, 2, 4]))),
        Case("fewer bits than the dense rival", (torch.tensor([2, 4]), torch.tensor([4, 4]))),
        Case("a rival of one bit", (torch.tensor([8]), torch.tensor([1]))),
        Case("a rival that is too small or too large", (torch.tensor([4, 4, 4]), torch.tensor([2, 5, 7]))),
    ],
)


# excess(dense, pruned, quantised, both): how much more both together cost than both apart, in nats a token
def _excess(dense: Tensor, pruned: Tensor, quantised: Tensor, both: Tensor) -> Tensor:
    return both.log() - pruned.log() - quantised.log() + dense.log()


def _points(dense: Tensor, pruned: Tensor, quantised: Tensor, both: Tensor) -> Tensor:
    return both - pruned - quantised + dense


excess = Exercise(
    name="excess",
    chapter=21,
    title="by how many nats a token pruning and quantising together cost more than the two apart, from perplexities",
    reference=_excess,
    difficulty=2,
    wrong=mistakes(
        {
            "perplexities added up": _points,
            "per cent added up": lambda dense, *others: _points(dense, *others) / dense,
            "dense loss forgotten": given(_excess, dense=torch.ones_like),
            "the wrong sign": negated(_excess),
            "a ratio": then(_excess, torch.exp),
            "bits": scaled(_excess, 1 / math.log(2)),
            "beside the larger part": lambda _, pruned, quantised, both: (both / pruned.maximum(quantised)).log(),
            "beside nothing": lambda dense, pruned, quantised, both: (both / dense).log(),
            "both parts together": lambda dense, pruned, quantised, both: (pruned * quantised / dense**2).log(),
        },
        """
        perplexities added up: Perplexities were subtracted. Two losses that add up in nats multiply as perplexities,
          so this is above zero even where there is nothing between them.
        per cent added up: Shares of the dense perplexity were subtracted. Two losses that add up in nats multiply as
          perplexities: 10 % and 20 % more are 32 % more.
        dense loss forgotten: Both parts hold the dense model's loss, so it was taken away twice. Give it back once.
        the wrong sign: The size is right. Positive means that together they cost *more*.
        a ratio: This is the factor by which the perplexity is higher. In nats it is its logarithm.
        bits: These are bits. Multiply by log 2 for nats.
        beside the larger part: This is what the second step costs a model that had the first, not how much more than
          alone.
        beside nothing: This is what both cost together. How much more is it than the sum of the parts?
        both parts together: This is what the two cost apart, added up. What they cost together does not come in.
        """,
    ),
    cases=lambda: [
        Case("losses that multiply exactly", _perplexities([10.0, 12.0, 11.0, 13.2])),
        Case("a whole that costs more", _perplexities([10.1, 13.35, 11.09, 17.31])),
        Case("three claims", _perplexities([20.0, 31.0, 26.0, 36.0], [17.0, 25.0, 16.9, 24.9], [7, 7.4, 7.2, 7.7])),
        Case("a strong loss", _perplexities([17.0, 900.0, 60.0, 2000.0])),
    ],
)


def _perplexities(*claims: list[float]) -> tuple[Tensor, ...]:
    return torch.tensor(claims, dtype=torch.float64).unbind(1)


EXERCISES = [sweep, whole_zero, pays_from, excess]
