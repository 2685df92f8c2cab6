"""The exercises of chapter 16: the mask of a round, one threshold for several layers, what a ticket costs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import given, then
from minprune.course.checks.values import HALVES, half_up, normal
from minprune.errors import PruneError


# next_mask(W, keep, rate) and global_masks(weights, masks, rate): the survivors of one more round
@dataclass(frozen=True)
class _Round:
    """One round of pruning over the layers, right unless a field says otherwise.

    of: whose number the rate is a share of; alive: whether what is gone stays gone and is not counted. zeros: what is
    gone is ranked as zero, among survivors that are zero, and as many as were gone are taken out beside the others.
    """

    score: Callable[[Tensor], Tensor] = torch.abs
    of: str = "survivors"
    alive: bool = True
    largest: bool = False
    per_layer: bool = False
    scale: Callable[[Tensor], Tensor] | None = None
    keep_share: bool = False
    invert: bool = False
    to_integer: Callable[[float], int] = round
    ties: str = "exact"
    zeros: bool = False

    def __call__(self, weights: list[Tensor], masks: list[Tensor], rate: float) -> tuple[Tensor, ...]:
        if self.per_layer:
            alone = replace(self, per_layer=False)
            return tuple(alone([W], [keep], rate)[0] for W, keep in zip(weights, masks, strict=True))
        scores = [self.score(W) / (self.scale(W) if self.scale else 1) for W in weights]
        if self.zeros:
            scores = [score.masked_fill(~keep, 0) for score, keep in zip(scores, masks, strict=True)]
        flat = torch.cat([score.flatten() for score in scores])
        old = torch.cat([keep.flatten() for keep in masks]) if self.alive else torch.ones_like(flat, dtype=torch.bool)
        survivors = int(torch.cat([keep.flatten() for keep in masks]).sum())
        share = rate * (survivors if self.of == "survivors" else len(flat))
        goes = self.to_integer(share)
        goes = survivors - goes if self.keep_share else goes
        goes += len(flat) - survivors if self.zeros else 0
        new = old.clone()
        places = old.nonzero()[:, 0]  # of the candidates
        order = flat[places].sort(stable=True, descending=self.largest).indices
        if self.ties == "exact":
            new[places[order[:goes]]] = False
        elif goes:
            new &= flat > flat[places[order[goes - 1]]]
        new = ~new if self.invert else new
        parts = new.split([W.numel() for W in weights])
        return tuple(part.view(W.shape) for part, W in zip(parts, weights, strict=True))


# The mistakes that both exercises know: fields of a round, and what is wrong.
_FIELDS: dict[str, list[dict[str, Any]]] = {
    "share of all weights": [{"of": "all"}],
    "pruned weights come back": [{"alive": False}, {"alive": False, "zeros": True}],
    "signed weights": [{"score": torch.clone}],
    "largest pruned": [{"largest": True}],
    "share kept": [{"keep_share": True}],
    "inverted mask": [{"invert": True}],
    "one too few": [{"to_integer": int}],
    "one too many": [{"to_integer": math.ceil}],
    "halves rounded up": [{"to_integer": half_up}],
    "ties": [{"ties": "threshold"}],
}
_MESSAGES = f"""
share of all weights: Too many go. The rate is a share of the weights that are still there, so fewer go in each round.
pruned weights come back: Weights that an earlier round had pruned are kept again, or use up this round's share. Rank
  the survivors only: what stands at the other places is not in the network.
pruned weights come back: Pruned weights were ranked as zeros. Where survivors are zero, too, the two kinds change
  places: rank the survivors only.
signed weights: Weights are ranked with their signs: large negative ones go first.
largest pruned: The largest survivors go. Small weights are to go.
share kept: The rate is the share that *stays*. It is the share that is to go.
inverted mask: The mask is upside down: True means kept.
one too few: The number that goes is rounded down. Round to the nearest whole number.
one too many: The number that goes is rounded up. Round to the nearest whole number.
halves rounded up: {HALVES}
ties: A threshold prunes every weight that equals it. With equal weights that is more than were asked for: of these, the
  ones with the lower index go.
"""


def _one(round_: _Round) -> Callable[[Tensor, Tensor, float], Tensor]:
    return lambda W, keep, rate: round_([W], [keep], rate)[0]


def _half(*shape: int, seed: int, share: float = 0.5) -> Tensor:
    return normal(*shape, seed=seed) > torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - share)).item()


def _mask_cases() -> list[Case]:
    W, small = normal(6, 7, seed=1501), normal(3, 5, seed=1503)
    zeros = _half(6, 7, seed=1502, share=0.6)
    ties = torch.tensor([[0.5, -0.5, 0.5, 2.0], [1.0, 0.5, -0.5, 0.5]])
    kept_zero, two_gone = torch.tensor([[True, True, False, True]]), torch.tensor([[1, 1, 1, 0, 0, 1, 1]]).bool()
    anything = W.masked_fill(~zeros, torch.nan)
    anything[tuple((~zeros).nonzero()[0])] = torch.inf
    return [
        Case("a dense layer", (W, torch.ones(6, 7, dtype=torch.bool), 0.2)),
        Case("a number that is rounded up", (small, torch.ones(3, 5, dtype=torch.bool), 0.25)),
        Case("a layer in its second round", (W * zeros, zeros, 0.35)),
        Case("a layer whose pruned weights are stored with old values", (W, zeros, 0.35)),
        Case("equal weights", (ties, torch.ones(2, 4, dtype=torch.bool), 0.4)),
        Case("a survivor that happens to be zero", (torch.tensor([[0.0, 3.0, 0.0, -1.0]]), kept_zero, 0.4)),
        Case("several survivors that happen to be zero", (torch.tensor([[0.0, 0, 0, 0, 0, -1, 2]]), two_gone, 0.4)),
        Case("pruned weights that are stored as NaN and infinity", (anything, zeros, 0.35)),
        Case("half of five survivors", (small, torch.arange(15).view(3, 5) % 3 == 0, 0.5)),
        Case("a number that is rounded down", (small, torch.ones(3, 5, dtype=torch.bool), 0.22)),
        Case("all survivors", (W * zeros, zeros, 1.0)),
        Case("a rate of zero", (W * zeros, zeros, 0.0)),
    ]


next_mask = Exercise(
    name="next_mask",
    chapter=16,
    title="the mask of a layer after one more round of magnitude pruning",
    reference=_one(_Round()),
    difficulty=2,
    wrong=mistakes({name: [_one(_Round(**form)) for form in forms] for name, forms in _FIELDS.items()}, _MESSAGES),
    cases=_mask_cases,
)


def _global_cases() -> list[Case]:
    loud, quiet = 3 * normal(4, 5, seed=1511), 0.5 * normal(6, 4, seed=1512)
    first, second = _half(4, 5, seed=1513, share=0.7), _half(6, 4, seed=1514, share=0.6)
    ties = [torch.tensor([[1.0, -1.0, 2.0]]), torch.tensor([[1.0], [-1.0], [-4.0], [1.0]])]
    zeros = [torch.tensor([[0.0, 0, 0, 3]]), torch.tensor([[0.0, 0, 0, -1, 2]])]
    gone = [torch.tensor([[True, False, True, True]]), torch.tensor([[True, False, True, True, False]])]
    anything = [W.masked_fill(~keep, torch.nan) for W, keep in ((loud, first), (quiet, second))]
    anything[0][tuple((~first).nonzero()[0])] = torch.inf
    return [
        Case("a loud and a quiet layer", ([loud, quiet], [torch.ones(4, 5) > 0, torch.ones(6, 4) > 0], 0.2)),
        Case("two layers in a later round", ([loud * first, quiet * second], [first, second], 0.3)),
        Case("pruned weights that are stored with old values", ([loud, quiet], [first, second], 0.4)),
        Case("equal weights", (ties, [W != 0 for W in ties], 0.3)),
        Case("survivors that happen to be zero", (zeros, gone, 0.3)),
        Case("pruned weights that are stored as NaN and infinity", (anything, [first, second], 0.3)),
        Case("half of nine survivors", ([loud[:1], quiet[:1]], [torch.ones(1, 5) > 0, torch.ones(1, 4) > 0], 0.5)),
        Case("a number that is rounded down", ([loud, quiet], [torch.ones(4, 5) > 0, torch.ones(6, 4) > 0], 0.3)),
        Case("all survivors", ([loud, quiet], [first, second], 1.0)),
        Case("a rate of zero", ([loud, quiet], [first, second], 0.0)),
        Case("three layers", ([loud, quiet, normal(3, 3, seed=1515)], [first, second, torch.ones(3, 3) > 0], 0.35)),
    ]


global_masks = Exercise(
    name="global_masks",
    chapter=16,
    title="the masks of several layers after a round with one threshold for all of them",
    reference=_Round(),
    difficulty=3,
    wrong=mistakes(
        {
            "a threshold for each layer": _Round(per_layer=True),
            "weights made comparable first": _Round(scale=lambda W: W.abs().mean()),
            **{name: [_Round(**form) for form in forms] for name, forms in _FIELDS.items()},
        },
        f"""
a threshold for each layer: Every layer loses the same share. With one threshold a layer of small weights loses more
  than a layer of large ones.
weights made comparable first: The layers were scaled before they were compared. Asked for was the plain size of the
  weights.
{_MESSAGES.strip()}
        """,
    ),
    cases=_global_cases,
)


# ticket_cost(sizes, rate, sparsity, steps, rewind): how many rounds it takes, and how many training steps
def _rounds(sizes: Tensor, rate: float, sparsity: float, to_integer: Callable[[float], int] = round) -> int:
    """The least number of rounds after which at least this share of all weights is pruned."""
    number, left, total = 0, sizes.tolist(), int(sizes.sum())
    while (total - sum(left)) / total < sparsity:  # 7 / 100 is the number that 0.07 is read as; 0.07 * 100 is not 7
        before, left = left, [n - to_integer(rate * n) for n in left]
        if left == before:
            raise PruneError(f"layers of {left} weights lose none at a rate of {rate:g}: {sparsity:g} is never reached")
        number += 1
    return number


def _rounded_once(sizes: Tensor, rate: float, sparsity: float) -> int:
    """Whole numbers only at the end of so many rounds."""
    enough, number = (1 - sparsity) * float(sizes.sum()), 0
    while sum(round(n * (1 - rate) ** number) for n in sizes.tolist()) > enough * (1 + 1e-12):
        number += 1
    return number


def _all_steps(rounds: int, steps: int, rewind: int) -> int:
    return steps + rounds * (steps - rewind)


def _cost(rounds: Callable = _rounds, total: Callable = _all_steps) -> Callable:
    def cost(sizes: Tensor, rate: float, sparsity: float, steps: int, rewind: int) -> Tensor:
        number = rounds(sizes, rate, sparsity)
        return torch.tensor([number, total(number, steps, rewind)])

    return cost


ticket_cost = Exercise(
    name="ticket_cost",
    chapter=16,
    title="the rounds and the training steps that a ticket of a given sparsity takes",
    reference=_cost(),
    difficulty=2,
    wrong=mistakes(
        {
            "rates added up": _cost(lambda sizes, rate, sparsity: math.ceil(sparsity / rate - 1e-9)),
            "one round too few": _cost(then(_rounds, lambda number: number - 1)),
            "rounded to the nearest": _cost(lambda sizes, rate, share: round(math.log(1 - share) / math.log(1 - rate))),
            "all layers as one": _cost(given(_rounds, sizes=lambda sizes: sizes.sum()[None])),
            "the first layer only": _cost(given(_rounds, sizes=lambda sizes: sizes[:1])),
            "the largest layer only": _cost(given(_rounds, sizes=lambda sizes: sizes.max()[None])),
            "each layer for itself": _cost(lambda sizes, rate, s: max(_rounds(size[None], rate, s) for size in sizes)),
            "whole numbers only at the end": _cost(_rounded_once),
            "rounded up": _cost(partial(_rounds, to_integer=math.ceil)),
            "halves rounded up": _cost(partial(_rounds, to_integer=half_up)),
            "a formula without whole numbers": _cost(
                lambda sizes, rate, sparsity: math.ceil(math.log(1 - sparsity) / math.log(1 - rate))
            ),
            "dense training forgotten": _cost(total=lambda n, steps, rewind: n * (steps - rewind)),
            "last training forgotten": _cost(total=lambda n, steps, rewind: steps + (n - 1) * (steps - rewind)),
            "always from the start": _cost(total=lambda n, steps, rewind: steps + n * steps),
            "never from the start": _cost(total=lambda n, steps, rewind: (n + 1) * (steps - rewind)),
            "only the steps rewound over": _cost(total=lambda n, steps, rewind: steps + n * rewind),
        },
        """
        rates added up: Wrong number of rounds: the rates were added up. Each round takes its share of what is *left*.
        one round too few: After that many rounds the network is not yet as sparse as asked for.
        rounded to the nearest: The number of rounds was rounded to the nearest whole number: in some cases the ticket
          is not as sparse as asked for.
        all layers as one: Wrong number of rounds where layers are small: all weights were counted as one number. Each
          layer loses a whole number of its own.
        the first layer only: Wrong number of rounds where layers differ in size: only the first one was followed.
        the largest layer only: Wrong number of rounds where layers differ in size: only the largest one was followed.
        each layer for itself: Wrong number of rounds where layers are small: every layer had to become as sparse as
          that. Asked for is the share of all weights.
        whole numbers only at the end: Wrong number of rounds where layers are small: each round begins with a whole
          number of survivors, and what was rounded away once does not come back.
        rounded up: Wrong number of rounds where layers are small: too many went in each, their number was rounded up.
        halves rounded up: A half was rounded up. Python's `round` takes a half to the even neighbour, and so does this
          book: round(2.5) is 2 and round(3.5) is 4. Where does your rounding come from?
        a formula without whole numbers: Wrong number of rounds where layers are small: no layer loses a fraction of a
          weight, and the formula of exact shares does not know that.
        dense training forgotten: The rounds are right, the steps are too few: what does the first mask come from?
        last training forgotten: The rounds are right, the steps are too few: a ticket that was not trained has no
          score.
        always from the start: The rounds are right, the steps are too many: a round that goes back to a later step does
          not repeat the steps before it.
        never from the start: The rounds are right. Somebody has to take the steps before the point that rounds go back
          to: once.
        only the steps rewound over: The rounds are right. A round trains from the step it goes back to until the end,
          not up to that step.
        """,
    ),
    cases=lambda: [
        Case("a fifth a round, to 90 %", (torch.tensor([12000, 30000, 1000]), 0.2, 0.9, 1000, 0)),
        Case("rewinding to a tenth of the run", (torch.tensor([12000, 30000, 1000]), 0.2, 0.9, 1000, 100)),
        Case("half a round, to 75 % exactly", (torch.tensor([4096, 1024]), 0.5, 0.75, 600, 60)),
        Case("a small layer", (torch.tensor([19]), 0.7, 0.95, 500, 20)),
        Case("one round that is enough", (torch.tensor([400, 800]), 0.6, 0.55, 400, 40)),
        Case("many small layers", (torch.tensor([23] * 60 + [27] * 40), 0.2, 0.9, 300, 0)),
        Case("layers of 30 and of 14", (torch.tensor([30] * 2 + [14] * 5), 0.3, 0.9, 200, 10)),
        Case("half a round of odd layers", (torch.tensor([5, 14] + [9] * 5 + [6] * 2), 0.5, 0.75, 200, 10)),
        Case("layers of four sizes", (torch.tensor([11] * 2 + [5] * 2 + [6] * 5 + [19] * 2), 0.2, 0.6, 200, 10)),
        Case("one larger layer", (torch.tensor([19] + [7] * 20 + [5]), 0.3, 0.8, 200, 10)),
        Case("a low rate", (torch.tensor([10, 12]), 0.06, 0.2, 100, 1)),
        Case("nothing to prune", (torch.tensor([100, 70]), 0.4, 0.0, 100, 10)),
    ],
)


EXERCISES = [next_mask, global_masks, ticket_cost]
