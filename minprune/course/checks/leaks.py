"""The exercise of chapter 10 on test text that was seen before."""

from collections.abc import Callable

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong

# contaminated(train, test, n): which test windows share n tokens in a row with the calibration windows


def _runs(window: Tensor, n: int) -> set[tuple[int, ...]]:
    tokens = window.tolist()
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def _shared(
    train: Tensor, test: Tensor, n: int, runs: Callable[[Tensor, int], set] = _runs, joined: bool = False
) -> Tensor:
    seen = runs(train.flatten(), n) if joined else set().union(*(runs(window, n) for window in train))
    return torch.tensor([bool(runs(window, n) & seen) for window in test])


def _same_place(window: Tensor, n: int) -> set:
    tokens = window.tolist()
    return {(i, *tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def _steps(window: Tensor, n: int) -> set:
    tokens = window.tolist()
    return {tuple(tokens[i : i + n]) for i in range(0, len(tokens) - n + 1, n)}


contaminated = Exercise(
    name="contaminated",
    chapter=10,
    title="which test windows share a run of n tokens with a calibration window",
    reference=_shared,
    difficulty=3,
    wrong=(
        Wrong(
            "roles exchanged",
            lambda train, test, n: _shared(test, train, n),
            "Your verdicts are on the *calibration* windows. Asked for is one on each test window.",
        ),
        Wrong(
            "inverted",
            lambda train, test, n: ~_shared(train, test, n),
            "The verdicts are the opposite of what was asked for: True means that a window is contaminated.",
        ),
        Wrong(
            "whole windows only",
            lambda train, test, n: _shared(train, test, n, lambda window, n: {tuple(window.tolist())}),
            "Only windows that are equal as a whole were found. A leak is rarely cut at the same places.",
        ),
        Wrong(
            "same place only",
            lambda train, test, n: _shared(train, test, n, _same_place),
            "A shared run was found only where it stands at the same place of both windows.",
        ),
        Wrong(
            "order ignored",
            lambda train, test, n: _shared(
                train, test, n, lambda window, n: {tuple(sorted(run)) for run in _runs(window, n)}
            ),
            "Runs with the same tokens in another order were taken for the same.",
        ),
        Wrong(
            "single tokens",
            lambda train, test, n: _shared(train, test, 1),
            "One common token was enough. All texts share tokens; it takes n of them in a row.",
        ),
        Wrong(
            "runs across windows",
            lambda train, test, n: _shared(train, test, n, joined=True),
            "A run was found that begins in one calibration window and ends in the next. They are not neighbours in "
            "the text.",
        ),
        Wrong(
            "every n-th run",
            lambda train, test, n: _shared(train, test, n, _steps),
            "Only runs that begin at multiples of n were compared. A run may begin anywhere.",
        ),
        Wrong(
            "one token too long",
            lambda train, test, n: _shared(train, test, n + 1),
            "Runs of n tokens were not found, only longer ones: look at the ends of your slices.",
        ),
    ),
    cases=lambda: [
        Case("a run at other places", (_rows("abcdefgh", "ijklmnop"), _rows("qrcdestu", "vwxyzabx", "ponmlkji"), 3)),
        Case("a run of exactly n", (_rows("abcdef", "ghijkl"), _rows("zzabcd", "zzabcz", "lkjihg"), 4)),
        Case("the end of one window and the start of the next", (_rows("abcd", "efgh"), _rows("cdef", "bcde"), 4)),
        Case("more test windows than calibration windows", (_rows("abcab"), _rows("xabca", "bcxxx", "abxab"), 2)),
        Case("an end that is too short", (_rows("abcde", "fghij"), _rows("klmde", "nopqj", "bcdkl"), 3)),
        Case("common tokens that do not follow each other", (_rows("abcdef"), _rows("azbzcz", "zabzde", "fedcba"), 3)),
        Case("common tokens, each twice", (_rows("aabbcc"), _rows("abcabc", "aazbbz", "zaabbz"), 4)),
        Case(
            "numbers that hold others", (torch.tensor([[11, 2, 31, 5]]), torch.tensor([[1, 2, 3, 9], [7, 2, 31, 5]]), 3)
        ),
        Case("single tokens", (_rows("abc"), _rows("xyz", "xyc", "axx"), 1)),
        Case("the last run of a window", (_rows("uvwxyz", "abcdef"), _rows("ghixyz", "defghi", "hgfedc"), 3)),
    ],
)


def _rows(*texts: str) -> Tensor:
    return torch.tensor([[ord(letter) - ord("a") for letter in text] for text in texts])


EXERCISES = [contaminated]
