"""One writer for one output: a lock that the kernel takes from its owner however the owner ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from minprune.errors import PruneError

_PATIENCE = 0.2  # seconds, for an owner that is about to let go
_held: ContextVar[frozenset[Path]] = ContextVar("outputs that the caller has locked", default=frozenset())


def absolute(path: str | Path) -> Path:
    """Where a path leads to, without links, `~` and `..`: one name for one output, whatever it is called by.

    Raises `PruneError` for a home folder that nobody has, for links in a circle, for a name that is not UTF-8, and
    for the root of a file system, which has none.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise PruneError(f"{path!r} is no path: give the name of the output")
    try:
        found = Path(path).expanduser().resolve()
        str(found).encode()
    except UnicodeEncodeError:
        raise PruneError(f"the path {str(path)!r} is not UTF-8: choose another name") from None
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise PruneError(f"the path {str(path)!r} leads nowhere ({reason}): choose another output") from None
    if not found.name:
        raise PruneError(f"{str(path)!r} is a whole file system, no output's name: choose a name in it")
    return found


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Be the only one who writes the output at this absolute path, of all processes and of all threads.

    The lock is on the file `.NAME.lock` beside the output, which is removed in the end. What a killed process left of
    it does not count. Who holds the lock already may take it again. Raises `PruneError`, with nothing touched, if
    another run holds it, or if no file can be made there.
    """
    if path in _held.get():
        yield
        return
    file, new = path.with_name(f".{path.name}.lock"), [folder for folder in path.parents if not folder.exists()]
    held = FileLock(file, timeout=_PATIENCE, poll_interval=0.02, thread_local=False)
    try:
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
        os.stat(f"{path.parent}/")  # a file is no folder
        held.acquire()
    except Timeout:
        raise PruneError(f"another run is writing {path}{_owner(file)}: wait for it or choose another output") from None
    except OSError as error:
        raise PruneError(f"cannot write to {path.parent} ({error.strerror}): choose another output") from None
    token = _held.set(_held.get() | {path})
    try:
        with suppress(OSError):  # on a full disk the lock holds without these words
            file.write_text(f"{os.getpid()} {datetime.now():%Y-%m-%d %H:%M:%S}", encoding="utf-8")
        yield
    finally:
        _held.reset(token)
        with suppress(OSError):  # before the release: who has it open sees that its file has no name any more
            file.unlink()
        held.release()
        for folder in new:
            with suppress(OSError):  # only if the run left nothing in it
                folder.rmdir()


def _owner(file: Path) -> str:
    """Who holds a lock, in words, as far as that can be read."""
    try:
        pid, since = file.read_text(encoding="utf-8").split(" ", 1)
        return f", process {int(pid)} since {datetime.fromisoformat(since)}"
    except (OSError, ValueError):
        return ""
