"""The grader's side of an answer's process: hands over the job, waits, and reads what came back as data."""

import atexit
import contextlib
import io
import json
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minprune.course.classroom.wire import LINE, from_line
from minprune.course.outcome import Outcome, legible
from minprune.errors import PruneError, from_extra
from minprune.files import check_regular, parse_json

_START = 300.0  # seconds for a process to import torch, on the slowest machine
_GRACE = 10.0  # seconds that the host may take, beyond the answer's own, to end what it runs
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from minprune.course.classroom.runner import host; host()"
)


@dataclass(frozen=True)
class Job:
    """An answer to be run. statements: (number of a cell, its code, place of the statement in it); cases: arguments."""

    name: str
    answer: str
    statements: tuple[tuple[int, str, int], ...]
    folder: str
    cases: tuple[tuple, ...]
    slope: int | None = None


@dataclass(frozen=True)
class Answers:
    """What came back. outcomes: of the first cases, or of all; ended: "late", or the exit code of the process.

    refused: why the answer was not run; note: what went wrong on the way to it.
    """

    outcomes: tuple[Outcome, ...] = ()
    refused: str | None = None
    note: str = ""
    ended: str = "0"


def ask(job: Job, seconds: float) -> Answers:
    """Run an answer in a process of its own. Raises `PruneError` if what it left is no result."""
    with tempfile.TemporaryDirectory(prefix="minprune-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "job"
        path.write_bytes(pickle.dumps(vars(job) | {"cases": _packed(job.cases)}))
        ended = _host.run(str(path), seconds)
        return _read(path.with_name("outcomes"), len(job.cases), ended)


def _packed(cases: Sequence[tuple]) -> bytes:
    """The arguments with their strides, and shared memory; functions among them by what they do, not by where from."""
    import torch

    with from_extra("course", "grading"):
        import cloudpickle

    from minprune import checks

    buffer = io.BytesIO()
    cloudpickle.register_pickle_by_value(checks)
    try:
        torch.save(list(cases), buffer, pickle_module=cloudpickle)
    finally:
        cloudpickle.unregister_pickle_by_value(checks)
    return buffer.getvalue()


def _read(path: Path, cases: int, ended: str) -> Answers:
    try:
        check_regular(path)
        with path.open("rb") as file:
            content = file.read((cases + 1) * LINE + 1)
        first, *lines = [line for line in content.split(b"\n")[:-1]] or [b'{"refused": null, "note": ""}']
        head = parse_json(first.decode())
        refused, note = (legible(text[:1000]) if (text := head[key]) else text for key in ("refused", "note"))
        if len(content) > (cases + 1) * LINE or len(lines) > cases:
            raise ValueError("there is more of it than there are cases")
        return Answers(tuple(map(from_line, lines)), refused, note, ended)
    except FileNotFoundError:
        return Answers(ended=ended)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise PruneError(
            "What came back from your code is not what its function returned, so it got no points."
        ) from None


class _Host:
    """The process that runs answers, kept for the next one; a new one where it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._turn = threading.Lock()

    def run(self, job: str, seconds: float) -> str:
        """Run a job: "late", its exit code, or "gone" if it took the host with it."""
        with self._turn:
            try:
                self.start()
                self._say([job, seconds])
                word = self._hear(seconds + _GRACE)
            except BaseException:  # Ctrl-C: what runs is to end, too
                self.stop()
                raise
            if word in ("", "late-host"):
                self.stop()
            return {"": "gone", "late-host": "late"}.get(word, word)

    def start(self) -> None:
        """Have it running."""
        if self._process is None or self._process.poll() is not None:
            self._lines = queue.Queue()
            paths = json.dumps([path or "." for path in sys.path])
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE, paths],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                start_new_session=True,
            )  # fmt: skip
            threading.Thread(target=_listen, args=(self._process, self._lines), daemon=True).start()
            if self._hear(_START) != "ready":
                raise PruneError("the process that runs answers did not start: can this Python import minprune?")

    def stop(self) -> None:
        """End it, and what it runs."""
        if self._process:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
            self._process.kill()
            self._process.wait()
            self._process = None

    def _say(self, what: Any) -> None:
        assert self._process and self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended: that is heard
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()

    def _hear(self, seconds: float) -> str:
        try:
            return self._lines.get(timeout=seconds)
        except queue.Empty:
            return "late-host"


def _listen(process: subprocess.Popen, lines: "queue.Queue[str]") -> None:
    """Put each line into the queue, and an empty one at the end."""
    assert process.stdout
    for line in process.stdout:
        lines.put(line.strip())
    lines.put("")


_host = _Host()
atexit.register(_host.stop)
