"""The `minprune` command: prune a model, measure it, look at it.

Results go to stdout; what is going on, and a user's mistake in one line, to stderr. Exit codes: 0, 2 for a mistake
or a full disk, 130 for Ctrl-C. What a command does is in commands.py.
"""

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Callable

from minprune import __version__
from minprune.classroom.command import add_options, run_grade
from minprune.commands import run_demo, run_eval, run_generate, run_info, run_prune, say
from minprune.errors import PruneError

_MODEL = "an embedded model (smollm2), a folder, or a Hugging Face id"
_TEXT = "an embedded text (wikipedia, news), a hub data set (wikitext2, c4), or a .txt, .jsonl or .parquet file"
_LARGEST_SEED = 2**63 - 1


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name; None: the process's own) and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a model may write what the terminal cannot show
    try:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
        sys.stdout.flush()
        return 0
    except PruneError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted: nothing half-written is left", 130)
    except BrokenPipeError:  # the reader of our output has gone, as in `minprune info smollm2 | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", str(error)):
            return _fail("out of memory: use a smaller --batch-size, fewer --samples or a shorter --length", 2)
        raise


def _fail(message: str, code: int) -> int:
    say(f"minprune: {' '.join(message.split())}")
    return code


class _Help(argparse.HelpFormatter):
    """Wraps each line of a text on its own, so that examples and lists keep their lines."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [part for line in text.splitlines() for part in textwrap.wrap(line, width, subsequent_indent="  ")]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise PruneError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minprune",
        description="Prune large language models: set weights to zero and lose as little as possible.",
        epilog="minprune COMMAND --help explains a command. Start with: minprune demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minprune {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_add_demo, _add_prune, _add_eval, _add_generate, _add_info, _add_grade):
        add(commands)
    return parser


def _command(commands, name: str, run: Callable, summary: str, more: str, example: str) -> argparse.ArgumentParser:
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


def _add_demo(commands) -> None:
    parser = _command(
        commands,
        "demo",
        run_demo,
        "prune SmolLM2-135M in five ways and compare them",
        "Takes a few minutes on two cores. Prints a table and a continuation by each model; writes a figure and a "
        "pruned model.",
        "minprune demo",
    )
    parser.add_argument(
        "--output", metavar="DIR", default="demo-output", help="folder to write to, or write again (demo-output)"
    )


def _add_prune(commands) -> None:
    parser = _command(
        commands,
        "prune",
        run_prune,
        "prune a model and write it to a new folder",
        "AutoModelForCausalLM.from_pretrained loads the folder; minprune.json in it says how the model was made.",
        "minprune prune smollm2 --method wanda --pattern 2:4 --exclude '*.layers.0.*'",
    )
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument(
        "--method",
        metavar="M",
        default="sparsegpt",
        help="sparsegpt (default), or one of\n"
        "magnitude, obd, wanda, ria: quick scores, no update\n"
        "admm, alps, obs: choose and update, slower and better\n"
        "exact, swaps: the best weights, a better mask, for the\n"
        "mask of the method before a plus: wanda+swaps+exact;\n"
        "sparsegpt, admm, alps and obs can stand there, too",
    )
    parser.add_argument(
        "--pattern",
        metavar="P",
        default="50%",
        help="which zeros are allowed (default: 50%%):\n"
        "50%%: in the comparison group that the method was published with\n"
        "50%%:row: in each output row; also :layer and :block\n"
        "2:4: 2 weights kept of every 4 consecutive inputs\n"
        "block16:50%%: square blocks of 16 x 16 as a whole",
    )
    parser.add_argument(
        "--option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an option of the method, repeatable; sparsegpt has damp=0.01 and block_size=128",
    )
    parser.add_argument(
        "--calibration",
        metavar="TEXT",
        help=f"{_TEXT} (default: wikipedia, its train split; magnitude needs no text)",
    )
    parser.add_argument("--samples", metavar="N", type=_whole(1), default=64, help="calibration windows (64)")
    parser.add_argument("--length", metavar="L", type=_whole(1), default=512, help="tokens in a window (512)")
    parser.add_argument(
        "--seed", metavar="S", type=_whole(0, _LARGEST_SEED), default=0, help="which windows are drawn (0)"
    )
    parser.add_argument(
        "--batch-size",
        metavar="B",
        type=_whole(1),
        help="windows in one forward pass (default: all); fewer take less memory and more time, the result is the same",
    )
    parser.add_argument(
        "--include",
        metavar="GLOB",
        action="append",
        help="prune only layers whose name matches, repeatable (default: all linear layers of the blocks)",
    )
    parser.add_argument(
        "--exclude", metavar="GLOB", action="append", default=[], help="leave these layers dense, repeatable"
    )
    parser.add_argument(
        "--allocation",
        metavar="TABLE",
        help='a JSON file from globs to sparsities, the last match counts:\n{"*.mlp.*": 0.6, "*.layers.0.*": 0.3}',
    )
    parser.add_argument(
        "--two-pass",
        action="store_true",
        help="the published loop: calibrate all layers of a block while it is still dense (kept to compare)",
    )
    _add_place(parser)
    parser.add_argument("--output", metavar="DIR", help="folder to write (default: MODEL-METHOD-PATTERN here)")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that minprune wrote before")


def _add_eval(commands) -> None:
    parser = _command(
        commands,
        "eval",
        run_eval,
        "measure the perplexity of models on a text",
        "Windows do not overlap; every token but the first of its window counts once.",
        "minprune eval smollm2 smollm2-sparsegpt-50pct --samples 16",
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", help=f"{_MODEL}; several are compared with the first")
    parser.add_argument("--text", metavar="TEXT", default="wikipedia", help=f"{_TEXT} (default: wikipedia)")
    parser.add_argument(
        "--split", metavar="NAME", default="test", help="train, validation or test (test); files have no splits"
    )
    parser.add_argument("--samples", metavar="N", type=_whole(1), default=32, help="windows, evenly spread (32)")
    parser.add_argument("--length", metavar="L", type=_whole(2), default=512, help="tokens in a window (512)")
    parser.add_argument("--batch-size", metavar="B", type=_whole(1), default=2, help="windows in a forward pass (2)")
    _add_place(parser)


def _add_generate(commands) -> None:
    parser = _command(
        commands,
        "generate",
        run_generate,
        "let a model continue a prompt",
        "Prints the prompt and the continuation.",
        "minprune generate smollm2 --prompt 'The largest planet is'",
    )
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="the beginning of the text")
    parser.add_argument("--tokens", metavar="N", type=_whole(1), default=40, help="tokens to add at most (40)")
    parser.add_argument(
        "--temperature", metavar="T", type=float, default=0.0, help="0 takes the likeliest token (0), 1 samples freely"
    )
    parser.add_argument(
        "--seed", metavar="S", type=_whole(0, _LARGEST_SEED), default=0, help="for a temperature above 0 (0)"
    )
    _add_place(parser)


def _add_info(commands) -> None:
    parser = _command(
        commands,
        "info",
        run_info,
        "list a model's linear layers, their zeros and the pattern of these",
        "Layers that differ only in their numbers are one row. The pattern is found in the weights themselves.",
        "minprune info smollm2",
    )
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument("--all", action="store_true", help="one row for each layer")


def _add_grade(commands) -> None:
    parser = _command(
        commands,
        "grade",
        run_grade,
        "give points to the exercises of a filled-in chapter",
        "Each exercise is worth its difficulty. Its check and the parts of the notebook that it needs run in a process "
        "of their own, with a time limit and with YOUR rights: grade only notebooks whose authors you trust, or do it "
        "in a container or an account made for it. The exit code is 0 whatever the points.",
        "minprune grade student/02-magnitude.ipynb",
    )
    add_options(parser)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="D", default="cpu", help="where to compute: cpu, cuda, cuda:1, mps (cpu)")
    parser.add_argument(
        "--dtype", metavar="T", default="auto", help="float32, bfloat16, float16, or the checkpoint's own (auto)"
    )


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,19}", text) or not least <= int(text) <= (most or sys.maxsize):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return read


if __name__ == "__main__":
    sys.exit(main())
