"""`minprune grade`: points for the exercises of a filled-in chapter."""

import textwrap
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from minprune.cli.common import command, console, number
from minprune.errors import PruneError
from minprune.files import to_json, write_text
from minprune.output.target import check_file

if TYPE_CHECKING:
    from minprune.course.classroom.grade import Grade

WIDTH = 80


def add(commands) -> None:
    """The arguments of `minprune grade`."""
    parser = command(
        commands,
        "grade",
        run,
        "give points to the exercises of a filled-in chapter",
        "Each exercise is worth its difficulty. An answer and the parts of the notebook that it needs run in a process "
        "of their own, without the right results, with limits of time and memory and with YOUR rights: grade only "
        "notebooks whose authors you trust, or do it in a container or an account made for it. On Linux the kernel "
        "(Landlock) keeps the checks from being read there; elsewhere only what goes through Python is stopped. "
        "Other copies of the solutions, such as the book's notebooks, can be read. The exit code is 0 whatever the "
        "points.",
        "minprune grade student/02-magnitude.ipynb",
    )
    parser.add_argument("notebook", metavar="NOTEBOOK", help="a filled-in chapter; it need not have been executed")
    parser.add_argument("--json", metavar="PATH", help="write the points, verdicts and bugs to this file as well")
    parser.add_argument("--seconds", metavar="S", type=number, default=60.0, help="time limit of each exercise (60)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file at --json")


def run(arguments: Namespace) -> None:
    """Grade a notebook: a table, then what the checks said of exercises without points; perhaps a JSON file."""
    from minprune.course.classroom.grade import LONGEST, grade

    target = Path(arguments.json) if arguments.json else None
    if target:
        check_file(arguments.json, "--json", arguments.overwrite, read=[arguments.notebook])
    if not 0 < arguments.seconds <= LONGEST:
        raise PruneError(
            f"--seconds {arguments.seconds:g} is no time limit: give a number above 0, at most {LONGEST:g}"
        )
    result = grade(arguments.notebook, arguments.seconds)
    if target:
        write_text(target, to_json(result.as_dict(), 2))
    console().print(as_text(result), soft_wrap=True)


def as_text(result: "Grade") -> str:
    """The table, at most 80 columns wide, and below it the whole verdict on each exercise without points."""
    names = [mark.exercise for mark in result.marks]
    first = max(map(len, ["exercise", *names]))
    lines = [f"{result.notebook}, chapter {result.chapter:02d}", "", f"{'exercise':{first}}  points  verdict"]
    for mark in result.marks:
        verdict = "passed" if mark.passed else mark.bug or mark.message
        short = textwrap.shorten(verdict, WIDTH - first - 10, placeholder=" ...")
        lines.append(f"{mark.exercise:{first}}  {mark.points:2} / {mark.of}  {short}")
    lines.append(f"{'total':{first}}  {result.points:2} / {result.of}")
    for mark in result.marks:
        if not mark.passed:
            lines += ["", *textwrap.wrap(f"{mark.exercise}: {mark.message}", WIDTH)]
    return "\n".join(lines)
