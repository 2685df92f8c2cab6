"""A folder that is closed to a process gives nothing away, whichever way the process takes; what is beside it does."""

import ctypes
import os
import subprocess
import sys
import time

import nbformat
import pytest
from classroom import small

from minprune.course.classroom.fence import close_folder
from minprune.course.classroom.grade import grade

SETTING = """import ctypes, os, shutil, subprocess, sys, tempfile
HOME, CLOSED = {home!r}, {closed}
FILE = HOME + "/checks/patient.py"
def contents(path):
    with open(path, "rb") as file:
        return file.read()
def by_folder(name, *parts):
    place = os.open(name, os.O_RDONLY)
    for part in parts[:-1]:
        place = os.open(part, os.O_RDONLY, dir_fd=place)
    return os.read(os.open(parts[-1], os.O_RDONLY, dir_fd=place), 10**6)
def by_c(path):
    c = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(10**6)
    assert c.read(c.open(path.encode(), 0), buffer, 10**6) > 0
    return buffer.raw
def parent():
    return f"/proc/{{os.getppid()}}"
def moved(source, target):
    os.rename(source, target)
    try:
        return by_c(target + FILE.removeprefix(source)) if CLOSED else contents(target + FILE.removeprefix(source))
    finally:
        os.rename(target, source)
def tried(read):
    try:
        return read()
    except Exception:
        return b""
"""
PYTHON = {
    "by its path": "contents(FILE)",
    "by another name": "contents(HOME + '/../' + os.path.basename(HOME) + '/checks/patient.py')",
    "by a folder": "by_folder(HOME, 'checks/patient.py')",
    "step by step": "by_folder('/', *FILE[1:].split('/'))",
    "up and down": "by_folder(HOME + '/checks', '..', 'checks', 'patient.py')",
    "a hard link": "(os.link(FILE, HOME + '/a.py'), contents(HOME + '/a.py'))[1]",
    "a hard link from before": "contents(HOME + '/before.py')",
    "a link": "(os.symlink(HOME, 'to'), by_folder('.', 'to', 'checks', 'patient.py'))[1]",
    "a link to the file": "(os.symlink(FILE, 'd.py'), by_folder('.', 'd.py'))[1]",
    "a copy": "contents(shutil.copy(FILE, tempfile.mkdtemp()))",
    "the folder moved": "moved(HOME + '/checks', HOME + '/other')",
    "the folder moved away": "moved(HOME + '/checks', HOME + '/beside/other')",
    "the folder above moved": "moved(HOME, HOME + '2')",
    "a program": "subprocess.run(['cat', FILE], capture_output=True).stdout",
    "the shell": "os.popen('cat ' + FILE).read().encode()",
    "another Python": "subprocess.run([sys.executable, FILE], capture_output=True).stdout",
    "a started program": "(os.spawnlp(os.P_WAIT, 'cp', 'cp', FILE, 'copy'), contents('copy'))[1]",
}
KERNEL = {
    "a compiled function": "by_c(FILE)",
    "the parent's root": "by_c(parent() + '/root' + FILE)",
    "the parent's memory": "b'secret' if ctypes.CDLL(None).open((parent() + '/mem').encode(), 0) >= 0 else b''",
}


@pytest.fixture
def closed(tmp_path):
    """closed(expression, closed, hook) -> what a process finds out, for which a folder of tmp_path is closed."""
    home = tmp_path / "package"
    for place in ("checks", "beside", "job"):
        (home / place).mkdir(parents=True)
        (home / place / "patient.py").write_text("print('secret')")

    def run(expression, kernel, hook):
        script = (
            SETTING.format(home=str(home), closed=kernel)
            + "from minprune.course.classroom.fence import close_folder, watch\n"
            + (f"assert close_folder({str(home / 'checks')!r})\n" if kernel else "")
            + (f"sys.addaudithook(watch({str(home / 'checks')!r}, {kernel}))\n" if hook else "")
            + f"print(tried(lambda: {expression}))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=home / "job",
            env=os.environ | {"TMPDIR": str(home / "job")}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def kernel_keeps(tmp_path_factory):
    """Whether the kernel here can close a folder."""
    folder = str(tmp_path_factory.mktemp("a"))
    code = f"from minprune.course.classroom.fence import close_folder; print(close_folder({folder!r}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


def test_the_kernel_keeps_a_folder_by_itself(closed, kernel_keeps):
    if not kernel_keeps:
        pytest.skip("this kernel has no Landlock")
    ways = {what: way for what, way in (PYTHON | KERNEL).items() if what != "a hard link from before"}
    for what, way in ways.items():
        assert "secret" not in closed(way, True, False), what


def test_a_hook_keeps_a_folder_from_what_goes_through_python(closed, tmp_path):
    os.link(tmp_path / "package/checks/patient.py", tmp_path / "package/before.py")
    for what, way in PYTHON.items():
        assert "secret" not in closed(way, False, True), what


SIGNALS = {
    "os.kill": "os.kill({pid}, 9)",
    "a group": "os.killpg({pid}, 9)",
    "psutil": "__import__('psutil').Process({pid}).kill()",
    "a file descriptor": "__import__('signal').pidfd_send_signal(os.pidfd_open({pid}), 9)",
    "a compiled function": "ctypes.CDLL(None).kill({pid}, 9)",
}


@pytest.mark.parametrize("what", SIGNALS)
@pytest.mark.parametrize("kernel, hook", [(True, False), (False, True)])
def test_a_process_that_it_has_not_started_is_not_stopped(closed, kernel_keeps, kernel, hook, what):
    if kernel and not (kernel_keeps and signals_are_scoped()):
        pytest.skip("this kernel has no Landlock of version 6")
    if hook and what in ("a file descriptor", "a compiled function"):
        pytest.skip("Python tells no hook of it")
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        closed(SIGNALS[what].format(pid=stranger.pid), kernel, hook)
        time.sleep(0.1)
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize("hook", [True, False])
def test_a_process_that_it_has_started_is_stopped(closed, kernel_keeps, hook):
    if not kernel_keeps:
        pytest.skip("without the kernel no programs are started")
    own = "(lambda p: (p.kill(), p.wait() == -9 and b'stopped')[1])(subprocess.Popen(['sleep', '60']))"
    assert "stopped" in closed(own, True, hook)


def signals_are_scoped():
    return ctypes.CDLL(None).syscall(444, None, 0, 1) >= 6


@pytest.mark.parametrize("kernel", [True, False])
def test_what_is_beside_a_closed_folder_can_be_read(closed, kernel, kernel_keeps):
    if kernel and not kernel_keeps:
        pytest.skip("this kernel has no Landlock")
    for way in (
        "contents(HOME + '/beside/patient.py')",
        "by_c(HOME + '/beside/patient.py')",
        "(open('new', 'w').write('secret'), os.rename('new', 'newer'), contents('newer'))[2]",
        "(os.rename(HOME + '/beside/patient.py', HOME + '/job/p.py'), contents(HOME + '/job/p.py'))[1]",
        "(open(tempfile.mkdtemp() + '/x', 'w').write('secret'), __import__('sqlite3'), b'secret')[2]",
    ):
        assert "secret" in closed(way, kernel, True), way
    if kernel:
        assert "secret" in closed(
            "subprocess.run([sys.executable, 'patient.py'], capture_output=True).stdout", True, True
        )


def test_an_answers_process_is_closed(tmp_path, kernel_keeps):
    """The answer is right unless it could read."""
    ways = [way for what, way in (PYTHON | KERNEL).items() if "moved" not in what and "before" not in what]
    ways = ways if kernel_keeps else ways[: -len(KERNEL)]
    code = SETTING.format(home="", closed=False).replace(
        "HOME, CLOSED = '', False", "import minprune\nHOME = os.path.dirname(minprune.__file__)"
    )
    listed = ", ".join(f"lambda: {way}" for way in ways)
    cells = small(
        "import torch\nfrom minprune import checks",
        f"{code}\nfound = [b'cut_windows' in tried(way) or b'secret' in tried(way) for way in ({listed},)]\n"
        "def cut_windows(ids, length):\n    assert not any(found), found\n    n = len(ids) // length\n"
        "    return ids[: n * length].view(n, length)\nchecks.cut_windows(cut_windows)",
    )
    (tmp_path / "job").mkdir()
    nbformat.write(cells, tmp_path / "job" / "mine.ipynb")
    mark = {mark.exercise: mark for mark in grade(tmp_path / "job" / "mine.ipynb").marks}["cut_windows"]
    assert mark.passed, mark.message


def test_another_system_has_no_such_kernel(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not close_folder(str(tmp_path))
