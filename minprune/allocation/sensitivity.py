"""What it costs to prune one part of a model: the trial runs behind sensitivity analysis. Chapter 11.

One dense pass takes the norms of all layers' inputs. After that any table of sparsities is tried with Wanda's masks,
which need nothing more, and judged on other windows by the mean of KL(dense || pruned) over their tokens. A trial
that changes blocks from i on starts at block i: what reaches it is remembered. Where blocks hand each other more than
hidden states, it starts at the first.

Left out: recalibrating the layers behind a pruned one, and updating weights. A trial should be cheap, not good.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from minprune.allocation.budget import group_layers, sizes_of
from minprune.arguments import checked
from minprune.arithmetic import ordinary_tensors
from minprune.errors import PruneError
from minprune.methods.wanda import wanda
from minprune.models.causality import check_causal
from minprune.models.checks import check_weights
from minprune.models.hooks import capture_inputs, check_compiled, eager_experts
from minprune.models.layers import Layer, backbone, check_windows, decoder_blocks, find_layers
from minprune.models.modes import eval_mode
from minprune.models.overlaps import check_apart
from minprune.models.passes import check_forward, record_calls, replaced
from minprune.patterns import Pattern
from minprune.patterns import pattern as read_pattern
from minprune.statistics import Statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELD_OUT = 2  # windows that costs are measured on, at most


class Trial:
    """A model that is pruned for a trial and gets its dense weights back. Make one with `trial`.

    windows (windows, length): what costs are measured on; keep them few, for the dense model's log-probabilities are
    kept for all their tokens. norms: layer -> Statistics of its inputs in the dense model, without a Gram matrix.
    """

    @torch.no_grad()
    def __init__(self, model: "PreTrainedModel", layers: list[Layer], calib: Tensor, windows: Tensor):
        self.model, self.layers, self.windows = model, layers, windows
        self.prefix, self.blocks = decoder_blocks(model)
        self.dense = {layer: layer.weight.clone() for layer in layers}
        self.norms = dense_norms(model, layers, calib)
        self._alone = record_calls(model, self.blocks, windows.split(1)[:1]) is not None
        self._rest: Pattern | None = None
        self._outputs: list[list] = []  # per window, what each block returned with the rest of the model as it is
        dense = self._remember()  # per window (length, vocabulary), logits
        self._probabilities = [logits.softmax(-1) for logits in dense]
        self._entropy = [_cross_entropy(logits, p) for logits, p in zip(dense, self._probabilities, strict=True)]

    def scores(self, layer: Layer) -> Tensor:
        """Wanda's scores of a layer's dense weights, (d_out, d_in)."""
        return self.dense[layer].abs() * self.norms[layer].sq_norm.sqrt()

    @torch.no_grad()
    def set_rest(self, rest: Pattern | None) -> None:
        """Prune all layers with one pattern (None: leave them dense): later trials start from there."""
        self._rest = rest
        self._set(dict.fromkeys(self.layers, rest))
        self._remember()

    @torch.no_grad()
    def cost(self, table: Mapping[Layer, Pattern]) -> float:
        """Mean over the windows' tokens of KL(dense || pruned), in nats, with the layers of the table pruned by it.

        All other layers are as `set_rest` left them, and afterwards these are, too.
        """
        start = min((self._block_of(layer) for layer in table), default=len(self.blocks)) if self._alone else 0
        self._set(table)
        try:
            total = 0.0
            for window, outputs, p, entropy in zip(
                self.windows.split(1), self._outputs, self._probabilities, self._entropy, strict=True
            ):
                before = deepcopy(outputs[start - 1])  # of the last block before the change; the next may write to it
                with replaced(self.blocks[:start], lambda original, before=before: lambda *args, **kwargs: before):
                    total += _cross_entropy(self._logits(window), p) - entropy
        finally:
            self._set(dict.fromkeys(table, self._rest))
        return total / self.windows.numel()

    @torch.no_grad()
    def restore(self) -> None:
        """Give every layer its dense weights back."""
        self._set(dict.fromkeys(self.layers))

    def _set(self, table: Mapping[Layer, Pattern | None]) -> None:
        for layer, pattern in table.items():
            W = self.dense[layer]
            unseen = not self.norms[layer].tokens  # `prune` leaves such a layer dense
            layer.weight.copy_(W if pattern is None or unseen else wanda(W, self.norms[layer], pattern).weight)
        torch.clear_autocast_cache()  # a caller's autocast may remember other weights in its own type

    def _block_of(self, layer: Layer) -> int:
        """The index of the layer's block; for a layer behind the blocks, how many blocks there are."""
        inside = re.match(rf"{re.escape(self.prefix)}\.(\d+)\.", layer.name)
        return int(inside[1]) if inside else len(self.blocks)

    def _remember(self) -> list[Tensor]:
        """Run the windows and remember what each block returns; the logits of each window, (length, vocabulary)."""
        self._outputs = []
        handles = [block.register_forward_hook(self._keep_output) for block in self.blocks]
        try:
            found = []
            for window in self.windows.split(1):
                self._outputs.append([])
                found.append(self._logits(window))
            return found
        finally:
            for handle in handles:
                handle.remove()

    def _keep_output(self, block, args, output) -> None:
        self._outputs[-1].append(deepcopy(output))

    def _logits(self, window: Tensor) -> Tensor:
        logits = self.model(input_ids=window, use_cache=False).logits[0]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _cross_entropy(logits: Tensor, p: Tensor) -> float:
    """Sum over tokens of -sum_v p_v log softmax(logits)_v, in nats: KL(p || q) is this minus the entropy of p."""
    return float(cross_entropy(logits, p, reduction="none").cpu().sum(dtype=torch.float64))


@contextmanager
def trial(model: "PreTrainedModel", layers: list[Layer], calib: Tensor | None) -> Iterator[Trial]:
    """A `Trial`, whose costs are measured on the last quarter of the windows, two at most, its norms on the others.

    calib: (windows, length) int64, at least two windows. The model has its dense weights again afterwards, whatever
    happens. Raises `PruneError` for windows that the model cannot read, or fewer than two.
    """
    calib = _given(calib)
    check_windows(model, calib)
    if len(calib) < 2:
        raise PruneError(
            "trial runs need calibration windows, some to calibrate and some to judge: 1 given, 8 or more are sensible"
        )
    check_forward(model)
    calib = calib.to(next(model.parameters()).device)
    held_out = min(HELD_OUT, max(1, len(calib) // 4))
    with _resting(model, layers):
        check_weights(model, layers)
        check_apart(model, layers)
        running = Trial(model, layers, calib[:-held_out], calib[-held_out:])
        try:
            yield running
        finally:
            running.restore()


def _given(calib: Tensor | None) -> Tensor:
    if calib is None:
        raise PruneError("this needs calibration windows: pass calib, or --calibration wikipedia on the command line")
    return calib


@torch.no_grad()
def dense_norms(model: "PreTrainedModel", layers: list[Layer], calib: Tensor | None) -> dict[Layer, Statistics]:
    """Statistics (without a Gram matrix) of each layer's inputs while nothing is pruned; calib (windows, length)."""
    calib = _given(calib)
    check_windows(model, calib)
    found = {layer: Statistics(layer.weight.shape[1], gram=False, device=layer.weight.device) for layer in layers}
    has_head = any(layer.module is model.get_output_embeddings() for layer in layers)
    run = model if has_head else backbone(model)  # the head's products are a quarter of a small model's

    def receive(layer: Layer, X: Tensor) -> None:
        found[layer].update(X)

    with _resting(model, layers):
        check_causal(model, calib.shape[1])
        with capture_inputs(layers, receive):
            for windows in calib.to(next(model.parameters()).device).split(2):
                run(input_ids=windows, use_cache=False)
    return found


@contextmanager
def _resting(model: "PreTrainedModel", layers: list[Layer]) -> Iterator[None]:
    """While open, the model is in eval mode and a mixture's experts can be watched."""
    with eval_mode(model), eager_experts(model, layers):
        yield


@dataclass(frozen=True)
class Sensitivity:
    """What pruning one group of layers costs, all else left dense.

    Parameters
    ----------
    group : str
        The block, type or layer.
    layers : int
        How many layers it has.
    parameters : int
        How many weights.
    cost : float
        The mean of KL(dense || pruned), in nats a token.

    Examples
    --------
    >>> from minprune.allocation.sensitivity import Sensitivity
    >>> Sensitivity("model.layers.0", layers=7, parameters=3_538_944, cost=0.02).cost
    0.02
    """

    group: str
    layers: int
    parameters: int
    cost: float


@checked("calib", "include", "exclude")
@ordinary_tensors()  # of those of inference mode nobody could see that a tensor was changed in place
def sensitivity(
    model: "PreTrainedModel",
    calib: Tensor,
    pattern: str | Pattern = "50%",
    by: str = "block",
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    progress: bool = False,
) -> list[Sensitivity]:
    """Prune one group of layers at a time with Wanda and measure what it costs; the model is unchanged afterwards.

    Parameters
    ----------
    model : PreTrainedModel
    calib : Tensor of int64, (windows, length)
        Costs are measured on the last quarter of the windows, two at most, and the norms taken on the others.
    pattern : str or Pattern, default "50%"
        The zeros of the group that is pruned.
    by : str, default "block"
        What a group is: "block", "type" or "layer".
    include, exclude
        Globs of layers' names, as for `minprune.prune`.
    progress : bool, default False
        Show a bar.

    Returns
    -------
    list of Sensitivity
        One for each group, in the model's order.

    Raises
    ------
    PruneError
        For a pattern that does not fit, unreadable or fewer than two windows, or another `by`.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from minprune.allocation.sensitivity import sensitivity
    >>> size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=3)).eval()
    >>> rows = sensitivity(model, torch.arange(160).reshape(8, 20) % 50, "2:4")
    >>> [row.layers for row in rows], all(row.cost > 0 for row in rows)
    ([7, 7, 7], True)
    """
    check_compiled(model)
    layers, chosen = find_layers(model, include, exclude), read_pattern(pattern)
    groups = group_layers(layers, by)
    for layer in layers:
        chosen.check(*layer.weight.shape)
    with trial(model, layers, calib) as running:
        bar = tqdm(groups.items(), desc="sensitivity", unit=by, disable=None if progress else True, leave=False)
        return [
            Sensitivity(name, len(members), int(size), running.cost(dict.fromkeys(members, chosen)))
            for (name, members), size in zip(bar, sizes_of(groups), strict=True)
        ]
