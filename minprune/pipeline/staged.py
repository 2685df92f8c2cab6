"""The staged form of pruning, for calibration data that do not fit through the model at once. Chapter 08.

Block by block and, inside a block, group by group: for each group of layers that read the same tensor, the batches
run up to that group, their statistics are merged, the group is pruned, and the next stage runs with it pruned. The
order and the statistics are those of one pass, so the result is too, up to the rounding of the sums.
"""

from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minprune.arithmetic import changes_of
from minprune.errors import PruneError
from minprune.models.forward import BlockwiseForward
from minprune.models.hooks import capture_inputs, once, run_to_head
from minprune.models.layers import Layer
from minprune.pipeline.layer_pruner import LayerPruner
from minprune.statistics import Statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EXPERTS_GRAMS = 2**32  # bytes of the Gram matrices of a mixture's experts that are kept at once


class _Enough(Exception):
    """Raised inside a block when the inputs of the current group have been seen."""


def run_staged(model: "PreTrainedModel", pruner: LayerPruner, whole_block: bool) -> None:
    """Prune the layers of a plan, whose batches of token ids are (windows, length) each.

    whole_block: take the statistics of all layers of a block while it is still dense.
    """
    blocks = BlockPruner(BlockwiseForward(model, pruner.plan.batches, pruner.plan.products), pruner)
    for index in range(len(blocks.forward.blocks)):
        blocks.prune(index, whole_block)
    blocks.prune_head()


class BlockPruner:
    """Prunes the block that the batches of a `BlockwiseForward` stand before, on what they bring there."""

    def __init__(self, forward: BlockwiseForward, pruner: LayerPruner):
        self.forward, self.pruner = forward, pruner

    def prune(self, index: int, whole_block: bool = False, stay: bool = False) -> None:
        """Prune the layers of block `index` on what the batches bring there, and send every batch through it.

        A layer that several blocks share is pruned in the first of them that calls it, by whatever name.
        stay: leave the batches before the block.
        """
        forward, pruner = self.forward, self.pruner
        todo = [x for x in pruner.plan.layers_under(f"{forward.prefix}.{index}.") if x not in pruner.log.rows]
        if (
            len(forward.batches) == 1 and not whole_block and pruner.one_pass
        ):  # one pass: each layer right before its use
            with capture_inputs(todo, once(pruner.prune_on_forward())):
                if stay:
                    forward.rehearse(index, 0)
                else:
                    forward.run_block(index)
            return
        if todo and not whole_block and forward.batches:  # a stage ends before a layer could be seen to come again
            with capture_inputs(todo, once(lambda layer, X: None)):
                forward.rehearse(index, 0)
        while todo:
            group = _Group(todo, pruner, whole_block)
            for batch in range(len(forward.batches)):
                group.start_batch()
                with suppress(_Enough), capture_inputs(todo, group.receive):
                    forward.rehearse(index, batch)
            done = pruner.prune_group(group.observed)
            if not done:
                break  # experts that no token reached
            todo = [layer for layer in todo if layer not in done]
        if not stay:
            forward.run_block(index)

    def prune_head(self) -> None:
        """Prune an output head that was asked for, on what it reads."""
        forward, pruner = self.forward, self.pruner
        for layer in (x for x in pruner.plan.layers if x.module is forward.model.get_output_embeddings()):
            group = _Group([layer], pruner, whole_block=True)
            with forward.resume_after_blocks(), capture_inputs([layer], group.receive):
                for batch in forward.batches:
                    group.start_batch()
                    with forward.products():
                        run_to_head(forward.model, batch)
            pruner.prune_group(group.observed)


class _Group:
    """The layers of one stage and what is observed of their inputs: those that read the first tensor to arrive.

    The experts of one mixture parameter do not feed each other and form one group, though each reads its own tensor,
    or several groups, if their Gram matrices are too large to be kept at once.
    """

    def __init__(self, todo: list[Layer], pruner: LayerPruner, whole_block: bool):
        self.todo, self.pruner, self.whole_block = set(todo), pruner, whole_block
        self.observed: dict[Layer, Statistics] = {}  # layers that share a tensor share them
        self.latest: Statistics | None = None
        self.first: Layer | None = None
        self.complete = False  # whether the first batch has told which layers belong to the group

    def start_batch(self) -> None:
        self.complete = self.first is not None
        self.waiting = set(self.observed)
        self.tensor: Tensor | None = None
        self.state: object = None

    def receive(self, layer: Layer, X: Tensor) -> None:
        """Take X if the layer is of this group; stop the block once nothing more can come."""
        if layer not in self.todo or not X.numel():
            return
        self.first = self.first or layer
        if self.whole_block or self.first.expert_index is not None:
            if self.whole_block or (
                self._alike(layer) and (layer in self.observed or len(self.observed) < self._at_once(X))
            ):
                self._observe(layer, X)
            return
        same = self.tensor is None or (X is self.tensor and changes_of(X) == self.state)
        if layer in self.waiting or (not self.complete and same):
            self._observe(layer, X)
            self.waiting.discard(layer)
        elif not self.complete:
            raise _Enough
        if self.complete and not self.waiting:
            raise _Enough

    def _alike(self, layer: Layer) -> bool:
        """Whether the layer is an expert of the same parameter as the first one."""
        first = self.first or layer
        return (layer.module, layer.parameter) == (first.module, first.parameter)

    def _at_once(self, X: Tensor) -> int:
        """How many experts' Gram matrices, (d_in, d_in) each, are kept at once."""
        size = torch.promote_types(X.dtype, torch.float32).itemsize
        count = max(1, _EXPERTS_GRAMS // (size * X.shape[-1] ** 2))
        if self.pruner.ranks.size > 1 and count < sum(
            self._alike(layer) for layer in self.todo
        ):  # which came first is another for each process
            raise PruneError("the Gram matrices of all experts do not fit at once: prune this model with one process")
        return count

    def _observe(self, layer: Layer, X: Tensor) -> None:
        if X is self.tensor and changes_of(X) == self.state:  # the statistics of this tensor are taken already
            self.observed.setdefault(layer, self.latest)  # type: ignore[arg-type]
            return
        self.tensor, self.state = X, changes_of(X)
        self.latest = self.observed[layer] = self.pruner.observe(X, self.observed.get(layer))
