"""Self-checks for the exercises of the course: `checks.NAME(your_function)` says whether it is right, or what is wrong.

from minprune import checks

checks.block_mask(my_function)      # a Verdict: .passed, .bug (the name of a recognised mistake, or None)
checks.EXERCISES                        # name -> Exercise, all chapters, with their difficulty
checks.quiz("05")                       # three questions, each answer with a word on it

A chapter is a module `chNN_name`, called like its notebook, with a list `EXERCISES`; it is found by its name.
"""

from importlib import import_module
from pkgutil import iter_modules

from minprune.course.checks.core import Case, Exercise, Verdict, Wrong, collect
from minprune.course.checks.quizzes import Quiz, quiz

__all__ = ["EXERCISES", "Case", "Exercise", "Quiz", "Verdict", "Wrong", "quiz"]

_CHAPTERS = sorted(module.name for module in iter_modules(__path__) if module.name.startswith("ch"))
EXERCISES: dict[str, Exercise] = collect(*(import_module(f"{__name__}.{name}").EXERCISES for name in _CHAPTERS))


def __getattr__(name: str) -> Exercise:
    if name in EXERCISES:
        return EXERCISES[name]
    raise AttributeError(f"there is no exercise {name!r}: the exercises are {', '.join(EXERCISES)}")


def __dir__() -> list[str]:
    return [*__all__, *EXERCISES]
