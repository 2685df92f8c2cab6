"""The `minprune` command: prune a model, measure it, look at it.

Results go to stdout; what is going on, and a user's mistake in one line, to stderr. Exit codes: 0, 2 for a mistake
or a full disk, 130 for Ctrl-C. Each command has a module of its own in commands/.
"""

import argparse
import os
import re
import sys

from minprune import __version__
from minprune.commands import demo, eval, export, generate, grade, info, prune, recover, sensitivity, sweep
from minprune.commands.common import say
from minprune.errors import PruneError

# in the order of `minprune --help`
COMMANDS = (demo, prune, recover, sweep, eval, sensitivity, generate, info, export, grade)


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
    for module in COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
