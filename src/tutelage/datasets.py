"""Any accepted file or hub id -> validated records; says file:line and field when it can't.

A source is a path to .jsonl, .json (a list), .csv, .parquet or .txt (one document), each also with .gz, or a hub id
`org/name` or `org/name:split` (split `train` if not said). Each text is a string or a list of {role, content} messages.
A row's format is recognised by its columns, from the table below; further columns are ignored, except `id`, `user`,
`split`, `use_case`, `meta` and `labeler`, which are carried into the records.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from tutelage.config import DATA_SUFFIXES, HUB_ID
from tutelage.records import Demonstration, Message, Prompt, Ranking, newest
from tutelage.strict_json import dumps

Kind = Literal["texts", "demonstrations", "rankings", "prompts"]
Row = dict[str, Any]
Turns = tuple[Message, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Format:
    """A row's required columns, and the kinds of records it gives. More columns than these never hurt."""

    name: str
    columns: tuple[str, ...]
    gives: tuple[Kind, ...]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " + ".join(self.columns) + "".join(f" (+ {c})" for c in self.optional)


FORMATS = (  # the first that fits a row and gives the wanted kind is taken
    Format("text", ("text",), ("texts",)),
    Format("prompt", ("prompt",), ("prompts",)),
    Format("instruction", ("instruction",), ("prompts",), optional=("input",)),
    Format("completion", ("prompt", "completion"), ("demonstrations",)),
    Format("Alpaca", ("instruction", "output"), ("demonstrations",), optional=("input",)),
    Format("conversation", ("messages",), ("demonstrations", "prompts")),
    Format("ranking", ("prompt", "completions", "ranks"), ("rankings",)),
    Format("preference", ("prompt", "chosen", "rejected"), ("rankings",)),
    Format("Alpaca preference", ("instruction", "chosen", "rejected"), ("rankings",), optional=("input",)),
    Format("preference, implicit prompt", ("chosen", "rejected"), ("rankings", "prompts")),
)
__doc__ = f"{__doc__}\n" + "\n".join(f"{f.name + ':':30}{f!s:45} -> {', '.join(f.gives)}" for f in FORMATS)

PATHS = f"a path to {', '.join(DATA_SUFFIXES)} (each also with .gz)"
ASSISTANT = "\n\nAssistant:"  # the mark of hh-rlhf's transcripts
ANSWERS = ("completion", "output", "chosen", "rejected")


class DataError(ValueError):
    """A user's data cannot be read: names the place, the field, its value and the remedy."""


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """What a source gave. `dropped` counts by reason the rows left out, and under "duplicate completions merged" the
    rankings that were kept with fewer completions."""

    records: list[T]
    dropped: dict[str, int]
    source: str


class _Drop(Exception):
    """This row is left out and counted."""


def accepted(kind: Kind) -> str:
    """The columns from which records of this kind are read, as one line."""
    return " | ".join(str(f) for f in FORMATS if kind in f.gives)


def read_texts(source: str | os.PathLike[str]) -> Loaded[str]:
    """Plain documents, from a `text` column; a .txt file is one document.

    Raises:
        DataError: if the source is missing, malformed, empty or has no such column.
    """

    def text(row: Row, format: Format, counts: Counter[str]) -> str:
        if not isinstance(row["text"], str):
            raise ValueError(f"text is {_short(row['text'])}; expected a string")
        if not row["text"].strip():
            raise _Drop("empty text")
        return row["text"]

    return _read(source, "texts", text)


def read_demonstrations(source: str | os.PathLike[str]) -> Loaded[Demonstration]:
    """Prompts with the answers labelers wrote; of a conversation, the last assistant turn is the completion.

    Raises:
        DataError: if the source is missing, malformed, empty or in no format that gives demonstrations.
    """

    def demonstration(row: Row, format: Format, counts: Counter[str]) -> Demonstration:
        if format.name == "conversation":
            turns = _turns(row["messages"], "messages")
            last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=None)
            if last is None:
                raise _Drop("no assistant turn")
            prompt, completion = _prompt(row, turns[:last]), turns[last].content
        else:
            text, (completion,) = _prompt_and_answers(row, format)
            prompt = _prompt(row, text)
        if not completion.strip():
            raise _Drop("empty completion")
        return Demonstration(prompt=prompt, completion=completion, labeler=_name(row.get("labeler")))

    return _read(source, "demonstrations", demonstration)


def read_rankings(source: str | os.PathLike[str]) -> Loaded[Ranking]:
    """Labelers' orders of K completions; a chosen/rejected pair is a ranking of two.

    Equal completions are merged under their best rank. Of a labeler's rankings of the same completions the last counts,
    as rows are in the order in which they were given; the others are dropped and counted. So are rankings with an empty
    completion, with fewer than two distinct completions, with all completions tied, or whose chosen and rejected share
    no prompt.

    Raises:
        DataError: if the source is missing, malformed, empty or in no format that gives rankings.
    """

    def ranking(row: Row, format: Format, counts: Counter[str]) -> Ranking:
        text, answers = _prompt_and_answers(row, format)
        completions, ranks = (row["completions"], row["ranks"]) if format.name == "ranking" else (answers, [1, 2])
        if not isinstance(completions, list):
            raise ValueError(
                f"completions is {_short(completions)}; expected a list of strings or of {{text, policy, finish}}"
            )
        found = Ranking.model_validate(
            {
                "prompt": _prompt(row, text),
                "completions": [{"text": c} if isinstance(c, str) else c for c in completions],
                "ranks": ranks,
                "labeler": _name(row.get("labeler")),
            }
        )
        if not all(c.text.strip() for c in found.completions):
            raise _Drop("empty completion")
        best: dict[str, int] = {}
        for i in sorted(range(len(found.ranks)), key=lambda i: found.ranks[i]):
            best.setdefault(found.completions[i].text, i)
        if len(best) < 2:
            raise _Drop("fewer than two distinct completions")
        kept = sorted(best.values())
        if len(kept) == len(found.completions):
            return found
        counts["duplicate completions merged"] += len({found.ranks[i] for i in kept}) > 1
        completions, ranks = (tuple(column[i] for i in kept) for column in (found.completions, found.ranks))
        return found.model_copy(update={"completions": completions, "ranks": ranks})

    loaded = _read(source, "rankings", ranking)
    counting = newest(loaded.records)
    records = [r for r in counting if len(set(r.ranks)) > 1]  # only now: the newest may be that all are tied
    dropped = {
        "older answer of the same labeler": len(loaded.records) - len(counting),
        "all completions tied": len(counting) - len(records),
    }
    return Loaded(records, loaded.dropped | {reason: n for reason, n in dropped.items() if n}, loaded.source)


def read_prompts(source: str | os.PathLike[str]) -> Loaded[Prompt]:
    """The prompts of any format that has one; of a conversation, all but a last assistant turn.

    Raises:
        DataError: if the source is missing, malformed, empty or in no format that gives prompts.
    """

    def prompt(row: Row, format: Format, counts: Counter[str]) -> Prompt:
        if format.name == "conversation":
            turns = _turns(row["messages"], "messages")
            return _prompt(row, turns[:-1] if turns and turns[-1].role == "assistant" else turns)
        return _prompt(row, _prompt_and_answers(row, format)[0])

    return _read(source, "prompts", prompt)


def write_jsonl(
    path: str | os.PathLike[str],
    records: Iterable[str] | Iterable[Demonstration] | Iterable[Ranking] | Iterable[Prompt] | Iterable[Row],
) -> None:
    """Write records, or rows as they are, as the rows that the readers read; gzipped if the name ends in .gz.

    The file appears whole or not at all, and the same records give the same bytes.
    """
    path = Path(path)
    data = "".join(dumps(_row(record), ensure_ascii=False) + "\n" for record in records).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _row(record: str | Demonstration | Ranking | Prompt | Row) -> Row:
    if isinstance(record, dict):
        return record
    if isinstance(record, str):
        return {"text": record}
    row = record.model_dump(mode="json", exclude_none=True)
    prompt = row if isinstance(record, Prompt) else row.pop("prompt")
    flat = {"prompt": prompt.pop("text"), **prompt}
    if not flat["meta"]:
        del flat["meta"]
    return flat if isinstance(record, Prompt) else flat | row


# From a row to a record


def _read(source: str | os.PathLike[str], kind: Kind, record: Callable[[Row, Format, Counter[str]], T]) -> Loaded[T]:
    source = os.fspath(source)
    records: list[T] = []
    dropped: Counter[str] = Counter()
    place = None
    for place, row in _rows(source):
        if not isinstance(row, dict):
            raise DataError(f"{place}: a row is {_short(row)}; expected an object with columns {accepted(kind)}")
        columns = {name for name, value in row.items() if value is not None}
        format = next((f for f in FORMATS if kind in f.gives and columns.issuperset(f.columns)), None)
        if format is None:
            found = ", ".join(name if name in columns else f"{name} (null)" for name in row) or "none"
            raise DataError(f"{place}: found columns {found}; {kind} are read from {accepted(kind)}")
        try:
            records.append(record(row, format, dropped))
        except _Drop as reason:
            dropped[str(reason)] += 1
        except ValueError as error:
            raise DataError(f"{place}: {_one_line(error)}") from None
    if place is None:
        raise DataError(f"{source}: is empty; {kind} are read from {accepted(kind)}")
    return Loaded(records, dict(dropped), source)


def _prompt_and_answers(row: Row, format: Format) -> tuple[str | Turns, list[str]]:
    if format.columns == ("chosen", "rejected"):
        return _shared_prompt(row["chosen"], row["rejected"])
    text: str | Turns
    if "instruction" in format.columns:
        parts = [row["instruction"], row.get("input") or ""]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"instruction and input are {_short(parts)}; expected strings")
        text = (Message(role="user", content="\n\n".join(part for part in parts if part)),)
    else:
        text = row["prompt"] if isinstance(row["prompt"], str) else _turns(row["prompt"], "prompt")
    return text, [_answer(row[column], column, text) for column in format.columns if column in ANSWERS]


def _shared_prompt(chosen: Any, rejected: Any) -> tuple[str | Turns, list[str]]:
    """Split two transcripts that differ in their last assistant turn only."""
    no_prompt = _Drop("chosen and rejected share no prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        (head, mark, answer), (head2, mark2, answer2) = (text.rpartition(ASSISTANT) for text in (chosen, rejected))
        if not mark or not mark2 or head != head2:
            raise no_prompt
        return head + mark, [answer, answer2]
    turns, turns2 = _turns(chosen, "chosen"), _turns(rejected, "rejected")
    prompt = turns[:-1]
    if not prompt or prompt != turns2[:-1]:
        raise no_prompt
    return prompt, [_answer(chosen, "chosen", prompt), _answer(rejected, "rejected", prompt)]


def _answer(value: Any, column: str, prompt: str | Turns) -> str:
    """A completion as a string, or as one assistant message, which may follow a copy of the prompt's turns."""
    if isinstance(value, str):
        return value
    turns = _turns(value, column)
    asked = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
    if turns[: len(asked)] == asked:
        turns = turns[len(asked) :]
    if [turn.role for turn in turns] != ["assistant"]:
        raise ValueError(f"{column} is {_short(value)}; expected a string or one assistant message")
    return turns[0].content


def _turns(value: Any, column: str) -> Turns:
    if not isinstance(value, list):
        raise ValueError(f"{column} is {_short(value)}; expected a string or a list of {{role, content}} messages")
    for i, turn in enumerate(value):
        if not (isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))):
            raise ValueError(f"{column}[{i}] is {_short(turn)}; expected {{role, content}}, both strings")
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in value)


def _prompt(row: Row, text: str | Turns) -> Prompt:
    if not (text.strip() if isinstance(text, str) else any(turn.content.strip() for turn in text)):
        raise _Drop("empty prompt")
    carried = {name: row[name] for name in ("split", "use_case", "meta") if row.get(name) not in (None, "")}
    id = _name(row.get("id")) or _text_id(text)
    return Prompt.model_validate({"id": id, "text": text, "user": _name(row.get("user")), **carried})


def _text_id(text: str | Turns) -> str:
    plain = text if isinstance(text, str) else [turn.model_dump() for turn in text]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def _name(value: Any) -> Any:
    """Numbers become strings (public ids are often integers), an empty CSV cell nobody."""
    return str(value) if isinstance(value, int) else value or None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _one_line(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")
    field = ".".join(str(part) for part in first["loc"])
    return f"{field}: {message}, found {_short(first['input'])}" if field else message


def read_rows(source: str | os.PathLike[str], *required: str) -> list[dict[str, Any]]:
    """Rows of a file of our own making, such as candidates, answers or judgments.

    Raises:
        DataError: if the file is missing or empty, a row is no object, or a required field is not there.
    """
    rows = []
    for place, row in _rows(str(source)):
        missing = [name for name in required if not isinstance(row, dict) or name not in row]
        if missing:
            raise DataError(f"{place}: no field {missing[0]!r}; expected {', '.join(required)}")
        rows.append(row)
    if not rows:
        raise DataError(f"{source}: empty file")
    return rows


# From a source to rows, each with its place


def _rows(source: str) -> Iterator[tuple[str, Any]]:
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
            try:
                yield f"{source}:{number}", json.loads(line)
            except ValueError as error:
                raise DataError(f"{source}:{number}: not valid JSON: {error}") from None


def _json_rows(source: str, file: IO[str]) -> Iterator[tuple[str, Any]]:
    text = file.read()
    try:
        rows = json.loads(text) if text.strip() else []
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise DataError(f"{source}:{line}: not valid JSON: {error}; if it has one row a line, name it .jsonl") from None
    if not isinstance(rows, list):
        raise DataError(f"{source}: holds {_short(rows)}; expected a list of rows; if one row a line, name it .jsonl")
    yield from ((f"{source}, row {number}", row) for number, row in enumerate(rows, start=1))


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
    if column in ("meta", "messages", "completions", "ranks"):
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
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"{source}: the datasets library cannot load it: {reason}; check the id, the split, the network and "
            f"HF_HUB_OFFLINE, or give {PATHS}"
        ) from None
    yield from ((f"{source}, row {number}", row) for number, row in enumerate(rows, start=1))


_FILE_ROWS: Mapping[str, Callable[[str, IO[Any]], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".txt": _txt_rows,
}
