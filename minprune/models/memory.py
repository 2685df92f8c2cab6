"""How many windows go through a model at once, and how freed memory goes back to the system. Chapter 08."""

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

from minprune.models.layers import Layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HIDDEN, _WIDEST = 8, 4  # tensors of the width of hidden states, and of the widest layer, that live at once in a block
_SHARE = 0.5  # of the free memory: the rest is for Gram matrices, solves and whatever else runs
_CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; on the CPU no more than the container's limit leaves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no limit ("max"), or no such file
        used = int((_CGROUP / "memory.current").read_text())
        free = min(free, int((_CGROUP / "memory.max").read_text()) - used)
    return max(free, 0)


def bytes_per_window(model: "PreTrainedModel", layers: list[Layer], length: int) -> int:
    """About what a window of so many tokens takes on its way through a block, at 4 bytes a number or more.

    Eight tensors as wide as the hidden states, four as wide as the widest layer, and with eager attention three
    matrices of scores (length, length) for each head.
    """
    config = model.config.get_text_config()
    shapes = [layer.weight.shape for layer in layers if layer.module is not model.get_output_embeddings()]
    widest = max((max(shape) for shape in shapes), default=0)
    numbers = length * (_HIDDEN * config.hidden_size + _WIDEST * widest)
    if config._attn_implementation == "eager":
        numbers += 3 * getattr(config, "num_attention_heads", 1) * length**2
    return numbers * max(4, model.dtype.itemsize)


def windows_at_once(model: "PreTrainedModel", layers: list[Layer], calib: Tensor) -> int:
    """How many of the windows (windows, length) go through the model at once: all, if the free memory takes them."""
    fit = int(_SHARE * free_memory(calib.device) / bytes_per_window(model, layers, calib.shape[1]))
    return max(1, min(len(calib), fit))


def return_memory() -> None:
    """Let the C library give freed memory back to the system.

    glibc keeps what is freed between two pieces that are still in use. Of a block of 100 MB about 60 MB stayed that way
    (book/results/memory.json is measured with this in place): after 57 blocks more than half of the model.
    """
    with suppress(AttributeError, OSError, TypeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
