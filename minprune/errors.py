"""What a user is told: mistakes, what the package logs, and how values are written in messages, tables and pages."""

import json
import logging
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

_KINDS: Mapping[Any, tuple[Any, str]] = {  # an annotation -> what such a value is, also in words
    int: (Integral, "a whole number"),
    int | None: (Integral | None, "a whole number or None"),
    float: (Real, "a number"),
    float | None: (Real | None, "a number or None"),
    bool: (bool, "True or False"),
    bool | None: (bool | None, "True, False or None"),
}
_UNITS: Mapping[str, float] = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}  # of a thousand, as disks are sold
_LONGEST = 1000  # characters of a message

_interrupts: list[int] = []  # the first Ctrl-C; without a lock, which another one, in the midst of it, would wait for


class PruneError(ValueError):
    """A mistake of the caller: one sentence with the offending value and the remedy.

    The command line prints the sentence and exits with code 2. In Python it is a `ValueError`.

    Examples
    --------
    >>> import minprune as mp
    >>> mp.pattern("150%")
    Traceback (most recent call last):
    ...
    minprune.errors.PruneError: pattern '150%': sparsity 1.5 is outside 0..1: it is the fraction of weights pruned ...
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_in_one_line(message))


class PeerError(PruneError):
    """What went wrong was in another process of the same run, which has told its reason."""


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """While open, the first Ctrl-C ends the process in good order, unless the process was told to ignore it."""

    def interrupt(number: int, frame: Any) -> None:
        """The next ones, of an impatient hand, must not disturb what the first began, unless C code has lost it."""
        if not (_interrupts and sys.exception()):
            _interrupts[:] = [number]
            raise KeyboardInterrupt

    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not is_interrupt(error):
            raise
        if heard:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt(*error.args if isinstance(error, KeyboardInterrupt) else ()) from None


def is_interrupt(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or what came of it: C code that calls Python, as torch's does, may raise its own error."""
    return isinstance(error, KeyboardInterrupt) or (isinstance(error, Exception) and bool(_interrupts))


def check_kind(name: str, value: Any, annotation: Any) -> Any:
    """The value; `PruneError`, with its name, if it is not what the annotation of a number or a flag says."""
    if annotation not in _KINDS:
        return value
    kind, said = _KINDS[annotation]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, bool | None)):
        raise PruneError(f"{name} is {shown(value)}: it must be {said}")
    return own_number(value)


def own_number(value: Any) -> Any:
    """A number of another library as Python's own; anything else as it is."""
    if isinstance(value, (int, float)) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def check_seed(seed: Any) -> int:
    """A seed as Python's own number; `PruneError` unless it is a whole number that torch takes."""
    check_kind("seed", seed, int)
    if not -(2**63) <= seed < 2**64:
        raise PruneError(f"seed {short(int(seed))} has more than 64 bits: use a smaller one")
    return int(seed)


@contextmanager
def logged_to_stderr() -> Iterator[None]:
    """While open, what the package logs is shown: one line on stderr for each message."""
    log, handler = logging.getLogger("minprune"), logging.StreamHandler(sys.stderr)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@contextmanager
def from_extra(extra: str, what: str) -> Iterator[None]:
    """Around imports of what the core does without: `PruneError`, with the line to type, where it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise PruneError(f"{what} needs {package}, which is not installed: pip install 'minprune[{extra}]'") from None


def _in_one_line(message: object) -> str:
    """A message in one line; of a very long one, as with a whole tensor in it, the beginning and the end."""
    line = " ".join(str(message).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 200]} ... {line[-200:]}"  # the end has the remedy


def shown(value: Any) -> str:
    """A value of any kind in at most 60 characters, for a message; of a tensor or an array what it is."""
    if getattr(value, "shape", None) and hasattr(value, "dtype"):
        where = f" on {value.device}" if getattr(value, "is_meta", False) else ""
        return f"{type(value).__name__} {tuple(value.shape)} of {value.dtype}{where}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:45]} ..."


def short(value: Any) -> str:
    """A value in at most 60 characters, for a message; of a sha256 its beginning."""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:12]
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:45]} ..."


def decimal(value: float | None, digits: int = 2) -> str:
    """A number of a table: so many decimals, and none that only take room behind a large number."""
    if value is None:
        return "-"
    return f"{value:,.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"


def four_digits(value: float) -> str:
    """Four significant digits, without an exponent where that reads well."""
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def amount(size: float) -> str:
    """So many bytes in the unit that reads well, three digits that count: 512 bytes, 3.21 MB, 114 MB, 1,200 TB."""
    fitting = [unit for unit, value in _UNITS.items() if float(f"{size:.3g}") >= value]
    if not fitting:
        return f"{size:.0f} bytes"
    number = size / _UNITS[fitting[-1]]
    return f"{number:,.0f} {fitting[-1]}" if number >= 100 else f"{number:#.3g} {fitting[-1]}"


def read_amount(text: str, per_second: bool = False) -> float:
    """Bytes from a text such as "24GB" or "100MB/s", in units of a thousand; `PruneError` if it is none."""
    number, unit = text.strip().removesuffix("/s" if per_second else "")[:-2], text.removesuffix("/s")[-2:]
    try:
        value = float(number) * _UNITS[unit] if number.isascii() and "_" not in number else 0.0
    except (ValueError, KeyError):
        value = 0.0
    if not 0 < value < float("inf"):
        raise PruneError(f"{text!r} is no amount: write it as {'100MB/s' if per_second else '24GB'}")
    return value


def kind_of_layer(name: str) -> str:
    """A layer's name with every number in it replaced by *: a glob for all layers of its kind."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
