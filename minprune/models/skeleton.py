"""A model without weights: what its config.json describes, before a single number is read.

It tells whether the stored tensors fit, and takes them one by one. Tables that no checkpoint holds (rotary
frequencies) are computed as `from_pretrained` computes them: in float32, then rounded to the dtype that they have.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minprune.errors import PruneError
from minprune.models.weight_files import is_failure, one_line, reason

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # of a model in use
DEEPEST = 10_000  # blocks: 50 times those of the deepest language models
# What training scripts leave in a config.json, and the value that a model in use has: with the others it answers in
# tuples, or its configuration cannot be saved.
_IN_USE = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "torchscript": False,
    "gradient_checkpointing": False,
    "use_cache": True,
}


def read_config(folder: Path) -> "PreTrainedConfig":
    """The configuration in a folder, without what training scripts leave in it; `PruneError` if there is none."""
    from transformers import AutoConfig

    try:
        # without the explicit False transformers would ask on the terminal whether to run code
        return in_use(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except Exception as error:
        raise PruneError(f"cannot load the model {str(folder)!r}: {reason(error)}") from error


def in_use(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """The same configuration, in which the flags of training scripts are set back, and those in it, too."""
    for one, key, _ in _left_by_training(config):
        setattr(one, key, _IN_USE[key])
    return config


@contextmanager
def plain_outputs(model: "PreTrainedModel") -> Iterator[None]:
    """While open, the model answers with what it is asked for, whatever flags its configuration has.

    Also in float64, for which torch has no grouped product: a mixture then applies its experts one after the other.
    """
    found = list(_left_by_training(model.config))
    usual = model.get_experts_implementation() if model.dtype == torch.float64 else {}
    grouped = "grouped_mm" in usual.values()
    in_use(model.config)
    try:
        if grouped:
            model.set_experts_implementation("eager")
        yield
    finally:
        for one, key, value in found:
            setattr(one, key, value)
        if grouped:
            model.set_experts_implementation(usual)


def _left_by_training(config: Any) -> Iterator[tuple[Any, str, Any]]:
    """(a configuration, a key, its value) for each such flag, here and in the configurations within."""
    for key, value in _IN_USE.items():
        if getattr(config, key, value) != value:
            yield config, key, getattr(config, key)
    for key in getattr(config, "sub_configs", {}):
        if (inner := getattr(config, key, None)) is not None and not isinstance(inner, dict):
            yield from _left_by_training(inner)


def read_generation(folder: Path) -> "GenerationConfig | None":
    """What generation_config.json says, None if there is none; `PruneError` if it cannot be used."""
    from transformers import GenerationConfig

    path = folder / "generation_config.json"
    if not path.exists():
        return None
    try:
        return GenerationConfig.from_pretrained(folder)
    except Exception as error:
        raise PruneError(f"{path} cannot be read ({one_line(error)}): copy or export the model again") from error


def describe(config: "PreTrainedConfig", dtype: torch.dtype | None) -> "PreTrainedModel":
    """The model of that configuration with all its tensors on the meta device, where they take no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), torch.random.fork_rng(devices=[]):  # some families draw numbers even so
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    return model.eval()


def fill_tables(model: Any) -> None:
    """Compute the buffers that no checkpoint holds, on the CPU, as when weights are loaded."""
    for module in model.modules():
        for key in module._non_persistent_buffers_set:
            if (buffer := module._buffers[key]) is not None:
                module._buffers[key] = torch.empty_like(buffer, device="cpu")
                module._is_hf_initialized = False  # else the library would not look at it again
    with torch.random.fork_rng(devices=[]):
        model.initialize_weights()  # of the parameters nothing is there yet


def describe_or_refuse(folder: Path, config: "PreTrainedConfig", dtype: torch.dtype | None) -> "PreTrainedModel":
    """`describe`, with a `PruneError` for a configuration of which no model can be made."""
    depth = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(depth, int) and depth > DEEPEST:  # each takes milliseconds and kilobytes, without weights, too
        raise PruneError(f"{folder / 'config.json'} describes no model: {depth} blocks are more than {DEEPEST}")
    try:
        return describe(config, dtype)
    except BaseException as error:
        if not is_failure(error):
            raise
        raise PruneError(f"{folder / 'config.json'} describes no model: {reason(error)}") from error
