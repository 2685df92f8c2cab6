"""What keeps a model from being loaded, in one line that names the file and the remedy.

The libraries speak to programmers, and some of what they accept would be wrong here: weights that the configuration
leaves out, integers read as if they were weights, a model that sees the words it should predict.
"""

import json
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.errors import PruneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_JSON = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_FLOATS = ("F64", "F32", "F16", "BF16")
_AGAIN = "copy or download it again"


def check_folder(folder: Path) -> None:
    """Raise `PruneError` unless the folder holds a model whose safetensors files are all there and whole.

    Only the files' headers are read, so this is quick for a model of any size.
    """
    if not (folder / "config.json").exists():
        raise PruneError(f"{folder} holds no config.json: it is not a Hugging Face model folder")
    for name in _JSON:
        if (folder / name).exists():
            _read_json(folder / name)
    if _read_json(folder / "config.json").get("quantization_config"):
        raise PruneError(_quantised(str(folder)))
    for path in sorted({path for path, _ in stored_tensors(folder).values()}):
        if not path.exists():
            raise PruneError(f"{path} is missing, but {INDEX} names it: {_AGAIN}")
        for name, kind in _header(path).items():
            if name.endswith("weight") and kind not in _FLOATS:
                raise PruneError(f"{path}: {name} holds {kind}, not floats. {_quantised(str(folder))}")


def stored_tensors(folder: Path) -> dict[str, tuple[Path, str]]:
    """Where each tensor of a folder is stored, as (file, name in it); `PruneError` if there are no safetensors."""
    single = folder / SINGLE
    if single.exists():  # it goes before an index, as in transformers
        return {name: (single, name) for name in _header(single)}
    if (folder / INDEX).exists():
        weight_map = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise PruneError(f"{folder / INDEX} does not say which file holds which weights: {_AGAIN}")
        return {name: (folder / file, name) for name, file in weight_map.items()}
    if any(path for kind in _PICKLED for path in folder.glob(kind)):
        raise PruneError(f"{folder} offers only pickled weights, which can run code: convert them to safetensors")
    if any(folder.glob("model-*.safetensors")):
        raise PruneError(f"{folder} holds parts of a model but no {INDEX}, which says what is in them: {_AGAIN}")
    raise PruneError(f"{folder} holds no .safetensors weights of a model: {SINGLE} belongs there")


def check_loaded(model: "PreTrainedModel", info: dict[str, Any], name: str | Path) -> None:
    """Raise `PruneError` unless the model is causal, not quantised, and its tensors are those of the checkpoint.

    info: what transformers found out while loading; what it leaves out on purpose is not in it.
    """
    if getattr(model.config, "quantization_config", None):
        raise PruneError(_quantised(str(name)))
    if not is_causal(model):
        raise PruneError(
            f"{str(name)!r} is a {', '.join(model.config.architectures or [])}, not trained to predict the next token: "
            "use a causal language model"
        )
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


def is_causal(model: "PreTrainedModel") -> bool:
    """Whether the checkpoint was trained as the causal model that it is loaded as, or was stored without a head.

    The library would put a masked language model, such as BERT, into the shape of a causal one without a word.
    """
    named = model.config.architectures or []
    return not named or any(name == type(model).__name__ or re.search("CausalLM|LMHead|Model$", name) for name in named)


def reason(error: Exception) -> str:
    """What to tell the user instead of what transformers says to programmers."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    text = one_line(error)
    if isinstance(error, SafetensorError):
        return f"its weights are damaged or incomplete ({text}): {_AGAIN}"
    if isinstance(error, StrictDataclassError):
        return f"its config.json is wrong ({one_line(error.__cause__ or error)}): {_AGAIN}"
    for said, meant in {
        "couldn't connect": "it is no folder and not embedded, and the hub cannot be reached: check name and network",
        "custom code": "it needs its own code, and minprune never runs such code: use another model",
        "ignore_mismatched_sizes": "its config.json has other sizes than its weights: get both from one source",
        "backend tokenizer": "it has no tokenizer that can be read: tokenizer.json belongs in the same folder",
        "Unrecognized configuration class": "it is no causal language model: use one that predicts the next token",
        "does not recognize this architecture": "this version of transformers does not know the model_type of its "
        "config.json: upgrade transformers or use another model",
        "quantiz": "it is quantised, which minprune cannot prune: use the model that it was made from",
    }.items():
        if said in text:
            return meant
    return text


def one_line(error: BaseException) -> str:
    """The message of an error in one line of at most 300 characters."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__


def _quantised(name: str) -> str:
    return f"{name} is quantised, which minprune cannot prune: use the model that it was made from"


def _header(path: Path) -> dict[str, str]:
    """The dtype of each tensor of a safetensors file; its header also tells whether the file is whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_dtype() for name in list(file.keys())}
    except SafetensorError as error:
        raise PruneError(f"{path} is damaged or incomplete ({one_line(error)}): {_AGAIN}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON or UTF-8
        raise PruneError(f"{path} is damaged, not a valid JSON file ({one_line(error)}): {_AGAIN}") from None
    if not isinstance(found, dict):
        raise PruneError(f"{path} holds no JSON object: {_AGAIN}")
    return found
