"""The last exercise of chapter 08: a chain of layers, pruned in one pass over several batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import normal

Prune = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Recipe:
    """The staged driver with every place exposed at which people go wrong; the defaults are right.

    see: which weights made the inputs of a layer: the "pruned" ones before it, the "dense" ones, or "stale": pruned
    ones, but with the last of them still dense. batches: whose inputs count: "all", "last" or "first". mean: the Gram
    matrices are averaged over the batches. each: prune with every batch in turn, the next seeing what is left.
    relu: inputs pass the nonlinearity. kept: Gram sums are not set back to zero between layers of equal width.
    """

    see: str = "pruned"
    batches: str = "all"
    mean: bool = False
    each: bool = False
    relu: bool = True
    kept: bool = False
    outputs: bool = False

    def __call__(self, weights: Tensor, batches: Sequence[Tensor], prune: Prune) -> Tensor:
        """weights (layers, d, d), batches each (tokens, d) -> the pruned weights (layers, d, d)."""
        done: list[Tensor] = []
        carried: Tensor | None = None
        for place, W in enumerate(weights):
            before = {
                "pruned": done,
                "dense": list(weights[:place]),
                "stale": done[:-1] + list(weights[max(place - 1, 0) : place]),
            }
            grams = []
            for X in batches:
                for V in before[self.see]:
                    X = (X @ V.T).relu() if self.relu else X @ V.T
                X = X @ W.T if self.outputs else X
                grams.append(X.T @ X)
            chosen = {"all": grams, "last": grams[-1:], "first": grams[:1]}[self.batches]
            if self.each:
                for gram in chosen:
                    W = prune(W, gram)
                done.append(W)
                continue
            total = torch.stack(chosen).sum(0) / (len(chosen) if self.mean else 1)
            if self.kept and carried is not None:
                total = total + carried
            carried = total
            done.append(prune(W, total))
        return torch.stack(done)


def _weakest(W: Tensor, gram: Tensor) -> Tensor:
    """Each output loses the half of its weights with the lowest Wanda scores; it is told how much was seen, too."""
    scores = W.abs() * gram.diagonal().sqrt()
    keep = scores.argsort(dim=1).argsort(dim=1) >= W.shape[1] // 2
    return W * keep * (1 + gram.trace() / 1000)


prune_chain = Exercise(
    name="prune_chain",
    chapter=8,
    title="a chain of layers, each pruned on what the pruned layers before it make of all batches",
    reference=_Recipe(),
    difficulty=4,
    wrong=(
        Wrong(
            "dense inputs",
            _Recipe(see="dense"),
            "Every layer was calibrated on what the *dense* layers before it produce. After pruning it will never see "
            "those inputs again.",
        ),
        Wrong(
            "one layer late",
            _Recipe(see="stale"),
            "The layer right before the current one still had its dense weight when the statistics were taken. In "
            "which order do you prune, and run?",
        ),
        Wrong(
            "last batch only",
            _Recipe(batches="last"),
            "Only the last batch counts. Is there an = where a sum should grow?",
        ),
        Wrong(
            "first batch only",
            _Recipe(batches="first"),
            "Only the first batch counts: a layer may be pruned when *all* batches have reached it, no earlier.",
        ),
        Wrong(
            "averaged over batches",
            _Recipe(mean=True),
            "The Gram matrices were averaged over the batches. Sums over tokens do not depend on how the tokens were "
            "dealt out to batches.",
        ),
        Wrong(
            "pruned once per batch",
            _Recipe(each=True),
            "A layer was pruned anew for every batch, on top of the last time. Merge the statistics, then prune once.",
        ),
        Wrong(
            "nonlinearity forgotten",
            _Recipe(relu=False),
            "Between two layers the values pass a ReLU. Your inputs have negative numbers in them.",
        ),
        Wrong(
            "sums not set back",
            _Recipe(kept=True),
            "The statistics of a layer still hold what the layer before it saw.",
        ),
        Wrong(
            "outputs instead of inputs",
            _Recipe(outputs=True),
            "Your statistics are those of the layer's *outputs*. That is what a hook after the layer sees.",
        ),
    ),
    cases=lambda: [
        Case("three layers, two batches", (normal(3, 4, 4, seed=840), _batches([5, 3], 4, 841), _weakest)),
        Case("four layers, three batches", (normal(4, 6, 6, seed=842), _batches([4, 2, 6], 6, 843), _weakest)),
        Case("one batch", (normal(2, 4, 4, seed=844), _batches([7], 4, 845), _weakest)),
        Case("batches of one token", (normal(3, 4, 4, seed=848), _batches([1, 1, 1], 4, 849), _weakest)),
        Case("one layer", (normal(1, 4, 4, seed=846), _batches([3, 3], 4, 847), _weakest)),
    ],
)


def _batches(sizes: list[int], width: int, seed: int) -> list[Tensor]:
    return [normal(n, width, seed=seed + 100 * i) for i, n in enumerate(sizes)]


EXERCISES = [prune_chain]
