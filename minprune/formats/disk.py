"""A whole model on disk with its matrices in sparse formats, and back: the same weights, bit by bit, in fewer bytes.

A folder holds `stored.safetensors` (the arrays of every matrix, and all other parameters as they are), `formats.json`
(the format of each matrix, and a checksum of every file), and the configuration and tokenizer as Hugging Face writes
them. Nothing is unpickled, and no index is used before it was checked against the model's own shapes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minprune.arguments import checked
from minprune.errors import PruneError, shown
from minprune.files import read_json, sha256, to_json, write_text
from minprune.formats.choose import STORED_FORMATS, store
from minprune.formats.described import other_tensors, write_description
from minprune.formats.stored import SparseMatrix
from minprune.models.checks import check_weights, sparse_layers
from minprune.models.extras import copy_files, not_loaded, save_tensors
from minprune.models.folder import inside, is_name
from minprune.models.layers import Layer, block_layers, head_layers
from minprune.models.skeleton import describe_or_refuse, fill_tables, read_config, read_generation
from minprune.models.tokenizer import write_tokenizer
from minprune.models.weight_files import one_line
from minprune.output.folder import OutputFolder
from minprune.output.model_files import write_errors, write_record
from minprune.output.record import RunRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INDEX, ARRAYS, VERSION = "formats.json", "stored.safetensors", 1


@dataclass(frozen=True)
class StoredRow:
    """One matrix of an exported model. shape: (d_out, d_in); format: with its settings, "nm 2:4".

    bytes: as stored; dense_bytes: of the same matrix with all its zeros.
    """

    name: str
    shape: tuple[int, int]
    format: str
    bytes: int
    dense_bytes: int


@checked("tokenizer")
def save_model(
    model: "PreTrainedModel",
    tokenizer: Any,
    path: str | Path,
    form: str = "auto",
    overwrite: bool = False,
    grid: tuple[int, int] | None = None,
) -> list[StoredRow]:
    """Write a model with its matrices in sparse formats to a folder, which appears when it is complete.

    `minprune.load_model(path)` reads it, bit for bit.

    Parameters
    ----------
    model : PreTrainedModel
        A pruned causal language model.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    path : str or Path
        The folder to make.
    form : str, default "auto"
        The format, as for `store`.
    grid : tuple of int, optional
        (bits, group) with which the model was quantised, as for `store`.
    overwrite : bool, default False
        Whether to replace an earlier output there.

    Returns
    -------
    list of StoredRow
        Each matrix with its format and its bytes.

    Raises
    ------
    PruneError
        If the folder cannot become the output, or a matrix does not fit the format.

    Examples
    --------
    >>> import minprune as mp
    >>> from minprune.formats import save_model
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> _, tokenizer = mp.load_model("smollm2")
    >>> size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=1))
    >>> report = mp.prune(model, None, "magnitude", "2:4")
    >>> {row.format for row in save_model(model, tokenizer, "exported", "nm")}
    {'nm 2:4'}
    """
    if not callable(getattr(tokenizer, "save_pretrained", None)) or isinstance(tokenizer, nn.Module):
        raise PruneError(f"tokenizer is {shown(tokenizer)}: it must be the model's, whose files are written beside it")
    with OutputFolder(Path(path), overwrite=overwrite).open() as folder:
        return write_exported(folder, model, tokenizer, form, grid=grid)


def write_exported(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: Any,
    form: str = "auto",
    record: RunRecord | None = None,
    source: Path | None = None,
    grid: tuple[int, int] | None = None,
) -> list[StoredRow]:
    """Write the model into the empty `folder`, every matrix of its blocks in the format `form` (see `save_model`).

    record: what minprune.json says beside the format and the bytes. source: the folder that the model was read from;
    what it holds beside a model is copied. Raises `PruneError` if a matrix does not fit, or nothing can be written.
    """
    from safetensors.torch import save_file

    layers, rows = sparse_layers(model), []
    check_weights(model, layers)
    with write_errors(folder):
        write_description(folder, model, layers)
    arrays: dict[str, Tensor] = {}
    entries: dict[str, dict[str, Any]] = {}
    for layer in layers:
        W = layer.weight.detach().cpu()
        try:
            stored = store(W, form, grid=grid)
        except PruneError as error:
            raise PruneError(f"{layer.name}: {error}") from None
        arrays |= {f"{layer.name}/{key}": _own(array) for key, array in stored.arrays().items()}
        entries[layer.name] = {"format": stored.name} | stored.settings()
        rows.append(StoredRow(layer.name, stored.shape, stored.label, stored.nbytes, W.nbytes))
    arrays |= {name: tensor.detach().cpu().contiguous() for name, tensor in other_tensors(model, layers).items()}
    with write_errors(folder):
        write_tokenizer(folder, tokenizer)
        save_file(arrays, folder / ARRAYS)
        if source:
            if left := not_loaded(model, source):
                save_tensors(folder, left)
            copy_files(source, folder)
        files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
        write_text(folder / INDEX, to_json({"version": VERSION, "files": files, "matrices": entries}, 1))
        sizes = {"format": form, "bytes": sum(r.bytes for r in rows), "dense_bytes": sum(r.dense_bytes for r in rows)}
        write_record(folder, (record or RunRecord()).model_copy(update=sizes))
    return rows


def is_exported(folder: str | Path) -> bool:
    """Whether a folder was written by `write_exported`."""
    return (Path(folder) / INDEX).is_file()


def read_exported(
    folder: Path,
    dtype: torch.dtype | None = None,
    place: Callable[["PreTrainedModel", str, SparseMatrix], bool] | None = None,
) -> "PreTrainedModel":
    """The model in a folder of `write_exported`, on the CPU. dtype: None keeps the one it was written in.

    place(model, layer, matrix): takes a matrix as it is stored and puts it where it belongs, or says False to have it
    dense. None: all are dense. Raises `PruneError` with the name of the file that is missing, edited, or another's.
    """
    index = _read_index(folder)
    config = read_config(folder)
    model: Any = describe_or_refuse(folder, config, dtype or config.dtype)  # type: ignore[arg-type]
    if generation := read_generation(folder):
        model.generation_config = generation
    fill_tables(model)
    _fill(folder / ARRAYS, model, _stored_layers(folder, model, index["matrices"]), index["matrices"], dtype, place)
    return model


def _stored_layers(folder: Path, model: "PreTrainedModel", entries: dict[str, Any]) -> list[Layer]:
    """The layers that the index names; `PruneError` if they are not the model's, or only a part of a parameter."""
    there = block_layers(model) + head_layers(model)
    chosen = [layer for layer in there if layer.name in entries]
    parameters = {id(getattr(layer.module, layer.parameter)) for layer in chosen}
    others = [layer for layer in there if layer.name not in entries]
    whole = not any(id(getattr(layer.module, layer.parameter)) in parameters for layer in others)
    if len(chosen) != len(entries) or not whole:
        raise PruneError(f"{folder / INDEX} names other matrices than the model has: export it again")
    return chosen


def _fill(
    path: Path,
    model: "PreTrainedModel",
    layers: list[Layer],
    entries: dict[str, Any],
    dtype: torch.dtype | None,
    place: Callable[["PreTrainedModel", str, SparseMatrix], bool] | None,
) -> None:
    """Give the model, which has no weights yet, what is stored: in the dtype of what is stored, or this one.

    `model.to(dtype)` would do more: it would round the rotary frequencies, which no checkpoint holds.
    """
    from safetensors import SafetensorError, safe_open

    others = other_tensors(model, layers)
    kinds = {name: STORED_FORMATS[entry["format"]] for name, entry in entries.items()}
    wanted = {f"{name}/{array}" for name, kind in kinds.items() for array in kind.parts()[0]}
    filled: dict[int, Tensor] = {}  # id of what is replaced -> what it becomes, once for tied ones
    try:
        with safe_open(path, framework="pt") as file:
            if set(file.keys()) != wanted | others.keys():
                raise PruneError(f"{path} holds other arrays than {INDEX} says: export the model again")
            for layer in layers:
                old = getattr(layer.module, layer.parameter)
                stored = _read_matrix(path, file, layer, entries[layer.name])
                if dtype:
                    stored = stored.astype(dtype)
                if place and place(model, layer.name, stored):
                    continue
                if id(old) not in filled:
                    new = torch.empty(old.shape, dtype=dtype or stored.weight_dtype)
                    filled[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad)
                layer.view_as_2d(filled[id(old)].data).copy_(stored.to_dense())
            for name, target in others.items():
                tensor = file.get_tensor(name)
                if tensor.shape != target.shape or tensor.is_floating_point() != target.is_floating_point():
                    raise PruneError(
                        f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}, the model needs {target.dtype} "
                        f"{tuple(target.shape)}: export it again"
                    )
                value = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
                is_parameter = isinstance(target, nn.Parameter)
                filled[id(target)] = nn.Parameter(value, requires_grad=target.requires_grad) if is_parameter else value
    except SafetensorError as error:
        raise PruneError(f"{path} is damaged ({one_line(error)}): copy or export it again") from None
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    state = {name: filled[id(old)] for name, old in named if id(old) in filled}
    model.load_state_dict(state, assign=True, strict=place is None)


def _read_matrix(path: Path, file: Any, layer: Layer, entry: dict[str, Any]) -> SparseMatrix:
    """One matrix in its format, checked to belong to this layer before anything of its size is made."""
    (d_out, d_in), kind = layer.weight.shape, STORED_FORMATS[entry["format"]]
    settings = {key: value for key, value in entry.items() if key not in ("format", "shape")}
    if entry.get("shape") != [d_out, d_in] or settings.keys() | {"shape"} != set(kind.parts()[1]):
        raise PruneError(
            f"{path.parent / INDEX}: {layer.name} is {entry}, but the model has {d_out} x {d_in}: export it again"
        )
    arrays: dict[str, Any] = {key: file.get_tensor(f"{layer.name}/{key}") for key in kind.parts()[0]}
    if not arrays["values"].is_floating_point():
        raise PruneError(f"{path}: the values of {layer.name} are {arrays['values'].dtype}: export the model again")
    try:
        return kind(shape=(d_out, d_in), **arrays, **settings)
    except PruneError as error:
        raise PruneError(f"{path}: {layer.name}: {error}: export the model again") from None


def _own(array: Tensor) -> Tensor:
    """The array in memory of its own, as it is stored: an expert is a part of a tensor."""
    whole = array.is_contiguous() and array.untyped_storage().nbytes() == array.nbytes
    return array if whole else array.clone(memory_format=torch.contiguous_format)


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    index = read_json(inside(folder, INDEX, str(folder)), object)
    if problem := next(_index_problems(index), None):
        raise PruneError(f"{path}: {problem}: copy or export the model again")
    for name, expected in index["files"].items():
        try:
            found = sha256(inside(folder, name, str(path)))
        except OSError as error:
            raise PruneError(f"{folder / name} cannot be read ({error.strerror}): copy it again") from None
        if found != expected:
            raise PruneError(f"{folder / name} is not the file that was exported (its checksum differs): copy it again")
    return index


def _index_problems(index: Any) -> Iterator[str]:
    if not isinstance(index, dict) or index.get("version") != VERSION:
        yield f"it is not an index of version {VERSION}"
        return
    files, matrices = index.get("files"), index.get("matrices")
    if not isinstance(files, dict) or not {ARRAYS, "config.json"} <= files.keys():
        yield f"it has no checksums of {ARRAYS} and config.json"
    elif not all(map(is_name, files)):
        yield "it names files outside the folder, or with signs that no name has"
    if not isinstance(matrices, dict) or not all(
        isinstance(entry, dict) and entry.get("format") in list(STORED_FORMATS) for entry in matrices.values()
    ):
        yield "it does not say the format of each matrix"
