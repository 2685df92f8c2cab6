"""The exercises of chapter 17: the stairs of a schedule, masks from which weights return, skipped inputs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import then
from minprune.course.checks.values import half_up, normal


# staircase(steps, begin, end, every, initial, final): the sparsity that the masks have during each training step
def _cubic(done: Tensor, initial: float, final: float) -> Tensor:
    return final + (initial - final) * (1 - done) ** 3


@dataclass(frozen=True)
class _Staircase:
    """Masks change at `begin`, every `every` steps, and at `end`; right unless a field says otherwise."""

    curve: Callable[[Tensor, float, float], Tensor] = _cubic
    stairs: bool = True
    last: str = "always"  # an update at `end` itself; else never, "multiple": if due anyway, "late": when next due
    held: bool = True
    origin: bool = False  # progress counted from step 0
    before: str = "dense"
    late: int = 0

    def __call__(self, steps: Tensor, begin: int, end: int, every: int, initial: float, final: float) -> Tensor:
        now = steps - self.late
        since = now - begin
        if self.stairs:
            since = since // every * every  # of the last update
            if self.last == "always":
                since = torch.where(now >= end, torch.tensor(end - begin), since)
            elif self.held and self.last != "late":
                since = since.clamp(max=(end - begin - (self.last == "never")) // every * every)
        done = (since + begin) / end if self.origin else since / (end - begin)
        if self.held:
            done = done.clamp(max=1)
        found = self.curve(done.double(), initial, final)
        first = {"dense": 0.0, "initial": initial}.get(self.before)
        return found if first is None else torch.where(now < begin, torch.full_like(found, first), found)


def _survivors(done: Tensor, initial: float, final: float) -> Tensor:
    """The share `final` taken of what the initial sparsity leaves."""
    return _cubic(done, initial, initial + (1 - initial) * final)


staircase = Exercise(
    name="staircase",
    chapter=17,
    title="the sparsity that the masks have during each training step of a cubic schedule",
    reference=_Staircase(),
    difficulty=3,
    wrong=mistakes(
        {
            "the end is never reached": [_Staircase(last="never"), _Staircase(last="multiple")],
            "the end comes late": _Staircase(last="late"),
            "a curve instead of stairs": _Staircase(stairs=False),
            "slow first": _Staircase(curve=lambda done, initial, final: initial + (final - initial) * done**3),
            "linear": _Staircase(curve=lambda done, initial, final: initial + (final - initial) * done),
            "counted from step 0": _Staircase(origin=True),
            "not held": _Staircase(held=False, last="never"),
            "pruned before the beginning": _Staircase(before="initial"),
            "one step late": _Staircase(late=1),
            "a share of the survivors": _Staircase(curve=_survivors),
        },
        """
        the end is never reached: The final sparsity is never reached: the stairs stop short of it. Which update is
          missing?
        the end is never reached: The final sparsity is never reached where `every` does not divide the way from `begin`
          to `end`. Which update is missing there?
        the end comes late: The final sparsity is reached, but late where `every` does not divide the way: not right
          before `end`.
        a curve instead of stairs: This is the formula at every step. The masks change only at an update, and stay until
          the next one.
        slow first: This begins slowly and ends steeply. It is what is still *missing* that falls with the third power.
        linear: Each stair is as high as the last: this is the linear schedule.
        counted from step 0: The progress is counted from step 0. The schedule begins at `begin`.
        not held: After `end` the sparsity goes on changing. It is to stay where it is.
        pruned before the beginning: Before `begin` no mask has been chosen: the network is dense, whatever the initial
          sparsity is.
        one step late: Every stair comes one step late. An update that is due at a step comes *before* this step is
          trained.
        a share of the survivors: The final sparsity came out as a share of what the first update left. It is a share of
          *all* weights.
        """,
    ),
    cases=lambda: [
        Case("updates that divide the way evenly", (torch.arange(12), 2, 10, 4, 0.0, 0.9)),
        Case("a last interval that is shorter", (torch.arange(14), 2, 11, 4, 0.0, 0.8)),
        Case("an initial sparsity", (torch.arange(20), 4, 16, 5, 0.3, 0.9)),
        Case("an update at every step", (torch.arange(9), 1, 6, 1, 0.25, 0.75)),
        Case("a schedule that begins at once", (torch.arange(8), 0, 5, 2, 0.2, 0.7)),
        Case("an interval that is longer than the schedule", (torch.arange(9), 2, 6, 10, 0.1, 0.6)),
        Case("steps in no order", (torch.tensor([40, 7, 300, 12, 99, 13]), 7, 100, 6, 0.5, 0.95)),
    ],
)


# gradual_mask(dense, keep, sparsity): the new mask of a layer, and how many weights return
@dataclass(frozen=True)
class _Update:
    """One update of a layer's mask, right unless a field says otherwise."""

    masked: bool = False  # rank what the network uses
    of: str = "all"
    signed: bool = False
    largest: bool = False
    to_integer: Callable[[float], int] = round
    ties: bool = False
    pruned_first: bool = False
    count: Callable[[Tensor, Tensor], Tensor] = lambda old, new: new & ~old

    def __call__(self, dense: Tensor, keep: Tensor, sparsity: float) -> tuple[Tensor, int]:
        score = dense if self.signed else dense.abs()
        if self.masked:
            score = score * keep
        score = score.flatten()
        total = score.numel()
        if self.of == "survivors":
            total = int(keep.sum())
        gone = self.to_integer(sparsity * total)
        if self.of == "survivors":
            gone += keep.numel() - total
        start = keep.flatten().int().argsort(stable=True) if self.pruned_first else torch.arange(len(score))
        order = start[score[start].sort(stable=True, descending=self.largest).indices]
        new = torch.ones_like(score, dtype=torch.bool)
        if self.ties:
            new = score > score[order[gone - 1]] if gone else new
        else:
            new[order[:gone]] = False
        new = new.view(keep.shape)
        return new, int(self.count(keep, new).sum())


_TIED = torch.tensor([[1.0, -1, 2, 1], [-1, 3, 1, -4]])

gradual_mask = Exercise(
    name="gradual_mask",
    chapter=17,
    title="the new mask of a layer from its dense weights, and the number of weights that return",
    reference=_Update(),
    difficulty=3,
    wrong=mistakes(
        {
            "no weight ever returns": _Update(masked=True),
            "a share of the survivors": _Update(of="survivors"),
            "signed weights": _Update(signed=True),
            "largest pruned": _Update(largest=True),
            "one too few": _Update(to_integer=int),
            "one too many": _Update(to_integer=math.ceil),
            "halves rounded up": _Update(to_integer=half_up),
            "pruned ones first": _Update(pruned_first=True),
            "ties": _Update(ties=True),
            "counts what goes": _Update(count=lambda old, new: old & ~new),
            "counts every change": _Update(count=lambda old, new: old ^ new),
            "counts the difference in survivors": _Update(count=lambda old, new: new.sum() - old.sum()),
        },
        """
        no weight ever returns: What is pruned stays pruned. You ranked what the network uses, where all pruned weights
          are zero: the smallest there is.
        a share of the survivors: Too many go: the sparsity was taken as the share of the survivors that goes now. It is
          the share of all weights that is to be zero afterwards.
        signed weights: Weights are ranked with their signs: large negative ones go.
        largest pruned: The largest weights go. Small ones are to go.
        one too few: The number of zeros is rounded down. Round to the nearest.
        one too many: The number of zeros is rounded up. Round to the nearest.
        halves rounded up: A half was rounded up. Python's `round` takes a half to the even neighbour, and so does this
          book: round(2.5) is 2 and round(3.5) is 4. Where does your rounding come from?
        pruned ones first: Of equal weights those went first that were pruned already. Of equal ones the lower index
          goes first, whatever it was before.
        ties: A threshold prunes every weight that equals it: more than were asked for. Of equal ones the lower index
          goes first.
        counts what goes: The mask is right. The number is that of the weights which *go* in this update.
        counts every change: The mask is right. The number counts every place at which the masks differ, also those that
          go.
        counts the difference in survivors: The mask is right. The number is by how much the *count* of survivors
          changed; weights that go and others that return cancel in it.
        """,
    ),
    cases=lambda: [
        Case("a dense layer", (normal(5, 6, seed=1601), torch.ones(5, 6, dtype=torch.bool), 0.3)),
        Case("a later update", (normal(6, 7, seed=1602), normal(6, 7, seed=1603) > 0, 0.65)),
        Case("the same sparsity again", (normal(4, 8, seed=1604), normal(4, 8, seed=1605) > -0.5, 0.4)),
        Case("a number that is rounded up", (normal(3, 5, seed=1606), normal(3, 5, seed=1607) > -1, 0.25)),
        Case("equal weights", (_TIED, torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1]]).bool(), 0.5)),
        Case(
            "equal weights of which a later one was pruned",
            (_TIED, torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1]]).bool(), 0.5),
        ),
        Case("half of five weights", (normal(1, 5, seed=1620), normal(1, 5, seed=1621) > 0, 0.5)),
        Case("a number that is rounded down", (normal(3, 5, seed=1622), normal(3, 5, seed=1623) > -1, 0.22)),
        Case("all of them", (normal(2, 4, seed=1624), normal(2, 4, seed=1625) > 0, 1.0)),
        Case("a sparsity of zero", (normal(2, 4, seed=1608), normal(2, 4, seed=1609) > 0, 0.0)),
    ],
)


# sparse_outputs(W, X, threshold): a layer that reads only what is large, and the share of its inputs that is skipped
@dataclass(frozen=True)
class _Skipping:
    """A layer whose small inputs count as zero, right unless a field says otherwise."""

    active: Callable[[Tensor, float], Tensor] = lambda X, threshold: X.abs() > threshold  # (tokens, d_in)
    share: Callable[[Tensor], Tensor] = lambda on: 1 - on.double().mean()
    outputs: bool = False

    def __call__(self, W: Tensor, X: Tensor, threshold: float) -> tuple[Tensor, float]:
        if self.outputs:
            Y = X @ W.T
            on = self.active(Y, threshold)
            return Y * on, float(self.share(on))
        on = self.active(X, threshold)
        return (X * on) @ W.T, float(self.share(on))


sparse_outputs = Exercise(
    name="sparse_outputs",
    chapter=17,
    title="the outputs of a layer that skips the small inputs of each token, and the share it skips",
    reference=_Skipping(),
    difficulty=2,
    wrong=mistakes(
        {
            "written into the weights": _Skipping(active=lambda X, t: (X.abs() > t).cumprod(0).bool()),
            "one mask for all tokens": _Skipping(active=lambda X, t: (X.abs().mean(0) > t).expand_as(X)),
            "any token is enough": _Skipping(active=lambda X, t: (X.abs() > t).any(0).expand_as(X)),
            "signed inputs": _Skipping(active=lambda X, t: (X - t) > 0),
            "the threshold itself": _Skipping(active=lambda X, t: X.abs() >= t),
            "the large ones skipped": _Skipping(active=lambda X, t: X.abs() <= t),
            "outputs instead of inputs": _Skipping(outputs=True),
            "the share that is read": _Skipping(share=lambda on: on.double().mean()),
        },
        """
        written into the weights: The first token is right, and from token to token more is missing. What is small for
          one token was taken away from all that follow, as if it had been erased from the weights.
        one mask for all tokens: All tokens skip the same inputs. Each token has its own.
        any token is enough: An input that is large for one token was kept for all. Each token skips its own.
        signed inputs: Large negative inputs are skipped. It is the size that is compared.
        the threshold itself: An input that equals the threshold is kept. It counts as small.
        the large ones skipped: The large inputs are skipped, and the small ones kept.
        outputs instead of inputs: The *outputs* were compared with the threshold, and all products had to be computed
          for it.
        the share that is read: The outputs are right. The share is that of the inputs which are read.
        """,
    ),
    cases=lambda: [
        Case("some tokens", (normal(4, 6, seed=1611), normal(5, 6, seed=1612), 0.9)),
        Case("one token", (normal(3, 8, seed=1613), normal(1, 8, seed=1614), 0.5)),
        Case(
            "inputs of size exactly 1", (normal(2, 4, seed=1615), torch.tensor([[1.0, -1, 2, 0], [0.5, 3, -2, 1]]), 1.0)
        ),
        Case("everything skipped", (normal(3, 4, seed=1618), normal(2, 4, seed=1619), 9.0)),
        Case("a threshold of zero", (normal(3, 3, seed=1616), normal(4, 3, seed=1617).relu(), 0.0)),
    ],
)


# exposing_interval(steps, final, gap): the first interval that shows that there is no update at the end
def _first_exposing(steps: Tensor, final: float, gap: float) -> int:
    """steps: from the first step of the ramp to its end, both included."""
    way = int(steps[-1] - steps[0])
    return next(every for every in range(1, way + 1) if final * (1 - (way - 1) // every * every / way) ** 3 > gap)


def _exposing(
    curve: Callable[[float], float] = lambda done: 1 - (1 - done) ** 3,
    at_end: bool = False,
    relative: bool = False,
    largest: bool = False,
    from_zero: bool = False,
) -> Callable[[Tensor, float, float], int | None]:
    """The wrong ones. at_end: the end counts as an update if the intervals divide the way; from_zero: they begin at
    step 0."""

    def exposing_interval(steps: Tensor, final: float, gap: float) -> int | None:
        way, found = int(steps[-1] - (0 if from_zero else steps[0])), []
        for every in range(1, way + 1):
            last = (way if at_end else way - 1) // every * every
            missed = (1 - curve(last / way)) * (1 if relative else final)
            if missed > gap:
                found.append(every)
        return found[-1 if largest else 0] if found else None

    return exposing_interval


def _fewest_left(steps: Tensor, final: float, gap: float) -> int:
    """The whole distance between the last update and the end, in place of the interval."""
    return (int(steps[-1] - steps[0]) - 1) % _first_exposing(steps, final, gap) + 1


exposing_interval = Exercise(
    name="exposing_interval",
    chapter=17,
    title="the smallest interval for which a cubic ramp without an update at its end misses the final sparsity",
    reference=_first_exposing,
    difficulty=3,
    wrong=mistakes(
        {
            "linear ramp": _exposing(curve=lambda done: done),
            "power two": _exposing(curve=lambda done: 1 - (1 - done) ** 2),
            "an update at the end": _exposing(at_end=True),
            "share of the final sparsity": _exposing(relative=True),
            "largest interval": _exposing(largest=True),
            "distance instead of interval": _fewest_left,
            "begin forgotten": _exposing(from_zero=True),
            "the last that hides it": then(_first_exposing, lambda every: every - 1),
        },
        """
        linear ramp: This is the interval for a linear ramp, which shows the bug much sooner. The ramp is a cubic.
        power two: The distance that is left was squared. In a cubic it has the power three.
        an update at the end: Where the intervals divide the way evenly you let the loop choose masks at `end`, too. It
          has no update there: all of its updates lie *before* `end`.
        share of the final sparsity: The gap was compared with a share of `final`. Both are shares of all weights: a
          ramp to 0.5 that is at 0.45 misses it by 0.05.
        largest interval: This is the largest interval that shows the bug. Which is the first?
        distance instead of interval: This is how far the last update lies from `end`. Asked for is the interval
          between updates.
        begin forgotten: Updates were counted from step 0. They begin with step `begin`.
        the last that hides it: With this interval nothing shows yet. Asked for is the first with which it does.
        """,
    ),
    cases=lambda: [
        Case("the ramp of the chapter, one point", (torch.arange(60, 451), 0.9, 0.01)),
        Case("a tenth of a point", (torch.arange(60, 451), 0.9, 0.001)),
        Case("ten points", (torch.arange(60, 451), 0.9, 0.1)),
        Case("a ramp to one half", (torch.arange(0, 41), 0.5, 0.02)),
        Case("a short ramp", (torch.arange(5, 18), 0.8, 0.05)),
        Case("a long ramp that begins late", (torch.arange(1000, 2001), 0.95, 0.005)),
        Case("a tolerance that no interval of one step misses", (torch.arange(7, 108), 0.6, 0.0001)),
        Case("missed at once", (torch.arange(3, 8), 0.9, 0.01)),
        Case("two steps before the end miss as much as is allowed", (torch.arange(9, 14), 0.5, 0.0625)),
    ],
)


EXERCISES = [staircase, gradual_mask, sparse_outputs, exposing_interval]
