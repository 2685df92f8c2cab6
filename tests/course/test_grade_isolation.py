"""An answer is judged outside its process: nothing in there helps it, and nothing that it does stops the grading."""

import ast
import json
import os
import re
import signal
import sys
import threading
import time

import nbformat
import pytest
import torch
from classroom import chapter, exercises, filled_in, small

from minprune import checks
from minprune.course.classroom import grade as grading
from minprune.course.classroom.grade import grade
from minprune.course.classroom.isolation import _host
from minprune.course.classroom.wire import LINE, from_line, to_line
from minprune.course.outcome import Failure, Outcome, Thing
from minprune.errors import PruneError

RIGHT = "n = len(ids) // length\n    return ids[: n * length].view(n, length)"
FUNCTION = "def cut_windows(ids, length):\n    {}\nchecks.cut_windows(cut_windows)"
SHARES = """
def zero_shares(weights):
    zeros, sizes = [int((W == 0).sum()) for W in weights], [W.numel() for W in weights]
    return [zero / size for zero, size in zip(zeros, sizes)] + [sum(zeros) / sum(sizes)]
checks.zero_shares(zero_shares)
"""


@pytest.fixture
def marks(tmp_path):
    """marks(cell..., seconds=) -> {exercise: its mark}; another exercise is right, and must get its points."""

    def run(*cells, seconds=20.0):
        nbformat.write(small("import torch\nfrom minprune import checks", *cells, SHARES), tmp_path / "mine.ipynb")
        found = {mark.exercise: mark for mark in grade(tmp_path / "mine.ipynb", seconds).marks}
        assert found["zero_shares"].passed, found["zero_shares"].message
        assert all(len(mark.message) < 2000 for mark in found.values())
        return found

    return run


def lines(*code):
    return FUNCTION.format("\n    ".join(code))


EVERYWHERE = """
import gc, sys
found = [name for name in sys.modules if name.startswith("minprune.course.checks.")]
for o in gc.get_objects():
    try:
        if type(o).__name__ in ("Exercise", "Wrong", "Case") or "course/checks" in o.__code__.co_filename:
            found.append(str(o))
    except BaseException:
        pass
if found:
    raise ValueError(found)
""".strip().splitlines()

STOLEN = {
    "the reference": "checks.cut_windows(checks.cut_windows.reference)",
    "the check": "checks.cut_windows(checks.cut_windows)",
    "a private name": "from minprune.course.checks.ch01_the_patient import _windows as f\nchecks.cut_windows(f)",
    "a name of checks": "from minprune.course.checks import _reference as f\nchecks.cut_windows(f)",
    "the catalogue": "checks.cut_windows(checks.EXERCISES['cut_windows'].reference)",
    "a patched judge": "from minprune.course.checks.core import Exercise\nExercise._agree = lambda *a: True\n"
    + lines("return 1"),
    "a patched comparison": "import torch\ntorch.equal = torch.isclose = lambda *a, **k: torch.tensor(True)\n"
    "torch.Tensor.__eq__ = lambda *a: torch.tensor(True)\n" + lines("return torch.zeros(3)"),
    "the call stack": lines(
        "import sys",
        "frame = sys._getframe()",
        "while frame:",
        "    for value in list(frame.f_locals.values()):",
        "        for f in (getattr(value, 'reference', None), getattr(value, 'function', None)):",
        "            if callable(f): return f(ids, length)",
        "    frame = frame.f_back",
    ),
    "imported anew": lines(
        "import sys",
        "for name in [name for name in sys.modules if name.startswith('minprune')]: del sys.modules[name]",
        "from minprune import checks",
        "return checks.cut_windows.reference(ids, length)",
    ),
    "the source": lines(
        "import minprune", "return open(minprune.__path__[0] + '/course/checks/ch01_the_patient.py').read()"
    ),
    "a tensor equal to all": "class Equal(torch.Tensor):\n    @classmethod\n"
    "    def __torch_function__(cls, *args, **kw):\n        return torch.tensor(True)\n"
    + lines("return torch.zeros(3).as_subclass(Equal)"),
    "an object equal to all": "class Equal:\n    __eq__ = lambda self, other: True\n"
    "    shape = property(lambda self: self)\n"
    + lines("return Equal()"),
    "an exit that looks well": lines("import os", "os._exit(0)"),
    "a verdict": lines("return checks.cut_windows(cut_windows)"),
}  # fmt: skip


@pytest.mark.parametrize("what", STOLEN)
def test_what_is_not_the_learners_own_gets_no_points(what, marks):
    mark = marks(STOLEN[what])["cut_windows"]
    assert mark.points == 0 and mark.bug is None and mark.message


def test_an_answers_process_holds_no_reference_and_no_judge(marks):
    mark = marks(lines(*EVERYWHERE, RIGHT))["cut_windows"]
    assert mark.passed, mark.message


def test_the_parents_own_modules_are_not_handed_on(tmp_path):
    """A script that has the checks in its main module, as a lecturer may write it."""
    nbformat.write(small("from minprune import checks", lines(*EVERYWHERE, RIGHT)), tmp_path / "mine.ipynb")
    script = tmp_path / "script.py"
    script.write_text(
        "from minprune.course.checks import *\nfrom minprune.course.checks import ch01_the_patient\n"
        "from minprune.course.classroom.grade import grade\n"
        f"if __name__ == '__main__':\n    print(grade({str(tmp_path / 'mine.ipynb')!r}).points)\n"
    )
    assert os.popen(f"{sys.executable} {script}").read() == "1\n"


PACKAGE = {
    "a function": "from minprune.methods.channel_permutation import snake_deal\nchecks.snake_deal(snake_deal)",
    "another name": "from minprune.methods.channel_permutation import snake_deal\nmine = snake_deal\n"
    "checks.snake_deal(mine)",
    "partial": "import functools\nfrom minprune.methods import channel_permutation\n"
    "checks.snake_deal(functools.partial(functools.partial(channel_permutation.snake_deal)))",
    "a method": "import minprune as mp\nchecks.nm_mask(mp.NM(2, 4).keep)",
    "a class": "import minprune as mp\nchecks.nm_mask(mp.NM)",
    "an object": "import minprune as mp\nchecks.nm_mask(mp.METHODS['wanda'])",
    "wrapped": "import functools\nfrom minprune.methods.channel_permutation import snake_deal\n"
    "@functools.wraps(snake_deal)\ndef mine(*a):\n    return snake_deal(*a)\nchecks.snake_deal(mine)",
}


@pytest.mark.parametrize("what", PACKAGE)
def test_a_function_of_the_package_is_refused(what, tmp_path):
    nbformat.write(small("from minprune import checks", PACKAGE[what]), tmp_path / "mine.ipynb")
    (mark,) = [mark for mark in grade(tmp_path / "mine.ipynb").marks if "minprune" in mark.message]
    assert mark.points == 0 and "a function of minprune: the points are for one that you write" in mark.message


DEEP = {
    "signs": "-" * 20000 + "1", "sums": "1" + "+1" * 20000, "attributes": "x" + ".a" * 20000,
    "calls": "f" + "()" * 20000, "brackets": "[" * 20000 + "]" * 20000, "lambdas": "lambda: " * 20000 + "1",
    "choices": "1 if 1 else " * 20000 + "1",
}  # fmt: skip
HARM = {  # what the learner wrote -> what is said
    "garbage": (lines("import os", "for fd in range(3, 50):", "    try: os.write(fd, b'\\xff{')",
                      "    except OSError: pass", "os._exit(0)"), "The process died while it ran your code"),
    "lines of garbage": (lines("import os", "for fd in range(3, 50):", "    try: os.write(fd, b'\\xff{\\n')",
                               "    except OSError: pass"), "What came back from your code is not"),
    "deep JSON": (lines("import os", "for fd in range(3, 50):", "    try: os.write(fd, b'[' * 100000 + b'\\n')",
                        "    except OSError: pass", "os._exit(0)"), "What came back from your code is not"),
    "a pipe": (lines("import os, glob", "path = [p for fd in range(3, 50) if os.path.exists(f'/proc/self/fd/{fd}')",
                     "        for p in [os.readlink(f'/proc/self/fd/{fd}')] if 'outcomes' in p][0]",
                     "os.unlink(path)", "os.mkfifo(path)", "os._exit(0)"), "What came back from your code is not"),
    "a long message": (lines("raise ValueError('x' * 10**7)"), "your function raised ValueError in its line 2: xxx"),
    "a steering message": (lines("raise ValueError('\\x1b[2J' + chr(0xd800))"), "raised ValueError"),
    "a long name": ("E = type('E' * 10**6, (Exception,), {})\n" + lines("raise E('no')"), "your function raised EEE"),
    "a long result": (lines("return torch.zeros(10**7)"), "not a tensor of several million bytes"),
    "a long list": (lines("return [0.123456789] * 5 * 10**5"), "not a result of several million bytes"),
    "a loop of lists": (lines("found = []", "found.append(found)", "return found"), "was expected, not a list of 1"),
    "gigabytes of prints": (lines("import os", "for _ in range(2000): os.write(1, b'x' * 10**6)"), "returned None"),
    "a wide tensor": (lines("return torch.ones(10**11)"), "your function raised RuntimeError"),
    "memory": (lines("return [torch.empty(2**27) for _ in range(64)]"), "your function raised RuntimeError"),
    "forks without end": (lines("import os", "while True: os.fork()"), "raised PermissionError"),
    "caught": (lines("while True:", "    try:", "        while True: pass", "    except BaseException: pass"),
               "Not finished after 2 s"),
    "the host's end": (lines("import os", "os.kill(os.getppid(), 9)", "while True: pass"), "raised PermissionError"),
    "the grader's end": (lines("import psutil", "psutil.Process().parents()[1].kill()", "while True: pass"),
                         "raised AccessDenied"),
    "everybody's end": (lines("import os", "os.kill(-1, 9)", "while True: pass"), "raised PermissionError"),
    "a group's end": (lines("import os", "os.killpg(os.getpgid(os.getppid()), 9)", "while True: pass"),
                      "raised PermissionError"),
}  # fmt: skip


@pytest.mark.parametrize("what", HARM)
def test_harm_costs_its_own_points_alone(what, marks):
    source, message = HARM[what]
    mark = marks(source, seconds=2 if what == "caught" else 20)["cut_windows"]
    assert mark.points == 0 and message in mark.message and mark.message.isprintable(), mark.message


@pytest.mark.parametrize("what", DEEP)
def test_an_expression_nested_too_deeply_is_no_answer_and_stops_nothing(what, marks):
    for source in (lines(f"return {DEEP[what]}"), f"checks.cut_windows({DEEP[what]})"):
        assert re.search("Cell 2.* is not Python", marks(source)["cut_windows"].message)
    assert marks(f"y = {DEEP[what]}", lines(RIGHT))["cut_windows"].passed


@pytest.mark.parametrize("step", ["pass", "os.setsid()", "os.setsid(); os.fork()"])
def test_processes_left_behind_are_killed(step, marks, tmp_path):
    beat = tmp_path / "beat"
    start = f"if not os.fork():\n        {step}\n        while True: open({str(beat)!r}, 'a').write('.')"
    wait = f"while not os.path.exists({str(beat)!r}): pass"
    assert marks("import os\n" + lines(start, wait, RIGHT))["cut_windows"].passed
    size = beat.stat().st_size
    time.sleep(0.3)
    assert beat.stat().st_size == size > 0


def test_a_host_that_is_stopped_is_replaced(marks, monkeypatch, tmp_path):
    monkeypatch.setattr("minprune.course.classroom.isolation._GRACE", 0.5)
    said = tmp_path / "host"

    def stop():
        while not said.exists() or not said.read_text():
            time.sleep(0.01)
        os.kill(int(said.read_text()), signal.SIGSTOP)

    stopping = threading.Thread(target=stop, daemon=True)
    stopping.start()
    source = lines("import os", f"open({str(said)!r}, 'w').write(str(os.getppid()))", "while True: pass")
    mark = marks(source, seconds=1)
    stopping.join(5)
    assert "Not finished" in mark["cut_windows"].message


def test_the_host_is_kept_for_the_next_answer(marks):
    marks(lines(RIGHT))
    first = _host._process.pid
    marks(lines("import os", "os._exit(1)"))
    assert _host._process.pid == first


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e300])
def test_a_time_that_is_no_limit_is_refused(seconds, tmp_path):
    nbformat.write(small(lines(RIGHT)), tmp_path / "mine.ipynb")
    with pytest.raises(PruneError, match="no time limit"):
        grade(tmp_path / "mine.ipynb", seconds)


# --- what comes back

TENSORS = [torch.tensor(values, dtype=dtype) for dtype in
           (torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64)
           for values in ([[1, 0], [0, 1]], 1, [])]  # fmt: skip
VALUES = [None, True, 3, -2.5, float("inf"), [1, [2.0]], (torch.ones(2, 3).T, 1), Thing("a dict"), [], (), *TENSORS]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_an_outcome_comes_back_as_it_went(value):
    line = to_line(Outcome(value, Failure(("m.E", "builtins.Exception"), "why", 3), "W", torch.ones(2)))
    found = from_line(line)
    assert repr(found.value) == repr(value) and line.count(b"\n") == 1
    assert found.error == Failure(("m.E", "builtins.Exception"), "why", 3) and found.changed == "W"
    assert found.slope.tolist() == [1, 1] and found.slope.dtype == torch.float64


def forged(**changes):
    return json.dumps({"value": None, "error": None, "changed": None, "slope": None} | changes).encode()


NO_OUTCOMES = [
    b"", b"[]", b"7", b"null", b"\xff", b"[" * 10**5, b'{"value": 1}',
    *(forged(value=value) for value in (
        "x", {}, {"pickle": []}, {"list": 1}, {"tuple": None}, {"thing": 1}, 2**63, -(10**30),
        {"list": [{"list": "ab"}]},
        {"dtype": "float32", "shape": [2], "data": "AAAA"}, {"dtype": "float32", "shape": [-1], "data": ""},
        {"dtype": "float32", "shape": [2**62, 2**62], "data": ""}, {"dtype": "object", "shape": [], "data": ""},
        {"dtype": "float32", "shape": [1.0], "data": "AAAAAA=="}, {"dtype": "float32", "shape": "", "data": "?"},
        {"dtype": ["a"], "shape": [], "data": ""}, {"dtype": "float32", "shape": [0] * 100, "data": ""},
    )),
    forged(error=3), forged(error=[]), forged(error=[[1], "x", 1]), forged(error=[["a"], 3, 1]), forged(changed=3),
]  # fmt: skip


@pytest.mark.parametrize("line", NO_OUTCOMES, ids=lambda line: str(line[:60]))
def test_bytes_that_are_no_outcome_are_refused(line):
    with pytest.raises(ValueError):
        from_line(line)


def test_any_data_can_be_judged_without_an_exception():
    odd = [*VALUES, torch.zeros(0, 3), torch.full((3, 4), float("nan")), [[1], [2, 3]]]
    for place, exercise in enumerate(checks.EXERCISES.values()):
        cases = len(exercise.cases())
        for start in range(place, place + 40, 8):
            outcomes = [Outcome(odd[(start + i) % len(odd)], slope=torch.ones(7)) for i in range(cases)]
            assert not exercise.judge([from_line(to_line(outcome)) for outcome in outcomes]).passed


def test_a_large_value_is_told_and_not_sent():
    for value in (torch.zeros(LINE), [0.123456789] * (LINE // 8)):
        assert len(line := to_line(Outcome(value))) < 1000 and isinstance(from_line(line).value, Thing)


# --- which call counts


def gated(text, learner, exercise="wanda"):
    start, end = f"```{{exercise-start}} A\n:label: {exercise}\n```", "```{exercise-end}\n```"
    return small("import torch\nimport minprune as mp\nfrom minprune import checks", text, start, *learner, end)


WANDA = """def {}(W, X, sparsity):
    keep = torch.ones(W.shape, dtype=torch.bool)
    order = (W.abs() * X.norm(dim=0)).argsort(dim=1, stable=True)
    return keep.scatter_(1, order[:, : round(sparsity * W.shape[1])], False)
"""
DEMONSTRATION = "verdicts = [checks.wanda(lambda W, X, s: W.abs() > W.abs().quantile(s))]"
CALLS = {
    "by its name": [WANDA.format("wanda"), "checks.wanda(wanda)"],
    "no call": [WANDA.format("wanda")],
    "another name": [WANDA.format("mine"), "checks.wanda(mine)"],
    "a second name": [WANDA.format("mine"), "wanda = mine"],
    "a lambda": [WANDA.format("mine"), "checks.wanda(lambda W, X, sparsity: mine(W, X, sparsity))"],
    "the module renamed": [WANDA.format("mine"), "import minprune.course.checks as c", "c.wanda(mine)"],
    "the module assigned": [WANDA.format("mine"), "judge = checks\njudge.wanda(mine)"],
    "the check imported": [WANDA.format("mine"), "from minprune.course.checks import wanda as judge\njudge(mine)"],
    "the check assigned": [WANDA.format("mine"), "judge = checks.wanda", "print(judge(mine))"],
    "of the package": [WANDA.format("mine"), "mp.checks.wanda(mine)"],
    "of the catalogue": [WANDA.format("mine"), "checks.EXERCISES['wanda'](mine)"],
    "by getattr": [WANDA.format("mine"), "getattr(checks, 'wanda')(mine)"],
    "in a condition": [WANDA.format("mine"), "if checks.wanda(mine).passed:\n    print('!')"],
}


@pytest.mark.parametrize("what", CALLS)
def test_the_learners_call_counts_however_it_is_written(what, tmp_path):
    nbformat.write(gated(DEMONSTRATION, CALLS[what]), tmp_path / "mine.ipynb")
    mark = {mark.exercise: mark for mark in grade(tmp_path / "mine.ipynb").marks}["wanda"]
    assert mark.passed, mark.message


def test_a_demonstration_of_the_book_counts_for_nobody(tmp_path):
    nbformat.write(gated(WANDA.format("f") + "checks.wanda(f)", ["1 + 1"]), tmp_path / "mine.ipynb")
    mark = {mark.exercise: mark for mark in grade(tmp_path / "mine.ipynb").marks}["wanda"]
    assert mark.points == 0 and "The call in cell 2 is not in the exercise" in mark.message


@pytest.mark.parametrize("name, exercise", [("05-wanda", "wanda"), ("06-n-m", "nm_mask")])
def test_in_the_chapters_a_missing_call_is_not_replaced_by_the_books(name, exercise, tmp_path):
    notebook = chapter(f"notebooks/{name}.ipynb")
    solutions = ["\n\n".join(s) if e == [exercise] else "pass" for _, e, s in exercises(notebook)]
    nbformat.write(
        filled_in(notebook, [re.sub(r"(?m)^checks\..*$", "", s) for s in solutions]), tmp_path / "mine.ipynb"
    )
    marks = {mark.exercise: mark for mark in grade(tmp_path / "mine.ipynb").marks}
    assert [e for e, mark in marks.items() if mark.passed] == [exercise]


def test_a_lambdas_parameters_need_no_global_of_their_name(tmp_path):
    cells = small("import torch\nfrom minprune import checks", "W = X = load()", "s = 3",
                  "checks.wanda(lambda W, X, s: [W for s in X])")  # fmt: skip
    from minprune.course.classroom.cells import code_cells

    _, statements = grading.handed_in(code_cells(cells), "wanda")
    assert statements == []
    assert grading.uses(ast.parse("lambda W, X: [V for V in X if f(W, s)]", mode="eval").body) == {"f", "s"}


@pytest.mark.parametrize("shape", [(0,), (1,), (0, 3), (1, 1), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_tensor_comes_through_whatever_its_strides(shape, dtype):
    sent = torch.arange(99).to(dtype).as_strided(shape, [7] * len(shape))  # as parts of other tensors have them
    back = from_line(to_line(Outcome(sent))).value
    assert back.dtype == dtype and torch.equal(back, sent)
