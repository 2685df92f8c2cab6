"""The exercises of chapter 14: influence, which blocks are left, a block of a given influence, a folded repair."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import given
from minprune.course.checks.values import normal

# blocks_left(removals, depth): which blocks of the full model are left, if each removal counts in the model of its time


def _blocks_left(removals: Tensor, depth: int) -> Tensor:
    left = list(range(depth))
    for index in removals:
        del left[index]
    return torch.tensor(left)


def _left_of(gone: Callable[[list[int]], Sequence[int]]) -> Callable[[Tensor, int], Tensor]:
    """The blocks that are left if these have gone, as numbers of the full model."""
    return lambda removals, depth: torch.tensor([b for b in range(depth) if b not in gone(removals.tolist())])


def _as_many_back(removals: list[int]) -> list[int]:
    return [index + earlier for earlier, index in enumerate(removals)]


def _corrected_once(removals: list[int]) -> list[int]:
    """Each index moved by how many earlier ones, as they were given, are not behind it."""
    return [index + sum(other <= index for other in removals[:now]) for now, index in enumerate(removals)]


def _gone(removals: Tensor, depth: int) -> Tensor:
    left = _blocks_left(removals, depth).tolist()
    return torch.tensor([block for block in range(depth) if block not in left], dtype=torch.int64)


blocks_left = Exercise(
    name="blocks_left",
    chapter=14,
    title="which blocks of the full model are left after removals that each count in the model as it was then",
    reference=_blocks_left,
    difficulty=2,
    wrong=mistakes(
        {
            "numbers of the full model": _left_of(lambda removals: removals),
            "as many back as removals before": _left_of(_as_many_back),
            "corrected once": _left_of(_corrected_once),
            "those that are gone": _gone,
            "numbered again": lambda removals, depth: torch.arange(depth - len(removals)),
            "the last removal first": given(_blocks_left, removals=lambda removals: removals.flip(0)),
            "sorted first": given(_blocks_left, removals=lambda removals: removals.sort().values),
        },
        """
        numbers of the full model: Each index was taken as a number of the full model. After the first removal the
          blocks behind it have moved up by one, and a block can be named twice.
        as many back as removals before: Each index was moved back by the number of all removals before it. Only
          blocks *behind* a gap have moved up.
        corrected once: Each index was compared with the earlier ones as they were given. Those count in other models:
          once an index has moved, it may have met another gap.
        those that are gone: These are the blocks that went. Asked for are those that are left.
        numbered again: These are the numbers that the blocks have in the smaller model. Asked for is which blocks of
          the full model they were.
        the last removal first: The removals were made in the opposite order. Each counts in the model that the ones
          before it have left.
        sorted first: The removals were sorted. Their order says in which model each of them counts.
        """,
    ),
    cases=lambda: [
        Case("the same index three times", (torch.tensor([2, 2, 2]), 6)),
        Case("up and down", (torch.tensor([5, 0, 3]), 8)),
        Case("a block behind two gaps", (torch.tensor([3, 4, 3]), 9)),
        Case("thirty blocks, as in SmolLM2", (torch.tensor([14, 16, 13]), 30)),
        Case("the first block again and again", (torch.tensor([0, 0, 0]), 5)),
        Case("no removal", (torch.tensor([], dtype=torch.int64), 4)),
        Case("an index that meets a second gap", (torch.tensor([4, 3, 3, 2]), 10)),
    ],
)

# influences(streams): the block influence of each block, from the streams before each and after the last


def _each_block(influence: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Sequence[Tensor]], Tensor]:
    """Of each block, this function of the stream before and after it, (windows, length, d) each."""
    return lambda streams: torch.stack([influence(h, after) for h, after in pairwise(streams)])


def _cosine(h: Tensor, after: Tensor) -> Tensor:
    return cosine_similarity(h, after, dim=-1)  # (windows, length)


influences = Exercise(
    name="influences",
    chapter=14,
    title="the block influence of every block, from the streams between them",
    reference=_each_block(lambda h, after: 1 - _cosine(h, after).mean()),
    difficulty=2,
    wrong=mistakes(
        {
            "cosine of mean vectors": _each_block(lambda h, after: 1 - _cosine(h.mean((0, 1)), after.mean((0, 1)))),
            "tokens laid end to end": _each_block(lambda h, after: 1 - _cosine(h.flatten(), after.flatten())),
            "the cosine itself": _each_block(lambda h, after: _cosine(h, after).mean()),
            "cosine with the addition": _each_block(lambda h, after: 1 - _cosine(h, after - h).mean()),
            "against the first stream": lambda s: torch.stack([1 - _cosine(s[0], h).mean() for h in s[1:]]),
            "summed over tokens": _each_block(lambda h, after: (1 - _cosine(h, after)).sum()),
            "last token only": _each_block(lambda h, after: 1 - _cosine(h, after)[:, -1].mean()),
            "the angle": _each_block(lambda h, after: _cosine(h, after).clamp(-1, 1).arccos().mean() / math.pi),
            "sign lost": _each_block(lambda h, after: 1 - _cosine(h, after).abs().mean()),
            "along the tokens": _each_block(lambda h, after: 1 - cosine_similarity(h, after, dim=1).mean()),
        },
        """
        cosine of mean vectors: The vectors were averaged and then compared. Compare each token with itself, and average
          the cosines.
        tokens laid end to end: All tokens were compared as one vector, in which a loud token decides.
        the cosine itself: This is the mean cosine: a block that changes nothing would have influence 1.
        cosine with the addition: You compared the stream with what is *added* to it. Compare it with the stream after.
        against the first stream: Each stream was compared with the first, not with the one right before the block.
        summed over tokens: Twice the text would have twice the influence. Take the mean.
        last token only: Only the last token of each window counts, as in the angular distance. Here all do.
        the angle: This is an angle. Influence is 1 less a cosine.
        sign lost: A stream that is turned round has the cosine -1, not 1.
        along the tokens: The cosine runs along the tokens of a window. Which axis is the vector of one token?
        """,
    ),
    cases=lambda: [
        Case("three blocks", ([normal(2, 5, 6, seed=1460 + k) for k in range(4)],)),
        Case("one block", ([normal(3, 4, 5, seed=1470 + k) for k in range(2)],)),
        Case("one token much louder than the others", ([normal(1, 3, 4, seed=1480 + k) * _LOUD for k in range(3)],)),
        Case("a block that adds nothing", ([normal(2, 3, 4, seed=1490)] * 2 + [normal(2, 3, 4, seed=1491)],)),
        Case("a stream that is turned round", ([normal(1, 2, 3, seed=1495), -normal(1, 2, 3, seed=1495)],)),
    ],
)

_LOUD: Tensor = torch.tensor([[50.0], [1], [1]])

# made_to_order(h, u, length, influence): the stream behind a block whose addition and influence are as large as asked


@dataclass(frozen=True)
class _MadeToOrder:
    """Right unless a field says otherwise. longer: of (length, cos, sin), times the length of the stream before."""

    cosine: Callable[[float], float] = lambda influence: 1 - influence
    longer: Callable[[float, float, float], float] = lambda length, cos, sin: cos + math.sqrt(length**2 - sin**2)
    size: Callable[[Tensor], Tensor] = lambda h: h.norm(dim=-1, keepdim=True)
    side: int = 1

    def __call__(self, h: Tensor, u: Tensor, length: float, influence: float) -> Tensor:
        cos = self.cosine(influence)
        sin = math.sqrt(1 - cos**2)
        return self.longer(length, cos, sin) * (cos * h + self.side * sin * self.size(h) * u)


def _by_approximation(h: Tensor, u: Tensor, length: float, influence: float) -> Tensor:
    """With half the square of what is added across as the influence, which holds for small ones."""
    across = min(math.sqrt(2 * influence), length)
    return (1 + math.sqrt(length**2 - across**2)) * h + across * h.norm(dim=-1, keepdim=True) * u


made_to_order = Exercise(
    name="made_to_order",
    chapter=14,
    title="the stream behind a block with the length of addition and the block influence that are asked for",
    reference=_MadeToOrder(),
    difficulty=3,
    wrong=mistakes(
        {
            "the shorter stream": _MadeToOrder(longer=lambda length, cos, sin: cos - math.sqrt(length**2 - sin**2)),
            "the addition alone": lambda h, *rest: _MadeToOrder()(h, *rest) - h,
            "the approximation": _by_approximation,
            "influence as the cosine": _MadeToOrder(cosine=lambda influence: influence),
            "influence as an angle": _MadeToOrder(cosine=lambda influence: math.cos(math.pi * influence)),
            "all of it across": lambda h, u, length, influence: h + length * h.norm(dim=-1, keepdim=True) * u,
            "all of it along": lambda h, u, length, influence: (1 + length) * h,
            "length of the stream": _MadeToOrder(longer=lambda length, cos, sin: length),
            "lengths added up": _MadeToOrder(longer=lambda length, cos, sin: 1 + length),
            "u not scaled": _MadeToOrder(size=lambda h: torch.ones(len(h), 1)),
            "of the mean length": _MadeToOrder(size=lambda h: h.norm(dim=-1).mean()),
            "away from u": _MadeToOrder(side=-1),
        },
        """
        the shorter stream: Length and influence are right. Two blocks have both, and this is the one that leaves the
          shorter stream.
        the addition alone: This is what the block adds. Return what the next block reads: the stream and the addition.
        the approximation: The influence is half the square of what is added across for *small* ones only.
        influence as the cosine: The cosine of the two streams is `influence` itself. An influence of 0 would then be a
          right angle.
        influence as an angle: You took the influence for an angle, as the angular distance is. It is 1 less a cosine.
        all of it across: All of the addition is at right angles to the stream, whatever influence was asked for.
        all of it along: All of the addition is along the stream, so the influence is 0, whatever was asked for.
        length of the stream: The stream behind this block is `length` times as long as the one before. That was to be
          the length of what is *added*.
        lengths added up: The stream became 1 + `length` times as long: that is so only if the addition lies along it.
        u not scaled: u has the length 1, and the token's stream has another one. Which multiple of u keeps the angle?
        of the mean length: Each token has a stream of its own length. You used the mean of all.
        away from u: The stream was turned away from u. It was to be turned towards it.
        """,
    ),
    cases=lambda: [
        Case("an addition of twice the length", (*_stream(5, 8, 1400), 2.0, 0.4)),
        Case("an addition that is shorter than the stream", (*_stream(4, 6, 1401), 0.97, 0.3)),
        Case("no influence", (*_stream(4, 5, 1402), 1.5, 0.0)),
        Case("one token much louder than the others", (*_stream(3, 4, 1403, _LOUD), 1.5, 0.1)),
        Case("a stream that is turned by a right angle", (*_stream(6, 5, 1404), 1.25, 1.0)),
        Case("a single token", (*_stream(1, 7, 1405), 3.0, 0.05)),
    ],
)


def _stream(tokens: int, d: int, seed: int, loud: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """A stream, and a direction at right angles to each of its tokens."""
    h, u = normal(tokens, d, seed=seed) * loud, normal(tokens, d, seed=seed + 50)
    u = u - (u * h).sum(-1, keepdim=True) / h.square().sum(-1, keepdim=True) * h
    return h, u / u.norm(dim=-1, keepdim=True)


# fold(W, Z, R, damp): a correction of the MLP's output, folded into its last matrix
@dataclass(frozen=True)
class _Fold:
    """Right unless a field says otherwise. of: what the regression reads; target: what it is to give."""

    of: str = "outputs"
    twice: bool = False
    transposed: bool = False
    only: bool = False
    damping: str = "mean"

    def __call__(self, W: Tensor, Z: Tensor, R: Tensor, damp: float) -> Tensor:
        M = Z @ W.T  # (tokens, d)
        read = M if self.of == "outputs" else Z
        gram = read.T @ read
        strength: dict[str, float | Tensor] = {"mean": damp * gram.diagonal().mean(), "absolute": damp, "none": 0.0}
        strength |= {"trace": damp * gram.trace(), "each": damp * gram.diagonal()}
        ridge = torch.eye(len(gram), dtype=gram.dtype) * strength[self.damping]
        T = torch.linalg.solve(gram + ridge, read.T @ (R + M if self.twice else R))  # (read, d)
        if self.of != "outputs":
            return W + T.T
        correction = (T if self.transposed else T.T) @ W
        return correction if self.only else W + correction


fold = Exercise(
    name="fold",
    chapter=14,
    title="the last matrix of an MLP with a linear correction of its output folded into it",
    reference=_Fold(),
    difficulty=3,
    wrong=mistakes(
        {
            "transposed": _Fold(transposed=True),
            "the correction alone": _Fold(only=True),
            "the output counted twice": _Fold(twice=True),
            "regression on the neurons": _Fold(of="neurons"),
            "no damping": _Fold(damping="none"),
            "absolute damping": _Fold(damping="absolute"),
            "damping by the trace": _Fold(damping="trace"),
            "damping of each by itself": _Fold(damping="each"),
            "downhill": given(_Fold(), R=torch.neg),
        },
        """
        transposed: T acts on rows of M from the right, W on columns of Z from the left. Which side is T on once it is
          folded into W?
        the correction alone: This matrix gives what is missing and no longer what the MLP gave before.
        the output counted twice: The regression was towards R + M, and W was added to what it found: the MLP's output
          is in there twice.
        regression on the neurons: You let W itself learn from its inputs Z. That is the stronger repair of the text
          above; here only its output M may be mapped.
        no damping: Nothing was added to the diagonal.
        absolute damping: `damp` itself was added to the diagonal. It is a share of the diagonal's mean.
        damping by the trace: The trace is the *sum* of the diagonal. The share is one of its mean.
        damping of each by itself: Each entry of the diagonal grew by its own share. One number, the same for all, is
          added.
        downhill: The sign of the correction: R is what the stream *lacks*.
        """,
    ),
    cases=lambda: [
        Case("four channels, seven neurons", (*_to_fold(4, 7, 40, 1410), 0.1)),
        Case("strong damping", (*_to_fold(3, 5, 30, 1420), 2.0)),
        Case("as many neurons as channels", (*_to_fold(4, 4, 25, 1430), 0.3)),
        Case("nothing is missing", (*_to_fold(3, 6, 20, 1440)[:2], torch.zeros(20, 3, dtype=torch.float64), 0.1)),
        Case("fewer tokens than channels", (*_to_fold(6, 8, 4, 1450), 0.5)),
    ],
)


def _to_fold(d: int, width: int, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    W, Z, R = normal(d, width, seed=seed), normal(tokens, width, seed=seed + 1), normal(tokens, d, seed=seed + 2)
    return W.double(), Z.double(), R.double()


EXERCISES = [influences, blocks_left, made_to_order, fold]
