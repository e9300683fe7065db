"""A file or hub id -> its rows, each with the place to name when it is wrong.

A source is a path to .jsonl, .json (a list), .csv, .parquet or .txt (one document), each also with .gz, or a hub id
`org/name` or `org/name:split` (split `train` if not said).
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tutelage.config import DATA_SUFFIXES, HUB_ID
from tutelage.terminal import reason, short

PATHS = f"a path to {', '.join(DATA_SUFFIXES)} (each also with .gz)"
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # half of a surrogate pair, as JSON escapes it; two of them may be a character
ANSWERS = ("completion", "output", "chosen", "rejected")
LISTS = ("meta", "messages", "conversations", "history", "completions", "ranks")  # what a CSV cell holds as JSON


class DataError(ValueError):
    """A user's data cannot be read: names the place, the field, its value and the remedy."""


def rows_of(source: str) -> Iterator[tuple[str, Any]]:
    path = Path(source)
    suffix = Path(path.name.removesuffix(".gz")).suffix
    name, _, split = source.partition(":")
    if path.is_file():
        if suffix not in DATA_SUFFIXES:
            raise DataError(f"{source}: unknown kind of file; give {PATHS} or a hub id")
        opener: Callable[..., IO[Any]] = gzip.open if path.suffix == ".gz" else open
        newline = "" if suffix == ".csv" else None  # the csv module counts lines itself
        text = {"mode": "rt", "encoding": "utf-8-sig", "newline": newline}
        with opener(path, **({"mode": "rb"} if suffix == ".parquet" else text)) as file:
            try:
                yield from _FILE_ROWS[suffix](source, file)
            except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                raise DataError(f"{source}: not a whole gzip file: {error}") from None
            except UnicodeDecodeError as error:
                raise DataError(f"{source}: not UTF-8 text: {error}; convert it") from None
    elif Path(name).is_dir() or (HUB_ID.fullmatch(source) and suffix not in DATA_SUFFIXES):
        yield from _hub_rows(source, name, split or "train")
    else:
        raise DataError(f"{source}: no such file; give {PATHS} or a hub id (org/name or org/name:split)")


def _jsonl_rows(source: str, file: IO[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            place = f"{source}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{place}: not valid JSON: {error}") from None
            if HALF.search(line):
                _refuse_halves(place, row)
            yield place, row


def _json_rows(source: str, file: IO[str]) -> Iterator[tuple[str, Any]]:
    text = file.read()
    try:
        rows = json.loads(text) if text.strip() else []
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise DataError(f"{source}:{line}: not valid JSON: {error}; if it has one row a line, name it .jsonl") from None
    if not isinstance(rows, list):
        raise DataError(f"{source}: holds {short(rows)}; expected a list of rows; if one row a line, name it .jsonl")
    halves = bool(HALF.search(text))
    for number, row in enumerate(rows, start=1):
        place = f"{source}, row {number}"
        if halves:
            _refuse_halves(place, row)
        yield place, row


def _refuse_halves(place: str, value: Any, field: str = "") -> None:
    """Raise if a text at any depth holds half of a surrogate pair: JSON can write it, no tokenizer can read it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            found = short(value[max(0, error.start - 20) : error.end + 20])
            raise DataError(
                f"{place}: {field or 'the row'} holds half of a surrogate pair, {found}, which is no character; "
                "correct it or take it out"
            ) from None
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _refuse_halves(place, item, f"{field}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_halves(place, item, f"{field}.{key}" if field else key)


def _csv_rows(source: str, file: IO[str]) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # the library's 128 kB is less than one long document
    reader = csv.reader(file, strict=True)
    line = 1
    try:
        header = next(reader, [])
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise DataError(f"{source}:{line}: {len(cells)} cells under {len(header)} column names; quote commas")
            if cells:
                yield f"{source}:{line}", {name: _cell(name, cell) for name, cell in zip(header, cells, strict=True)}
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{source}:{line}: not valid CSV: {error}") from None


def _cell(column: str, cell: str) -> Any:
    """A cell's text, or the list or object that it holds as JSON where the column may be one."""
    if not cell.startswith("{" if column == "meta" else "["):
        return cell
    try:
        value = json.loads(cell)
    except ValueError:
        return cell
    if column in LISTS:
        return value
    turns = bool(value) and all(isinstance(turn, dict) and "role" in turn for turn in value)
    return value if turns and column in ("prompt", *ANSWERS) else cell  # a prompt may well read "[1, 2]"


def _parquet_rows(source: str, file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(pa.BufferReader(file.read())).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{source}, row {number}", row
    except pa.ArrowException as error:
        raise DataError(f"{source}: not valid Parquet: {error}") from None


def _txt_rows(source: str, file: IO[str]) -> Iterator[tuple[str, Any]]:
    text = file.read()
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


_FILE_ROWS: Mapping[str, Callable[[str, IO[Any]], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".txt": _txt_rows,
}
