"""The chapters' quizzes: multiple choice, with a word on each answer, on a page without a kernel and in a terminal.

A quiz is a file `course/quizzes/NN-name.yaml`, called like the chapter's notebook: a list of questions, each of them

    - question: What is asked?
      answers:
        - answer: One of three to five.
          feedback: Why it is right, or which mistake it is.
          right: true  # for one of them

`code` and *stress* may be marked in all texts. The HTML holds no script: an answer is a <details> that is opened.
"""

import html
import re
import textwrap
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from minprune.arguments import checked
from minprune.course.checks.core import Verdict
from minprune.errors import PruneError

LETTERS = "abcde"
_FOLDER = files("minprune.course") / "quizzes"
_WIDTH = 88
_MARK = re.compile(r"`([^`]+)`|\*([^*]+)\*")


def _marked(text: str) -> str:
    if "`" in _MARK.sub("", text) or text != text.strip():
        raise ValueError("a backtick without its partner, or a blank at the edge")
    return text


_Text = Annotated[str, Field(min_length=1), AfterValidator(_marked)]


class Answer(BaseModel):
    """One of the answers to choose from. feedback: why it is right, or which mistake leads to it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    answer: _Text
    feedback: _Text
    right: bool = False


class Question(BaseModel):
    """A question with three to five answers, one of them right."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    question: _Text
    answers: Annotated[tuple[Answer, ...], Field(min_length=3, max_length=len(LETTERS))]

    def model_post_init(self, _: object) -> None:
        """Refuse a question with no right answer, or with several, or with the same answer twice."""
        if sum(answer.right for answer in self.answers) != 1:
            raise ValueError(f"{self.question!r} needs exactly one answer that says right: true")
        if len({answer.answer for answer in self.answers}) < len(self.answers):
            raise ValueError(f"{self.question!r} has one answer twice")


_QUESTIONS = TypeAdapter(Annotated[tuple[Question, ...], Field(min_length=3, max_length=3)])


@dataclass(frozen=True, repr=False)
class Quiz:
    """Three questions on a chapter. As the last line of a cell it is shown; each answer opens to say what it is worth.

    Parameters
    ----------
    chapter : str
        The number of the notebook, as in its file's name.
    questions : tuple of Question

    Examples
    --------
    >>> from minprune import checks
    >>> checks.quiz("05")(1, "a").passed
    False
    """

    chapter: str
    questions: tuple[Question, ...]

    @checked()
    def answer(self, question: int, letter: str) -> Verdict:
        """What the answer with that letter is worth, and why. Raises `PruneError` if there is no such answer."""
        if question not in range(1, len(self.questions) + 1):
            raise PruneError(f"there is no question {question!r}: give a number from 1 to {len(self.questions)}")
        answers = dict(zip(LETTERS, self.questions[question - 1].answers, strict=False))
        key = str(letter).strip().lower()
        if key not in answers:
            raise PruneError(f"question {question} has no answer {letter!r}: give one of {', '.join(answers)}")
        return Verdict(f"question {question}, {key}", answers[key].right, answers[key].feedback)

    __call__ = answer

    def __repr__(self) -> str:
        lines = []
        for number, question in enumerate(self.questions, 1):
            lines += [_wrapped(f"{number}. ", question.question)]
            lines += [
                _wrapped(f"   {letter}) ", answer.answer)
                for letter, answer in zip(LETTERS, question.answers, strict=False)
            ]
            lines += [""]
        return "\n".join([*lines, f'Choose: checks.quiz("{self.chapter}").answer(1, "a")'])

    def _repr_html_(self) -> str:
        return "\n".join(_section(number, question) for number, question in enumerate(self.questions, 1))


def quiz(chapter: str | int) -> Quiz:
    """The quiz of a chapter.

    Parameters
    ----------
    chapter : str or int
        The number in front of the notebook's name: "05" or 5.

    Returns
    -------
    Quiz

    Raises
    ------
    PruneError
        If the chapter has no quiz, or if its file is not in the form of one.

    Examples
    --------
    >>> from minprune import checks
    >>> print(checks.quiz("05").answer(1, "a").message.split(":")[0])
    A factor common to all norms changes no comparison
    """
    number = str(chapter).zfill(2)
    found = {entry.name[:2]: entry for entry in sorted(_FOLDER.iterdir(), key=lambda entry: entry.name)
             if re.fullmatch(r"\d\d-[\w-]+\.yaml", entry.name)}  # fmt: skip
    if number not in found:
        raise PruneError(f"there is no quiz of chapter {chapter!r}: the chapters with one are {', '.join(found)}")
    return Quiz(number, parse(found[number].read_text(encoding="utf-8"), found[number].name))


def parse(text: str, name: str) -> tuple[Question, ...]:
    """The questions that a quiz's file holds. Raises `PruneError` with the file's name and the first thing wrong."""
    try:
        return _QUESTIONS.validate_python(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise PruneError(f"{name} is no YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise PruneError(f"{name}, {place}: {first['msg']}; see the header of checks/quizzes.py for the form") from None


def _wrapped(head: str, text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head))


def _section(number: int, question: Question) -> str:
    answers = zip(LETTERS, question.answers, strict=False)
    return "\n".join(
        [
            f'<section class="quiz" role="group" aria-label="Question {number}">',
            f"<p><strong>{number}.</strong> {_inline(question.question)}</p>",
            *(
                f"<details><summary><strong>{letter}</strong> {_inline(answer.answer)}</summary>"
                f'<p class="{"right" if answer.right else "wrong"}">'
                f"<strong>{'✓ Right.' if answer.right else '✗ No.'}</strong> {_inline(answer.feedback)}</p></details>"
                for letter, answer in answers
            ),
            "</section>",
        ]
    )


def _inline(text: str) -> str:
    """Escaped, with what is marked as code or as stress in its element; no line ends in front of a per cent sign."""
    escaped = html.escape(re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", text), quote=False)
    return _MARK.sub(lambda mark: f"<code>{mark[1]}</code>" if mark[1] else f"<em>{mark[2]}</em>", escaped)
