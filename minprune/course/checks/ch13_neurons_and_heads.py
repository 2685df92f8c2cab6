"""The exercises of chapter 13: what a set of inputs costs, which heads may go, and how an MLP is cut."""

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.values import normal
from minprune.patterns import keep_largest

# set_cost(W, H, Q): the loss that removing the inputs Q raises if all others make up for them as well as they can


def _set_cost(W: Tensor, H: Tensor, Q: Tensor) -> Tensor:
    square = torch.linalg.inv(H)[Q][:, Q]  # ([H^-1]_QQ)
    return (torch.linalg.solve(square, W[:, Q].T) * W[:, Q].T).sum()


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
            "single costs added up": lambda W, H, Q: (
                W[:, Q].square().sum(0) / torch.linalg.inv(H).diagonal()[Q]
            ).sum(),
            "the inverse itself": lambda W, H, Q: (W[:, Q] @ torch.linalg.inv(H)[Q][:, Q] * W[:, Q]).sum(),
            "inverse of a part": lambda W, H, Q: (W[:, Q] @ torch.linalg.inv(H[Q][:, Q]) * W[:, Q]).sum(),
            "half of it": lambda W, H, Q: _set_cost(W, H, Q) / 2,
        },
        """
        nobody helps: This is the cost if the other inputs stay as they are. Which matrix stands in its place
         when they help?
        single costs added up: The costs of the inputs, each removed alone, were added up. Gone together they
         cannot help each other.
        the inverse itself: The part of the inverse was multiplied with. Its own inverse belongs there.
        inverse of a part: The part of H was inverted. Take the inverse of all of H first, then its part, then
         the inverse of that.
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

# slim_mlp(gate, up, down, keep): the three matrices of a gated MLP with fewer neurons


def _slim_mlp(gate: Tensor, up: Tensor, down: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return gate[keep], up[keep], down[:, keep]


def _first_rows(W: Tensor, keep: Tensor) -> Tensor:
    return W[: int(keep.sum())]


slim_mlp = Exercise(
    name="slim_mlp",
    chapter=13,
    title="gate, up and down of an MLP without the neurons that a mask does not keep",
    reference=_slim_mlp,
    difficulty=2,
    wrong=mistakes(
        {
            "zeros instead of cuts": lambda gate, up, down, keep: (
                gate * keep[:, None],
                up * keep[:, None],
                down * keep,
            ),
            "inverted mask": lambda gate, up, down, keep: _slim_mlp(gate, up, down, ~keep),
            "the gate of other neurons": lambda gate, up, down, keep: (
                _first_rows(gate, keep),
                up[keep],
                down[:, keep],
            ),
            "the first so many": lambda gate, up, down, keep: (
                _first_rows(gate, keep),
                _first_rows(up, keep),
                _first_rows(down.T, keep).T,
            ),
            "up and gate exchanged": lambda gate, up, down, keep: _slim_mlp(up, gate, down, keep),
            "columns of gate or up cut": [
                lambda gate, up, down, keep: (gate[:, keep], up[keep], down[:, keep]),
                lambda gate, up, down, keep: (gate[keep], up[:, keep], down[:, keep]),
                lambda gate, up, down, keep: (gate[:, keep], up[:, keep], down[:, keep]),
            ],
            "rows of down cut": lambda gate, up, down, keep: (gate[keep], up[keep], down[keep]),
            "down left whole": lambda gate, up, down, keep: (gate[keep], up[keep], down.clone()),
        },
        """
        zeros instead of cuts: The neurons are zero and still there. The matrices are to be smaller.
        inverted mask: What the mask keeps is gone, and the rest is left: True means *kept*.
        the gate of other neurons: The gate has its first rows, not those of the kept neurons. Every shape fits,
         and every neuron has somebody else's gate.
        the first so many: The right number of neurons stayed, but the first ones, not those that the mask
         keeps.
        up and gate exchanged: The neurons are the right ones, but up came back where gate belongs, and gate where up
         does. Only one of them goes through SiLU.
        columns of gate or up cut: Columns of gate, of up or of both were cut. Their shape is (d_ff, d): a column is
         an input, and a neuron is a row.
        rows of down cut: Rows of down were cut. Its shape is (d, d_ff): a row is an output, and a neuron is a column.
        down left whole: The down projection still reads all neurons, so its product with the smaller ones has
         no shape.
        """,
    ),
    cases=lambda: [
        Case("three of six neurons", _mlp(4, 6, 1330, [1, 2, 5])),
        Case("one neuron gone", _mlp(3, 5, 1340, [0, 2, 3, 4])),
        Case("the last four of eight", _mlp(4, 8, 1350, [4, 5, 6, 7])),
        Case("as many neurons as channels", _mlp(4, 4, 1360, [0, 3])),
    ],
)


def _mlp(d: int, width: int, seed: int, kept: list[int]) -> tuple:
    keep = torch.zeros(width, dtype=torch.bool)
    keep[kept] = True
    return normal(width, d, seed=seed), normal(width, d, seed=seed + 1), normal(d, width, seed=seed + 2), keep


EXERCISES = [slim_mlp, group_heads, set_cost]
