"""A model's forward pass, block by block, for batches of windows. Chapter 08.

Which blocks there are, what one is called with, and what else travels between them is the model's own affair: see
`passes.py`. Here the batches stand before a block together, and go through it when they are told to.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minprune.models.blocks import decoder_blocks
from minprune.models.layers import backbone
from minprune.models.leftovers import Leftovers
from minprune.models.passes import ForwardPass, record_calls, replaced

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BlockwiseForward:
    """Batches of windows on their way through the blocks of a model, one block at a time.

    batches: token ids, each (windows, length). alone: whether hidden states alone travel from block to block; then
    `hidden` holds per batch the input of the next block, and a walk may be put at another block by setting it. If more
    travels, each batch is a forward pass of the model that waits at the block. Only the block that is named need have
    its weights at hand, and the first one at the beginning.
    products: makes a context that is open around each forward pass through a block, such as one of narrow products.
    left: of the walks that go through the model beside this one.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        batches: tuple[Tensor, ...],
        products: Callable[[], AbstractContextManager] = nullcontext,
        left: Leftovers | None = None,
    ):
        self.model, self.batches, self.products = model, batches, products
        self.prefix, self.blocks = decoder_blocks(model)
        self.calls = record_calls(model, self.blocks, batches) if batches else None
        self.alone = self.calls is not None or not batches
        self.hidden = list(self.calls.first) if self.calls else []
        self.left = left or Leftovers(model)
        self.passes = [] if self.alone else [ForwardPass(model, self.blocks, batch) for batch in batches]

    def run_block(self, index: int, keep: bool = False) -> list[Tensor]:
        """Send every batch through block `index` as it is. keep: return what it makes of each.

        Raises `PruneError` if the block reads what an earlier one has left in the model for another batch.
        """
        found = []
        if self.batches and self.left.varying:
            self._check_left(index, 0)
        for batch in range(len(self.batches)):
            with self.products():
                if self.calls:
                    self.hidden[batch] = self.calls.run(self.blocks, index, batch, self.hidden[batch])
                    found.append(self.hidden[batch])
                elif (hidden := self.passes[batch].step(keep)) is not None:
                    found.append(hidden)
            if batch < 2 and self.left.after(index) and self.calls:  # what it makes of anything tells if it reads
                self._check_left(index, batch)
        return found if keep else []

    def _check_left(self, index: int, batch: int) -> None:
        hidden = self.hidden[batch].clone() if self.calls else None  # which a block may have left in the model, too
        self.left.check(index, partial(self.rehearse, index, batch, hidden))

    def rehearse(self, index: int, batch: int, hidden: Tensor | None = None) -> Tensor:
        """What block `index` makes of a batch, or of other hidden states in its place; the batch stays where it is."""
        with self.products():
            if not self.calls:
                return self.passes[batch].rehearse()
            return self.calls.run(self.blocks, index, batch, self.hidden[batch] if hidden is None else hidden)

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
