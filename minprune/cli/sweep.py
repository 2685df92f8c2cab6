"""`minprune sweep`."""

from argparse import Namespace
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from minprune.cli.common import (
    LARGEST_SEED,
    MODEL,
    TEXT,
    add_place,
    command,
    console,
    listed,
    load,
    say_on_terminal,
    table_of,
    whole,
)
from minprune.cli.ranks import is_first
from minprune.errors import PruneError, decimal

if TYPE_CHECKING:
    from rich.table import Table


def add(commands) -> None:
    """The arguments of `minprune sweep`."""
    parser = command(
        commands,
        "sweep",
        run,
        "compare methods, patterns and seeds on one model, resumably",
        "Every method with every pattern and every seed is one line of JSON in FILE. Runs that the file holds are not "
        "repeated: after an interruption, or to add methods, patterns or seeds, give the same FILE.",
        "minprune sweep smollm2 --methods wanda,admm --seeds 0,1 --output runs.jsonl",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--output", metavar="FILE", required=True, help="the JSON lines file to write or to continue")
    parser.add_argument(
        "--methods",
        metavar="M,M",
        type=listed,
        default="magnitude,wanda,sparsegpt",
        help="methods and recipes, such as best (magnitude,wanda,sparsegpt)",
    )
    parser.add_argument("--patterns", metavar="P,P", type=listed, default="50%,2:4", help="(50%%,2:4)")
    parser.add_argument(
        "--seeds", metavar="S,S", type=_seeds, default="0", help="seeds of the calibration windows, such as 0,1,2 (0)"
    )
    parser.add_argument("--calibration", metavar="TEXT", default="wikipedia", help=f"{TEXT} (default: wikipedia)")
    parser.add_argument("--samples", metavar="N", type=whole(1), default=64, help="calibration windows (64)")
    parser.add_argument("--length", metavar="L", type=whole(2), default=512, help="tokens in any window (512)")
    parser.add_argument(
        "--texts", metavar="T,T", type=listed, default="wikipedia,news", help="what to measure on (wikipedia,news)"
    )
    parser.add_argument("--test-samples", metavar="N", type=whole(1), default=32, help="windows of each text (32)")
    parser.add_argument(
        "--batch-size", metavar="B", type=whole(1), help="calibration windows in one forward pass (default: all)"
    )
    add_place(parser)


def run(arguments: Namespace) -> None:
    """Fill in what is missing of the file and print means and spreads of all runs asked for."""
    from minprune.output.lock import absolute, lock
    from minprune.sweep.sweep import keys_of

    keys_of(arguments.methods, arguments.patterns, arguments.seeds)  # mistakes show before the model is loaded
    with lock(absolute(arguments.output)) if is_first() else nullcontext():
        _sweep(arguments)


def _sweep(arguments: Namespace) -> None:
    from minprune.sweep.sweep import sweep

    model, tokenizer = load(arguments.model, arguments.dtype, arguments.device)
    say_on_terminal("cutting the texts into windows")
    runs = sweep(
        model,
        tokenizer,
        arguments.output,
        arguments.methods,
        arguments.patterns,
        arguments.seeds,
        name=arguments.model,
        calibration=arguments.calibration,
        samples=arguments.samples,
        length=arguments.length,
        texts=arguments.texts,
        test_samples=arguments.test_samples,
        batch_size=arguments.batch_size,
    )
    out = console()
    for text in arguments.texts:
        out.print(f"perplexity on {text}", soft_wrap=True)
        out.print(_table(runs, text))
    out.print(
        f"on {arguments.test_samples} windows of {arguments.length} tokens, and as a multiple of the dense model's\n"
        "(mean ± standard deviation over seeds); seconds: of pruning; error: the median\n"
        f"layer's, before any reconstruction; runs: {arguments.output}",
        soft_wrap=True,
    )
    failed = [run for run in runs if "failed" in run]
    if failed:
        first = failed[0]
        raise PruneError(
            f"{len(failed)} of {len(runs)} runs failed, the first is {first['method']} {first['pattern']}: "
            f"{first['failed']}"
        )


def _table(runs: list[dict[str, Any]], text: str) -> "Table":
    """A table for each text: two texts in one are wider than a terminal."""
    from minprune.sweep.results import summarise

    table = table_of("method", "pattern", "runs", "mean", "x dense", "error", "seconds")
    table.collapse_padding = True
    for row in summarise(runs):
        spread = row.spread[text]
        times = decimal(row.relative[text], 2) + ("" if spread is None else f" ± {decimal(spread, 2)}")
        error = "-" if row.error is None else f"{row.error:.4f}"
        cells = [decimal(row.perplexity[text], 1), times, error, f"{row.seconds:.0f}"]
        table.add_row(row.method, row.pattern or "-", str(row.runs), *cells)
    return table


def _seeds(text: str) -> list[int]:
    return [whole(0, LARGEST_SEED)(part) for part in listed(text)]
