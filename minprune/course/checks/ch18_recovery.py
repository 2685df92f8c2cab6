"""The exercises of chapter 18: AdamW under a mask, an adapter merged under one, distillation, what came back."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import complement, given, then
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
    chapter=18,
    title="one step of AdamW that keeps the zeros",
    reference=_Step(),
    difficulty=3,
    zeros=True,
    wrong=mistakes(
        {
            "only the gradient is masked": _Step(weights=False),
            "only the weights are masked": _Step(gradient=False),
            "no mask": _Step(gradient=False, weights=False),
            "zero times infinity": _Step(product=True),
            "what is remembered is erased": _Step(moments=True),
            "inverted mask": _Step(invert=True),
            "decay in the gradient": _Step(decay="gradient"),
            "no decay": _Step(decay="none"),
            "decay without the rate": _Step(decay="no rate"),
            "no correction of the start": _Step(corrected=False),
            "steps counted from 2": _Step(later=1),
            "epsilon under the root": _Step(under_root=True),
        },
        """
        only the gradient is masked: Gradients are masked and weights are not. That is enough only as long as the
          optimizer has nothing to remember of a pruned weight, and the weight is zero already: look at the other cases.
        only the weights are masked: The weights are right, the two moments are not: the gradients of pruned weights
          went into them.
        no mask: This is AdamW as it is: nothing keeps the zeros.
        zero times infinity: A product with the mask is not zero for what is infinite, and -0.0 for what is negative.
          What puts a zero there, whatever stood there before?
        what is remembered is erased: The moments of pruned weights were set to zero. Masked gradients let them fade,
          which is what was asked for: an optimizer of torch does not let one reach into it so easily.
        inverted mask: The mask is upside down: True means kept.
        decay in the gradient: The decay was added to the gradient, which is Adam with a penalty. In AdamW the weights
          shrink by themselves, and the moments know nothing of it.
        no decay: The weights do not shrink where decay is not zero.
        decay without the rate: The weights shrink too fast: by how much depends on the learning rate, too.
        no correction of the start: The moments begin as zero and are too small at first. Which factors make up for it?
        steps counted from 2: The correction of the moments is that of the next step.
        epsilon under the root: For small gradients the step is too short. Where does the small number under the
          fraction belong?
        """,
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
    chapter=18,
    title="a sparse layer with its low-rank adapter merged into it",
    reference=_merged(),
    difficulty=1,
    zeros=True,
    wrong=mistakes(
        {
            "no mask": _merged(mask="none"),
            "only the weight is masked": _merged(mask="weight"),
            "only the adapter is masked": _merged(mask="adapter"),
            "zeros of the weight instead of the mask": _merged(mask="zeros of the sum"),
            "zero times infinity": _merged(mask="product"),
            "inverted mask": _merged(mask="inverted"),
            "no scale": _merged(lambda alpha, rank: 1.0),
            "alpha not shared by the rank": _merged(lambda alpha, rank: alpha),
            "divided by alpha": _merged(lambda alpha, rank: rank / alpha),
        },
        """
        no mask: The product of the two factors has no zeros, and neither has the sum.
        only the weight is masked: The weight was masked before the adapter was added, and the adapter has no zeros.
        only the adapter is masked: The adapter is masked and the weight is taken as it is: what if it does not hold
          zeros where it should?
        zeros of the weight instead of the mask: The zeros were read off the weight. A weight that is kept may be zero
          by chance, and one that is pruned may be stored with an old value: the mask says which is which.
        zero times infinity: A product with the mask is not zero for what is infinite: zero times infinity is no number.
        inverted mask: The mask is upside down: True means kept.
        no scale: The adapter is added as it is: what is alpha for?
        alpha not shared by the rank: The adapter counts too much where its rank is above 1.
        divided by alpha: The scale of the adapter is upside down: a larger alpha makes it count more.
        """,
    ),
    cases=_merged_cases,
)


# distillation(student, teacher, tokens, T, share): share * T^2 KL(p || q) + (1 - share) * cross-entropy of the text
@dataclass(frozen=True)
class _Distillation:
    """The loss, right unless a field says otherwise. shift: how far the token is that a position is to predict."""

    power: int = 2
    reverse: bool = False
    mean: str = "positions"
    student_T: bool = True
    teacher_T: bool = True
    entropy: bool = True
    stable: bool = True
    shift: int = 1
    exchanged: bool = False
    text_T: bool = False
    added: bool = False

    def __call__(self, student: Tensor, teacher: Tensor, tokens: Tensor, T: float, share: float) -> Tensor:
        taught, learnt = teacher / (T if self.teacher_T else 1), student / (T if self.student_T else 1)
        p, q = (self._log(logits) for logits in (taught, learnt))  # (windows, length, vocabulary)
        if self.reverse:
            p, q = q, p
        every = p.exp() * ((p if self.entropy else 0) - q)
        kl = {"positions": every.sum(-1).mean(), "entries": every.mean(), "sum": every.sum()}[self.mean]
        text = self._log(student / T if self.text_T else student)
        length = tokens.shape[1]
        start, aims = max(0, -self.shift), tokens[:, max(0, self.shift) : length + min(0, self.shift)]
        said = text[:, start : start + aims.shape[1]].gather(-1, aims[..., None])
        parts = (T**self.power * kl, -said.mean())
        if self.added:
            return parts[0] + parts[1]
        share = 1 - share if self.exchanged else share
        return share * parts[0] + (1 - share) * parts[1]

    def _log(self, logits: Tensor) -> Tensor:
        return log_softmax(logits, -1) if self.stable else logits.softmax(-1).log()


def _lesson(windows: int, length: int, vocabulary: int, seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and tokens that both make some sense of."""
    student, teacher = (scale * normal(windows, length, vocabulary, seed=seed + i) for i in (0, 1))
    return student, teacher, normal(windows, length, vocabulary, seed=seed + 2).argmax(-1)


distillation = Exercise(
    name="distillation",
    chapter=18,
    title="the loss of a student that learns from a teacher's logits and from the text",
    reference=_Distillation(),
    difficulty=4,
    atol=1e-5,
    slope=0,
    wrong=mistakes(
        {
            "T squared is missing": _Distillation(power=0),
            "T instead of its square": _Distillation(power=1),
            "divergence the other way round": _Distillation(reverse=True),
            "mean over the vocabulary": _Distillation(mean="entries"),
            "sum over positions": _Distillation(mean="sum"),
            "teacher at temperature 1": _Distillation(teacher_T=False),
            "student at temperature 1": _Distillation(student_T=False),
            "cross-entropy with the teacher": _Distillation(entropy=False),
            "logarithm of an underflow": _Distillation(stable=False),
            "each token predicts itself": _Distillation(shift=0),
            "the token before": _Distillation(shift=-1),
            "shares exchanged": _Distillation(exchanged=True),
            "text at the temperature": _Distillation(text_T=True),
            "parts only added": _Distillation(added=True),
        },
        """
        T squared is missing: Right at temperature 1 only: what keeps the gradient at its size when T grows?
        T instead of its square: At other temperatures than 1 the teacher's part has the wrong size: its gradient has
          two factors 1/T.
        divergence the other way round: The divergence is that from the student to the teacher. Whose probabilities are
          the weights of the mean?
        mean over the vocabulary: The teacher's part is too small, by the size of the vocabulary: a divergence is a
          *sum* over the vocabulary, and the mean goes over positions.
        sum over positions: The teacher's part grows with the number of positions.
        teacher at temperature 1: The student was softened and the teacher was not: an equal teacher would not give
          zero.
        student at temperature 1: The teacher was softened and the student was not: an equal teacher would not give
          zero.
        cross-entropy with the teacher: The teacher's part is a cross-entropy. It has the same gradient as the
          divergence, but is not zero when the student has learnt everything.
        logarithm of an underflow: With large logits a probability becomes zero before its logarithm is taken. Take the
          logarithm of the softmax in one go.
        each token predicts itself: The text's part compares each position with the token that stands there. The logits
          of a position are about which token?
        the token before: The text's part is shifted the wrong way: positions are asked for the token before them.
        shares exchanged: The two parts have each other's weight: `share` is the teacher's.
        text at the temperature: The text's part was softened, too. The temperature belongs to the comparison with the
          teacher: the model will be used without it.
        parts only added: Both parts count fully: what is `share` for?
        """,
    ),
    cases=lambda: [
        Case("the teacher alone", (*_lesson(2, 4, 7, seed=1721), 1.0, 1.0)),
        Case("the text alone", (*_lesson(3, 5, 6, seed=1731), 2.0, 0.0)),
        Case("both parts at temperature 2", (*_lesson(2, 5, 6, seed=1741), 2.0, 0.75)),
        Case("a temperature below 1", (*_lesson(1, 6, 5, seed=1751), 0.5, 0.4)),
        Case("more windows than tokens", (*_lesson(6, 3, 5, seed=1771), 1.5, 0.3)),
        Case("large logits", (*_lesson(2, 3, 6, seed=1761, scale=200.0), 1.0, 0.5)),
    ],
)


# came_back(before, after, dense, control): perplexities of several texts -> the shares of the lost nats that came back
def _came_back(plain: Callable, fair: Callable, nats: Callable[[Tensor], Tensor] = torch.log) -> Callable:
    """plain, fair: the two shares, made of what a token costs before, after, in the dense model and in the control."""

    def came_back(before: Tensor, after: Tensor, dense: Tensor, control: Tensor) -> Tensor:
        costs = [nats(text) for text in (before, after, dense, control)]
        return torch.stack([plain(*costs), fair(*costs)])

    return came_back


def _plain(b: Tensor, a: Tensor, d: Tensor, c: Tensor) -> Tensor:
    return (b - a) / (b - d)


def _fair(b: Tensor, a: Tensor, d: Tensor, c: Tensor) -> Tensor:
    return 1 - (a - c) / (b - d)


def _texts(*rows: tuple[float, ...]) -> tuple[Tensor, ...]:
    """Before, after, dense and control of each text -> before of all texts, after of all, and so on."""
    return torch.tensor(rows, dtype=torch.float32).T.contiguous().unbind()


came_back = Exercise(
    name="came_back",
    chapter=18,
    title="the share of the lost nats that training gave back, plain and without adaptation",
    reference=_came_back(_plain, _fair),
    difficulty=2,
    wrong=mistakes(
        {
            "perplexities instead of nats": _came_back(_plain, _fair, nats=lambda perplexity: perplexity),
            "what is still missing": complement(_came_back(_plain, _fair)),
            "the control in both places": _came_back(_plain, lambda b, a, d, c: (b - a) / (b - c)),
            "no control": _came_back(_plain, _plain),
            "adaptation added": _came_back(_plain, lambda b, a, d, c: (b - a + d - c) / (b - d)),
            "share of all nats": _came_back(lambda b, a, d, c: (b - a) / b, lambda b, a, d, c: 1 - (a - c) / b),
            "the two exchanged": _came_back(_fair, _plain),
        },
        """
        perplexities instead of nats: Perplexities were subtracted. Their logarithms are what a token costs, and what
          can be added up.
        what is still missing: These are the shares that are still missing. Asked for are those that came back.
        the control in both places: The first share is right. In the second, the loss before training was measured
          against a dense model that *is* trained: compare like with like, both before and both after.
        no control: The first share is right, and the second is the same: where is the dense model that was trained,
          too?
        adaptation added: The first share is right. What the dense model gained by the same training was added to the
          second one; it is no merit of recovery.
        share of all nats: Divided by all that a token costs. Only what pruning has cost can come back.
        the two exchanged: The two shares are right, in the other order.
        """,
    ),
    cases=lambda: [
        Case("texts that were trained on", _texts((76.0, 41.0, 20.0, 18.5), (33.0, 24.0, 17.9, 16.0))),
        Case("a text that was trained on and one that was not", _texts((76.0, 41.0, 20.0, 18.5), (180, 110, 35, 37))),
        Case("training that did harm", _texts((24.0, 26.5, 20.0, 20.5))),
        Case("a model that became better than the dense one was", _texts((24.0, 18.9, 20.0, 18.0))),
        Case("large perplexities", _texts((2000.0, 150.0, 21.0, 20.0), (9000.0, 900.0, 30.0, 29.0))),
    ],
)


# too_short(grad, keep, limit): what it costs to clip before masking
def _factor(norm: float, limit: float) -> float:
    return min(1.0, limit / norm)


def _norms(grad: Tensor, keep: Tensor) -> tuple[float, float]:
    return float(grad.double().norm()), float(grad.double()[keep.bool()].norm())


def _too_short(grad: Tensor, keep: Tensor, limit: float) -> float:
    whole, kept = _norms(grad, keep)
    return _factor(whole, limit) / _factor(kept, limit)


def _ratio_of_norms(grad: Tensor, keep: Tensor, limit: float) -> float:
    whole, kept = _norms(grad, keep)
    return kept / whole


def _of_squares(grad: Tensor, keep: Tensor, limit: float) -> float:
    whole, kept = (norm**2 for norm in _norms(grad, keep))
    return _factor(whole, limit) / _factor(kept, limit)


too_short = Exercise(
    name="too_short",
    chapter=18,
    title="by which factor kept gradients are too short if clipping comes before the mask",
    reference=_too_short,
    difficulty=3,
    wrong=mistakes(
        {
            "always clipped": _ratio_of_norms,
            "never clipped": lambda grad, keep, limit: 1.0,
            "clipped before, never after": lambda grad, keep, limit: _factor(_norms(grad, keep)[0], limit),
            "the right loop alone": lambda grad, keep, limit: _factor(_norms(grad, keep)[1], limit),
            "square root of the share": lambda grad, keep, limit: math.sqrt(float(keep.double().mean())),
            "squared norms": _of_squares,
            "too long instead of too short": then(_too_short, lambda factor: 1 / factor),
            "mask inverted": given(_too_short, keep=torch.logical_not),
        },
        """
        always clipped: This is the ratio of the two norms, which is right if both are above the limit. Clipping does
          nothing to a norm below it.
        never clipped: You always say 1. If the whole norm is above the limit, gradients of pruned weights have
          shortened those of the others.
        clipped before, never after: This is by how much the wrong loop clips. The right one may clip, too: compare.
        the right loop alone: This is by how much the loop clips that masks first. What does the other one do?
        square root of the share: This is the rule of thumb for gradients of equal size. Here they are given.
        squared norms: The limit was compared with squared norms.
        too long instead of too short: The factor was asked by which they are too *short*: below 1.
        mask inverted: The norm of the pruned weights' gradients was taken for that of the kept ones: True means *kept*.
        """,
    ),
    cases=lambda: [
        Case("both norms above the limit", (normal(40, seed=1860), normal(40, seed=1861) > 0.3, 1.0)),
        Case(
            "only the whole above the limit", (torch.tensor([3.0, 4.0, 12.0]), torch.tensor([True, True, False]), 8.0)
        ),
        Case("both below the limit", (normal(10, seed=1862), normal(10, seed=1863) > 0, 100.0)),
        Case(
            "large gradients at pruned places",
            (torch.tensor([0.3, -9.0, 0.4, 9.0]), torch.tensor([True, False, True, False]), 1.0),
        ),
        Case(
            "large gradients at kept places", (torch.tensor([6.0, 0.5, -8.0]), torch.tensor([True, False, True]), 5.0)
        ),
    ],
)


EXERCISES = [sparse_step, merged, distillation, came_back, too_short]
