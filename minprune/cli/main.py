"""The `minprune` command: prune a model, measure it, look at it.

Results go to stdout; what is going on, and a user's mistake in one line, to stderr. Exit codes: 0, 2 for a mistake
or a full disk, 130 for Ctrl-C. Each command has a module of its own beside this one.
"""

import argparse
import os
import re
import sys
from contextlib import nullcontext, suppress
from difflib import get_close_matches
from pathlib import Path

from minprune import __version__
from minprune.cli import (
    advise,
    demo,
    eval,
    export,
    generate,
    grade,
    info,
    plan,
    prune,
    quantize,
    recover,
    sensitivity,
    shrink,
    sweep,
)
from minprune.cli.common import say
from minprune.cli.ranks import is_first, joined
from minprune.errors import PeerError, PruneError, ended_by_ctrl_c, logged_to_stderr

LONGEST = 1000  # characters of an error line
# in the order of `minprune --help`
COMMANDS = (
    demo, advise, prune, shrink, quantize, recover, sweep, eval, sensitivity, generate, info, plan, export, grade
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name; None: the process's own) and return the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as in `minprune info smollm2 >&-`
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="replace")  # a model may write what the terminal cannot show
    try:
        with ended_by_ctrl_c() if argv is None else nullcontext():
            arguments = _read(sys.argv[1:] if argv is None else argv)
            with joined(arguments.command, getattr(arguments, "device", "cpu")), logged_to_stderr():
                arguments.run(arguments)
            sys.stdout.flush()
        return 0
    except PeerError as error:
        return _fail(str(error), 2) if is_first() else 2  # one line for all
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


def _read(words: list[str]) -> argparse.Namespace:
    """The arguments of a command, with `words`, the command line as it was; help if there are none."""
    try:
        arguments = _parser().parse_args(words or ["--help"])
    except SystemExit:  # after --help
        sys.stdout.flush()
        raise
    _refuse_empty(arguments)
    arguments.words = list(words)
    return arguments


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    if len(line) > LONGEST:  # its end has the remedy
        line = f"{line[: LONGEST - 200]} ... {line[-200:]}"
    with suppress(OSError):  # nobody reads it
        say(f"minprune: {line}")
    return code


def _refuse_empty(arguments: argparse.Namespace) -> None:
    """An empty value, as from an unset variable of the shell, must not mean the default. MODEL says so itself."""
    for name, value in vars(arguments).items():
        if name not in ("model", "models") and (value == "" or (isinstance(value, list) and "" in value)):
            raise PruneError(f"--{name.replace('_', '-')} is empty: give it a value")


class _Parser(argparse.ArgumentParser):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self._negative_number_matcher = re.compile(
            r"-\.?\d", re.ASCII
        )  # so that -5% is a value as -5 is, and told to be wrong

    def _print_message(self, message: str, file=None) -> None:
        (file or sys.stderr).write(message)  # argparse would take no notice of a reader that has gone

    def parse_known_args(self, args=None, namespace=None):
        found, left = super().parse_known_args(args, namespace)
        if left:  # said by the parser of the command, which knows what it has; else the one of all would say it
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return found, left

    def error(self, message: str):
        raise PruneError(f"{message}{self._meant(message)} (see {self.prog} --help)")

    def _meant(self, message: str) -> str:
        """What somebody who mistyped a command or an option will have meant, as a part of a sentence."""
        commands = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        choices = {name: parser for action in commands for name, parser in action.choices.items()}
        wrong = re.search(r"invalid choice: '([^']+)'|unrecognized arguments: (--[\w-]+)", message)
        if not wrong:
            return ""
        options = {option for parser in (self, *choices.values()) for option in parser._option_string_actions}
        near = get_close_matches(wrong[1] or wrong[2], choices if wrong[1] else sorted(options), n=1)
        return f": did you mean {near[0]}?" if near else ""


class _Completion(argparse.Action):
    """Print the script for a shell, which its user puts where that shell looks for such scripts."""

    def __call__(self, parser, namespace, values, option_string=None):
        import shtab

        if values not in shtab.SUPPORTED_SHELLS:
            parser.error(f"no completion for {values!r}: choose {', '.join(shtab.SUPPORTED_SHELLS)}")
        sys.stdout.write(shtab.complete(parser, shell=values))
        parser.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minprune",
        description="Prune large language models: set weights to zero and lose as little as possible.",
        epilog="minprune COMMAND --help explains a command. Start with: minprune demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minprune {__version__}")
    parser.add_argument(
        "--print-completion", action=_Completion, metavar="SHELL", help="print what makes a shell complete the words"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
