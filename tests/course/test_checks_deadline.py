"""An answer that never returns ends with a verdict that names the case, and leaves alarms and threads as they were."""

import signal
import threading
import time

import numpy as np
import pytest
import torch

from minprune import checks
from minprune.course.checks import core
from minprune.course.deadline import time_limit
from minprune.course.outcome import Thing, plain, run


def endless(*args):
    while True:
        pass


def sleeping(*args):
    time.sleep(3600)


def caught(*args):
    while True:
        try:
            while True:
                pass
        except Exception:
            pass


def never_sparse_enough(sizes, rate, sparsity, steps, rewind):
    """`ticket_cost` with int in place of round: the last weight is never pruned."""
    number, left = 0, sizes.tolist()
    while sum(left) > (1 - sparsity) * int(sizes.sum()):
        left = [n - int(rate * n) for n in left]
        number += 1
    return torch.tensor([number, number * steps])


ENDLESS = {
    "a loop": endless,
    "a sleep": sleeping,
    "a loop that catches exceptions": caught,
    "int for round": never_sparse_enough,
}


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(core, "SECONDS", 0.3)


@pytest.mark.parametrize("what", ENDLESS)
def test_an_answer_that_never_returns_is_stopped_and_the_case_is_named(what, hurried):
    began = time.monotonic()
    verdict = checks.ticket_cost(ENDLESS[what])
    assert time.monotonic() - began < 10
    assert not verdict.passed and verdict.bug is None and verdict.points == 0
    labels = [f"No answer after 0.3 seconds for the case: {case.label} (" for case in checks.ticket_cost.cases()]
    assert any(label in verdict.message for label in (labels if "int" in what else labels[:1]))


def test_the_case_is_the_one_that_does_not_end(hurried):
    right = checks.ticket_cost.reference
    cases = checks.ticket_cost.cases()

    def slow(*args):
        return endless() if repr(args) == repr(cases[2].args) else right(*args)

    assert cases[2].label in checks.ticket_cost(slow).message


def test_all_exercises_stop_an_endless_answer(monkeypatch):
    monkeypatch.setattr(core, "SECONDS", 0.01)
    for exercise in checks.EXERCISES.values():
        assert "No answer after 0.01 seconds" in exercise(endless).message


def in_a_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return found[0]


def test_in_another_thread_a_loop_is_stopped_too(hurried):
    assert "No answer after" in in_a_thread(lambda: checks.ticket_cost(endless)).message
    assert in_a_thread(lambda: checks.ticket_cost(checks.ticket_cost.reference)).passed


def test_without_an_alarm_a_loop_is_stopped_too(hurried, monkeypatch):
    monkeypatch.delattr(signal, "setitimer")  # Windows
    assert "No answer after" in checks.ticket_cost(endless).message
    assert checks.ticket_cost(checks.ticket_cost.reference).passed


def test_an_alarm_of_somebody_else_still_rings(hurried):
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        assert "No answer after" in checks.ticket_cost(endless).message
        assert checks.ticket_cost(checks.ticket_cost.reference).passed
        time.sleep(1.1)
        assert rung == [True]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("where", ["main", "thread"])
def test_what_ends_in_time_is_left_alone(where):
    handler, count = signal.getsignal(signal.SIGALRM), threading.active_count()

    def work():
        for _ in range(20):
            with time_limit(0.3):
                sum(range(100))
        return time.sleep(0.4)  # none of the twenty rings any more

    work() if where == "main" else in_a_thread(work)
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    time.sleep(0.1)
    assert threading.active_count() <= count


def test_the_time_is_that_of_all_cases_together(monkeypatch):
    monkeypatch.setattr(core, "SECONDS", 0.5)
    began = time.monotonic()
    assert "No answer after 0.5 seconds" in checks.ticket_cost(lambda *args: time.sleep(0.2)).message
    assert time.monotonic() - began < 5


class Equal(torch.Tensor):
    """A tensor that is equal to everything."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return torch.ones((), dtype=torch.bool)


class Loud(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def test_results_become_plain_data():
    equal = torch.arange(3.0).as_subclass(Equal)
    found = plain(
        [equal, np.float32(2.5), np.array([[1, 2]], dtype=">i4"), (np.bool_(True), None), torch.eye(2).to_sparse()]
    )
    assert type(found[0]) is torch.Tensor and found[0].tolist() == [0, 1, 2]
    assert found[1] == 2.5 and type(found[1]) is float
    assert found[2].tolist() == [[1, 2]] and found[2].dtype == torch.int32
    assert found[3] == (True, None) and found[4].tolist() == [[1, 0], [0, 1]]
    loop = []
    loop.append(loop)
    odd = [2**70, {}, "x", loop, np.array(["a"]), np.longdouble(1), 1j, torch.ones(2, dtype=torch.complex64), object()]
    for value in odd:
        assert isinstance(plain(value) if value is not loop else plain(value, 19)[0], Thing), value
    assert type(plain(torch.Size([2, 3]))) is tuple


def test_objects_that_are_equal_to_all_are_no_right_answer():
    assert not checks.wanda(lambda W, X, s: torch.zeros(W.shape).as_subclass(Equal)).passed


def test_an_exception_is_told_whatever_its_text():
    def loud(*args):
        raise Loud

    def long(*args):
        raise ValueError("x" * 10**7)

    def steering(*args):
        raise ValueError("\x1b[2J\x07red")

    assert "raised Loud in its line 2: no message" in checks.wanda(loud).message
    assert len(checks.wanda(long).message) < 1000
    assert checks.wanda(steering).message.isprintable()
    assert run(long, ()).error.kinds[:2] == ("builtins.ValueError", "builtins.Exception")


@pytest.mark.parametrize("new", [5, None, "x", np.ones(3), torch.ones(2), [1.0]], ids=str)
@pytest.mark.parametrize("held", [torch.ones(3), np.ones(3)], ids=["tensor", "array"])
def test_a_part_that_an_answer_replaces_is_a_changed_argument_whatever_it_becomes(held, new):
    """And no error of the answer's, which had none."""
    for given in ([held], {0: held}):

        def answer(weights):
            weights[0] = new
            return 1.0

        outcome = run(answer, (given,))
        same = type(new) is type(held) and len(new) == len(held)
        assert outcome.error is None and outcome.changed == (None if same else "weights")
