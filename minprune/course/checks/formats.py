"""The exercises of chapter 19: a matrix into CSR, a product from CSR, and 2:4 into values and two-bit places."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.optimum import mask
from minprune.course.checks.values import normal

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


def _by_columns(W: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _Rows()(W.T, keep.T)


def _narrow(W: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values, columns, pointers = _Rows()(W, keep)
    return values, columns.to(torch.uint8), pointers.to(torch.uint8)


_POINTERS = "There are d_out + 1 pointers: where each row begins, and after them where the last one ends. "
_KEPT_ZERO = (
    "A weight that the mask keeps is stored even if it happens to be zero: the mask says where weights may be, and "
    "training may move this one tomorrow."
)

to_csr = Exercise(
    name="to_csr",
    chapter=18,
    title="the kept weights of a matrix as compressed sparse rows: values, columns, pointers",
    reference=_Rows(),
    difficulty=2,
    wrong=(
        Wrong(
            "row pointer off by one",
            _Rows(pointers=lambda counts: counts.cumsum(0)),
            _POINTERS + "Yours are only the ends, so that every row is read as the one after it.",
        ),
        Wrong(
            "row pointer off by one",
            _Rows(pointers=lambda counts: _from_zero(counts)[:-1]),
            _POINTERS + "Yours are only the beginnings: nobody knows how long the last row is.",
        ),
        Wrong(
            "row pointer off by one",
            _Rows(pointers=lambda counts: _from_zero(counts) + 1),
            _POINTERS + "Yours are counted from 1. Where does the first row begin in a list that is counted from 0?",
        ),
        Wrong(
            "counts instead of pointers",
            _Rows(pointers=lambda counts: counts),
            "These are the lengths of the rows. A pointer says where a row begins: how many were stored before it?",
        ),
        Wrong(
            "counts instead of pointers",
            _Rows(pointers=lambda counts: torch.cat([counts.new_zeros(1), counts])),
            "After the 0 these are the lengths of the rows. A pointer says how many were stored before: add them up.",
        ),
        Wrong(
            "empty rows skipped",
            _Rows(pointers=lambda counts: _from_zero(counts[counts > 0])),
            "A row without any weight has a pointer, too: it begins where it ends. Without it all rows below move up.",
        ),
        Wrong(
            "indices not sorted",
            _Rows(
                order=lambda keep: _places(keep.flip(1)) * torch.tensor([1, -1]) + torch.tensor([0, keep.shape[1] - 1])
            ),
            "Everything is there, but in each row from right to left. Readers expect ascending columns; some check.",
        ),
        Wrong("dropped stored zeros", _Rows(stored=lambda W, keep: keep & (W != 0)), _KEPT_ZERO),
        Wrong(
            "mask ignored",
            _Rows(stored=lambda W, keep: W != 0),
            "Every weight that is not zero was stored. The mask says which ones are to be.",
        ),
        Wrong(
            "mask inverted",
            _Rows(stored=lambda W, keep: ~keep),
            "The weights that were to be left out are the ones that were stored: True means *kept*.",
        ),
        Wrong(
            "indices in eight bits",
            _narrow,
            "Columns or pointers above 255 came back as something else: one byte holds no larger number. How wide is a "
            "layer, and how many weights does it store?",
        ),
        Wrong(
            "column by column",
            _by_columns,
            "This goes down the columns: it is CSC, or CSR of the transposed matrix.",
        ),
        Wrong(
            "row numbers for columns",
            _Rows(column=lambda i, j, d_in: i),
            "The number of the row stands beside each value. The pointers know it already; what do they not know?",
        ),
        Wrong(
            "places in the flat matrix",
            _Rows(column=lambda i, j, d_in: i * d_in + j),
            "The place in the whole matrix stands beside each value, which needs more bits than the place in its row.",
        ),
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


def _last_product(products: Tensor) -> Tensor:
    return products[:, -1] if products.shape[1] else products.sum(1)


def _running(values: Tensor, columns: Tensor, pointers: Tensor, X: Tensor) -> Tensor:
    sums = (X[:, columns] * values).cumsum(1)
    return torch.cat([X.new_zeros(len(X), 1), sums], dim=1)[:, pointers[1:]]


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


_SHORT = (
    "A weight of each row is left out: the values of row i are those from its pointer up to, but without, the next. "
)

csr_matmul = Exercise(
    name="csr_matmul",
    chapter=18,
    title="the product of inputs with a matrix in CSR, without unpacking it",
    reference=_Product(),
    difficulty=3,
    wrong=(
        Wrong("row pointer off by one", _Product(last=1), _SHORT + "You stop one too early."),
        Wrong("row pointer off by one", _Product(first=1), _SHORT + "You begin one too late."),
        Wrong(
            "inputs in order",
            _Product(inputs=lambda X, columns: X[:, : len(columns)]),
            "Each row's weights were multiplied with the first inputs there are. Which inputs do they belong to?",
        ),
        Wrong(
            "rows overwritten",
            _Product(add=_last_product),
            "Only the last product of each row is left. When an index occurs several times on the left of an "
            "assignment, the last one wins; they are to be added.",
        ),
        Wrong(
            "empty rows not empty",
            _reduceat,
            "A row without weights is zero. Here it got the first product of the row after it, which is what "
            "summing between beginnings does when two of them are equal.",
        ),
        Wrong(
            "running sums",
            _running,
            "Each output also contains those of all rows above it: a running sum was read at the end of the row, and "
            "what it had been at the beginning was not taken off.",
        ),
        Wrong(
            "values forgotten",
            _Product(values=torch.ones_like),
            "The right inputs were added, but without their weights.",
        ),
        Wrong(
            "the dense matrix multiplied",
            _dense,
            "Inputs that no row reads were multiplied, too, and zero times infinity is not zero. The matrix was "
            "unpacked "
            "with all of its zeros.",
        ),
        Wrong(
            "transposed result",
            lambda values, columns, pointers, X: _Product()(values, columns, pointers, X).T,
            "The result is (d_out, tokens). A layer's outputs are (tokens, d_out).",
        ),
    ),
    cases=lambda: [
        Case("rows of several lengths", (*_stored(4, 6, [2, 1, 3, 1], 1900), normal(2, 6, seed=1901))),
        Case("empty rows", (*_stored(6, 5, [0, 3, 0, 2, 5, 0], 1910), normal(3, 5, seed=1911))),
        Case("as many tokens as rows", (*_stored(3, 7, [4, 4, 4], 1920), normal(3, 7, seed=1921))),
        Case("a single token", (*_stored(5, 8, [1, 6, 2, 0, 3], 1930), normal(1, 8, seed=1931))),
        Case("nothing stored", (*_stored(3, 4, [0, 0, 0], 1940), normal(2, 4, seed=1941))),
        Case("inputs that no row reads, infinity and NaN among them", _unread()),
    ],
)


def _stored(d_out: int, d_in: int, counts: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    return _Rows()(*_masked(normal(d_out, d_in, seed=seed), counts, seed + 1))


def _unread() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    keep = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 1, 0, 1]]).bool()
    X = normal(2, 5, seed=1951)
    X[0, 1], X[1, 3] = torch.inf, torch.nan
    return *_Rows()(normal(3, 5, seed=1950), keep), X


EXERCISES = [to_csr, csr_matmul]
