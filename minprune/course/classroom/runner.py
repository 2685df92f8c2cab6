"""Runs answers for `minprune grade`, in a process that has neither the references nor the judge.

The host imports torch once and forks for each answer. An answer's process gets the cases' arguments, runs the
statements that the answer needs and the answer on each case, and writes what came of it as lines (`wire`). Meanwhile
`minprune.course.checks` is a stand-in that judges nothing, its files cannot be read (`fence` says how far), memory,
file sizes and the number of new processes are limited, and when it ends, or its time, whatever it started is killed.
"""

import ast
import contextlib
import ctypes
import functools
import io
import json
import os
import pickle
import signal
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

import minprune
from minprune import course
from minprune.course.classroom.fence import close_folder, watch
from minprune.course.classroom.wire import to_line
from minprune.course.outcome import Outcome, failure, run

MEMORY = 4 * 2**30  # bytes of an answer's process
FILE = 2 * 2**30  # bytes of a file that it writes
_CHECKS = os.path.join(os.path.realpath(os.path.dirname(minprune.__file__)), "course", "checks")


# --- the host


def host() -> None:
    """For each line on stdin, a job's file and seconds, run the job and say on stdout how it ended."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: who loses its parent becomes the host's
    _say("ready")
    for line in sys.stdin:
        job, seconds = json.loads(line)
        if not hasattr(os, "fork"):
            return _work(Path(job))  # Windows: the grader starts another host
        process = os.fork()
        if not process:
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                _work(Path(job))
            finally:
                os._exit(1)
        try:
            ended = _wait(process, time.monotonic() + seconds, parent)
        finally:
            _kill(process)
        _say(ended)
    return None


def _prctl(option: int, value: int) -> None:
    """Linux alone has it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _say(word: str | int) -> None:
    os.write(1, f"{word}\n".encode())


def _wait(process: int, end: float, parent: int) -> str | int:
    """The exit code, negative for a signal, or "late"."""
    while time.monotonic() < end and os.getppid() == parent:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return "late"


def _kill(process: int) -> None:
    """Kill an answer's process, its group, and those that left the group but have nobody else than the host."""
    for stop in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            stop(process, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                for child in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        child.kill()
                time.sleep(0.002)


# --- an answer's process


def _work(path: Path) -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own, to be killed as one
    _prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL: it ends with the host
    with open(os.devnull, "r+b") as nowhere:
        for stream in (0, 1, 2):  # what the learner prints is not part of the table
            os.dup2(nowhere.fileno(), stream)
    job = pickle.loads(path.read_bytes())
    cases = torch.load(io.BytesIO(job["cases"]), weights_only=False)
    out = os.open(path.with_name("outcomes"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.chdir(job["folder"])
    sys.path.append(job["folder"])  # as Jupyter does, for modules beside the notebook
    _hide_checks()
    _limit()
    os.environ["TMPDIR"] = str(path.parent)  # which is there already: what is new beside the package is closed, too
    sys.addaudithook(watch(_CHECKS, close_folder(_CHECKS)))
    function, first = _function(job)
    os.write(out, json.dumps(first).encode() + b"\n")
    if function is None:
        os._exit(0)
    process = os.getpid()
    for args in cases:
        try:
            outcome = run(function, args, job["slope"])
        except BaseException as error:  # KeyboardInterrupt and its like, raised by the answer
            outcome = Outcome(error=failure(error, function))
        if os.getpid() != process:  # a copy of this process that the answer made
            os._exit(1)
        line = to_line(outcome)
        while line:
            line = line[os.write(out, line) :]
    os._exit(0)


def _function(job: dict) -> tuple[Callable | None, dict]:
    """The function that the answer is, if it is one, and the first line: refused, note."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    note = ""
    for number, code, place in job["statements"]:
        try:
            node = ast.parse(code).body[place]
            exec(compile(ast.Module([node], []), f"cell {number}", "exec", dont_inherit=True), namespace)
        except BaseException as error:  # an `exit()` too; the answer may be right without it
            note = note or f" What it needs from cell {number} raised {_in_words(error)}."
    call = f"checks.{job['name']}({job['answer']})"
    try:
        found = eval(compile(job["answer"], "the call of the check", "eval", dont_inherit=True), namespace)
        if isinstance(found, _Absent):
            return None, {"refused": f"{call} hands in a check, not a function of yours.", "note": ""}
        if not callable(found):
            kind = f"a {type(found).__name__}"
            reason = f"Pass the function itself, checks.{job['name']}(your_function), not {kind}."
            return None, {"refused": reason, "note": note}
        if owner := _of_minprune(found):
            reason = f"{call} hands in {owner}, a function of minprune: the points are for one that you write."
            return None, {"refused": reason, "note": ""}
    except BaseException as error:
        return None, {"refused": f"{call} raised {_in_words(error)}.", "note": note}
    return found, {"refused": None, "note": note}


def _of_minprune(function: Any) -> str | None:
    """The name of the function of minprune that this is, by itself, bound, or partially applied."""
    for _ in range(100):
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        elif isinstance(inside := getattr(function, "__wrapped__", None), types.FunctionType):
            function = inside
        else:
            break
    plain = isinstance(function, (types.FunctionType, type))
    module = str(getattr(function if plain else type(function), "__module__", ""))
    if module.partition(".")[0] != "minprune":
        return None
    return f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _in_words(error: BaseException) -> str:
    found = failure(error)
    return f"{found.name}: {found.text.splitlines()[0][:300]}" if found.text else found.name


class _Absent:
    """`checks.NAME` in an answer's process. It calls everything right, so that the cells which ask it go on."""

    passed, bug, points, message = True, None, 0, "not judged here"

    def __call__(self, answer: object) -> "_Absent":
        return self


class _NoChecks(types.ModuleType):
    """`minprune.course.checks` in an answer's process: no references, no cases, no wrong variants, no modules."""

    def __getattr__(self, name: str) -> _Absent:
        if name.startswith("_"):
            raise AttributeError(f"minprune.course.checks has no {name!r} where an answer is graded")
        return _Absent()


def _hide_checks() -> None:
    package = _NoChecks("minprune.course.checks")
    package.__path__ = []
    sys.modules["minprune.course.checks"] = package
    vars(minprune)["checks"] = vars(course)["checks"] = package


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {resource.RLIMIT_DATA: MEMORY, resource.RLIMIT_FSIZE: FILE, resource.RLIMIT_CORE: 0}
    for what, most in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a lower one is set already, or the system knows none
            resource.setrlimit(what, (most, most))
