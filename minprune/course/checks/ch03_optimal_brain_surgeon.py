"""The exercises of chapter 03: the inverse without an input, several removals, OBS, a weight that comes back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.linalg import inv

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import given, negated, scaled, then
from minprune.course.checks.values import normal


def _inputs(d_in: int, seed: int, loudness: Sequence[float] = (1.0,)) -> Tensor:
    """(6 * d_in tokens, d_in): inputs with one cause in common and a mean that is not zero."""
    X = normal(6 * d_in, d_in, seed=seed) + normal(6 * d_in, 1, seed=seed + 1) + 0.5
    return X * torch.tensor(loudness).repeat(d_in // len(loudness))


# eliminate(P, q): the inverse of H without row and column q, from P = inverse of H alone
def _step(P: Tensor, q: int, scale: Callable[[Tensor], Tensor]) -> Tensor:
    """Row and column q crossed out after their product, times a function of the pivot, was taken away."""
    o = torch.arange(len(P)) != q
    return P[o][:, o] - torch.outer(P[o, q], P[q, o]) * scale(P[q, q])


def _eliminate(P: Tensor, q: int) -> Tensor:
    return _step(P, q, torch.reciprocal)


def _spd(d_in: int, seed: int, loudness: Sequence[float] = (1.0,)) -> Tensor:
    """A well-conditioned matrix H of correlated inputs, (d_in, d_in)."""
    X = _inputs(d_in, seed, loudness)
    return X.T @ X / len(X) + 0.02 * torch.eye(d_in)


eliminate = Exercise(
    name="eliminate",
    chapter=3,
    title="the inverse of H without row and column q, from the inverse of H alone",
    reference=_eliminate,
    difficulty=2,
    rtol=1e-3,
    atol=1e-5,
    wrong=mistakes(
        {
            "crossed out only": lambda P, q: _step(P, q, torch.zeros_like),
            "added instead of subtracted": lambda P, q: _step(P, q, lambda pivot: -1 / pivot),
            "not divided by the pivot": lambda P, q: _step(P, q, torch.ones_like),
            "divided by the root of the pivot": lambda P, q: _step(P, q, torch.rsqrt),
            "divided by the square of the pivot": lambda P, q: _step(P, q, lambda pivot: pivot**-2),
            "inverted once more": then(_eliminate, inv),
            "Schur complement of H": given(_eliminate, P=inv),
            "another input": lambda P, q: _eliminate(P, 0 if q else len(P) - 1),
            "diagonal only": lambda P, q: torch.where(
                torch.eye(len(P) - 1) == 1, _eliminate(P, q), _step(P, q, torch.zeros_like)
            ),
        },
        """
        crossed out only: Row and column q of the inverse are gone, but the rest is as before. Inverting and crossing
          out do not commute: try it with two correlated inputs.
        added instead of subtracted: The step goes in the wrong direction. With fewer inputs to stand in for each other,
          does the diagonal of the inverse grow or shrink?
        not divided by the pivot: The product of column and row is right, but its size is not. After the step, column q
          would have to be zero if it had not been crossed out.
        divided by the root of the pivot: The product was divided by the root of the pivot. Each of its *two* factors
          takes a root.
        divided by the square of the pivot: Column and row were each divided by the whole pivot.
        inverted once more: This is H without row and column q. Asked for is its inverse.
        Schur complement of H: The step was made with H instead of its inverse. That gives the inverse of what is left
          of P.
        another input: The step is right, but it struck out another input than q.
        diagonal only: The diagonal is right, but the entries beside it are those of the old inverse.
        """,
    ),
    cases=lambda: [
        Case("the first of two inputs", (inv(torch.tensor([[2.0, 1.0], [1.0, 5.0]])), 0)),
        Case("an input in the middle", (inv(_spd(5, 320)), 2)),
        Case("the last input", (inv(_spd(6, 322, (0.5, 2.0, 1.0))), 5)),
        Case("uncorrelated inputs", (torch.diag(torch.tensor([4.0, 1.0, 9.0])), 1)),
    ],
)


# remove_several(w, H, gone): the best row without these weights, all of them removed at once
def _repaired(w: Tensor, gone: list[int], factor: Tensor, rows: Tensor) -> Tensor:
    """w - w_gone factor rows, with zeros where weights are gone: factor (removed, removed), rows (removed, d_in)."""
    new = w - w[gone] @ factor @ rows
    new[gone] = 0
    return new


def _remove_several(w: Tensor, H: Tensor, gone: list[int]) -> Tensor:
    P = inv(H)
    return _repaired(w, gone, inv(P[gone][:, gone]), P[gone])


def _alone(w: Tensor, H: Tensor, gone: list[int], zero: bool, in_turn: bool) -> Tensor:
    """Each removal's own update with the inverse of all inputs, in turn or all from the weights as they were."""
    P, new = inv(H), w.clone()
    for q in gone:
        new = new - (new if in_turn else w)[q] / P[q, q] * P[q]
    if zero:
        new[gone] = 0
    return new


remove_several = Exercise(
    name="remove_several",
    chapter=3,
    title="the best row without several weights, removed together",
    reference=_remove_several,
    difficulty=3,
    rtol=1e-3,
    atol=1e-4,
    zeros=True,
    wrong=mistakes(
        {
            "nothing removed": lambda w, H, gone: w.clone(),
            "no update": lambda w, H, gone: w.index_fill(0, torch.tensor(gone), 0),
            "inverse of all inputs": [partial(_alone, zero=True, in_turn=in_turn) for in_turn in (True, False)],
            "weights that came back": [partial(_alone, zero=False, in_turn=in_turn) for in_turn in (True, False)],
            "H in place of its inverse": lambda w, H, gone: _repaired(w, gone, inv(H[gone][:, gone]), H[gone]),
            "block of H": lambda w, H, gone: _repaired(w, gone, H[gone][:, gone], inv(H)[gone]),
            "wrong sign": lambda w, H, gone: (2 * w - _remove_several(w, H, gone)).index_fill(0, torch.tensor(gone), 0),
            "kept and removed exchanged": lambda w, H, gone: _remove_several(w, H, list({*range(len(w))} - {*gone})),
        },
        """
        nothing removed: The row came back as it was. `gone` names the weights that must be zero in the end.
        no update: The weights are gone, but the others are as they were. They should make up for the lost ones.
        inverse of all inputs: Each removal on its own is right, but they do not know of each other: once a weight is
          gone it cannot make up for the next one. Which inverse does the second removal need?
        weights that came back: The repair of a later removal moved a weight that was gone already. Count the zeros.
        weights that came back: The updates of the single removals were added up, and each of them moves the other lost
          weights, too. Count the zeros.
        H in place of its inverse: The update was made with H instead of its inverse. H says how inputs go together, its
          inverse how one stands in for another.
        block of H: Close, but the inverse of a block of the inverse is not the block of H.
        wrong sign: The other weights moved by the right amount in the wrong direction.
        kept and removed exchanged: The weights that were to go stayed, and the others went.
        """,
    ),
    cases=lambda: [
        Case("one removal", (normal(4, seed=330), _spd(4, 331), [1])),
        Case("two of two twins", (torch.tensor([1.0, 2.0, -1.0]), _twins(), [0, 2])),
        Case("three of eight", (normal(8, seed=333), _spd(8, 334, (0.5, 1.0, 3.0, 1.0)), [6, 0, 3])),
        Case("all but one", (normal(5, seed=336), _spd(5, 337), [0, 1, 3, 4])),
        Case("all of them", (normal(4, seed=341), _spd(4, 342), [2, 0, 3, 1])),
        Case("uncorrelated inputs", (normal(3, seed=339), torch.diag(torch.tensor([4.0, 1.0, 9.0])), [0, 2])),
    ],
)


def _twins() -> Tensor:
    """Two inputs that are nearly equal, and one that goes with neither much."""
    return torch.tensor([[4.0, 3.9, 1.0], [3.9, 4.0, 0.5], [1.0, 0.5, 2.0]])


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
        P, gone = inv(H), torch.zeros(len(w), dtype=torch.bool)
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


obs_row = Exercise(
    name="obs_row",
    chapter=3,
    title="optimal brain surgeon for one row: the cheapest goes, the others make up for it, and again",
    reference=_Surgeon(),
    difficulty=4,
    rtol=1e-3,
    atol=1e-4,
    zeros=True,
    wrong=mistakes(
        {
            "inverse not updated": _Surgeon(eliminate=False),
            "pruned weights came back": _Surgeon(eliminate=False, zero=False),
            "chosen at the beginning": [_Surgeon(ahead=True), _Surgeon(ahead=True, eliminate=False)],
            "costs from the first inverse": _Surgeon(old=True),
            "divided by diag(H)": _Surgeon(price=lambda w, H, P: w.square() / H.diagonal()),
            "multiplied by the inverse": _Surgeon(price=lambda w, H, P: w.square() * P.diagonal()),
            "chosen by magnitude": _Surgeon(price=lambda w, H, P: w.abs()),
            "chosen without regard to the repair": _Surgeon(price=lambda w, H, P: w.square() * H.diagonal()),
            "costliest first": _Surgeon(price=lambda w, H, P: -w.square() / P.diagonal()),
            "H in place of its inverse": _Surgeon(step=lambda P, H, q: -H[q] / H[q, q]),
            "wrong sign": _Surgeon(step=lambda P, H, q: P[q] / P[q, q]),
            "not divided by the pivot": _Surgeon(step=lambda P, H, q: -P[q]),
            "no update": [_Surgeon(step=_nothing), _Surgeon(step=_nothing, eliminate=False)],
            "one too many": _Surgeon(count=lambda zeros, d_in: min(zeros + 1, d_in)),
            "zeros kept": _Surgeon(count=lambda zeros, d_in: d_in - zeros),
        },
        """
        inverse not updated: The inverse is that of all inputs, from beginning to end. A weight that is gone cannot make
          up for the next one, nor does it share in its cost.
        pruned weights came back: Too few zeros: repairing one removal moved weights that were gone already. If the
          inverse were that of the inputs that are left, this could not happen.
        chosen at the beginning: All weights were chosen from the costs at the beginning. With every removal the costs
          of the others change: of two inputs that say the same, the first is cheap to remove and the second is then
          costly.
        costs from the first inverse: The updates are right. The costs were taken from the inverse at the beginning,
          which still counts on inputs whose weights are gone.
        divided by diag(H): The weights were chosen by w^2 over the diagonal of H. That calls the weights of loud inputs
          cheap.
        multiplied by the inverse: The weights were chosen by w^2 *times* the diagonal of the inverse. It belongs under
          the fraction bar.
        chosen by magnitude: The smallest magnitude went each time. The repair is right, but the cost of a removal also
          depends on the inputs.
        chosen without regard to the repair: The weights were chosen by what their removal costs if nothing is repaired.
          A weight whose input others can stand in for is cheaper than that.
        costliest first: The most costly weight went each time, not the cheapest.
        H in place of its inverse: The others moved along a row of H. H says how inputs go together; how one stands in
          for another is in the inverse.
        wrong sign: The others moved away from where they were needed. What must the update make of weight q itself?
        not divided by the pivot: The update has the wrong size. What must it make of weight q itself?
        no update: The weights that stay are as they were. They should make up for those that go.
        one too many: One weight more than asked for is gone. Count the rounds of your loop.
        zeros kept: So many weights *stayed* as were to go.
        """,
    ),
    cases=lambda: [  # in which no choice hangs on rounding, and the known mistakes lead to different results
        Case("one removal", (normal(5, seed=340), _spd(5, 341, (0.3, 1.0, 3.0, 0.7, 2.0)), 1)),
        Case("two inputs that are nearly equal, of which one may go", (torch.tensor([1.0, 1.1, 0.9, 1.6]), _near(), 1)),
        Case("the same inputs, two weights to go", (torch.tensor([1.0, 1.1, 0.9, 1.6]), _near(), 2)),
        Case("two twins and a third that costs more", (torch.tensor([1.0, 1.1, 1.2, 1.6]), _near(), 2)),
        Case("all but one", (torch.tensor([1.0, 1.1, 1.2, 1.6]), _near(), 3)),
        Case("half of twelve", (normal(12, seed=343), _spd(12, 344, (0.5, 2.0, 4.0, 1.0)), 6)),
        Case("three quarters of sixteen", (normal(16, seed=346), _spd(16, 347, (1.0, 0.4)), 12)),
        Case("nothing to remove", (normal(4, seed=349), _spd(4, 350), 0)),
        Case("everything removed", (normal(4, seed=352), _spd(4, 353), 4)),
    ],
)


def _near() -> Tensor:
    """Inputs 0 and 1 say nearly the same; 2 and 3 go with nothing."""
    H = torch.diag(torch.tensor([4.0, 4.0, 1.5, 2.0]))
    H[0, 1] = H[1, 0] = 3.8
    return H


# return_gains(w, H, gone): what the loss falls by if one of the removed weights comes back and all adjust to it
@dataclass(frozen=True)
class _Gains:
    """What each of the removed weights gains on its return; right unless a field says otherwise.

    between: (H, gone) -> how the removed weights stand to each other after the repair, (removed, removed). pivots: (H,
    gone, that matrix) -> what the squared slopes are divided by, (removed,).
    """

    between: Callable[[Tensor, list[int]], Tensor] = lambda H, gone: inv(inv(H)[gone][:, gone])
    pivots: Callable[[Tensor, list[int], Tensor], Tensor] = lambda H, gone, M: M.diagonal()

    def slopes(self, w: Tensor, H: Tensor, gone: list[int]) -> Tensor:
        return self.between(H, gone) @ w[gone]

    def __call__(self, w: Tensor, H: Tensor, gone: list[int]) -> Tensor:
        return self.slopes(w, H, gone).square() / self.pivots(H, gone, self.between(H, gone))


_gains, _unrepaired = _Gains(), _Gains(between=lambda H, gone: H[gone][:, gone])


def _cost(w: Tensor, H: Tensor, gone: list[int]) -> Tensor:
    """The loss after the removal of these weights and the repair by the others."""
    return w[gone] @ _gains.slopes(w, H, gone)


def _old_value(gains: _Gains, w: Tensor, H: Tensor, gone: list[int]) -> Tensor:
    """The gain if each comes back as it was and no other weight moves."""
    return 2 * w[gone] * gains.slopes(w, H, gone) - w[gone].square() * H.diagonal()[gone]


def _without_each(w: Tensor, H: Tensor, gone: list[int]) -> Tensor:
    """The loss that is left if one of them is there again: (removed,)."""
    return _cost(w, H, gone) - _gains(w, H, gone)


def _returned_in_turn(w: Tensor, H: Tensor, gone: list[int]) -> Tensor:
    """The first of the list comes back, then the second as well, and so on."""
    costs = torch.stack([_cost(w, H, gone[k:]) for k in range(len(gone) + 1)])
    return costs[:-1] - costs[1:]


return_gains = Exercise(
    name="return_gains",
    chapter=3,
    title="how far the loss falls if one of several removed weights comes back and the kept ones adjust to it",
    reference=_gains,
    difficulty=3,
    rtol=1e-3,
    atol=1e-4,
    wrong=mistakes(
        {
            "price of a first removal": lambda w, H, gone: w[gone].square() / inv(H).diagonal()[gone],
            "the kept ones stay": _Gains(pivots=lambda H, gone, M: H.diagonal()[gone]),
            "comes back as it was": partial(_old_value, _gains),
            "no repair before": [_unrepaired, partial(_old_value, _unrepaired)],
            "the pivot of all inputs": _Gains(pivots=lambda H, gone, M: 1 / inv(H).diagonal()[gone]),
            "divided by the inverse's block": _Gains(pivots=lambda H, gone, M: inv(H).diagonal()[gone]),
            "the loss that is left": _without_each,
            "a share of the loss": lambda w, H, gone: _gains(w, H, gone) / _cost(w, H, gone),
            "the slope": _gains.slopes,
            "not squared": lambda w, H, gone: _gains.slopes(w, H, gone).abs() / _gains.between(H, gone).diagonal(),
            "half the gain": scaled(_gains, 0.5),
            "wrong sign": negated(_gains),
            "one after the other": _returned_in_turn,
            "in the order of the inputs": given(_gains, gone=sorted),
        },
        """
        price of a first removal: This is what each of them cost, had it gone first, with all others there to help. By
          now the others on the list are gone, too.
        the kept ones stay: The weight that comes back takes its best value, but the kept ones do not adjust to it. They
          had taken over its job: let them give it back.
        comes back as it was: The weight came back with its old value, and the kept ones stayed. They have moved since,
          so the old value is not the best one.
        no repair before: This starts from the row in which nothing has made up for the removed weights. The kept ones
          had been fitted without them.
        the pivot of all inputs: The squared slope is right. What it is divided by belongs to a row from which nothing
          was removed.
        divided by the inverse's block: The squared slope is right. It was divided by an entry of the inverse, where
          there should be one of the inverse of its block.
        the loss that is left: This is the loss after the return. Asked for is by how much it fell.
        a share of the loss: This is the gain as a share of the loss. Asked for is the gain itself.
        the slope: This is how steeply the loss falls at the return's start. How far does it fall until the best value?
        not squared: The gain grows with the *square* of the slope: the steeper, the further the way down, too.
        half the gain: It is half of the gain. Mind the 2 that the derivative of a square brings.
        wrong sign: Another weight to fit with cannot raise the loss: gains are not negative.
        one after the other: After the first of the list the others came back *in addition*. Each is to come back alone.
        in the order of the inputs: The gains are right, but in the order of the inputs. Keep the order of the list.
        """,
    ),
    cases=lambda: [
        Case("two of three inputs gone", (torch.tensor([1.0, 2.0, -1.0]), _twins(), [0, 1])),
        Case("one weight gone", (normal(5, seed=390), _spd(5, 391), [2])),
        Case("not in the order of the inputs", (normal(6, seed=393), _spd(6, 394), [4, 0, 3])),
        Case("half of a row", (normal(8, seed=396), _spd(8, 397, (0.5, 2.0)), [6, 1, 2, 5])),
        Case("all weights gone", (normal(4, seed=399), _spd(4, 400), [3, 2, 0, 1])),
        Case(
            "uncorrelated inputs", (torch.tensor([3.0, -1.0, 2.0]), torch.diag(torch.tensor([4.0, 1.0, 9.0])), [2, 0])
        ),
    ],
)


# apart(a, r, g, h): how large a third weight must be for damage and surgeon to part over twins
def _apart(a: Tensor, r: Tensor, g: Tensor, h: Tensor) -> Tensor:
    high = a.abs() * (g / h).sqrt()  # (n,)
    return torch.stack([high * (1 - r.square()).sqrt(), high], dim=1)  # (n, 2)


def _lower(low: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The answer with another lower limit."""
    return lambda *args: torch.stack([low(*args), _apart(*args)[:, 1]], dim=1)


apart = Exercise(
    name="apart",
    chapter=3,
    title="the limits of a third weight between which damage and surgeon remove different ones first",
    reference=_apart,
    difficulty=3,
    wrong=mistakes(
        {
            "squared weights": then(_apart, torch.square),
            "prices": lambda a, r, g, h: _apart(a, r, g, torch.ones_like(h)).square(),
            "limits exchanged": then(_apart, lambda limits: limits.flip(1)),
            "correlation not squared": _lower(lambda a, r, g, h: a.abs() * (g / h * (1 - r.abs())).sqrt()),
            "share not rooted": _lower(lambda a, r, g, h: a.abs() * (g / h).sqrt() * (1 - r.square())),
            "help raises the price": _lower(lambda a, r, g, h: a.abs() * (g / h / (1 - r.square())).sqrt()),
            "energy of the third input left out": given(_apart, h=torch.ones_like),
            "energies left out": given(_apart, g=torch.ones_like, h=torch.ones_like),
            "energies the wrong way round": lambda a, r, g, h: _apart(a, r, h, g),
            "energies not rooted": lambda a, r, g, h: _apart(a, r, g.square(), h.square()),
            "no help": given(_apart, r=torch.zeros_like),
        },
        """
        squared weights: These are the limits of the *squared* weight. Asked for is its absolute value.
        prices: These are the prices of a twin, with help and without. The third weight has the same price at which
          absolute value?
        limits exchanged: The limits are right, but the lower one comes first: whose is it?
        correlation not squared: What a twin cannot imitate is 1 - r^2 of the energy, not 1 - r.
        share not rooted: The upper limit is right. The price of a twin is 1 - r^2 of what it is without help; a weight
          goes into its price squared.
        help raises the price: The upper limit is right, but help makes a twin cheaper, so the surgeon's limit is below
          it.
        energy of the third input left out: The price of the third weight is its square times its input's energy.
        energies left out: The energies of the inputs are missing. A weight on a loud input is costly.
        energies the wrong way round: The price multiplies by the energy. Where the third input is the louder one, its
          weight must be the *smaller* one for the same price.
        energies not rooted: The energies enter the price once and the weight squared. Solve for the weight once more.
        no help: Both limits are those of damage. To the surgeon a twin is cheaper: the other one can do its job.
        """,
    ),
    cases=lambda: [
        Case("the twins of the chapter", (torch.tensor([[1.0], [0.95], [4.0], [1.5]]).double().unbind())),
        Case("negative weights and correlations", (torch.tensor([[-2.0], [-0.6], [1.0], [1.0]]).double().unbind())),
        Case("no correlation", (torch.tensor([[1.5], [0.0], [2.0], [3.0]]).double().unbind())),
        Case("a loud third input", (torch.tensor([[0.5], [0.8], [1.0], [100.0]]).double().unbind())),
        Case(
            "several rows",
            (torch.tensor([[1.0, 3, -0.2], [0.1, 0.5, -0.99], [9, 0.2, 2], [1, 5, 0.3]]).double().unbind()),
        ),
    ],
)

EXERCISES = [eliminate, remove_several, obs_row, return_gains, apart]
