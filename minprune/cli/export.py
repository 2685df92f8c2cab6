"""`minprune export`: write a pruned model so that its zeros save bytes on disk, or so that llama.cpp loads it."""

from argparse import Namespace
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minprune.cli.common import MODEL, LayerName, command, console, load, table_of, whole
from minprune.errors import PruneError, decimal, kind_of_layer
from minprune.output.target import check_target

if TYPE_CHECKING:
    from minprune.formats.disk import StoredRow
    from minprune.output.record import RunRecord


def add(commands) -> None:
    """The arguments of `minprune export`."""
    parser = command(
        commands,
        "export",
        run,
        "write a pruned model in a sparse format, which takes fewer bytes on disk, or for llama.cpp or vLLM",
        "minprune.load_model and all minprune commands load the folder, with the same weights bit by bit; "
        "other programs do not. With gguf and compressed-tensors it is the other way round, and the weights may be "
        "rounded; zeros stay zero.",
        "minprune export smollm2-sparsegpt-50pct --format auto --dtype float16",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--format",
        metavar="F",
        default="auto",
        help="how to store each matrix of the blocks:\n"
        "auto: the smallest for that matrix (default)\n"
        "bitmask: one bit a weight, and the values that are not zero\n"
        "nm: N values and their places of every M, for 2:4 and the like\n"
        "csr, csc: a row or column index for each value\n"
        "block: whole square blocks\n"
        "integers: codes of a few bits and scales, for a quantised model\n"
        "dense: all values\n"
        "gguf: one file, model.gguf, for llama.cpp and others; of the families Llama, Mistral and Qwen2\n"
        "compressed-tensors: a quantised model for vLLM and transformers; an extra, minprune[vllm]",
    )
    parser.add_argument(
        "--type",
        metavar="K",
        help="of gguf:\n"
        "q8_0: 8 bits, and a scale for every 32 weights (default)\n"
        "q4_0: 4 bits, likewise\n"
        "f16: half precision\n"
        "f32: as they are",
    )
    parser.add_argument(
        "--bits", metavar="B", type=whole(2, 8), help="with which the model was quantised (default: as its record says)"
    )
    parser.add_argument("--group", metavar="G", type=whole(0), default=64, help="and in what groups, with --bits (64)")
    parser.add_argument(
        "--dtype", metavar="T", default="auto", help="float32, bfloat16, float16, or the checkpoint's own (auto)"
    )
    parser.add_argument("--output", metavar="DIR", help="folder to write (default: MODEL-FORMAT or MODEL-TYPE here)")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that minprune wrote before")


def run(arguments: Namespace) -> None:
    """Write the model to a folder that appears only when it is complete, and say what each kind of layer takes."""
    from minprune.formats import compressed_tensors
    from minprune.formats.disk import write_exported
    from minprune.formats.gguf import write_gguf
    from minprune.load import model_folder
    from minprune.output.folder import OutputFolder, default_name
    from minprune.output.model_files import check_space, rehearse
    from minprune.output.record import read_record

    gguf = _gguf_type(arguments)
    target = Path(arguments.output or default_name(arguments.model, gguf or arguments.format))
    check_target(target, arguments.model)
    origin = read_record(arguments.model)
    with OutputFolder(target, "export", arguments.overwrite).open() as folder:
        model, tokenizer = load(arguments.model, arguments.dtype, "cpu")
        record = _record(arguments, str(model.dtype), origin)
        source = model_folder(arguments.model)
        rows: Sequence[StoredRow]
        if arguments.format == compressed_tensors.NAME:
            rows = compressed_tensors.write_packed(folder, model, tokenizer, _grid(arguments, origin), record, source)
        elif gguf:
            rows = write_gguf(folder, model, tokenizer, gguf, record, source)
        else:
            ahead = rehearse(folder, model, tokenizer, record, source=source)
            check_space(folder, model, -ahead)
            rows = write_exported(folder, model, tokenizer, arguments.format, record, source, _grid(arguments, origin))
    _show(rows)
    console().print(f"written to {target}", soft_wrap=True)


def _gguf_type(arguments: Namespace) -> str | None:
    """The type of a GGUF file, None if none is asked for; `PruneError` for a format or type that there is not."""
    from minprune.formats import compressed_tensors
    from minprune.formats.choose import check_form
    from minprune.formats.gguf import check_type

    if arguments.format == "gguf":
        kind = "q8_0" if arguments.type is None else arguments.type
        check_type(kind)
        return kind
    if arguments.format != compressed_tensors.NAME:
        try:
            check_form(arguments.format)
        except PruneError as error:
            raise PruneError(f"{error}, gguf, {compressed_tensors.NAME}") from None
    if arguments.type is not None:
        raise PruneError(f"--type {arguments.type} is one of GGUF: add --format gguf, or leave it out")
    return None


def _grid(arguments: Namespace, origin: "RunRecord") -> tuple[int, int] | None:
    """(bits, group) of the model's weights, as far as somebody says so."""
    return (arguments.bits, arguments.group) if arguments.bits else origin.grid


def _record(arguments: Namespace, dtype: str, origin: "RunRecord") -> "RunRecord":
    """What minprune.json says of the folder: its origin, and what the minprune.json there says."""
    from minprune.output.record import VERSION, RunRecord

    made_from = {"made from": found} if (found := origin.as_dict()) else {}
    return RunRecord.model_validate(
        {"version": VERSION, "model": arguments.model, "dtype": dtype.removeprefix("torch."), **made_from}
    )


def _show(rows: "Sequence[StoredRow]") -> None:
    """A line for each kind of layer; of rows that were rounded also the largest error."""
    from minprune.formats.gguf import RoundedRow

    kinds: dict[str, list[StoredRow]] = defaultdict(list)
    for row in rows:
        kinds[kind_of_layer(row.name)].append(row)
    rounded = any(isinstance(row, RoundedRow) for row in rows)
    table = table_of("layers", "count", "format", "MB", "of dense", *["max. error"] * rounded)
    for name, group in [*kinds.items(), ("all", rows)]:
        size, dense = sum(row.bytes for row in group), sum(row.dense_bytes for row in group)
        formats = ", ".join(sorted({row.format for row in group}))
        errors = [row.error for row in group if isinstance(row, RoundedRow)]
        error = [f"{max(errors):.2%}"] if errors else []
        table.add_row(LayerName(name), str(len(group)), formats, decimal(size / 1e6), f"{size / dense:.1%}", *error)
    console().print(table)
