"""The exercise of chapter 19 on 2:4: two values of every four, and their places in two bits each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import normal
from minprune.patterns import NM


def _lowest_first(kept: list[int]) -> list[int]:
    return [place for place in range(4) if place not in kept]


@dataclass(frozen=True)
class _Pack:
    """2:4 into values and codes; the defaults are right. Every field is one decision.

    stored: which weights count as kept. groups: the columns of each group, from d_in. fill: the places that a group
    with fewer than two may take, in order, from the kept ones. order: of the two places. value: what is stored, from
    the row, its mask and the column. coded: the places that the code says. nibble: two places in four bits. byte: two
    groups' nibbles in one byte.
    """

    stored: Callable[[Tensor, Tensor], Tensor] = lambda W, keep: keep
    groups: Callable[[int], list[list[int]]] = lambda d_in: [list(range(g, g + 4)) for g in range(0, d_in, 4)]
    fill: Callable[[list[int]], list[int]] = _lowest_first
    order: Callable[[list[int]], list[int]] = sorted
    value: Callable[[Tensor, Tensor, int], Tensor] = lambda w, keep, j: w[j] * keep[j]
    coded: Callable[[list[int]], list[int]] = lambda places: places
    nibble: Callable[[int, int], int] = lambda one, two: one | two << 2
    byte: Callable[[int, int], int] = lambda one, two: one | two << 4

    def __call__(self, W: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        stored, values, codes = self.stored(W, keep), [], []
        for w, k in zip(W, stored, strict=True):
            row, nibbles = [], []
            for columns in self.groups(W.shape[1]):
                kept = [place for place, j in enumerate(columns) if k[j]]
                places = self.order((kept + self.fill(kept))[:2])
                row += [self.value(w, k, columns[place]) for place in places]
                nibbles.append(self.nibble(*self.coded(places)))
            values.append(torch.stack(row))
            codes.append([self.byte(*pair) for pair in zip(nibbles[::2], nibbles[1::2], strict=True)])
        return torch.stack(values), torch.tensor(codes, dtype=torch.uint8)


pack_2_4 = Exercise(
    name="pack_2_4",
    chapter=18,
    title="2:4 packed: two values of every four inputs, and their places in two bits each",
    reference=_Pack(),
    difficulty=4,
    wrong=(
        Wrong(
            "group order",
            _Pack(byte=lambda one, two: two | one << 4),
            "Each byte holds the right two groups, in the wrong halves: the first group belongs into the low four "
            "bits.",
        ),
        Wrong(
            "place order",
            _Pack(nibble=lambda one, two: two | one << 2),
            "In each group the two places have changed places: the first belongs into the low two bits.",
        ),
        Wrong(
            "all bits reversed",
            _Pack(nibble=lambda one, two: two | one << 2, byte=lambda one, two: two | one << 4),
            "You fill each byte from the high end down, the groups and the places in them. This format fills it from "
            "the low end up.",
        ),
        Wrong(
            "strided groups",
            _Pack(groups=lambda d_in: [list(range(g, d_in, d_in // 4)) for g in range(d_in // 4)]),
            "Your groups are made of inputs that are far apart. A group is four *neighbouring* inputs: look at the "
            "order of the sides in your reshape.",
        ),
        Wrong(
            "dropped stored zeros",
            _Pack(stored=lambda W, keep: keep & (W != 0)),
            "A kept weight that happens to be zero lost its place to a pruned one. The mask says which places are "
            "stored, not the value.",
        ),
        Wrong(
            "pruned places",
            _Pack(coded=lambda places: [place for place in range(4) if place not in places]),
            "The values are right, and the codes say where the weights are that are *not* stored.",
        ),
        Wrong(
            "not ascending",
            _Pack(order=lambda places: places),
            "Where a group has fewer than two weights, the place that fills it up comes last. The places of a group "
            "ascend, whichever of them is the filler: hardware that reads them relies on it.",
        ),
        Wrong(
            "filled from the end",
            _Pack(fill=lambda kept: _lowest_first(kept)[::-1]),
            "Where a group has fewer than two weights, the highest free place was taken. Take the lowest, so that "
            "equal matrices have equal bytes.",
        ),
        Wrong(
            "filled with pruned weights",
            _Pack(value=lambda w, keep, j: w[j]),
            "A group with fewer than two weights was filled up with a weight that the mask prunes. The filler's value "
            "is zero; else the pruned weight is back when the matrix is unpacked.",
        ),
        Wrong(
            "mask bits",
            _Pack(nibble=lambda one, two: 1 << one | 1 << two),
            "The four bits of a group are its mask. That is the bitmask format, with as many bits; here the bits are "
            "two numbers of two bits.",
        ),
    ),
    cases=lambda: [
        Case("two of every four", (normal(2, 8, seed=2000), _two_of_four(2, 8, 2001))),
        Case("wide rows", (normal(3, 24, seed=2010), _two_of_four(3, 24, 2011))),
        Case("groups that are not full", (normal(2, 16, seed=2020), _two_of_four(2, 16, 2021) & _thin(2, 16))),
        Case("a zero that is kept", _with_zero(2, 16, 2030)),
        Case("one weight of each four", (normal(2, 8, seed=2060), NM(1, 4).keep(normal(2, 8, seed=2061)))),
        Case("nothing kept", (normal(1, 8, seed=2040), torch.zeros(1, 8, dtype=torch.bool))),
        Case("many rows", (normal(6, 16, seed=2050), _two_of_four(6, 16, 2051))),
    ],
)


def _two_of_four(d_out: int, d_in: int, seed: int) -> Tensor:
    return NM(2, 4).keep(normal(d_out, d_in, seed=seed))


def _thin(d_out: int, d_in: int) -> Tensor:
    """A mask that takes one or two weights out of most groups."""
    return normal(d_out, d_in, seed=2022) < 0.3


def _with_zero(d_out: int, d_in: int, seed: int) -> tuple[Tensor, Tensor]:
    """A matrix of which the kept weights with the highest place in their groups are zero."""
    W, keep = normal(d_out, d_in, seed=seed), _two_of_four(d_out, d_in, seed + 1)
    last = keep & (keep.unflatten(1, (-1, 4)).cumsum(2).flatten(1) == 2)
    return W * ~last, keep


EXERCISES = [pack_2_4]
