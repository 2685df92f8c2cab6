"""The exercises of chapter 15: a block in other bases, when slicing saves anything, means, channels that may go."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import inverted, then
from minprune.course.checks.values import normal


# express_block(b, Q0, Q1, Q2): the nine matrices of a block whose stream is written in other bases
@dataclass(frozen=True)
class _Turned:
    """Right unless a field says otherwise. read, write, skip: a reader, a writer and an adapter in the new bases.

    sites: of q, k and v; of o; of gate and up; of down. norms: whose weights attention reads through, and the MLP.
    skips: the sites that each adapter leads from and to.
    """

    read: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda W, norm, Q: W * norm @ Q
    write: Callable[[Tensor, Tensor], Tensor] = lambda W, Q: Q.T @ W
    skip: Callable[[Tensor, Tensor], Tensor] = lambda start, end: start.T @ end
    sites: tuple[int, int, int, int] = (0, 1, 1, 2)
    norms: tuple[str, str] = ("norm1", "norm2")
    skips: tuple[tuple[int, int], tuple[int, int]] = ((0, 1), (1, 2))

    def __call__(self, b: dict[str, Tensor], Q0: Tensor, Q1: Tensor, Q2: Tensor) -> tuple[Tensor, ...]:
        bases = (Q0, Q1, Q2)
        attention, o, mlp, down = (bases[site] for site in self.sites)
        return (
            *(self.read(b[name], b[self.norms[0]], attention) for name in ("q", "k", "v")),
            self.write(b["o"], o),
            *(self.read(b[name], b[self.norms[1]], mlp) for name in ("gate", "up")),
            self.write(b["down"], down),
            *(self.skip(bases[start], bases[end]) for start, end in self.skips),
        )


def _block(seed: int, d: int, inner: int, width: int, *kept: int) -> tuple:
    """A block of width d in float64, adapters and all, and three bases of so many axes."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys("qkv", (inner, d)) | {"o": (d, inner), "norm1": (d,)}
    shapes |= {"gate": (width, d), "up": (width, d), "down": (d, width), "norm2": (d,)}
    b = {name: normal(*shape, seed=seed + i).double() for i, (name, shape) in enumerate(shapes.items())}
    b |= {name: torch.eye(d, dtype=torch.float64) for name in ("skip1", "skip2")}
    return b, *(torch.linalg.qr(normal(d, d, seed=seed + 10 + i).double()).Q[:, :n] for i, n in enumerate(kept))


express_block = Exercise(
    name="express_block",
    chapter=15,
    title="the nine matrices of a block whose stream is written in other bases",
    reference=_Turned(),
    difficulty=3,
    wrong=mistakes(
        {
            "norms not folded": _Turned(read=lambda W, norm, Q: W @ Q),
            "rotated, then folded": _Turned(read=lambda W, norm, Q: W @ Q * norm),
            "divided by the norm's weights": _Turned(read=lambda W, norm, Q: W / norm @ Q),
            "one norm for both": [
                _Turned(norms=("norm1", "norm1")),
                _Turned(norms=("norm2", "norm2")),
            ],
            "norms exchanged": _Turned(norms=("norm2", "norm1")),
            "readers rotated back": _Turned(read=lambda W, norm, Q: W * norm @ Q.T),
            "writers turned like readers": _Turned(write=lambda W, Q: W @ Q),
            "writers with Q, not its transpose": _Turned(write=lambda W, Q: Q @ W),
            "written where it was read": [
                _Turned(sites=(0, 0, 1, 1)),
                _Turned(sites=(0, 0, 1, 2)),
                _Turned(sites=(0, 1, 1, 1)),
            ],
            "the MLP reads before attention": _Turned(sites=(0, 1, 0, 2)),
            "one basis for the block": _Turned(sites=(0, 0, 0, 0), skips=((0, 0), (0, 0))),
            "adapters forgotten": [
                _Turned(skip=lambda start, end: torch.eye(len(start))),
                _Turned(skip=lambda start, end: torch.eye(start.shape[1], end.shape[1])),
            ],
            "adapters backwards": _Turned(skip=lambda start, end: end.T @ start),
            "adapters in the old space": _Turned(skip=lambda start, end: start @ end.T),
            "second adapter from the first site": [
                _Turned(skips=((0, 1), (0, 2))),
                _Turned(skips=((0, 1), (0, 1))),
            ],
        },
        """
        norms not folded: Your readers are rotated, but the norms' weights are not in them. They are 1 afterwards, so
          the matrices that read have to do what they did.
        rotated, then folded: You multiplied by the norms' weights after the rotation. There is one weight for each
          channel of the *old* basis: fold first.
        divided by the norm's weights: You divided by the norms' weights. The readers take over what the norms did, and
          a norm multiplies by its weights.
        one norm for both: All readers were folded with the weights of the same norm. Attention reads through `norm1`,
          the MLP through `norm2`.
        norms exchanged: Attention was folded with the weights of `norm2`, and the MLP with those of `norm1`.
        readers rotated back: Your readers were multiplied by the transpose of Q. A reader gets hQ where it got h: what
          must its matrix be, so that the product is the old one?
        writers turned like readers: You multiplied o and down by Q from the right, as readers are. On their right side
          are heads and neurons. The stream is on the left.
        writers with Q, not its transpose: You multiplied o and down by Q itself. They are multiplied from the left, and
          a row hQ, written as a column, is the transpose of Q times h.
        written where it was read: A writer has the basis that its own half of the block reads in. It writes for the
          next site: o in Q1, down in Q2.
        the MLP reads before attention: Your gate and up read in Q0. When the MLP reads, attention has already written,
          and the stream is in Q1.
        one basis for the block: Everything is in Q0. That is right if there is one basis for all sites; here each site
          has its own.
        adapters forgotten: Your adapters are identities. What is skipped arrives in one basis, and is to be added to
          what was written in another.
        adapters backwards: Your adapters lead from the later basis to the earlier one.
        adapters in the old space: Your adapters are of the old width. They read what is in one new basis and write in
          the next: whose axes do they need on either side?
        second adapter from the first site: Your second adapter begins at the first site. What it reads has come through
          the first adapter, and is in Q1; it leads to Q2.
        """,
    ),
    cases=lambda: [
        Case("a basis for each site, nothing cut", _block(1500, 6, 4, 8, 6, 6, 6)),
        Case("four of six axes", _block(1515, 6, 4, 8, 4, 4, 4)),
        Case("sites that keep different numbers of axes", _block(1530, 6, 4, 5, 5, 3, 4)),
        Case("heads and neurons as wide as the stream", _block(1640, 5, 5, 5, 5, 5, 5)),
        Case("one axis", _block(1655, 4, 2, 3, 1, 1, 1)),
    ],
)


# break_even(config): the largest width at which the published form, its last site whole, is smaller than the model
@dataclass(frozen=True)
class _Widths:
    """Right unless a field says otherwise. dense_copies: of the embeddings in a dense model that ties them.

    last_whole: what keeps the full width at the last site, of its matrix, its adapter and the head.
    """

    dense_copies: int = 1
    embeddings: bool = True
    grouped: bool = True
    adapters: int = 2
    old_width: bool = False
    last_whole: tuple[str, ...] = ("matrix", "adapter", "head")
    equal: bool = False

    def __call__(self, config: dict) -> Tensor:
        d, layers, tied = config["hidden_size"], config["num_hidden_layers"], config["tie_word_embeddings"]
        heads = config["num_attention_heads"]
        groups = config["num_key_value_heads"] if self.grouped else heads
        block = 2 * (heads + groups) * config["head_dim"] + 3 * config["intermediate_size"]  # weights for each channel
        vocab = config["vocab_size"] if self.embeddings else 0
        dense = d * (vocab * (self.dense_copies if tied else 2) + layers * block)
        for kept in range(d, 0, -1):
            last = {part: d if part in self.last_whole else kept for part in ("matrix", "adapter", "head")}
            width = d if self.old_width else kept
            size = kept * (vocab + layers * block) + (last["matrix"] - kept) * config["intermediate_size"]
            size += vocab * last["head"]
            size += (self.adapters * layers - 1) * width**2 + width * last["adapter"] if self.adapters else 0
            if size < dense or (self.equal and size == dense):
                return torch.tensor(kept)
        return torch.tensor(0)


def _channels_gone(config: dict) -> Tensor:
    return config["hidden_size"] - _Widths()(config)


def _config(*sizes: int, tied: bool) -> dict:
    names = (
        "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size"
    )
    return {**dict(zip(names.split(), sizes, strict=True)), "tie_word_embeddings": tied}


break_even = Exercise(
    name="break_even",
    chapter=15,
    title="the largest width at which a model sliced as the published code does it is smaller than the dense one",
    reference=_Widths(),
    difficulty=3,
    wrong=mistakes(
        {
            "adapters forgotten": _Widths(adapters=0),
            "one adapter a block": _Widths(adapters=1),
            "adapters of the old width": _Widths(old_width=True),
            "head sliced": _Widths(last_whole=("matrix", "adapter")),
            "last matrix sliced": _Widths(last_whole=("adapter", "head")),
            "last adapter sliced": _Widths(last_whole=("matrix", "head")),
            "last site sliced": _Widths(last_whole=()),
            "tied head counted": _Widths(dense_copies=2),
            "embeddings forgotten": _Widths(embeddings=False),
            "keys as wide as queries": _Widths(grouped=False),
            "as large, not smaller": _Widths(equal=True),
            "one too many": then(_Widths(), lambda kept: kept + 1),
            "channels that go": _channels_gone,
        },
        """
        adapters forgotten: Your sliced model has no adapters. There are two in each block.
        one adapter a block: Your sliced model has one adapter a block. The stream is added to twice in a block, and
          each of the two additions needs one.
        adapters of the old width: Your adapters are as wide as the dense stream on their input side. They read what
          is kept at the site before.
        head sliced: Your head was sliced. In this form the last site, which the head reads, keeps its full width.
        last matrix sliced: The last matrix that writes to the stream was sliced like the others. What it writes has
          the full width.
        last adapter sliced: Your last adapter is square. It leads from a sliced site to one that is not.
        last site sliced: This is the form of the table, in which every site is sliced. Here the last one keeps its
          full width: which three matrices does that change?
        tied head counted: In your count a tied model has as many matrices of the vocabulary's size before as after. The
          dense one stores one, and a rotation unties it.
        embeddings forgotten: You compared the blocks alone. The embeddings and the head are a part of the model.
        keys as wide as queries: Your keys and values have a head for each query head. The configuration says how many
          heads they have.
        as large, not smaller: At your width the two are equally large in some case. Asked for is the largest width at
          which the sliced model is *smaller*.
        one too many: At your width the sliced model is not smaller yet.
        channels that go: You count the channels that go. Asked for is how many *stay*.
        """,
    ),
    cases=lambda: [
        Case("SmolLM2-135M", (_config(49152, 576, 30, 9, 3, 64, 1536, tied=True),)),
        Case("LLaMA-2-7B", (_config(32000, 4096, 32, 32, 32, 128, 11008, tied=False),)),
        Case("a width at which both are equally large", (_config(10, 12, 1, 2, 1, 2, 8, tied=True),)),
        Case("a vocabulary too large for any width", (_config(5000, 64, 1, 2, 1, 2, 4, tied=True),)),
        Case("room for one channel", (_config(40, 4, 1, 2, 1, 2, 16, tied=True),)),
        Case("narrow blocks", (_config(100, 48, 6, 2, 1, 6, 8, tied=False),)),
        Case("a single wide block", (_config(30, 64, 1, 4, 2, 16, 400, tied=False),)),
        Case("no vocabulary to speak of", (_config(1, 40, 3, 4, 2, 10, 100, tied=True),)),
    ],
)

# bake_mean(W, b): a matrix that writes to the stream, and its bias, so that what they add has mean zero


def _bake_mean(W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return W - W.mean(0), b - b.mean()


bake_mean = Exercise(
    name="bake_mean",
    chapter=15,
    title="a writer of a LayerNorm model whose outputs have mean zero, so that an RMSNorm reads them alike",
    reference=_bake_mean,
    difficulty=2,
    wrong=mistakes(
        {
            "mean over the inputs": lambda W, b: (W - W.mean(1, keepdim=True), b - b.mean()),
            "bias left as it is": lambda W, b: (W - W.mean(0), b.clone()),
            "weights left as they are": lambda W, b: (W.clone(), b - b.mean()),
            "one mean for all": lambda W, b: (W - W.mean(), b - b.mean()),
            "sum for mean": lambda W, b: (W - W.sum(0), b - b.sum()),
            "the mean alone": lambda W, b: (W.mean(0).expand_as(W).clone(), b.mean().expand_as(b).clone()),
            "added": lambda W, b: (W + W.mean(0), b + b.mean()),
            "scaled as well": lambda W, b: (
                (W - W.mean(0)) / W.std(0, correction=0).clamp_min(1e-12),
                (b - b.mean()) / b.std(correction=0).clamp_min(1e-12),
            ),
        },
        """
        mean over the inputs: Each row of your matrix has mean zero. The mean is to be taken over the *outputs*, which
          are what stands in the stream: what does that ask of a column?
        bias left as it is: The matrix is right. The bias is written to the stream, too.
        weights left as they are: The bias is right. The matrix writes most of what stands in the stream.
        one mean for all: You took the mean of the whole matrix away. That makes the mean right for one input, the one
          that is the same everywhere; it has to be right for all.
        sum for mean: You took the sum away instead of the mean.
        the mean alone: This is the part that a LayerNorm takes out. Asked for is what it leaves.
        added: The mean was added. It is to go.
        scaled as well: You divided by a standard deviation, too. How long the stream is depends on the token, and the
          norm still does that part.
        """,
    ),
    cases=lambda: [
        Case("a square matrix", (normal(5, 5, seed=1550) + 1, normal(5, seed=1551) - 2)),
        Case("more inputs than outputs", (normal(4, 9, seed=1552), normal(4, seed=1553))),
        Case("fewer inputs than outputs", (normal(7, 2, seed=1554) - 3, normal(7, seed=1555))),
        Case("no bias to speak of", (normal(6, 3, seed=1556), torch.zeros(6))),
        Case("one input", (normal(4, 1, seed=1557), torch.full((4,), 2.5))),
    ],
)


# cheapest_channels(C, F, gone): the keep mask whose missing channels cost least, all sets tried
@dataclass(frozen=True)
class _Search:
    """cost: of a set S of channels (indices)."""

    cost: Callable[[Tensor, Tensor, list[int]], Tensor] = lambda C, F, S: (C[S][:, S] * F[S][:, S]).sum()

    def __call__(self, C: Tensor, F: Tensor, gone: int) -> Tensor:
        sets = [list(S) for S in combinations(range(len(C)), gone)]
        return _mask(len(C), min(sets, key=lambda S: float(self.cost(C, F, S))))


def _mask(d: int, gone: list[int]) -> Tensor:
    keep = torch.ones(d, dtype=torch.bool)
    keep[gone] = False
    return keep


def _one_by_one(C: Tensor, F: Tensor, gone: int) -> Tensor:
    lost: list[int] = []
    for _ in range(gone):
        left = [j for j in range(len(C)) if j not in lost]
        lost.append(min(left, key=lambda j: float(_Search().cost(C, F, [*lost, j]))))
    return _mask(len(C), lost)


def _moments(d: int, seed: int) -> tuple[Tensor, Tensor]:
    h, g = normal(3 * d, d, seed=seed).double(), normal(3 * d, d, seed=seed + 1).double()
    common = normal(3 * d, 1, seed=seed + 2).double()  # what all channels share, with either sign
    signs = normal(d, seed=seed + 3).sign().double()
    h, g = h + common * signs, g + common
    return h.T @ h / len(h), g.T @ g / len(g)


def _spread(C: Tensor, F: Tensor) -> tuple[Tensor, Tensor]:
    """Channels of very different loudness, the loud ones read least."""
    scale = torch.logspace(-1, 1, len(C), dtype=torch.float64)
    return C * scale[:, None] * scale, F / scale[:, None] / scale


cheapest_channels = Exercise(
    name="cheapest_channels",
    chapter=15,
    title="which channels of the stream may go when stream and slope are both known",
    reference=_Search(),
    difficulty=3,
    wrong=mistakes(
        {
            "each channel alone": _Search(lambda C, F, S: (C.diagonal() * F.diagonal())[S].sum()),
            "one after the other": _one_by_one,
            "loudness alone": _Search(lambda C, F, S: C.diagonal()[S].sum()),
            "slope alone": _Search(lambda C, F, S: F.diagonal()[S].sum()),
            "cut after the product": _Search(lambda C, F, S: (C @ F).diagonal()[S].sum()),
            "traces multiplied": _Search(lambda C, F, S: C.diagonal()[S].sum() * F.diagonal()[S].sum()),
            "sizes of the products": _Search(lambda C, F, S: (C[S][:, S] * F[S][:, S]).abs().sum()),
            "costliest set": _Search(lambda C, F, S: -_Search().cost(C, F, S)),
            "inverted mask": inverted(_Search()),
        },
        """
        each channel alone: You added up what each channel costs alone. Gone together, they also cost the products of
          pairs, which may have either sign.
        one after the other: You removed the cheapest channel, then the next. The cheapest set need not hold the
          cheapest channel: try all sets.
        loudness alone: You removed the quietest channels, as PCA would. Where did the slope go?
        slope alone: You removed the channels to which the loss is least sensitive, however loud they are.
        cut after the product: You multiplied the whole matrices and cut the product. Then channels that stay are in
          the sum: cut first.
        traces multiplied: You multiplied the loudness of the set by its sensitivity. That makes every channel of the
          set pay for every other, whatever they have to do with each other.
        sizes of the products: You took the absolute value of each product. Two channels that undo each other's change
          cost less together, and the sign says so.
        costliest set: This is the set that costs most.
        inverted mask: The mask is the opposite of what was asked for: True means *kept*.
        """,
    ),
    cases=lambda: [
        Case("two of five", (*_moments(5, 1570), 2)),
        Case("three of seven", (*_moments(7, 1580), 3)),
        Case("four of eight", (*_moments(8, 1590), 4)),
        Case("loud channels that nobody reads", (*_spread(*_moments(6, 1600)), 2)),
        Case("one of four", (*_spread(*_moments(4, 1610)), 1)),
        Case("three of six", (*_spread(*_moments(6, 1620)), 3)),
        Case("none", (*_moments(4, 1630), 0)),
    ],
)

EXERCISES = [express_block, break_even, bake_mean, cheapest_channels]
