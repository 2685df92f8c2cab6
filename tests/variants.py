"""For the tests of exercises whose wrong variants are recipes, a dataclass with one field changed for each bug."""

import random
from dataclasses import fields, replace
from itertools import combinations

import pytest


def cases(exercise):
    """The inputs that an exercise is checked on, for parametrize."""
    return [pytest.param(case, id=case.label) for case in exercise.cases()]


def changed(recipe):
    """The fields in which a recipe differs from the right one."""
    return {f.name: getattr(recipe, f.name) for f in fields(recipe) if getattr(recipe, f.name) != f.default}


def pairs(wrong, count=None, seed=0):
    """Pairs (one, other) of bugs that can be made at once, since they are in different places: all, or so many."""
    able = [(a, b) for a, b in combinations(wrong, 2) if not changed(a.function).keys() & changed(b.function).keys()]
    drawn = able if count is None else random.Random(seed).sample(able, count)
    return [pytest.param(one, other, id=f"{one.name}, {other.name}") for one, other in drawn]


def both(one, other):
    """The answer that has both bugs."""
    return replace(one.function, **changed(other.function))
