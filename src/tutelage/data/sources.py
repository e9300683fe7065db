"""A file or hub id -> its rows, each with the place to name when it is wrong.

A source is a path to .jsonl, .json (a list), .csv, .parquet or .txt (one document), each also with .gz, or a hub id
`org/name` or `org/name:split` (split `train` if not said).

What a file may hold is bounded, as nobody can be asked to trust it: a row's length and depth, a file that is read at
once, and what an archive expands to.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tutelage.data.strict_json import loads
from tutelage.settings.common import DATA_SUFFIXES, ENDLESS, HUB_ID, is_endless
from tutelage.terminal import plain, reason, short

PATHS = f"a path to {', '.join(DATA_SUFFIXES)} (each also with .gz)"
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # half of a surrogate pair, as JSON escapes it; two of them may be a character
ANSWERS = ("completion", "output", "chosen", "rejected")
LISTS = ("meta", "messages", "conversations", "history", "completions", "ranks")  # what a CSV cell holds as JSON
LONGEST_LINE = 1 << 26  # characters of a row: some sixty novels
LONGEST_TEXT = 1 << 31  # characters of a .json list or a .txt document, which are read at once
DEEPEST = 64  # levels of lists and objects in a row
EXPANSION = 100  # times its size that an archive may expand to; text reaches 20
SMALL = 1 << 26  # bytes to which any archive may expand
BOMB = f"expands to more than {EXPANSION} times its size; if you trust it, write it as .jsonl, not compressed"


class DataError(ValueError):
    """A user's data cannot be read: names the place, the field, its value and the remedy."""


def rows_of(source: str) -> Iterator[tuple[str, Any]]:
    path = Path(source)
    suffix = Path(path.name.removesuffix(".gz")).suffix
    name, _, split = source.partition(":")
    if path.is_file():
        if suffix not in DATA_SUFFIXES:
            raise DataError(f"{source}: unknown kind of file; give {PATHS} or a hub id")
        try:
            if source.endswith(".gz"):
                _require_end(source)
            with _opened(source) as file:
                yield from _FILE_ROWS[suffix](source, file)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise DataError(f"{source}: not a whole gzip file: {error}; compress it anew") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{source}:{_broken_line(source)}: not UTF-8 text: {error.reason}; convert it") from None
    elif is_endless(path):
        raise DataError(f"{source}: {ENDLESS}")
    elif Path(name).is_dir() or (HUB_ID.fullmatch(source) and suffix not in DATA_SUFFIXES):
        yield from _hub_rows(source, name, split or "train")
    else:
        raise DataError(f"{source}: no such file; give {PATHS} or a hub id (org/name or org/name:split)")


def _opened(source: str) -> Any:
    """The file's bytes, out of the archive if it is one."""
    return gzip.open(source) if source.endswith(".gz") else open(source, "rb")


def _require_end(source: str) -> None:
    """Raise if a gzip file is broken or expands without measure, before a row of it is kept: reading it is quick."""
    left = _most_bytes(source)
    with gzip.open(source) as file:
        while block := file.read(1 << 20):
            left -= len(block)
            if left < 0:
                raise DataError(f"{source}: {BOMB}")


def _most_bytes(source: str) -> int:
    """What a file may expand to: a few kilobytes can hold gigabytes."""
    return max(SMALL, EXPANSION * os.path.getsize(source))


def _broken_line(source: str) -> int:
    """The line of the first bytes that are no UTF-8."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    with _opened(source) as file:
        while block := file.read(1 << 20):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                return line + error.object[: error.start].count(b"\n")
            line += block.count(b"\n")
    return line


def _lines(source: str, file: IO[bytes], newline: str | None = None) -> Iterator[str]:
    with io.TextIOWrapper(file, "utf-8-sig", newline=newline) as text:
        number = 0
        while line := text.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE:
                raise DataError(f"{source}:{number}: longer than {LONGEST_LINE:,} characters; cut it into several rows")
            _require_text(f"{source}:{number}", line)
            yield line


def _whole(source: str, file: IO[bytes]) -> str:
    blocks, left = [], LONGEST_TEXT
    with io.TextIOWrapper(file, "utf-8-sig") as text:
        while block := text.read(1 << 20):
            blocks.append(block)
            left -= len(block)
            if left < 0:
                raise DataError(
                    f"{source}: longer than {LONGEST_TEXT:,} characters; write it as .jsonl, in several rows"
                )
    whole = "".join(blocks)
    _require_text(source, whole)
    return whole


def _require_text(place: str, text: str) -> None:
    if "\0" in text:
        raise DataError(f"{place}: holds a null byte, so it is no text; if it is UTF-16, convert it to UTF-8")


def _jsonl_rows(source: str, file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(source, file), start=1):
        if line.strip():
            place = f"{source}:{number}"
            try:
                row = loads(line)
            except ValueError as error:
                raise DataError(f"{place}: not valid JSON: {error}") from None
            if HALF.search(line) or line.count("[") + line.count("{") > DEEPEST:
                _refuse_broken(place, row)
            yield place, row


def _json_rows(source: str, file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    text = _whole(source, file)
    try:
        rows = loads(text) if text.strip() else []
    except ValueError as error:
        place = f"{source}:{error.lineno}" if hasattr(error, "lineno") else source
        raise DataError(f"{place}: not valid JSON: {error}; if it has one row a line, name it .jsonl") from None
    if not isinstance(rows, list):
        raise DataError(f"{source}: holds {short(rows)}; expected a list of rows; if one row a line, name it .jsonl")
    for number, row in enumerate(rows, start=1):
        place = f"{source}, row {number}"
        _refuse_broken(place, row)
        yield place, row


def _refuse_broken(place: str, value: Any, field: str = "", depth: int = 0) -> None:
    """Raise if a text at any depth holds half of a surrogate pair, which JSON can write and no tokenizer can read, or
    if there is no end of depth."""
    if depth > DEEPEST:
        raise DataError(
            f"{place}: {plain(field.split('[')[0].split('.')[0])} is nested more than {DEEPEST} deep; flatten it"
        )
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            found = short(value[max(0, error.start - 20) : error.end + 20])
            raise DataError(
                f"{place}: {plain(field) or 'the row'} holds half of a surrogate pair, {found}, which is no character; "
                "correct it or take it out"
            ) from None
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _refuse_broken(place, item, f"{field}[{i}]", depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_broken(place, key, "a name", depth + 1)
            _refuse_broken(place, item, f"{field}.{key}" if field else key, depth + 1)


def _csv_rows(source: str, file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(LONGEST_LINE)  # the library's 128 kB is less than one long document
    reader = csv.reader(_lines(source, file, newline=""), strict=True)  # it counts lines itself
    line = 1
    try:
        header = next(reader, [])
        if twice := [name for name in header if header.count(name) > 1]:
            raise DataError(f"{source}:1: the column {short(twice[0])} comes twice; rename or remove one")
        line = reader.line_num + 1
        for cells in reader:
            place = f"{source}:{line}"
            if cells and len(cells) != len(header):
                raise DataError(f"{place}: {len(cells)} cells under {len(header)} column names; quote commas")
            if cells:
                yield place, {name: _cell(place, name, cell) for name, cell in zip(header, cells, strict=True)}
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{source}:{line}: not valid CSV: {error}") from None


def _cell(place: str, column: str, cell: str) -> Any:
    """A cell's text, or the list or object that it holds as JSON where the column may be one."""
    if not cell.startswith("{" if column == "meta" else "["):
        return cell
    try:
        value = loads(cell)
    except ValueError:
        return cell
    _refuse_broken(place, value, column)
    if column in LISTS:
        return value
    turns = bool(value) and all(isinstance(turn, dict) and "role" in turn for turn in value)
    return value if turns and column in ("prompt", *ANSWERS) else cell  # a prompt may well read "[1, 2]"


def _parquet_rows(source: str, file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        left = _most_bytes(source)
        table = pq.ParquetFile(pa.BufferReader(file.read()) if source.endswith(".gz") else file)
        names = table.schema_arrow.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"{source}: the column {short(twice[0])} comes twice; rename or remove one")
        for batch in table.iter_batches(batch_size=_batch(table.metadata)):
            left -= batch.nbytes
            if left < 0:
                raise DataError(f"{source}, row {number + 1}: {BOMB}")
            for row in batch.to_pylist():
                number += 1
                place = f"{source}, row {number}"
                _refuse_broken(place, row)
                yield place, row
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        place = f"{source}, row {number + 1}" if number else source
        raise DataError(f"{place}: not valid Parquet: {reason(error)}; write it anew") from None


def _batch(metadata: Any) -> int:
    """Rows to read at once: a value that is stored once may stand in every row."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    largest = max((g.column(i).total_uncompressed_size for g in groups for i in range(g.num_columns)), default=1)
    return max(1, min(64, (1 << 30) // max(1, largest)))


def _txt_rows(source: str, file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    text = _whole(source, file)
    if text.strip():
        yield source, {"text": text}


def _hub_rows(source: str, name: str, split: str) -> Iterator[tuple[str, Any]]:
    import datasets

    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library's own, its HTTP client's and the system's: all are about this source
        raise DataError(
            f"{source}: the datasets library cannot load it: {reason(error).rstrip('.')}; check the id, the split, "
            f"the network and HF_HUB_OFFLINE, or give {PATHS}"
        ) from None
    yield from ((f"{source}, row {number}", row) for number, row in enumerate(rows, start=1))


_FILE_ROWS: Mapping[str, Callable[[str, IO[bytes]], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".txt": _txt_rows,
}
