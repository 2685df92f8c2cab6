"""The last exercise of chapter 03: optimal brain surgeon for one row, from an empty cell."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.removals import spd
from minprune.course.checks.values import normal

# obs_row(w, H, zeros): the cheapest weight goes, the others make up for it, and again


@dataclass(frozen=True)
class _Surgeon:
    """Greedy removal from one row; the defaults are right.

    price: (w, H, P) -> (d_in,), what each removal is believed to cost, P being the inverse as it is. ahead: all are
    chosen from the first prices. old: prices from the first inverse and the weights as they are. step: P, H, q ->
    (d_in,), by what the others move for one unit of weight q. eliminate: q is taken out of the inverse. zero: a weight
    that is gone is kept at zero. count: zeros -> how many.
    """

    price: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda w, H, P: w.square() / P.diagonal()
    step: Callable[[Tensor, Tensor, int], Tensor] = lambda P, H, q: -P[q] / P[q, q]
    ahead: bool = False
    old: bool = False
    eliminate: bool = True
    zero: bool = True
    count: Callable[[int, int], int] = lambda zeros, d_in: zeros

    def __call__(self, w: Tensor, H: Tensor, zeros: int) -> Tensor:
        w, H = w.double(), H.double()
        P, gone = torch.linalg.inv(H), torch.zeros(len(w), dtype=torch.bool)
        first, chosen = P, self.price(w, H, P).argsort(stable=True).tolist()
        for t in range(self.count(zeros, len(w))):
            prices = self.price(w, H, first if self.old else P).masked_fill(gone, float("inf"))
            q = chosen[t] if self.ahead else int(prices.argmin())
            w = w + w[q] * self.step(P, H, q)
            gone[q] = True
            if self.zero:
                w = w.masked_fill(gone, 0)
            if self.eliminate:
                P = P - torch.outer(P[:, q], P[q]) / P[q, q]
                P[q], P[:, q] = 0, 0  # not some rounding error, which would be divided by the next pivot
        return w.float()


def _nothing(P: Tensor, H: Tensor, q: int) -> Tensor:
    return -torch.eye(len(P), dtype=P.dtype)[q]


_STALE = (
    "The inverse is that of all inputs, from beginning to end. A weight that is gone cannot make up for the next "
    "one, nor does it share in its cost."
)
_AHEAD = (
    "All weights were chosen from the costs at the beginning. With every removal the costs of the others change: of "
    "two inputs that say the same, the first is cheap and then the second is dear."
)
_NO_UPDATE = "The weights that stay are as they were. They should make up for those that go."

obs_row = Exercise(
    name="obs_row",
    chapter=3,
    title="optimal brain surgeon for one row: the cheapest goes, the others make up for it, and again",
    reference=_Surgeon(),
    difficulty=4,
    rtol=1e-3,
    atol=1e-4,
    wrong=(
        Wrong("inverse not updated", _Surgeon(eliminate=False), _STALE),
        Wrong(
            "pruned weights came back",
            _Surgeon(eliminate=False, zero=False),
            "Too few zeros: repairing one removal moved weights that were gone already. If the inverse were that of "
            "the inputs that are left, this could not happen.",
        ),
        Wrong("chosen at the beginning", _Surgeon(ahead=True), _AHEAD),
        Wrong("chosen at the beginning", _Surgeon(ahead=True, eliminate=False), _AHEAD),
        Wrong(
            "costs from the first inverse",
            _Surgeon(old=True),
            "The updates are right. The costs were taken from the inverse at the beginning, which still counts on "
            "inputs "
            "whose weights are gone.",
        ),
        Wrong(
            "divided by diag(H)",
            _Surgeon(price=lambda w, H, P: w.square() / H.diagonal()),
            "The weights were chosen by w^2 over the diagonal of H. That calls the weights of loud inputs cheap.",
        ),
        Wrong(
            "multiplied by the inverse",
            _Surgeon(price=lambda w, H, P: w.square() * P.diagonal()),
            "The weights were chosen by w^2 *times* the diagonal of the inverse. It belongs under the fraction bar.",
        ),
        Wrong(
            "chosen by magnitude",
            _Surgeon(price=lambda w, H, P: w.abs()),
            "The smallest magnitude went each time. The repair is right, but the cost of a removal also depends on "
            "the inputs.",
        ),
        Wrong(
            "chosen without regard to the repair",
            _Surgeon(price=lambda w, H, P: w.square() * H.diagonal()),
            "The weights were chosen by what their removal costs if nothing is repaired. A weight whose input others "
            "can stand in for is cheaper than that.",
        ),
        Wrong(
            "dearest first",
            _Surgeon(price=lambda w, H, P: -w.square() / P.diagonal()),
            "The dearest weight went each time, not the cheapest.",
        ),
        Wrong(
            "H in place of its inverse",
            _Surgeon(step=lambda P, H, q: -H[q] / H[q, q]),
            "The others moved along a row of H. H says how inputs go together; how one stands in for another is in "
            "the inverse.",
        ),
        Wrong(
            "wrong sign",
            _Surgeon(step=lambda P, H, q: P[q] / P[q, q]),
            "The others moved away from where they were needed. What must the update make of weight q itself?",
        ),
        Wrong(
            "not divided by the pivot",
            _Surgeon(step=lambda P, H, q: -P[q]),
            "The update has the wrong size. What must it make of weight q itself?",
        ),
        Wrong("no update", _Surgeon(step=_nothing), _NO_UPDATE),
        Wrong("no update", _Surgeon(step=_nothing, eliminate=False), _NO_UPDATE),
        Wrong(
            "one too many",
            _Surgeon(count=lambda zeros, d_in: min(zeros + 1, d_in)),
            "One weight more than asked for is gone. Count the rounds of your loop.",
        ),
        Wrong(
            "zeros kept",
            _Surgeon(count=lambda zeros, d_in: d_in - zeros),
            "So many weights *stayed* as were to go.",
        ),
    ),
    cases=lambda: cases(),
)


def cases() -> list[Case]:
    """Rows in which no choice hangs on rounding, and in which the known mistakes lead to different results."""
    return [
        Case("one removal", (normal(5, seed=340), spd(5, 341, (0.3, 1.0, 3.0, 0.7, 2.0)), 1)),
        Case("two inputs that are nearly equal, of which one may go", (torch.tensor([1.0, 1.1, 0.9, 1.6]), _near(), 1)),
        Case("the same inputs, two weights to go", (torch.tensor([1.0, 1.1, 0.9, 1.6]), _near(), 2)),
        Case("two twins and a dearer third", (torch.tensor([1.0, 1.1, 1.2, 1.6]), _near(), 2)),
        Case("all but one", (torch.tensor([1.0, 1.1, 1.2, 1.6]), _near(), 3)),
        Case("half of twelve", (normal(12, seed=343), spd(12, 344, (0.5, 2.0, 4.0, 1.0)), 6)),
        Case("three quarters of sixteen", (normal(16, seed=346), spd(16, 347, (1.0, 0.4)), 12)),
        Case("nothing to remove", (normal(4, seed=349), spd(4, 350), 0)),
        Case("everything removed", (normal(4, seed=352), spd(4, 353), 4)),
    ]


def _near() -> Tensor:
    """Inputs 0 and 1 say nearly the same; 2 and 3 go with nothing."""
    H = torch.diag(torch.tensor([4.0, 4.0, 1.5, 2.0]))
    H[0, 1] = H[1, 0] = 3.8
    return H


EXERCISES = [obs_row]
