"""The exercises of chapter 07: weights on a mask, ADMM and its rho, what swaps change and miss, claims that hold."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import complement, exchanged, given, negated, then
from minprune.course.checks.values import normal


def inputs(d_in: int, seed: int, loudness: float = 1.0) -> Tensor:
    """The Gram matrix (d_in, d_in) of inputs with two causes in common, as float32."""
    X = normal(5 * d_in, 2, seed=seed) @ normal(2, d_in, seed=seed + 1) + 0.5 * normal(5 * d_in, d_in, seed=seed + 2)
    return loudness * (X.T @ X)


def mask(shape: tuple[int, ...], kept: int, seed: int) -> Tensor:
    """A random keep mask with `kept` True in each row."""
    scores = normal(*shape, seed=seed)
    return torch.zeros(shape, dtype=torch.bool).scatter(-1, scores.argsort(-1)[..., :kept], True)


# exact_row(w, G, keep, damp): the best weights on a mask
def _relative(G: Tensor, damp: float) -> float:
    return damp * float(G.diagonal().mean())


@dataclass(frozen=True)
class _Solve:
    """Least squares on the kept set; the defaults are right.

    left, right: of the diagonal of G, how much is added to the matrix and to the target's. target: (H, w, keep) ->
    (d_in,), the right side. matrix: (H, keep) -> the matrix that is solved with. keep: which set is solved for.
    """

    left: Callable[[Tensor, float], float] = _relative
    right: Callable[[Tensor, float], float] = _relative
    target: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda H, w, keep: H @ w
    matrix: Callable[[Tensor, Tensor], Tensor] = lambda H, keep: H[keep][:, keep]
    keep: Callable[[Tensor], Tensor] = lambda keep: keep

    def __call__(self, w: Tensor, G: Tensor, keep: Tensor, damp: float) -> Tensor:
        w, G, keep = w.double(), G.double(), self.keep(keep.bool())
        eye, best = torch.eye(len(G), dtype=G.dtype), torch.zeros_like(w)
        b = self.target(G + self.right(G, damp) * eye, w, keep)
        best[keep] = torch.linalg.solve(self.matrix(G + self.left(G, damp) * eye, keep), b[keep])
        return best.float()


def _nothing(G: Tensor, damp: float) -> float:
    return 0.0


def _of_pruned(H: Tensor, w: Tensor, keep: Tensor) -> Tensor:
    return H @ (w * ~keep)


exact_row = Exercise(
    name="exact_row",
    chapter=7,
    title="the best weights of a row on a given mask, with damping",
    reference=_Solve(),
    difficulty=2,
    rtol=1e-3,
    atol=1e-5,
    zeros=True,
    wrong=mistakes(
        {
            "nothing moved": lambda w, G, keep, damp: w * keep,
            "target of the kept weights only": _Solve(right=_nothing, target=lambda H, w, keep: H @ (w * keep)),
            "masked after solving": lambda w, G, keep, damp: (
                torch.linalg.solve(G + _relative(G, damp) * torch.eye(len(G)), G @ w) * keep
            ),
            "no damping": _Solve(left=_nothing, right=_nothing),
            "absolute damping": _Solve(left=lambda G, damp: damp, right=lambda G, damp: damp),
            "damping on one side": [_Solve(right=_nothing), _Solve(left=_nothing)],
            "only the change": _Solve(target=_of_pruned),
            "wrong sign": _Solve(target=lambda H, w, keep: H @ (w * keep) - _of_pruned(H, w, keep)),
            "only the diagonal": _Solve(
                matrix=lambda H, keep: H[keep][:, keep].diagonal().diag(),
                target=lambda H, w, keep: H.diagonal() * w + _of_pruned(H, w, keep),
            ),
            "mask inverted": _Solve(keep=lambda keep: ~keep),
            "zeros left out": lambda w, G, keep, damp: _Solve()(w, G, keep, damp)[keep],
        },
        """
        nothing moved: The kept weights are as they were. Three roads lead here: masking without solving; solving for
          all weights and masking afterwards; and asking the kept weights to reproduce only what they themselves
          produced.
        target of the kept weights only: The right side holds what the kept weights produced by themselves; with damping
          on the left they even shrank. They are to reproduce what the *whole* row produced.
        masked after solving: The system was solved for all weights, and the pruned ones were struck out afterwards. The
          others were never told that they would have to do without them.
        no damping: These are the best weights without damping. Which matrix takes the place of G?
        absolute damping: `damp` itself was added to the diagonal. It is a fraction: of what?
        damping on one side: The damping is on one side of the equation only. It is to hold the weights near what they
          *were*: with all weights kept nothing should change, whatever the damping.
        only the change: This is by how much the kept weights should move, not what they should be.
        wrong sign: The kept weights moved by the right amount in the opposite direction.
        only the diagonal: Each kept weight makes up for the pruned ones as if it were the only one to do so. They all
          do at once, and their inputs go together.
        mask inverted: The weights that should be zero were solved for, and the others are zero: True means *kept*.
        zeros left out: Only the kept weights came back. Put them where they belong in a row of zeros.
        """,
    ),
    cases=lambda: [
        Case("half of six kept", (normal(6, seed=700), inputs(6, 701), mask((6,), 3, 704), 0.1)),
        Case("loud inputs", (normal(7, seed=710), inputs(7, 711, 50.0), mask((7,), 4, 714), 0.05)),
        Case("a single weight kept", (normal(5, seed=720), inputs(5, 721), mask((5,), 1, 724), 0.2)),
        Case("all kept", (normal(5, seed=730), inputs(5, 731, 3.0), mask((5,), 5, 734), 0.3)),
        Case("none kept", (normal(4, seed=740), inputs(4, 741), mask((4,), 0, 744), 0.1)),
        Case("nine of twelve kept", (normal(12, seed=750), inputs(12, 751, 0.2), mask((12,), 9, 754), 0.01)),
    ],
)


# admm(W, H, keep, rho, rounds): towards the same weights, with one factorisation for all rows
@dataclass(frozen=True)
class _Rounds:
    """ADMM on a fixed mask; the defaults are right. Every field is one line of a round; late: A is solved for
    after the others, from A = W, and Z comes back as it was before that."""

    solve: Callable[..., Tensor] = lambda W, H, eye, rho, Z, U: (W @ H + rho * (Z - U)) @ torch.inverse(H + rho * eye)
    sparse: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda A, U, keep: (A + U) * keep
    dual: Callable[..., Tensor] = lambda U, A, Z, before, keep: U + A - Z
    rounds: Callable[[int], int] = lambda rounds: rounds
    dual_first: bool = False
    late: bool = False

    def __call__(self, W: Tensor, H: Tensor, keep: Tensor, rho: float, rounds: int) -> Tensor:
        W, H, keep = W.double(), H.double(), keep.bool()
        eye = torch.eye(len(H), dtype=H.dtype)
        Z, U = W * keep, torch.zeros_like(W)
        if self.late:
            return self._solved_late(W, H, eye, keep, rho, rounds).float()
        for _ in range(self.rounds(rounds)):
            A, before = self.solve(W, H, eye, rho, Z, U), Z
            if self.dual_first:
                U = self.dual(U, A, before, before, keep)
            Z = self.sparse(A, U, keep)
            if not self.dual_first:
                U = self.dual(U, A, Z, before, keep)
        return Z.float()

    def _solved_late(self, W: Tensor, H: Tensor, eye: Tensor, keep: Tensor, rho: float, rounds: int) -> Tensor:
        A, U, Z = W, torch.zeros_like(W), W * keep
        for _ in range(rounds):
            Z = (A + U) * keep
            U = U + A - Z
            A = self.solve(W, H, eye, rho, Z, U)
        return Z


admm_row = Exercise(
    name="admm",
    chapter=7,
    title="some rounds of ADMM on a fixed mask, for all rows with one matrix",
    reference=_Rounds(),
    difficulty=4,
    rtol=1e-3,
    atol=1e-5,
    zeros=True,
    wrong=mistakes(
        {
            "U never updated": _Rounds(dual=lambda U, A, Z, before, keep: U),
            "U with the wrong sign": _Rounds(dual=lambda U, A, Z, before, keep: U - (A - Z)),
            "U updated with the old Z": _Rounds(dual=lambda U, A, Z, before, keep: U + A - before),
            "U updated before Z": [_Rounds(dual_first=True), _Rounds(late=True)],
            "U not summed up": _Rounds(dual=lambda U, A, Z, before, keep: A - Z),
            "rho in one place": [
                _Rounds(lambda W, H, eye, rho, Z, U: (W @ H + Z - U) @ torch.inverse(H + rho * eye)),
                _Rounds(lambda W, H, eye, rho, Z, U: (W @ H + rho * (Z - U)) @ torch.inverse(H)),
            ],
            "W in place of W H": _Rounds(lambda W, H, eye, r, Z, U: (W + r * (Z - U)) @ torch.inverse(H + r * eye)),
            "one round too many": _Rounds(rounds=lambda rounds: rounds + 1),
            "mask inverted": given(_Rounds(), keep=torch.logical_not),
        },
        """
        U never updated: U stayed zero: it was never updated, or from an A that had been masked before. Without it Z
          settles at a compromise between the mask and the old weights, and more rounds do not help.
        U with the wrong sign: U works in the wrong direction. Two lines contain it, the one for A and its own; in the
          augmented Lagrangian the square is of A - Z + U.
        U updated with the old Z: U is what A and Z still disagree on, summed over all rounds. Look at the line that
          updates it: which Z is meant?
        U updated before Z: The three lines of a round stand in another order. U has moved before it was used: in A, U,
          Z by the Z of the round before; in Z, U, A, as in gradual ADMM, before A was solved for at all. The one comes
          to the same as the other.
        U not summed up: U is what A and Z still disagree on, summed over all rounds. Look at the line that updates it:
          it forgot the rounds before.
        rho in one place: `rho` belongs both into the matrix and beside Z - U. It stands in one of the two places only.
        W in place of W H: The target entered as W. Set the gradient of the augmented Lagrangian to zero: what is W
          multiplied by?
        one round too many: There was one round too many.
        mask inverted: The weights that should be zero are the ones that were solved for: True means *kept*.
        """,
    ),
    cases=lambda: [
        Case("no round", (normal(3, 5, seed=760), inputs(5, 761), mask((3, 5), 2, 764), 2.0, 0)),
        Case("one round", (normal(3, 5, seed=760), inputs(5, 761), mask((3, 5), 2, 764), 2.0, 1)),
        Case("two rounds", (normal(4, 6, seed=770), inputs(6, 771), mask((4, 6), 3, 774), 5.0, 2)),
        Case("five rounds", (normal(2, 8, seed=780), inputs(8, 781), mask((2, 8), 4, 784), 20.0, 5)),
        Case("a small rho, three rounds", (normal(3, 6, seed=790), inputs(6, 791), mask((3, 6), 5, 794), 0.3, 3)),
    ],
)


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
    wrong=mistakes(
        {
            "cross term with the wrong sign": _change(cross=2),
            "no cross term": _change(cross=0),
            "cross term once": _change(cross=-1),
            "gradient once": _change(linear=1),
            "as if nothing were pruned yet": _change(linear=0),
            "squares missing": _change(squares=0),
            "difference of the two prices": lambda w, G, keep, p, u: float(w[p] ** 2 * G[p, p] - w[u] ** 2 * G[u, u]),
            "gradient of the kept weights": _change(lost=lambda w, keep: w * keep),
            "gradient of the whole row": _change(lost=lambda w, keep: w),
            "linear terms with the wrong sign": _change(linear=-2),
            "no change": lambda w, G, keep, p, u: 0.0,
            "gain instead of change": negated(_change()),
            "the loss afterwards": _after,
        },
        """
        cross term with the wrong sign: The two moves were put together with the wrong sign. One of them adds to what is
          lost, the other takes away from it: what is the sign of their product?
        no cross term: The two moves were priced one by one and added up. That is right only for inputs that are
          uncorrelated.
        cross term once: Expand the square again: a mixed term comes twice.
        gradient once: Expand the square again: the product of what is lost already with what is new comes twice.
        as if nothing were pruned yet: What is pruned already does not enter. A weight may be cheap because it cancels
          an error that is there.
        squares missing: These are first-order terms only. A weight is not small: its own square counts.
        difference of the two prices: This is what the two weights would cost if they were the only ones ever pruned.
          The other zeros of the row matter, and so does the correlation of the two.
        gradient of the kept weights: g was made from the weights that are kept. The loss is that of the ones that are
          lost.
        gradient of the whole row: g was made from the whole row. The loss is that of the weights that are lost.
        linear terms with the wrong sign: The terms with g have the wrong sign: either r is taken as new minus old
          weights in one place and as old minus new in the other, or p and u have changed places: p is pruned now, u
          comes back.
        no change: Your change is always 0. Were the same weights pruned before and after, because u was pruned once
          more and p came back?
        gain instead of change: The sign is that of a gain. A swap that lowers the loss has a *negative* change.
        the loss afterwards: This is the loss after the swap. By how much did it *change*?
        """,
    ),
    cases=lambda: [
        *(_swap(*numbers) for numbers in [(800, 4, 2), (860, 6, 3), (850, 6, 5), (870, 8, 2), (830, 9, 5)]),
        *(_swap(*numbers, which=-1) for numbers in [(830, 9, 4), (880, 7, 3)]),
    ],
)


def _swap(seed: int, d_in: int, kept: int, which: int = 0) -> Case:
    """The first (0) or last (-1) place of what is kept and of what is pruned are to be exchanged."""
    keep = mask((d_in,), kept, seed + 4)
    places = [int(part.nonzero()[which]) for part in (keep, ~keep)]
    return Case(f"{d_in} inputs, {kept} kept", (normal(d_in, seed=seed), inputs(d_in, seed + 1), keep, *places))


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
    wrong=mistakes(
        {
            "no ramp": _ramp(torch.ones_like),
            "linear": _ramp(lambda done: done),
            "slow first": _ramp(lambda done: done**3),
            "a square": _ramp(lambda done: 1 - (1 - done) ** 2),
            "not held": _ramp(_bend, held=False),
            "falling": _ramp(lambda done: (1 - done) ** 3),
            "one round late": given(_ramp(_bend), k=lambda k: k - 1),
            "the share that is kept": complement(_ramp(_bend)),
        },
        """
        no ramp: Every round prunes the full share. The schedule is computed by somebody perhaps, but not used.
        linear: This rises by the same amount in each round.
        slow first: This begins slowly and ends steeply. Many weights can go at first, when choosing is easy; few at the
          end.
        a square: This bends less than a cubic does.
        not held: After the last gradual round the share is to stay where it is.
        falling: This begins with the full share and ends with none: it is the share still to go.
        one round late: Round 1 prunes nothing, and the full share comes one round late. Rounds count from 1.
        the share that is kept: This is the share that is *kept*.
        """,
    ),
    cases=lambda: [
        Case("ten rounds, all gradual", (torch.arange(1.0, 11.0), 0.6, 10)),
        Case("twenty rounds, fifteen gradual", (torch.arange(1.0, 21.0), 0.7, 15)),
        Case("one gradual round of three", (torch.arange(1.0, 4.0), 0.5, 1)),
        Case("nothing to prune", (torch.arange(1.0, 4.0), 0.0, 2)),
        Case("five rounds of ten gradual ones", (torch.arange(1.0, 6.0), 0.5, 10)),
    ],
)


# fastest_rho(low, high): the penalty with which the slowest weight of uncorrelated inputs approaches its limit soonest
def _fastest_rho(low: Tensor, high: Tensor) -> Tensor:
    return (low * high).sqrt()


fastest_rho = Exercise(
    name="fastest_rho",
    chapter=7,
    title="the rho with which ADMM is fastest on uncorrelated inputs whose energies lie between low and high",
    reference=_fastest_rho,
    difficulty=4,
    wrong=mistakes(
        {
            "the largest": lambda low, high: high,
            "the smallest": lambda low, high: low,
            "the middle": lambda low, high: (low + high) / 2,
            "the harmonic mean": lambda low, high: 2 * low * high / (low + high),
            "the root of the ratio": lambda low, high: (high / low).sqrt(),
            "no root": lambda low, high: low * high,
            "always 1": lambda low, high: torch.ones_like(low),
        },
        """
        the largest: This balances the kept and the pruned weight of the loudest input. A kept weight of a quiet input
          is slower than that of a loud one: which pair is the slowest of all?
        the smallest: This balances the kept and the pruned weight of the quietest input. A pruned weight of a loud
          input is slower than that of a quiet one: which pair is the slowest of all?
        the middle: The mean of the two is not where the two slowest factors meet. Set them equal and solve.
        the harmonic mean: This mean leans to the quiet inputs. Set the two slowest factors equal and solve.
        the root of the ratio: If all inputs get ten times as loud, rho has to grow with them. A ratio stays as it was.
        no root: rho has the unit of an energy, and this has the unit of its square.
        always 1: 1 is right after scaling, when all energies are 1. Here they are not.
        """,
    ),
    cases=lambda: [
        Case("energies 1 and 9", (torch.tensor([1.0]), torch.tensor([9.0]))),
        Case("scaled inputs", (torch.tensor([1.0]), torch.tensor([1.0]))),
        Case("alike, and ten times as loud", (torch.tensor([2.0, 20.0]), torch.tensor([2.0, 20.0]))),
        Case("far apart", (torch.tensor([0.01, 0.5, 3.0]), torch.tensor([50.0, 8.0, 4000.0]))),
    ],
)


# fooling_correlation(kept, pruned): below which correlation the search without the cross term makes a bad swap
def _fooling(kept: Tensor, pruned: Tensor, cross: float = 2) -> Tensor:
    """cross: how often w_p w_u H_pu counts in what the search believes."""
    return ((pruned.square() - kept.square()) / (cross * kept * pruned)).clamp(min=-1)


fooling_correlation = Exercise(
    name="fooling_correlation",
    chapter=7,
    title="the correlation of two inputs below which a search that leaves out the cross term makes a bad swap",
    reference=_fooling,
    difficulty=3,
    wrong=mistakes(
        {
            "wrong sign": [negated(_fooling), exchanged(_fooling, 0, 1)],
            "g once": partial(_fooling, cross=1),
            "cross term with a plus": partial(_fooling, cross=4),
            "not squared": lambda kept, pruned: ((pruned - kept) / (2 * (kept * pruned).sqrt())).clamp(min=-1),
            "a covariance": lambda kept, pruned: ((pruned.square() - kept.square()) / 2).clamp(min=-1),
            "beyond -1": lambda kept, pruned: (pruned.square() - kept.square()) / (2 * kept * pruned),
            "only what is pruned": lambda kept, pruned: (-kept / (2 * pruned)).clamp(min=-1),
            "any below 0": lambda kept, pruned: torch.zeros_like(kept),
            "never": lambda kept, pruned: -torch.ones_like(kept),
        },
        """
        wrong sign: The size is right. Which sign must the correlation have, so that pruning p seems to undo a part of
          what is lost already?
        g once: How often does g stand in the price of p? Expand the square, or look at the two prices again.
        cross term with a plus: This fools a search that has the cross term with the wrong sign. Here it is missing.
        not squared: kept and pruned are lengths, |w| times the norm of the input. The loss is made of their squares.
        a covariance: A correlation has no unit: it is the inner product over the two norms.
        beyond -1: A correlation is never below -1. Where none is low enough, -1 is asked for.
        only what is pruned: This is where pruning p looks like a gain. The search adds up both prices: u comes back.
        any below 0: Below 0 the missing term makes every such swap look better than it is. When does it look like a
          gain?
        never: Nothing fools your search. Leave the cross term out: what does it believe of the swap?
        """,
    ),
    cases=lambda: [
        Case("lengths 2 and 1", (torch.tensor([2.0]), torch.tensor([1.0]))),
        Case("equal lengths", (torch.tensor([1.0]), torch.tensor([1.0]))),
        Case("ten times as long", (torch.tensor([20.0, 12.0]), torch.tensor([10.0, 10.0]))),
        Case("too far apart", (torch.tensor([3.0, 1.1]), torch.tensor([1.0, 0.9]))),
    ],
)


# always_holds(claims): which of eight claims on the best weights and masks hold for every row and every H
_HOLDS = (True, False, False, True, True, False, True, False)  # 1 to 8


def _judged(claims: Tensor, wrong: tuple[int, ...] = ()) -> Tensor:
    right = torch.tensor(_HOLDS)[claims - 1]
    return right ^ torch.isin(claims, torch.tensor(wrong, dtype=claims.dtype))


always_holds = Exercise(
    name="always_holds",
    chapter=7,
    title="which of eight claims on the best weights and the best masks hold for every row and every H",
    reference=_judged,
    difficulty=3,
    wrong=mistakes(
        {
            "one more": partial(_judged, wrong=(1,)),
            "one inside the other": partial(_judged, wrong=(2,)),
            "the same order": partial(_judged, wrong=(3,)),
            "below the exact ones": partial(_judged, wrong=(4,)),
            "uncorrelated": partial(_judged, wrong=(5,)),
            "no exchange helps": partial(_judged, wrong=(6,)),
            "other units": partial(_judged, wrong=(7,)),
            "prices add up": partial(_judged, wrong=(8,)),
            "a greedy search is enough": partial(_judged, wrong=(2, 6)),
            "inverted": then(_judged, torch.logical_not),
        },
        """
        one more: Claim 1: whoever keeps one weight more may still set it to zero.
        one inside the other: Claim 2: the weights that go are chosen together. Must a weight that is cheap in one
          company be cheap in another?
        the same order: Claim 3: two inputs that are nearly copies, or cancel each other: what does a mask lose that
          prunes one of them, before and after the other makes up for it?
        below the exact ones: Claim 4: what is the exact solution the minimum of?
        uncorrelated: Claim 5: what is left of f(S) if H is diagonal?
        no exchange helps: Claim 6: what of two exchanges at once?
        other units: Claim 7: put the scaled row and the scaled H into f(S). What happens to the outputs of a weight
          that is halved while its input is doubled?
        prices add up: Claim 8: think of two weights whose contributions cancel each other. What is lost if both go?
        a greedy search is enough: Claims 2 and 6 would make greedy searches exact. Both weigh one weight at a time, and
          masks are sets.
        inverted: All eight are the wrong way round: True means that the claim always holds.
        """,
    ),
    cases=lambda: [
        *(Case(f"claim {number}", (torch.tensor([number]),)) for number in range(1, 9)),
        Case("all eight", (torch.arange(1, 9),)),
        Case("some, in another order", (torch.tensor([6, 2, 7]),)),
    ],
)

EXERCISES = [exact_row, admm_row, swap_change, ramp, fastest_rho, fooling_correlation, always_holds]
