"""`minprune eval`."""

import gc
import math
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.cli.common import (
    MODEL,
    TEXT,
    add_place,
    add_sparse,
    command,
    console,
    listed,
    load,
    say_on_terminal,
    table_of,
    tokens_of,
    whole,
    writing,
)
from minprune.errors import PruneError
from minprune.files import to_json, write_text
from minprune.output.target import check_file

if TYPE_CHECKING:
    from rich.console import Console

    from minprune.evaluation.measurement import Measurement


def add(commands) -> None:
    """The arguments of `minprune eval`."""
    parser = command(
        commands,
        "eval",
        run,
        "measure how good models are: perplexity, and more if asked for",
        "Windows do not overlap unless --stride says so; every token but the first of its window counts once.",
        "minprune eval smollm2 smollm2-sparsegpt-50pct --against smollm2 --cloze",
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", help=f"{MODEL}; several are compared with the first")
    parser.add_argument("--text", metavar="TEXT", default="wikipedia", help=f"{TEXT} (default: wikipedia)")
    parser.add_argument(
        "--split", metavar="NAME", default="test", help="train, validation or test (test); files have no splits"
    )
    parser.add_argument("--samples", metavar="N", type=whole(1), default=32, help="windows, evenly spread (32)")
    parser.add_argument("--length", metavar="L", type=whole(2), default=512, help="tokens in a window (512)")
    parser.add_argument(
        "--stride",
        metavar="S",
        type=whole(1),
        help="tokens from one window to the next; each window counts its last S only (default: no overlap)",
    )
    parser.add_argument(
        "--against",
        metavar="MODEL",
        help="also the KL divergence from this model, in nats, and how often both find the same token the likeliest, "
        "on windows without overlap",
    )
    parser.add_argument(
        "--cloze",
        action="store_true",
        help="also the share of last words found, and of sentence pairs in which the grammatical one is the likelier",
    )
    parser.add_argument("--passages", metavar="N", type=whole(2), default=200, help="passages for --cloze, even (200)")
    parser.add_argument(
        "--tasks",
        metavar="NAMES",
        help="also these tasks of lm-eval (pip install 'minprune[eval]'), such as\n"
        "arc_easy,hellaswag,winogrande,piqa; or .yaml files of its form",
    )
    parser.add_argument("--limit", metavar="N", type=whole(1), help="examples of each task, the first ones (all)")
    parser.add_argument("--shots", metavar="N", type=whole(0), help="worked examples before each question (the task's)")
    parser.add_argument("--batch-size", metavar="B", type=whole(1), default=2, help="windows in a forward pass (2)")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured to this file")
    parser.add_argument("--overwrite", action="store_true", help="replace the file at --json")
    add_sparse(parser)
    add_place(parser)


def run(arguments: Namespace) -> None:
    """Measure one or more models on the same text; what can be refused is, before the first is loaded.

    What was measured is printed and written even if a later model fails.
    """
    if arguments.json:
        models = [*arguments.models, arguments.against]
        read = [arguments.text, *listed(arguments.tasks or "")]
        check_file(arguments.json, "--json", arguments.overwrite, models, read)
    with writing(arguments.json):
        _measure(arguments)


def _measure(arguments: Namespace) -> None:
    from minprune.load import model_source

    names = listed(arguments.tasks or "")
    if arguments.tasks is None and (arguments.limit or arguments.shots is not None):
        raise PruneError("--limit and --shots are of --tasks, and no tasks are given: name some, or leave them away")
    if arguments.passages % 2:
        raise PruneError(f"{arguments.passages} passages cannot be halved into used and new words: give an even number")
    manager = None
    if arguments.tasks is not None:
        from minprune.evaluation.lm_eval import load_tasks

        say_on_terminal("loading the tasks")
        manager = load_tasks(names)
    for name in [*arguments.models, *([arguments.against] if arguments.against else [])]:
        model_source(name)
    reference = load(arguments.against, arguments.dtype, arguments.device) if arguments.against else None
    rows: list[dict[str, Any]] = []
    first: Measurement | None = None
    try:
        for name in arguments.models:
            found, more = _measure_one(name, reference, names, manager, arguments)
            gc.collect()  # a model's modules refer to each other in circles; the next one needs their memory
            first = first or found
            rows.append({"model": name, **found.as_dict(), "x_first": _ratio(found, first), **more})
    finally:  # Ctrl-C included
        if rows and first:
            _show(rows, first, console())
            if arguments.json:
                write_text(Path(arguments.json), to_json({"models": rows}, 1))


def _measure_one(
    name: str, reference: tuple[Any, Any] | None, names: list[str], manager: Any, arguments: Namespace
) -> tuple["Measurement", dict[str, Any]]:
    """The perplexity of one model, which lives no longer than this call, and what else was asked for."""
    pair: tuple[Any, Any] = load(name, arguments.dtype, arguments.device, arguments.sparse)
    if reference and pair[1].get_vocab() != reference[1].get_vocab():
        raise PruneError(
            f"{arguments.against} has another tokenizer than {name}: --against needs the model it was made from"
        )
    found = _perplexity(pair, arguments)
    more: dict[str, Any] = {}
    if reference:
        more["against"] = {"model": arguments.against, **_divergence(pair, reference, arguments)}
    if arguments.cloze:
        more["cloze"] = _cloze(pair, arguments)
    if names:
        from minprune.evaluation.lm_eval import run_tasks

        say_on_terminal("running the tasks")
        scores = run_tasks(
            *pair, names, arguments.limit, arguments.shots, arguments.batch_size, progress=True, manager=manager
        )
        more["tasks"] = [asdict(score) for score in scores]
    return found, more


def _perplexity(pair: tuple[Any, Any], arguments: Namespace) -> "Measurement":
    from minprune.evaluation.protocol import measure

    say_on_terminal(f"cutting {arguments.text} into windows")
    return measure(
        *pair,
        arguments.text,
        arguments.split,
        arguments.samples,
        arguments.length,
        arguments.stride,
        batch_size=arguments.batch_size,
        progress=True,
    )


def _ratio(found: "Measurement", first: "Measurement") -> float | None:
    """None where perplexities do not compare, as those of different tokenizers, or are infinite."""
    try:
        ratio = found.ratio(first)
    except PruneError:
        return None
    return ratio if math.isfinite(ratio) else None


def _divergence(pair: tuple[Any, Any], reference: tuple[Any, Any], arguments: Namespace) -> dict[str, Any]:
    from minprune.evaluation.perplexity import divergence

    model, tokenizer = pair
    tokens = tokens_of(tokenizer, arguments.text, arguments.split, arguments.samples, arguments.length, None)
    return asdict(divergence(model, reference[0], tokens, arguments.batch_size, progress=True))


def _cloze(pair: tuple[Any, Any], arguments: Namespace) -> dict[str, Any]:
    from minprune.evaluation.last_word import grammar, last_word

    say_on_terminal("last words and sentence pairs")
    words = last_word(*pair, arguments.text, arguments.split, arguments.passages, progress=True)
    return {"last word": asdict(words), "pairs": asdict(grammar(*pair, progress=True))}


def _show(rows: list[dict[str, Any]], first: "Measurement", out: "Console") -> None:
    against = ["KL", "top-1"] if "against" in rows[0] else []
    table = table_of("model", "perplexity", "x first", "bits/byte", *against)
    for row in rows:
        cells = [_number(row["perplexity"]), _number(row["x_first"]), f"{row['bits_per_byte']:.3f}"]
        if against:
            cells += [f"{row['against']['kl']:.4f}", f"{row['against']['agreement']:.1%}"]
        table.add_row(row["model"], *cells)
    out.print(table)
    out.print(str(first.protocol))
    if against:
        out.print(f"KL and top-1: beside {rows[0]['against']['model']}")
    if "cloze" in rows[0]:
        table = table_of("model", "last word", "used before", "new", "sentence pairs")
        for row in rows:
            words, pairs = row["cloze"]["last word"], row["cloze"]["pairs"]
            shares = [_share(score) for score in (words, words["parts"]["used"], words["parts"]["new"], pairs)]
            table.add_row(row["model"], *shares)
        out.print(table)
        out.print(f"{words['count']} last words, {pairs['count']} pairs (chance: 50 %)")
    if "tasks" in rows[0]:
        table = table_of("model", "task", "metric", "value", "examples")
        for row in rows:
            for score in row["tasks"]:
                table.add_row(row["model"], score["task"], score["metric"], _share(score), str(score["count"]))
        out.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def _share(score: dict[str, Any]) -> str:
    error = "" if score["error"] is None else f" ±{score['error']:.3f}"
    return f"{score['value']:.3f}{error}"
