"""What may be read of a model's folder, and what its JSON files must hold before a library sees them.

A folder comes from anywhere. Only regular files of its own are read (or, through links, of the hub's cache that it
belongs to), and what is wrong with one is said in one line that names it.
"""

import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minprune.errors import PruneError, short
from minprune.files import check_regular, read_json

AGAIN = "copy or download it again"
_JSON = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
_READ = {".json", ".safetensors", ".model", ".txt", ".jinja", ".md"}  # the files that some library or we may open
_TEMPLATES = "additional_chat_templates"
_ALONE = {".gguf": "a GGUF file", ".safetensors": "a file of weights", ".bin": "a file of pickled weights"}
_ALONE |= dict.fromkeys((".pt", ".pth", ".ckpt", ".pkl"), "a file of pickled weights")
_LABELS = 2**16  # transformers makes a name for each
_GROWTH = 64  # how many times longer than the text a tokenizer's normalizer may make it


def is_name(name: object) -> bool:
    """Whether this is the name of a file in a folder: no path, and only signs that a name can have."""
    if not isinstance(name, str) or name in ("", ".", ".."):
        return False
    return name.isprintable() and not re.search("[/\\\\:\ufffd]", name)


def inside(folder: Path, name: str, source: str) -> Path:
    """The path of a file that `source` names; `PruneError` unless it is a regular file of this folder, or missing.

    A link may lead to another file of the folder, or into the hub's cache that the folder belongs to.
    """
    if not is_name(name):
        raise PruneError(f"{source} names {name!r}, which is no file of {folder}: {AGAIN}")
    return entry(folder / name)


def entry(path: Path) -> Path:
    """The path of a folder's entry, whatever its name; `PruneError` unless it is a regular file there, or missing."""
    folder = path.parent
    check_regular(path)
    if path.is_symlink() and not any(Path(os.path.realpath(path)).is_relative_to(root) for root in _roots(folder)):
        raise PruneError(f"{path} is a link that leads out of its folder: put a copy of the file in its place")
    return path


def check_entries(folder: Path) -> None:
    """Raise `PruneError` if a file that may be read is no regular file of the folder, as a pipe or a link elsewhere."""
    for place in (folder, folder / _TEMPLATES):
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            if path.suffix in _READ and not (path.is_dir() and path.suffix != ".json"):
                entry(path)
    if any(re.match(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors$", path.name) for path in folder.iterdir()):
        raise PruneError(f"{folder} holds a distributed checkpoint: save the model with save_pretrained first")


def check_kind(path: str | Path) -> None:
    """Raise `PruneError` if what is there is something else than a model's folder, and say what it is."""
    path = Path(path)
    if path.is_dir():
        if (path / "adapter_config.json").exists():
            raise PruneError(f"{path} holds an adapter (LoRA), not a whole model: merge it into its base model first")
        if not (path / "config.json").exists() and any(path.glob("*.gguf")):
            raise PruneError(
                f"{path} holds a GGUF file, which minprune cannot prune: use the folder that it was made from"
            )
    elif path.suffix in _ALONE and path.exists():
        raise PruneError(f"{path} is {_ALONE[path.suffix]}, not a model's folder: name the folder with its config.json")


def read_all_json(folder: Path) -> dict[str, Any]:
    """What config.json says. Raises `PruneError` for what is wrong with it or another JSON file that libraries read."""
    if not os.path.lexists(folder / "config.json"):
        raise PruneError(f"{folder} holds no config.json: it is not a Hugging Face model folder")
    found = {name: read_json(folder / name) for name in _JSON if os.path.lexists(folder / name)}
    for name, content in found.items():
        if problem := next(_problems(name, content), None):
            raise PruneError(f"{folder / name}: {problem}: {AGAIN}")
    return found["config.json"]


def _roots(folder: Path) -> Iterator[Path]:
    """Where the files of a folder may be: in it, and in the blobs of a hub's cache (of one repository, or of all)."""
    real = Path(os.path.realpath(folder))
    yield real
    if real.name == _TEMPLATES:
        yield from _roots(real.parent)
    if real.parent.name == "snapshots":
        yield real.parent.parent / "blobs"
        yield real.parent.parent.parent / "blobs"


def _is_id(value: Any) -> bool:
    return value is None or (type(value) is int and abs(value) < 2**63)


def _is_whole(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


_Check = Callable[[Any], bool]
_IDS: _Check = lambda value: all(map(_is_id, value)) if isinstance(value, list) else _is_id(value)  # noqa: E731
_TOKEN: _Check = lambda value: value is None or isinstance(value, str | dict)  # noqa: E731
_TEXT: _Check = lambda value: value is None or _is_whole(value)  # noqa: E731
_TEXTS: _Check = lambda value: value is None or (isinstance(value, list) and all(map(_is_whole, value)))  # noqa: E731
_NAMES: _Check = lambda value: value is None or (isinstance(value, list) and all(map(is_name, value)))  # noqa: E731
_NUMBER: _Check = lambda value: value is None or (type(value) in (int, float) and value >= 0)  # noqa: E731
_EMPTY: _Check = lambda value: not value  # noqa: E731


def _is_template(value: Any) -> bool:
    """A chat template, or several with names that become names of files."""
    if isinstance(value, list):
        return all(
            isinstance(one, dict) and is_name(one.get("name")) and isinstance(one.get("template"), str) for one in value
        )
    if isinstance(value, dict):
        return all(is_name(name) and isinstance(template, str) for name, template in value.items())
    return value is None or isinstance(value, str)


_MODEL: dict[str, tuple[_Check, str]] = {  # a pattern of keys -> what belongs there
    r"architectures": (_TEXTS, "a list of names"),
    r"model_type": (_TEXT, "a name"),
    r"\w+_token_id": (_IDS, "a token's number"),
    r"(?!model_max_length)\w+": (lambda value: type(value) is not int or _is_id(value), "a number below 2^63"),
    r"_?num_labels": (lambda value: type(value) is not int or value <= _LABELS, f"a number up to {_LABELS}"),
    r"configuration_files": (_NAMES, "a list of files of this folder"),
    r"transformers_weights": (lambda value: value in (None, "model.safetensors"), "model.safetensors"),
}
_TOKENIZER: dict[str, tuple[_Check, str]] = {
    r"model_max_length": (_NUMBER, "a number"),
    r"(bos|eos|unk|sep|pad|cls|mask)_token": (_TOKEN, "a token"),
    r"tokenizer_class": (_TEXT, "a name"),
    r"chat_template": (_is_template, "a template, or templates with the names of files"),
    r"fast_tokenizer_files": (_NAMES, "a list of files of this folder"),
    r"init_inputs": (_EMPTY, "nothing"),
}
_NUMBERS = r"(temperature|(top|min|typical)_[kph]|\w+_penalty|(max|min)_(new_tokens|length)|num_\w+|\w+_cutoff)"
_GENERATION = _MODEL | {_NUMBERS: (_NUMBER, "a number")}
_RULES = {"config.json": _MODEL, "generation_config.json": _GENERATION, "tokenizer_config.json": _TOKENIZER}


def _problems(name: str, content: dict[str, Any]) -> Iterator[str]:
    for key, value in content.items():
        for pattern, (fits, wanted) in _RULES.get(name, {}).items():
            if re.fullmatch(pattern, key) and not fits(value):
                yield f"{key} is {short(value)} where {wanted} belongs"
    if name == "config.json":
        for inner in content.values():
            yield from _problems(name, inner) if isinstance(inner, dict) else ()
    if name == "tokenizer.json" and (growth := _growth(content.get("normalizer"))) > _GROWTH:
        yield f"its normalizer can make a text {growth:,.0f} times longer"


def _growth(normalizer: Any) -> float:
    """How many times longer than itself this part of a tokenizer.json can make a text of some length."""
    if not isinstance(normalizer, dict):
        return 1.0
    parts = normalizer.get("normalizers")
    if isinstance(parts, list):
        return min(math.prod(map(_growth, parts)), 1e300)
    content, pattern = normalizer.get("content"), normalizer.get("pattern")
    if normalizer.get("type") == "Replace" and isinstance(content, str) and isinstance(pattern, dict):
        found = pattern.get("String")  # else a regular expression, which can match a single sign
        return max(1.0, len(content) / max(1, len(found) if isinstance(found, str) else 1))
    if normalizer.get("type") == "Prepend":
        return 1 + len(str(normalizer.get("prepend"))) / 16
    return 1.0
