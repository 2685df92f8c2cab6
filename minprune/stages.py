"""The driver's staged form, for calibration data that do not fit through the model at once. Chapter 08.

Block by block and, inside a block, group by group: for each group of layers that read the same tensor, the batches
run up to that group, their statistics are merged, the group is pruned, and the next stage runs with it pruned. The
order and the statistics are those of one pass, so the result is too, up to the rounding of the sums.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from minprune.model import Layer, backbone, decoder_blocks
from minprune.statistics import Statistics
from minprune.watch import watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Enough(Exception):
    """Raised inside a block when the inputs of the current group have been seen."""


def run_staged(model: "PreTrainedModel", batches: tuple[Tensor, ...], run, whole_block: bool) -> None:
    """Prune the layers of `run`, the driver's `Run`, with batches of token ids, each (windows, length).

    whole_block: take the statistics of all layers of a block while it is still dense.
    """
    walk = Walk(model, batches)
    for index in range(len(walk.blocks)):
        walk.prune(index, run, whole_block)
    walk.prune_head(run)


class Walk:
    """Batches of windows on their way through the blocks of a model, one block at a time.

    batches: token ids, each (windows, length). hidden: per batch the input of the next block, (windows, length,
    d_model). Only the block that is named need have its weights at hand, and the first one at the beginning.
    products: makes a context that is open around each forward pass through a block, such as one of narrow products.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        batches: tuple[Tensor, ...],
        products: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.model, self.batches, self.products = model, batches, products
        self.prefix, self.blocks = decoder_blocks(model)
        recorded = [record_calls(model, self.blocks, batch) for batch in batches]
        self.hidden = [hidden for hidden, _ in recorded]
        self.calls = [calls for _, calls in recorded]  # per batch, per block

    def through(self, index: int) -> None:
        """Send every batch through block `index` as it is."""
        for batch, calls in enumerate(self.calls):
            with self.products():
                self.hidden[batch] = calls[index].replay(self.blocks[index], self.hidden[batch])

    def prune(self, index: int, run, whole_block: bool = False) -> None:
        """Prune the layers of block `index` on what the batches bring there, and send every batch through it."""
        block, todo = self.blocks[index], run.layers_under(f"{self.prefix}.{index}.")
        if len(self.batches) == 1 and not whole_block:  # one pass: each layer is pruned right before it is applied
            with watch(todo, run.on_sight()):
                self.through(index)
            return
        while todo:
            group = _Group(todo, run, whole_block)
            for calls, hidden in zip(self.calls, self.hidden, strict=True):
                group.start_batch()
                try:
                    with self.products(), watch(todo, group.receive):
                        calls[index].replay(block, hidden)
                except _Enough:
                    pass
            for layer, observed in group.observed.items():
                run.prune(layer, observed)
            if not group.observed:
                break  # experts that no token reached
            todo = [layer for layer in todo if layer not in group.observed]
        self.through(index)

    def prune_head(self, run) -> None:
        """Prune an output head that was asked for, on what the final norm makes of the last block's outputs."""
        for layer in (layer for layer in run.layers if layer.owner is self.model.get_output_embeddings()):
            observed = None
            with self.at_the_end():
                for batch in self.batches:
                    with self.products():
                        out = backbone(self.model)(input_ids=batch, use_cache=False).last_hidden_state
                    observed = run.observe(out, observed)
            run.prune(layer, observed)

    @contextmanager
    def at_the_end(self):
        """While open, the model reads the batches, which it must be given in their order, from `hidden` onwards."""
        feed, numbers = iter(self.hidden), count()

        def resume(original):
            number = next(numbers)

            def forward(hidden, *args, **kwargs):
                hidden = hidden if number else next(feed)
                return (hidden,) if self.calls[0][0].returns_tuple else hidden

            return forward

        with replaced(self.blocks, resume):
            yield


class _Group:
    """The layers of one stage and what is observed of their inputs: those that read the first tensor to arrive.

    The experts of one mixture parameter do not feed each other and form one group, though each reads its own tensor.
    """

    def __init__(self, todo: list[Layer], run, whole_block: bool):
        self.todo, self.run, self.whole_block = set(todo), run, whole_block
        self.observed: dict[Layer, Statistics] = {}  # layers that share a tensor share them
        self.latest: Any = None
        self.first: Layer | None = None
        self.complete = False  # whether the first batch has told which layers belong to the group

    def start_batch(self) -> None:
        self.complete = self.first is not None
        self.waiting = set(self.observed)
        self.tensor: Tensor | None = None
        self.version = 0

    def receive(self, layer: Layer, X: Tensor) -> None:
        """Take X if the layer is of this group; stop the block once nothing more can come."""
        if layer not in self.todo or not X.numel():
            return
        self.first = self.first or layer
        if self.whole_block or self.first.expert is not None:
            if self.whole_block or (layer.owner, layer.parameter) == (self.first.owner, self.first.parameter):
                self._observe(layer, X)
            return
        same = self.tensor is None or (X is self.tensor and X._version == self.version)
        if layer in self.waiting or (not self.complete and same):
            self._observe(layer, X)
            self.waiting.discard(layer)
        elif not self.complete:
            raise _Enough
        if self.complete and not self.waiting:
            raise _Enough

    def _observe(self, layer: Layer, X: Tensor) -> None:
        if X is self.tensor and X._version == self.version:  # the statistics of this tensor are taken already
            self.observed.setdefault(layer, self.latest)
            return
        self.tensor, self.version = X, X._version
        self.latest = self.observed[layer] = self.run.observe(X, self.observed.get(layer))


@dataclass
class _Call:
    """How one block is called for one batch: all arguments but the hidden states, and whether it returns a tuple."""

    args: tuple
    kwargs: dict
    returns_tuple: bool

    def replay(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """What the block makes of these hidden states."""
        out = block(hidden, *self.args, **self.kwargs)
        return out[0] if self.returns_tuple else out


def record_calls(model: "PreTrainedModel", blocks: nn.ModuleList, batch: Tensor) -> tuple[Tensor, list[_Call]]:
    """The first block's hidden states for a batch, and how the model calls each block: masks may differ between them.

    A dry run in which every block hands its input on unchanged. Whether this family's blocks return a tuple shows
    only when one really runs, so the first one does.
    """
    calls: list[_Call] = []
    first: list[Tensor] = []

    def recorder(original):
        def forward(hidden, *args, **kwargs):
            is_tuple = calls[0].returns_tuple if calls else isinstance(original(hidden, *args, **kwargs), tuple)
            first.append(hidden)
            calls.append(_Call(args, kwargs, is_tuple))
            return (hidden,) if is_tuple else hidden

        return forward

    with replaced(blocks, recorder):
        backbone(model)(input_ids=batch, use_cache=False)
    return first[0], calls


@contextmanager
def replaced(blocks: nn.ModuleList, make):
    """Every block's forward replaced by make(its own forward), and put back."""
    own = [vars(block).get("forward") for block in blocks]  # a library that moves weights may have replaced it, too
    try:
        for block in blocks:
            block.forward = make(block.forward)
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            vars(block).pop("forward", None)
            if forward is not None:
                block.forward = forward
