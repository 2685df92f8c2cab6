"""Where the weights are: the decoder blocks of a Hugging Face causal LM and the matrices inside them. Chapter 01.

Nothing here knows an architecture by name. A matrix is an `nn.Linear`, a GPT-2 `Conv1D` (stored transposed), or one
expert of a mixture, stored as a slice of a 3-D parameter; each becomes a `Layer` with a (d_out, d_in) view.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minprune.arguments import checked
from minprune.errors import PruneError
from minprune.models.blocks import decoder_blocks, is_conv1d, text_config
from minprune.models.causality import positions
from minprune.models.mixtures import expert_stacks, routers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight matrix of a model. weight: a (d_out, d_in) view into the model; writing to it changes the model.

    module: whose `parameter` it is. expert_index: its place in a 3-D parameter, or None where that is a matrix.
    router: whether it chooses between the experts of a mixture. aliases: the names under which other blocks use the
    same weight.
    """

    name: str
    module: nn.Module
    parameter: str = "weight"
    expert_index: int | None = None
    router: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return self.name, *self.aliases

    @property
    def weight(self) -> Tensor:
        return self.view_as_2d(getattr(self.module, self.parameter).data)

    def view_as_2d(self, stored: Tensor) -> Tensor:
        """The (d_out, d_in) view of this layer in a tensor of the parameter's shape: its weight, gradient or mask."""
        if self.expert_index is not None:
            return stored[self.expert_index]
        return stored.T if is_conv1d(self.module) else stored


def check_windows(model: "PreTrainedModel", tokens: Tensor) -> None:
    """Raise `PruneError` unless tokens is (windows, length) of ids that the model has, no longer than its positions."""
    config = model.config.get_text_config()
    if not isinstance(tokens, Tensor) or tokens.is_meta or tokens.layout is not torch.strided:
        what = f"{tokens.layout} on {tokens.device}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise PruneError(f"tokens are a {what}: pass an ordinary tensor of ids, such as load_tokens gives")
    if tokens.ndim != 2 or tokens.dtype != torch.long or not tokens.numel():
        raise PruneError(f"tokens must be int64 (windows, length), not {tokens.dtype} {tuple(tokens.shape)}")
    longest = positions(model)
    if longest and tokens.shape[1] > longest:
        raise PruneError(
            f"windows of {tokens.shape[1]} tokens are longer than the model's {longest} positions: use length {longest}"
        )
    if int(tokens.max()) >= config.vocab_size or int(tokens.min()) < 0:
        raise PruneError(
            f"token ids reach {int(tokens.max())}, the model's vocabulary has {config.vocab_size}: wrong tokenizer?"
        )


def check_batch_size(batch_size: int) -> int:
    """The number of windows in a forward pass, as Python's own; `PruneError` unless it is a positive whole number."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
        raise PruneError(f"batch size {batch_size!r} is not a positive whole number: it counts windows")
    return min(int(batch_size), sys.maxsize)  # torch counts no further


def backbone(model: "PreTrainedModel") -> nn.Module:
    """The part of the model that ends before the output head and returns hidden states.

    That is `base_model`, except where a family names it wrongly (Llama 4's text model) and gets itself.
    """
    blocks = decoder_blocks(model)[1]
    if model.base_model is not model:
        return model.base_model
    for module in model.children():
        if any(part is blocks for part in module.modules()):
            return module
    raise PruneError(f"{type(model).__name__} has no output head: load it as a causal language model")


@checked("include", "exclude")
def find_layers(
    model: "PreTrainedModel", include: Iterable[str] | None = None, exclude: Iterable[str] = ()
) -> list[Layer]:
    """The layers to prune, in the order of the model: all matrices of the decoder blocks, or those that match.

    A weight that several blocks use is one layer, with the name of the first. It is included if one of its names is,
    and excluded if one of them is.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model.
    include : str or iterable of str, optional
        Globs over the layers' full names, such as "*.mlp.*". `lm_head` is found only if a glob names it, routers and
        gates of a mixture only if a glob names nothing else.
    exclude : str or iterable of str, default ()
        Globs of what to leave out.

    Returns
    -------
    list of Layer
        Each has a `.name` and a `.weight`, a (d_out, d_in) view into the model.

    Raises
    ------
    PruneError
        If a glob matches nothing, if a tied `lm_head` is asked for, or if a mixture stores its experts in a way that
        minprune cannot prune and they are not excluded.

    Examples
    --------
    >>> import minprune as mp
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2))
    >>> [layer.name for layer in mp.find_layers(model, include="*.down_proj")]
    ['model.layers.0.mlp.down_proj', 'model.layers.1.mlp.down_proj']
    """
    every = block_layers(model) + head_layers(model)
    excluded = _globs("exclude", exclude, every)
    if include is None:
        chosen = [layer for layer in every if not layer.router and layer.module is not model.get_output_embeddings()]
    else:
        included = _globs("include", include, every)
        of_routers = [glob for glob in included if all(layer.router for layer in every if matches(layer, [glob]))]
        chosen = [layer for layer in every if matches(layer, of_routers if layer.router else included)]
    chosen = [layer for layer in chosen if not matches(layer, excluded)]
    if not chosen:
        raise PruneError("include and exclude leave no layer to prune")
    if unfit := unsupported_experts(chosen):
        first = next(layer.name for layer in chosen if layer.expert_index is not None)
        advice = " ".join(f"--exclude '{glob}'" for glob in unfit)
        raise PruneError(
            f"{first} is an expert in a layout that minprune cannot prune: leave such ones dense with {advice} on the "
            f"command line, exclude={unfit} in Python"
        )
    if tied := next((layer.name for layer in chosen if is_tied(model, layer)), None):
        raise PruneError(
            f"{tied} is tied to the input embeddings: pruning it would prune every embedding, so leave it out"
        )
    return chosen


def block_layers(model: "PreTrainedModel") -> list[Layer]:
    """All matrices of the decoder blocks, in the order of the model, also those that minprune does not prune."""
    prefix, blocks = decoder_blocks(model)
    choosing = routers(prefix, blocks, getattr(text_config(model), "hidden_size", 0))
    found: dict[Any, Layer] = {}
    for name, module in blocks.named_modules(prefix=prefix, remove_duplicate=False):
        for layer in _layers_of(name, module):
            key = *_storage(layer), layer.expert_index
            if key in found:
                found[key] = replace(found[key], aliases=(*found[key].aliases, layer.name))
            else:
                found[key] = replace(layer, router=layer.name in choosing)
    return list(found.values())


def head_layers(model: "PreTrainedModel") -> list[Layer]:
    """The output head as a layer, in a list, which is empty if the head is no matrix."""
    head = model.get_output_embeddings()
    return [Layer(name, m) for name, m in model.named_modules() if m is head and _layers_of(name, m)]


def unsupported_experts(layers: list[Layer]) -> list[str]:
    """Globs for those experts among the layers that are stored in a layout that minprune cannot prune."""
    experts = [layer for layer in layers if layer.expert_index is not None]
    parts = [e.name.split(".")[-3:-1] for e in experts if getattr(e.module, "is_transposed", True)]
    return sorted({f"*.{module}.{parameter}.*" for module, parameter in parts})


def is_tied(model: "PreTrainedModel", layer: Layer) -> bool:
    """Whether the layer's weight is the input embeddings, too."""
    return _storage(layer) == _storage(Layer("", model.get_input_embeddings()))


def matches(layer: Layer, globs: Iterable[str]) -> bool:
    """Whether one of the globs matches one of the layer's names."""
    return any(fnmatchcase(name, glob) for glob in globs for name in layer.names)


def _layers_of(name: str, module: nn.Module) -> list[Layer]:
    if isinstance(module, nn.Linear) or is_conv1d(module):
        return [Layer(name, module)]
    stacks = expert_stacks(name, module)
    return [Layer(f"{name}.{key}.{e}", module, key, e) for key, value in stacks for e in range(len(value))]


def _storage(layer: Layer) -> tuple:
    """The same for two layers if they are stored in the same place."""
    stored = layer.module._parameters.get(layer.parameter)
    if stored is None:  # computed
        return id(layer.module), layer.parameter
    if type(stored) is not nn.Parameter or stored.layout is not torch.strided or not stored.data_ptr():
        return (id(stored),)  # on the meta device, say: it has no place
    return stored.device, stored.data_ptr(), stored.shape, stored.stride()


def _globs(option: str, given: Iterable[str], layers: list[Layer]) -> list[str]:
    """The globs as a list; `PruneError` if they are none, or if one matches no layer."""
    globs = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    for glob in globs:
        if not isinstance(glob, str):
            raise PruneError(f"{option} is a glob over layer names, such as '*.mlp.*', or a list of them, not {glob!r}")
        if not any(matches(layer, [glob]) for layer in layers):
            raise PruneError(f"{option} {glob!r} matches no layer: names look like {layers[0].name!r}")
    return globs
