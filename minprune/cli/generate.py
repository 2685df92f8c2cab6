"""`minprune generate`."""

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from minprune.cli.common import LARGEST_SEED, MODEL, add_place, add_sparse, command, load, number, whole

if TYPE_CHECKING:
    pass


def add(commands) -> None:
    """The arguments of `minprune generate`."""
    parser = command(
        commands,
        "generate",
        run,
        "let a model continue a prompt",
        "Prints the prompt and the continuation.",
        "minprune generate smollm2 --prompt 'The largest planet is'",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="the beginning of the text")
    parser.add_argument("--tokens", metavar="N", type=whole(1), default=40, help="tokens to add at most (40)")
    parser.add_argument(
        "--temperature", metavar="T", type=number, default=0.0, help="0 takes the likeliest token (0), 1 samples freely"
    )
    parser.add_argument(
        "--seed", metavar="S", type=whole(0, LARGEST_SEED), default=0, help="for a temperature above 0 (0)"
    )
    add_sparse(parser)
    add_place(parser)


def run(arguments: Namespace) -> None:
    """A prompt and its continuation."""
    from minprune.evaluation.perplexity import generate
    from minprune.files import whole_characters

    model, tokenizer = load(arguments.model, arguments.dtype, arguments.device, arguments.sparse)
    prompt = whole_characters(arguments.prompt)  # a terminal may pass on bytes that are no text
    text = generate(model, tokenizer, prompt, arguments.tokens, arguments.temperature, arguments.seed)
    sys.stdout.write(f"{prompt}{text}\n")
