"""Exercises whose cases are questions: of several wrong predictions the first one is told."""

from collections.abc import Sequence
from dataclasses import dataclass

from minprune.course.checks.core import Exercise, Verdict
from minprune.course.checks.words import tally
from minprune.course.outcome import Outcome, run


@dataclass(frozen=True, repr=False)
class Predictions(Exercise):
    """An exercise of several predictions. wrong: the mistakes in single predictions come before those in several.

    An answer with one known mistake has its name, as everywhere. With two or more it has none, but is told of its first
    wrong case what the first variant is told that errs there.
    """

    def judge(self, got: Sequence[Outcome]) -> Verdict:
        """The verdict on what an answer did, one outcome for each case."""
        verdict, cases = super().judge(got), self.cases()
        if verdict.passed or verdict.bug:
            return verdict
        expected = [run(self.reference, case.args) for case in cases]
        wrongs = [
            i for i, (e, g) in enumerate(zip(expected, got, strict=True)) if not self._agree(e, e, g, zeros=False)
        ]
        if not wrongs:  # right values of a wrong type
            return verdict
        like, found, case = expected[wrongs[0]], got[wrongs[0]], cases[wrongs[0]]
        for wrong in self.wrong:
            if not found.error and self._agree(like, run(wrong.function, case.args), found, zeros=False):
                labels = [case.label for case in cases]
                message = f"The first that is wrong is {case.label}. {wrong.message}{tally(labels, wrongs)}"
                return Verdict(self.name, False, message)
        return verdict
