"""load_model(): a bundled name, a Hugging Face id or a folder becomes a model and its tokenizer. Chapter 01.

Only safetensors weights are read, and code that comes with a model is never run. What is wrong with its files is said
in one line, before they are used where that can be seen.
"""

import copy
import os
import re
from pathlib import Path
from typing import Any

import torch

from minprune.arguments import checked
from minprune.arithmetic import ordinary_tensors, random_devices
from minprune.errors import PruneError
from minprune.files import exists
from minprune.models.causality import check_causal
from minprune.models.folder import AGAIN, check_entries, check_kind, read_all_json
from minprune.models.skeleton import DTYPES, describe_or_refuse, read_config, read_generation
from minprune.models.tokenizer import stop_dropout, tokenize
from minprune.models.weight_files import check_folder, check_loaded, check_sizes, is_failure, reason, stored_tensors

BUNDLED = ("smollm2",)
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


@checked()
@ordinary_tensors()
def load_model(
    name: str | Path, dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu", sparse: bool = False
):
    """Load a causal language model and its tokenizer.

    Only safetensors weights are read, and code that comes with a model is never run.

    Parameters
    ----------
    name : str or Path
        A bundled name ("smollm2"), a Hugging Face id, or a folder, also one that `minprune export` wrote.
    dtype : str or torch.dtype, default "auto"
        "auto" keeps the checkpoint's; else "float32", "bfloat16" or "float16", or a dtype of torch.
    device : str or torch.device, default "cpu"
        Where the model is put, such as "cuda".
    sparse : bool, default False
        Keep the matrices as they are stored, without their zeros, and multiply with `minprune.kernels`. A folder
        that was not exported is loaded dense and then converted. Where that cannot be, the log says why, and the model
        is dense.

    Returns
    -------
    model : PreTrainedModel
        In eval mode.
    tokenizer : PreTrainedTokenizerBase

    Raises
    ------
    PruneError
        If there is no such model or device; or if the model is not causal, or its weights are damaged, quantised,
        only pickled, or not those of its config.json; or if it shall be sparse on a device that is no CPU.

    Examples
    --------
    >>> import minprune as mp
    >>> model, tokenizer = mp.load_model("smollm2")
    >>> f"{model.num_parameters():,}"
    '134,515,008'
    """
    from transformers import AutoModelForCausalLM

    from minprune.formats.disk import is_exported, read_exported
    from minprune.kernels.linear import place_stored, sparsify

    wanted, place = read_dtype(dtype), check_device(device)
    if sparse and place.type != "cpu":
        raise PruneError(f"a model on {device} cannot be sparse: the kernels run on the cpu")
    folder = model_folder(name)
    if is_exported(folder):  # its checksums cover the files of the tokenizer, which is therefore read last
        keep = place_stored if sparse else None
        stored: Any = read_exported(folder, wanted if isinstance(wanted, torch.dtype) else None, keep)
        stored = stored.to(place).eval()
        if sparse:
            sparsify(stored)  # what is still dense: the output head
        return stored, load_tokenizer(folder, name)
    tokenizer = load_tokenizer(folder, name)
    config = read_config(folder)
    read_generation(folder)
    if name not in BUNDLED:
        check_sizes(folder, describe_or_refuse(folder, copy.deepcopy(config), None), stored_tensors(folder))
    try:
        with torch.random.fork_rng(random_devices(place)):  # some families draw what is then overwritten
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=wanted,
                device_map=None if place.type == "cpu" else {"": place},  # straight there, not by way of the CPU
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
    if sparse:
        sparsify(model)
    return model, tokenizer


def model_source(name: str | Path) -> str | Path:
    """Where the files of a model are: its folder (that of a bundled model, after fetching it), or the id on the hub.

    Raises `PruneError` if there is no such model or its folder lacks what it needs; no weights are read for that.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise PruneError(f"a model is given by its name or folder, not by {name!r}")
    if name in BUNDLED:
        from minprune.data.assets import smollm2_folder

        return smollm2_folder()
    there = bool(name) and exists(name)
    if there and Path(name).is_dir():
        _check(Path(name))
        return name
    if name:
        check_kind(name)
    if there or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(name)):
        raise PruneError(
            f"no model {str(name)!r}: name a folder that exists, a bundled model ({', '.join(BUNDLED)}) or an id on "
            "the Hugging Face hub"
        )
    return name


def model_folder(name: str | Path) -> Path:
    """The folder with the files of a model, which are fetched from the hub if it is an id; as `model_source`."""
    source = model_source(name)
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
    """The tokenizer of a model, from its `model_source`, with its dropout switched off, if it has any.

    name: what to call the model in a `PruneError`. `write_tokenizer` saves it with the dropout that it came with.
    """
    from transformers import AutoTokenizer

    folder = model_folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        stop_dropout(tokenizer)
        ids = tokenize(tokenizer, _TRIAL)["input_ids"]
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


def check_device(device: str | torch.device) -> torch.device:
    """The torch device of that name; `PruneError` if there is none such on this machine."""
    try:
        torch.empty(0, device=device)
        if (place := torch.device(device)).type != "meta":  # which holds no numbers
            return place
    except (RuntimeError, AssertionError, ImportError, TypeError, ValueError):
        pass
    raise PruneError(f"device {device!r} is not available here: try cpu")
