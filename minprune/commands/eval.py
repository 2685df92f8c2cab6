"""`minprune eval`."""

from argparse import Namespace
from typing import TYPE_CHECKING

from minprune.commands.common import (
    MODEL,
    TEXT,
    add_place,
    command,
    console,
    load,
    split_of,
    table_of,
    tokens_of,
    whole,
)

if TYPE_CHECKING:
    pass


def add(commands) -> None:
    """The arguments of `minprune eval`."""
    parser = command(
        commands,
        "eval",
        run,
        "measure the perplexity of models on a text",
        "Windows do not overlap; every token but the first of its window counts once.",
        "minprune eval smollm2 smollm2-sparsegpt-50pct --samples 16",
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", help=f"{MODEL}; several are compared with the first")
    parser.add_argument("--text", metavar="TEXT", default="wikipedia", help=f"{TEXT} (default: wikipedia)")
    parser.add_argument(
        "--split", metavar="NAME", default="test", help="train, validation or test (test); files have no splits"
    )
    parser.add_argument("--samples", metavar="N", type=whole(1), default=32, help="windows, evenly spread (32)")
    parser.add_argument("--length", metavar="L", type=whole(2), default=512, help="tokens in a window (512)")
    parser.add_argument("--batch-size", metavar="B", type=whole(1), default=2, help="windows in a forward pass (2)")
    add_place(parser)


def run(arguments: Namespace) -> None:
    """Perplexity of one or more models on the same text."""
    from minprune.data import fingerprint
    from minprune.evaluate import perplexity

    out = console()
    table = table_of("model", "perplexity", "x first")
    first: tuple[float, str] | None = None
    for name in arguments.models:
        model, tokenizer = load(name, arguments.dtype, arguments.device)
        tokens = tokens_of(tokenizer, arguments.text, arguments.split, arguments.samples, arguments.length, None)
        value, made_of = perplexity(model, tokens, arguments.batch_size, progress=True), fingerprint(tokens)
        first = first or (value, made_of)
        comparable = made_of == first[1]  # perplexities per token of different tokenizers are not
        table.add_row(name, f"{value:,.2f}", f"{value / first[0]:,.2f}" if comparable else "-")
    out.print(table)
    split = split_of(arguments.text, arguments.split)
    text = f"{arguments.text} ({split})" if split else arguments.text
    out.print(f"{text}: {arguments.samples} windows of {arguments.length} tokens", soft_wrap=True)
