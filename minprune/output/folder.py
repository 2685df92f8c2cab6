"""The folder of an output, which is either complete or not there: one writer, one kind of run, resumed or replaced."""

import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_IMODE

from minprune.errors import PruneError, is_interrupt
from minprune.files import write_text
from minprune.output.lock import absolute, lock
from minprune.output.target import WORK, check_free, check_left, partial_of

_KIND = "kind"  # a file in it: which command began the run; so another run may go on in the folder, or remove it
_EXCHANGE, _HERE = 2, -100  # renameat2's RENAME_EXCHANGE and AT_FDCWD


def default_name(model: str, *made: str) -> str:
    """A folder's name, such as MODEL-METHOD-PATTERN, in characters that every file system takes.

    Who is in the model's folder gets the path of one beside it, for nothing is written into what is read.
    """
    folder = Path(model).resolve() if Path(model).is_dir() else None
    parts = (folder.name if folder else model.split("/")[-1], *made)
    plain = [re.sub(r"[^A-Za-z0-9._]+", "-", part.replace("%", "pct")).strip("-") for part in parts]
    name = "-".join([plain[0] or "model", *plain[1:]])
    inside = folder is not None and Path.cwd().is_relative_to(folder)
    return os.path.relpath(folder.parent / name) if folder and inside else name


@dataclass(frozen=True)
class OutputFolder:
    """A folder that is either complete or not there. Until it is, its run works in `partial`.

    path: where the output will be. kind: of run, such as "prune"; only the same kind goes on with what a run left.
    overwrite: replace what is there if an earlier run finished or left it. resume: go on in what one left.
    One in which there is anything that no run wrote is never replaced.
    """

    path: Path
    kind: str = "write"
    overwrite: bool = False
    resume: bool = False

    def __post_init__(self):
        object.__setattr__(self, "path", absolute(self.path))

    @property
    def partial(self) -> Path:
        """`PATH.partial`, the output as far as it is."""
        return partial_of(self.path)

    @property
    def work(self) -> Path:
        """The folder in `partial` for what is not part of the output."""
        return self.partial / WORK

    @contextmanager
    def open(self, kept: Callable[[], str] = str) -> Iterator[Path]:
        """Yield `partial`, which is renamed to `path` if the block ends well; nobody else writes there, see `lock`.

        If the block fails or is interrupted, the folder is removed if this run made it, unless `kept()` says, for the
        exception, what is worth going on with. Raises `PruneError` before the block if `path` cannot become the output:
        enter this before any long work.
        """
        with lock(self.path):
            new = self._claim()
            try:
                yield self.partial
            except BaseException as error:  # Ctrl-C included
                said = kept()
                if not said:
                    if new:
                        shutil.rmtree(self.partial, ignore_errors=True)
                    raise
                if is_interrupt(error):
                    raise KeyboardInterrupt(f"interrupted; {said}") from None
                if isinstance(error, PruneError):
                    raise type(error)(f"{error}; {said}") from error
                error.add_note(said)
                raise
            self._finish()

    def _claim(self) -> bool:
        """Make `partial` a folder of this kind of run from now on; whether it was made anew."""
        partial = self.partial
        check_free(self.path, self.overwrite)
        try:
            if os.path.lexists(partial):
                found = _kind_of(partial)
                if self.resume and found == self.kind:
                    return False
                if self.resume and found:
                    raise PruneError(
                        f"{partial} was left by another command, minprune {found}: overwrite it or choose another "
                        "output"
                    )
                if found and not self.overwrite:
                    raise PruneError(
                        f"{partial} is in the way: a run was stopped; resume or overwrite it, or choose another output"
                    )
                if found is None and not _is_empty(partial):
                    raise PruneError(
                        f"{partial} is in the way: no such run left it; move it elsewhere, or choose another output"
                    )
                if found:
                    check_left(partial)
                shutil.rmtree(partial)
            self.work.mkdir(parents=True)
            write_text(self.work / _KIND, self.kind)
        except OSError as error:
            raise PruneError(f"cannot write to {self.path.parent} ({error.strerror}): choose another output") from None
        return True

    def _finish(self) -> None:
        """Rename `partial`, which is complete.

        Before that only the hidden states go, which are large and not needed where all blocks are finished. With the
        rest of `work` a run that is killed here goes on without doing anything again.
        """
        for hidden in self.work.glob("hidden-*"):
            hidden.unlink()
        _usual_permissions(self.partial, self.work / _KIND)
        try:
            move(self.partial, self.path)
        except OSError as error:
            raise PruneError(
                f"cannot rename {self.partial} to {self.path} ({error.strerror}): it is complete, so move it by hand"
            ) from error
        shutil.rmtree(self.path / WORK, ignore_errors=True)


def _usual_permissions(folder: Path, made: Path) -> None:
    """Give all files in the folder the permissions of one that was made there as usual.

    Safetensors makes files that nobody but their writer may read, and the copy of a read-only file is read-only.
    """
    usual = made.stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode != usual:
            with suppress(OSError):  # file systems without permissions
                path.chmod(S_IMODE(usual))


def _kind_of(partial: Path) -> str | None:
    """Which kind of run left a .partial, "" if it was killed too early to say so; None if it is no run's."""
    work = partial / WORK
    if partial.is_symlink() or work.is_symlink() or not work.is_dir():
        return None
    kind = work / _KIND
    if kind.is_symlink() or not kind.is_file():
        inside = {path.name for path in (*partial.iterdir(), *work.iterdir())}
        return "" if inside <= {WORK, f"{_KIND}.tmp"} else None
    return kind.read_text(encoding="utf-8", errors="replace")[:20]


def _is_empty(folder: Path) -> bool:
    return not folder.is_symlink() and folder.is_dir() and not any(folder.iterdir())


def move(partial: Path, path: Path) -> None:
    """Rename partial to path; what was there is removed only after its successor is in place.

    Where the system can exchange two names in one step, there is no moment without an output at `path`.
    """
    if not path.exists():
        os.rename(partial, path)
        return
    backup = Path(tempfile.mkdtemp(dir=path.parent, prefix=path.name + ".replaced."))
    old = backup / path.name
    if _exchange(partial, path):
        os.rename(partial, old)
    else:
        try:
            os.rename(path, old)
            os.rename(partial, path)
        except BaseException:
            if old.exists():
                os.rename(old, path)
            backup.rmdir()
            raise
    shutil.rmtree(backup, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Whether the two have changed places, in one step."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None  # glibc has it
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
