"""The exercises of chapter 18 on what is learnt: the loss of distillation, and how much of the damage came back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import normal

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
    chapter=17,
    title="the loss of a student that learns from a teacher's logits and from the text",
    reference=_Distillation(),
    difficulty=4,
    atol=1e-5,
    slope=0,
    wrong=(
        Wrong(
            "T squared is missing",
            _Distillation(power=0),
            "Right at temperature 1 only: what keeps the gradient at its size when T grows?",
        ),
        Wrong(
            "T instead of its square",
            _Distillation(power=1),
            "At other temperatures than 1 the teacher's part has the wrong size: its gradient has two factors 1/T.",
        ),
        Wrong(
            "divergence the other way round",
            _Distillation(reverse=True),
            "The divergence is that from the student to the teacher. Whose probabilities are the weights of the mean?",
        ),
        Wrong(
            "mean over the vocabulary",
            _Distillation(mean="entries"),
            "The teacher's part is too small, by the size of the vocabulary: a divergence is a *sum* over the "
            "vocabulary, and the mean goes over positions.",
        ),
        Wrong(
            "sum over positions", _Distillation(mean="sum"), "The teacher's part grows with the number of positions."
        ),
        Wrong(
            "teacher at temperature 1",
            _Distillation(teacher_T=False),
            "The student was softened and the teacher was not: an equal teacher would not give zero.",
        ),
        Wrong(
            "student at temperature 1",
            _Distillation(student_T=False),
            "The teacher was softened and the student was not: an equal teacher would not give zero.",
        ),
        Wrong(
            "cross-entropy with the teacher",
            _Distillation(entropy=False),
            "The teacher's part is a cross-entropy. It has the same gradient as the divergence, but is not zero when "
            "the student has learnt everything.",
        ),
        Wrong(
            "logarithm of an underflow",
            _Distillation(stable=False),
            "With large logits a probability becomes zero before its logarithm is taken. Take the logarithm of the "
            "softmax in one go.",
        ),
        Wrong(
            "each token predicts itself",
            _Distillation(shift=0),
            "The text's part compares each position with the token that stands there. The logits of a position are "
            "about which token?",
        ),
        Wrong(
            "the token before",
            _Distillation(shift=-1),
            "The text's part is shifted the wrong way: positions are asked for the token before them.",
        ),
        Wrong(
            "shares exchanged",
            _Distillation(exchanged=True),
            "The two parts have each other's weight: `share` is the teacher's.",
        ),
        Wrong(
            "text at the temperature",
            _Distillation(text_T=True),
            "The text's part was softened, too. The temperature belongs to the comparison with the teacher: the model "
            "will be used without it.",
        ),
        Wrong("parts only added", _Distillation(added=True), "Both parts count fully: what is `share` for?"),
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
    chapter=17,
    title="the share of the lost nats that training gave back, plain and without adaptation",
    reference=_came_back(_plain, _fair),
    difficulty=2,
    wrong=(
        Wrong(
            "perplexities instead of nats",
            _came_back(_plain, _fair, nats=lambda perplexity: perplexity),
            "Perplexities were subtracted. Their logarithms are what a token costs, and what can be added up.",
        ),
        Wrong(
            "what is still missing",
            _came_back(lambda b, a, d, c: (a - d) / (b - d), lambda b, a, d, c: (a - c) / (b - d)),
            "These are the shares that are still missing. Asked for are those that came back.",
        ),
        Wrong(
            "the control in both places",
            _came_back(_plain, lambda b, a, d, c: (b - a) / (b - c)),
            "The first share is right. In the second, the loss before training was measured against a dense model "
            "that *is* trained: compare like with like, both before and both after.",
        ),
        Wrong(
            "no control",
            _came_back(_plain, _plain),
            "The first share is right, and the second is the same: where is the dense model that was trained, too?",
        ),
        Wrong(
            "adaptation added",
            _came_back(_plain, lambda b, a, d, c: (b - a + d - c) / (b - d)),
            "The first share is right. What the dense model gained by the same training was added to the second one; "
            "it is no merit of recovery.",
        ),
        Wrong(
            "share of all nats",
            _came_back(lambda b, a, d, c: (b - a) / b, lambda b, a, d, c: 1 - (a - c) / b),
            "Divided by all that a token costs. Only what pruning has cost can come back.",
        ),
        Wrong("the two exchanged", _came_back(_fair, _plain), "The two shares are right, in the other order."),
    ),
    cases=lambda: [
        Case("texts that were trained on", _texts((76.0, 41.0, 20.0, 18.5), (33.0, 24.0, 17.9, 16.0))),
        Case("a text that was trained on and one that was not", _texts((76.0, 41.0, 20.0, 18.5), (180, 110, 35, 37))),
        Case("training that did harm", _texts((24.0, 26.5, 20.0, 20.5))),
        Case("a model that became better than the dense one was", _texts((24.0, 18.9, 20.0, 18.0))),
        Case("large perplexities", _texts((2000.0, 150.0, 21.0, 20.0), (9000.0, 900.0, 30.0, 29.0))),
    ],
)

EXERCISES = [distillation, came_back]
