"""The driver's staged form, for calibration data that do not fit through the model at once. Chapter 08.

Block by block and, inside a block, group by group: for each group of layers that read the same tensor, the batches
run up to that group, their statistics are merged, the group is pruned, and the next stage runs with it pruned. The
order and the statistics are those of one pass, so the result is too, up to the rounding of the sums.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minprune.models.hooks import capture_inputs, once, run_to_head
from minprune.models.layers import Layer, backbone, decoder_blocks
from minprune.models.passes import ForwardPass, record_calls, replaced
from minprune.statistics import Statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_EXPERTS_GRAMS = 2**32  # bytes of the Gram matrices of a mixture's experts that are kept at once


class _Enough(Exception):
    """Raised inside a block when the inputs of the current group have been seen."""


def run_staged(model: "PreTrainedModel", batches: tuple[Tensor, ...], run, whole_block: bool) -> None:
    """Prune the layers of `run`, the driver's `Run`, with batches of token ids, each (windows, length).

    whole_block: take the statistics of all layers of a block while it is still dense.
    """
    walk = BlockwiseForward(model, batches)
    for index in range(len(walk.blocks)):
        walk.prune(index, run, whole_block)
    walk.prune_head(run)


class BlockwiseForward:
    """Batches of windows on their way through the blocks of a model, one block at a time.

    batches: token ids, each (windows, length). alone: whether hidden states alone travel from block to block; then
    `hidden` holds per batch the input of the next block, and a walk may be put at another block by setting it. If more
    travels, each batch is a forward pass of the model that waits at the block. Only the block that is named need have
    its weights at hand, and the first one at the beginning.
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
        self.calls = record_calls(model, self.blocks, batches) if batches else None
        self.alone = self.calls is not None or not batches
        self.hidden = list(self.calls.first) if self.calls else []
        self.passes = [] if self.alone else [ForwardPass(model, self.blocks, batch) for batch in batches]

    def run_block(self, index: int, keep: bool = False) -> list[Tensor]:
        """Send every batch through block `index` as it is. keep: return what it makes of each."""
        found = []
        for batch in range(len(self.batches)):
            with self.products():
                if self.calls:
                    self.hidden[batch] = self.calls.run(self.blocks, index, batch, self.hidden[batch])
                    found.append(self.hidden[batch])
                elif (hidden := self.passes[batch].step(keep)) is not None:
                    found.append(hidden)
        return found if keep else []

    def rehearse(self, index: int, batch: int, hidden: Tensor | None = None) -> Tensor:
        """What block `index` makes of a batch, or of other hidden states in its place; the batch stays where it is."""
        with self.products():
            if not self.calls:
                return self.passes[batch].rehearse()
            return self.calls.run(self.blocks, index, batch, self.hidden[batch] if hidden is None else hidden)

    def prune(self, index: int, run, whole_block: bool = False, stay: bool = False) -> None:
        """Prune the layers of block `index` on what the batches bring there, and send every batch through it.

        A layer that several blocks share is pruned in the first of them that calls it, by whatever name.
        stay: leave the batches before the block.
        """
        todo = [layer for layer in run.layers_under(f"{self.prefix}.{index}.") if layer not in run.rows]
        if len(self.batches) == 1 and not whole_block:  # one pass: each layer is pruned right before it is applied
            with capture_inputs(todo, once(run.prune_on_forward())):
                if stay:
                    self.rehearse(index, 0)
                else:
                    self.run_block(index)
            return
        if todo and not whole_block:  # a stage ends before it could be seen that a layer comes again
            with capture_inputs(todo, once(lambda layer, X: None)):
                self.rehearse(index, 0)
        while todo:
            group = _Group(todo, run, whole_block)
            for batch in range(len(self.batches)):
                group.start_batch()
                with suppress(_Enough), capture_inputs(todo, group.receive):
                    self.rehearse(index, batch)
            for layer, observed in group.observed.items():
                run.prune(layer, observed)
            if not group.observed:
                break  # experts that no token reached
            todo = [layer for layer in todo if layer not in group.observed]
        if not stay:
            self.run_block(index)

    def saved(self, name: str) -> dict[str, Tensor]:
        """The hidden states by names that begin with `name`, if they are alone."""
        return {f"{name}.{batch:06d}": hidden for batch, hidden in enumerate(self.hidden)}

    def put(self, saved: dict[str, Tensor], name: str) -> None:
        """Go to where the hidden states were `saved`, which may have been of other batches of the same windows."""
        found = [saved[key].to(self.batches[0].device) for key in sorted(saved) if key.startswith(f"{name}.")]
        shapes = [hidden.shape for hidden in self.hidden]
        if self.calls and [part.shape for part in found] != shapes:
            axis = self.calls.axis
            found = list(torch.cat(found, axis).split([shape[axis] for shape in shapes], axis))
        self.hidden = found

    def prune_head(self, run) -> None:
        """Prune an output head that was asked for, on what it reads."""
        for layer in (layer for layer in run.layers if layer.module is self.model.get_output_embeddings()):
            group = _Group([layer], run, whole_block=True)
            with self.resume_after_blocks(), capture_inputs([layer], group.receive):
                for batch in self.batches:
                    group.start_batch()
                    with self.products():
                        run_to_head(self.model, batch)
            for head, observed in group.observed.items():
                run.prune(head, observed)

    @contextmanager
    def resume_after_blocks(self):
        """While open, the model reads the batches, which it must be given in their order, from where they are on."""
        if self.calls is None:
            done = iter(self.passes)
            with replaced([backbone(self.model)], lambda original: lambda *args, **kwargs: next(done).output):
                yield
            return
        calls, feed, numbers = self.calls, iter(self.hidden), count()

        def resume(original):
            number = next(numbers)

            def forward(*args, **kwargs):
                return calls.returned(calls.hidden_in(args, kwargs) if number else next(feed))

            return forward

        with replaced(self.blocks, resume):
            yield


class _Group:
    """The layers of one stage and what is observed of their inputs: those that read the first tensor to arrive.

    The experts of one mixture parameter do not feed each other and form one group, though each reads its own tensor,
    or several groups, if their Gram matrices are too large to be kept at once.
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
        if self.whole_block or self.first.expert_index is not None:
            alike = (layer.module, layer.parameter) == (self.first.module, self.first.parameter)
            if self.whole_block or (alike and (layer in self.observed or len(self.observed) < self._at_once(X))):
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

    def _at_once(self, X: Tensor) -> int:
        """How many experts' Gram matrices, (d_in, d_in) each, are kept at once."""
        size = torch.promote_types(X.dtype, torch.float32).itemsize
        return max(1, _EXPERTS_GRAMS // (size * X.shape[-1] ** 2))

    def _observe(self, layer: Layer, X: Tensor) -> None:
        if X is self.tensor and X._version == self.version:  # the statistics of this tensor are taken already
            self.observed.setdefault(layer, self.latest)
            return
        self.tensor, self.version = X, X._version
        self.latest = self.observed[layer] = self.run.observe(X, self.observed.get(layer))
