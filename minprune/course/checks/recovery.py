"""The exercises of chapter 18 on zeros that stay: a step of AdamW under a mask, an adapter merged under one."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import normal

BETAS, EPSILON = (0.9, 0.999), 1e-8

# sparse_step(W, grad, m, v, t, keep, lr, decay): one step of AdamW after which every pruned weight is zero


@dataclass(frozen=True)
class _Step:
    """AdamW with masks, right unless a field says otherwise. decay: when the weights shrink, and by what."""

    gradient: bool = True
    weights: bool = True
    product: bool = False
    moments: bool = False
    invert: bool = False
    decay: str = "before"
    corrected: bool = True
    under_root: bool = False
    later: int = 0

    def __call__(
        self, W: Tensor, grad: Tensor, m: Tensor, v: Tensor, t: int, keep: Tensor, lr: float, decay: float
    ) -> Tensor:
        gone = keep if self.invert else ~keep
        g = grad + decay * W if self.decay == "gradient" else grad
        g = g.masked_fill(gone, 0) if self.gradient else g
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = BETAS[1] * v + (1 - BETAS[1]) * g.square()
        first, second = (1 - beta ** (t + self.later) if self.corrected else 1.0 for beta in BETAS)
        root = (v / second + EPSILON).sqrt() if self.under_root else (v / second).sqrt() + EPSILON
        step = lr * (m / first) / root
        shrink = {"before": 1 - lr * decay, "no rate": 1 - decay}.get(self.decay, 1.0)
        W = shrink * W - step
        if self.weights:
            W = W * ~gone if self.product else W.masked_fill(gone, 0)
        if self.moments:
            m, v = m.masked_fill(gone, 0), v.masked_fill(gone, 0)
        return torch.stack([W, m, v])


def _step_cases() -> list[Case]:
    keep = normal(4, 6, seed=1701) > 0.2
    W, grad, other = (normal(4, 6, seed=seed) for seed in (1702, 1703, 1704))
    zeros, m = torch.zeros(4, 6), 0.3 * normal(4, 6, seed=1705)
    old = W.clone()
    old[tuple((~keep).nonzero()[0])] = math.inf
    old[tuple((~keep).nonzero()[1])] = math.nan
    return [
        Case("a first step", (W * keep, grad, zeros, zeros, 1, keep, 0.1, 0.0)),
        Case("a step with decay", (W * keep, grad, m * keep, m.square() * keep, 3, keep, 0.1, 0.5)),
        Case(
            "an optimizer that has seen the pruned weights move", (W * keep, other, m, m.square(), 40, keep, 0.1, 0.1)
        ),
        Case(
            "pruned weights with old values, infinity and NaN among them", (old, grad, zeros, zeros, 1, keep, 0.05, 0.2)
        ),
        Case("small gradients", (W * keep, 1e-4 * other, zeros, zeros, 2, keep, 0.1, 0.1)),
        Case("a dense layer", (W, other, m, m.square(), 5, torch.ones(4, 6, dtype=torch.bool), 0.1, 0.1)),
    ]


sparse_step = Exercise(
    name="sparse_step",
    chapter=17,
    title="one step of AdamW that keeps the zeros",
    reference=_Step(),
    difficulty=3,
    wrong=(
        Wrong(
            "only the gradient is masked",
            _Step(weights=False),
            "Gradients are masked and weights are not. That is enough only as long as the optimizer has nothing to "
            "remember of a pruned weight, and the weight is zero already: look at the other cases.",
        ),
        Wrong(
            "only the weights are masked",
            _Step(gradient=False),
            "The weights are right, the two moments are not: the gradients of pruned weights went into them.",
        ),
        Wrong("no mask", _Step(gradient=False, weights=False), "This is AdamW as it is: nothing keeps the zeros."),
        Wrong(
            "zero times infinity",
            _Step(product=True),
            "A product with the mask is not zero for what is infinite, and -0.0 for what is negative. What puts a zero "
            "there, whatever stood there before?",
        ),
        Wrong(
            "what is remembered is erased",
            _Step(moments=True),
            "The moments of pruned weights were set to zero. Masked gradients let them fade, which is what was asked "
            "for: an optimizer of torch does not let one reach into it so easily.",
        ),
        Wrong("inverted mask", _Step(invert=True), "The mask is upside down: True means kept."),
        Wrong(
            "decay in the gradient",
            _Step(decay="gradient"),
            "The decay was added to the gradient, which is Adam with a penalty. In AdamW the weights shrink by "
            "themselves, and the moments know nothing of it.",
        ),
        Wrong("no decay", _Step(decay="none"), "The weights do not shrink where decay is not zero."),
        Wrong(
            "decay without the rate",
            _Step(decay="no rate"),
            "The weights shrink too fast: by how much depends on the learning rate, too.",
        ),
        Wrong(
            "no correction of the start",
            _Step(corrected=False),
            "The moments begin as zero and are too small at first. Which factors make up for it?",
        ),
        Wrong("steps counted from 2", _Step(later=1), "The correction of the moments is that of the next step."),
        Wrong(
            "epsilon under the root",
            _Step(under_root=True),
            "For small gradients the step is too short. Where does the small number under the fraction belong?",
        ),
    ),
    cases=_step_cases,
)

# merged(W, keep, up, down, alpha): a low-rank adapter becomes part of a sparse layer


def _merged(scale: Callable[[float, int], float] = lambda alpha, rank: alpha / rank, mask: str = "sum") -> Callable:
    def merged(W: Tensor, keep: Tensor, up: Tensor, down: Tensor, alpha: float) -> Tensor:
        change = scale(alpha, down.shape[0]) * up @ down
        if mask == "adapter":
            return W + change.masked_fill(~keep, 0)
        if mask == "weight":
            return W.masked_fill(~keep, 0) + change
        if mask == "product":
            return (W + change) * keep
        if mask == "zeros of the sum":
            return (W + change).masked_fill(W == 0, 0)
        return (W + change).masked_fill({"sum": ~keep, "inverted": keep}.get(mask, torch.zeros_like(keep)), 0)

    return merged


def _merged_cases() -> list[Case]:
    W, up, down = normal(5, 6, seed=1711), normal(5, 2, seed=1712), normal(2, 6, seed=1713)
    keep = normal(5, 6, seed=1714) > 0
    broken, zero = W.clone(), W * keep
    broken[(~keep).nonzero(as_tuple=True)[0][0], (~keep).nonzero(as_tuple=True)[1][0]] = math.inf
    zero[keep.nonzero(as_tuple=True)[0][0], keep.nonzero(as_tuple=True)[1][0]] = 0.0
    return [
        Case("a sparse layer", (W * keep, keep, up, down, 16.0)),
        Case("a pruned weight that is stored as infinity", (broken, keep, up, down, 3.0)),
        Case("a layer whose pruned weights are stored with old values", (W, keep, up, down, 4.0)),
        Case("a kept weight that happens to be zero", (zero, keep, up, down, 8.0)),
        Case("an adapter of rank 1", (W * keep, keep, up[:, :1], down[:1], 1.0)),
    ]


merged = Exercise(
    name="merged",
    chapter=17,
    title="a sparse layer with its low-rank adapter merged into it",
    reference=_merged(),
    difficulty=1,
    wrong=(
        Wrong("no mask", _merged(mask="none"), "The product of the two factors has no zeros, and neither has the sum."),
        Wrong(
            "only the weight is masked",
            _merged(mask="weight"),
            "The weight was masked before the adapter was added, and the adapter has no zeros.",
        ),
        Wrong(
            "only the adapter is masked",
            _merged(mask="adapter"),
            "The adapter is masked and the weight is taken as it is: what if it does not hold zeros where it should?",
        ),
        Wrong(
            "zeros of the weight instead of the mask",
            _merged(mask="zeros of the sum"),
            "The zeros were read off the weight. A weight that is kept may be zero by chance, and one that is pruned "
            "may be stored with an old value: the mask says which is which.",
        ),
        Wrong(
            "zero times infinity",
            _merged(mask="product"),
            "A product with the mask is not zero for what is infinite: zero times infinity is no number.",
        ),
        Wrong("inverted mask", _merged(mask="inverted"), "The mask is upside down: True means kept."),
        Wrong("no scale", _merged(lambda alpha, rank: 1.0), "The adapter is added as it is: what is alpha for?"),
        Wrong(
            "alpha not shared by the rank",
            _merged(lambda alpha, rank: alpha),
            "The adapter counts too much where its rank is above 1.",
        ),
        Wrong(
            "divided by alpha",
            _merged(lambda alpha, rank: rank / alpha),
            "The scale of the adapter is upside down: a larger alpha makes it count more.",
        ),
    ),
    cases=_merged_cases,
)

EXERCISES = [sparse_step, merged]
