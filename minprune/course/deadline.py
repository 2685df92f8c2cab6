"""A time limit for code that somebody else wrote and that runs in this process.

In the main thread an alarm of the operating system ends it, a sleep or a wait for input included. Elsewhere (another
thread, Windows, a program that uses the alarm for itself) a second thread raises the exception in this one, which ends
what runs Python code but not a sleep. Neither ends one call of a compiled function that never returns, nor code that
catches every exception: for these there is the process of its own in which `minprune grade` runs an answer.
"""

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class OutOfTimeError(BaseException):
    """The time is up. Not an `Exception`, so that an answer's `except Exception` does not swallow it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` in what runs inside if it takes longer."""
    alarm = _alarm_is_free() and threading.current_thread() is threading.main_thread()
    with _by_alarm(seconds) if alarm else _by_thread(seconds):
        yield


def _alarm_is_free() -> bool:
    return hasattr(signal, "setitimer") and signal.getitimer(signal.ITIMER_REAL)[0] == 0


@contextmanager
def _by_alarm(seconds: float) -> Iterator[None]:
    over = False

    def ring(signum: int, frame: FrameType | None) -> None:
        if not over:
            raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again after a second, if the first was caught
    try:
        try:
            yield
        finally:
            over = True
    finally:
        over = True  # the alarm may have rung in the line above
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)


@contextmanager
def _by_thread(seconds: float) -> Iterator[None]:
    thread, done, gate = ctypes.c_ulong(threading.get_ident()), threading.Event(), threading.Lock()

    def watch() -> None:
        wait = seconds
        while not done.wait(wait):
            with gate:
                if not done.is_set():
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(OutOfTimeError))
            wait = 1.0

    threading.Thread(target=watch, daemon=True).start()
    try:
        try:
            yield
        finally:
            done.set()
    finally:
        done.set()
        with gate:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)  # what was sent but not yet raised
