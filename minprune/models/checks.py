"""Whether a layer's weight is what the model multiplies by: before it is pruned, and afterwards.

A weight may be computed each time it is read (a parametrisation, a mask, a norm), brought from elsewhere when the
module runs (offloading), kept in another form (quantised), or only a part of what is applied (an adapter beside it).
Zeros that are written to such a weight are gone at its next use. The ways to compute one cannot be listed, so the
criterion is positive: the parameter that the module has registered is the very tensor that it gives out; it is plain,
dense and real; and if anything could interfere while the model runs, the model is run once on a few tokens and watched.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from minprune.arithmetic import is_finite
from minprune.errors import PruneError
from minprune.models.detect import detect_pattern
from minprune.models.hooks import input_of
from minprune.models.layers import Layer, block_layers, head_layers, is_tied, matches, unsupported_experts
from minprune.models.modes import eval_mode
from minprune.models.skeleton import DTYPES
from minprune.models.weight_files import one_line
from minprune.patterns import NM, Block, Lines, Pattern

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 8  # with which a model is run to see what it multiplies by
_FLOATS = (torch.float64, *DTYPES.values())
_PRODUCTS = {("torch.nn.modules.linear", "Linear.forward"), ("transformers.pytorch_utils", "Conv1D.forward")}
_REMEDIES = {  # a tensor that the module holds besides -> what made it compute its weight
    "weight_mask": "call torch.nn.utils.prune.remove(module, 'weight') first",
    "weight_g": "call torch.nn.utils.remove_weight_norm(module) first",
    "weight_u": "call torch.nn.utils.remove_spectral_norm(module) first",
}


def check_weights(model: "PreTrainedModel", layers: list[Layer]) -> None:
    """Raise `PruneError`, with the layer's name and the remedy, unless zeros in these weights are there to stay.

    The weights themselves must be finite. A model that cannot interfere with its weights is not run.
    """
    check_stored(layers)
    for layer in layers:
        if not is_finite(layer.weight):
            raise PruneError(f"{layer.name}: its weights hold NaN or infinity: the checkpoint is damaged")
    _check_unwrapped(model, layers)
    if _can_interfere(model, layers):
        with _marked(layers) as marks:
            _run_watched(model, layers, lambda layer: torch.equal(_corner(layer), marks[layer]))


def check_stored(layers: Iterable[Layer]) -> None:
    """Raise `PruneError`, with the layer's name and the remedy, for a weight that is no plain parameter in memory."""
    for layer in layers:
        if problem := _problem(layer.module, layer.parameter):
            raise PruneError(f"{layer.name}: {problem}")


def check_changeable(model: nn.Module) -> None:
    """Raise `PruneError` for a parameter, of a norm or the embeddings, say, that has no numbers or is made to stay."""
    for name, parameter in model.named_parameters():
        if problem := _unchangeable(parameter):
            raise PruneError(f"{name} {problem}")


def zeros_in_use(model: "PreTrainedModel", layers: list[Layer]) -> dict[Layer, int]:
    """How many weights of each layer are zero for the model: as it stands, and as it is when the model multiplies.

    Raises `PruneError` for a layer that has been computed, replaced or taken out of the model since it was found.
    """
    zeros = {}
    for layer in layers:
        for name in layer.names:
            owner = model.get_submodule(name if layer.expert_index is None else name.rsplit(".", 2)[0])
            if problem := _problem(owner, layer.parameter):
                raise PruneError(f"{name}: {problem}")
            if owner._parameters[layer.parameter] is not layer.module._parameters[layer.parameter]:
                raise PruneError(f"{name}: the model has another weight there now: find its layers anew")
        zeros[layer] = count_zeros(layer.weight)
    if _can_interfere(model, layers):
        _run_watched(model, layers, lambda layer: count_zeros(layer.weight) == zeros[layer])
    return zeros


def sparse_layers(model: "PreTrainedModel") -> list[Layer]:
    """The layers whose zeros count in a model that was pruned, whatever was included and excluded then.

    Those of `find_layers`, without experts that minprune cannot prune, and with each router, output head or such expert
    that holds a pattern of zeros.
    """
    inside = block_layers(model)
    heads = [layer for layer in head_layers(model) if not is_tied(model, layer)]
    unfit = unsupported_experts(inside)
    usual = {layer for layer in inside if not layer.router and not matches(layer, unfit)}
    return [layer for layer in inside + heads if layer in usual or detect_pattern(layer.weight) != "dense"]


def check_result(found: Tensor, W: Tensor, pattern: Pattern, block_size: int = 128) -> None:
    """Raise `PruneError` unless what a method made of W (d_out, d_in) has its shape, all zeros of the pattern, and no
    infinity, as a narrow type rounds to what is just beyond its range.
    """
    if found.shape != W.shape:
        raise PruneError(f"the method made {tuple(found.shape)} of its {tuple(W.shape)}: mend the method")
    if not is_finite(found):
        raise PruneError(f"the method made weights that are NaN or too large for {found.dtype}: use float32")
    zeros, least = count_zeros(found), _least_zeros(pattern, W.shape[0], W.shape[1], block_size)
    if zeros < least:
        raise PruneError(f"the method set {zeros} weights to zero, not the {least} of {pattern}: mend the method")


def _least_zeros(pattern: Pattern, d_out: int, d_in: int, block_size: int) -> int:
    """How many zeros a matrix of that pattern has at least; without a comparison group, for the smallest count."""
    if isinstance(pattern, NM):
        return d_out * d_in // pattern.m * (pattern.m - pattern.n)
    if isinstance(pattern, Block):
        return round(pattern.sparsity * (d_out * d_in // pattern.size**2)) * pattern.size**2
    if isinstance(pattern, Lines):
        lines, across = (d_out, d_in) if pattern.axis == "rows" else (d_in, d_out)
        return pattern.parts * pattern.zeros(lines) * pattern.width * across
    widths = [min(block_size, d_in - start) for start in range(0, d_in, block_size)]
    counts = {
        "row": d_out * round(pattern.sparsity * d_in),
        "layer": round(pattern.sparsity * d_out * d_in),
        "block": sum(round(pattern.sparsity * d_out * width) for width in widths),
    }
    return counts[pattern.group] if pattern.group else min(counts.values())


def zeros_in_file(tensors: Mapping[str, Tensor], layers: list[Layer]) -> dict[Layer, int]:
    """How many weights of each layer are zero in what is about to be written: the tensors by name."""
    zeros = {}
    for layer in layers:
        name = f"{layer.name}.{layer.parameter}" if layer.expert_index is None else layer.name.rpartition(".")[0]
        zeros[layer] = count_zeros(layer.view_as_2d(tensors[name]))
    return zeros


def count_zeros(W: Tensor) -> int:
    """The number of weights that are zero."""
    return W.numel() - int(W.count_nonzero())


def _problem(owner: nn.Module, name: str) -> str | None:
    """Why what is written to a parameter of a module would be lost, and the remedy; None if it would not."""
    stored, kept = owner._parameters.get(name), {*owner._parameters, *owner._buffers}
    if parametrize.is_parametrized(owner, name):
        return (
            f"its {name} is computed by a parametrisation: call "
            f"torch.nn.utils.parametrize.remove_parametrizations(module, {name!r}) first"
        )
    if stored is None:
        remedy = next((text for key, text in _REMEDIES.items() if key in kept), "make it an ordinary parameter first")
        return f"its {name} is computed from {', '.join(sorted(kept)) or 'something else'}: {remedy}"
    if stored.is_meta:
        return f"its {name} {_unchangeable(stored)}"
    if type(stored) is not nn.Parameter or stored.layout is not torch.strided or stored.dtype not in _FLOATS:
        kind = type(stored).__name__ if type(stored) is not nn.Parameter else f"{stored.dtype}, {stored.layout}"
        return f"its {name} is stored as {kind}: load the model in {', '.join(DTYPES)}, not quantised and not sparse"
    if getattr(owner, name) is not stored:
        return f"its {name} is computed by {type(owner).__name__}: make it an ordinary parameter first"
    if stored.is_inference():
        return f"its {name} {_unchangeable(stored)}"
    if not stored.numel():
        return f"its {name} is empty, {tuple(stored.shape)}: leave it out"
    if any(step == 0 and size > 1 for step, size in zip(stored.stride(), stored.shape, strict=True)):
        return f"several entries of its {name} are one number in memory: make it contiguous first"
    return None


def _unchangeable(stored: Tensor) -> str | None:
    """Why the numbers of a parameter cannot be changed, and the remedy."""
    if stored.is_meta:
        return "is elsewhere (offloaded, on the meta device): load the model without offloading"
    if stored.is_inference():
        return "was made under torch.inference_mode(), which forbids changes: load the model outside of it"
    return None


def _check_unwrapped(model: "PreTrainedModel", layers: list[Layer]) -> None:
    """Raise `PruneError` for a layer that is a part of what stands where the model's class has a single layer.

    So an adapter is put around a layer, which adds to its output. A product of several, in a row, adds nothing.
    """
    own = _names_by_construction(model)
    for layer in layers:
        parts = layer.name.split(".")
        around = next((name for i in range(len(parts)) if (name := ".".join(parts[:i])) in own), None)
        if around and not isinstance(model.get_submodule(around), nn.Sequential):
            kind = type(model.get_submodule(around)).__name__
            raise PruneError(
                f"{layer.name} is a part of the {kind} that takes the place of {around}, in whose weight its zeros "
                "would not last: merge or unwrap it first (merge_and_unload of PEFT)"
            )


def _names_by_construction(model: "PreTrainedModel") -> set[str]:
    """The layers that the model's class makes of its configuration; none if it cannot make any without weights."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            made = type(model)(copy.deepcopy(model.config))
        return {name for layer in block_layers(made) for name in layer.names}
    except Exception:  # a class may demand anything; the other checks do not depend on this one
        return set()


def _can_interfere(model: "PreTrainedModel", layers: list[Layer]) -> bool:
    """Whether anything could change a weight while the model runs: a hook, or a module's own way to multiply."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    if any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
        return True
    return not all(layer.expert_index is not None or _is_product(layer.module) for layer in layers)


def _is_product(module: nn.Module) -> bool:
    """Whether the class multiplies as a linear layer does by definition, and nothing has been put in its place."""
    forward = type(module).forward
    return (forward.__module__, forward.__qualname__) in _PRODUCTS


@torch.no_grad()
def _run_watched(model: "PreTrainedModel", layers: list[Layer], expected: Callable[[Layer], bool]) -> None:
    """Run the model on a few tokens; raise `PruneError` for a layer that does not multiply by the expected weight.

    expected(layer) is asked right before the layer multiplies, after the hooks that others put there, and in the end.
    """

    def check(layer: Layer) -> None:
        problem = _problem(layer.module, layer.parameter)
        if problem or not expected(layer):
            problem = problem or "its weight is replaced when the model runs: remove the hook that does it"
            raise PruneError(f"{layer.name}: {problem}")

    def compare(layer: Layer, X: Tensor, output: Any) -> None:
        if isinstance(output, Tensor):
            product = linear(X, layer.weight, getattr(layer.module, "bias", None))
            far = max(4 * torch.finfo(output.dtype).eps, 1e-5) * product.float().norm()
            glob = f"*.{layer.name.rpartition('.')[2]}"
            if output.shape != product.shape or not (output - product).float().norm() <= far:
                raise PruneError(
                    f"{layer.name}: its output is not its input times its weight: remove the hook, adapter or forward "
                    f"of {type(layer.module).__name__} that changes it (merge_and_unload of PEFT), or leave such "
                    f"layers dense with --exclude '{glob}' on the command line, exclude={[glob]} in Python"
                )

    embeddings: Any = model.get_input_embeddings()
    ids = torch.arange(_TOKENS, device=embeddings.weight.device)[None]  # (1, tokens)
    handles = []
    for layer in layers:
        if layer.expert_index is None:
            handles.append(layer.module.register_forward_pre_hook(lambda _, args, layer=layer: check(layer)))
            handles.append(
                layer.module.register_forward_hook(
                    lambda _, args, kwargs, y, layer=layer: compare(layer, input_of(args, kwargs), y), with_kwargs=True
                )
            )
    try:
        with eval_mode(model):
            model(input_ids=ids % model.config.get_text_config().vocab_size, use_cache=False)
    except PruneError:
        raise
    except Exception as error:  # of the hooks, which can be anyone's
        raise PruneError(f"{type(model).__name__} does not run on {_TOKENS} tokens: {one_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        check(layer)


@contextmanager
def _marked(layers: list[Layer]) -> Iterator[dict[Layer, Tensor]]:
    """While open, the first weight of each layer is another number, the given one, which the model should use."""
    corners = {layer: _corner(layer) for layer in layers}
    before = {layer: corner.clone() for layer, corner in corners.items()}
    try:
        for corner in corners.values():
            corner.copy_(torch.where(corner == 0, 1.0, -corner))
        torch.clear_autocast_cache()  # a caller's autocast may remember the weights as they were
        yield {layer: corner.clone() for layer, corner in corners.items()}
    finally:
        for layer, corner in corners.items():
            corner.copy_(before[layer])
        torch.clear_autocast_cache()


def _corner(layer: Layer) -> Tensor:
    return layer.weight[:1, :1]
