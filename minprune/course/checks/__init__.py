"""Self-checks for the exercises of the course: `checks.NAME(your_function)` says whether it is right, or what is wrong.

from minprune import checks

checks.block_mask(my_function)      # a Verdict: .passed, .bug (the name of a recognised mistake, or None)
checks.EXERCISES                        # name -> Exercise, all chapters, with their difficulty

A new chapter is a module with a list `EXERCISES` and one line below.
"""

from minprune.course.checks import (
    allocation,
    calibration,
    chain,
    columns,
    factors,
    folding,
    formats,
    groups,
    inputs,
    leaks,
    lessons,
    magnitude,
    measures,
    norms,
    optimum,
    packing,
    patient,
    pipeline,
    predictions,
    prices,
    recovery,
    removals,
    repair,
    schedules,
    scores,
    search,
    several,
    shares,
    surgeon,
    tickets,
    units,
)
from minprune.course.checks.core import Case, Exercise, Verdict, Wrong, collect

__all__ = ["EXERCISES", "Case", "Exercise", "Verdict", "Wrong"]

EXERCISES: dict[str, Exercise] = collect(
    patient.EXERCISES + measures.EXERCISES,  # chapter 01
    magnitude.EXERCISES + inputs.EXERCISES,  # chapter 02
    removals.EXERCISES + several.EXERCISES + surgeon.EXERCISES,  # chapter 03
    factors.EXERCISES + columns.EXERCISES,  # chapter 04
    norms.EXERCISES + shares.EXERCISES + scores.EXERCISES,  # chapter 05
    groups.EXERCISES + folding.EXERCISES,  # chapter 06
    optimum.EXERCISES + search.EXERCISES,  # chapter 07
    pipeline.EXERCISES + repair.EXERCISES + chain.EXERCISES,  # chapter 08
    predictions.EXERCISES,  # chapter 09
    calibration.EXERCISES + leaks.EXERCISES,  # chapter 10
    allocation.EXERCISES + prices.EXERCISES,  # chapter 11
    units.EXERCISES,  # chapter 13
    tickets.EXERCISES,  # chapter 16
    schedules.EXERCISES,  # chapter 17
    recovery.EXERCISES + lessons.EXERCISES,  # chapter 18
    formats.EXERCISES + packing.EXERCISES,  # chapter 19
)


def __getattr__(name: str) -> Exercise:
    if name in EXERCISES:
        return EXERCISES[name]
    raise AttributeError(f"there is no exercise {name!r}: the exercises are {', '.join(EXERCISES)}")


def __dir__() -> list[str]:
    return [*__all__, *EXERCISES]
