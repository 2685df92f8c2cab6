"""How sparse a network is at each step of its training: at once, linearly, or with Zhu and Gupta's cubic. Chapter 17.

    s(t) = s_final + (s_initial - s_final) (1 - (t - begin) / (end - begin))^3        begin <= t <= end

(Zhu and Gupta 2017). The cubic prunes fast while much is redundant, and slowly when little is left. With exponent 1 it
is the linear schedule.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.arguments import check_fields, checked
from minprune.errors import PruneError
from minprune.models.layers import Layer
from minprune.patterns import Unstructured
from minprune.training.masks import check_scope, magnitude_masks, original
from minprune.training.parametrized import Masked, parametrise, remove_parametrizations

EXPONENTS = {"one-shot": 0, "linear": 1, "cubic": 3}


@dataclass(frozen=True)
class Schedule:
    """The sparsity to have before each training step, counted from 0.

    Parameters
    ----------
    kind : {"one-shot", "linear", "cubic"}
        "one-shot" prunes everything at `begin`; the others reach `final` at `end`.
    final : float
        The sparsity in the end, 0 to 1.
    begin, end : int, default 0
        Steps. There is always an update of the masks at `begin` and one at `end`.
    every : int, default 1
        Steps between two updates of the masks.
    initial : float, default 0.0
        The sparsity at `begin`.

    Raises
    ------
    PruneError
        For an unknown kind, a schedule that does not rise within 0..1, or an end before the beginning.

    Examples
    --------
    >>> from minprune.training.schedule import Schedule
    >>> schedule = Schedule("cubic", final=0.8, begin=0, end=100)
    >>> schedule.sparsity(50), schedule.sparsity(100)
    (0.7000000000000001, 0.8)
    """

    kind: str
    final: float
    begin: int = 0
    end: int = 0
    every: int = 1
    initial: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind not in EXPONENTS:
            raise PruneError(f"unknown schedule {self.kind!r}: use one of {', '.join(EXPONENTS)}")
        if not 0 <= self.initial <= self.final <= 1:
            raise PruneError(f"a schedule goes up within 0..1, not from {self.initial:g} to {self.final:g}")
        if self.begin < 0 or self.every < 1 or (self.kind != "one-shot" and self.end <= self.begin):
            raise PruneError(
                f"a {self.kind} schedule from step {self.begin} to {self.end}, every {self.every}: the end must come "
                "after the beginning, and updates at least 1 step apart"
            )

    @checked()
    def sparsity(self, step: int) -> float:
        """The formula at any step: 0 before `begin`, `final` from `end` on."""
        if step < self.begin:
            return 0.0
        if self.kind == "one-shot" or step >= self.end:
            return self.final
        left = 1 - (step - self.begin) / (self.end - self.begin)
        return self.final + (self.initial - self.final) * left ** EXPONENTS[self.kind]

    @checked()
    def due(self, step: int) -> bool:
        """Whether the masks are to be updated before this step."""
        if self.kind == "one-shot" or step == self.begin:
            return step == self.begin
        return step == self.end or (self.begin < step < self.end and (step - self.begin) % self.every == 0)


class Gradual:
    """Make layers sparser while they learn: call `update(step)` before each training step, `finish()` at the end.

    The dense weights live on behind the masks, so make the optimizer after this object: it moves them. A schedule that
    ends with the run has its last update after the last step: call `update(steps)` then.

    Parameters
    ----------
    layers : iterable of Layer
        From `linear_layers` or `minprune.find_layers`.
    schedule : Schedule
        How sparse they are at each step.
    scope : {"layer", "global"}, default "layer"
        As for `magnitude_masks`.
    revive : bool, default True
        Every update ranks the dense weights, so that a weight that was pruned too early comes back when others have
        become smaller. False is the common bug, kept to compare: it ranks what the network uses, where everything
        pruned is zero, the smallest there is, and stays pruned for ever.
    straight_through : bool, default False
        Whether pruned weights go on learning, see `Masked`. Otherwise they wait as they are.

    Raises
    ------
    PruneError
        For an unknown scope, or a layer that has a mask already.

    Examples
    --------
    >>> import torch
    >>> from minprune.training.masks import linear_layers, sparsity_of
    >>> from minprune.training.schedule import Gradual, Schedule
    >>> gradual = Gradual(linear_layers(torch.nn.Linear(4, 2)), Schedule("linear", final=0.5, end=2))
    >>> for step in range(3):
    ...     print(gradual.update(step), sparsity_of(gradual.masks))
    True 0.0
    True 0.25
    True 0.5
    >>> masks = gradual.finish()
    """

    @checked()
    def __init__(
        self,
        layers: Iterable[Layer],
        schedule: Schedule,
        scope: str = "layer",
        *,
        revive: bool = True,
        straight_through: bool = False,
    ):
        check_scope(scope)
        self.schedule, self.scope, self.revive = schedule, scope, revive
        self.masks = {layer: torch.ones_like(layer.weight, dtype=torch.bool) for layer in layers}
        self.sparsity = 0.0  # what the last update asked for
        self.returned = 0  # how many weights have come back so far
        parametrise(self.masks, straight_through)

    @checked()
    @torch.no_grad()
    def update(self, step: int) -> bool:
        """Choose new masks if the schedule says so before this step; whether it did."""
        if not self.schedule.due(step):
            return False
        ranked = {layer: self._dense(layer) if self.revive else layer.weight for layer in self.masks}
        self.sparsity = self.schedule.sparsity(step)
        chosen = magnitude_masks(ranked, Unstructured(self.sparsity), self.scope)
        self.returned += sum(int((keep & ~self.masks[layer]).sum()) for layer, keep in chosen.items())
        self.masks = chosen
        for layer, keep in chosen.items():
            masked = getattr(layer.module.parametrizations, layer.parameter)[0]
            assert isinstance(masked, Masked)
            layer.view_as_2d(masked.pruned_mask).copy_(~keep)
        return True

    def finish(self) -> dict[Layer, Tensor]:
        """Make the zeros permanent, the network an ordinary one, and return the masks.

        Raises `PruneError` if the schedule has not come to its end, and leaves the network as it is.
        """
        schedule = self.schedule
        if self.sparsity != schedule.final:
            last = schedule.begin if schedule.kind == "one-shot" else schedule.end
            raise PruneError(
                f"the masks are at {self.sparsity:.1%}, the schedule ends at {schedule.final:.1%}: the update before "
                f"step {last} was never made; call update({last}), after the last training step if need be"
            )
        remove_parametrizations(self.masks)
        return self.masks

    @staticmethod
    def _dense(layer: Layer) -> Tensor:
        return layer.view_as_2d(original(layer).data)
