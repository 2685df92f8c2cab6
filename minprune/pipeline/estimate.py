"""What a run from disk to disk will take, from the shapes of the model alone: memory, disk, operations. Chapter 22.

With T calibration tokens, hidden width d, a matrix (o, i), and an operation being a multiplication or an addition:

    forward      2 o i T for each matrix, 4 L a T for attention over windows of L tokens with heads of width a together
    statistics   i (i + 144) T for each tensor that is read: the half of X^T X on and below the diagonal, in panels
    solve        a i^3 + b o i^2 + c o i seconds, the method's own; a, b, c are measured, see `rates.py`
    error        2 o i (i + 144): tr(D G D^T) and tr(W G W^T), each from half of G
    files        every weight is read once, written once and hashed once

Several batches go through a block once for each tensor that is read there, as far as that tensor, and once as a whole.
In memory are what stands outside of the blocks, one block, the hidden states twice (those before the first block stay),
and the largest of: what a forward pass holds, a Gram matrix with what its solve makes of it, a part being read.

Left out: what the library does beside products (norms, activations), which the measured rate of a forward pass holds.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

from minprune.models.blocks import decoder_blocks, text_config
from minprune.models.layers import Layer
from minprune.pipeline.disk_run import TEST_BATCH
from minprune.pipeline.shared_pruner import pack
from minprune.statistics import PANEL, TOKENS_AT_ONCE

FLOAT = 4  # bytes of a number of a sum
_HIDDEN, _WIDE = 5, 3  # tensors of the hidden width and of the widest layer that a block holds at once
LIBRARIES, KEPT = 8e7, 0.2  # bytes that libraries load as they are used, and the allocator's share: plan.json
_LOGITS = 3  # copies of the logits of a batch of the test: as they come, in float32, and their logarithms
# What a solve holds beside the Gram matrix and the weights, in float32 numbers: stages of (i^2, o i, o).
_SOLVES: dict[str, list[tuple[float, float, float]]] = {
    "magnitude": [(0, 5, 0)],
    "wanda": [(0, 3.25, 0)],
    "ria": [(0, 4, 0)],
    "obd": [(0, 5.5, 0)],
    "sparsegpt": [(2, 0, 0), (1, 2.25, 4.5 * 128)],  # the last: of one block of columns
    "admm": [(2, 2.5, 0), (1, 6.5, 0)],
    "alps": [(2, 8, 0)],
    "swaps": [(0, 8, 0)],
    "exact": [(4, 4, 0)],
    "obs": [(3, 4, 0)],
}
_OTHER: list[tuple[float, float, float]] = [(4, 8, 0)]  # of a method that is not among them
_SCRATCH = 64e6  # bytes that exact, obs and swaps work in


@dataclass(frozen=True)
class Group:
    """Matrices of one block that read one tensor, and so share one Gram matrix.

    shapes: (d_out, d_in) of each. share: of the tokens that reach it, less than 1 for an expert.
    """

    shapes: tuple[tuple[int, int], ...]
    share: float = 1.0

    @property
    def d_in(self) -> int:
        return self.shapes[0][1]

    @property
    def weights(self) -> int:
        return sum(map(prod, self.shapes))


@dataclass(frozen=True)
class Sizes:
    """The numbers of a model that decide what a run takes.

    blocks: the groups of each block. parameters: of each block, all of them. outside: parameters outside of the
    blocks. attention: the heads' widths together. itemsize: bytes of a weight. streamed: whether its blocks can be read
    one at a time.
    """

    blocks: tuple[tuple[Group, ...], ...]
    parameters: tuple[int, ...]
    outside: int
    hidden: int
    attention: int
    vocabulary: int
    itemsize: int = 4
    streamed: bool = True

    @cached_property
    def total(self) -> int:
        """All parameters of the model."""
        return self.outside + sum(self.parameters)

    @cached_property
    def widest(self) -> int:
        return max((max(shape) for groups in self.blocks for group in groups for shape in group.shapes), default=0)


@dataclass(frozen=True)
class Run:
    """What is asked for. windows: of calibration, 0 without. batch_size: of them at a time. test: windows of a test."""

    method: str
    windows: int
    length: int
    batch_size: int
    test: int = 0

    @property
    def tokens(self) -> int:
        return self.windows * self.length

    @property
    def batches(self) -> int:
        return -(-self.windows // self.batch_size) if self.windows else 0

    @property
    def more_tokens(self) -> int:
        """Tokens beside those of calibration: of the test, dense and pruned, and of the check that no block sees ahead.

        That check has 7 short windows of 8 tokens and two of full length, all in two versions.
        """
        return 2 * self.test * self.length + (2 * (7 * 8 + 2 * self.length) if self.windows or self.test else 0)


def sizes_of(model: Any, layers: Iterable[Layer], streamed: bool = True) -> Sizes:
    """The sizes of a model, whose tensors may be on the meta device. layers: those that are pruned."""
    prefix, blocks = decoder_blocks(model)
    config = text_config(model)
    chosen = list(layers)
    grouped = [
        groups_of([x for x in chosen if x.name.startswith(f"{prefix}.{i}.")], config) for i in range(len(blocks))
    ]
    inside = [sum(p.numel() for p in block.parameters()) for block in blocks]
    counts = getattr(config, "num_attention_heads", 0) or 0
    heads = max(counts) if isinstance(counts, (list, tuple)) else counts  # one number, or one a block
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    total = sum(parameter.numel() for parameter in model.parameters())  # tied ones once
    return Sizes(
        tuple(grouped),
        tuple(inside),
        total - sum(inside),
        config.hidden_size,
        heads * width,
        config.vocab_size,
        model.dtype.itemsize,
        streamed,
    )


def groups_of(layers: list[Layer], config: Any) -> tuple[Group, ...]:
    """The layers of one block by what they read, guessed from names and shapes, since nothing is run.

    Neighbours in one module with equal d_in read one tensor, but for the last of several that writes hidden states: it
    reads what the others made. In blocks whose attention and MLP read one tensor (Falcon's), that finds one group more.
    """
    groups: list[list[Layer]] = []
    for at, layer in enumerate(layers):
        parent, shape = layer.name.rpartition(".")[0], layer.weight.shape
        before = groups[-1][-1] if groups else None
        last = at + 1 == len(layers) or layers[at + 1].name.rpartition(".")[0] != parent
        apart = last and shape[0] == config.hidden_size and before is not None
        same = before is not None and before.name.rpartition(".")[0] == parent and layer.expert_index is None
        if before is not None and same and before.weight.shape[1] == shape[1] and not apart:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return tuple(Group(tuple((x.weight.shape[0], x.weight.shape[1]) for x in g), _share(g[0], config)) for g in groups)


def _share(layer: Layer, config: Any) -> float:
    """The share of the tokens that reach a layer: an expert's, if all experts are asked alike."""
    if layer.expert_index is None and ".experts." not in layer.name:
        return 1.0
    counts = (getattr(config, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts"))
    experts = next((count for count in counts if count), 1)
    return min(1.0, (getattr(config, "num_experts_per_tok", None) or experts) / experts)


def forward_operations(sizes: Sizes, run: Run) -> float:
    """Of all passes through blocks, and of the head in the test."""
    whole = 0.0
    for groups in sizes.blocks:
        parts = [2 * group.weights * group.share for group in groups]
        once = sum(parts) + _attention(sizes, run)
        whole += once * (run.tokens + run.more_tokens)
        if run.batches > 1:  # a pass for each group, to its last matrix; of the first batch to the next group
            ends = [2 * prod(group.shapes[-1]) * group.share for group in groups]
            until = [sum(parts[: at + 1]) - end for at, end in enumerate(ends)]
            first = once * run.batch_size * run.length
            whole += (sum(until) + _attention(sizes, run) * (len(groups) - 1)) * run.tokens + 2 * first
    return whole + 2 * (2 * run.test * run.length) * sizes.hidden * sizes.vocabulary


def _attention(sizes: Sizes, run: Run) -> int:
    """Operations a token: its scores with all tokens of the window, and the sum of as many values."""
    return 4 * run.length * sizes.attention


def gram_operations(tokens: float, d_in: int) -> float:
    """Of `Statistics.update` with a Gram matrix: each panel of 144 columns with all rows from its first on."""
    whole, rest = divmod(d_in, PANEL)
    return 2 * tokens * (PANEL * (whole * d_in - PANEL * whole * (whole - 1) // 2) + rest**2)


def statistics_operations(sizes: Sizes, run: Run) -> float:
    """Of all Gram matrices of the model."""
    return sum(gram_operations(run.tokens * group.share, group.d_in) for groups in sizes.blocks for group in groups)


def error_operations(d_out: int, d_in: int) -> float:
    """Of a layer error."""
    return 2 * gram_operations(d_out, d_in)


def disk_bytes(sizes: Sizes, run: Run) -> dict[str, int]:
    """On the disk of the output, in bytes: the pruned model, and while the run goes on the hidden states, twice."""
    tokens = run.tokens + 2 * run.test * run.length
    model = sizes.total * sizes.itemsize
    unfinished = 0 if sizes.streamed else sum(sizes.parameters) * sizes.itemsize
    return {"model": model, "unfinished": 2 * tokens * sizes.hidden * sizes.itemsize + unfinished}


def memory_bytes(sizes: Sizes, run: Run) -> dict[str, float]:
    """The peak in bytes by what it is made of: `weights`, `hidden` states, `work` (the largest of what comes and goes).

    `kept`: what no formula has, measured: what the allocator does not give back, a share of these, and libraries that
    are loaded as they are used. The process itself (Python, torch, transformers) comes on top.
    """
    b, block = sizes.itemsize, max(sizes.parameters) * sizes.itemsize
    weights = sizes.total * b if not sizes.streamed else sizes.outside * b + block
    hidden = (2 * (run.tokens + 2 * run.test * run.length) + run.more_tokens) * sizes.hidden * b
    at_once = max(run.batch_size if run.windows else 0, TEST_BATCH if run.test or run.windows else 0) * run.length
    forward = at_once * (_HIDDEN * sizes.hidden + _WIDE * sizes.widest) * b
    logits = _LOGITS * TEST_BATCH * run.length * sizes.vocabulary * FLOAT if run.test else 0
    work: list[float] = [forward, logits, block, sizes.outside * b - block]  # the last two: as they are read
    for groups in set(sizes.blocks):
        earlier = 0
        for group in groups:
            gram = FLOAT * group.d_in**2 if run.windows else 0
            live = at_once * (3 * sizes.hidden + group.d_in) * b
            casting = 2 * min(TOKENS_AT_ONCE, at_once) * group.d_in * FLOAT
            work.append(live + earlier + gram + (casting if gram else 0))
            here = live if run.batches == 1 else 0  # else the forward pass is over when a layer is pruned
            work += [here + gram + solve_bytes(run.method, o, i, b) for o, i in group.shapes]
            earlier = gram
    kept = LIBRARIES + KEPT * (weights + hidden + max(work))
    return {"weights": weights, "hidden": hidden, "work": max(work), "kept": kept}


def solve_bytes(method: str, d_out: int, d_in: int, itemsize: int) -> float:
    """What pruning one matrix takes beside its Gram matrix and its weights, the layer error included."""
    names = method.split("+")
    stages = [stage for name in names for stage in _SOLVES.get(name, _OTHER)]
    cast = 0 if itemsize >= FLOAT else 2  # both matrices in float32
    stages.append((0, itemsize / FLOAT + 0.25 + 1 + cast, 2.5 * PANEL))  # the layer error: result, mask, difference
    scratch = _SCRATCH if {"exact", "obs", "swaps"} & {*names} else 0
    most = max(square * d_in**2 + each * d_out * d_in + row * d_out for square, each, row in stages)
    return FLOAT * most + scratch


def fitting_batch(sizes: Sizes, run: Run, memory: float) -> int:
    """The most windows at a time with which the run stays within so many bytes; 0 if not even one does."""

    def too_many(n: int) -> bool:  # more windows never take less
        return sum(memory_bytes(sizes, replace(run, batch_size=n)).values()) > memory

    return bisect_left(range(1, run.windows + 1), True, key=too_many)


def of_each_rank(run: Run, ranks: int) -> Run:
    """What each of so many ranks does of a run: its share of the windows, and as small a share of them at a time."""
    return replace(run, windows=-(-run.windows // ranks), batch_size=-(-run.batch_size // ranks))


def busiest(costs: Iterable[float], ranks: int) -> float:
    """The load of the busiest of so many ranks, if `pack` shares these costs out."""
    listed, loads = list(costs), [0.0] * ranks
    for cost, owner in zip(listed, pack(listed, ranks), strict=True):
        loads[owner] += cost
    return max(loads)


def sent_bytes(sizes: Sizes) -> float:
    """What each of several ranks gives or takes: each Gram matrix's panels with two sums, and every pruned matrix."""
    inputs = [group.d_in for groups in sizes.blocks for group in groups]
    sums = sum(FLOAT * (gram_operations(1, d_in) / 2 + 2 * d_in) for d_in in inputs)
    return sums + sum(group.weights for groups in sizes.blocks for group in groups) * sizes.itemsize
