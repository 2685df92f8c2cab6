"""`minprune sensitivity`."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.cli.common import (
    LARGEST_SEED,
    MODEL,
    TEXT,
    LayerName,
    add_place,
    command,
    console,
    load,
    split_of,
    table_of,
    tokens_of,
    whole,
    writing,
)
from minprune.files import to_json, write_text
from minprune.output.target import check_file

if TYPE_CHECKING:
    from minprune.allocation.sensitivity import Sensitivity
    from minprune.patterns import Pattern


def add(commands) -> None:
    """The arguments of `minprune sensitivity`."""
    parser = command(
        commands,
        "sensitivity",
        run,
        "measure what pruning one part of a model costs",
        "One group of layers at a time is pruned with Wanda, all else stays dense. The cost is the mean of "
        "KL(dense || pruned) in nats per token, on two of the windows; the others calibrate. Nothing is written but "
        "FILE.",
        "minprune sensitivity smollm2 --pattern 60% --by type",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--pattern", metavar="P", default="50%", help="as for minprune prune (50%%)")
    parser.add_argument(
        "--by", metavar="GROUP", default="block", help="what is pruned together: block (default), type or layer"
    )
    parser.add_argument("--calibration", metavar="TEXT", default="wikipedia", help=f"{TEXT} (default: wikipedia)")
    parser.add_argument("--samples", metavar="N", type=whole(2), default=16, help="windows (16)")
    parser.add_argument("--length", metavar="L", type=whole(1), default=512, help="tokens in a window (512)")
    parser.add_argument(
        "--seed", metavar="S", type=whole(0, LARGEST_SEED), default=0, help="which windows are drawn (0)"
    )
    parser.add_argument("--include", metavar="GLOB", action="append", help="only these layers, repeatable")
    parser.add_argument("--exclude", metavar="GLOB", action="append", default=[], help="not these, repeatable")
    add_place(parser)
    parser.add_argument("--output", metavar="FILE", help="also write the costs to a JSON file")
    parser.add_argument("--overwrite", action="store_true", help="replace the file at --output")


def run(arguments: Namespace) -> None:
    """A table of costs, the most sensitive group first."""
    from minprune.allocation.budget import check_grouping
    from minprune.patterns import pattern as read_pattern

    pattern = read_pattern(arguments.pattern)
    check_grouping(arguments.by)
    if arguments.output:
        check_file(arguments.output, "--output", arguments.overwrite, [arguments.model], [arguments.calibration])
    with writing(arguments.output):
        _measure(arguments, pattern)


def _measure(arguments: Namespace, pattern: "Pattern") -> None:
    from minprune.allocation.sensitivity import sensitivity

    model, tokenizer = load(arguments.model, arguments.dtype, arguments.device)
    calib = tokens_of(tokenizer, arguments.calibration, "train", arguments.samples, arguments.length, arguments.seed)
    rows = sensitivity(
        model,
        calib,
        pattern,
        arguments.by,
        include=arguments.include,
        exclude=arguments.exclude,
        progress=True,
    )
    table = table_of(arguments.by, "layers", "weights", "cost", "per million")
    for row in sorted(rows, key=lambda row: row.cost, reverse=True):
        table.add_row(
            LayerName(row.group),
            str(row.layers),
            f"{row.parameters:,}",
            f"{row.cost:.4f}",
            f"{row.cost / row.parameters * 1e6:.4f}",
        )
    out = console()
    out.print(table)
    out.print(f"{pattern}: KL(dense || pruned), nats per token; per million of the group's weights", soft_wrap=True)
    if arguments.output:
        _write(Path(arguments.output), arguments, rows)
        out.print(f"written to {arguments.output}", soft_wrap=True)


def _write(path: Path, arguments: Namespace, rows: "list[Sensitivity]") -> None:
    from dataclasses import asdict

    from minprune.output.report import versions

    keys = ("model", "dtype", "pattern", "by", "calibration", "samples", "length", "seed", "include", "exclude")
    record: dict[str, Any] = {key: getattr(arguments, key) for key in keys}
    record["split"] = split_of(arguments.calibration, "train")
    record["versions"] = versions()
    record["costs"] = [asdict(row) for row in rows]
    write_text(path, to_json(record, 2))
