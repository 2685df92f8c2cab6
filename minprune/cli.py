"""The `minprune` command: prune a model, measure it, look at it.

Results go to stdout; what is going on, and a user's mistake in one line, to stderr. Exit codes: 0, 2 for a mistake
or a full disk, 130 for Ctrl-C. Each command has a module of its own in commands/.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from minprune import __version__
from minprune.commands import demo, eval, export, generate, grade, info, prune, recover, sensitivity, sweep
from minprune.commands.common import say
from minprune.errors import PruneError

# in the order of `minprune --help`
COMMANDS = (demo, prune, recover, sweep, eval, sensitivity, generate, info, export, grade)


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name; None: the process's own) and return the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as in `minprune info smollm2 >&-`
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="replace")  # a model may write what the terminal cannot show
    try:
        arguments = _parser().parse_args(argv)
        _refuse_empty(arguments)
        arguments.run(arguments)
        sys.stdout.flush()
        return 0
    except PruneError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt as stop:
        return _fail(str(stop) or "interrupted: nothing half-written is left", 130)
    except BrokenPipeError:  # the reader of our output has gone, as in `minprune info smollm2 | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", str(error)):
            notes = getattr(error, "__notes__", [])  # such as what is finished and kept
            hint = "out of memory: use a smaller --batch-size, fewer --samples or a shorter --length"
            return _fail("; ".join([hint, *notes]), 2)
        raise


def _fail(message: str, code: int) -> int:
    say(f"minprune: {' '.join(message.split())}")
    return code


def _refuse_empty(arguments: argparse.Namespace) -> None:
    """An empty value, as from an unset variable of the shell, must not mean the default. MODEL says so itself."""
    for name, value in vars(arguments).items():
        if name not in ("model", "models") and (value == "" or (isinstance(value, list) and "" in value)):
            raise PruneError(f"--{name.replace('_', '-')} is empty: give it a value")


class _Parser(argparse.ArgumentParser):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # so that -5% is a value as -5 is, and told to be wrong

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
    for module in COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
