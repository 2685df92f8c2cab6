"""Sentences of a verdict that need to know nothing of the exercise."""

from collections.abc import Sequence
from typing import Any

import torch

from minprune.course.checks.values import parts, unfit
from minprune.course.outcome import HOOKS, Failure, Outcome

_EXACTLY = (
    "All numbers are right but for rounding, and that is the mistake: a pruned weight is exactly 0, else no count "
    "finds it and no format leaves it out. What is left of it, perhaps 1e-9, comes from its update. Set it to 0 after "
    "that, and no weight that stays."
)
NEARLY_ZERO = (_EXACTLY, "pruned weights are nearly zero")  # what is said, and the name of the mistake


def explain_slope(where: str, name: str, got: Outcome) -> str:
    """What is wrong with a gradient in the argument of that name."""
    if got.slope is None:
        return (
            f"{where} the value is right, but it has no gradient in `{name}`, so nothing could learn from it. Stay "
            "with tensors of torch from beginning to end, without `.item()`, `.detach()` or NumPy."
        )
    return f"{where} the value is right, but its gradient in `{name}` is not. Is a part of it detached?"


def explain_floats(where: str, expected: Any, value: Any) -> str | None:
    """What to say of right values that are floats where masks or whole numbers were asked for; None if none are."""
    wanted = parts(expected)
    for number, (part, floats) in enumerate(zip(wanted, unfit(value, expected), strict=True)):
        if floats:
            name = "your result" if len(wanted) == 1 else f"item {number} of your result"
            held = "True and False" if torch.as_tensor(part).dtype == torch.bool else "whole numbers"
            return f"{where} {name} should hold {held}, and holds floats ({floats}). The values are right."
    return None


def explain_call(where: str, got: Outcome) -> str | None:
    """What is wrong with a call before one looks at the numbers: an exception, other arguments, nothing returned."""
    if got.error:
        return explain_error(where, got.error)
    if got.changed == HOOKS:
        return f"{where} your function left {HOOKS}. Take away those that you have put there."
    if got.changed:
        return f"{where} your function changed its argument {got.changed}. Work on a copy: the caller still needs it."
    return f"{where} your function returned None. Is the `return` missing?" if got.value is None else None


def tally(labels: Sequence[str], wrongs: Sequence[int]) -> str:
    """Which cases were right and which were not, as one more sentence; of a single case there is nothing to say."""
    if len(wrongs) == len(labels):
        return f" None of the {len(labels)} cases is right." if len(labels) > 1 else ""
    right = [label for i, label in enumerate(labels) if i not in wrongs]
    return f" Right on {_listed(right)}; wrong on {_listed([labels[i] for i in wrongs])}."


def _listed(labels: Sequence[str], most: int = 4) -> str:
    """Labels in a line, no more than `most` by name."""
    rest = len(labels) - most
    return "; ".join(labels[:most]) + (f" and {rest} more" if rest > 0 else "")


def unwritten(got: Outcome) -> bool:
    """Whether there is no answer yet, only the line that the student edition has."""
    return got.error is not None and "builtins.NotImplementedError" in got.error.kinds


def explain_error(where: str, error: Failure) -> str:
    """What an exception of the answer comes to."""
    if unwritten(Outcome(error=error)):
        return "Nothing is written yet: replace the line that raises NotImplementedError."
    line = f" in its line {error.line}" if error.line else ""
    reason = error.text.splitlines() or ["no message"]
    if reason[0].endswith(":"):  # what was expected stands in the next lines
        reason = [" ".join(" ".join(reason).split())]
    return f"{where} your function raised {error.name}{line}: {_short(reason[0])}."


def _short(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[:most]} ..."
