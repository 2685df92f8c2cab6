"""The exercises of chapter 17 on what is learnt: the loss of distillation, and how much of the damage came back."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from minprune.checks.core import Case, Exercise, Wrong
from minprune.checks.values import normal

# distillation(student, teacher, T): T^2 KL(p || q), in the mean over tokens


def _distillation(
    power: int = 2, reverse: bool = False, mean: str = "tokens", student_T: bool = True, teacher_T: bool = True,
    entropy: bool = True, stable: bool = True,
) -> Callable:  # fmt: skip
    def distillation(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        p, q = teacher / (T if teacher_T else 1), student / (T if student_T else 1)
        p, q = (log_softmax(x, -1) if stable else x.softmax(-1).log() for x in (p, q))
        if reverse:
            p, q = q, p
        every = p.exp() * ((p if entropy else 0) - q)
        total = {"tokens": every.sum(-1).mean(), "entries": every.mean(), "sum": every.sum()}[mean]
        return T**power * total

    return distillation


distillation = Exercise(
    name="distillation",
    chapter=17,
    title="the distillation loss of logits at a temperature",
    reference=_distillation(),
    difficulty=3,
    atol=1e-5,
    wrong=(
        Wrong(
            "T squared is missing",
            _distillation(power=0),
            "Right at temperature 1 only: what keeps the gradient at its size when T grows?",
        ),
        Wrong(
            "T instead of its square",
            _distillation(power=1),
            "At other temperatures than 1 the loss has the wrong size: the gradient has two factors 1/T.",
        ),
        Wrong(
            "divergence the other way round",
            _distillation(reverse=True),
            "The divergence is that from the student to the teacher. Whose probabilities are the weights of the mean?",
        ),
        Wrong(
            "mean over the vocabulary",
            _distillation(mean="entries"),
            "The loss is too small, by the size of the vocabulary: a divergence is a *sum* over tokens of the "
            "vocabulary, and the mean goes over positions.",
        ),
        Wrong("sum over positions", _distillation(mean="sum"), "The loss grows with the number of positions."),
        Wrong(
            "teacher at temperature 1",
            _distillation(teacher_T=False),
            "The student was softened and the teacher was not: an equal teacher would not give zero.",
        ),
        Wrong(
            "student at temperature 1",
            _distillation(student_T=False),
            "The teacher was softened and the student was not: an equal teacher would not give zero.",
        ),
        Wrong(
            "cross-entropy",
            _distillation(entropy=False),
            "This is the cross-entropy with the teacher's probabilities. It has the same gradient, but is not zero "
            "when the student has learnt everything.",
        ),
        Wrong(
            "logarithm of an underflow",
            _distillation(stable=False),
            "With large logits a probability becomes zero before its logarithm is taken. Take the logarithm of the "
            "softmax in one go.",
        ),
    ),
    cases=lambda: [
        Case("temperature 1", (2 * normal(5, 7, seed=1721), 2 * normal(5, 7, seed=1722), 1.0)),
        Case("temperature 2", (3 * normal(4, 6, seed=1723), 3 * normal(4, 6, seed=1724), 2.0)),
        Case("a temperature below 1", (normal(3, 5, seed=1725), normal(3, 5, seed=1726), 0.5)),
        Case("large logits", (200 * normal(3, 6, seed=1727), 200 * normal(3, 6, seed=1728), 1.0)),
        Case("a student that has learnt everything", (normal(3, 5, seed=1729), normal(3, 5, seed=1729) + 2, 4.0)),
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
