"""Does a model see the future? Decided by what it does, whatever its name and its configuration say. Chapter 09.

A causal model predicts the next token from this one and those before it. So if the tokens of a window from position
`cut` on are replaced by others, nothing may move before it. Both versions have one shape and run the same kernels, so
in a causal model the difference is not small but zero. One exception is known: a mixture multiplies another number of
rows by an expert's matrix, which may round otherwise, and at a near tie its router then makes another choice. Where
anything moves, the derivative decides: that of an earlier output with respect to a later input is exactly zero in a
causal model, in any dtype, since a masked weight is exactly zero. A choice has no derivative, though (experts that
choose their tokens compare all positions): where a mixture moves by more than rounding, it has to move as much when
its inputs are moved by no more than rounding. In bfloat16 that alone can change as many choices as the future does, so
there such a mixture may pass.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from minprune.arithmetic import ordinary_tensors
from minprune.errors import PruneError
from minprune.models.blocks import text_config
from minprune.models.dtypes import check_dtypes
from minprune.models.modes import eval_mode
from minprune.models.skeleton import plain_outputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHORT = 8  # tokens in the windows that are cut at every position
_GRADIENT = 1e-4  # of the largest derivative: below it is what a convolution by FFT rounds
_SMALL, _LARGE = 1e-3, 0.05  # standard deviations: more than rounding, and what takes another choice of experts
_ROUNDED = 0.02  # the share of a router's inputs that are rounded the other way when it is tried

_seen: WeakKeyDictionary[Any, set[tuple]] = WeakKeyDictionary()  # model -> what it was when it passed, see `_state`


class Versions(NamedTuple):
    """Windows of token ids in two versions, both (rows, length): row r of `changed` is another one from cuts[r] on."""

    base: Tensor
    changed: Tensor
    cuts: Tensor  # (rows,)

    def early(self) -> Tensor:
        """(rows, length), True at positions before the cut."""
        return torch.arange(self.base.shape[1], device=self.base.device) < self.cuts[:, None]


def check_causal(model: "PreTrainedModel", length: int = _SHORT) -> None:
    """Raise `PruneError` if a prediction depends on tokens after it, or if the dtypes of its weights let it make none.

    Short windows are cut at every position, so that no pair of neighbours escapes. What shows only in longer ones is
    looked for at `length`, the tokens in a window that the model is about to read. Once for a model as it is and a
    length: other weights change nothing about who sees whom, but another module or a flag of the configuration may.
    """
    _check_numbers(model)
    check_dtypes(model)
    passed, asked = _seen.setdefault(model, set()), (length, *_state(model))
    if asked in passed:
        return
    with evaluating(model):
        for versions in several_versions(model, length):
            _check(model, versions)
    passed.add(asked)


def _check_numbers(model: "PreTrainedModel") -> None:
    """Raise `PruneError` for a tensor on the meta device, unless something may bring it when its module runs."""
    brought = tuple(
        f"{name}." if name else ""
        for name, module in model.named_modules()
        if "forward" in vars(module) or module._forward_pre_hooks
    )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta and not name.startswith(brought):
            raise PruneError(f"{name} has no numbers (it is on the meta device): load all of the model's weights first")


def _state(model: "PreTrainedModel") -> tuple[int, str]:
    """What decides who sees whom: the modules, their flags, what replaces their forward, and the configuration."""
    flags = ((id(module), id(vars(module).get("forward")), *_plain(vars(module))) for module in model.modules())
    return hash(tuple(flags)), model.config.to_json_string()


def _plain(attributes: dict[str, Any]) -> tuple:
    return tuple(value for value in attributes.values() if isinstance(value, bool | int | str))


def several_versions(model: "PreTrainedModel", length: int) -> list[Versions]:
    """What a model is tested on that will read windows of that length: short windows, and one of that length."""
    longest = positions(model) or length
    short = min(_SHORT, longest)
    length = min(length, longest)
    found = [_versions(model, short, range(1, short))] if short > 1 else []
    if length > short:  # an odd cut lies inside a chunk of any even size
        found += [_versions(model, length, [cut]) for cut in (length // 3 | 1, length - 1)]
    return found


def pass_block(walk, index: int, versions: Versions) -> None:
    """Send both versions, the two batches of a `BlockwiseForward`, through block `index`, which must not see ahead.

    What only rounding moved is taken out again, so that it does not add up over the blocks. Raises `PruneError`.
    """
    before = walk.hidden[0] if walk.alone else None
    base, changed = (_rows_first(hidden, versions) for hidden in walk.run_block(index, keep=True))
    early = versions.early().reshape(versions.base.shape + (1,) * (base.ndim - 2))

    def run(inputs: Tensor) -> Tensor:
        kept, walk.hidden = walk.hidden, [inputs, walk.hidden[1]]
        try:
            walk.run_block(index)
            return _rows_first(walk.hidden[0], versions)
        finally:
            walk.hidden = kept

    moved = _Movement(base, changed, early)
    if moved.largest and moved.is_of_the_future(walk.blocks[index], before, run, versions):
        raise _refusal(walk.model, f"block {index} lets later positions change earlier ones")
    if moved.largest:
        changed.copy_(torch.where(early, base, changed))


@contextmanager
def evaluating(model: "PreTrainedModel") -> Iterator[None]:
    """Without gradients, and without dropout, which would make the result random; the modules' modes are restored."""
    with eval_mode(model), ordinary_tensors(), torch.no_grad(), plain_outputs(model):
        yield


def _check(model: "PreTrainedModel", versions: Versions) -> None:
    base, changed = (_logits(model, windows) for windows in (versions.base, versions.changed))
    early = versions.early()[..., None]  # (rows, length, 1)
    embeddings = model.get_input_embeddings()

    def run(inputs: Tensor) -> Tensor:
        """The logits with these embeddings in place of the model's."""
        handle = embeddings.register_forward_hook(lambda *_: inputs.clone())  # which the model may change in place
        try:
            return _logits(model, versions.base)
        finally:
            handle.remove()

    moved = _Movement(base, changed, early)
    if moved.largest and moved.is_of_the_future(model, _embedded(model, versions), run, versions):
        cut = int(versions.cuts[moved.first_row])
        raise _refusal(model, f"other tokens from position {cut} on change what it predicts before")


def _embedded(model: "PreTrainedModel", versions: Versions) -> Tensor | None:
    """What the embeddings give out for the first version; None if the model does not ask them."""
    found: list[Tensor] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, out: found.append(out.clone()))
    try:
        _logits(model, versions.base)
    finally:
        handle.remove()
    return found[0] if found else None


def _refusal(model: "PreTrainedModel", what: str) -> PruneError:
    named = ", ".join(str(name) for name in model.config.architectures or []) or type(model).__name__
    return PruneError(
        f"{model.name_or_path or 'the model'} ({named}) is not causal: {what}, so no perplexity or calibration of it "
        "would mean anything; use a model that is trained to predict the next token"
    )


class _Movement:
    """By how much the early positions of two outputs (rows, length, ...) differ, in standard deviations."""

    def __init__(self, base: Tensor, changed: Tensor, early: Tensor) -> None:
        self.base, self.early, self.deviation = base, early, base.float().std()
        apart = self._apart(changed)
        self.largest = float(apart.max() / self.deviation) if apart.any() else 0.0
        self.share = self._share(apart)
        self.first_row = int(apart.flatten(1).amax(1).argmax())

    def _apart(self, other: Tensor) -> Tensor:
        """What is NaN is for others to report."""
        return (self.base.float() - other.float()).abs().nan_to_num(0.0).masked_fill(~self.early, 0)

    def _share(self, apart: Tensor) -> float:
        """The share of early positions that lie more than `_LARGE` apart."""
        far = (apart > _LARGE * self.deviation).flatten(2).any(2)  # (rows, length)
        return float(far.sum() / self.early.flatten(2).any(2).sum())

    def is_of_the_future(self, module, inputs: Tensor | None, run, versions: Versions) -> bool:
        """Whether it is more than rounding. inputs: of the first version, which `run` makes outputs of."""
        mixture = any("expert" in f"{name} {type(part).__name__}".lower() for name, part in module.named_modules())
        if self.largest > _LARGE and not mixture:
            return True
        if inputs is None:  # they are not all that travels, so nothing can be tried with others
            return self.largest > (_LARGE if mixture else _SMALL)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                x = inputs.detach().clone().requires_grad_()
                slope = torch.autograd.grad(_weighted(run(x), self.early), x)[0]
            size = _rows_first(slope, versions).abs().float()
        except RuntimeError:  # a kernel without a derivative, or weights made in inference mode
            ahead = self.largest > _SMALL and not mixture
        else:
            ahead = bool(size.masked_fill(self.early, 0).max() > _GRADIENT * size.max())
        return ahead or (self.largest > _LARGE and self.share > 4 * self._share_of_rounding(inputs, run))

    def _share_of_rounding(self, inputs: Tensor, run) -> float:
        """The share of positions that inputs rounded otherwise move as far, the largest of four tries."""
        generator, largest = torch.Generator().manual_seed(2), 0.0
        for _ in range(4):
            rounded = (torch.rand(inputs.shape, generator=generator) < _ROUNDED).to(inputs)
            moved = run(inputs * (1 + torch.finfo(inputs.dtype).eps * rounded))
            largest = max(largest, self._share(self._apart(moved)))
        return largest


def _weighted(outputs: Tensor, early: Tensor) -> Tensor:
    """A sum of what is early, with weights that do not let derivatives cancel."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(outputs.shape, generator=generator).to(outputs.device)
    return (outputs.float() * weights.masked_fill(~early, 0)).sum()


def _rows_first(hidden: Tensor, versions: Versions) -> Tensor:
    """A view (rows, length, ...): some families have an axis of streams in front, or the positions before the rows."""
    rows, length = versions.base.shape  # rows < length
    for axis in range(hidden.ndim - 1):
        if hidden.shape[axis : axis + 2] == (rows, length):
            return hidden.movedim((axis, axis + 1), (0, 1))
        if hidden.shape[axis : axis + 2] == (length, rows):
            return hidden.movedim((axis + 1, axis), (0, 1))
    if hidden.shape[0] == rows * length:
        return hidden.unflatten(0, (rows, length))
    raise RuntimeError(f"no axes of {rows} windows and {length} positions in {tuple(hidden.shape)}")


def _logits(model: "PreTrainedModel", windows: Tensor) -> Tensor:
    return model(input_ids=windows, use_cache=False).logits  # (rows, length, vocabulary)


def _versions(model: "PreTrainedModel", length: int, cuts: Iterable[int]) -> Versions:
    """One window of random tokens in two versions, once for each cut; the same in every call."""
    config = text_config(model)
    special = {value for key, value in config.to_dict().items() if "token_i" in key and isinstance(value, int)}
    usual = torch.tensor([i for i in range(config.vocab_size) if i not in special] or list(range(config.vocab_size)))
    generator, at = torch.Generator().manual_seed(0), torch.tensor(list(cuts))
    drawn = torch.randint(len(usual), (1, length), generator=generator).expand(len(at), -1)
    shift = torch.randint(1, max(2, len(usual)), (len(at), length), generator=generator)
    late = torch.arange(length) >= at[:, None]
    device = next(model.parameters()).device
    base, changed = usual[drawn], usual[torch.where(late, drawn + shift, drawn) % len(usual)]
    return Versions(base.to(device), changed.to(device), at.to(device))


def positions(model: "PreTrainedModel") -> int | None:
    """How many positions the model has; None if there is no limit, for which some configurations say -1."""
    longest = getattr(text_config(model), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None
