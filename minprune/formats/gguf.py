"""A model as one GGUF file, which llama.cpp and the programs built on it load: in F32, F16, Q8_0 or Q4_0.

A row is cut into blocks of 32 inputs with one scale d, a float16. Where m is the weight of largest magnitude there:

    Q8_0:  d = |m| / 127,  q = round(w / d), halves away from zero,  w' = d q         8.5 bits a weight
    Q4_0:  d = m / -8,     q = min(floor(w / d + 8.5), 15),          w' = d (q - 8)   4.5 bits a weight

The error is at most d / 2, at the end of Q4_0 opposite to m up to d, and the rounding of d itself. 0 is a level of both
(q = 0, q = 8): pruned weights stay zero, and each still takes its bits. A level of another grid is in general none of
Q4_0: weights of 4 bits are rounded once more. The `gguf` package of llama.cpp rounds. Norms and biases stay F32, and a
width that is no multiple of 32 F16. Beside Q4_0 the embeddings and the head are Q8_0: llama.cpp, too, gives them more.

Left out: every family but Llama's, scaled rotary positions, and tokenizers that are not byte-level BPE: refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from minprune.errors import PruneError, short
from minprune.formats.disk import StoredRow
from minprune.formats.gguf_tokenizer import add_tokenizer
from minprune.models.checks import check_weights, sparse_layers
from minprune.models.extras import LICENCES, copy_files
from minprune.output.model_files import write_errors, write_record
from minprune.output.record import RunRecord

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

NAME = "model.gguf"
TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}  # of LlamaFileType
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}  # of config.json -> of GGUF
_WIDTH = 32  # of a block


@dataclass(frozen=True)
class RoundedRow(StoredRow):
    """One matrix of a GGUF file. error: what rounding changed, relative to the matrix, in the Frobenius norm."""

    error: float


def rounding_error(stored: Tensor, W: Tensor) -> float:
    """||stored - W|| / ||W||; 0 for zeros. In sums of float64: squares of small weights are no float32."""
    size = float(torch.linalg.vector_norm(W, dtype=torch.float64))
    return float(torch.linalg.vector_norm(stored - W, dtype=torch.float64)) / size if size else 0.0


def check_type(kind: str) -> None:
    """Raise `PruneError` unless `kind` is one of `TYPES`."""
    if kind not in TYPES:
        raise PruneError(f"unknown GGUF type {kind!r}: use {', '.join(TYPES)}")


def write_gguf(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: Any,
    kind: str = "q8_0",
    record: RunRecord | None = None,
    source: Path | None = None,
) -> list[RoundedRow]:
    """Write the model and its tokenizer into the empty `folder` as `model.gguf`, and say of each matrix how.

    kind: one of `TYPES`. record: what minprune.json says beside the format and the bytes. source: the folder that the
    model was read from; its licence is copied. Raises `PruneError`, before anything is written, if the family or the
    tokenizer is one that is left out, or a weight too large for the type.
    """
    from gguf import GGUFWriter, LlamaFileType

    check_type(kind)
    config: Any = model.config
    if problem := next(_problems(config), None):
        raise PruneError(f"no GGUF file: {problem}; export it in another format")
    check_weights(model, sparse_layers(model))
    writer = GGUFWriter(folder / NAME, _ARCHITECTURES[config.model_type])
    writer.add_file_type(LlamaFileType[TYPES[kind]])
    _add_config(writer, config)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    rows = list(_add_tensors(writer, model, kind))
    with write_errors(folder):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if source:
            copy_files(source, folder, LICENCES)
        sizes = {"bytes": sum(row.bytes for row in rows), "dense_bytes": sum(row.dense_bytes for row in rows)}
        write_record(folder, (record or RunRecord()).model_copy(update={"format": f"gguf {kind}"} | sizes))
    return rows


def _problems(config: Any) -> Iterator[str]:
    """Why a model of this configuration would compute something else in what reads the file."""
    family = config.model_type
    if family not in _ARCHITECTURES:
        yield f"the family {family!r} is not {', '.join(_ARCHITECTURES)}"
        return
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield f"its rotary positions are scaled ({short(rope)})"
    if config.hidden_act != "silu":
        yield f"its activation is {config.hidden_act}, not silu"
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        yield f"a {family} with biases has no place for them there"
    if getattr(config, "sliding_window", None) and config.sliding_window < config.max_position_embeddings:
        yield f"its attention sees only {config.sliding_window} tokens, which the file cannot say"
    if family == "qwen2" and _head_dim(config) * config.num_attention_heads != config.hidden_size:
        yield f"{config.num_attention_heads} heads of {_head_dim(config)} do not make up the width {config.hidden_size}"


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _add_config(writer: "GGUFWriter", config: Any) -> None:
    from gguf import GGML_QUANT_VERSION

    if name := Path(config.name_or_path).name:
        writer.add_name(name)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(_head_dim(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tensors(writer: "GGUFWriter", model: "PreTrainedModel", kind: str) -> Iterator[RoundedRow]:
    """Round every parameter and hand it to the writer; a row for each matrix."""
    from gguf import MODEL_ARCH_NAMES, dequantize, get_tensor_name_map, quantize

    config: Any = model.config
    architecture = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == writer.arch)
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, parameter in model.named_parameters():  # a tied head is none of its own
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if place is None:
            raise PruneError(f"no GGUF file: a {writer.arch} has no {name} there; export it in another format")
        values: NDArray[np.float32] = parameter.detach().float().cpu().numpy()
        if writer.arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = rotary_pairs(values, heads)
        form = _form(name, values, kind)
        with np.errstate(over="ignore", invalid="ignore"):  # too large: told below; a scale below float16: all are zero
            stored = quantize(values, form)
            back = dequantize(stored, form)
        if not np.isfinite(back).all():
            raise PruneError(f"{name} has a weight of {abs(values).max():.4g}, too large for {form.name}: use f32")
        writer.add_tensor(place, np.ascontiguousarray(stored), raw_dtype=form)
        if values.ndim == 2:
            error = rounding_error(torch.from_numpy(back), torch.from_numpy(values))
            shape = (values.shape[0], values.shape[1])
            yield RoundedRow(name.removesuffix(".weight"), shape, form.name, stored.nbytes, parameter.nbytes, error)


def _form(name: str, values: "NDArray[np.float32]", kind: str) -> "GGMLQuantizationType":
    """The type that a parameter is stored in."""
    from gguf import GGMLQuantizationType

    if values.ndim == 1 or kind == "f32":
        return GGMLQuantizationType.F32
    if kind == "f16" or values.shape[1] % _WIDTH:
        return GGMLQuantizationType.F16
    whole_vocabulary = kind == "q4_0" and not name.startswith("model.layers.")
    return GGMLQuantizationType.Q8_0 if whole_vocabulary else GGMLQuantizationType[kind.upper()]


def rotary_pairs(W: "NDArray[np.float32]", heads: int) -> "NDArray[np.float32]":
    """The rows of W (heads * d, d_in) as llama.cpp rotates them: inputs i and i + d / 2 of each head side by side."""
    half = len(W) // heads // 2
    return W.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(W.shape)
