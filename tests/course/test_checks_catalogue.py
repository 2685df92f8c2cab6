"""What the course had is still there: no exercise, no difficulty, no case and no known mistake is lost on the way."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from minprune import checks
from minprune.course.checks import core
from minprune.errors import PruneError

HERE = Path(__file__).parent
KNOWN = json.loads((HERE / "catalogue.json").read_text(encoding="utf-8"))
NOTEBOOKS = {path.name[:2]: path.stem[3:] for path in (HERE.parent.parent / "notebooks").glob("[0-9]*.ipynb")}
CHAPTERS = sorted(path.stem for path in Path(checks.__file__).parent.glob("ch*.py"))


@pytest.mark.parametrize("name", KNOWN)
def test_no_exercise_has_lost_a_case_or_a_mistake(name):
    exercise, known = checks.EXERCISES[name], KNOWN[name]
    lost = Counter(known["mistakes"]) - Counter(wrong.name for wrong in exercise.wrong)
    assert not lost, f"{name} no longer knows {dict(lost)}"
    assert exercise.difficulty == known["difficulty"] and len(exercise.cases()) >= known["cases"]


def test_exercises_stand_in_the_order_of_their_chapters():
    assert [name for name in checks.EXERCISES if name in KNOWN] == list(KNOWN)
    numbers = [exercise.chapter for exercise in checks.EXERCISES.values()]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_is_one_file_that_is_called_like_its_notebook(chapter):
    number, name = re.fullmatch(r"ch(\d\d)_(\w+)", chapter).groups()
    assert NOTEBOOKS.get(number, name.replace("_", "-")) == name.replace("_", "-")
    assert {exercise.chapter for exercise in getattr(checks, chapter).EXERCISES} == {int(number)}


def test_mistakes_pair_functions_and_messages_by_name():
    text = """
        round: It was rounded:
          twice.
        sign: Minus one.
        sign: Minus two.
        """
    rows = core.mistakes({"sign": [min, max], "round": [abs, int]}, text)
    assert [(w.name, w.function, w.message) for w in rows] == [
        ("sign", min, "Minus one."),
        ("sign", max, "Minus two."),
        ("round", abs, "It was rounded: twice."),
        ("round", int, "It was rounded: twice."),
    ]
    with pytest.raises(PruneError, match="sign: give every wrong variant a function and a message"):
        core.mistakes({"round": abs}, text)
    with pytest.raises(PruneError, match="count: give every wrong variant"):
        core.mistakes({"round": abs, "sign": [min, max], "count": len}, text)
    with pytest.raises(PruneError, match="sign has 3 functions and 2 messages: give it 1 or 3"):
        core.mistakes({"round": abs, "sign": [min, max, abs]}, text)
