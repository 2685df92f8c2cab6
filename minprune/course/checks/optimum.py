"""The exercises of chapter 07 on the weights: the best ones on a mask, and ADMM, which gets there by other means."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
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


def _damped(G: Tensor, damp: float) -> Tensor:
    return G + damp * G.diagonal().mean() * torch.eye(len(G), dtype=G.dtype)


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


_NOTHING_MOVED = (
    "The kept weights are as they were. Three roads lead here: masking without solving; solving for all weights and "
    "masking afterwards; and asking the kept weights to reproduce only what they themselves produced."
)
_ONE_SIDE = (
    "The damping is on one side of the equation only. It is to hold the weights near what they *were*: with all "
    "weights kept nothing should change, whatever the damping."
)

exact_row = Exercise(
    name="exact_row",
    chapter=7,
    title="the best weights of a row on a given mask, with damping",
    reference=_Solve(),
    difficulty=2,
    rtol=1e-3,
    atol=1e-5,
    wrong=(
        Wrong("nothing moved", lambda w, G, keep, damp: w * keep, _NOTHING_MOVED),
        Wrong(
            "target of the kept weights only",
            _Solve(right=_nothing, target=lambda H, w, keep: H @ (w * keep)),
            "The right side holds what the kept weights produced by themselves; with damping on the left they even "
            "shrank. They are to reproduce what the *whole* row produced.",
        ),
        Wrong(
            "masked after solving",
            lambda w, G, keep, damp: (torch.linalg.solve(_damped(G, damp), G @ w)) * keep,
            "The system was solved for all weights, and the pruned ones were struck out afterwards. The others were "
            "never told that they would have to do without them.",
        ),
        Wrong(
            "no damping",
            _Solve(left=_nothing, right=_nothing),
            "These are the best weights without damping. Which matrix takes the place of G?",
        ),
        Wrong(
            "absolute damping",
            _Solve(left=lambda G, damp: damp, right=lambda G, damp: damp),
            "`damp` itself was added to the diagonal. It is a fraction: of what?",
        ),
        Wrong("damping on one side", _Solve(right=_nothing), _ONE_SIDE),
        Wrong("damping on one side", _Solve(left=_nothing), _ONE_SIDE),
        Wrong(
            "only the change",
            _Solve(target=_of_pruned),
            "This is by how much the kept weights should move, not what they should be.",
        ),
        Wrong(
            "wrong sign",
            _Solve(target=lambda H, w, keep: H @ (w * keep) - _of_pruned(H, w, keep)),
            "The kept weights moved by the right amount in the opposite direction.",
        ),
        Wrong(
            "only the diagonal",
            _Solve(
                matrix=lambda H, keep: H[keep][:, keep].diagonal().diag(),
                target=lambda H, w, keep: H.diagonal() * w + _of_pruned(H, w, keep),
            ),
            "Each kept weight makes up for the pruned ones as if it were the only one to do so. They all do at once, "
            "and their inputs go together.",
        ),
        Wrong(
            "mask inverted",
            _Solve(keep=lambda keep: ~keep),
            "The weights that should be zero were solved for, and the others are zero: True means *kept*.",
        ),
        Wrong(
            "zeros left out",
            lambda w, G, keep, damp: _Solve()(w, G, keep, damp)[keep],
            "Only the kept weights came back. Put them where they belong in a row of zeros.",
        ),
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


_ORDER = (
    "The three lines of a round stand in another order. U has moved before it was used: in A, U, Z by the Z of the "
    "round "
    "before; in Z, U, A, as in gradual ADMM, before A was solved for at all. The one comes to the same as the other."
)
_DUAL = "U is what A and Z still disagree on, summed over all rounds. Look at the line that updates it: "
_WEIGHT = "`rho` belongs both into the matrix and beside Z - U. It stands in one of the two places only."

admm_row = Exercise(
    name="admm",
    chapter=7,
    title="some rounds of ADMM on a fixed mask, for all rows with one matrix",
    reference=_Rounds(),
    difficulty=4,
    rtol=1e-3,
    atol=1e-5,
    wrong=(
        Wrong(
            "U never updated",
            _Rounds(dual=lambda U, A, Z, before, keep: U),
            "U stayed zero: it was never updated, or from an A that had been masked before. Without it Z settles at a "
            "compromise between the mask and the old weights, and more rounds do not help.",
        ),
        Wrong(
            "U with the wrong sign",
            _Rounds(dual=lambda U, A, Z, before, keep: U - (A - Z)),
            "U works in the wrong direction. Two lines contain it, the one for A and its own; in the augmented "
            "Lagrangian the square is of A - Z + U.",
        ),
        Wrong(
            "U updated with the old Z",
            _Rounds(dual=lambda U, A, Z, before, keep: U + A - before),
            _DUAL + "which Z is meant?",
        ),
        Wrong("U updated before Z", _Rounds(dual_first=True), _ORDER),
        Wrong(
            "U not summed up",
            _Rounds(dual=lambda U, A, Z, before, keep: A - Z),
            _DUAL + "it forgot the rounds before.",
        ),
        Wrong(
            "rho in one place",
            _Rounds(solve=lambda W, H, eye, rho, Z, U: (W @ H + Z - U) @ torch.inverse(H + rho * eye)),
            _WEIGHT,
        ),
        Wrong(
            "rho in one place",
            _Rounds(solve=lambda W, H, eye, rho, Z, U: (W @ H + rho * (Z - U)) @ torch.inverse(H)),
            _WEIGHT,
        ),
        Wrong(
            "W in place of W H",
            _Rounds(solve=lambda W, H, eye, rho, Z, U: (W + rho * (Z - U)) @ torch.inverse(H + rho * eye)),
            "The target entered as W. Set the gradient of the augmented Lagrangian to zero: what is W multiplied by?",
        ),
        Wrong("U updated before Z", _Rounds(late=True), _ORDER),
        Wrong(
            "one round too many",
            _Rounds(rounds=lambda rounds: rounds + 1),
            "There was one round too many.",
        ),
        Wrong(
            "mask inverted",
            lambda W, H, keep, rho, rounds: _Rounds()(W, H, ~keep, rho, rounds),
            "The weights that should be zero are the ones that were solved for: True means *kept*.",
        ),
    ),
    cases=lambda: [
        Case("no round", (normal(3, 5, seed=760), inputs(5, 761), mask((3, 5), 2, 764), 2.0, 0)),
        Case("one round", (normal(3, 5, seed=760), inputs(5, 761), mask((3, 5), 2, 764), 2.0, 1)),
        Case("two rounds", (normal(4, 6, seed=770), inputs(6, 771), mask((4, 6), 3, 774), 5.0, 2)),
        Case("five rounds", (normal(2, 8, seed=780), inputs(8, 781), mask((2, 8), 4, 784), 20.0, 5)),
        Case("a small rho, three rounds", (normal(3, 6, seed=790), inputs(6, 791), mask((3, 6), 5, 794), 0.3, 3)),
    ],
)

EXERCISES = [exact_row, admm_row]
