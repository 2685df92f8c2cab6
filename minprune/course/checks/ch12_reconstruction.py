"""The exercises of chapter 12: a repair's steps and its gradient, what Adam remembers of a weight that is pruned."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.values import normal


def _pace(step: int, total: int) -> float:
    return min(1.0, (step + 1) / 5) * (1 + math.cos(math.pi * step / total)) / 2


def _size(W: Tensor, keep: Tensor) -> Tensor:
    return W[keep].square().mean().sqrt()


# masked_steps(W, keep, gradients, rate): where the steps of a repair take a pruned matrix
@dataclass(frozen=True)
class _Steps:
    """Adam under a mask, right unless a field says otherwise.

    mask: where a gradient counts. size: what the rate is a fraction of. measured_again: at every step.
    """

    mask: Callable[[Tensor, Tensor], Tensor] = lambda W, keep: keep
    size: Callable[[Tensor, Tensor], Tensor] = _size
    measured_again: bool = False
    pace: Callable[[int, int], float] = _pace
    betas: tuple[float, float] = (0.9, 0.95)
    corrected: bool = True
    remembers: bool = True
    root: bool = True
    sign: float = -1.0

    def __call__(self, W: Tensor, keep: Tensor, gradients: Tensor, rate: float) -> Tensor:
        (beta, beta_of_squares), size = self.betas, self.size(W, keep)
        V, m, v = W, torch.zeros_like(W), torch.zeros_like(W)
        for step, gradient in enumerate(gradients):
            g = gradient * self.mask(W, keep)
            m = beta * m + (1 - beta) * g if self.remembers else g
            v = beta_of_squares * v + (1 - beta_of_squares) * g**2 if self.remembers else g**2
            hats = self.corrected and self.remembers
            first = m / (1 - beta ** (step + 1)) if hats else m
            second = v / (1 - beta_of_squares ** (step + 1)) if hats else v
            size = self.size(V, keep) if self.measured_again else size
            length = rate * size * self.pace(step, len(gradients))
            V = V + self.sign * length * first / ((second.sqrt() if self.root else second) + 1e-12)
        return V


masked_steps = Exercise(
    name="masked_steps",
    chapter=12,
    title="Adam's steps for a pruned matrix, in units of its own size",
    reference=_Steps(),
    difficulty=3,
    zeros=True,
    wrong=mistakes(
        {
            "mask forgotten": _Steps(mask=lambda W, keep: torch.ones_like(keep)),
            "mask inverted": _Steps(mask=lambda W, keep: ~keep),
            "mask read off the weights": _Steps(mask=lambda W, keep: W != 0),
            "rate as it is": _Steps(size=lambda W, keep: torch.ones(())),
            "pruned weights in the size": _Steps(size=lambda W, keep: W.square().mean().sqrt()),
            "mean size": _Steps(size=lambda W, keep: W[keep].abs().mean()),
            "size measured again": _Steps(measured_again=True),
            "one rate for all steps": _Steps(pace=lambda step, total: 1.0),
            "pace a step ahead": _Steps(pace=lambda step, total: _pace(step + 1, total)),
            "start not corrected": _Steps(corrected=False),
            "no memory": _Steps(remembers=False),
            "betas of another book": _Steps(betas=(0.9, 0.999)),
            "means exchanged": _Steps(betas=(0.95, 0.9)),
            "root forgotten": _Steps(root=False),
            "uphill": _Steps(sign=1.0),
        },
        """
        mask forgotten: Weights that were pruned have moved: the matrix is dense again. What must their gradients be?
        mask inverted: The weights that were kept stand still, and those that were pruned have moved: keep is True for
          what stays.
        mask read off the weights: A weight that is kept may be zero at the moment, and may move. Which ones are pruned
          says the mask.
        rate as it is: Your steps are as large as the rate itself. It is a fraction of the size of this matrix: with ten
          times larger weights the steps are ten times longer.
        pruned weights in the size: The zeros of pruned weights have made the matrix look smaller than what it keeps.
        mean size: You took the mean of the absolute values. The root mean square is another measure of size.
        size measured again: The size is that of the matrix which the repair begins with. Yours was measured again at
          each step.
        one rate for all steps: The highest rate was used from the first step to the last. It rises at first, and falls
          to zero.
        pace a step ahead: The rate of each step is that of the next one: the first step is step 0.
        start not corrected: The running means were taken as they are. They began at zero, and the hats correct for
          that.
        no memory: Each step knows its own gradient alone. Adam's are running means.
        betas of another book: Your mean of squares looks back a thousand steps, as Adam's default does. What does this
          chapter take?
        means exchanged: The two running means have each other's beta: 0.9 belongs to the gradients, 0.95 to their
          squares.
        root forgotten: The mean gradient was divided by the mean square, not by its root: with ten times larger
          gradients your steps are ten times shorter.
        uphill: The way is right, the direction is not: a step goes against the gradient.
        """,
    ),
    cases=lambda: [
        Case("half of the weights", _to_step((3, 4), 8, 900)),
        Case("a single step", _to_step((2, 3), 1, 910)),
        Case("fewer steps than the rate takes to rise", _to_step((2, 4), 3, 920)),
        Case("large weights, small gradients", _to_step((3, 3), 12, 930, size=50.0, slope=1e-3)),
        Case(
            "nothing pruned",
            (normal(2, 4, seed=940), torch.ones(2, 4, dtype=torch.bool), normal(9, 2, 4, seed=941), 0.1),
        ),
        Case("a kept weight that is zero", _with_zero(950)),
        Case("a gradient that is zero for a while", _late(960)),
    ],
)


def _to_step(shape: tuple[int, int], steps: int, seed: int, size: float = 1.0, slope: float = 1.0) -> tuple:
    keep = normal(*shape, seed=seed + 1) > 0
    keep[0, 0], keep[-1, -1] = True, False
    return size * normal(*shape, seed=seed) * keep, keep, slope * (0.3 + normal(steps, *shape, seed=seed + 2)), 0.03


def _with_zero(seed: int) -> tuple:
    W, keep, gradients, rate = _to_step((3, 4), 7, seed)
    W[0, 0] = 0
    return W, keep, gradients, rate


def _late(seed: int) -> tuple:
    W, keep, gradients, rate = _to_step((2, 5), 10, seed)
    gradients[:4] = 0
    return W, keep, gradients, rate


# repair_gradient(W, keep, X_hat, Y): the slope of the tokens' mean relative error in the weights that are kept
@dataclass(frozen=True)
class _Gradient:
    """Right unless a field says otherwise. energy: what the error of each token is divided by."""

    masked: bool = True
    invert: bool = False
    energy: str = "token"
    factor: float = 2.0
    mean: bool = True

    def __call__(self, W: Tensor, keep: Tensor, X_hat: Tensor, Y: Tensor) -> Tensor:
        out, tokens = X_hat @ W.T, len(Y)
        by = {
            "token": Y.square().sum(1, keepdim=True),
            "all": Y.square().sum() / tokens,
            "own": out.square().sum(1, keepdim=True),
            "norm": Y.square().sum(1, keepdim=True).sqrt(),
            "none": torch.ones(tokens, 1),
        }[self.energy]
        slope = self.factor * ((out - Y) / by).T @ X_hat / (tokens if self.mean else 1)
        return slope * (keep ^ self.invert) if self.masked else slope


repair_gradient = Exercise(
    name="repair_gradient",
    chapter=12,
    title="the gradient by which the weights that are left learn the dense outputs",
    reference=_Gradient(),
    difficulty=3,
    wrong=mistakes(
        {
            "mask forgotten": _Gradient(masked=False),
            "mask inverted": _Gradient(invert=True),
            "one ratio for all tokens": _Gradient(energy="all"),
            "relative to its own output": _Gradient(energy="own"),
            "divided by the norm": _Gradient(energy="norm"),
            "not relative": _Gradient(energy="none"),
            "factor of two missing": _Gradient(factor=1.0),
            "downhill": _Gradient(factor=-2.0),
            "sum over tokens": _Gradient(mean=False),
            "mask read off the weights": lambda W, keep, X_hat, Y: _Gradient()(W, W != 0, X_hat, Y),
        },
        """
        mask forgotten: Weights that are pruned have a gradient: one step along it, and they are back. The pruned ones
          are no variables of this problem.
        mask inverted: This is the gradient of the weights that are pruned, and nothing where one is kept: keep is True
          for those that stay.
        one ratio for all tokens: You divided the sum of all errors by the energy of all tokens together. Then the
          loudest token decides alone: divide each token's error by that token's energy.
        relative to its own output: Each error was divided by the energy of what the pruned layer gives. Then it could
          be made small by loud outputs: the energy is that of the target.
        divided by the norm: Each squared error was divided by the norm of the target, not by its square: with ten times
          louder targets and inputs the loss would change.
        not relative: This is the gradient of the squared error as it is. Which tokens does that listen to?
        factor of two missing: Half of the gradient: what is the derivative of a square?
        downhill: The sign is that of the step which an optimizer takes. The gradient points uphill.
        sum over tokens: The loss is a mean over tokens: with twice the text your gradient doubles.
        mask read off the weights: A weight that is kept may be zero at the moment, and may move. Which ones are pruned
          says the mask.
        """,
    ),
    cases=lambda: [
        Case("half of the weights", _to_repair((4, 6), 12, 840, 1.0)),
        Case("a single loud token", _to_repair((3, 5), 10, 845, 1.0, loud=30.0)),
        Case("quiet targets", _to_repair((2, 4), 8, 850, 0.1)),
        Case("nothing pruned", (normal(3, 4, seed=855), _ALL, normal(9, 4, seed=856), normal(9, 3, seed=857))),
        Case("outputs that are right already", _right_already(860)),
        Case(
            "weights that are kept and zero", (torch.zeros(2, 4), _SOME, normal(6, 4, seed=870), normal(6, 2, seed=871))
        ),
    ],
)


_ALL: Tensor = torch.ones(3, 4, dtype=torch.bool)
_SOME: Tensor = torch.tensor([[True, False, True, True], [False, True, True, False]])


def _to_repair(shape: tuple[int, int], tokens: int, seed: int, scale: float, loud: float = 1.0) -> tuple:
    """(W, keep, X_hat, Y) of a pruned layer, its targets made of other weights; the first token `loud` times louder."""
    W, keep = normal(*shape, seed=seed), normal(*shape, seed=seed + 1) > 0
    X_hat = normal(tokens, shape[1], seed=seed + 2)
    Y = scale * (X_hat @ normal(*shape, seed=seed + 3).T + 0.1 * normal(tokens, shape[0], seed=seed + 4))
    Y[0] *= loud
    return W * keep, keep, X_hat, Y


def _right_already(seed: int) -> tuple:
    W, keep, X_hat, _ = _to_repair((3, 4), 6, seed, 1.0)
    return W, keep, X_hat, X_hat @ W.T


# leftover(gradients, after, rate): where Adam carries a weight that is set to zero in the middle of training
@dataclass(frozen=True)
class _Memory:
    """Adam with the mask put on too late, right unless a field says otherwise."""

    beta: float = 0.9
    beta_of_squares: float = 0.95
    sign: float = -1.0
    from_zero: bool = True  # else the steps before the weight was pruned count, too
    corrected: bool = True
    restarts: bool = False  # the count of steps begins again when the weight is pruned
    divided: bool = True
    fades: bool = True  # else the last gradient comes again and again

    def __call__(self, gradients: Tensor, after: int, rate: float) -> Tensor:
        later = torch.zeros(after) if self.fades else gradients[-1:].expand(after)
        w = m = v = torch.zeros(())
        count = 0
        for step, g in enumerate(torch.cat([gradients, later])):
            if step == len(gradients):
                w, count = torch.zeros(()) if self.from_zero else w, 0 if self.restarts else count
            m = self.beta * m + (1 - self.beta) * g
            v = self.beta_of_squares * v + (1 - self.beta_of_squares) * g**2
            count += 1
            first = m / (1 - self.beta**count) if self.corrected else m
            second = v / (1 - self.beta_of_squares**count) if self.corrected else v
            w = w + self.sign * rate * first / (second.sqrt() + 1e-12 if self.divided else 1.0)
        return w if after or not self.from_zero else torch.zeros(())


leftover = Exercise(
    name="leftover",
    chapter=12,
    title="where Adam carries a weight that was set to zero in the middle of training",
    reference=_Memory(),
    difficulty=3,
    rtol=1e-3,
    wrong=mistakes(
        {
            "no memory": lambda gradients, after, rate: torch.zeros(()),
            "the way before counted": _Memory(from_zero=False),
            "start not corrected": _Memory(corrected=False),
            "count restarted": _Memory(restarts=True),
            "mean alone": _Memory(divided=False),
            "gradient goes on": _Memory(fades=False),
            "uphill": _Memory(sign=1.0),
            "means exchanged": _Memory(beta=0.95, beta_of_squares=0.9),
        },
        """
        no memory: You say that the weight stays zero, as it would if its gradient had been masked from the first step
          on. What do the two running means hold at the moment of pruning?
        the way before counted: The steps before the weight was pruned are in your answer: at that moment it was set to
          zero.
        start not corrected: The running means were taken as they are. They began at zero, and the hats correct for
          that.
        count restarted: Your optimizer counts its steps from one again after the pruning. Nobody told it that anything
          happened.
        mean alone: The step is the mean of the gradients times the rate: the root of the mean square, by which Adam
          divides, is missing. With ten times larger gradients your weight goes ten times further.
        gradient goes on: After the pruning the last gradient came again and again. From then on it is masked: zero.
        uphill: The distance is right, the direction is not: a step goes against the gradient.
        means exchanged: The two running means have each other's beta: 0.9 belongs to the gradients, 0.95 to their
          squares.
        """,
    ),
    cases=lambda: [
        Case("a gradient that is always the same", (torch.ones(20), 30, 0.03)),
        Case("a single step before", (torch.tensor([-2.0]), 3, 0.1)),
        Case("large gradients of either sign", (100 * normal(12, seed=865), 8, 0.01)),
        Case("a gradient that comes late", (torch.tensor([0.0, 0.0, 0.5]), 5, 0.05)),
        Case("nothing after", (normal(6, seed=866), 0, 0.1)),
        Case("no gradient at all", (torch.zeros(4), 4, 0.1)),
    ],
)


EXERCISES = [masked_steps, repair_gradient, leftover]
