"""A tokenizer that gives a text the same tokens each time, and is saved as it came.

BPE dropout leaves out merges at random, which is meant for training: windows, prompts and scores of a text would differ
from one call to the next. It is switched off while a model is used and back on in the files that are written.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minprune.errors import PruneError

_OWN = "_dropout_as_saved"
_SECONDS, _CHARACTERS_A_SECOND = 60, 20_000  # the slowest that are written in Python do five times as many


def stop_dropout(tokenizer) -> None:
    """Switch off the dropout of a tokenizer; what it was is kept for `write_tokenizer`."""
    merges = _merges(tokenizer)
    if getattr(merges, "dropout", None) is not None:
        setattr(tokenizer, _OWN, merges.dropout)
        merges.dropout = None


def tokenize(tokenizer, text: str, **options: Any) -> Any:
    """What the tokenizer makes of a text; `PruneError` if it breaks down, or takes longer than any honest one.

    A regular expression in a tokenizer's file may go through its text again and again. The compiled code of tokenizers
    can be waited for, not stopped: what still runs ends with this process.
    """
    found: list[Any] = []
    raised: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            found.append(tokenizer(text, **options))
        except BaseException as error:  # the library's panics are no `Exception`
            raised.append(error)
        done.set()

    threading.Thread(target=run, daemon=True).start()
    limit = _SECONDS + len(text) / _CHARACTERS_A_SECOND
    if not done.wait(limit):
        raise PruneError(
            f"the tokenizer has not split {len(text):,} characters in {limit:.0f} s: its tokenizer.json has an "
            "expression without end; copy or download it again"
        )
    if raised and type(raised[0]).__name__ == "PanicException":
        raise PruneError(
            f"the tokenizer breaks down on this text ({' '.join(str(raised[0]).split())[:100]}): its tokenizer.json is "
            "damaged; copy or download it again"
        )
    if raised:
        raise raised[0]
    return found[0]


def write_tokenizer(folder: Path, tokenizer) -> None:
    """Save a tokenizer, with its own dropout; `PruneError` if its files would lie outside of the folder."""
    templates = getattr(tokenizer, "chat_template", None)
    for name in templates if isinstance(templates, dict) else ():
        if not re.fullmatch(r"\w[\w.-]{0,99}", str(name)):
            raise PruneError(
                f"the tokenizer's chat template {str(name)[:99]!r} has no name for a file: rename it there"
            )
    with _own_dropout(tokenizer):
        tokenizer.save_pretrained(folder)


@contextmanager
def _own_dropout(tokenizer) -> Iterator[None]:
    own = getattr(tokenizer, _OWN, None)
    if own is None:
        yield
        return
    _merges(tokenizer).dropout = own
    try:
        yield
    finally:
        _merges(tokenizer).dropout = None


def _merges(tokenizer):
    """The model of a tokenizer of the Rust library: a view, so that what is set on it holds."""
    return getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
