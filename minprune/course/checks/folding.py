"""The exercise of chapter 06 on folding a permutation into attention, where heads and shared values restrict it."""

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import normal

# fold_output(O, order, heads): o_proj's weight after v_proj's rows were put into another order within each head


def _places(orders: Tensor) -> Tensor:
    """One order for each head, (heads, head_dim) -> one of all channels, (heads * head_dim,)."""
    heads, head_dim = orders.shape
    return (orders + head_dim * torch.arange(heads)[:, None]).flatten()


def _fold(O: Tensor, order: Tensor, heads: int) -> Tensor:
    """Query heads that share a value head are neighbours."""
    return O[:, _places(order.repeat_interleave(heads // len(order), 0))]


def _tiled(O: Tensor, order: Tensor, heads: int) -> Tensor:
    return O[:, _places(order.repeat(heads // len(order), 1))]


def _first_only(O: Tensor, order: Tensor, heads: int) -> Tensor:
    """Only the first query head of each value head follows."""
    share, as_it_was = heads // len(order), torch.arange(order.shape[1])
    orders = [order[h // share] if h % share == 0 else as_it_was for h in range(heads)]
    return O[:, _places(torch.stack(orders))]


fold_output = Exercise(
    name="fold_output",
    chapter=6,
    title="the columns of o_proj after the rows of v_proj changed places within each value head",
    reference=_fold,
    difficulty=4,
    wrong=(
        Wrong(
            "left as it was",
            lambda O, order, heads: O.clone(),
            "Nothing was moved, so every column of o_proj reads a channel that is somebody else's now.",
        ),
        Wrong(
            "the inverse order",
            lambda O, order, heads: _fold(O, order.argsort(1), heads),
            "The columns were moved the other way. If row k of the new v_proj is the old row order[k], which old "
            "column must stand at place k?",
        ),
        Wrong(
            "value heads dealt out in turn",
            _tiled,
            "Query head h was taken to read value head h modulo their number. In Llama the query heads that share a "
            "value head are neighbours.",
        ),
        Wrong(
            "one query head for each value head",
            _first_only,
            "Only the first of the query heads that share a value head was moved. All of them read the same channels.",
        ),
        Wrong(
            "the first head's order for all",
            lambda O, order, heads: _fold(O, order[:1].expand_as(order), heads),
            "The order of value head 0 was used for all heads. Each value head has its own.",
        ),
        Wrong(
            "heads without their offset",
            lambda O, order, heads: O[:, order.repeat_interleave(heads // len(order), 0).flatten()],
            "All columns come from the first head. An order counts the channels inside its head: where does the head "
            "itself begin?",
        ),
        Wrong(
            "rows instead of columns",
            lambda O, order, heads: _fold(O.T, order, heads).T,
            "The rows of o_proj were moved. They are its outputs, the residual stream; its inputs are the columns.",
        ),
    ),
    cases=lambda: [
        Case("one head", (normal(4, 4, seed=620), torch.tensor([[2, 0, 3, 1]]), 1)),
        Case("as many value heads as heads", (normal(6, 6, seed=621), torch.tensor([[1, 2, 0], [2, 0, 1]]), 2)),
        Case(
            "four heads that share two value heads",
            (normal(12, 12, seed=622), torch.tensor([[1, 2, 0], [2, 1, 0]]), 4),
        ),
        Case(
            "nine heads that share three value heads, as in SmolLM2",
            (normal(36, 36, seed=623), torch.tensor([[1, 2, 3, 0], [3, 1, 0, 2], [2, 0, 1, 3]]), 9),
        ),
        Case("a residual stream that is narrower than the heads", (normal(5, 8, seed=625), torch.tensor([[1, 0]]), 4)),
        Case("heads that stay as they are", (normal(6, 6, seed=624), torch.tensor([[0, 1, 2], [0, 1, 2]]), 2)),
    ],
)

EXERCISES = [fold_output]
