"""The exercises of chapter 07 on the mask: what a swap changes, and how a mask comes about gradually."""

from collections.abc import Callable

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.optimum import inputs, mask
from minprune.course.checks.values import normal

# swap_change(w, G, keep, p, u): by how much the loss changes if p is pruned and u comes back


def _change(
    squares: float = 1,
    linear: float = 2,
    cross: float = -2,
    lost: Callable[[Tensor, Tensor], Tensor] = lambda w, keep: w * ~keep,
) -> Callable[[Tensor, Tensor, Tensor, int, int], float]:
    """The formula with its three kinds of terms weighed; lost: (w, keep) -> the row whose product with G is g."""

    def swap_change(w: Tensor, G: Tensor, keep: Tensor, p: int, u: int) -> float:
        w, G, keep = w.double(), G.double(), keep.bool()
        g = lost(w, keep) @ G
        return float(
            squares * (w[p] ** 2 * G[p, p] + w[u] ** 2 * G[u, u])
            + linear * (w[p] * g[p] - w[u] * g[u])
            + cross * w[p] * w[u] * G[p, u]
        )

    return swap_change


def _after(w: Tensor, G: Tensor, keep: Tensor, p: int, u: int) -> float:
    w, G, keep = w.double(), G.double(), keep.bool().clone()
    keep[p], keep[u] = False, True
    return float((w * ~keep) @ G @ (w * ~keep))


swap_change = Exercise(
    name="swap_change",
    chapter=7,
    title="by how much a row's loss changes if one kept and one pruned weight change places",
    reference=_change(),
    difficulty=3,
    wrong=(
        Wrong(
            "cross term with the wrong sign",
            _change(cross=2),
            "The two moves were put together with the wrong sign. One of them adds to what is lost, the other takes "
            "away from it: what is the sign of their product?",
        ),
        Wrong(
            "no cross term",
            _change(cross=0),
            "The two moves were priced one by one and added up. That is right only for inputs that are uncorrelated.",
        ),
        Wrong(
            "cross term once",
            _change(cross=-1),
            "Expand the square again: a mixed term comes twice.",
        ),
        Wrong(
            "gradient once",
            _change(linear=1),
            "Expand the square again: the product of what is lost already with what is new comes twice.",
        ),
        Wrong(
            "as if nothing were pruned yet",
            _change(linear=0),
            "What is pruned already does not enter. A weight may be cheap because it cancels an error that is there.",
        ),
        Wrong(
            "squares missing",
            _change(squares=0),
            "These are first-order terms only. A weight is not small: its own square counts.",
        ),
        Wrong(
            "difference of the two prices",
            lambda w, G, keep, p, u: float(w[p] ** 2 * G[p, p] - w[u] ** 2 * G[u, u]),
            "This is what the two weights would cost if they were the only ones ever pruned. The other zeros of the "
            "row matter, and so does the correlation of the two.",
        ),
        Wrong(
            "gradient of the kept weights",
            _change(lost=lambda w, keep: w * keep),
            "g was made from the weights that are kept. The loss is that of the ones that are lost.",
        ),
        Wrong(
            "gradient of the whole row",
            _change(lost=lambda w, keep: w),
            "g was made from the whole row. The loss is that of the weights that are lost.",
        ),
        Wrong(
            "linear terms with the wrong sign",
            _change(linear=-2),
            "The terms with g have the wrong sign: either r is taken as new minus old weights in one place and as old "
            "minus new in the other, or p and u have changed places: p is pruned now, u comes back.",
        ),
        Wrong(
            "no change",
            lambda w, G, keep, p, u: 0.0,
            "Your change is always 0. Were the same weights pruned before and after, because u was pruned once more "
            "and p "
            "came back?",
        ),
        Wrong(
            "gain instead of change",
            lambda w, G, keep, p, u: -_change()(w, G, keep, p, u),
            "The sign is that of a gain. A swap that lowers the loss has a *negative* change.",
        ),
        Wrong("the loss afterwards", _after, "This is the loss after the swap. By how much did it *change*?"),
    ),
    cases=lambda: [
        Case(
            f"{d} inputs, {kept} kept",
            (
                normal(d, seed=s),
                inputs(d, s + 1),
                mask((d,), kept, s + 4),
                _place(d, kept, s, 1, first),
                _place(d, kept, s, 0, first),
            ),
        )
        for s, d, kept, first in [
            (800, 4, 2, True),
            (860, 6, 3, True),
            (850, 6, 5, True),
            (870, 8, 2, True),
            (830, 9, 5, True),
            (830, 9, 4, False),
            (880, 7, 3, False),
        ]
    ],
)


def _place(d: int, kept: int, seed: int, wanted: int, first: bool) -> int:
    """The first or last index that is kept (1) or pruned (0) in the case's mask."""
    places = [i for i, kept in enumerate(mask((d,), kept, seed + 4).int().tolist()) if kept == wanted]
    return places[0 if first else -1]


# ramp(k, sparsity, gradual): the cubic schedule of ADMM's mask


def _ramp(share: Callable[[Tensor], Tensor], held: bool = True) -> Callable[[Tensor, float, int], Tensor]:
    def ramp(k: Tensor, sparsity: float, gradual: int) -> Tensor:
        done = k / gradual
        return sparsity * share(done.clamp(max=1) if held else done)

    return ramp


def _bend(done: Tensor) -> Tensor:
    return 1 - (1 - done) ** 3


ramp = Exercise(
    name="ramp",
    chapter=7,
    title="the share of zeros in each round of gradual ADMM: steep at first, flat at the end, then held",
    reference=_ramp(_bend),
    difficulty=1,
    wrong=(
        Wrong(
            "no ramp",
            _ramp(torch.ones_like),
            "Every round prunes the full share. The schedule is computed by somebody perhaps, but not used.",
        ),
        Wrong("linear", _ramp(lambda done: done), "This rises by the same amount in each round."),
        Wrong(
            "slow first",
            _ramp(lambda done: done**3),
            "This begins slowly and ends steeply. Many weights can go at first, when choosing is easy; few at the end.",
        ),
        Wrong("a square", _ramp(lambda done: 1 - (1 - done) ** 2), "This bends less than a cubic does."),
        Wrong("not held", _ramp(_bend, held=False), "After the last gradual round the share is to stay where it is."),
        Wrong(
            "falling",
            _ramp(lambda done: (1 - done) ** 3),
            "This begins with the full share and ends with none: it is the share still to go.",
        ),
        Wrong(
            "one round late",
            lambda k, sparsity, gradual: _ramp(_bend)(k - 1, sparsity, gradual),
            "Round 1 prunes nothing, and the full share comes one round late. Rounds count from 1.",
        ),
        Wrong(
            "the share that is kept",
            lambda k, sparsity, gradual: 1 - _ramp(_bend)(k, sparsity, gradual),
            "This is the share that is *kept*.",
        ),
    ),
    cases=lambda: [
        Case("ten rounds, all gradual", (torch.arange(1.0, 11.0), 0.6, 10)),
        Case("twenty rounds, fifteen gradual", (torch.arange(1.0, 21.0), 0.7, 15)),
        Case("one gradual round of three", (torch.arange(1.0, 4.0), 0.5, 1)),
        Case("nothing to prune", (torch.arange(1.0, 4.0), 0.0, 2)),
        Case("five rounds of ten gradual ones", (torch.arange(1.0, 6.0), 0.5, 10)),
    ],
)

EXERCISES = [swap_change, ramp]
