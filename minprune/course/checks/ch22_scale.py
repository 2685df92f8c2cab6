"""The exercises of chapter 22: operations, who solves what, what travels for a block, what grows with what."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes


# operations(groups, tokens): those of forward passes, Gram matrices and solves for one block
@dataclass(frozen=True)
class _Operations:
    """Right unless a field says otherwise. for_each: a Gram matrix for each matrix; once: one solve for each group."""

    forward: Callable[[int, int], float] = lambda o, i: 2.0 * o * i
    gram: Callable[[int], float] = lambda i: float(i**2)
    solve: Callable[[int, int], float] = lambda o, i: 2 / 3 * i**3 + o * i**2
    for_each: bool = False
    once: bool = False
    side: int = 1
    again: bool = False  # the solve, for each token

    def __call__(self, groups: Sequence[Tensor], tokens: int) -> Tensor:
        forward = gram = solve = 0.0
        for shapes in (group.tolist() for group in groups):
            gram += sum(self.gram(shape[self.side]) for shape in (shapes if self.for_each else shapes[:1])) * tokens
            forward += sum(self.forward(o, i) for o, i in shapes) * tokens
            solve += sum(self.solve(o, i) for o, i in (shapes[:1] if self.once else shapes))
        return _numbers(forward, gram, solve * (tokens if self.again else 1))


operations = Exercise(
    name="operations",
    chapter=22,
    title="the operations of forward passes, Gram matrices and solves for one block",
    reference=_Operations(),
    difficulty=2,
    wrong=mistakes(
        {
            "a Gram matrix for each matrix": _Operations(for_each=True),
            "both halves": _Operations(gram=lambda i: 2.0 * i**2),
            "products alone": _Operations(forward=lambda o, i: float(o * i)),
            "outputs for inputs": [
                _Operations(side=0),
                lambda groups, tokens: _Operations()([group.flip(1) for group in groups], tokens),
            ],
            "one solve for a group": _Operations(once=True),
            "solves grow with tokens": _Operations(again=True),
            "one token": lambda groups, tokens: _Operations()(groups, 1),
            "the inverse forgotten": _Operations(solve=lambda o, i: 1 / 3 * i**3 + o * i**2),
            "the updates forgotten": _Operations(solve=lambda o, i: 2 / 3 * i**3),
            "updates of all columns": _Operations(solve=lambda o, i: 2 / 3 * i**3 + 2 * o * i**2),
        },
        """
        a Gram matrix for each matrix: Matrices that read the same tensor share one Gram matrix.
        both halves: It is symmetric: one half of the Gram matrix is added up.
        products alone: Each of the o i products is added to a sum, and an addition is an operation, too.
        outputs for inputs: Sides are exchanged. A row is (o, i), and the Gram matrix is that of the *inputs*.
        one solve for a group: A group shares its Gram matrix. Each of its matrices is solved for.
        solves grow with tokens: The solve sees the Gram matrix alone, whatever the number of tokens.
        one token: Every token goes through each matrix, and adds to each Gram matrix.
        the inverse forgotten: A Cholesky factor is a third of i^3, and so is its inverse.
        the updates forgotten: Each column that is pruned changes those on its right, in each of the o rows.
        updates of all columns: A column changes only those on its right, half of them on average.
        """,
    ),
    cases=lambda: [
        Case("one group of one matrix", ([torch.tensor([[3, 5]])], 7)),
        Case("a group of three unequal matrices", ([torch.tensor([[8, 6], [2, 6], [3, 6]])], 10)),
        Case("a small Llama's block", (_llama(64, 160, 2), 512)),
        Case("no tokens yet", (_llama(8, 20, 1), 0)),
        Case("a block of Llama-2-7B", (_llama(4096, 11008, 1), 262144)),
    ],
)


# pack(costs, ranks): the owner of each job
@dataclass(frozen=True)
class _Pack:
    """Jobs, the longest first, each to the rank that has least to do; right unless a field says otherwise.

    order: in which jobs are given out. late: of equal ranks the last.
    """

    order: Callable[[float], float] | None = lambda cost: -cost
    late: bool = False
    in_turn: bool = False
    as_given: bool = True

    def __call__(self, costs: Tensor, ranks: int) -> Tensor:
        seconds = costs.tolist()
        places = list(range(len(seconds)))
        if self.order is not None:
            places.sort(key=lambda place: self.order(seconds[place]))  # type: ignore[misc]
        loads, owners, given = [0.0] * ranks, [0] * len(seconds), []
        for turn, place in enumerate(places):
            least = min(loads)
            free = [rank for rank in range(ranks) if loads[rank] == least]
            owner = turn % ranks if self.in_turn else free[-1 if self.late else 0]
            loads[owner] += seconds[place]
            owners[place] = owner
            given.append(owner)
        return torch.tensor(owners if self.as_given else given)


def _loads(costs: Tensor, ranks: int) -> Tensor:
    owners = _Pack()(costs, ranks)
    return torch.stack([costs[owners == rank].sum() for rank in range(ranks)])


def _in_stretches(costs: Tensor, ranks: int) -> Tensor:
    return torch.arange(len(costs)) * ranks // len(costs)


def _numbers(*seconds: float) -> Tensor:
    return torch.tensor(seconds, dtype=torch.float64)


pack = Exercise(
    name="pack",
    chapter=22,
    title="which rank solves which matrix, so that the busiest has little to do",
    reference=_Pack(),
    difficulty=2,
    wrong=mistakes(
        {
            "in the given order": _Pack(order=None),
            "cheapest first": _Pack(order=float),
            "dealt out in turn": [_Pack(in_turn=True), _Pack(in_turn=True, order=None)],
            "owners in another order": _Pack(as_given=False),
            "last of equal ranks": _Pack(late=True),
            "loads instead of owners": _loads,
            "neighbours together": _in_stretches,
        },
        """
        in the given order: The jobs were given out in the order in which they came. A long one at the end then
          falls on a rank that is busy already: begin with the longest.
        cheapest first: The cheapest jobs went first, and the longest came last, when nobody can make up for it.
        dealt out in turn: The jobs were dealt out in turn, or to the rank with the fewest of them. One long job is
          more than three short ones: the next goes to the rank that has *least to do*.
        owners in another order: The owners are right, but they stand in the order in which the jobs were given out,
          not in that of the costs.
        last of equal ranks: Of ranks with equal loads the *first* is to get the job, so that all ranks agree.
        loads instead of owners: These are the loads of the ranks. Asked for is the owner of each job.
        neighbours together: Each rank got a stretch of neighbouring jobs, whatever they cost.
        """,
    ),
    cases=lambda: [
        Case("the matrices of a block of a Llama on two ranks", (_numbers(8, 8, 8, 8, 20, 20, 46), 2)),
        Case("a long job at the end", (_numbers(3, 1, 2, 2, 9), 2)),
        Case("three ranks", (_numbers(5, 4, 3, 3, 3), 3)),
        Case("equal jobs", (_numbers(2, 2, 2, 2, 2), 2)),
        Case("more ranks than jobs", (_numbers(1, 6), 4)),
        Case("one rank", (_numbers(4, 1, 3), 1)),
        Case("a job that is worth all the others", (_numbers(1, 10, 1, 2, 3), 2)),
    ],
)


# block_traffic(groups, itemsize): the bytes of sums and of weights that travel for one block
@dataclass(frozen=True)
class _Traffic:
    """Bytes of sums and of weights; right unless a field says otherwise."""

    numbers: Callable[[int], int] = lambda d: d * (d + 1) // 2 + 2 * d
    for_each: bool = False
    side: int = 1
    float_size: Callable[[int], int] = lambda itemsize: 4
    weight_size: Callable[[int], int] = int

    def __call__(self, groups: Sequence[Tensor], itemsize: int) -> Tensor:
        every = [shapes.tolist() for shapes in groups]
        read = [shapes if self.for_each else shapes[:1] for shapes in every]
        sums = sum(self.numbers(shape[self.side]) for shapes in read for shape in shapes)
        weights = sum(o * i for shapes in every for o, i in shapes)
        return torch.tensor([sums * self.float_size(itemsize), weights * self.weight_size(itemsize)])


block_traffic = Exercise(
    name="block_traffic",
    chapter=22,
    title="the bytes of sums and of weights that travel between ranks for one block",
    reference=_Traffic(),
    difficulty=3,
    wrong=mistakes(
        {
            "a Gram matrix for each matrix": _Traffic(for_each=True),
            "both halves": _Traffic(numbers=lambda d: d * d + 2 * d),
            "the diagonal or a sum forgotten": _Traffic(numbers=lambda d: d * (d - 1) // 2 + 2 * d),
            "the sums forgotten": _Traffic(numbers=lambda d: d * (d + 1) // 2),
            "outputs for inputs": _Traffic(side=0),
            "sums in the type of the weights": _Traffic(float_size=int),
            "weights in float32": _Traffic(weight_size=lambda itemsize: 4),
            "numbers instead of bytes": _Traffic(float_size=lambda itemsize: 1, weight_size=lambda itemsize: 1),
        },
        """
        a Gram matrix for each matrix: Every matrix sent a Gram matrix of its own. Those of a group read one tensor
          and share one.
        both halves: The whole square was sent. It is symmetric: one half and the diagonal say it all.
        the diagonal or a sum forgotten: d numbers are missing for each group: the half that travels has its diagonal,
          and two sums go with it.
        the sums forgotten: Two sums of d numbers travel, too: that of the inputs and that of their squares.
        outputs for inputs: The Gram matrix was taken as wide as the outputs. It is (d_in, d_in).
        sums in the type of the weights: The sums were counted in the type of the weights. They are float32
          whatever that is.
        weights in float32: The weights travel in their own type, of `itemsize` bytes.
        numbers instead of bytes: These are numbers, not bytes.
        """,
    ),
    cases=lambda: [
        Case("a small Llama's block in bfloat16", (_llama(64, 160, 2), 2)),
        Case("the same in float32", (_llama(64, 160, 2), 4)),
        Case("one group of one matrix", ([torch.tensor([[3, 5]])], 2)),
        Case("a group of three unequal matrices", ([torch.tensor([[8, 6], [2, 6], [2, 6]])], 2)),
        Case("a block of Llama-2-7B", (_llama(4096, 11008, 1), 2)),
    ],
)


# enough_tokens(groups, itemsize): from how many tokens on sums are fewer bytes than the inputs themselves
@dataclass(frozen=True)
class _Enough:
    """Right unless a field says otherwise. sums: bytes of a group's sums; inputs: of one token's inputs of a layer."""

    sums: Callable[[int, int], int] = lambda d, itemsize: 4 * (d * (d + 1) // 2 + 2 * d)
    inputs: Callable[[int, int], int] = lambda d, itemsize: d * itemsize
    sent: str = "groups"  # the sums of; else "matrices"
    read: str = "groups"
    side: int = 1
    weights: bool = False
    found: Callable[[int, int], float] = lambda sums, inputs: sums // inputs + 1

    def __call__(self, groups: Sequence[Tensor], itemsize: int) -> Tensor:
        every = {"matrices": [shape for group in groups for shape in group.tolist()]}
        every["groups"] = [group[0].tolist() for group in groups]
        sums = sum(self.sums(shape[self.side], itemsize) for shape in every[self.sent])
        sums += itemsize * sum(o * i for o, i in every["matrices"]) if self.weights else 0
        return torch.tensor(
            self.found(sums, sum(self.inputs(shape[self.side], itemsize) for shape in every[self.read]))
        )


def _widest(groups: Sequence[Tensor], itemsize: int) -> Tensor:
    return torch.stack([_Enough()([group], itemsize) for group in groups]).max()


enough_tokens = Exercise(
    name="enough_tokens",
    chapter=22,
    title="the least number of tokens whose inputs take more bytes than their sums, for one block",
    reference=_Enough(),
    difficulty=3,
    wrong=mistakes(
        {
            "sums for each matrix": _Enough(sent="matrices"),
            "inputs for each matrix": _Enough(read="matrices"),
            "both for each matrix": _Enough(sent="matrices", read="matrices"),
            "both halves": _Enough(sums=lambda d, b: 4 * (d * d + 2 * d)),
            "the diagonal forgotten": _Enough(sums=lambda d, b: 4 * (d * (d - 1) // 2 + 2 * d)),
            "the two sums forgotten": _Enough(sums=lambda d, b: 4 * d * (d + 1) // 2),
            "outputs for inputs": _Enough(side=0),
            "one type for both": _Enough(inputs=lambda d, b: 4 * d),
            "weights counted": _Enough(weights=True),
            "rounded down": _Enough(found=lambda sums, inputs: sums // inputs),
            "as many bytes are enough": _Enough(found=lambda sums, inputs: -(-sums // inputs)),
            "group by group": _widest,
        },
        """
        sums for each matrix: Every matrix sent sums of its own. Those of a group read one tensor.
        inputs for each matrix: The inputs were sent once for each matrix. Those of a group read one tensor.
        both for each matrix: Groups of several matrices count several times. They read one tensor: it is sent once, and
          so are its sums.
        both halves: The whole square of the Gram matrix was counted. One half and the diagonal say it all.
        the diagonal forgotten: The half that is sent has its diagonal.
        the two sums forgotten: Two sums of i numbers are sent with each Gram matrix.
        outputs for inputs: The first number of a row is the outputs. Inputs and their Gram matrix have the width of the
          second.
        one type for both: Your answer does not depend on `itemsize`. Inputs are sent in that many bytes a number, sums
          in float32.
        weights counted: Pruned weights travel either way, so they decide nothing.
        rounded down: With so few tokens the inputs still take fewer bytes, or as many.
        as many bytes are enough: Where both take the same, the sums are not *fewer* bytes yet.
        group by group: That is when the last of the groups pays. Asked for is the block as a whole.
        """,
    ),
    cases=lambda: [
        Case("a small Llama's block in bfloat16", (_llama(64, 160, 2), 2)),
        Case("the same in float32", (_llama(64, 160, 2), 4)),
        Case("one group of one matrix", ([torch.tensor([[3, 6]])], 2)),
        Case("a group of three unequal matrices, in float32", ([torch.tensor([[8, 6], [2, 6], [2, 6]])], 4)),
        Case("a block of Llama-2-7B", (_llama(4096, 11008, 1), 2)),
    ],
)


def _llama(d: int, inner: int, shared: int) -> list[Tensor]:
    """The groups of a Llama's block; `shared` query heads have one key and value head."""
    groups = [[d, d], [d // shared, d], [d // shared, d]], [[d, d]], [[inner, d], [inner, d]], [[d, inner]]
    return [torch.tensor(shapes) for shapes in groups]


# growth(factors): by which factors five quantities grow
@dataclass(frozen=True)
class _Growth:
    """Exponents of (width, depth, tokens) for products, sums, solves, the largest Gram matrix, and the disk."""

    forward: tuple[int, int, int] = (2, 1, 1)
    sums: tuple[int, int, int] = (2, 1, 1)
    solve: tuple[int, int, int] = (3, 1, 0)
    gram: tuple[int, int, int] = (2, 0, 0)
    disk: tuple[int, int, int] = (2, 1, 0)

    def __call__(self, factors: Tensor) -> Tensor:
        width, depth, tokens = factors.tolist()
        powers = (self.forward, self.sums, self.solve, self.gram, self.disk)
        return _numbers(*(width**w * depth**d * tokens**t for w, d, t in powers))


growth = Exercise(
    name="growth",
    chapter=22,
    title="by which factors the parts of a run grow with width, depth and tokens",
    reference=_Growth(),
    difficulty=2,
    wrong=mistakes(
        {
            "solves grow with tokens": _Growth(solve=(3, 1, 1)),
            "solves grow with the square": _Growth(solve=(2, 1, 0)),
            "forward grows with the cube": _Growth(forward=(3, 1, 1)),
            "sums grow with the cube": _Growth(sums=(3, 1, 1)),
            "memory grows with depth": _Growth(gram=(2, 1, 0)),
            "the Gram matrix grows with tokens": _Growth(gram=(2, 0, 1)),
            "inputs in memory": _Growth(gram=(1, 0, 1)),
            "one block on the disk": _Growth(disk=(2, 0, 0)),
            "the disk grows with tokens": _Growth(disk=(2, 1, 1)),
            "linear in width": _Growth((1, 1, 1), (1, 1, 1), (1, 1, 0), (1, 0, 0), (1, 1, 0)),
        },
        """
        solves grow with tokens: The solve sees the Gram matrix alone, which is as large for a million tokens as for
          one.
        solves grow with the square: A factorisation takes d^3 operations, and so do the d rows of updates of d^2
          each.
        forward grows with the cube: A token costs as many operations as there are weights, and those are d^2.
        sums grow with the cube: A token adds an outer product of d^2 numbers to the Gram matrix.
        memory grows with depth: Blocks are in memory one after the other, and their Gram matrices, too.
        the Gram matrix grows with tokens: It is a sum over tokens: more of them make its numbers larger, not more.
        inputs in memory: These are the inputs, which nobody keeps. Their Gram matrix has i^2 numbers.
        one block on the disk: In memory there is one block at a time. On the disk, in the end, are all of them.
        the disk grows with tokens: Calibration tokens are not in the output.
        linear in width: A matrix has two sides, and both grow.
        """,
    ),
    cases=lambda: [
        Case("twice the width", (_numbers(2, 1, 1),)),
        Case("twice the depth", (_numbers(1, 2, 1),)),
        Case("twice the tokens", (_numbers(1, 1, 2),)),
        Case("from 7 B to 70 B: twice the width, 2.5 times the depth", (_numbers(2, 2.5, 1),)),
        Case("all at once", (_numbers(3, 2, 4),)),
        Case("half the tokens", (_numbers(1, 1, 0.5),)),
    ],
)

EXERCISES = [operations, block_traffic, pack, growth, enough_tokens]
