"""What a run may write over: an output of its own kind that nothing was added to, and no input of the same run."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from minprune.errors import PruneError
from minprune.files import read_bytes, read_json
from minprune.output.lock import absolute

RECORD, PAGE = "minprune.json", "report.html"
WORK = "unfinished"  # a folder in PATH.partial: what the run needs until it has ended
_ALWAYS = rf"{RECORD}|{PAGE}|README\.md|{WORK}(/kind(\.tmp)?)?"
_UNLISTED = (  # in an output whose record lists no files
    r"((generation_|tokenizer_)?config|tokenizer|special_tokens_map|added_tokens|vocab|formats)\.json|merges\.txt|"
    r"(model|stored)(-[\w-]+)?\.safetensors|model\.gguf|model\.safetensors\.index\.json|tokenizer\.model|chat_template\.jinja"
)


WRITTEN = "files"  # a file in `WORK`: the names of what a run will write beside its weights, see `rehearse`
_OF_A_RUN = (  # in PATH.partial, beside what its output may hold
    rf"{WORK}/(kind|{WRITTEN}|recipe\.json|journal\.jsonl|(hidden|block|model)(-\d+)?(-of-\d+)?\.safetensors|training\.state|"
    r"rehearsal(/.*)?|removals\.json|basis\.safetensors|model-\d+(/.*)?)"
)


def check_target(target: str | Path, *inputs: str | Path | None) -> Path:
    """The absolute path of an output folder; `PruneError` if what the run reads is that folder, in it, or around it.

    inputs: paths, beside names of the hub or of bundled models and texts, which are no paths, and None.
    """
    path = absolute(target)
    partial = partial_of(path)
    for name in _paths(inputs):
        found = Path(name).resolve()
        if found == path:
            what = "the model itself" if name == inputs[0] else "read by the same run"
            raise PruneError(f"{target} is {what}, and would be lost: choose another --output")
        if found.is_relative_to(path) or found.is_relative_to(partial):
            raise PruneError(f"{name}, which is read, lies in {target}, the output: choose another --output")
        if path.is_relative_to(found):
            raise PruneError(f"{target}, the output, would lie in {name}, which is read: choose another --output")
    return path


def partial_of(path: Path) -> Path:
    """Where a run works until the output at `path` is complete."""
    return path.with_name(path.name + ".partial")


def check_free(path: Path, overwrite: bool) -> None:
    """Raise `PruneError` unless `path` is free, or a finished output, with nothing else in it, that may be replaced."""
    if path.is_dir() and any(path.iterdir()):
        if not (path / RECORD).exists():
            raise PruneError(f"{path} holds other things than a model pruned by minprune: choose another output")
        if not overwrite:
            raise PruneError(f"{path} exists already: choose another output or overwrite it with --overwrite")
        listed = _listed(path)
        for name in entries(path):
            known = re.fullmatch(f"{_ALWAYS}|{_OF_A_RUN}", name)  # of a run killed before it had tidied up
            if not (known or (re.fullmatch(_UNLISTED, name) if not listed else name in listed)):
                raise PruneError(
                    f"{path} holds {name!r}, which minprune did not write: move it elsewhere or choose another output"
                )
    elif path.exists() and not path.is_dir():
        raise PruneError(f"{path} is a file, not a folder: choose another output")


def check_left(partial: Path) -> None:
    """Raise `PruneError` if a PATH.partial that a run left holds anything that the run did not write."""
    written = partial / WORK / WRITTEN
    listed = read_bytes(written).decode(errors="replace").splitlines() if written.is_file() else []
    for name in entries(partial):
        plain = re.sub(r"\.(tmp|new)$", "", name)
        if plain not in listed and not re.fullmatch(f"{_ALWAYS}|{_UNLISTED}|{_OF_A_RUN}", plain):
            raise PruneError(
                f"{partial} holds {name!r}, which the run that left it did not write: move it elsewhere or choose "
                "another output"
            )


def check_file(
    name: str, option: str, overwrite: bool, models: Iterable[str | None] = (), read: Iterable[str | None] = ()
) -> None:
    """Raise `PruneError` unless a file of results can be written there: a device would be replaced, not written to.

    models: whose folders stay as they are. read: files that the run reads, which are never replaced. As for
    `check_target` they may be other names than paths.
    """
    path = absolute(name)
    if path.exists() and not path.is_file():
        raise PruneError(f"{name} is a folder or a device: name a file for {option}")
    if not path.parent.is_dir():
        raise PruneError(f"the folder of {name} does not exist: make it, or write the file elsewhere")
    for model in _paths(models):
        if path.is_relative_to(Path(model).resolve()):
            raise PruneError(f"{name} lies in the model's folder {model}: choose another {option}")
    for source in _paths(read):
        if path.exists() and path.samefile(source):
            raise PruneError(f"{name} is read by the same command, and would be lost: choose another {option}")
    if path.exists() and not overwrite:
        raise PruneError(f"{name} exists: choose another {option}, or add --overwrite")


def entries(folder: Path, above: str = "") -> Iterator[str]:
    """The names of all that is in a folder and its folders, as `a/b`; those of a folder come after its own."""
    for path in sorted(folder.iterdir()):
        yield above + path.name
        if path.is_dir() and not path.is_symlink():
            yield from entries(path, f"{above}{path.name}/")


def _listed(path: Path) -> set[str]:
    """The files that the record of an output lists, and their folders; none if it is an old or a damaged one."""
    try:
        files = read_json(path / RECORD).get("files")
    except PruneError:
        return set()
    return {str(name) for name in files} if isinstance(files, list) else set()


def _paths(names: Iterable[str | Path | None]) -> list[str | Path]:
    return [name for name in names if name and isinstance(name, (str, os.PathLike)) and Path(name).exists()]
