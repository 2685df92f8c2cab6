"""The documents in a local file: prose, JSON lines, JSON, CSV, TSV, Parquet, Arrow, or a folder of `datasets`.

The file's extension decides what it is, before one of compression (.gz, .bz2, .xz, .zst). Of a table the text is in
the column "text" or "content", or it is a chat, "messages" or "conversations", which the tokenizer's own chat template
turns into text; the first of these that is filled in counts. Rows without a text are skipped and counted; anything else
that is not as it should be is named.
"""

import io
import json
import logging
import lzma
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from minprune.data.rows import (
    FIELDS,
    FORMS,
    TABLES,
    TEXT,
    Row,
    check_text,
    folder_rows,
    json_or_none,
    kind_of,
    open_file,
)
from minprune.errors import PruneError
from minprune.files import check_regular, whole_characters

_log = logging.getLogger(__name__)

MOST = 100_000_000  # characters read of one source: 25 million tokens, which take 3 GB while they are cut
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}


def documents(path: Path, split: str, tokenizer=None) -> list[str]:
    """The texts in a file or in a folder that `datasets` has saved, in their order; see the module for what is read.

    split: which part of a folder that has parts. tokenizer: for chats. What was left out is logged.
    Raises `PruneError`, naming the line or row, for what cannot be read.
    """
    kind, opened = kind_of(path), None
    try:
        if path.is_dir():
            return _texts(path, folder_rows(path, split), tokenizer)
        check_regular(path)
        opened = open_file(path)
        if kind in TABLES:
            return _texts(path, TABLES[kind](path, opened), tokenizer)
        return [_prose(path, opened)]
    except UnicodeDecodeError:
        raise PruneError(f"{path} is not UTF-8 text: give a file that is {FORMS}") from None
    except PermissionError:
        raise PruneError(f"{path} cannot be read: check its permissions") from None
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        said = " ".join(str(error).split())[:200]
        raise PruneError(f"{path} cannot be read ({said}): copy it again, or unpack it") from None
    finally:
        if opened:
            opened.close()


def has_splits(source: str | Path) -> bool:
    """Whether a source is more than one file, so that a split of it has to be chosen."""
    path = Path(source)
    return not path.is_file() and not (path / "state.json").is_file()


# --- what is in a row


def _texts(path: Path, rows: Iterable[Row], tokenizer) -> list[str]:
    """The texts of the rows, at most `MOST` characters in all."""
    found: list[str] = []
    size = count = empty = 0
    for where, row in rows:
        text = None if row is None else _text_of(path, where, row, tokenizer)
        count += 1
        if text is None or not text.strip():
            empty += 1
            continue
        found.append(whole_characters(text))
        size += len(text)
        if size > MOST:
            _log.warning(f"{path}: only its first {count:,} rows are read, {size:,} characters")
            break
    if empty:
        _log.warning(f"{empty} of {count} rows of {path} are empty and were skipped")
    return found


def _text_of(path: Path, where: str, row: Any, tokenizer) -> str | None:
    if not isinstance(row, dict):
        raise PruneError(f'{where} of {path} is a {type(row).__name__}, not a row with a field such as "text"')
    present = [name for name in FIELDS if name in row]
    if not present:
        fields = ", ".join(repr(str(name)[:40]) for name in list(row)[:12]) or "none"
        raise PruneError(
            f'{where} of {path} has no field "text", "content", "messages" or "conversations", only {fields}: rename '
            'the one that holds the text to "text"'
        )
    field = next((name for name in present if not _is_blank(row[name])), None)
    if field is None:
        return None
    value = row[field]
    if field in TEXT and isinstance(value, str):
        return value
    if field in TEXT:
        raise PruneError(f"{where} of {path}: {field!r} is a {type(value).__name__}, not a text")
    return _chat(path, where, value, tokenizer)


def _is_blank(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _chat(path: Path, where: str, value: Any, tokenizer) -> str | None:
    """A chat, a list of {"role", "content"} or {"from", "value"}, as the tokenizer's template writes it.

    A turn that calls tools may have no content. Fields that are null are left out, as those of tables are in most rows.
    """
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise PruneError(f'{where} of {path}: a chat is a list of objects with "role" and "content"')
    turns = []
    for given in value:
        turn = {key: item for key, item in given.items() if item is not None}
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        calls = content is None and isinstance(turn.get("tool_calls"), list) and turn["tool_calls"]
        if not isinstance(role, str) or not (calls or isinstance(content, (str, list))):
            fields = ", ".join(map(repr, given)) or "none"
            raise PruneError(f'{where} of {path}: a turn of a chat has "role" and "content", this one has {fields}')
        turns.append({**turn, "role": _ROLES.get(role, role), "content": content})
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise PruneError(
            f'{where} of {path} is a chat, and the tokenizer has no chat template to write it with: give a "text" field'
        )
    plain = [{**turn, "content": _joined(turn["content"])} for turn in turns]
    said = ""
    for form in [turns] if plain == turns else [turns, plain]:  # most templates take a turn's text, not a list of parts
        try:
            text = tokenizer.apply_chat_template(form, tokenize=False)
        except Exception as error:  # a template may raise anything
            said = " ".join(str(error).split())[:200]
            continue
        if not any(_shows(turn["content"], text) for turn in form):
            return text
        said = "it would write the parts of a turn as they are stored"
    raise PruneError(f"{where} of {path}: the tokenizer's chat template refuses this chat ({said})")


def _joined(content: Any) -> Any:
    """Parts of a turn that are all texts as one text, a line for each; anything else as it is."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    found = [text for text in texts if isinstance(text, str)]
    return "\n".join(found) if len(found) == len(content) else content


def _shows(content: Any, text: str) -> bool:
    """Whether a template that knows no parts has written a list of them as Python or JSON shows it."""
    return isinstance(content, list) and (str(content) in text or json.dumps(content, ensure_ascii=False) in text)


def _prose(path: Path, file: IO[bytes]) -> str:
    text = io.TextIOWrapper(file, encoding="utf-8-sig").read(MOST + 1)  # with or without a byte order mark
    check_text(path, text)
    if len(text) > MOST:
        _log.warning(f"{path}: only its first {MOST:,} characters are read")
        text = text[:MOST]
    start = text.lstrip()
    first = start.split("\n", 1)[0]
    if first.startswith("{") and len(first) < 1_000_000 and isinstance(json_or_none(first), dict):
        _log.warning(f"{path} looks like JSON lines but is read as prose: call it .jsonl to have its fields read")
    elif start.startswith(("{", "[")) and isinstance(json_or_none(text), (dict, list)):
        _log.warning(f"{path} is JSON but is read as prose: call it .json to have its fields read")
    return text
