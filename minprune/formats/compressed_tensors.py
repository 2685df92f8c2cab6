"""A quantised model as vLLM and transformers load it: compressed-tensors, with packed integers. Chapter 21.

A weight is s (q - z), as in integers.py. Of each matrix of the blocks the file holds

    weight_packed       q, b bits each, in words of 32 bits along the inputs      (d_out, d_in b / 32), int32
    weight_scale        s of each group of inputs, in the model's type            (d_out, groups)
    weight_zero_point   z likewise packed, along the outputs; if q is not signed around 0 everywhere
    weight_shape        (d_out, d_in)

q and z are signed, from -2^(b-1) to 2^(b-1) - 1. Pruned weights are codes like others: they stay zero and take their
bits. In a model of 32 bits nothing is rounded; in 16 bits the scales are, to the model's type. `compressed_tensors`,
the library of the format, packs; it is an extra: pip install 'minprune[vllm]'.

Left out: matrices that are no `torch.nn.Linear` (GPT-2's, experts in one tensor), 2:4 zeros without their codes, and
models that are quantised in one part only.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minprune.errors import PruneError
from minprune.files import to_json, write_text
from minprune.formats.described import other_tensors, write_description
from minprune.formats.disk import StoredRow
from minprune.formats.gguf import RoundedRow, rounding_error
from minprune.formats.integers import whole_numbers
from minprune.models.checks import check_weights
from minprune.models.extras import copy_files
from minprune.models.layers import Layer, find_layers
from minprune.models.tokenizer import write_tokenizer
from minprune.output.model_files import write_errors, write_record
from minprune.output.record import RunRecord
from minprune.output.shards import Shards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME, WEIGHTS = "compressed-tensors", "model.safetensors"


def write_packed(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: Any,
    grid: tuple[int, int] | None,
    record: RunRecord | None = None,
    source: Path | None = None,
) -> list[StoredRow]:
    """Write the model and its tokenizer into the empty `folder`, and say of each matrix what it takes.

    grid: (bits, group) with which it was quantised. record: what minprune.json says beside the format and the bytes.
    source: the folder that the model was read from; what it holds beside a model is copied. Raises `PruneError`, before
    anything is written, if a matrix is on no such grid or cannot be said, or the library is missing. Beside the model
    one matrix is in memory at a time.
    """
    if grid is None:
        raise PruneError(f"{NAME} holds whole numbers: quantise the model first, or say --bits and --group")
    layers = find_layers(model)
    _check(model, layers)
    half, signed = 2 ** (grid[0] - 1), True
    for layer in layers:
        _, whole = _numbers(layer, grid)
        signed = signed and -half <= int(whole.min()) and int(whole.max()) < half
    others = other_tensors(model, layers)
    places = _places(layers, grid, signed, model.dtype) | others
    shards = Shards(folder, places, limit=sum(place.nbytes for place in places.values()))  # one file
    rows: list[StoredRow] = []
    with write_errors(folder):
        write_description(folder, model, layers)
        _describe(folder, model, layers, grid, signed)
        write_tokenizer(folder, tokenizer)
        (folder / WEIGHTS).touch()  # where the one file is filled
        shards.begin()
        shards.write(others)
        for layer in layers:  # their numbers once more: those of all matrices would be another model in memory
            scales, whole = _numbers(layer, grid)
            own = packed(scales.to(model.dtype), whole, grid[0], signed)
            shards.write({f"{layer.name}.{name}": tensor for name, tensor in own.items()})
            size, W = sum(tensor.nbytes for tensor in own.values()), layer.weight.detach().cpu()
            lost = rounding_error(_read(scales.to(model.dtype), whole), W.float())
            rows.append(
                RoundedRow(layer.name, (W.shape[0], W.shape[1]), f"packed, {grid[0]} bits", size, W.nbytes, lost)
            )
        if source:
            copy_files(source, folder)
        sizes = {"bytes": sum(row.bytes for row in rows), "dense_bytes": sum(row.dense_bytes for row in rows)}
        write_record(folder, (record or RunRecord()).model_copy(update={"format": NAME} | sizes))
    return rows


def _numbers(layer: Layer, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The scales and whole numbers of a matrix, see `whole_numbers`; an error names the layer."""
    try:
        return whole_numbers(layer.weight.detach().cpu(), *grid)
    except PruneError as error:
        raise PruneError(f"{layer.name}: {error}") from None


def _places(layers: list[Layer], grid: tuple[int, int], signed: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors without numbers, of the shapes and dtypes of what `packed` makes of each matrix."""
    bits, group = grid
    found = {}
    for layer in layers:
        d_out, d_in = layer.weight.shape
        groups = d_in // (group or d_in)
        own: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "weight_scale": ((d_out, groups), dtype),
            "weight_shape": ((2,), torch.int64),
            "weight_packed": ((d_out, -(-d_in * bits // 32)), torch.int32),
        }
        if not signed:
            own["weight_zero_point"] = (-(-d_out * bits // 32), groups), torch.int32
        for name, (shape, kind) in own.items():
            found[f"{layer.name}.{name}"] = torch.empty(shape, dtype=kind, device="meta")
    return found


def packed(scales: Tensor, whole: Tensor, bits: int, signed: bool) -> dict[str, Tensor]:
    """The tensors of one matrix. scales (d_out, groups); whole (d_out, groups, width), q - z, in whole numbers.

    signed: q - z is q, with no zero points; else each group's lowest code is the lowest there is.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    found = {"weight_scale": scales, "weight_shape": torch.tensor([whole.shape[0], whole[0].numel()])}
    codes = whole
    if not signed:
        zeros = -(2 ** (bits - 1)) - whole.amin(2).clamp(max=0)  # (d_out, groups)
        codes = whole + zeros[..., None]
        found["weight_zero_point"] = pack_to_int32(zeros.to(torch.int8), bits, packed_dim=0).contiguous()
    return found | {"weight_packed": pack_to_int32(codes.flatten(1).to(torch.int8), bits)}


def _read(scales: Tensor, whole: Tensor) -> Tensor:
    """The weights (d_out, d_in) that a reader makes of them, in the type of the scales, then float32."""
    return (whole.to(scales.dtype) * scales[..., None]).flatten(1).float()


def _check(model: "PreTrainedModel", layers: list[Layer]) -> None:
    try:
        import compressed_tensors  # noqa: F401
    except ImportError:
        raise PruneError(f"{NAME} is not installed: pip install 'minprune[vllm]'") from None
    check_weights(model, layers)
    for layer in layers:
        module = layer.module
        if type(module) is not nn.Linear or layer.weight.shape != module.weight.shape:
            raise PruneError(
                f"{layer.name} is no torch.nn.Linear, which is all that {NAME} packs: export it in another"
            )


def _describe(folder: Path, model: "PreTrainedModel", layers: list[Layer], grid: tuple[int, int], signed: bool) -> None:
    """Say in config.json what is packed and how."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    bits, group = grid
    places = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=signed, **places)
    names = {layer.name for layer in layers}
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    said = QuantizationConfig(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)},
        format="pack-quantized",
        quantization_status="compressed",
        ignore=[name for name in linear if name not in names],
    )
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"quantization_config": said.to_dict()}
    write_text(path, to_json(config, 2))
