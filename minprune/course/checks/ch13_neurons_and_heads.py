"""The exercises of chapter 13: what a set of inputs costs, which heads may go, and how grouped attention is cut."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import given
from minprune.course.checks.values import normal
from minprune.patterns import keep_largest

# set_cost(W, H, Q): the loss that removing the inputs Q raises if all others make up for them as well as they can


def _set_cost(W: Tensor, H: Tensor, Q: Tensor) -> Tensor:
    square = torch.linalg.inv(H)[Q][:, Q]  # ([H^-1]_QQ)
    return (torch.linalg.solve(square, W[:, Q].T) * W[:, Q].T).sum()


def _others(Q: Tensor, d: int) -> Tensor:
    return torch.tensor([j for j in range(d) if j not in Q])


def _hessian(d: int, seed: int) -> Tensor:
    X = normal(4 * d, d, seed=seed).double() @ normal(d, d, seed=seed + 1).double()
    return X.T @ X + 0.1 * torch.eye(d, dtype=torch.float64)


set_cost = Exercise(
    name="set_cost",
    chapter=13,
    title="what removing a set of inputs costs if the other inputs make up for it",
    reference=_set_cost,
    difficulty=3,
    wrong=mistakes(
        {
            "nobody helps": lambda W, H, Q: (W[:, Q] @ H[Q][:, Q] * W[:, Q]).sum(),
            "diagonal only": lambda W, H, Q: (W[:, Q].square().sum(0) * H.diagonal()[Q]).sum(),
            "single costs added up": lambda W, H, Q: (
                W[:, Q].square().sum(0) / torch.linalg.inv(H).diagonal()[Q]
            ).sum(),
            "the inverse itself": lambda W, H, Q: (W[:, Q] @ torch.linalg.inv(H)[Q][:, Q] * W[:, Q]).sum(),
            "inverse of a part": lambda W, H, Q: (W[:, Q] @ torch.linalg.inv(H[Q][:, Q]) * W[:, Q]).sum(),
            "what is kept is priced": lambda W, H, Q: _set_cost(W, H, _others(Q, len(H))),
            "half of it": lambda W, H, Q: _set_cost(W, H, Q) / 2,
        },
        """
        nobody helps: This is the cost if the other inputs stay as they are. Which matrix stands in its place
         when they help?
        diagonal only: Only the diagonal of H is in it: these are Wanda's squared scores, added up. Inputs move
         together, and those that stay can help.
        single costs added up: The costs of the inputs, each removed alone, were added up. Gone together they
         cannot help each other.
        the inverse itself: The part of the inverse was multiplied with. Its own inverse belongs there.
        inverse of a part: The part of H was inverted. Take the inverse of all of H first, then its part, then
         the inverse of that.
        what is kept is priced: This is what it would cost to remove all inputs that are *not* in Q.
        half of it: Half of it. The loss of this book, tr(D H D^T), has no factor 1/2.
        """,
    ),
    cases=lambda: [
        Case("one input of five", (normal(3, 5, seed=1300).double(), _hessian(5, 1301), torch.tensor([2]))),
        Case("two of five", (normal(3, 5, seed=1303).double(), _hessian(5, 1304), torch.tensor([0, 3]))),
        Case(
            "three of eight, not in order",
            (normal(4, 8, seed=1306).double(), _hessian(8, 1307), torch.tensor([7, 1, 4])),
        ),
        Case("all but one of four", (normal(2, 4, seed=1309).double(), _hessian(4, 1310), torch.tensor([0, 1, 3]))),
        Case("one output", (normal(1, 6, seed=1312).double(), _hessian(6, 1313), torch.tensor([1, 5]))),
    ],
)

# group_heads(scores, groups, gone): the keep mask of query heads, `gone` of each group removed


def _group_heads(scores: Tensor, groups: int, gone: int) -> Tensor:
    return keep_largest(scores.view(groups, -1), gone).view(-1)


group_heads = Exercise(
    name="group_heads",
    chapter=13,
    title="which query heads stay when the same number has to go from each group that shares keys and values",
    reference=_group_heads,
    difficulty=2,
    wrong=mistakes(
        {
            "one ranking for all": lambda scores, groups, gone: keep_largest(scores[None], gone * groups)[0],
            "heads dealt out in turn": lambda scores, groups, gone: keep_largest(
                scores.view(-1, groups).T, gone
            ).T.reshape(-1),
            "the best went": lambda scores, groups, gone: _group_heads(-scores, groups, gone),
            "inverted mask": lambda scores, groups, gone: ~_group_heads(scores, groups, gone),
            "last of the ties first": lambda scores, groups, gone: (
                keep_largest(scores.view(groups, -1).flip(1), gone).flip(1).reshape(-1)
            ),
            "so many in all": lambda scores, groups, gone: keep_largest(scores[None], gone)[0],
        },
        """
        one ranking for all: The heads were ranked together, so that some group may lose more than the others.
         No configuration can say that: rank inside each group.
        heads dealt out in turn: Head h was taken to belong to group h modulo their number. Heads of a group are
         neighbours.
        the best went: The heads with the highest scores went. A score says what a head is worth.
        inverted mask: The mask is the opposite of what was asked for: True means *kept*.
        last of the ties first: The count is right, but of equal scores the *lower* index is to go first.
        so many in all: That many heads went in all. That many are to go from *each* group.
        """,
    ),
    cases=lambda: [
        Case("nine heads in three groups, as in SmolLM2", (normal(9, seed=1320).abs(), 3, 1)),
        Case("two of three", (normal(9, seed=1321).abs(), 3, 2)),
        Case("one group much weaker than the other", (torch.tensor([0.1, 0.3, 0.2, 0.4, 7.0, 9.0, 8.0, 6.0]), 2, 2)),
        Case("equal scores", (torch.ones(8), 2, 2)),
        Case("a single group", (normal(6, seed=1322).abs(), 1, 2)),
        Case("scores below zero", (normal(8, seed=1323), 4, 1)),
    ],
)


# slim_attention(q, k, v, o, keep, groups): the four matrices of grouped attention with fewer heads
@dataclass(frozen=True)
class _Slimmed:
    """Right unless a field says otherwise. asked: which groups stay. rows: of a matrix, from a mask of heads.

    cut: a matrix whose rows are those of heads, o being turned for it; parts: the matrices that are cut.
    """

    asked: Callable[[Tensor, int], Tensor] = lambda keep, groups: keep.view(groups, -1).any(1)
    rows: Callable[[Tensor, int], Tensor] = lambda mask, size: mask.repeat_interleave(size)
    cut: Callable[[Tensor, Tensor], Tensor] = lambda W, rows: W[rows]
    parts: str = "qkvo"

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, o: Tensor, keep: Tensor, groups: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        size = len(q) // len(keep)
        heads, pairs = self.rows(keep, size), self.rows(self.asked(keep, groups), size)
        given = {"q": (q, heads), "k": (k, pairs), "v": (v, pairs), "o": (o.T, heads)}
        q, k, v, o = (self.cut(*part) if name in self.parts else part[0] for name, part in given.items())
        return q, k, v, o.T


def _rows_of_o(q: Tensor, k: Tensor, v: Tensor, o: Tensor, keep: Tensor, groups: int) -> tuple[Tensor, ...]:
    return *_Slimmed()(q, k, v, o, keep, groups)[:3], o[keep.repeat_interleave(len(q) // len(keep))]


def _keys_for_each_head(q: Tensor, k: Tensor, v: Tensor, o: Tensor, keep: Tensor, groups: int) -> tuple[Tensor, ...]:
    k, v = (W.unflatten(0, (groups, -1)).repeat_interleave(len(keep) // groups, 0).flatten(0, 1) for W in (k, v))
    return _Slimmed()(q, k, v, o, keep, len(keep))


slim_attention = Exercise(
    name="slim_attention",
    chapter=13,
    title="the four matrices of grouped attention without the heads that a mask does not keep, nor keys that none asks",
    reference=_Slimmed(),
    difficulty=3,
    wrong=mistakes(
        {
            "keys or values left whole": [_Slimmed(parts="qo"), _Slimmed(parts="qko"), _Slimmed(parts="qvo")],
            "a group that lost a head is gone": _Slimmed(asked=lambda keep, groups: keep.view(groups, -1).all(1)),
            "heads dealt out in turn": _Slimmed(asked=lambda keep, groups: keep.view(-1, groups).any(0)),
            "the first so many groups": _Slimmed(
                asked=lambda keep, groups: torch.arange(groups) < keep.view(groups, -1).any(1).sum()
            ),
            "keys for each query head": _keys_for_each_head,
            "rows of a head dealt out": _Slimmed(rows=lambda mask, size: mask.repeat(size)),
            "one row for each head": _Slimmed(rows=lambda mask, size: mask),
            "zeros instead of cuts": _Slimmed(cut=lambda W, rows: W * rows[:, None]),
            "inverted mask": given(_Slimmed(), keep=torch.logical_not),
            "rows of o cut": _rows_of_o,
            "o left whole": _Slimmed(parts="qkv"),
        },
        """
        keys or values left whole: Keys, values or both are all still there. What has no query head left is computed,
          cached and never read.
        a group that lost a head is gone: Keys and values of a group went as soon as one of its query heads did. The
          others of the group still ask them.
        heads dealt out in turn: Query head h was taken to ask group h modulo their number. The heads of a group are
          neighbours.
        the first so many groups: The right number of groups stayed, but the first ones. Every shape fits, and queries
          ask the keys of others.
        keys for each query head: You repeated keys and values, once for each query head. Heads of a group share one
          copy, and the smaller model's do, too.
        rows of a head dealt out: The mask was repeated as a whole. The rows of a head are neighbours: repeat each
          entry in its place.
        one row for each head: You indexed the rows with the mask of heads. A head has `head_dim` rows.
        zeros instead of cuts: What goes is zero and still there. The matrices are to be smaller.
        inverted mask: What the mask keeps is gone, and the rest is left: True means *kept*.
        rows of o cut: Rows of o were cut. Its shape is (d, heads times head_dim): a row is an output.
        o left whole: The output projection still reads all heads, so its product with what is left has no shape.
        """,
    ),
    cases=lambda: [
        Case("nine heads in three groups, one group gone", _attention(7, 3, 1330, "111 000 111")),
        Case("one head of each group gone", _attention(5, 2, 1340, "110 011 101")),
        Case("a group gone, and one head of each other", _attention(5, 2, 1350, "00 01 10 01")),
        Case("keys and values for each head", _attention(6, 2, 1360, "1 0 0 1")),
        Case("one group for all heads", _attention(3, 2, 1370, "1010")),
        Case("as many channels as all heads together", _attention(8, 2, 1380, "00 11")),
        Case("the last group alone", _attention(4, 3, 1390, "00 00 11")),
        Case("heads of one channel", _attention(4, 1, 1400, "01 10 00")),
    ],
)


def _attention(d: int, size: int, seed: int, kept: str) -> tuple:
    """Heads of that size on d channels. kept: 1 or 0 for each query head, in groups."""
    groups = kept.split()
    keep = torch.tensor([head == "1" for head in "".join(groups)])
    q, k, v = (normal(n * size, d, seed=seed + i) for i, n in enumerate((len(keep), len(groups), len(groups))))
    return q, k, v, normal(d, len(keep) * size, seed=seed + 3), keep, len(groups)


EXERCISES = [group_heads, slim_attention, set_cost]
