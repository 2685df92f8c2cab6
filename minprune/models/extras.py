"""What a model's folder holds beside the model, and what its output holds as well: unchanged.

Tensors that the library leaves out on purpose (layers that predict several tokens at once, `mtp.*`), and small files
that other programs need (an image processor's configuration, a licence). Code is never copied.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.errors import PruneError
from minprune.files import read_bytes, write_text
from minprune.models.folder import entry, inside
from minprune.models.weight_files import INDEX, SINGLE, StoredTensor, header, stored_tensors

if TYPE_CHECKING:
    from torch import Tensor

NOT_LOADED = "model-not-loaded.safetensors"
_TABLES = r"(inv_freq|position_ids|masked_bias|attn(ention)?\.bias)$"  # that the library computes by now
LICENCES = r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)[\w.-]*"
_COPIED = rf".*\.(json|jinja|model|txt|tiktoken)|{LICENCES}"
_OURS = r".*\.index\.json|(minprune|formats|sha256|stamps)\.json|.*trainer_state\.json|.*results\.json|adapter_.*"
_SMALL = 2**26  # bytes


def not_loaded(model: Any, folder: Path) -> dict[str, StoredTensor]:
    """The stored tensors that are no part of the model since its class leaves them out, by name."""
    if (folder / NOT_LOADED).exists():
        return header(inside(folder, NOT_LOADED, str(folder)))
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    try:
        stored = stored_tensors(folder) if patterns else {}
    except PruneError:  # an export, which holds no tensors by their own names
        return {}
    loaded = model.state_dict().keys()
    return {
        name: tensor
        for name, tensor in stored.items()
        if name not in loaded and any(re.search(pattern, name) for pattern in patterns) and not re.search(_TABLES, name)
    }


def note_of(left: Iterable[str]) -> list[str]:
    """What a report says of such tensors."""
    names = sorted(left)
    if not names:
        return []
    return [
        f"{len(names)} tensors that transformers does not load, such as {names[0]}, are copied to the output unchanged"
    ]


def copy_files(source: Path, target: Path, names: str = _COPIED) -> None:
    """Copy small files of a model's folder that the target lacks; weights, code and records are none.

    names: a regular expression for those meant. Raises `PruneError` for one that cannot be read or lies elsewhere.
    """
    for path in sorted(source.iterdir()):
        if not re.fullmatch(names, path.name) or re.fullmatch(_OURS, path.name) or (target / path.name).exists():
            continue
        if path.is_file() and entry(path).stat().st_size <= _SMALL:
            (target / path.name).write_bytes(read_bytes(path))


def save_tensors(target: Path, left: dict[str, StoredTensor]) -> None:
    """Write such tensors to a file of their own in the target."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for path in sorted({tensor.path for tensor in left.values()}):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name, tensor in left.items() if tensor.path == path}
    save_file(tensors, target / NOT_LOADED, metadata={"format": "pt"})


def add_tensors(target: Path, left: dict[str, StoredTensor]) -> None:
    """`save_tensors`, and let the index of the weights in the target name them; it is made if there is none."""
    if not left:
        return
    save_tensors(target, left)
    path = target / INDEX
    if (target / SINGLE).exists():  # which would go before an index
        part = "model-00001-of-00001.safetensors"
        (target / SINGLE).rename(target / part)
        index: dict[str, Any] = {"metadata": {}, "weight_map": dict.fromkeys(header(target / part), part)}
    else:
        index = json.loads(path.read_text(encoding="utf-8"))
    index["weight_map"] |= dict.fromkeys(left, NOT_LOADED)
    files = set(index["weight_map"].values())
    index["metadata"]["total_size"] = sum(tensor.nbytes for file in files for tensor in header(target / file).values())
    write_text(path, json.dumps(index, indent=2) + "\n")
