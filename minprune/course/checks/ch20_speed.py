"""The exercises of chapter 20: products of bitmasks and of 2:4, how sparse for a gain, which visits read memory."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import complement, given, inverted, scaled, then, transposed
from minprune.course.checks.values import normal


# by_bits(values, bits, x): a product with a bitmask, bit by bit; and by_table, a byte at a time
def _low_first(byte: int) -> list[int]:
    return [j for j in range(8) if byte >> j & 1]


@dataclass(frozen=True)
class _Visited:
    """W x out of values and bits, each bit that is set taking the next value; the defaults are right.

    columns: those of a byte whose bits are set, in the order of their values. column: of column j of byte k. place: the
    number of a value, from how many were taken before it in all and in its row. fetch: the input, from its column and
    how many were taken in the row. add: a product to what is there.
    """

    columns: Callable[[int], list[int]] = _low_first
    column: Callable[[int, int], int] = lambda k, j: 8 * k + j
    place: Callable[[int, int], int] = lambda taken, in_row: taken
    fetch: Callable[[int, int], int] = lambda column, in_row: column
    weigh: Callable[[float], float] = lambda value: value
    add: Callable[[float, float], float] = lambda total, product: total + product

    def __call__(self, values: np.ndarray, bits: np.ndarray, x: np.ndarray) -> np.ndarray:
        y, taken = np.zeros(len(bits)), 0
        for i, row in enumerate(bits.tolist()):
            in_row = 0
            for k, byte in enumerate(row):
                for j in self.columns(byte):
                    weight = self.weigh(values[self.place(taken, in_row)])
                    y[i] = self.add(y[i], weight * x[self.fetch(self.column(k, j), in_row)])
                    taken, in_row = taken + 1, in_row + 1
        return y


def _multiplied(values: np.ndarray, bits: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The dense matrix (d_out, d_in), and its product."""
    where = np.unpackbits(bits, axis=1, bitorder="little")[:, : len(x)] == 1
    W = np.zeros(where.shape, values.dtype)
    W[where] = values
    with np.errstate(invalid="ignore"):
        return (W * x).sum(1)


def _a_value_for_each_weight(values: np.ndarray, bits: np.ndarray, x: np.ndarray) -> np.ndarray:
    where = np.unpackbits(bits, axis=1, bitorder="little")[:, : len(x)] == 1
    rows = range(len(bits))
    return np.array([sum(values[i * len(x) + j] * x[j] for j in where[i].nonzero()[0]) for i in rows])


by_bits = Exercise(
    name="by_bits",
    chapter=20,
    title="the product of a matrix in a bitmask with a vector: every bit that is set takes the next value",
    reference=_Visited(),
    difficulty=2,
    wrong=mistakes(
        {
            "bits from the high end": [
                _Visited(columns=lambda byte: [7 - j for j in reversed(_low_first(byte))]),
                _Visited(column=lambda k, j: 8 * k + 7 - j),
            ],
            "values from the high end": _Visited(columns=lambda byte: _low_first(byte)[::-1]),
            "always the first byte": _Visited(column=lambda k, j: j),
            "bytes one column wide": _Visited(column=lambda k, j: k + j),
            "lowest bit only": _Visited(columns=lambda byte: _low_first(byte)[:1]),
            "values begin anew in each row": _Visited(place=lambda taken, in_row: in_row),
            "a value for each weight": _a_value_for_each_weight,
            "inputs in order": _Visited(fetch=lambda column, in_row: in_row),
            "values forgotten": _Visited(weigh=lambda value: 1.0),
            "last product only": _Visited(add=lambda total, product: product),
            "the dense matrix multiplied": _multiplied,
        },
        """
        bits from the high end: The columns of each byte were read from its high end. Here bit j of a byte, counted from
          the low end, is its column j.
        values from the high end: In each byte the values were dealt out from the highest bit down. They follow each
          other as their columns do.
        always the first byte: Every byte was taken for the first of its row. Which column is bit j of byte k?
        bytes one column wide: The bytes of a row begin one column apart. They are eight columns wide.
        lowest bit only: One value was taken from each byte. There may be eight: go on until no bit is left.
        values begin anew in each row: Each row began with the first value of all. The rows share one list of values:
          the counter goes on.
        a value for each weight: Your counter went on at bits that are not set, too. What is not stored has no value.
        inputs in order: The values of a row were multiplied with the first inputs there are. Their bits say which.
        values forgotten: The right inputs were added, but without their weights.
        last product only: Only the last product of each row is left. They are to be added.
        the dense matrix multiplied: Inputs that no bit asks for were multiplied, too, and zero times infinity is not
          zero. That is the next step; this one visits bits that are set, and nothing else.
        """,
    ),
    cases=lambda: [
        *_bitmasks(),
        Case("inputs that no weight reads, infinity and NaN among them", _unread_bits()),
    ],
)

_BIT = np.arange(256)[:, None] >> np.arange(8) & 1  # (256, 8): is column j set?


@dataclass(frozen=True)
class _Looked:
    """W x by a look-up of each byte; the defaults are right.

    bit: the table of columns that are set. first: what is subtracted from a running sum of these. before: how many
    values stand before each byte, from the counts (d_out, bytes). room: zeros behind the values. chosen: whether
    columns that are not set are zero. cut: whether there are no more columns than inputs.
    """

    bit: np.ndarray = field(default_factory=lambda: _BIT)
    first: int = 1
    before: Callable[[np.ndarray], np.ndarray] = lambda counts: counts.cumsum().reshape(counts.shape) - counts
    room: int = 1
    chosen: bool = True
    cut: bool = True

    def __call__(self, values: np.ndarray, bits: np.ndarray, x: np.ndarray) -> np.ndarray:
        place = np.where(self.bit, self.bit.cumsum(1) - self.first, 0)
        memory = np.append(values, np.zeros(self.room, values.dtype))
        W = memory[self.before(self.bit.sum(1)[bits])[..., None] + place[bits]]  # (d_out, bytes, 8)
        W = np.where(self.bit[bits] if self.chosen else True, W, 0).reshape(len(bits), -1)
        return (W[:, : len(x)] if self.cut else W) @ x


def _down_the_columns(counts: np.ndarray) -> np.ndarray:
    return counts.T.cumsum().reshape(counts.T.shape).T - counts


by_table = Exercise(
    name="by_table",
    chapter=20,
    title="the same product a byte at a time: a table says where the eight columns of a byte find their values",
    reference=_Looked(),
    difficulty=4,
    wrong=mistakes(
        {
            "the byte's own values counted": [
                _Looked(before=lambda counts: counts.cumsum().reshape(counts.shape), room=room) for room in (1, 8)
            ],
            "values begin anew in each row": _Looked(before=lambda counts: counts.cumsum(1) - counts),
            "bytes counted, not values": _Looked(
                before=lambda counts: np.arange(counts.size).reshape(counts.shape), room=64
            ),
            "every byte begins at the first value": _Looked(before=np.zeros_like),
            "down the columns": _Looked(before=_down_the_columns),
            "no place is 0": _Looked(first=0),
            "no column is empty": _Looked(chosen=False),
            "bits from the high end": _Looked(bit=_BIT[:, ::-1]),
            "past the end": _Looked(room=0),
            "more columns than inputs": _Looked(cut=False),
        },
        """
        the byte's own values counted: Your running sum includes the byte itself. Wanted is how many values stand
          *before* it, and before the first byte there are none.
        values begin anew in each row: Your running sum begins anew in each row. The rows share one list of values.
        bytes counted, not values: You counted the bytes before each byte. How many *values* do they have together?
        every byte begins at the first value: Every byte took the first values there are. A place in the table is
          counted from the byte's own first value.
        down the columns: Your running sum goes down the columns of bytes. The values follow each other row by row.
        no place is 0: In each byte the first column that is set took the second value. Places are counted from 0.
        no column is empty: Columns that are not set kept what they were given at their place in the table, the byte's
          first value. They are zero.
        bits from the high end: The columns of each byte were read from its high end. Here bit j of a byte, counted from
          the low end, is its column j.
        past the end: An IndexError on an empty byte behind the last value: its places are looked up as well, and there
          is nothing. Give the values a neighbour.
        more columns than inputs: Eight columns for each byte are more than there are inputs, if their number is no
          multiple of eight. Which of them are real?
        """,
    ),
    cases=lambda: _bitmasks(),
)


def _bits(W: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix as it is stored, and inputs."""
    dense = W.numpy()
    x = normal(W.shape[1], seed=seed).numpy()
    return dense[dense != 0], np.packbits(dense != 0, axis=1, bitorder="little"), x


def _random_bits(d_out: int, d_in: int, seed: int, empty: tuple[int, ...] = ()) -> tuple:
    """Half of the weights are zero, and some rows all over."""
    W = normal(d_out, d_in, seed=seed) * (normal(d_out, d_in, seed=seed + 1) > 0)
    W[list(empty)] = 0
    return _bits(W, seed + 2)


def _bitmasks() -> list[Case]:
    return [
        Case("one byte", _random_bits(1, 8, 2060)),
        Case("one row of several bytes", _random_bits(1, 40, 2070)),
        Case("several rows of one byte", _random_bits(5, 8, 2080)),
        Case("several rows", _random_bits(4, 24, 2090)),
        Case("a width that is no multiple of eight", _random_bits(3, 13, 2100)),
        Case("an empty row between others", _random_bits(3, 16, 2110, (1,))),
        Case("empty rows first and last", _random_bits(4, 16, 2120, (0, 3))),
        Case("nothing stored", _random_bits(2, 16, 2130, (0, 1))),
        Case("everything stored", _bits(normal(3, 24, seed=2140), 2141)),
    ]


def _unread_bits() -> tuple:
    W = normal(2, 12, seed=2150)
    W[:, [1, 6, 11]] = 0
    values, bits, x = _bits(W, 2151)
    x[[1, 6, 11]] = np.inf, np.nan, -np.inf
    return values, bits, x


# needed_sparsity(bits, head, gain): the share of zeros with which a model is read that much faster
def _mask_bit(b: Tensor) -> Tensor:
    return 1 / b


def _unless_all(s: Tensor) -> Tensor:
    """No share above 1: then there is none that is enough."""
    return torch.where(s > 1, torch.inf, s)


@dataclass(frozen=True)
class _Needed:
    """From head + (1 - head) (1 - s + mask) = 1 / gain; the defaults are right.

    mask: what the bits cost, as a share of a dense weight. left: of the dense bytes, from the gain and the head's
    share. limit: what becomes of a share that is impossible.
    """

    mask: Callable[[Tensor], Tensor] = _mask_bit
    left: Callable[[float, float], float] = lambda gain, head: (1 / gain - head) / (1 - head)
    limit: Callable[[Tensor], Tensor] = _unless_all

    def __call__(self, bits: Tensor, head: float, gain: float) -> Tensor:
        return self.limit(1 + self.mask(bits) - self.left(gain, head))


def _bit_for_stored(bits: Tensor, head: float, gain: float) -> Tensor:
    return _unless_all(1 - (1 / gain - head) / (1 - head) * bits / (bits + 1))


needed_sparsity = Exercise(
    name="needed_sparsity",
    chapter=20,
    title="the share of zeros with which a model in bitmasks is read that many times faster",
    reference=_Needed(),
    difficulty=2,
    wrong=mistakes(
        {
            "mask forgotten": _Needed(mask=torch.zeros_like),
            "head forgotten": _Needed(left=lambda gain, head: 1 / gain),
            "head subtracted once": _Needed(left=lambda gain, head: 1 / gain - head),
            "the head has a mask, too": lambda bits, head, gain: _unless_all((1 - 1 / gain + 1 / bits) / (1 - head)),
            "gain of the matrices alone": _Needed(left=lambda gain, head: 1 / (gain * (1 - head))),
            "share kept": complement(_Needed()),
            "a byte for each weight": _Needed(mask=lambda b: 8 / b),
            "a bit for each value": _bit_for_stored,
            "more than all": _Needed(limit=torch.clone),
            "all is enough": _Needed(limit=lambda s: s.clamp(max=1)),
            "percent": scaled(_Needed(), 100),
            "bits taken for bytes": given(_Needed(), bits=lambda bits: 8 * bits),
        },
        """
        mask forgotten: Too few zeros: this counts the values that are left. Something else is read for every weight,
          whether it was pruned or not.
        head forgotten: Too few zeros: this is right for a model all of whose bytes can be pruned. The head is read at
          every token, as it is.
        head subtracted once: The head's share was taken off the bytes that may be left. What is that a share *of*: of
          all bytes, or of those that can be pruned?
        the head has a mask, too: Too many zeros: the head is stored dense and needs no bits that say where its values
          are.
        gain of the matrices alone: The head's bytes were not taken off those that may be left, but the time was divided
          by the share of the matrices. Write down what is read in all, head and matrices, before you solve for s.
        share kept: This is the share that stays. Sparsity is the share that is zero.
        a byte for each weight: Too many zeros: the mask has one *bit* for each weight, not one byte.
        a bit for each value: The mask was counted for the values that are stored. A weight that is pruned has a bit,
          too: it says so.
        more than all: A share above 1 was returned. No matrix has more zeros than weights; what was to be returned
          then?
        all is enough: Where no share of zeros is enough, 1 was returned: but with all weights zero the gain is not
          reached.
        percent: This is in per cent. A share is between 0 and 1.
        bits taken for bytes: The number of bits was multiplied by eight. A weight of 16 bits has 16, and one more for
          its place.
        """,
    ),
    cases=lambda: [
        Case("break-even, with nothing but matrices", (torch.tensor([32.0, 16.0, 8.0, 4.0]), 0.0, 1.0)),
        Case("half the time, with nothing but matrices", (torch.tensor([32.0, 16.0, 8.0, 4.0]), 0.0, 2.0)),
        Case("a fifth in the head, one and a half times as fast", (torch.tensor([16.0, 8.0]), 0.2, 1.5)),
        Case("a fifth in the head, break-even", (torch.tensor([16.0, 8.0]), 0.2, 1.0)),
        Case("a gain that the head forbids", (torch.tensor([16.0, 32.0]), 0.5, 2.2)),
        Case("a gain that few bits forbid", (torch.tensor([32.0, 8.0, 4.0, 2.0]), 0.1, 3.0)),
        Case("a gain for which all must go", (torch.tensor([4.0, 8.0]), 0.0, 4.0)),
        Case("one width", (torch.tensor([16.0]), 0.05, 2.5)),
    ],
)


# two_of_four(values, codes, X): a product with 2:4 as it is stored
def _from_low(byte: int) -> list[int]:
    return [byte >> 2 * place & 3 for place in range(4)]


@dataclass(frozen=True)
class _Gathered:
    """X W^T out of values and places: each value's input is fetched; the defaults are right.

    places: the four places that a byte of codes holds. column: of the value number k of a row, from its place.
    fetch: the inputs of a row. weigh: what they are multiplied with. add: what becomes of the products of a row.
    """

    places: Callable[[int], list[int]] = _from_low
    column: Callable[[int, int], int] = lambda k, place: 4 * (k // 2) + place
    fetch: Callable[[Tensor, list[int]], Tensor] = lambda X, columns: X[:, columns]
    weigh: Callable[[Tensor], Tensor] = lambda values: values
    add: Callable[[Tensor], Tensor] = lambda products: products.sum(1)

    def __call__(self, values: Tensor, codes: Tensor, X: Tensor) -> Tensor:
        outputs = []
        for row, packed in zip(values, codes.tolist(), strict=True):
            places = [place for byte in packed for place in self.places(byte)]
            columns = [self.column(k, place) for k, place in enumerate(places)]
            outputs.append(self.add(self.fetch(X, columns) * self.weigh(row)))
        return torch.stack(outputs, dim=1)


def _unpacked(values: Tensor, codes: Tensor, X: Tensor) -> Tensor:
    W = values.new_zeros(len(values), X.shape[1])
    for row, (mine, packed) in enumerate(zip(values, codes.tolist(), strict=True)):
        for k, place in enumerate(place for byte in packed for place in _from_low(byte)):
            W[row, 4 * (k // 2) + place] = mine[k]
    return X @ W.T


two_of_four = Exercise(
    name="two_of_four",
    chapter=20,
    title="the product of inputs with a 2:4 matrix as it is stored: each value fetches its input",
    reference=_Gathered(),
    difficulty=3,
    wrong=mistakes(
        {
            "always the first group": _Gathered(column=lambda k, place: place),
            "a group for each value": _Gathered(column=lambda k, place: 4 * k + place),
            "a byte for a group": _Gathered(column=lambda k, place: 4 * (k // 4) + place),
            "groups two wide": _Gathered(column=lambda k, place: 2 * (k // 2) + place),
            "all bits reversed": _Gathered(places=lambda byte: _from_low(byte)[::-1]),
            "group order": _Gathered(places=lambda byte: _from_low(byte)[2:] + _from_low(byte)[:2]),
            "place order": _Gathered(places=lambda byte: [_from_low(byte)[i] for i in (1, 0, 3, 2)]),
            "bits of a mask": _Gathered(places=lambda byte: [i % 4 for i in range(8) if byte >> i & 1][:4]),
            "inputs in order": _Gathered(fetch=lambda X, columns: X[:, : len(columns)]),
            "values forgotten": _Gathered(weigh=torch.ones_like),
            "last value only": _Gathered(add=lambda products: products[:, -1]),
            "the dense matrix multiplied": _unpacked,
            "transposed result": transposed(_Gathered()),
        },
        """
        always the first group: Every value fetched an input of the first four. A place is counted from the beginning
          of its group: which group is it?
        a group for each value: Each value was given four inputs of its own. How many values does a group have?
        a byte for a group: All four places of a byte were taken for one group. A byte holds two groups of two values.
        groups two wide: The groups begin two inputs apart. They hold two values, but they are four inputs wide.
        all bits reversed: The places of each byte were read from the high bits down. The first is in the lowest two.
        group order: In each byte the second group was read first. The first group is in the lower half.
        place order: In each group the two places were exchanged. The first value's place is in the lower bits.
        bits of a mask: The bytes were read as masks, a bit for each input. They hold places, two bits for each value.
        inputs in order: Each row's values were multiplied with the first inputs there are. Their places say which.
        values forgotten: The right inputs were added, but without their weights.
        last value only: Only the last product of each row is left. They are to be added.
        the dense matrix multiplied: Inputs that no value reads were multiplied, too, and zero times infinity is not
          zero. The matrix was unpacked with all of its zeros: half of the work was not saved.
        transposed result: The result is (d_out, tokens). A layer's outputs are (tokens, d_out).
        """,
    ),
    cases=lambda: [
        Case("one row of two groups", (normal(1, 4, seed=2000), torch.tensor([[0b11_01_10_00]]), _inputs(1, 8, 2001))),
        Case("several rows", (*_packed(3, 16, 2010), _inputs(2, 16, 2011))),
        Case("as many tokens as rows", (*_packed(4, 8, 2020), _inputs(4, 8, 2021))),
        Case("one row of many groups", (*_packed(1, 40, 2030), _inputs(3, 40, 2031))),
        Case("a group that is filled up with a zero", (*_filled(), _inputs(2, 8, 2041))),
        Case("inputs that no value reads, infinity and NaN among them", _unread()),
    ],
)


def _inputs(tokens: int, d_in: int, seed: int) -> Tensor:
    return normal(tokens, d_in, seed=seed)


def _packed(d_out: int, d_in: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random values and places."""
    pairs = [one | two << 2 for one, two in itertools.combinations(range(4), 2)]
    chosen = torch.randint(6, (d_out, d_in // 8, 2), generator=torch.Generator().manual_seed(seed)).tolist()
    codes = [[pairs[one] | pairs[two] << 4 for one, two in row] for row in chosen]
    return normal(d_out, d_in // 2, seed=seed), torch.tensor(codes, dtype=torch.uint8)


def _filled() -> tuple[Tensor, Tensor]:
    return torch.tensor([[0.0, 2.0, 3.0, 0.0], [1.0, 0.0, 0.0, 0.0]]), torch.tensor([[0b11_01_11_00], [0b01_00_01_00]])


def _unread() -> tuple[Tensor, Tensor, Tensor]:
    X = normal(2, 8, seed=2051)
    X[0, 1], X[1, 7] = torch.inf, torch.nan
    return normal(2, 4, seed=2050), torch.tensor([[0b10_01_11_00], [0b10_00_11_10]]), X


# from_memory(sizes, visits, cache): which visits of a benchmark read the matrix from memory
@dataclass(frozen=True)
class _Cache:
    """Least recently used goes first; the defaults are right.

    since: of all visits so far and this one, those from the last visit of the same matrix on, or None if there is
    none. others: which of the matrices in between count. own: whether the matrix itself does. size: what a matrix
    takes. fits: whether so much fits. first: what is said of a first visit.
    """

    since: Callable[[list[int], int], list[int] | None] = lambda past, one: (
        past[len(past) - past[::-1].index(one) :] if one in past else None
    )
    others: Callable[[list[int]], Iterable[int]] = set
    own: bool = True
    size: Callable[[Tensor, int], float] = lambda sizes, one: sizes[one].item()
    fits: Callable[[float, int], bool] = lambda bytes_, cache: bytes_ <= cache
    first: bool = True

    def __call__(self, sizes: Tensor, visits: Tensor, cache: int) -> Tensor:
        past: list[int] = []
        read = []
        for one in visits.tolist():
            between = self.since(past, one)
            past.append(one)
            if between is None:
                read.append(self.first)
                continue
            needed = sum(self.size(sizes, other) for other in self.others(between))
            needed += self.size(sizes, one) if self.own else 0
            read.append(not self.fits(needed, cache))
        return torch.tensor(read)


def _first_in_first_out(sizes: Tensor, visits: Tensor, cache: int) -> Tensor:
    held: list[int] = []
    read = []
    for one in visits.tolist():
        read.append(one not in held)
        if one not in held:
            held.append(one)
        while sum(int(sizes[other]) for other in held) > cache:
            held.pop(0)
    return torch.tensor(read, dtype=torch.bool)


def _never_evicted(sizes: Tensor, visits: Tensor, cache: int) -> Tensor:
    held: list[int] = []
    read = []
    for one in visits.tolist():
        read.append(one not in held)
        if one not in held and sum(int(sizes[other]) for other in [*held, one]) <= cache:
            held.append(one)
    return torch.tensor(read, dtype=torch.bool)


from_memory = Exercise(
    name="from_memory",
    chapter=20,
    title="which visits of a benchmark read a matrix from memory, and which find it in the cache",
    reference=_Cache(),
    difficulty=3,
    wrong=mistakes(
        {
            "first visits forgotten": _Cache(first=False),
            "itself forgotten": _Cache(own=False),
            "only itself": _Cache(others=lambda between: []),
            "a matrix counted twice": _Cache(others=lambda between: between),
            "since the first visit": _Cache(
                since=lambda past, one: (
                    [other for other in past[past.index(one) :] if other != one] if one in past else None
                )
            ),
            "all that was ever visited": _Cache(
                since=lambda past, one: [other for other in past if other != one] if one in past else None
            ),
            "exactly full": _Cache(fits=lambda bytes_, cache: bytes_ < cache),
            "matrices of one size": _Cache(size=lambda sizes, one: int(sizes[0])),
            "the largest for all": _Cache(size=lambda sizes, one: int(sizes.max())),
            "a cache without end": _Cache(fits=lambda bytes_, cache: True),
            "first in, first out": _first_in_first_out,
            "nothing makes room": _never_evicted,
            "hits for misses": inverted(_Cache()),
            "the last visit only": _Cache(since=lambda past, one: [] if past[-1:] == [one] else None),
            "bytes read": lambda sizes, visits, cache: sizes[visits] * _Cache()(sizes, visits, cache),
            "a count": then(_Cache(), lambda read: read.sum()),
        },
        """
        first visits forgotten: A matrix that was never visited cannot be in the cache: its first visit reads it.
        itself forgotten: The matrix must fit into the cache together with those that were visited since: its own bytes
          were left out.
        only itself: The matrix was taken to be in the cache whenever it fits there alone. What was visited in between
          has used the same cache.
        a matrix counted twice: A matrix that was visited twice in between was counted twice. It takes its place once.
        since the first visit: Everything since the *first* visit of the matrix was counted. A visit makes a matrix the
          most recent one again.
        all that was ever visited: Everything that was ever visited was counted. What was last visited before this
          matrix has gone before it.
        exactly full: Matrices that fill the cache exactly do fit.
        matrices of one size: Every matrix was given the size of the first. That is what makes a sparse form look fair:
          it is smaller, and stays in the cache longer.
        the largest for all: Every matrix was given the largest size. A small one takes less room and stays longer.
        a cache without end: Whatever was visited once was found again. How much is there room for?
        first in, first out: The matrix that came in first was thrown out first, however recently it was used. Here the
          one that was not used for longest goes.
        nothing makes room: What came first stayed for ever, and nothing took its place. A new matrix pushes out the one
          that was not used for longest.
        hits for misses: True and False are exchanged: True is for a visit that reads from memory.
        the last visit only: A matrix was found only if it was visited just before. The cache holds more than one, if
          they fit.
        bytes read: These are the bytes that each visit reads. Asked for is whether it reads any: True or False.
        a count: This is how many visits read from memory. Asked for is which ones.
        """,
    ),
    cases=lambda: [
        Case("two matrices in turn that fit", (torch.tensor([4, 3]), torch.tensor([0, 1, 0, 1, 0]), 8)),
        Case("two matrices in turn that do not fit", (torch.tensor([5, 4]), torch.tensor([0, 1, 0, 1]), 8)),
        Case("matrices that fill the cache exactly", (torch.tensor([5, 3]), torch.tensor([0, 1, 0, 1, 1]), 8)),
        Case("one again and again", (torch.tensor([6, 9]), torch.tensor([0, 0, 0, 1, 1, 0]), 8)),
        Case("a small one among large ones", (torch.tensor([1, 4, 4]), torch.tensor([0, 1, 0, 2, 0, 1, 2, 0]), 8)),
        Case(
            "the same one several times in between",
            (torch.tensor([3, 2, 9]), torch.tensor([0, 1, 1, 1, 1, 0, 2, 0, 1, 0]), 8),
        ),
        Case("dense ones first, then sparse ones", (_halves(), torch.tensor([0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]), 10)),
        Case("dense and sparse in turn", (_halves(), torch.tensor([0, 3, 1, 4, 2, 5] * 2), 10)),
        Case("a long run", (torch.tensor([3, 1, 2, 5, 1]), _visits(40, 5, 2060), 7)),
        Case("another long run", (torch.tensor([2, 6, 1, 3, 4, 1]), _visits(50, 6, 2061), 9)),
    ],
)


def _halves() -> Tensor:
    """Three dense matrices and three of half the size."""
    return torch.tensor([4, 4, 4, 2, 2, 2])


def _visits(number: int, matrices: int, seed: int) -> Tensor:
    return torch.randint(matrices, (number,), generator=torch.Generator().manual_seed(seed))


EXERCISES = [by_bits, by_table, needed_sparsity, two_of_four, from_memory]
