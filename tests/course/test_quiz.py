"""The quizzes: three questions, one right answer each, a word on every answer, the same on the page as in the file."""

import importlib.util
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import yaml
from classroom import CHAPTERS, ROOT, chapter

from minprune import checks
from minprune.course.checks.quizzes import LETTERS, parse
from minprune.course.classroom.student import student_edition
from minprune.errors import PruneError

FOLDER = ROOT / "minprune" / "course" / "quizzes"
FILES = sorted(path.stem for path in FOLDER.iterdir())
RAW = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")) for name in FILES}


def file_of(*questions):
    """The text of a quiz's file; a question is its text, then pairs of an answer's text and whether it is right."""
    return yaml.safe_dump(
        [
            {"question": text, "answers": [{"answer": a, "feedback": f"{a}!", "right": right} for a, right in answers]}
            for text, *answers in questions
        ],
        allow_unicode=True,
    )


GOOD = ("Why?", ("one", False), ("two", True), ("three", False))


class Page(HTMLParser):
    """The tags, the attributes and the text of a piece of HTML, which closes what it opens, in order."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], Counter(), set(), ""
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", FILES)
def test_a_quiz_has_three_questions_with_one_right_answer_each_and_a_word_on_every_answer(name):
    """Read from the file itself, not through the package."""
    assert len(RAW[name]) == 3
    for question in RAW[name]:
        answers = question["answers"]
        assert 3 <= len(answers) <= 5 and sum(answer.get("right", False) for answer in answers) == 1
        assert all(len(answer["feedback"].split()) >= 8 for answer in answers), question["question"]
        assert len({answer["feedback"] for answer in answers}) == len(answers)
        assert all(len(re.findall(r"[.!?](?: |$)", answer["feedback"])) <= 3 for answer in answers)


def test_neither_place_nor_length_gives_the_right_answer_away():
    places, longest, shortest, total = Counter(), 0, 0, 0
    for questions in RAW.values():
        of_quiz = set()
        for question in questions:
            answers = question["answers"]
            right = next(place for place, answer in enumerate(answers) if answer.get("right"))
            lengths = [len(answer["answer"]) for answer in answers]
            longest += lengths[right] == max(lengths)
            shortest += lengths[right] == min(lengths)
            of_quiz.add(right)
            places[right] += 1
            total += 1
        assert len(of_quiz) > 1
    assert max(places.values()) <= 0.4 * total + 1
    assert max(longest, shortest) <= 0.4 * total + 1


@pytest.mark.parametrize("name", FILES)
def test_the_page_holds_the_whole_file_escaped_closed_and_without_a_script(name):
    page = Page(checks.quiz(name[:2])._repr_html_())
    assert set(page.tags) <= {"section", "p", "strong", "details", "summary", "code", "em"}
    assert page.attributes == {"class", "role", "aria-label"}  # none opens an answer, none runs anything
    answers = [answer for question in RAW[name] for answer in question["answers"]]
    assert page.tags["details"] == page.tags["summary"] == len(answers) and page.tags["section"] == 3
    for text in [q["question"] for q in RAW[name]] + [a[key] for a in answers for key in ("answer", "feedback")]:
        assert re.sub("[`*]", "", text) in page.text.replace("*", "").replace("\N{NO-BREAK SPACE}", " ")
    assert not re.search(r"\d %", page.text)  # a line would end between the two
    assert "`" not in page.text and "$" not in page.text  # JupyterLab would take it for a formula


def test_what_looks_like_html_is_text():
    text = 'if a < b & `x <b> "y"`, *so* <script>'
    questions = parse(file_of(("<i>?", ("<", True), ("`<b>`", False), (text, False)), GOOD, GOOD), "01-x.yaml")
    page = Page(checks.Quiz("01", questions)._repr_html_())
    assert 'if a < b & x <b> "y", so <script>' in page.text and "<i>?" in page.text
    assert not {"i", "b", "script"} & set(page.tags) and page.tags["code"] == 4  # with the feedback


@pytest.mark.parametrize("name", FILES)
def test_an_answer_is_judged_as_the_file_says(name):
    quiz = checks.quiz(name[:2])
    for number, question in enumerate(RAW[name], 1):
        for letter, answer in zip(LETTERS, question["answers"], strict=False):
            verdict = quiz.answer(number, letter.upper())
            assert verdict == quiz(number, letter)
            assert (verdict.passed, verdict.message) == (answer.get("right", False), answer["feedback"])
            assert str(verdict).startswith("✓" if verdict.passed else "✗")


@pytest.mark.parametrize("name", FILES)
def test_in_a_terminal_the_questions_are_numbered_and_nothing_is_given_away(name):
    text = repr(checks.quiz(name[:2]))
    assert max(map(len, text.splitlines())) <= 88
    assert re.findall(r"^(\d)\. ", text, re.M) == ["1", "2", "3"]
    for question in RAW[name]:
        for letter, answer in zip(LETTERS, question["answers"], strict=False):
            assert f"{letter}) {answer['answer']}" in " ".join(text.split())
            assert answer["feedback"] not in " ".join(text.split())


REFUSED = {
    "two questions": (file_of(GOOD, GOOD), "the file"),
    "no right answer": (file_of(("Why?", ("a", False), ("b", False), ("c", False)), GOOD, GOOD), "exactly one answer"),
    "two right answers": (file_of(("Why?", ("a", True), ("b", True), ("c", False)), GOOD, GOOD), "exactly one answer"),
    "two answers": (file_of(("Why?", ("a", True), ("b", False)), GOOD, GOOD), "0.answers"),
    "six answers": (file_of(("Why?", ("a", True), *((c, False) for c in "bcdef")), GOOD, GOOD), "0.answers"),
    "the same twice": (file_of(("Why?", ("a", True), ("b", False), ("b", False)), GOOD, GOOD), "one answer twice"),
    "no feedback": (file_of(GOOD, GOOD, GOOD).replace("two!", "''"), "0.answers.1.feedback"),
    "a number": (file_of(GOOD, GOOD, GOOD).replace("answer: two", "answer: 2"), "0.answers.1.answer"),
    "another key": (file_of(GOOD, GOOD, GOOD).replace("right: true", "correct: true"), "0.answers.1.correct"),
    "half a code": (file_of(GOOD, GOOD, GOOD).replace("answer: two", "answer: t`wo"), "a backtick without"),
    "no YAML": ("- question: Why: not", "no YAML"),
    "no list": ("3", "the file"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_in_another_form_is_refused_by_name(what):
    text, told = REFUSED[what]
    assert len(parse(file_of(GOOD, GOOD, GOOD), "01-x.yaml")) == 3
    with pytest.raises(PruneError, match=re.escape(told)) as refused:
        parse(text, "01-x.yaml")
    assert str(refused.value).startswith("01-x.yaml") and "\n" not in str(refused.value)


def test_a_quiz_or_an_answer_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(PruneError, match=f"'99'.*{FILES[0][:2]}"):
        checks.quiz("99")
    quiz = checks.quiz(int(FILES[0][:2]))
    for question in (0, 4, "1", None):
        with pytest.raises(PruneError, match="from 1 to 3" if isinstance(question, int) else "a whole number"):
            quiz.answer(question, "a")
    with pytest.raises(PruneError, match="a, b, c"):
        quiz.answer(1, "x")


def quiz_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and "checks.quiz(" in cell.source]


@pytest.mark.parametrize("name", [name for name in CHAPTERS if Path(name).stem in FILES])
def test_a_chapter_shows_its_own_quiz_before_its_take_away_as_it_is_rendered_today(name):
    notebook = chapter(name)
    number = Path(name).name[:2]
    (cell,) = quiz_cells(notebook)
    assert cell.source == f'checks.quiz("{number}")'
    quiz = checks.quiz(number)
    (output,) = cell.outputs
    assert output.data == {"text/html": quiz._repr_html_(), "text/plain": repr(quiz)}, "run book/quizzes.py"
    place = notebook.cells.index(cell)
    assert notebook.cells[place - 1].source.startswith("## Quiz\n")
    assert notebook.cells[place + 1].source.startswith("## Take-away")


def test_every_quiz_belongs_to_a_notebook_and_every_cell_has_its_file():
    notebooks = {Path(name).stem for name in CHAPTERS}
    assert set(FILES) <= notebooks
    assert {Path(name).stem for name in CHAPTERS if quiz_cells(chapter(name))} == set(FILES)


@pytest.mark.parametrize("name", [name for name in CHAPTERS if Path(name).stem in FILES])
def test_the_student_edition_keeps_the_quiz_closed(name):
    notebook = chapter(name)
    (cell,) = quiz_cells(student_edition(notebook))
    assert cell == quiz_cells(notebook)[0]


def test_stored_outputs_are_brought_up_to_date_and_nothing_else_is_touched(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("quizzes", ROOT / "book" / "quizzes.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    original = next(ROOT / name for name in CHAPTERS if Path(name).stem in FILES)
    text = original.read_text(encoding="utf-8")
    copy = tmp_path / original.name
    copy.write_text(text, encoding="utf-8")
    script.main(tmp_path)
    assert copy.read_text(encoding="utf-8") == text and not capsys.readouterr().out
    notebook = nbformat.reads(text, as_version=4)
    quiz_cells(notebook)[0].outputs[0].data["text/plain"] = "old"
    nbformat.write(notebook, copy)
    script.main(tmp_path)
    assert copy.read_text(encoding="utf-8") == text and original.name in capsys.readouterr().out
