"""Reading what others wrote and writing what nobody finds half done: JSON, checksums, regular files, fsync and rename.

A file from outside may be a pipe that never ends, JSON nested so deeply that the parser gives up, or text that no
encoder takes. Whoever reads one asks here and gets a value or a `PruneError` in one line.
"""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from minprune.errors import PruneError

_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: Python's text can hold it, UTF-8 cannot


def check_regular(path: Path) -> None:
    """Raise `PruneError` if there is something at the path that is no regular file: a folder, a pipe, a device.

    A link counts as what it leads to. What cannot be looked at, or is not there, is left to whoever opens it.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    except ValueError as error:  # a NUL in it
        raise PruneError(f"{str(path)!r} is no name of a file ({error}): check the path") from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
        raise PruneError(f"{path} is {what}, not a regular file: copy its content to one")


def exists(path: str | os.PathLike) -> bool:
    """Whether there is anything; `PruneError` if the system refuses to look, as for a name that is too long."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # a NUL in it
        reason = getattr(error, "strerror", None) or str(error)
        raise PruneError(f"cannot look at {str(path)!r} ({reason}): check the path") from None
    return True


def read_json(path: Path, kind: type = dict) -> Any:
    """The JSON value of that type in a file; `PruneError` if it cannot be read, is no JSON, or of another type."""
    check_regular(path)
    content = read_bytes(path)
    try:
        found = parse_json(content.decode("utf-8-sig"))
    except ValueError as error:
        raise PruneError(
            f"{path} is damaged, not valid JSON ({_first_line(error)}): copy or download it again"
        ) from None
    if not isinstance(found, kind):
        raise PruneError(
            f"{path} holds a JSON {type(found).__name__} where a {kind.__name__} belongs: copy or download it again"
        )
    return found


def read_bytes(path: Path) -> bytes:
    """All of a file; `PruneError` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise PruneError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from None


def parse_json(text: str) -> Any:
    """The value of a JSON text, half surrogates as U+FFFD. Raises `ValueError` for all that is wrong with a text."""
    try:
        found = json.loads(text)
        return _whole(found) if "\\u" in text else found
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def to_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON that every reader takes, with a line break behind it.

    Numbers of NumPy and torch are written as those of Python. NaN and infinity, which JSON has no words for, become
    null, half surrogates U+FFFD, and what else it does not know the text that Python shows of it.
    """
    return json.dumps(_plain(value), indent=indent, default=repr, allow_nan=False) + "\n"


class JsonLine(NamedTuple):
    """A line of a file of JSON lines. value: what it holds, None for what is no JSON. end: the byte behind it.

    whole: whether it ends with a line break; a run that is killed while it writes leaves a last line without one.
    """

    text: bytes
    value: Any
    end: int
    whole: bool


def json_lines(path: Path) -> Iterator[JsonLine]:
    """The lines of a file, [] if there is none; which of them may be damaged is for the reader to say."""
    content, end = path.read_bytes() if path.exists() else b"", 0
    for text in content.split(b"\n"):
        whole, end = end + len(text) < len(content), end + len(text) + 1
        if text or whole:
            try:
                yield JsonLine(text, parse_json(text.decode()), end, whole)
            except ValueError:
                yield JsonLine(text, None, end, whole)


def append_json(path: Path, value: Any) -> None:
    """Add a line to a file and have it on the disk before this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(to_json(value))
        flush(file)


def whole_characters(text: str) -> str:
    """The text with U+FFFD in place of each half of a surrogate pair, which no encoding could write."""
    return _HALF.sub("\ufffd", text)


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal. Raises `OSError` if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file, all of it or nothing, and have it on the disk before this returns."""
    part = path.with_name(path.name + ".tmp")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            flush(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def flush(file) -> None:
    """Have what was written to an open file on the disk."""
    file.flush()
    os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, Real) and not isinstance(value, int):
        value = float(value)
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return whole_characters(value) if isinstance(value, str) else value


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, dict):
        return {whole_characters(key): _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
