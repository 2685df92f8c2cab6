"""Pairs of English sentences, one grammatical and one not, which differ in one word or in the order of two.

Made from small word lists, so that they need no download, cannot stand in any training data as a list, and come in any
number. The idea is BLiMP's (Warstadt et al., 2020): a language model that has learned a rule gives the grammatical
sentence the higher probability. Both sentences of a pair have the same words up to the one that decides.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from minprune.errors import PruneError, check_kind

_PEOPLE = [("boy", "boys"), ("girl", "girls"), ("doctor", "doctors"), ("teacher", "teachers"), ("farmer", "farmers"),
           ("student", "students"), ("pilot", "pilots"), ("singer", "singers"), ("writer", "writers"),
           ("king", "kings"), ("queen", "queens"), ("mother", "mothers"), ("father", "fathers")]  # fmt: skip
_THINGS = [("book", "books"), ("letter", "letters"), ("picture", "pictures"), ("chair", "chairs"), ("song", "songs"),
           ("house", "houses"), ("bottle", "bottles"), ("hat", "hats"), ("key", "keys"), ("car", "cars")]  # fmt: skip
_DOES = [("sleeps", "sleep"), ("works", "work"), ("sings", "sing"), ("runs", "run"), ("smiles", "smile"),
         ("waits", "wait"), ("laughs", "laugh"), ("dances", "dance")]  # fmt: skip
_WHEN = ["every day", "in the garden", "at night", "near the river", "in the morning", "after lunch"]
_SAW = ["saw", "found", "wanted", "bought", "liked", "painted", "forgot", "lost"]
_NEAR = ["near", "behind", "next to", "beside", "in front of"]
_HURT = ["hurt", "admired", "blamed", "described", "washed", "trusted", "saw"]
_MEN, _WOMEN = (
    ["boy", "father", "king", "uncle", "brother", "man"],
    ["girl", "mother", "queen", "aunt", "sister", "woman"],
)
# Many people say "has forgot" and "has drank", and newspapers print it, so these two are not in the list.
_DONE = [("ate", "eaten", "bread"), ("wrote", "written", "letters"), ("broke", "broken", "windows"),
         ("stole", "stolen", "money"), ("drove", "driven", "cars"), ("drew", "drawn", "pictures"),
         ("chose", "chosen", "books"), ("threw", "thrown", "bottles")]  # fmt: skip
_VOWEL = ["apple", "egg", "orange", "old book", "empty box", "ugly hat", "open door", "island"]
_CONSONANT = ["banana", "table", "lemon", "new book", "full box", "pretty hat", "closed door", "river"]
_COLOURS = ["red", "blue", "green", "old", "small", "heavy", "beautiful", "new"]
# After these verbs "the hat new" is wrong, as it is not in "bought the hat new"; and no colours: "bottle green" is one.
_NOTICED = ["noticed", "described", "mentioned", "praised", "touched", "admired", "ignored", "inspected"]
_NEW = ["new", "old", "small", "large", "heavy", "strange", "famous", "expensive"]
_CASES = [("him", "he"), ("her", "she"), ("them", "they"), ("me", "I"), ("us", "we")]


@dataclass(frozen=True)
class Pair:
    """Two sentences, and the name of the rule that the wrong one breaks."""

    phenomenon: str
    right: str
    wrong: str


def minimal_pairs(count: int = 50, seed: int = 0) -> list[Pair]:
    """`count` different pairs for each phenomenon of `PHENOMENA`, the same for the same seed.

    Raises `PruneError` if a phenomenon's words do not give that many.
    """
    check_kind("count", count, int)
    pairs = []
    for name, make in PHENOMENA.items():
        draw = random.Random(f"{name} {seed}")
        found: dict[tuple[str, str], None] = {}  # a set that keeps the order
        for _ in range(50 * count):
            if len(found) == count:
                break
            found[make(draw)] = None
        if count < 1 or len(found) < count:
            raise PruneError(f"{count} pairs asked for, {name} has {len(found)} of its words: ask for 1 to 200")
        pairs += [Pair(name, f"{right}.", f"{wrong}.") for right, wrong in found]
    return pairs


def _agreement(draw: random.Random) -> tuple[str, str]:
    number = draw.randrange(2)
    noun, verb, when = draw.choice(_PEOPLE)[number], draw.choice(_DOES), draw.choice(_WHEN)
    return f"The {noun} {verb[number]} {when}", f"The {noun} {verb[1 - number]} {when}"


def _attractor(draw: random.Random) -> tuple[str, str]:
    """The noun nearest to the verb has the other number."""
    number = draw.randrange(2)
    noun, other = draw.choice(_THINGS)[number], draw.choice(_PEOPLE)[1 - number]
    verbs, start = ("is", "are"), f"The {noun} {draw.choice(_NEAR)} the {other}"
    colour = draw.choice(_COLOURS)
    return f"{start} {verbs[number]} {colour}", f"{start} {verbs[1 - number]} {colour}"


def _reflexive_gender(draw: random.Random) -> tuple[str, str]:
    forms = ("himself", "herself")
    gender = draw.randrange(2)
    start = f"The {draw.choice((_MEN, _WOMEN)[gender])} {draw.choice(_HURT)}"
    end = draw.choice(_WHEN)
    return f"{start} {forms[gender]} {end}", f"{start} {forms[1 - gender]} {end}"


def _reflexive_number(draw: random.Random) -> tuple[str, str]:
    gender, number = draw.randrange(2), draw.randrange(2)
    one = ("himself", "herself")[gender]
    noun = draw.choice([pair for pair in _PEOPLE if pair[0] in (_MEN, _WOMEN)[gender]])[number]
    forms, start = (one, "themselves"), f"The {noun} {draw.choice(_HURT)}"
    end = draw.choice(_WHEN)
    return f"{start} {forms[number]} {end}", f"{start} {forms[1 - number]} {end}"


def _determiner(draw: random.Random) -> tuple[str, str]:
    number = draw.randrange(2)
    word = draw.choice((("this", "that", "one", "every"), ("these", "those", "two", "many"))[number])
    thing = draw.choice(_THINGS)
    start = f"The {draw.choice(_PEOPLE)[0]} {draw.choice(_SAW)} {word}"
    return f"{start} {thing[number]}", f"{start} {thing[1 - number]}"


def _order(draw: random.Random) -> tuple[str, str]:
    new, thing = draw.choice(_NEW), draw.choice(_THINGS)[draw.randrange(2)]
    start = f"The {draw.choice(_PEOPLE)[0]} {draw.choice(_NOTICED)} the"
    return f"{start} {new} {thing}", f"{start} {thing} {new}"


def _participle(draw: random.Random) -> tuple[str, str]:
    past, participle, what = draw.choice(_DONE)
    number = draw.randrange(2)
    start = f"The {draw.choice(_PEOPLE)[number]} {('has', 'have')[number]}"
    return f"{start} {participle} the {what}", f"{start} {past} the {what}"


def _article(draw: random.Random) -> tuple[str, str]:
    kind = draw.randrange(2)
    thing = draw.choice((_CONSONANT, _VOWEL)[kind])
    start = f"The {draw.choice(_PEOPLE)[draw.randrange(2)]} {draw.choice(_SAW)}"
    return f"{start} {('a', 'an')[kind]} {thing}", f"{start} {('an', 'a')[kind]} {thing}"


def _case(draw: random.Random) -> tuple[str, str]:
    after, before = draw.choice(_CASES)
    start = f"The {draw.choice(_PEOPLE)[draw.randrange(2)]} {draw.choice(_SAW)}"
    end = draw.choice(_WHEN)
    return f"{start} {after} {end}", f"{start} {before} {end}"


PHENOMENA: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "agreement": _agreement,
    "agreement past a noun": _attractor,
    "reflexive, gender": _reflexive_gender,
    "reflexive, number": _reflexive_number,
    "determiner and noun": _determiner,
    "adjective order": _order,
    "participle": _participle,
    "article": _article,
    "pronoun case": _case,
}
