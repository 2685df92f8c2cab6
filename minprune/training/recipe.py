"""How a pruned model is trained, and what such a run found. Chapter 18."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from minprune.arguments import check_fields, checked
from minprune.errors import PruneError

MODES = ("full", "adapters")
_LARGEST_SEED = 2**62 - 1  # torch takes up to 2**64 - 1
ADAPTERS_LR = 3e-3  # it and `Recipe.lr` were best for a SmolLM2 of 60 % zeros: book/results/recovery.json


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Parameters
    ----------
    steps : int
        Optimizer steps.
    batch_size : int, default 4
        Windows of each step.
    lr : float, default 3e-4
        The highest learning rate, reached after `warmup` steps. From there it falls to zero as half a cosine.
    warmup : int, default 10
        Steps.
    weight_decay : float, default 0.0
        Of matrices.
    clip : float, default 1.0
        The largest norm of all gradients together.
    seed : int, default 0
        Of the order of the windows, and of dropout.
    mode : {"full", "adapters"}, default "full"
        "full" trains every weight that is not pruned, "adapters" low-rank adapters under the masks.
    rank : int, default 8
        Of the adapters.
    alpha : float, default 16.0
        They are scaled by alpha / rank.
    evaluate : int, default 50
        Steps between two measurements of the perplexity, besides first and last.
    bfloat16 : bool, default False
        Take matrix products in that type, at about half the time where a processor has instructions for it. Weights,
        their gradients and what the optimizer remembers stay in float32.

    Raises
    ------
    PruneError
        For a setting out of range.

    Examples
    --------
    >>> from minprune.training.recipe import Recipe
    >>> recipe = Recipe(steps=100)
    >>> recipe.rate(9), round(recipe.rate(99), 6)
    (0.0003, 0.0)
    """

    steps: int
    batch_size: int = 4
    lr: float = 3e-4
    warmup: int = 10
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    mode: str = "full"
    rank: int = 8
    alpha: float = 16.0
    evaluate: int = 50
    bfloat16: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.mode not in MODES:
            raise PruneError(f"unknown mode {self.mode!r} to train: use one of {', '.join(MODES)}")
        least = {"steps": 1, "batch_size": 1, "evaluate": 1, "warmup": 0, "weight_decay": 0, "seed": 0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise PruneError(f"{name} {getattr(self, name)} is less than {low}")
        if not self.seed <= _LARGEST_SEED:
            raise PruneError(f"seed {self.seed} is more than {_LARGEST_SEED}, to which a step's number is added")
        for name in ("lr", "clip", "alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise PruneError(f"{name} {getattr(self, name)} is not a positive number")

    @checked()
    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))

    @checked()
    def windows(self, step: int, available: int) -> Tensor:
        """Which of the training windows a step takes, (batch_size,): each once, in a random order, then anew."""
        turns = available // self.batch_size
        if turns < 1:
            raise PruneError(f"{available} windows are too few for batches of {self.batch_size}: use more or smaller")
        if not 0 <= step <= self.steps or available > _LARGEST_SEED:
            raise PruneError(f"step {step} of {self.steps} takes none of {available} windows: steps count from 0")
        generator = torch.Generator().manual_seed(self.seed + step // turns)
        start = step % turns * self.batch_size
        return torch.randperm(available, generator=generator)[start : start + self.batch_size]


@dataclass
class Recovery:
    """What a run found.

    Parameters
    ----------
    recipe : Recipe
        How the model was trained.
    zeros : float, default 0.0
        The share of the masked matrices that was to stay zero and is, counted after training.
    rows : list of dict, optional
        At step 0 and after each measurement: step, tokens trained on, loss (the mean since the row before), perplexity
        (by text).
    seconds : float, default 0.0
        Processor time of the steps alone.

    Examples
    --------
    >>> from minprune.training.recipe import Recipe, Recovery
    >>> Recovery(Recipe(steps=100)).as_dict()["recipe"]["steps"]
    100
    """

    recipe: Recipe
    zeros: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)
