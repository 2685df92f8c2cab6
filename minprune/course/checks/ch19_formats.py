"""The exercises of chapter 19: a matrix into CSR, a product from CSR, 2:4 as values and two-bit places."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.ch07_optimum import mask
from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import transposed
from minprune.course.checks.values import normal
from minprune.patterns import NM


# to_csr(W, keep): values, columns, pointers
def _places(keep: Tensor) -> Tensor:
    """Rows and columns of what is kept, in reading order, (stored, 2)."""
    return keep.nonzero()


def _from_zero(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


@dataclass(frozen=True)
class _Rows:
    """CSR; the defaults are right. Every field is one line of the answer.

    stored: which weights are. order: in which order, from that mask. column: what is written down of (row, column,
    d_in). pointers: of how many each row has.
    """

    stored: Callable[[Tensor, Tensor], Tensor] = lambda W, keep: keep
    order: Callable[[Tensor], Tensor] = _places
    column: Callable[[Tensor, Tensor, int], Tensor] = lambda i, j, d_in: j
    pointers: Callable[[Tensor], Tensor] = _from_zero

    def __call__(self, W: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stored = self.stored(W, keep)
        i, j = self.order(stored).unbind(1)
        return W[i, j], self.column(i, j, W.shape[1]), self.pointers(stored.sum(1))


def _narrow(W: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values, columns, pointers = _Rows()(W, keep)
    return values, columns.to(torch.uint8), pointers.to(torch.uint8)


to_csr = Exercise(
    name="to_csr",
    chapter=19,
    title="the kept weights of a matrix as compressed sparse rows: values, columns, pointers",
    reference=_Rows(),
    difficulty=2,
    wrong=mistakes(
        {
            "row pointer off by one": [
                _Rows(pointers=lambda counts: counts.cumsum(0)),
                _Rows(pointers=lambda counts: _from_zero(counts)[:-1]),
                _Rows(pointers=lambda counts: _from_zero(counts) + 1),
            ],
            "counts instead of pointers": [
                _Rows(pointers=lambda counts: counts),
                _Rows(pointers=lambda counts: torch.cat([counts.new_zeros(1), counts])),
            ],
            "empty rows skipped": _Rows(pointers=lambda counts: _from_zero(counts[counts > 0])),
            "indices not sorted": _Rows(
                order=lambda keep: _places(keep.flip(1)) * torch.tensor([1, -1]) + torch.tensor([0, keep.shape[1] - 1])
            ),
            "dropped stored zeros": _Rows(stored=lambda W, keep: keep & (W != 0)),
            "mask ignored": _Rows(stored=lambda W, keep: W != 0),
            "mask inverted": _Rows(stored=lambda W, keep: ~keep),
            "indices in eight bits": _narrow,
            "column by column": lambda W, keep: _Rows()(W.T, keep.T),
            "row numbers for columns": _Rows(column=lambda i, j, d_in: i),
            "places in the flat matrix": _Rows(column=lambda i, j, d_in: i * d_in + j),
        },
        """
        row pointer off by one: There are d_out + 1 pointers: where each row begins, and after them where the last one
          ends. Yours are only the ends, so that every row is read as the one after it.
        row pointer off by one: There are d_out + 1 pointers: where each row begins, and after them where the last one
          ends. Yours are only the beginnings: nobody knows how long the last row is.
        row pointer off by one: There are d_out + 1 pointers: where each row begins, and after them where the last one
          ends. Yours are counted from 1. Where does the first row begin in a list that is counted from 0?
        counts instead of pointers: These are the lengths of the rows. A pointer says where a row begins: how many were
          stored before it?
        counts instead of pointers: After the 0 these are the lengths of the rows. A pointer says how many were stored
          before: add them up.
        empty rows skipped: A row without any weight has a pointer, too: it begins where it ends. Without it all rows
          below move up.
        indices not sorted: Everything is there, but in each row from right to left. Readers expect ascending columns;
          some check.
        dropped stored zeros: A weight that the mask keeps is stored even if it happens to be zero: the mask says where
          weights may be, and training may move this one tomorrow.
        mask ignored: Every weight that is not zero was stored. The mask says which ones are to be.
        mask inverted: The weights that were to be left out are the ones that were stored: True means *kept*.
        indices in eight bits: Columns or pointers above 255 came back as something else: one byte holds no larger
          number. How wide is a layer, and how many weights does it store?
        column by column: This goes down the columns: it is CSC, or CSR of the transposed matrix.
        row numbers for columns: The number of the row stands beside each value. The pointers know it already; what do
          they not know?
        places in the flat matrix: The place in the whole matrix stands beside each value, which needs more bits than
          the place in its row.
        """,
    ),
    cases=lambda: [
        Case("a row without weights", _masked(normal(4, 6, seed=1800), [2, 0, 3, 1], 1801)),
        Case("a zero that is kept", (_zero_at(normal(3, 5, seed=1810)), mask((3, 5), 3, 1811) | _corner(3, 5))),
        Case("an empty first and last row", _masked(normal(5, 7, seed=1820), [0, 4, 1, 7, 0], 1821)),
        Case("everything kept", (normal(3, 4, seed=1830), torch.ones(3, 4, dtype=torch.bool))),
        Case("nothing kept", (normal(2, 3, seed=1840), torch.zeros(2, 3, dtype=torch.bool))),
        Case("a single row", _masked(normal(1, 9, seed=1850), [4], 1851)),
        Case("a wide row", _masked(normal(1, 300, seed=1860), [9], 1861)),
        Case("more than 255 weights", _masked(normal(20, 40, seed=1870), [19, 0] * 10, 1871)),
        Case("a very wide row", _masked(normal(1, 70_000, seed=1880), [9], 1881)),
        Case("more than 65535 weights", _masked(normal(8, 9_000, seed=1890), [8_400] * 8, 1891)),
    ],
)


def _masked(W: Tensor, counts: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """W, and a mask that keeps so many weights of each row."""
    return W, torch.stack([mask((W.shape[1],), count, seed + i) for i, count in enumerate(counts)])


def _zero_at(W: Tensor) -> Tensor:
    """W with a zero in the corner."""
    return W * ~_corner(*W.shape)


def _corner(d_out: int, d_in: int) -> Tensor:
    corner = torch.zeros(d_out, d_in, dtype=torch.bool)
    corner[0, -1] = True
    return corner


# csr_matmul(values, columns, pointers, X): the layer's outputs, from what is stored
@dataclass(frozen=True)
class _Product:
    """X W^T out of CSR; the defaults are right.

    first, last: by how much each row's part is too short. inputs: the columns of X that a row's part is multiplied
    with. add: what becomes of a row's products (tokens, stored in this row).
    """

    first: int = 0
    last: int = 0
    inputs: Callable[[Tensor, Tensor], Tensor] = lambda X, columns: X[:, columns]
    values: Callable[[Tensor], Tensor] = lambda values: values
    add: Callable[[Tensor], Tensor] = lambda products: products.sum(1)

    def __call__(self, values: Tensor, columns: Tensor, pointers: Tensor, X: Tensor) -> Tensor:
        rows = []
        for begin, end in zip(pointers[:-1].tolist(), pointers[1:].tolist(), strict=True):
            part = slice(min(begin + self.first, end), max(end - self.last, begin))
            rows.append(self.add(self.inputs(X, columns[part]) * self.values(values[part])))
        return torch.stack(rows, dim=1)


def _running(values: Tensor, columns: Tensor, pointers: Tensor, X: Tensor) -> Tensor:
    sums = (X[:, columns] * values).cumsum(1)
    return torch.cat([X.new_zeros(len(X), 1), sums], dim=1)[:, pointers[1:]]


def _differences(values: Tensor, columns: Tensor, pointers: Tensor, X: Tensor) -> Tensor:
    return _running(values, columns, pointers, X).diff(dim=1, prepend=X.new_zeros(len(X), 1))


def _reduceat(values: Tensor, columns: Tensor, pointers: Tensor, X: Tensor) -> Tensor:
    """What NumPy's add.reduceat does with a list of beginnings: an empty part gives the product that stands there."""
    products = torch.cat([X[:, columns] * values, X.new_zeros(len(X), 1)], dim=1)
    ends = torch.maximum(pointers[1:], pointers[:-1] + 1)
    parts = zip(pointers[:-1].tolist(), ends.tolist(), strict=True)
    return torch.stack([products[:, begin:end].sum(1) for begin, end in parts], dim=1)


def _dense(values: Tensor, columns: Tensor, pointers: Tensor, X: Tensor) -> Tensor:
    W = X.new_zeros(len(pointers) - 1, X.shape[1])
    W[torch.arange(len(W)).repeat_interleave(pointers.diff()), columns] = values
    return X @ W.T


csr_matmul = Exercise(
    name="csr_matmul",
    chapter=19,
    title="the product of inputs with a matrix in CSR, without unpacking it",
    reference=_Product(),
    difficulty=3,
    wrong=mistakes(
        {
            "row pointer off by one": [_Product(last=1), _Product(first=1), _Product(last=-1)],
            "inputs in order": _Product(inputs=lambda X, columns: X[:, : len(columns)]),
            "rows overwritten": _Product(add=lambda products: products[:, -1:].sum(1)),
            "empty rows not empty": _reduceat,
            "running sums": _running,
            "digits of a loud row": _differences,
            "values forgotten": _Product(values=torch.ones_like),
            "the dense matrix multiplied": _dense,
            "transposed result": transposed(_Product()),
        },
        """
        row pointer off by one: A weight of each row is left out: the values of row i are those from its pointer up to,
          but without, the next. You stop one too early.
        row pointer off by one: A weight of each row is left out: the values of row i are those from its pointer up to,
          but without, the next. You begin one too late.
        row pointer off by one: The first weight of the next row is in each row, too: the values of row i are those from
          its pointer up to, but without, the next. You stop one too late.
        inputs in order: Each row's weights were multiplied with the first inputs there are. Which inputs do they belong
          to?
        rows overwritten: Only the last product of each row is left. When an index occurs several times on the left of
          an assignment, the last one wins; they are to be added.
        empty rows not empty: A row without weights is zero. Here it got the first product of the row after it, which is
          what summing between beginnings does when two of them are equal.
        running sums: Each output also contains those of all rows above it: a running sum was read at the end of the
          row, and what it had been at the beginning was not taken off.
        digits of a loud row: Each output is the difference of two running sums over all rows. That is right on paper;
          but the sums still hold what the rows above gave, and after a loud row the last digits of a quiet one are
          gone. An output must not depend on other rows.
        values forgotten: The right inputs were added, but without their weights.
        the dense matrix multiplied: Inputs that no row reads were multiplied, too, and zero times infinity is not zero.
          The matrix was unpacked with all of its zeros.
        transposed result: The result is (d_out, tokens). A layer's outputs are (tokens, d_out).
        """,
    ),
    cases=lambda: [
        Case("rows of several lengths", (*_stored(4, 6, [2, 1, 3, 1], 1900), normal(2, 6, seed=1901))),
        Case("empty rows", (*_stored(6, 5, [0, 3, 0, 2, 5, 0], 1910), normal(3, 5, seed=1911))),
        Case("as many tokens as rows", (*_stored(3, 7, [4, 4, 4], 1920), normal(3, 7, seed=1921))),
        Case("a single token", (*_stored(5, 8, [1, 6, 2, 0, 3], 1930), normal(1, 8, seed=1931))),
        Case("nothing stored", (*_stored(3, 4, [0, 0, 0], 1940), normal(2, 4, seed=1941))),
        Case("quiet rows below one that is a billion times louder", _loud([2, 3, 1, 4], 1964)),
        Case("inputs that no row reads, infinity and NaN among them", _unread()),
    ],
)


def _stored(d_out: int, d_in: int, counts: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    return _Rows()(*_masked(normal(d_out, d_in, seed=seed), counts, seed + 1))


def _loud(counts: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A matrix whose first row gives outputs so large that in float32 nothing is left of the others beside them."""
    values, columns, pointers = _stored(len(counts), 6, counts, seed)
    return torch.cat([1e9 * values[: counts[0]], values[counts[0] :]]), columns, pointers, normal(3, 6, seed=seed + 9)


def _unread() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    keep = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 1, 0, 1]]).bool()
    X = normal(2, 5, seed=1951)
    X[0, 1], X[1, 3] = torch.inf, torch.nan
    return *_Rows()(normal(3, 5, seed=1950), keep), X


def _lowest_first(kept: list[int]) -> list[int]:
    return [place for place in range(4) if place not in kept]


@dataclass(frozen=True)
class _Pack:
    """2:4 into values and codes; the defaults are right. Every field is one decision.

    stored: which weights count as kept. groups: the columns of each group, from d_in. fill: the places that a group
    with fewer than two may take, in order, from the kept ones. order: of the two places. value: what is stored, from
    the row, its mask and the column. coded: the places that the code says. nibble: two places in four bits. code: what
    is written of a group, from its nibble and the kept places. byte: two of these in one.
    """

    stored: Callable[[Tensor, Tensor], Tensor] = lambda W, keep: keep
    groups: Callable[[int], list[list[int]]] = lambda d_in: [list(range(g, g + 4)) for g in range(0, d_in, 4)]
    fill: Callable[[list[int]], list[int]] = _lowest_first
    order: Callable[[list[int]], list[int]] = sorted
    value: Callable[[Tensor, Tensor, int], Tensor] = lambda w, keep, j: w[j] * keep[j]
    coded: Callable[[list[int]], list[int]] = lambda places: places
    nibble: Callable[[int, int], int] = lambda one, two: one | two << 2
    code: Callable[[int, list[int]], int] = lambda nibble, kept: nibble
    byte: Callable[[int, int], int] = lambda one, two: one | two << 4

    def __call__(self, W: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        stored, values, codes = self.stored(W, keep), [], []
        for w, k in zip(W, stored, strict=True):
            row, nibbles = [], []
            for columns in self.groups(W.shape[1]):
                kept = [place for place, j in enumerate(columns) if k[j]]
                places = self.order((kept + self.fill(kept))[:2])
                row += [self.value(w, k, columns[place]) for place in places]
                nibbles.append(self.code(self.nibble(*self.coded(places)), kept))
            values.append(torch.stack(row))
            codes.append([self.byte(*pair) for pair in zip(nibbles[::2], nibbles[1::2], strict=True)])
        return torch.stack(values), torch.tensor(codes, dtype=torch.uint8)


pack_2_4 = Exercise(
    name="pack_2_4",
    chapter=19,
    title="2:4 packed: two values of every four inputs, and their places in two bits each",
    reference=_Pack(),
    difficulty=4,
    wrong=mistakes(
        {
            "group order": _Pack(byte=lambda one, two: two | one << 4),
            "place order": _Pack(nibble=lambda one, two: two | one << 2),
            "all bits reversed": _Pack(nibble=lambda one, two: two | one << 2, byte=lambda one, two: two | one << 4),
            "strided groups": _Pack(groups=lambda d_in: [list(range(g, d_in, d_in // 4)) for g in range(d_in // 4)]),
            "dropped stored zeros": _Pack(stored=lambda W, keep: keep & (W != 0)),
            "pruned places": _Pack(coded=lambda places: [place for place in range(4) if place not in places]),
            "not ascending": _Pack(order=lambda places: places),
            "filled from the end": _Pack(fill=lambda kept: _lowest_first(kept)[::-1]),
            "filled with pruned weights": _Pack(value=lambda w, keep, j: w[j]),
            "mask bits": [
                _Pack(nibble=lambda one, two: 1 << one | 1 << two),
                _Pack(code=lambda nibble, kept: sum(1 << place for place in kept)),
                _Pack(code=lambda nibble, kept: sum(8 >> place for place in kept)),
                _Pack(
                    code=lambda nibble, kept: sum(8 >> place for place in kept), byte=lambda one, two: two | one << 4
                ),
            ],
        },
        """
        group order: Each byte holds the right two groups, in the wrong halves: the first group belongs into the low
          four bits.
        place order: In each group the two places have changed places: the first belongs into the low two bits.
        all bits reversed: You fill each byte from the high end down, the groups and the places in them. This format
          fills it from the low end up.
        strided groups: Your groups are made of inputs that are far apart. A group is four *neighbouring* inputs: look
          at the order of the sides in your reshape.
        dropped stored zeros: A kept weight that happens to be zero lost its place to a pruned one. The mask says which
          places are stored, not the value.
        pruned places: The values are right, and the codes say where the weights are that are *not* stored.
        not ascending: Where a group has fewer than two weights, the place that fills it up comes last. The places of a
          group ascend, whichever of them is the filler: hardware that reads them relies on it.
        filled from the end: Where a group has fewer than two weights, the highest free place was taken. Take the
          lowest, so that equal matrices have equal bytes.
        filled with pruned weights: A group with fewer than two weights was filled up with a weight that the mask
          prunes. The filler's value is zero; else the pruned weight is back when the matrix is unpacked.
        mask bits: The four bits of a group are its mask. That is the bitmask format, with as many bits; here the bits
          are two numbers of two bits.
        """,
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


EXERCISES = [to_csr, csr_matmul, pack_2_4]
