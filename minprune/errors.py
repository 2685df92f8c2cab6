"""What a user is told: mistakes, what the package logs, and how values are written in messages, tables and pages."""

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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


class PeerError(PruneError):
    """What went wrong was in another process of the same run, which has told its reason."""


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


def short(value: Any) -> str:
    """A value in at most 60 characters, for a message; of a sha256 its beginning."""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:12]
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:45]} ..."


def decimal(value: float | None, digits: int = 2) -> str:
    """A number of a table: so many decimals, and none that only take room behind a large number."""
    if value is None:
        return "-"
    return f"{value:,.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"


def four_digits(value: float) -> str:
    """Four significant digits, without an exponent where that reads well."""
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def kind_of_layer(name: str) -> str:
    """A layer's name with every number in it replaced by *: a glob for all layers of its kind."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
