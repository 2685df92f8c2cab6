"""An exercise of chapter 03: several weights of a row removed together, one multiplier for each."""

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.removals import spd
from minprune.course.checks.values import normal

# remove_several(w, H, gone): the best row without these weights, all of them removed at once


def _repaired(w: Tensor, gone: list[int], factor: Tensor, rows: Tensor) -> Tensor:
    """w - w_gone factor rows, with zeros where weights are gone: factor (removed, removed), rows (removed, d_in)."""
    new = w - w[gone] @ factor @ rows
    new[gone] = 0
    return new


def _remove_several(w: Tensor, H: Tensor, gone: list[int]) -> Tensor:
    P = torch.linalg.inv(H)
    return _repaired(w, gone, torch.linalg.inv(P[gone][:, gone]), P[gone])


def _alone(w: Tensor, H: Tensor, gone: list[int], zero: bool, in_turn: bool) -> Tensor:
    """Each removal's own update with the inverse of all inputs, in turn or all from the weights as they were."""
    P, new = torch.linalg.inv(H), w.clone()
    for q in gone:
        new = new - (new if in_turn else w)[q] / P[q, q] * P[q]
    if zero:
        new[gone] = 0
    return new


def _with_H(w: Tensor, H: Tensor, gone: list[int]) -> Tensor:
    return _repaired(w, gone, torch.linalg.inv(H[gone][:, gone]), H[gone])


def _opposite(w: Tensor, H: Tensor, gone: list[int]) -> Tensor:
    new = 2 * w - _remove_several(w, H, gone)
    new[gone] = 0
    return new


def _without(w: Tensor, gone: list[int]) -> Tensor:
    new = w.clone()
    new[gone] = 0
    return new


def _block_of_H(w: Tensor, H: Tensor, gone: list[int]) -> Tensor:
    return _repaired(w, gone, H[gone][:, gone], torch.linalg.inv(H)[gone])


_STALE = (
    "Each removal on its own is right, but they do not know of each other: once a weight is gone it cannot make "
    "up for the next one. Which inverse does the second removal need?"
)

remove_several = Exercise(
    name="remove_several",
    chapter=3,
    title="the best row without several weights, removed together",
    reference=_remove_several,
    difficulty=3,
    rtol=1e-3,
    atol=1e-4,
    wrong=(
        Wrong(
            "nothing removed",
            lambda w, H, gone: w.clone(),
            "The row came back as it was. `gone` names the weights that must be zero in the end.",
        ),
        Wrong(
            "no update",
            lambda w, H, gone: _without(w, gone),
            "The weights are gone, but the others are as they were. They should make up for the lost ones.",
        ),
        Wrong("inverse of all inputs", lambda w, H, gone: _alone(w, H, gone, zero=True, in_turn=True), _STALE),
        Wrong("inverse of all inputs", lambda w, H, gone: _alone(w, H, gone, zero=True, in_turn=False), _STALE),
        Wrong(
            "weights that came back",
            lambda w, H, gone: _alone(w, H, gone, zero=False, in_turn=True),
            "The repair of a later removal moved a weight that was gone already. Count the zeros.",
        ),
        Wrong(
            "weights that came back",
            lambda w, H, gone: _alone(w, H, gone, zero=False, in_turn=False),
            "The updates of the single removals were added up, and each of them moves the other lost weights, too. "
            "Count the zeros.",
        ),
        Wrong(
            "H in place of its inverse",
            _with_H,
            "The update was made with H instead of its inverse. H says how inputs go together, its inverse how one "
            "stands in for another.",
        ),
        Wrong(
            "block of H",
            _block_of_H,
            "Close, but the inverse of a block of the inverse is not the block of H.",
        ),
        Wrong(
            "wrong sign",
            _opposite,
            "The other weights moved by the right amount in the wrong direction.",
        ),
        Wrong(
            "kept and removed exchanged",
            lambda w, H, gone: _remove_several(w, H, [j for j in range(len(w)) if j not in gone]),
            "The weights that were to go stayed, and the others went.",
        ),
    ),
    cases=lambda: [
        Case("one removal", (normal(4, seed=330), spd(4, 331), [1])),
        Case("two of two twins", (torch.tensor([1.0, 2.0, -1.0]), _twins(), [0, 2])),
        Case("three of eight", (normal(8, seed=333), spd(8, 334, (0.5, 1.0, 3.0, 1.0)), [6, 0, 3])),
        Case("all but one", (normal(5, seed=336), spd(5, 337), [0, 1, 3, 4])),
        Case("all of them", (normal(4, seed=341), spd(4, 342), [2, 0, 3, 1])),
        Case("uncorrelated inputs", (normal(3, seed=339), torch.diag(torch.tensor([4.0, 1.0, 9.0])), [0, 2])),
    ],
)


def _twins() -> Tensor:
    """Two inputs that are nearly equal, and one that goes with neither much."""
    return torch.tensor([[4.0, 3.9, 1.0], [3.9, 4.0, 0.5], [1.0, 0.5, 2.0]])


EXERCISES = [remove_several]
