"""What keeps a model from being loaded, in one line that names the file and the remedy.

The libraries speak to programmers, and some of what they accept would be wrong here: weights that the configuration
leaves out, integers read as if they were weights.
"""

import math
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minprune.errors import PruneError, short
from minprune.files import check_regular, read_json
from minprune.models.folder import AGAIN, check_entries, check_kind, inside, read_all_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_FLOATS = ("F64", "F32", "F16", "BF16")
_FOREIGN = {  # a name of a tensor -> where it comes from, and what makes a checkpoint of it that can be loaded
    r"_orig_mod\.": "torch.compile left in them: save the model that was compiled (model._orig_mod)",
    r"^module\.": "DataParallel or DDP left in them: save model.module",
    r"(^|\.)(base_model\.model\.|lora_[AB]|lora_embedding|lora_magnitude)": "an adapter (LoRA) that is not merged has: "
    "merge it with merge_and_unload() and save the model",
    r"weight_(orig|mask)$": "torch.nn.utils.prune left in them: call prune.remove on each layer and save the model",
    r"parametrizations\.|weight_[gv]$": "a parametrised weight has: remove the parametrizations and save the model",
    r"_fsdp_wrapped_module|_flat_param": "FSDP left in them: save the full state dict",
    r"(^|\.)(qweight|qzeros|g_idx|weight_packed|weight_scale_inv|absmax|quant_map)$|\.quant_state\.": "quantised "
    "weights have: use the model that it was made from",
}
_SLACK = 256  # so many blocks are built without a second look
_LAYERS = r"(?!max_)(\w+_)?layers|(n|num)_(\w+_)?layer|depth|first_k_dense_replace"  # each has tensors of its own
_MODULES = r"(\w+_)?(heads|experts)|(n|num)_(\w+_)?(head|head_kv|experts?|blocks?|groups?|stages?)"


class StoredTensor(NamedTuple):
    """Where a tensor is, and what its file's header says of it. dtype: as in safetensors, "BF16"."""

    path: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """What it takes in the file."""
        bits = re.search(r"\d+", self.dtype)
        return -(-math.prod(self.shape) * (int(bits[0]) if bits else 8) // 8)


def check_folder(folder: Path) -> None:
    """Raise `PruneError` unless the folder holds a model whose files are all there, whole, its own, and fit each other.

    Only the headers of weights are read, so this is quick for a model of any size.
    """
    check_kind(folder)
    check_entries(folder)
    config = read_all_json(folder)
    if config.get("quantization_config"):
        raise PruneError(_quantised(str(folder)))
    stored = stored_tensors(folder)
    check_names(folder, stored)
    _check_floats(folder, {name: tensor for name, tensor in stored.items() if name.endswith("weight")})
    check_counts(folder / "config.json", config, stored)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder's safetensors files by name; `PruneError` if there are none, or a file is not whole."""
    single = inside(folder, SINGLE, str(folder))
    if single.exists():  # it goes before an index, as in transformers
        return header(single)
    if (folder / INDEX).exists():
        index = inside(folder, INDEX, str(folder))
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise PruneError(f"{index} does not say which file holds which weights: {AGAIN}")
        found: dict[str, StoredTensor] = {}
        for file in sorted(set(weight_map.values())):
            path = inside(folder, file, str(index))
            if not path.exists():
                raise PruneError(f"{path} is missing, but {INDEX} names it: {AGAIN}")
            there = header(path)
            if twice := next((name for name in there if name in found), None):
                raise PruneError(f"{twice} is stored twice, in {found[twice].path} and {path.name}: leave it in one")
            found |= there
        if lacking := next((name for name in weight_map if name not in found), None):
            raise PruneError(f"{folder / weight_map[lacking]} lacks {lacking}, which {INDEX} names: {AGAIN}")
        return found
    if any(path for kind in _PICKLED for path in folder.glob(kind)):
        raise PruneError(f"{folder} offers only pickled weights, which can run code: convert them to safetensors")
    if any(folder.glob("model-*.safetensors")):
        raise PruneError(f"{folder} holds parts of a model but no {INDEX}, which says what is in them: {AGAIN}")
    raise PruneError(f"{folder} holds no .safetensors weights of a model: {SINGLE} belongs there")


def check_names(folder: Path, stored: dict[str, StoredTensor]) -> None:
    """Raise `PruneError` if the names of the tensors are those of a wrapper around the model, not the model's own."""
    for pattern, told in _FOREIGN.items():
        if name := next((name for name in stored if re.search(pattern, name)), None):
            raise PruneError(f"the tensors of {folder} have names such as {short(name)}, which {told}")


def check_counts(path: Path, config: dict[str, Any], stored: dict[str, StoredTensor]) -> None:
    """Raise `PruneError` for more blocks or experts than tensors are stored: building them could take for ever."""
    most = max(_SLACK, len(stored), *(side for tensor in stored.values() for side in tensor.shape))
    for key, value in config.items():
        if isinstance(value, dict):
            check_counts(path, value, stored)
        limit = max(_SLACK, len(stored)) if re.fullmatch(_LAYERS, key) else most
        if type(value) is int and value > limit and re.fullmatch(f"{_LAYERS}|{_MODULES}", key):
            raise PruneError(
                f"{path} says {key} = {value}, but only {len(stored)} tensors are stored: get both from one source"
            )


def check_sizes(folder: Path, model: "PreTrainedModel", stored: dict[str, StoredTensor]) -> None:
    """Raise `PruneError` if what is stored is not for this model without weights, made from the configuration.

    That is, if it needs far more: loading it would fill what is missing, and the tables that no file holds, in memory
    of any size. Or if one of its parameters is stored as anything but floats, which loading would convert.
    """
    base = f"{model.base_model_prefix}."  # which the names of a model that was saved without its head lack
    names = {name.removeprefix(base) for name, _ in model.named_parameters(remove_duplicate=False)}
    _check_floats(folder, {name: tensor for name, tensor in stored.items() if name.removeprefix(base) in names})
    kept = sum(math.prod(tensor.shape) for tensor in stored.values())
    needed = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(buffer.numel() for buffer in model.buffers())
    if needed > 2 * kept + 2**20 or tables > 2 * kept + 2**28:
        raise PruneError(
            f"{folder / 'config.json'} describes a model of {needed:,} weights and tables of {tables:,} numbers, but "
            f"{kept:,} numbers are stored: its config.json has other sizes than its weights, get both from one source"
        )


def _check_floats(folder: Path, parameters: dict[str, StoredTensor]) -> None:
    for name, tensor in parameters.items():
        if tensor.dtype not in _FLOATS:
            raise PruneError(f"{tensor.path}: {name} holds {tensor.dtype}, not floats. {_quantised(str(folder))}")


def check_loaded(model: "PreTrainedModel", info: dict[str, Any], name: str | Path) -> None:
    """Raise `PruneError` unless the model is not quantised and its tensors are those of the checkpoint.

    info: what transformers found out while loading; what it leaves out on purpose is not in it.
    """
    if getattr(model.config, "quantization_config", None):
        raise PruneError(_quantised(str(name)))
    if missing := sorted(info["missing_keys"]):
        raise PruneError(
            f"the weights of {str(name)!r} are incomplete ({len(missing)} tensors are missing, such as {missing[0]}): "
            "copy or download them again"
        )
    if left := sorted(info["unexpected_keys"]):
        raise PruneError(
            f"the config.json of {str(name)!r} has no place for {len(left)} of its tensors, such as {left[0]}: get "
            "both from one source"
        )


def reason(error: BaseException) -> str:
    """What to tell the user instead of what transformers says to programmers."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    text = one_line(error)
    if isinstance(error, SafetensorError):
        return f"its weights are damaged or incomplete ({text}): {AGAIN}"
    if isinstance(error, StrictDataclassError):
        return f"its config.json is wrong ({one_line(error.__cause__ or error)}): {AGAIN}"
    for said, meant in {
        "couldn't connect|cannot find an appropriate cached snapshot|offline mode": "it is no folder and not bundled, "
        "and the hub cannot be reached: check name and network",
        "custom code": "it needs its own code, and minprune never runs such code: use another model",
        "ignore_mismatched_sizes": "its config.json has other sizes than its weights: get both from one source",
        "backend tokenizer": "it has no tokenizer that can be read: tokenizer.json belongs in the same folder",
        "Unrecognized configuration class": "it is no causal language model: use one that predicts the next token",
        "does not recognize this architecture": "this version of transformers does not know the model_type of its "
        "config.json: upgrade transformers or use another model",
        "quantiz": "it is quantised, which minprune cannot prune: use the model that it was made from",
    }.items():
        if re.search(said, text, re.IGNORECASE):
            return meant
    return text


def one_line(error: BaseException) -> str:
    """The message of an error in one line of at most 300 characters."""
    if isinstance(error, KeyError):  # whose message is the key alone
        return f"there is no {textwrap.shorten(str(error), 280, placeholder=' ...')}"
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__


def is_failure(error: BaseException) -> bool:
    """Whether a library failed: not Ctrl-C and the like. A panic of a library in Rust is no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _quantised(name: str) -> str:
    return f"{name} is quantised, which minprune cannot prune: use the model that it was made from"


def header(path: Path) -> dict[str, StoredTensor]:
    """What the header of a safetensors file says; it also tells whether the file is whole."""
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in list(file.keys())}
            return {name: StoredTensor(path, one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise PruneError(f"{path} is damaged or incomplete ({one_line(error)}): {AGAIN}") from None


def check_finite(key: str, value: "Tensor", name: str | Path) -> None:
    """Raise `PruneError` for a parameter with NaN or infinity: no number of the model `name` would mean anything."""
    from minprune.arithmetic import is_finite

    if value.numel() and value.is_floating_point() and not is_finite(value):
        raise PruneError(f"{key} of {name} holds NaN or infinity: the checkpoint is damaged, copy it again")
