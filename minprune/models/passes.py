"""Forward passes that wait before each block, and the record of how blocks are called. Chapter 08.

Between its blocks a model does as it likes: most hand on hidden states alone, others share keys and values, carry a
state along, or scale what the next block gets. None of that is imitated. A `ForwardPass` is the model's own forward
pass, run in a greenlet, a function that can be left in its middle and gone on with: it stops where a block is called,
the block is run from outside as often as is wanted, and the pass goes on with what the block returned.

If hidden states are all that travels, a pass need not be kept for each batch: `record_calls` notes once what else the
blocks are called with, and a walk can begin at any block, given its hidden states.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, is_dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from minprune.arithmetic import changes_of
from minprune.errors import PruneError
from minprune.models.layers import backbone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INERT = (type(None), bool, int, float, str, torch.dtype, torch.device)  # what a block cannot pass anything on in
_BESIDE = object()  # stands for what a block returns beside hidden states: a model that uses it shows that it travels


class ForwardPass:
    """The model's forward pass over one batch of token ids (windows, length), waiting before block `index`.

    args, kwargs: what the block is called with. output: what the backbone returned, once all blocks are done. Blocks
    need their weights only when they are run. Raises `PruneError` if they are called in another order than they
    stand in, or with something that cannot be copied.
    """

    def __init__(self, model: "PreTrainedModel", blocks: nn.ModuleList, tokens: Tensor):
        self.blocks, self.index, self.output = blocks, -1, None
        self.family = type(model).__name__
        self._not_copied: dict[int, Any] = {id(part): part for part in (*model.modules(), model.config)}
        self._pass = greenlet(lambda _: backbone(model)(input_ids=tokens, use_cache=False))
        self.go_on(None)

    def go_on(self, output: Any) -> None:
        """Let the block that is waited for return `output`, and wait before the next one."""
        self.args, self.kwargs = (), {}
        here, numbers, expected = getcurrent(), count(), self.index + 1

        def waiting(original):
            number = next(numbers)  # no reference to self: a cycle through a paused frame would never be freed
            return lambda *args, **kwargs: here.switch((number, args, kwargs))

        with replaced(self.blocks, waiting):
            found = self._pass.switch(output)
        if self._pass.dead:
            self.index, self.output = len(self.blocks), found
        else:
            self.index, self.args, self.kwargs = found
        if self.index != expected:
            raise PruneError(
                f"{self.family} does not call its blocks once each in their order (block {self.index} where block "
                f"{expected} stands): it cannot be pruned in parts"
            )

    def step(self, keep: bool = False) -> Tensor | None:
        """Run the block, and wait before the next one. keep: return its hidden states, a copy."""
        out = self.blocks[self.index].forward(*self.args, **self.kwargs)
        hidden = self._hidden_of(out).clone() if keep else None
        self.go_on(out)
        return hidden

    def rehearse(self) -> Tensor:
        """What the block makes of a copy of all that it is called with: whatever it changes there is forgotten."""
        try:
            args, kwargs = deepcopy((self.args, self.kwargs), dict(self._not_copied))
        except TypeError as error:
            raise PruneError(
                f"the blocks of {self.family} share something that cannot be copied ({error}): prune all windows in "
                "one batch"
            ) from error
        return self._hidden_of(self.blocks[self.index].forward(*args, **kwargs))

    def _hidden_of(self, out: Any) -> Tensor:
        return hidden_of(out, next(_tensors(_parts(self)), None))


def check_forward(model: "PreTrainedModel") -> None:
    """Raise `PruneError` if a forward pass changes the model's weights: saved and loaded, they would change again."""
    every = getattr(model.config, "rescale_every", 0)
    if model.config.model_type == "rwkv" and 0 < every < model.config.num_hidden_layers:
        raise PruneError(
            f"{type(model).__name__} scales its own weights in its forward pass, from block {every} on, and would "
            "do so again after it is loaded: set rescale_every to 0 in its configuration"
        )


@dataclass(frozen=True)
class Calls:
    """How blocks are called in a family in which hidden states alone travel from block to block.

    An argument's key is its position or its name. place: the key of the hidden states. container: the type and length
    of what a block returns, hidden states first; None: a bare tensor. axis: that of the windows. first: each batch's
    hidden states before the first block. others: for each batch and block its other arguments; what is equal in
    batches of one shape is stored once.
    """

    place: int | str
    container: tuple[type, int] | None
    axis: int
    first: list[Tensor]
    others: list[list[dict[int | str, Any]]]

    def run(self, blocks: nn.ModuleList, index: int, batch: int, hidden: Tensor) -> Tensor:
        """What block `index` makes of hidden states, which stay as they are, called as for that batch.

        Raises `PruneError` if it changes another argument, which the first block did not.
        """
        parts = self.others[batch][index]
        before = _states(parts)
        out = _call(blocks[index], parts | {self.place: hidden.clone()})
        if _states(parts) != before:
            raise PruneError(
                f"block {index} ({type(blocks[index]).__name__}) changes what all blocks are called with, unlike the "
                "first block: prune all windows in one batch"
            )
        return hidden_of(out, hidden)

    def hidden_in(self, args: tuple, kwargs: dict) -> Tensor:
        """The hidden states among the arguments of a block."""
        return args[self.place] if isinstance(self.place, int) else kwargs[self.place]

    def returned(self, hidden: Tensor, beside: Any = None) -> Any:
        """What a block returns, made of these hidden states."""
        return _returned(self.container, hidden, beside)


def record_calls(model: "PreTrainedModel", blocks: nn.ModuleList, batches: tuple[Tensor, ...]) -> Calls | None:
    """How the blocks are called for each batch of token ids (windows, length); None if more than hidden states travels.

    More travels if a block is called with anything that it could leave something in (a dict, a list, a cache), changes
    a tensor that it is called with, or returns beside the hidden states what the next block gets; or if the model
    itself does anything with hidden states on their way from block to block. Only the first block is run, on one
    window; the others hand on NaN, and what the first one returned beside hidden states is a mere object.
    """
    if any(block._forward_pre_hooks for block in blocks):
        return None
    one = ForwardPass(model, blocks, batches[0][:1])
    parts = _parts(one)
    place = next((key for key, value in parts.items() if isinstance(value, Tensor)), None)
    axis = _windows_axis(model, blocks, batches[0][:1], place, parts)
    if place is None or axis is None or not all(map(_is_inert, parts.values())):
        return None
    others = {key: value for key, value in parts.items() if key != place}
    before = _states(others)
    out = _call(blocks[0], parts)
    listed = type(out) in (tuple, list) and len(out) > 0
    if _states(others) != before or not _alike(out[0] if listed else out, parts[place]):
        return None
    container = (type(out), len(out)) if listed else None
    calls = Calls(place, container, axis, [], [])
    known: dict[tuple, dict] = {}  # by the shape of the batch
    for tokens in batches:
        try:
            found = _dry_run(ForwardPass(model, blocks, tokens), place, container)
        except PruneError:
            raise
        except Exception:  # of any kind: the model does something with what stands in for hidden states or the rest
            return None
        if found is None:
            return None
        first, others_of_blocks = found
        calls.first.append(first)
        calls.others.append(_stored_once(others_of_blocks, known.setdefault(tuple(tokens.shape), {})))
    return calls


def _dry_run(waiting: ForwardPass, place: int | str, container) -> tuple[Tensor, list[dict]] | None:
    """The first block's hidden states and the other arguments of each block, if nothing else depends on a block."""
    first = handed = _parts(waiting)[place]
    others: list[dict] = []
    seen: dict[int, Tensor] = {}
    while True:
        parts = _parts(waiting)
        if parts.pop(place, None) is not handed or not all(map(_is_inert, parts.values())):
            return None
        new = {id(tensor): tensor for tensor in _tensors(parts) if id(tensor) not in seen}
        if any(bool(tensor.isnan().any()) for tensor in new.values()):  # made of what was handed on
            return None
        seen |= new
        others.append(parts)
        if waiting.index == len(waiting.blocks) - 1:
            return first, others
        handed = first.new_full((), float("nan")).expand(first.shape)
        waiting.go_on(_returned(container, handed, _BESIDE))


def hidden_of(out: Any, given: Tensor | None = None) -> Tensor:
    """The hidden states in what a block returns: the first tensor in it that has the shape of those that it was given.

    What else it returns (a loss, a router's logits) may stand before them. If none has that shape, the first tensor.
    """
    found = list(_tensors(out))
    return next((tensor for tensor in found if given is not None and tensor.shape == given.shape), found[0])


@contextmanager
def replaced(blocks: Iterable[nn.Module], make: Callable) -> Iterator[None]:
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


def _parts(waiting: ForwardPass) -> dict[int | str, Any]:
    return {**dict(enumerate(waiting.args)), **waiting.kwargs}


def _call(block: nn.Module, parts: dict[int | str, Any]) -> Any:
    positions = sorted(key for key in parts if isinstance(key, int))
    names = {key: value for key, value in parts.items() if isinstance(key, str)}
    return block(*(parts[key] for key in positions), **names)


def _returned(container: tuple[type, int] | None, hidden: Tensor, beside: Any) -> Any:
    if container is None:
        return hidden
    kind, length = container
    return kind([hidden, *[beside] * (length - 1)])


def _is_inert(value: Any) -> bool:
    """Whether nothing can be left in a value, but for changing a tensor in place."""
    if type(value) in (tuple, torch.Size):
        return all(map(_is_inert, value))
    return isinstance(value, (*_INERT, Tensor))


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)) or (is_dataclass(value) and not isinstance(value, type)):
        named = value if isinstance(value, dict) else getattr(value, "__dict__", {})
        for part in value if isinstance(value, (tuple, list)) else named.values():
            yield from _tensors(part)


def _states(parts: Any) -> list[object]:
    """Equal at two moments if no tensor has been changed in place between them."""
    return [changes_of(tensor) for tensor in _tensors(parts)]


def _alike(out: Any, hidden: Tensor) -> bool:
    return isinstance(out, Tensor) and (out.shape, out.dtype) == (hidden.shape, hidden.dtype)


def _windows_axis(model, blocks, window: Tensor, place, parts: dict) -> int | None:
    """The one axis along which hidden states grow with the windows."""
    twice = _parts(ForwardPass(model, blocks, window.repeat(2, 1))).get(place)
    if not isinstance(twice, Tensor):
        return None
    grown = [axis for axis, (a, b) in enumerate(zip(parts[place].shape, twice.shape, strict=True)) if a != b]
    return grown[0] if len(grown) == 1 else None


def _stored_once(calls: list[dict], known: dict) -> list[dict]:
    """The calls of one batch, with the tensors of an earlier batch of its shape (`known`) where these are equal."""
    same: dict[int, Tensor] = {}  # id of a tensor of this batch -> what is stored

    def stored(value: Any, where: tuple) -> Any:
        if isinstance(value, tuple):
            return tuple(stored(part, (*where, number)) for number, part in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        if id(value) not in same:
            earlier = known.setdefault(where, value)
            same[id(value)] = earlier if _alike(earlier, value) and torch.equal(earlier, value) else value
        return same[id(value)]

    return [{key: stored(value, (index, key)) for key, value in parts.items()} for index, parts in enumerate(calls)]
