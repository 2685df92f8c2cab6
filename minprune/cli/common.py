"""What several commands share: their common arguments, and how they load, read and print.

torch and transformers are imported inside the functions, so that help is immediate.
"""

import argparse
import logging
import re
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.output.lock import absolute, lock

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


MODEL = "a bundled model (smollm2), a folder, or a Hugging Face id"
TEXT = (
    "a bundled text (wikipedia, news, python), a hub data set (wikitext2, c4), or a .txt, .jsonl, .json, .csv, .tsv, "
    ".parquet or .arrow file"
)
LARGEST_SEED = 2**63 - 1


class _Help(argparse.HelpFormatter):
    """Lists and examples keep their lines: each item of a list, `name: what it is`, or a table begins a new one."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        items = re.split(r"\n(?=[^\n(]*: |\{)", text)
        return [part for item in items for part in textwrap.wrap(item, width, subsequent_indent="  ")]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


def command(commands, name: str, run: Callable, summary: str, more: str, example: str) -> argparse.ArgumentParser:
    """A new subcommand, whose help says what it does and gives an example."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {more}",
        epilog=f"example:\n  {example}",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def add_place(parser: argparse.ArgumentParser) -> None:
    """--device and --dtype."""
    parser.add_argument("--device", metavar="D", default="cpu", help="where to compute: cpu, cuda, cuda:1, mps (cpu)")
    parser.add_argument(
        "--dtype", metavar="T", default="auto", help="float32, bfloat16, float16, or the checkpoint's own (auto)"
    )


def add_calibration(parser: argparse.ArgumentParser, default: str, samples: int, length: int) -> None:
    """--calibration, --samples, --length and --seed. default: what happens without a text, in words."""
    parser.add_argument("--calibration", metavar="TEXT", help=f"{TEXT} (default: {default})")
    parser.add_argument(
        "--samples", metavar="N", type=whole(1), default=samples, help=f"calibration windows ({samples})"
    )
    parser.add_argument("--length", metavar="L", type=whole(1), default=length, help=f"tokens in a window ({length})")
    parser.add_argument(
        "--seed", metavar="S", type=whole(0, LARGEST_SEED), default=0, help="which windows are drawn (0)"
    )


def add_test(parser: argparse.ArgumentParser) -> None:
    """--test and --no-test."""
    parser.add_argument(
        "--test",
        metavar="TEXT",
        help="measure the perplexity before and after on 8 windows of this text's\n"
        "test split (default: the calibration text, if it is a bundled one)",
    )
    parser.add_argument("--no-test", action="store_true", help="measure no perplexity and write no sample")


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    """--output, --overwrite and --resume. default: the name of the folder, in words."""
    parser.add_argument("--output", metavar="DIR", help=f"folder to write (default: {default} here)")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that minprune wrote before")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where the same command was stopped, by whatever it was;\nwhat is finished is in DIR.partial",
    )


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `least` to `most`."""
    range_ = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,19}", text) or not least <= int(text) <= (most or sys.maxsize):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {range_}")
        return int(text)

    return read


def number(text: str) -> float:
    """A type for argparse: a number in the digits 0 to 9."""
    try:
        if not text.isascii() or "_" in text:  # Python reads those of other scripts, and 1_000
            raise ValueError
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def listed(text: str) -> list[str]:
    """The names between commas, each once; spaces around them are none of theirs."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def warn_of_grid(model: str) -> None:
    """Say that what comes now moves the weights of a model which was quantised; nothing of another."""
    from minprune.output.record import read_record

    if grid := read_record(model).grid:
        logging.getLogger(__name__).warning(
            f"{model} was rounded to {grid[0]} bits, and the weights that change now leave their grid: quantise last"
        )


def say(message: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def say_on_terminal(message: str) -> None:
    """For a wait that is short or comes before a check: a person should know, a log need not."""
    if sys.stderr.isatty():
        say(message)


def source_of(name: str) -> str | Path:
    """Where the files of a model are, see `minprune.load.model_source`; who waits for the hub is told so."""
    from huggingface_hub import constants

    from minprune.load import model_source

    calm_transformers()
    source = model_source(name)
    if not Path(source).is_dir() and not constants.HF_HUB_OFFLINE:
        say(f"asking the Hugging Face hub for {name}: if it cannot be reached, that shows after a minute")
    return source


def add_sparse(parser: argparse.ArgumentParser) -> None:
    """--sparse."""
    parser.add_argument(
        "--sparse",
        action="store_true",
        help="keep the matrices without their zeros and multiply with a compiled kernel, on a CPU: less memory, and "
        "more tokens a second",
    )


def load(name: str, dtype: str, device: str, sparse: bool = False):
    """(model, tokenizer), all of its parameters finite."""
    from minprune.kernels.linear import SparseLinear
    from minprune.load import load_model
    from minprune.models.weight_files import check_finite

    source_of(name)
    say_on_terminal(f"loading {name}")
    model, tokenizer = load_model(name, dtype, device, sparse)
    stored: list[tuple[str, Any]] = [
        (key, part)
        for key, module in model.named_modules()
        if isinstance(module, SparseLinear)
        for part in module.numbers()
    ]
    for key, tensor in [*model.named_parameters(), *stored]:  # embeddings and norms too, which no method looks at
        check_finite(key, tensor, name)
    return model, tokenizer


def calm_transformers() -> None:
    """No advice and no progress bar of transformers among our lines."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # it reports every retry
    logging.disable_progress_bar()


def tokens_of(tokenizer, source: str, split: str, samples: int, length: int, seed: int | None):
    """Windows of a text, see `minprune.load_tokens`; a person is told."""
    from minprune.data.tokens import load_tokens

    say_on_terminal(f"cutting {source} into windows")
    return load_tokens(tokenizer, source, split, samples, length, seed)


def split_of(source: str, split: str) -> str | None:
    """The split that counts: a file has none."""
    from minprune.data.documents import has_splits

    return split if has_splits(source) else None


def repeating(arguments: argparse.Namespace) -> list[str]:
    """The words of the command line that makes the same again; [] if these arguments are of none."""
    words = [word for word in getattr(arguments, "words", []) if word not in ("--resume", "--overwrite")]
    return ["minprune", *words] if words else []


def writing(file: str | None) -> AbstractContextManager:
    """While open, no other run may write this file (None: there is none to write)."""
    return lock(absolute(file)) if file else nullcontext()


def console() -> "Console":
    """Where results are printed: stdout, without markup."""
    from rich.console import Console

    class Results(Console):
        def on_broken_pipe(self) -> None:
            """Who wrote this class would exit with 1: let the command line see to it."""
            raise BrokenPipeError

    found = Results(markup=False, highlight=False)
    if not found.width:  # COLUMNS=0: it is not known, and nothing would be printed
        found.width = 80
    return found


def table_of(first: str, *others: str) -> "Table":
    """An empty table of results: names at the left, numbers at the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, header_style="")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table


class LayerName:
    """A layer's name as a cell of a table: a narrow column breaks it after a dot, never inside a word."""

    def __init__(self, name: str):
        self.name = name

    def __rich_measure__(self, console, options):
        from rich.measure import Measurement

        return Measurement(max(len(part) + 1 for part in self.name.split(".")), len(self.name))

    def __rich_console__(self, console, options):
        line = ""
        for part in re.findall(r"[^.]+\.?", self.name):
            if line and len(line) + len(part) > options.max_width:
                yield line
                line = ""
            line += part
        yield line
