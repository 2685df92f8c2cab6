"""The exercises of chapter 06: n kept of every m, inputs dealt out to groups, orders folded into a model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import comb

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import complement, given, inverted, scaled, then, transposed
from minprune.course.checks.values import normal
from minprune.patterns import NM, keep_largest


# nm_mask(scores, n, m): the keep mask with n of every m neighbouring inputs
def _nm_mask(scores: Tensor, n: int, m: int) -> Tensor:
    _refuse(scores, m)
    return NM(n, m).keep(scores)


def _refuse(scores: Tensor, m: int) -> None:
    if scores.shape[1] % m:
        raise ValueError(f"{m} does not divide {scores.shape[1]} inputs, so a group would reach into the next row")


def _both_forms(wrong: Callable) -> list[Callable]:
    """The same mistake by somebody who forgets to refuse, and by somebody who does not."""

    def refusing(scores: Tensor, n: int, m: int) -> Tensor:
        _refuse(scores, m)
        return wrong(scores, n, m)

    return [wrong, refusing]


def _groups(keep_of: Callable[[Tensor, int, int], Tensor]) -> Callable[[Tensor, int, int], Tensor]:
    """A mask put together from `keep_of(groups, n, m)`, (groups, m) -> (groups, m)."""
    return lambda scores, n, m: keep_of(scores.reshape(-1, m), n, m).view(scores.shape)


_ranked = _groups(lambda g, n, m: keep_largest(g, m - n))


def _strided(scores: Tensor, n: int, m: int) -> Tensor:
    """Groups of m columns that are d_in / m apart."""
    groups = scores.view(len(scores), m, -1).transpose(1, 2)  # (d_out, groups, m)
    return _ranked(groups.reshape(len(scores), -1), n, m).view(groups.shape).transpose(1, 2).reshape(scores.shape)


_WRONG: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "n counted as zeros": lambda scores, n, m: _ranked(scores, m - n, m),
    "inverted mask": inverted(_ranked),
    "smallest kept": _groups(lambda g, n, m: ~keep_largest(g, n)),
    "ties all kept": _groups(lambda g, n, m: g >= g.sort(dim=1).values[:, m - n, None]),
    "one too many": _groups(lambda g, n, m: g > g.sort(dim=1).values[:, m - n, None]),
    "ties all pruned": _groups(lambda g, n, m: g > g.sort(dim=1).values[:, m - n - 1, None]),
    "last of the ties pruned first": _groups(lambda g, n, m: keep_largest(g.flip(1), m - n).flip(1)),
    "order taken for ranks": _groups(lambda g, n, m: g.argsort(dim=1, stable=True) >= m - n),
    "groups along the outputs": lambda scores, n, m: _ranked(scores.T, n, m).T,
    "the same columns for all rows": lambda S, n, m: _ranked(S.sum(0, keepdim=True), n, m).expand(S.shape),
    "distant columns": _strided,
    "the share of a row": lambda S, n, m: keep_largest(S, S.shape[1] // m * (m - n)),
    "the share of the layer": lambda S, n, m: keep_largest(S.reshape(1, -1), S.numel() // m * (m - n)).view(S.shape),
}

nm_mask = Exercise(
    name="nm_mask",
    chapter=6,
    title="the keep mask of n of every m neighbouring inputs, with exact counts",
    reference=_nm_mask,
    difficulty=2,
    wrong=mistakes(
        {
            "the flattened tensor": lambda scores, n, m: NM(n, m).keep(scores.reshape(1, -1)).view(scores.shape),
            **{name: _both_forms(wrong) for name, wrong in _WRONG.items()},
        },
        """
        the flattened tensor: Groups reach from the end of one row into the next where m does not divide the number of
          inputs. Hardware starts again with each row, so such a matrix must be refused.
        n counted as zeros: n weights of every m went. In this book, and for the hardware, n weights of every m *stay*.
        inverted mask: The mask is the opposite of what was asked for: in minprune True means *kept*.
        smallest kept: The count is right, but the smallest scores of each group stayed. Check the order of your sort.
        ties all kept: Whatever equals the n-th best score of its group stayed, so groups with ties keep more than n.
          Hardware has room for exactly n.
        one too many: The threshold was taken from a list that is counted from 0, and its own weight went, too: groups
          keep less than n.
        ties all pruned: Whatever equals the threshold of its group went, so groups with ties keep less than n. And with
          n = m, is anything left?
        last of the ties pruned first: The count is right, but of equal scores the *lower* index is to go first.
        order taken for ranks: `argsort` says which weight comes at each rank. You used it as if it said which rank each
          weight has.
        groups along the outputs: The groups go down the columns. A group is m neighbouring *inputs* of one output.
        the same columns for all rows: All rows keep the same columns. Every row chooses for itself in each of its
          groups.
        distant columns: The m weights of your groups stand far apart in the row. A group is m *neighbours*: look at the
          order of the dimensions when you reshape.
        the share of a row: Each row has the right number of zeros, but its groups do not.
        the share of the layer: The matrix has the right number of zeros, but its groups do not.
        """,
    ),
    cases=lambda: [
        Case("2:4 of distinct scores", (normal(8, 12, seed=600).abs(), 2, 4)),
        Case("1:4", (normal(4, 16, seed=601).abs(), 1, 4)),
        Case("3:4", (normal(4, 12, seed=602).abs(), 3, 4)),
        Case("4:8", (normal(8, 16, seed=603).abs(), 4, 8)),
        Case("1:2 of a matrix with few distinct scores", (normal(6, 8, seed=604).abs().mul(2).round(), 1, 2)),
        Case("2:4 of a matrix with few distinct scores", (normal(8, 12, seed=605).abs().mul(2).round(), 2, 4)),
        Case("2:4 of equal scores", (torch.full((4, 8), 0.5), 2, 4)),
        Case("2:3, groups of odd size", (normal(3, 9, seed=606).abs(), 2, 3)),
        Case("six inputs, which 4 does not divide", (normal(4, 6, seed=608).abs(), 2, 4)),
        Case("ten inputs, which 4 does not divide", (normal(4, 10, seed=609).abs(), 2, 4)),
        Case("4:4, nothing to prune", (normal(4, 8, seed=607).abs(), 4, 4)),
    ],
)


# snake_deal(scores, m): an order of the inputs in which every group gets one column of each band
def _deal(scores: Tensor, m: int, turn: int = 1, descending: bool = True, total=lambda S: S.sum(0)) -> Tensor:
    """(m, groups): row p is the p-th band in the order of the groups; every second band, from `turn` on, reversed."""
    bands = total(scores).argsort(descending=descending, stable=True).view(m, -1)
    bands[turn::2] = bands[turn::2].flip(1)
    return bands


def _dealt(scores: Tensor, m: int, **how) -> Tensor:
    return _deal(scores, m, **how).T.reshape(-1)


snake_deal = Exercise(
    name="snake_deal",
    chapter=6,
    title="an order of the inputs in which each group gets one column of every band, dealt back and forth",
    reference=_dealt,
    difficulty=3,
    wrong=mistakes(
        {
            "no turning back": lambda scores, m: _dealt(scores, m, turn=m),
            "best columns together": lambda scores, m: scores.sum(0).argsort(descending=True, stable=True),
            "bands one after the other": lambda scores, m: _deal(scores, m).reshape(-1),
            "worst first": partial(_dealt, descending=False),
            "turned the other way": partial(_dealt, turn=0),
            "the inverse order": then(_dealt, torch.argsort),
            "bands of m columns": lambda scores, m: _dealt(scores, scores.shape[1] // m),
            "largest instead of total": partial(_dealt, total=lambda S: S.amax(0)),
        },
        """
        no turning back: Every band was dealt from the first group to the last, so the first group gets the best of
          every band.
        best columns together: The columns are sorted and not dealt: the m best of all share a group, and some of them
          will be lost.
        bands one after the other: Whole bands follow each other. Neighbours in the order share a group: m neighbours
          are one of each band.
        worst first: The lowest totals were dealt first. The first band is that of the highest ones.
        turned the other way: The first band was dealt from the last group to the first. The groups are as good, but
          their order is the reverse of what was asked for: the best column of all is to come first.
        the inverse order: This says where each column goes. Asked for is which column comes at each place, so that
          scores[:, order] is the new matrix.
        bands of m columns: The bands are too small: there are m bands, each with one column for every group.
        largest instead of total: The columns were sorted by their largest score, not by their total.
        """,
    ),
    cases=lambda: [
        Case("three groups of four", (normal(5, 12, seed=610).abs(), 4)),
        Case("five groups of four", (normal(7, 20, seed=611).abs(), 4)),
        Case("four groups of two", (normal(6, 8, seed=612).abs(), 2)),
        Case("three groups of eight", (normal(4, 24, seed=613).abs(), 8)),
        Case("columns that are sorted already", (torch.arange(24.0, 0, -1).repeat(2, 1), 4)),
        Case("a single group", (normal(3, 4, seed=614).abs(), 4)),
        Case("three hundred inputs", (normal(2, 300, seed=615).abs(), 4)),
    ],
)


# fold_output(O, order, heads): o_proj's weight after v_proj's rows were put into another order within each head
def _places(orders: Tensor) -> Tensor:
    """One order for each head, (heads, head_dim) -> one of all channels, (heads * head_dim,)."""
    heads, head_dim = orders.shape
    return (orders + head_dim * torch.arange(heads)[:, None]).flatten()


def _fold(O: Tensor, order: Tensor, heads: int) -> Tensor:
    """Query heads that share a value head are neighbours."""
    return O[:, _places(order.repeat_interleave(heads // len(order), 0))]


def _order(*heads: list[int]) -> Tensor:
    return torch.tensor(heads)


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
    wrong=mistakes(
        {
            "left as it was": lambda O, order, heads: O.clone(),
            "the inverse order": given(_fold, order=lambda order: order.argsort(1)),
            "value heads dealt out in turn": lambda O, order, heads: O[
                :, _places(order.repeat(heads // len(order), 1))
            ],
            "one query head for each value head": _first_only,
            "the first head's order for all": given(_fold, order=lambda order: order[:1].expand_as(order)),
            "heads without their offset": lambda O, order, h: O[
                :, order.repeat_interleave(h // len(order), 0).flatten()
            ],
            "rows instead of columns": transposed(given(_fold, O=lambda O: O.T)),
        },
        """
        left as it was: Nothing was moved, so every column of o_proj reads a channel that is somebody else's now.
        the inverse order: The columns were moved the other way. If row k of the new v_proj is the old row order[k],
          which old column must stand at place k?
        value heads dealt out in turn: Query head h was taken to read value head h modulo their number. In Llama the
          query heads that share a value head are neighbours.
        one query head for each value head: Only the first of the query heads that share a value head was moved. All of
          them read the same channels.
        the first head's order for all: The order of value head 0 was used for all heads. Each value head has its own.
        heads without their offset: All columns come from the first head. An order counts the channels inside its head:
          where does the head itself begin?
        rows instead of columns: The rows of o_proj were moved. They are its outputs, the residual stream; its inputs
          are the columns.
        """,
    ),
    cases=lambda: [
        Case("one head", (normal(4, 4, seed=620), _order([2, 0, 3, 1]), 1)),
        Case("as many value heads as heads", (normal(6, 6, seed=621), _order([1, 2, 0], [2, 0, 1]), 2)),
        Case("four heads that share two value heads", (normal(12, 12, seed=622), _order([1, 2, 0], [2, 1, 0]), 4)),
        Case(
            "nine heads that share three value heads, as in SmolLM2",
            (normal(36, 36, seed=623), _order([1, 2, 3, 0], [3, 1, 0, 2], [2, 0, 1, 3]), 9),
        ),
        Case("a residual stream that is narrower than the heads", (normal(5, 8, seed=625), _order([1, 0]), 4)),
        Case("heads that stay as they are", (normal(6, 6, seed=624), _order([0, 1, 2], [0, 1, 2]), 2)),
    ],
)


# lost_in_runs(runs, m): the share of the top half that N:M prunes if a coin decides for runs of neighbours, N = M/2
@dataclass(frozen=True)
class _Lost:
    """Right unless a field says otherwise."""

    alike: int = 0  # a run length that stands in for all
    coins: str = "group"
    excess: bool = True
    of: str = "top half"

    def __call__(self, runs: Tensor, m: int) -> Tensor:
        return torch.tensor([self._share(self.alike or run, m) for run in runs.tolist()])

    def _share(self, run: int, m: int) -> float:
        run = min(run, m)
        coins = m if self.coins == "weights" else m // run
        spare = [max(0, k * run - m // 2) if self.excess else k * run > m // 2 for k in range(coins + 1)]
        size = {"top half": m / 2, "group": m, "runs": m / 2 / run}[self.of]
        return sum(s * comb(coins, k) for k, s in enumerate(spare)) / 2**coins / size


lost_in_runs = Exercise(
    name="lost_in_runs",
    chapter=6,
    title="the share of the top half that N:M prunes if whole runs of neighbours belong to it or not",
    reference=_Lost(),
    difficulty=3,
    wrong=mistakes(
        {
            "a coin for each weight": _Lost(alike=1),
            "share of the group": _Lost(of="group"),
            "groups counted": _Lost(excess=False),
            "share of the runs": _Lost(of="runs"),
            "share that is kept": complement(_Lost()),
            "per cent": scaled(_Lost(), 100),
            "as many coins as weights": _Lost(coins="weights"),
            "all or nothing": lambda runs, m: torch.full((len(runs),), 0.5),
            "long runs lose nothing": lambda runs, m: torch.where(runs > m, 0.0, _Lost()(runs, m)),
            "full groups lose all": lambda runs, m: torch.where(runs >= m, 1.0, _Lost()(runs, m)),
        },
        """
        a coin for each weight: This is the share for independent weights, whatever the run. Here one coin decides for
          several neighbours.
        share of the group: This is the share of all weights. The top half is only half of them.
        groups counted: Groups that have to give something up were counted, not the weights that they give up.
        share of the runs: Whole runs were counted. Asked for is the share of the weights.
        share that is kept: This is the share that stays; asked for is the one that goes.
        per cent: These are per cent; fractions between 0 and 1 are asked for.
        as many coins as weights: A group has fewer coins than weights if each decides for a run.
        all or nothing: So it is for runs that fill a group. Shorter runs leave the group a choice.
        long runs lose nothing: A run that is longer than a group fills every group that it covers, as one of M does.
        full groups lose all: A group that belongs to the top half as a whole still keeps N of its weights.
        """,
    ),
    cases=lambda: [
        Case("2:4, runs of two", (torch.tensor([2]), 4)),
        Case("2:4, independent neighbours", (torch.tensor([1]), 4)),
        Case("2:4, runs that fill a group", (torch.tensor([4]), 4)),
        Case("2:4, whole heads", (torch.tensor([64]), 4)),
        Case("4:8", (torch.tensor([1, 2, 4, 8]), 8)),
        Case("8:16, in any order", (torch.tensor([4, 32, 1]), 16)),
        Case("1:2", (torch.tensor([1, 2]), 2)),
    ],
)

# fold_stream(weight, name, order): what stands in a tensor of a Llama after the residual stream got another order
_TABLES = frozenset({"embed_tokens", "lm_head"})
_READERS = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})
_WRITERS = frozenset({"o_proj", "down_proj"})
_GAINS = frozenset({"input_layernorm", "post_attention_layernorm", "norm"})


@dataclass(frozen=True)
class _Stream:
    """Right unless a field says otherwise. columns, rows: of which layers the columns and the rows move."""

    columns: frozenset[str] = _TABLES | _READERS
    rows: frozenset[str] = _WRITERS | _GAINS

    def __call__(self, weight: Tensor, name: str, order: Tensor) -> Tensor:
        layer = name.split(".")[-2]
        if layer in self.columns:
            return weight[:, order]
        return weight[order] if layer in self.rows else weight.clone()


def _by_width(axes: Callable[[list[int]], list[int]]) -> Callable[[Tensor, str, Tensor], Tensor]:
    """Moves those of the axes that are as long as the order, whatever the layer does."""

    def wrong(weight: Tensor, name: str, order: Tensor) -> Tensor:
        for axis in axes([a for a in range(weight.ndim) if weight.shape[a] == len(order)]):
            weight = weight.index_select(axis, order)
        return weight

    return wrong


def _tensor(name: str, *shape: int, seed: int) -> Case:
    """A tensor of a Llama with 6 channels, in an order that is not its own inverse."""
    label = name.removeprefix("model.").removesuffix(".weight")
    return Case(label, (normal(*shape, seed=seed), name, torch.tensor([2, 5, 1, 0, 3, 4])))


fold_stream = Exercise(
    name="fold_stream",
    chapter=6,
    title="each tensor of a Llama after the channels of the residual stream changed places",
    reference=_Stream(),
    difficulty=3,
    wrong=mistakes(
        {
            "left as it was": lambda weight, name, order: weight.clone(),
            "the inverse order": given(_Stream(), order=torch.argsort),
            "norms left as they were": _Stream(rows=_WRITERS),
            "the last norm left as it was": _Stream(rows=_WRITERS | _GAINS - {"norm"}),
            "the embeddings left as they were": _Stream(columns=_READERS | {"lm_head"}),
            "the head left as it was": _Stream(columns=_READERS | {"embed_tokens"}),
            "writers left as they were": _Stream(rows=_GAINS),
            "readers left as they were": _Stream(columns=_TABLES),
            "writers taken for readers": _Stream(columns=_TABLES | _READERS | _WRITERS),
            "readers taken for writers": _Stream(columns=_TABLES, rows=_WRITERS | _GAINS | _READERS),
            "inputs taken for outputs": _Stream(columns=_TABLES | _WRITERS, rows=_READERS | _GAINS),
            "decided by the width": [_by_width(axes) for axes in (list, lambda fit: fit[:1], lambda fit: fit[-1:])],
        },
        """
        left as it was: Nothing was moved. Which tensors read the residual stream, and which write to it?
        the inverse order: The channels were moved the other way. Channel k of the new stream is the old channel
          order[k].
        norms left as they were: Each gain of a norm belongs to a channel, and has to go where its channel goes.
        the last norm left as it was: Behind the last block there is a norm, too.
        the embeddings left as they were: The stream begins with a row of the table of embeddings: in which order are
          its channels?
        the head left as it was: The head reads the stream as well.
        writers left as they were: Two matrices of each block add their outputs to the stream, still in the old order.
        readers left as they were: The matrices at the front of attention and MLP still expect the old order.
        writers taken for readers: The columns of every matrix were moved. o_proj and down_proj have the stream at the
          other side.
        readers taken for writers: The rows of every matrix in a block were moved. A weight is (outputs, inputs): where
          does the stream enter q_proj?
        inputs taken for outputs: Rows and columns have changed places. A weight is (outputs, inputs).
        decided by the width: Which side moves was told by its length. A square matrix has two sides of that length, and
          the stream is at one of them.
        """,
    ),
    cases=lambda: [
        _tensor("model.layers.0.input_layernorm.weight", 6, seed=630),
        _tensor("model.layers.11.post_attention_layernorm.weight", 6, seed=631),
        _tensor("model.norm.weight", 6, seed=632),
        _tensor("model.layers.3.self_attn.q_proj.weight", 6, 6, seed=633),
        _tensor("model.layers.3.self_attn.k_proj.weight", 2, 6, seed=634),
        _tensor("model.layers.3.self_attn.v_proj.weight", 6, 6, seed=635),
        _tensor("model.layers.3.self_attn.o_proj.weight", 6, 6, seed=636),
        _tensor("model.layers.7.mlp.gate_proj.weight", 4, 6, seed=637),
        _tensor("model.layers.7.mlp.up_proj.weight", 6, 6, seed=638),
        _tensor("model.layers.7.mlp.down_proj.weight", 6, 4, seed=639),
        _tensor("model.embed_tokens.weight", 4, 6, seed=640),
        _tensor("lm_head.weight", 4, 6, seed=641),
    ],
)

EXERCISES = [nm_mask, snake_deal, fold_output, lost_in_runs, fold_stream]
