"""The file of a sweep, one complete run a line, and what the runs of several seeds say together. Chapter 09."""

import math
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minprune.errors import PruneError
from minprune.files import JsonLine, check_regular, json_lines
from minprune.output.typed import SweepRun, checked

_BEGINNING = b'{"method": '  # of every line
DENSE = "dense"  # the method and, with an empty pattern, the run of the model as it came


class RunKey(NamedTuple):
    """Which run. seed: of the calibration windows; None for a method that looks at no data, and for dense."""

    method: str
    pattern: str
    seed: int | None


def read_runs(path: str | Path) -> list[dict[str, Any]]:
    """The runs in a sweep's file, in the order in which they were made; [] if there is no such file.

    What a killed sweep left of its last line is passed over. Raises `PruneError` for any other line that is no run.
    """
    return [run for run, _ in _lines(Path(path))]


@dataclass(frozen=True)
class Summary:
    """Runs that differ in nothing but their seed. perplexity and relative: text -> its mean over them.

    spread: text -> the standard deviation of the relative perplexity (with n - 1), None of a single run.
    """

    method: str
    pattern: str
    runs: int
    perplexity: dict[str, float]
    relative: dict[str, float]
    spread: dict[str, float | None]
    zeros: float
    error: float | None
    seconds: float


def summarise(runs: Iterable[dict[str, Any]]) -> list[Summary]:
    """Means and spreads over the seeds of each method and pattern, in the order of their first runs; no failed ones."""
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for run in runs:
        if "failed" not in run:
            groups[run["method"], run["pattern"]].append(run)
    return [
        Summary(
            method,
            pattern,
            len(group),
            {text: statistics.mean(run["perplexity"][text] for run in group) for text in group[0]["perplexity"]},
            {text: statistics.mean(run["relative"][text] for run in group) for text in group[0]["relative"]},
            {text: _deviation([run["relative"][text] for run in group]) for text in group[0]["relative"]},
            statistics.mean(run["zeros"] for run in group),
            None if group[0]["error"] is None else statistics.mean(run["error"] for run in group),
            statistics.mean(run["seconds"]["processor"] for run in group),
        )
        for (method, pattern), group in groups.items()
    ]


def key_of(run: dict) -> RunKey:
    """The cell that a run is of."""
    return RunKey(run["method"], run["pattern"], run["seed"])


def continue_runs(path: Path, protocol: dict) -> list[dict]:
    """The runs at path, cut behind the last whole line; makes the file if there is none. Lock it before that.

    Raises `PruneError` if they were made with another protocol, or if the file is no sweep's or cannot be written.
    """
    check_regular(path)
    try:
        path.touch()
        runs, whole = [], 0
        for run, end in _lines(path):
            if other := _difference(run["protocol"], protocol):
                raise PruneError(f"{path} was made with another protocol, {other}: choose another output")
            runs.append(run)
            whole = end
        os.truncate(path, whole)
    except OSError as error:
        raise PruneError(f"cannot write to {path} ({error.strerror}): choose another output") from None
    return runs


def _lines(path: Path) -> Iterator[tuple[dict, int]]:
    """Each run and the byte at which its line ends. A last line without its line break is torn, and left out."""
    for number, line in enumerate(json_lines(path), 1):
        if line.whole and (run := _run(line)):
            yield run, line.end
        elif line.whole or line.text[: len(_BEGINNING)] != _BEGINNING[: len(line.text)]:  # nothing of others is cut off
            raise PruneError(f"line {number} of {path} is not a run of a sweep: choose another file")


def _run(line: JsonLine) -> dict | None:
    try:
        run = checked(line.value, SweepRun)
    except ValueError:
        return None
    for name in ("perplexity", "dense", "relative"):
        run[name] = {text: math.inf if value is None else value for text, value in run[name].items()}
    return run if "processor" in run["seconds"] and run["relative"].keys() == run["perplexity"].keys() else None


def _difference(theirs: Any, ours: Any, name: str = "") -> str | None:
    """The first field in which two protocols differ, as 'dtype bfloat16 instead of float32'; None if none."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        pairs = ((key, theirs.get(key), ours.get(key)) for key in {**ours, **theirs})
        return next((d for key, a, b in pairs if (d := _difference(a, b, f"{name} {key}".strip()))), None)
    return None if theirs == ours else f"{name} {_short(theirs)} instead of {_short(ours)}"


def _short(value: Any) -> str:
    if value is None or isinstance(value, dict):
        return "none" if value is None else "there"
    return str(value)[:12] if len(str(value)) == 64 else str(value)  # the beginning of a sha256 is enough


def _deviation(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
