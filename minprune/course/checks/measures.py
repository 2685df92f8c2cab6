"""The exercises of chapter 01 on what comes out: perplexity, and counting zeros."""

from collections.abc import Callable

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import normal

# perplexity(nlls): of windows that may differ in length, every prediction weighing the same


def _mean_nll(nlls: list[Tensor]) -> Tensor:
    return torch.cat(nlls).mean()


perplexity = Exercise(
    name="perplexity",
    chapter=1,
    title="perplexity from the negative log-likelihoods of windows of different lengths",
    reference=lambda nlls: _mean_nll(nlls).exp(),
    difficulty=2,
    wrong=(
        Wrong(
            "mean of the windows' perplexities",
            lambda nlls: torch.stack([nll.mean().exp() for nll in nlls]).mean(),
            "Each window's perplexity was computed and these were averaged. exp is convex, so this is always too large "
            "unless all windows are equally hard: average first, exponentiate once.",
        ),
        Wrong(
            "windows weighed alike",
            lambda nlls: torch.stack([nll.mean() for nll in nlls]).mean().exp(),
            "A window of three tokens counted as much as a window of a hundred. Every *token* is to weigh the same.",
        ),
        Wrong(
            "power of two",
            lambda nlls: 2 ** _mean_nll(nlls),
            "The likelihoods are in nats, so the base is e. A base of 2 goes with bits.",
        ),
        Wrong(
            "no exponential",
            _mean_nll,
            "This is the cross-entropy, the mean negative log-likelihood. One step is missing.",
        ),
        Wrong(
            "sum instead of mean",
            lambda nlls: torch.cat(nlls).sum().exp(),
            "This is one over the probability of the whole text, which grows with its length. Perplexity is per token.",
        ),
        Wrong(
            "first tokens counted",
            lambda nlls: (torch.cat(nlls).sum() / (len(torch.cat(nlls)) + len(nlls))).exp(),
            "The sum was divided by one token more for each window. The first token of a window is never predicted: "
            "count predictions, not tokens.",
        ),
        Wrong(
            "probability instead of its inverse",
            lambda nlls: (-_mean_nll(nlls)).exp(),
            "This is the (geometric) mean probability of a token. Perplexity is one over it: mind the sign.",
        ),
    ),
    cases=lambda: [
        Case("windows of different lengths", ([normal(n, seed=n).abs() * 2 for n in (3, 17, 8)],)),
        Case("an easy window and a hard one", ([normal(6, seed=40).abs() * 0.2, normal(6, seed=41).abs() + 3],)),
        Case("a model that guesses among eight tokens", ([torch.full((4,), 8.0).log(), torch.full((9,), 8.0).log()],)),
        Case("a model that is always right", ([torch.zeros(5), torch.zeros(2)],)),
        Case("one window of one prediction", ([torch.tensor([1.25])],)),
        Case("texts so long that their probability is no number", ([normal(n, seed=n).abs() + 3 for n in (400, 900)],)),
        Case("a prediction that was next to impossible", ([torch.tensor([0.5, 200, 0.25]), torch.full((9,), 1.5)],)),
    ],
)


# zero_shares(weights): the share of zeros of each matrix and, last, of all together


def _shares(is_zero: list[Tensor], together: Callable[[list[Tensor]], Tensor] | None = None) -> Tensor:
    together = together or (lambda flags: torch.cat([flag.flatten() for flag in flags]).float().mean())
    return torch.stack([*(flag.float().mean() for flag in is_zero), together(is_zero)])


def _zero_shares(weights: list[Tensor]) -> Tensor:
    return _shares([W == 0 for W in weights])


_NEAR = (
    "Small weights were counted as zeros. A weight of a millionth is stored and multiplied like any other: exactly 0."
)

zero_shares = Exercise(
    name="zero_shares",
    chapter=1,
    title="the share of zeros of each matrix and, as the last entry, of all matrices together",
    reference=_zero_shares,
    difficulty=2,
    wrong=(
        Wrong(
            "mean over the matrices",
            lambda weights: _shares(
                [W == 0 for W in weights], lambda z: torch.stack([f.float().mean() for f in z]).mean()
            ),
            "The shares of the matrices are right, but the last entry is their plain average. A large matrix "
            "holds more of the weights than a small one.",
        ),
        Wrong(
            "counts the kept ones",
            lambda weights: 1 - _zero_shares(weights),
            "This is the density, the share of weights that are *not* zero. Sparsity is the share of zeros.",
        ),
        Wrong("near zeros counted", lambda weights: _shares([W.abs() < 1e-3 for W in weights]), _NEAR),
        Wrong("near zeros counted", lambda weights: _shares([W.abs() < 1e-8 for W in weights]), _NEAR),
        Wrong(
            "negative weights counted",
            lambda weights: _shares([W <= 0 for W in weights]),
            "Negative weights were counted, too.",
        ),
        Wrong(
            "rows of zeros counted",
            lambda weights: torch.stack(
                [
                    *((W == 0).all(1).float().mean() for W in weights),
                    torch.cat([(W == 0).all(1) for W in weights]).float().mean(),
                ]
            ),
            "Only rows that are zero from end to end were counted. Here a zero may stand anywhere.",
        ),
        Wrong(
            "all together first",
            lambda weights: _zero_shares(weights).roll(1),
            "The numbers are right, but the share of all matrices together is to be the *last* entry.",
        ),
        Wrong(
            "percent",
            lambda weights: 100 * _zero_shares(weights),
            "These are per cent; fractions between 0 and 1 are asked for.",
        ),
    ),
    cases=lambda: [
        Case("matrices of different size", ([_sparse(4, 5, zeros=7, seed=50), _sparse(2, 3, zeros=4, seed=51)],)),
        Case("a dense matrix and an empty one", ([normal(3, 4, seed=52), torch.zeros(2, 4)],)),
        Case("tiny weights", ([normal(3, 3, seed=53) * 5e-4 / 3, torch.tensor([[1e-9, 0.0], [-1e-30, 2.0]])],)),
        Case("one matrix with a row of zeros", ([_sparse(3, 4, zeros=4, seed=54)],)),
    ],
)


def _sparse(rows: int, columns: int, *, zeros: int, seed: int) -> Tensor:
    """The first `zeros` entries in row-major order are 0, one of them written -0.0."""
    W = normal(rows, columns, seed=seed)
    W.view(-1)[:zeros] = 0.0
    W.view(-1)[0] = -0.0
    return W


EXERCISES = [perplexity, zero_shares]
