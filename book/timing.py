"""How long each notebook took when it was executed, and takes to read: `python book/timing.py [FOLDER]`.

nbconvert and JupyterLab record when each cell began and ended; the sums are printed, one line a notebook. They are the
wall clock's, and what else the machine was doing then is not recorded. The minutes to read, which the box at the head
of each chapter gives, are counted by one rule, see `minutes`.
"""

import json
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path


def seconds(notebook: dict) -> float | None:
    """The run time recorded in a notebook's code cells; None if one of them has no record."""
    total = 0.0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code" or not cell["source"] or "install" in cell["metadata"].get("tags", []):
            continue  # the cell that book/launch.py adds does nothing here
        times = cell["metadata"].get("execution", {})
        begin = times.get("iopub.execute_input") or times.get("iopub.status.busy")
        end = times.get("shell.execute_reply") or times.get("iopub.status.idle")
        if not (begin and end):
            return None
        total += (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()
    return total


def _counted(notebook: dict) -> Iterator[tuple[dict, str]]:
    """Each cell, and what of its source stands outside of exercises, solutions and the quiz."""
    apart = False
    for cell in notebook["cells"]:
        lines = []
        for line in "".join(cell["source"]).splitlines():
            if mark := re.match(r"```\{(?:exercise|solution)-(start|end)\}", line):
                apart = mark[1] == "start"
            elif not apart and "checks.quiz(" not in line:
                lines.append(line)
        yield cell, "\n".join(lines)


def _words(text: str) -> int:
    """How many words a text has without its formulas, roles and the marks of directives."""
    for mark in (r"\$\$.*?\$\$( \([\w-]+\))?", r"(?m)^(```|:[\w-]+:).*$", r"\$[^$]*\$", r"\{[\w:]+\}"):
        text = re.sub(mark, " ", text, flags=re.S if mark.startswith(r"\$\$") else 0)
    return len(re.findall(r"[A-Za-z][\w'’-]*", text))


def minutes(notebook: dict) -> int:
    """How long a chapter takes to read, to the nearest five minutes.

    A minute is 200 words of the text and its tables, 12 lines of code that is not folded, or one numbered equation.
    Exercises with their solutions and the quiz do not count.
    """
    words, lines, equations = 0, 0, 0
    for cell, source in _counted(notebook):
        if cell["cell_type"] == "markdown":
            equations += len(re.findall(r"(?m)^\$\$ \([\w-]+\)$", source))
            words += _words(source)
        elif source:
            folded = "hide-input" in cell["metadata"].get("tags", [])
            lines += 0 if folded else sum(bool(line.strip()) for line in source.splitlines())
            for output in cell["outputs"]:
                words += _words(re.sub(r"<[^>]*>", " ", "".join(output.get("data", {}).get("text/html", ""))))
    return 5 * round((words / 200 + lines / 12 + equations) / 5)


def main(folder: Path) -> None:
    """Print one line for each notebook in the folder."""
    lines = ["wall-clock seconds of the committed run, also where other jobs were running beside it:"]
    for path in sorted(folder.glob("*.ipynb")):
        recorded = seconds(json.loads(path.read_text(encoding="utf-8")))
        told = "no times recorded" if recorded is None else f"{recorded:5.1f} s"
        lines.append(f"{path.name:32} {told}")
    sys.stdout.write("\n".join(lines) + "\n")  # at once: the reader may be `head`


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "notebooks")
