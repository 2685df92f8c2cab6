"""The rows of a file of documents, whatever its form and its compression: JSON lines, JSON, CSV, TSV, Parquet, Arrow.

Each reader gives pairs of what to call a row in a message, such as "line 3", and what it holds; documents.py finds the
text in it. Files are read as far as is asked for, except JSON that is one value.
"""

import bz2
import csv
import gzip
import io
import itertools
import lzma
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from minprune.errors import PruneError, from_extra
from minprune.files import check_regular, parse_json, read_json

Row = tuple[str, Any]  # what to call it in a message, such as "line 3", and its fields

TEXT, CHAT = ("text", "content"), ("messages", "conversations")  # the fields that a document can be in
FIELDS = (*TEXT, *CHAT)  # the first of them that is filled in holds it
FORMS = ".txt, .md, .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .arrow, each also as .gz, .bz2, .xz or .zst"


def kind_of(path: Path) -> str:
    """The extension in lower case, without one of compression."""
    return (Path(path.stem) if path.suffix.lower() in _UNPACK else path).suffix.lower()


def open_file(path: Path) -> IO[bytes]:
    """The file, unpacked, for reading from its beginning."""
    return _UNPACK.get(path.suffix.lower(), open)(path, "rb")


def _open_zst(path: Path, mode: str) -> IO[bytes]:
    with from_extra("texts", "this file"):
        import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


_UNPACK: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst,
}  # fmt: skip


def _json_lines(path: Path, file: IO[bytes]) -> Iterator[Row]:
    for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n"), 1):
        check_text(path, line)
        if line.strip():
            try:
                yield f"line {number}", parse_json(line)
            except ValueError as error:
                raise PruneError(f"line {number} of {path} is not valid JSON ({str(error)[:200]})") from None


def _json(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """JSON lines under another name, or one value: a list of rows, or an object with such a list.

    A line that is a value alone, with something behind it, is the first of several.
    """
    head, following = itertools.islice(itertools.chain((line for line in file if line.strip()), (b"", b"")), 2)
    with open_file(path) as again:
        if following and _is_json(head.decode("utf-8-sig")):
            yield from _json_lines(path, again)
            return
        content = again.read().decode("utf-8-sig")
    try:
        rows = _rows_in(path, parse_json(content)) if content.strip() else []
    except PruneError:
        raise
    except ValueError as error:
        raise PruneError(f"{path} is not valid JSON ({str(error)[:200]})") from None
    yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _rows_in(path: Path, value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        if any(isinstance(value.get(name), list) for name in TEXT):
            return _transposed(path, {name: value[name] for name in FIELDS if isinstance(value.get(name), list)})
        lists = {
            name: item
            for name, item in value.items()
            if isinstance(item, list) and any(isinstance(row, dict) for row in item)
        }
        if any(name in value for name in FIELDS):
            _refuse_rows_beside_text(path, value, lists)
            return [value]
        if len(lists) == 1:
            return next(iter(lists.values()))
        fields = ", ".join(repr(str(name)[:40]) for name in list(value)[:12]) or "none"
        raise PruneError(f'{path} holds one object with the fields {fields}, not one list of rows with a "text"')
    raise PruneError(f"{path} holds a JSON {type(value).__name__}, not a list of rows")


def _refuse_rows_beside_text(path: Path, value: dict[str, Any], lists: dict[str, list[Any]]) -> None:
    own = next((name for name in TEXT if name in value), None)
    for name, rows in lists.items() if own else ():
        holding = [row for row in rows if isinstance(row, dict) and not row.keys().isdisjoint(FIELDS)]
        if holding and name not in FIELDS:
            raise PruneError(
                f'{path} holds one object with the field "{own}" and with rows, {name[:40]!r}, that hold text, too: '
                "leave out what is not meant"
            )


def _transposed(path: Path, columns: dict[str, list[Any]]) -> list[Any]:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{length} in {name!r}" for name, length in lengths.items())
        raise PruneError(f"{path} has columns of different lengths, {said}: give one text for each row")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _separated(delimiter: str, quotes: bool) -> Callable[[Path, IO[bytes]], Iterator[Row]]:
    hint = (
        "check its quotes" if quotes else "fields of a .tsv hold no tab and no line break, even in quotes: give a .csv"
    )

    def rows(path: Path, file: IO[bytes]) -> Iterator[Row]:
        usual = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # it is 131,072, shorter than many documents
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        lines = csv.reader(
            text, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE, strict=True
        )
        try:
            header = next(lines, [])
            check_text(path, "".join(header))
            _check_fields(path, header)
            for row in lines:
                if row and len(row) != len(header):
                    raise PruneError(
                        f"line {lines.line_num} of {path} has {len(row)} fields and the first line {len(header)}: "
                        + hint
                    )
                if row:
                    yield f"line {lines.line_num}", dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise PruneError(f"line {lines.line_num} of {path} cannot be read ({error}): {hint}") from None
        finally:
            csv.field_size_limit(usual)  # it is one for all of the process

    return rows


def _parquet(path: Path, file: IO[bytes]) -> Iterator[Row]:
    with from_extra("texts", "this file"):
        import pyarrow.parquet

    def batches() -> Iterator[Any]:
        table = pyarrow.parquet.ParquetFile(_source(path, file))
        fields = _check_fields(path, table.schema_arrow.names)
        return table.iter_batches(64, columns=fields or None)

    return _numbered(path, batches)


def _arrow(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """An Arrow file, or an Arrow stream, as `datasets` writes them."""
    with from_extra("texts", "this file"):
        import pyarrow

    def batches() -> Iterator[Any]:
        source = _source(path, file)
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if not is_file:
            table = pyarrow.ipc.open_stream(source)
            stored = iter(table)
        else:
            table = pyarrow.ipc.open_file(source)
            stored = (table.get_batch(number) for number in range(table.num_record_batches))
        fields = _check_fields(path, table.schema.names)
        return (batch.select(fields) if fields else batch for batch in stored)

    return _numbered(path, batches)


def _check_fields(path: Path, names: list[str]) -> list[str]:
    """Which of a table's columns a document can be in; `PruneError` if there are two of one name."""
    for name in FIELDS:
        if names.count(name) > 1:
            raise PruneError(f"{path} has {names.count(name)} columns {name!r}: rename all but one")
    return [name for name in FIELDS if name in names]


def _source(path: Path, file: IO[bytes]) -> Any:
    """What pyarrow can jump about in."""
    with from_extra("texts", "this file"):
        import pyarrow

    return io.BytesIO(file.read()) if path.suffix.lower() in _UNPACK else pyarrow.memory_map(str(path))


def folder_rows(path: Path, split: str) -> Iterator[Row]:
    """The rows of a folder that `save_to_disk` wrote: a `Dataset`, or a `DatasetDict` with that split."""
    if (path / "dataset_dict.json").exists():
        names = read_json(path / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise PruneError(f"{path / 'dataset_dict.json'} has no list of names as its 'splits': copy it again")
        if split not in names or Path(split).name != split:
            raise PruneError(f"{path} has no split {split!r}: choose one of {', '.join(names)}")
        path = path / split
    if not (path / "state.json").exists():
        raise PruneError(f"{path} is a folder, neither a text file ({FORMS}) nor one that `save_to_disk` wrote")
    files = read_json(path / "state.json").get("_data_files")
    if not isinstance(files, list):
        raise PruneError(f"{path / 'state.json'} has no list of files as its '_data_files': copy it again")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in files]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise PruneError(f"{path / 'state.json'} names {name!r}, which is no file of its folder")
    rows = itertools.chain.from_iterable(_file_rows(path / name) for name in names)
    return ((f"row {number}", row) for number, (_, row) in enumerate(rows, 1))


def _file_rows(path: Path) -> Iterator[Row]:
    check_regular(path)
    with path.open("rb") as file:
        yield from _arrow(path, file)


def _numbered(path: Path, batches: Callable[[], Iterator[Any]]) -> Iterator[Row]:
    with from_extra("texts", "this file"):
        import pyarrow

    try:
        number = 0
        for batch in batches():
            batch.validate(full=True)  # offsets and lengths from outside point anywhere, and values are read by them
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except pyarrow.ArrowException as error:
        said = " ".join(str(error).split())[:200]
        raise PruneError(f"{path} cannot be read as what its name says ({said}): copy it again") from None


def check_text(path: Path, text: str) -> None:
    """Raise `PruneError` if there is in a text what no text has."""
    if "\0" in text:
        raise PruneError(f"{path} looks binary, not like text: give a file that is {FORMS}")


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def json_or_none(text: str) -> Any:
    """The value of a JSON text, None if it is none."""
    try:
        return parse_json(text)
    except ValueError:
        return None


TABLES: dict[str, Callable[[Path, IO[bytes]], Iterator[Row]]] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".jl"), _json_lines),
    ".json": _json,
    ".csv": _separated(",", quotes=True),
    **dict.fromkeys((".tsv", ".tab"), _separated("\t", quotes=False)),
    **dict.fromkeys((".parquet", ".pq"), _parquet),
    **dict.fromkeys((".arrow", ".ipc", ".feather"), _arrow),
}
