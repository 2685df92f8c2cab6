"""The exercises of chapter 14: which blocks are left, what influence does not see, a folded repair."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import given, negated
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
            "numbered anew": lambda removals, depth: torch.arange(depth - len(removals)),
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
        numbered anew: These are the numbers that the blocks have in the smaller model. Asked for is which blocks of
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

# silent_stream(h, length): the stream after a block that adds much and has no influence


_LOUD = torch.tensor([[50.0], [1], [1]])


def _silent_stream(h: Tensor, length: float) -> Tensor:
    return (1 + length) * h


def _along(h: Tensor, size: Tensor) -> Tensor:
    return h + size * h / h.norm(dim=-1, keepdim=True)


silent_stream = Exercise(
    name="silent_stream",
    chapter=14,
    title="the stream after a block that adds much to each token, and whose block influence is zero",
    reference=_silent_stream,
    difficulty=2,
    wrong=mistakes(
        {
            "nothing added": lambda h, length: h.clone(),
            "the addition alone": lambda h, length: length * h,
            "made shorter": given(_silent_stream, length=lambda length: -length),
            "turned round": negated(_silent_stream),
            "of one length": lambda h, length: _along(h, torch.tensor(length)),
            "of the mean length": lambda h, length: _along(h, length * h.norm(dim=-1).mean()),
            "as long as all tokens together": lambda h, length: _along(h, length * h.norm()),
            "squared lengths": lambda h, length: _along(h, length * h.square().sum(-1, keepdim=True)),
        },
        """
        nothing added: This block adds nothing. Of course it has no influence; the task is one that adds much.
        the addition alone: This is `length` times the stream, so what was *added* to the stream is shorter by the
          stream itself. Return what the next block reads: the stream and the addition.
        made shorter: What your block adds points against the stream. The stream was to become longer; made shorter it
          turns round as soon as length is above 1.
        turned round: The cosine of your stream with the one before is -1, so the influence is 2, the largest there is.
        of one length: Your addition is `length` long. It was to be `length` times as long as that token's stream.
        of the mean length: Each token got an addition of the same length. It was to be `length` times as long as the
          stream of that token itself.
        as long as all tokens together: The norm was taken over all tokens at once. Each token has its own.
        squared lengths: The addition is as long as the *square* of the norm says.
        """,
    ),
    cases=lambda: [
        Case("an addition of twice the length", (normal(5, 8, seed=1400), 2.0)),
        Case("a short addition", (normal(4, 6, seed=1401), 0.25)),
        Case("one token much louder than the others", (normal(3, 4, seed=1402) * _LOUD, 1.5)),
        Case("a single token", (torch.tensor([[3.0, -4.0]]), 3.0)),
        Case("as long as the stream", (normal(6, 5, seed=1403), 1.0)),
    ],
)


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


EXERCISES = [blocks_left, silent_stream, fold]
