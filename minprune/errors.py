"""What a user is told: the one exception that a mistake of the caller raises, and what the package logs."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class PruneError(ValueError):
    """A mistake of the caller: one sentence with the offending value and the remedy.

    The command line prints the sentence and exits with code 2. In Python it is a `ValueError`.

    Examples
    --------
    >>> import minprune as mp
    >>> mp.pattern("150%")
    Traceback (most recent call last):
    ...
    minprune.errors.PruneError: pattern '150%': sparsity 1.5 is outside 0..1: it is the fraction of weights pruned ...
    """


@contextmanager
def logged_to_stderr() -> Iterator[None]:
    """While open, what the package logs is shown: one line on stderr for each message."""
    log, handler = logging.getLogger("minprune"), logging.StreamHandler(sys.stderr)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@contextmanager
def from_extra(extra: str, what: str) -> Iterator[None]:
    """Around imports of what the core does without: `PruneError`, with the line to type, where it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise PruneError(f"{what} needs {package}, which is not installed: pip install 'minprune[{extra}]'") from None
