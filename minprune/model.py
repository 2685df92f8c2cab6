"""Where the weights are: the decoder blocks of a Hugging Face causal LM and the matrices inside them. Chapter 01.

Nothing here knows an architecture by name. A matrix is an `nn.Linear`, a GPT-2 `Conv1D` (stored transposed), or one
expert of a mixture, stored as a slice of a 3-D parameter; each becomes a `Layer` with a (d_out, d_in) view.
"""

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minprune.blocks import decoder_blocks, is_conv1d, text_config
from minprune.causal import check_causal, positions
from minprune.errors import PruneError
from minprune.folder import AGAIN, check_entries, check_kind, read_all_json
from minprune.loading import check_folder, check_loaded, check_sizes, is_failure, reason, stored_tensors
from minprune.mixtures import expert_stacks, routers
from minprune.skeleton import describe_or_refuse, read_config, read_generation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMBEDDED = ("smollm2",)
_FILES = [  # what to fetch from the hub
    "*.json",
    "*.safetensors",
    "*.model",
    "*.txt",
    "*.jinja",
    "README.md",
    "LICENSE*",
    "NOTICE*",
]
_TRIAL = "The moon rose at 19:69."  # a tokenizer that panics does so with the first text
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight matrix of a model. weight: a (d_out, d_in) view into the model; writing to it changes the model.

    expert: its index in `owner`'s 3-D parameter `parameter`, or None if `owner` is a module of its own. router: whether
    it chooses between the experts of a mixture. aliases: the names under which other blocks use the same weight.
    """

    name: str
    owner: nn.Module
    parameter: str = "weight"
    expert: int | None = None
    router: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def weight(self) -> Tensor:
        return self.matrix(getattr(self.owner, self.parameter).data)

    def matrix(self, stored: Tensor) -> Tensor:
        """The (d_out, d_in) view of this layer in a tensor of the parameter's shape: its weight, gradient or mask."""
        if self.expert is not None:
            return stored[self.expert]
        return stored.T if is_conv1d(self.owner) else stored


def load_model(name: str | Path, dtype: str | torch.dtype = "auto", device: str = "cpu", say=lambda message: None):
    """(model, tokenizer) of an embedded name ("smollm2"), a Hugging Face id or a folder; in eval mode.

    The folder may be one that `minprune export` wrote. dtype: "auto" keeps the checkpoint's. Only safetensors weights
    are read, and code from a repository is never run. Raises `PruneError` if there is no such model, it is not causal,
    its weights are damaged, quantised, only pickled, or not those of its config.json, or the device is unknown.
    """
    from transformers import AutoModelForCausalLM

    from minprune.formats.disk import is_exported, read_exported

    wanted, place = read_dtype(dtype), check_device(device)
    folder = model_folder(name, say)
    if is_exported(folder):  # its checksums cover the files of the tokenizer, which is therefore read last
        stored: Any = read_exported(folder, wanted if isinstance(wanted, torch.dtype) else None)
        return stored.to(place).eval(), load_tokenizer(folder, name)
    tokenizer = load_tokenizer(folder, name)
    config = read_config(folder)
    read_generation(folder)
    if name not in EMBEDDED:
        check_sizes(folder, describe_or_refuse(folder, copy.deepcopy(config), None), stored_tensors(folder))
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=wanted,
            device_map=None if place.type == "cpu" else {"": place},  # straight to the device, not by way of the CPU
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except BaseException as error:
        if not is_failure(error):
            raise
        raise PruneError(f"cannot load the model {str(name)!r}: {reason(error)}") from error
    model, info = loaded
    check_loaded(model, info, name)
    model.config.name_or_path = str(name)
    model = model.eval()
    try:
        check_causal(model)
    except PruneError:
        raise
    except Exception as error:
        raise PruneError(f"cannot run the model {str(name)!r}: {reason(error)}") from error
    return model, tokenizer


def model_source(name: str | Path, say=lambda message: None) -> str | Path:
    """Where the files of a model are: its folder (that of an embedded model, after fetching it), or the id on the hub.

    Raises `PruneError` if there is no such model or its folder lacks what it needs; no weights are read for that.
    """
    if name in EMBEDDED:
        from minprune.assets import smollm2_folder

        return smollm2_folder(say)
    if name and Path(name).is_dir():
        _check(Path(name))
        return name
    if name:
        check_kind(name)
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(name)) or Path(name).exists():
        raise PruneError(
            f"no model {str(name)!r}: name a folder that exists, an embedded model ({', '.join(EMBEDDED)}) or an id on "
            "the Hugging Face hub"
        )
    return name


def model_folder(name: str | Path, say=lambda message: None) -> Path:
    """The folder with the files of a model, which are fetched from the hub if it is an id; as `model_source`."""
    source = model_source(name, say)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(str(source), allow_patterns=_FILES, ignore_patterns=["*/*", "consolidated*"]))
    except Exception as error:
        raise PruneError(f"cannot load the model {str(name)!r}: {reason(error)}") from error
    _check(folder)
    return folder


def _check(folder: Path) -> None:
    from minprune.formats.disk import is_exported

    if is_exported(folder):  # whose weights have checksums
        check_entries(folder)
        read_all_json(folder)
    else:
        check_folder(folder)


def load_tokenizer(source: str | Path, name: str | Path):
    """The tokenizer of a model, from its `model_source`. name: what to call the model in a `PruneError`."""
    from transformers import AutoTokenizer

    folder = model_folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        ids = tokenizer(_TRIAL)["input_ids"]
        tokenizer.decode(ids)
    except BaseException as error:
        if not is_failure(error):
            raise
        raise PruneError(f"cannot load the model {str(name)!r}: {reason(error)}") from error
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise PruneError(f"the tokenizer of {str(name)!r} makes {type(ids).__name__} of a text, not token ids: {AGAIN}")
    return tokenizer


def read_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """The torch dtype of that name, or "auto"; `PruneError` for another word."""
    if isinstance(dtype, str) and dtype != "auto" and dtype not in DTYPES:
        raise PruneError(f"unknown dtype {dtype!r}: choose auto, {', '.join(DTYPES)}")
    return DTYPES.get(str(dtype), dtype)


def check_device(device: str) -> torch.device:
    """The torch device of that name; `PruneError` if there is none such on this machine."""
    try:
        torch.empty(0, device=device)
        if (place := torch.device(device)).type != "meta":  # which holds no numbers
            return place
    except (RuntimeError, AssertionError, ImportError):
        pass
    raise PruneError(f"device {device!r} is not available here: try cpu")


def check_windows(model: "PreTrainedModel", tokens: Tensor) -> None:
    """Raise `PruneError` unless tokens is (windows, length) of ids that the model has, no longer than its positions."""
    config = model.config.get_text_config()
    if tokens.is_meta or tokens.layout is not torch.strided:
        raise PruneError("tokens hold no numbers (a meta tensor) or are sparse: pass an ordinary tensor of ids")
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


def find_layers(
    model: "PreTrainedModel", include: Iterable[str] | None = None, exclude: Iterable[str] = ()
) -> list[Layer]:
    """The layers to prune, in the order of the model: all matrices of the decoder blocks, or those that match.

    include, exclude: globs over the layers' full names ("*.mlp.*"). `lm_head` is found only if a glob of `include`
    names it, routers and gates of a mixture only if a glob names nothing else. A weight that several blocks use is one
    layer, with the name of the first; it is included if one of its names is, and excluded if one of them is. Raises
    `PruneError` if a glob matches nothing, if a tied `lm_head` is asked for, or if a mixture stores its experts in a
    way that minprune cannot prune and they are not excluded.
    """
    every = block_layers(model) + head_layers(model)
    excluded = _globs("exclude", exclude, every)
    if include is None:
        chosen = [layer for layer in every if not layer.router and layer.owner is not model.get_output_embeddings()]
    else:
        included = _globs("include", include, every)
        of_routers = [glob for glob in included if all(layer.router for layer in every if matches(layer, [glob]))]
        chosen = [layer for layer in every if matches(layer, of_routers if layer.router else included)]
    chosen = [layer for layer in chosen if not matches(layer, excluded)]
    if not chosen:
        raise PruneError("include and exclude leave no layer to prune")
    if unfit := unfit_experts(chosen):
        first = next(layer.name for layer in chosen if layer.expert is not None)
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
            key = *_storage(layer), layer.expert
            if key in found:
                found[key] = replace(found[key], aliases=(*found[key].aliases, layer.name))
            else:
                found[key] = replace(layer, router=layer.name in choosing)
    return list(found.values())


def head_layers(model: "PreTrainedModel") -> list[Layer]:
    """The output head as a layer, in a list, which is empty if the head is no matrix."""
    head = model.get_output_embeddings()
    return [Layer(name, m) for name, m in model.named_modules() if m is head and _layers_of(name, m)]


def unfit_experts(layers: list[Layer]) -> list[str]:
    """Globs for those experts among the layers that are stored in a layout that minprune cannot prune."""
    experts = [layer for layer in layers if layer.expert is not None]
    parts = [e.name.split(".")[-3:-1] for e in experts if getattr(e.owner, "is_transposed", True)]
    return sorted({f"*.{module}.{parameter}.*" for module, parameter in parts})


def is_tied(model: "PreTrainedModel", layer: Layer) -> bool:
    """Whether the layer's weight is the input embeddings, too."""
    return _storage(layer) == _storage(Layer("", model.get_input_embeddings()))


def matches(layer: Layer, globs: Iterable[str]) -> bool:
    """Whether one of the globs matches one of the layer's names."""
    return any(fnmatchcase(name, glob) for glob in globs for name in (layer.name, *layer.aliases))


def _layers_of(name: str, module: nn.Module) -> list[Layer]:
    if isinstance(module, nn.Linear) or is_conv1d(module):
        return [Layer(name, module)]
    stacks = expert_stacks(name, module)
    return [Layer(f"{name}.{key}.{e}", module, key, e) for key, value in stacks for e in range(len(value))]


def _storage(layer: Layer) -> tuple:
    """The same for two layers if they are stored in the same place."""
    stored = layer.owner._parameters.get(layer.parameter)
    if stored is None:  # computed
        return id(layer.owner), layer.parameter
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
