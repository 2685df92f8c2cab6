"""Every mutant of an exercise's reference is refused by its own check, or listed as one that changes nothing."""

import hashlib
import importlib
import pkgutil

import pytest
from equivalents import EQUIVALENT
from mutants import Stopped, deadline, mutants_of, survivors

from minprune import checks
from minprune.course.checks.core import Case, Exercise

pytestmark = pytest.mark.filterwarnings("ignore:The use of `x.T`")  # of a vector, in some mutants

EXERCISES_OF, MUTANTS_OF = 12, 4  # one exercise of so many is in the sample, and one of so many of its mutants


def _home(exercise):
    """The module that a mutant of the reference is made of, and how to find the reference in it."""
    name = exercise.name
    for info in pkgutil.iter_modules(checks.__path__):
        module = importlib.import_module(f"minprune.course.checks.{info.name}")
        if exercise in getattr(module, "EXERCISES", ()):
            return module, lambda space: next(e for e in space["EXERCISES"] if e.name == name).reference
    raise LookupError(name)


def _unlisted(exercise, chosen=lambda mutant: True):
    """How many mutants there are, and those that pass and are not listed."""
    module, get = _home(exercise)
    mutants = [m for m in mutants_of(module, get, [case.args for case in exercise.cases()]) if chosen(m)]
    listed = EQUIVALENT.get(exercise.name, {})
    return len(mutants), [str(m) for m in survivors(exercise, module, get, mutants) if str(m) not in listed]


def _drawn(text, one_of):
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % one_of == 0


@pytest.mark.slow
@pytest.mark.parametrize("exercise", checks.EXERCISES.values(), ids=lambda e: e.name)
def test_no_mutant_of_the_reference_passes(exercise):
    _, passed = _unlisted(exercise)
    assert not passed, "\n".join([f"{exercise.name} needs a case for:", *passed])


def test_no_mutant_of_a_sample_passes():
    drawn = [exercise for name, exercise in checks.EXERCISES.items() if _drawn(name, EXERCISES_OF)]
    counts = {e.name: _unlisted(e, lambda mutant: _drawn(str(mutant), MUTANTS_OF)) for e in drawn}
    assert sum(number for number, _ in counts.values()) > 20
    assert not {name: passed for name, (_, passed) in counts.items() if passed}


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUIVALENT)
def test_what_is_listed_is_still_there_and_has_a_reason(name):
    exercise = checks.EXERCISES[name]
    module, get = _home(exercise)
    found = {str(m) for m in mutants_of(module, get, [case.args for case in exercise.cases()])}
    assert not EQUIVALENT[name].keys() - found
    assert all(reason for reason in EQUIVALENT[name].values())


def _loop(x):
    while x < 3:
        x = x + 1
    return x


def test_a_mutant_that_never_stops_is_stopped_and_one_that_matters_is_found():
    """With too few cases a mutant passes; with more none does."""
    import test_checks_mutants as here

    def toy(*numbers):
        return Exercise("toy", 1, "at least three", _loop, (), lambda: [Case(str(n), (n,)) for n in numbers])

    def get(space):
        return space["_loop"]

    mutants = mutants_of(here, get, [(1,), (7,)])
    assert {"x + 1 -> x - 1", "x < 3 -> x <= 3", "3 -> 4"} & {str(m) for m in mutants}
    few, more = (survivors(toy(*numbers), here, get, mutants, 0.2) for numbers in [(7,), (1, 2, 3, 7)])
    assert len(few) > 3 and not more
    with pytest.raises(Stopped), deadline(0.05):
        while True:
            pass
