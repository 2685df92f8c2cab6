"""Keeps the references and the grader out of reach of an answer's process: no file below a folder can be read, by
whatever way, and no process be stopped that the answer has not started.

On Linux the kernel sees to it (Landlock; to signals since Linux 6.12): for this process and all that it starts, whether
they ask through Python, a compiled function or another program, and whatever links and names lead there. The memory of
processes outside is closed to them as well. Where the kernel has no Landlock, and on other systems, there is only a
hook for what goes through Python in this process: it knows the files by their names and their inodes, lets no links be
made, no program be started and nobody else be stopped, but a compiled function (ctypes) or a module that starts
programs without telling gets past it.
"""

import ctypes
import os
import stat
import sys
from collections.abc import Callable, Iterator

import psutil

PROCESSES = 8  # that an answer's process, and each of these, may start one after the other
_FORKS = {"os.fork", "os.forkpty"}
_PROGRAMS = {"os.posix_spawn", "os.spawn", "os.system", "os.exec", "os.startfile", "subprocess.Popen"}
_SIGNALS = {"os.kill", "os.killpg"}
_READ_FILE, _REFER = 1 << 2, 1 << 13  # LANDLOCK_ACCESS_FS_*: to open a file for reading, to move one between folders
_SCOPE_SIGNAL = 1 << 1  # LANDLOCK_SCOPE_SIGNAL: to processes that are under the same rules, and to no others
_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the numbers of the system calls, the same on all of Linux's machines
_NO_NEW_PRIVS, _PATH_BENEATH = 38, 1


class _Rules(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("ports", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Rule(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def close_folder(folder: str) -> bool:
    """Let this process and all that it starts read no file below the folder any more; False if the kernel cannot.

    Of the folders above it only what is in them now can be read. Signals to others are closed, too, if it knows how.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE, None, 0, 1)
    if version < 2:  # the first one forbids every move between folders
        return False
    handled = _Rules(_READ_FILE | _REFER, 0, _SCOPE_SIGNAL)
    known = ctypes.sizeof(handled) if version >= 6 else _Rules.ports.offset
    rules = libc.syscall(_CREATE, ctypes.byref(handled), known, 0)
    if rules < 0:
        return False
    try:
        for path in _beside(folder):
            _allow(libc, rules, path)
        return libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and libc.syscall(_RESTRICT, rules, 0) == 0
    finally:
        os.close(rules)


def _beside(folder: str) -> Iterator[str]:
    """All that is in the folders above this one and does not lead to it; links are left out, not what they lead to."""
    inner = os.path.realpath(folder)
    while (outer := os.path.dirname(inner)) != inner:
        with os.scandir(outer) as entries:
            yield from (entry.path for entry in entries if entry.path != inner and not entry.is_symlink())
        inner = outer


def _allow(libc: ctypes.CDLL, rules: int, path: str) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    except OSError:  # it has gone meanwhile, or is not for us
        return
    try:
        allowed = _READ_FILE | _REFER if stat.S_ISDIR(os.fstat(parent).st_mode) else _READ_FILE
        libc.syscall(_ADD, rules, _PATH_BENEATH, ctypes.byref(_Rule(allowed, parent)), 0)
    finally:
        os.close(parent)


def watch(folder: str, closed: bool) -> Callable[[str, tuple], None]:
    """A hook for what an answer does through Python. closed: the kernel keeps the folder, so programs may be started.

    It cannot be taken out again, and it limits the number of processes that are started.
    """
    folder = os.path.realpath(folder)
    paths = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    inodes = {(found.st_dev, found.st_ino) for found in map(os.stat, paths) if found.st_ino}
    names = {os.path.basename(path) for path in paths}
    started = 0

    def within(path: str) -> bool:
        return os.path.join(os.path.realpath(path), "").startswith(os.path.join(folder, ""))

    def hidden(path: str, mode: str | None) -> bool:
        if within(path) or (mode is None and not os.path.isabs(path) and os.path.basename(path) in names):
            return True  # os.open may mean another folder by a relative path (dir_fd)
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return False
        return (found.st_dev, found.st_ino) in inodes

    def hook(event: str, args: tuple) -> None:
        nonlocal started
        if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
            if hidden(os.fsdecode(args[0]), args[1]):
                raise PermissionError("the checks cannot be read where an answer is graded")
        elif event in ("os.link", "os.symlink") and not closed:
            raise PermissionError("an answer may make no links where it is graded")
        elif event == "os.rename" and not closed:
            source = os.path.realpath(os.fsdecode(args[0]))
            if within(source) or os.path.join(folder, "").startswith(os.path.join(source, "")) or args[2] != -1:
                raise PermissionError("the checks cannot be moved where an answer is graded")
        elif event in _SIGNALS and not _own(event, args[0]):
            raise PermissionError("an answer may stop no processes but its own where it is graded")
        elif event in _PROGRAMS and not closed:
            raise PermissionError("an answer may start no programs where it is graded")
        elif event in _FORKS | _PROGRAMS:
            started += 1
            if started > PROCESSES:
                raise PermissionError(f"an answer may start {PROCESSES} processes, not more")

    return hook


def _own(event: str, target: int) -> bool:
    """Whether a signal goes to this process, to one that it has started, or to its own group."""
    if event == "os.kill" and target > 0:
        try:
            return target == os.getpid() or os.getpid() in (one.pid for one in psutil.Process(target).parents())
        except psutil.Error:
            return True  # there is nobody: let Python say so
    return target in (0, os.getpgrp())
