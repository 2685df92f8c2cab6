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

from minprune.errors import PruneError
from minprune.files import check_regular, parse_json, read_json

Row = tuple[str, Any]  # what to call it in a message, such as "line 3", and its fields

TEXT, CHAT = ("text", "content"), ("messages", "conversations")  # the fields that a document can be in
FORMS = ".txt, .md, .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .arrow, each also as .gz, .bz2, .xz or .zst"


def kind_of(path: Path) -> str:
    """The extension in lower case, without one of compression."""
    return (Path(path.stem) if path.suffix.lower() in _UNPACK else path).suffix.lower()


def open_file(path: Path) -> IO[bytes]:
    """The file, unpacked, for reading from its beginning."""
    return _UNPACK.get(path.suffix.lower(), open)(path, "rb")


def _open_zst(path: Path, mode: str) -> IO[bytes]:
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
    """JSON lines under another name, or one value: a list of rows, or an object with such a list."""
    head, following = itertools.islice(itertools.chain((line for line in file if line.strip()), (b"", b"")), 2)
    with open_file(path) as again:
        if following and isinstance(json_or_none(head.decode("utf-8-sig")), dict):
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
        column = next((name for name in TEXT if isinstance(value.get(name), list)), None)
        if column:
            return [{column: text} for text in value[column]]
        if any(name in value for name in (*TEXT, *CHAT)):
            return [value]
        lists = [item for item in value.values() if isinstance(item, list) and any(isinstance(r, dict) for r in item)]
        if len(lists) == 1:
            return lists[0]
        fields = ", ".join(repr(str(name)[:40]) for name in list(value)[:12]) or "none"
        raise PruneError(f'{path} holds one object with the fields {fields}, not one list of rows with a "text"')
    raise PruneError(f"{path} holds a JSON {type(value).__name__}, not a list of rows")


def _separated(delimiter: str) -> Callable[[Path, IO[bytes]], Iterator[Row]]:
    def rows(path: Path, file: IO[bytes]) -> Iterator[Row]:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the usual limit, 131,072, is shorter than many documents
        lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), delimiter=delimiter, strict=True)
        try:
            header = next(lines, [])
            check_text(path, "".join(header))
            for row in lines:
                if row and len(row) != len(header):
                    raise PruneError(
                        f"line {lines.line_num} of {path} has {len(row)} fields and the first line {len(header)}"
                    )
                if row:
                    yield f"line {lines.line_num}", dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise PruneError(f"line {lines.line_num} of {path} cannot be read ({error}): check its quotes") from None

    return rows


def _parquet(path: Path, file: IO[bytes]) -> Iterator[Row]:
    import pyarrow.parquet

    def batches() -> Iterator[Any]:
        table = pyarrow.parquet.ParquetFile(_source(path, file))
        names = table.schema_arrow.names
        field = next((name for name in (*TEXT, *CHAT) if name in names), None)
        return table.iter_batches(64, columns=[field] if field else None)

    return _numbered(path, batches)


def _arrow(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """An Arrow file, or an Arrow stream, as `datasets` writes them."""
    import pyarrow

    def batches() -> Iterator[Any]:
        source = _source(path, file)
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if not is_file:
            return iter(pyarrow.ipc.open_stream(source))
        table = pyarrow.ipc.open_file(source)
        return (table.get_batch(number) for number in range(table.num_record_batches))

    return _numbered(path, batches)


def _source(path: Path, file: IO[bytes]) -> Any:
    """What pyarrow can jump about in."""
    import pyarrow

    return io.BytesIO(file.read()) if path.suffix.lower() in _UNPACK else pyarrow.memory_map(str(path))


def folder_rows(path: Path, split: str) -> Iterator[Row]:
    """The rows of a folder that `save_to_disk` wrote: a `Dataset`, or a `DatasetDict` with that split."""
    if (path / "dataset_dict.json").exists():
        names = read_json(path / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or split not in names or Path(split).name != split:
            raise PruneError(f"{path} has no split {split!r}: choose one of {', '.join(map(str, names or []))}")
        path = path / split
    if not (path / "state.json").exists():
        raise PruneError(f"{path} is a folder, neither a text file ({FORMS}) nor one that `save_to_disk` wrote")
    files = read_json(path / "state.json").get("_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in files or []]
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
    import pyarrow

    try:
        number = 0
        for batch in batches():
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


def json_or_none(text: str) -> Any:
    """The value of a JSON text, None if it is none."""
    try:
        return parse_json(text)
    except ValueError:
        return None


TABLES: dict[str, Callable[[Path, IO[bytes]], Iterator[Row]]] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".jl"), _json_lines),
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    **dict.fromkeys((".parquet", ".pq"), _parquet),
    **dict.fromkeys((".arrow", ".ipc", ".feather"), _arrow),
}
