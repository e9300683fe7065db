"""What a benchmark is: items read from its published file, what each asks of a model, and a score for each."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tutelage.data.sources import DataError, rows_of
from tutelage.data.strict_json import loads
from tutelage.settings.benchmarks import BenchmarkConfig
from tutelage.terminal import reason, short


@dataclass(frozen=True)
class Continuations:
    """Asks for the log-probability of each text after a context; and, if `greedy`, whether the model's likeliest tokens
    are those of the first. A text brings the space before it."""

    context: str
    texts: tuple[str, ...]
    greedy: bool = False


@dataclass(frozen=True)
class Generation:
    """Asks for texts that go on from a text or, of a model that is asked by its chat template, for answers if the text
    is an `instruction`. They are cut before each of `stops`. `most` tokens; the setting's if None."""

    text: str
    most: int | None = None
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    instruction: bool = False
    stops: tuple[str, ...] = ()


Ask = Continuations | Generation
Response = Mapping[str, Any]
"""To `Continuations`: `logprobs`, in nats, and `greedy`. To a `Generation`: `texts`; `toxicity` of each, where the
benchmark is scored by a classifier (None of an empty text)."""
Scores = dict[str, float | tuple[float, float]]
"""By measure a number, or (how much, out of how much). A measure that an item says nothing of is left out."""


@dataclass(frozen=True)
class Item:
    """One item: what it asks, and what the answers are scored by. Items of one `unit` hang together, and are one in
    every interval; `group` is what results are broken down by."""

    id: str
    asks: tuple[Ask, ...]
    expects: Any = None
    group: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Measure:
    """A number that a benchmark gives: the least and the most that it can be of an item (None: anything), which way is
    better (None: neither), whether it belongs into the alignment tax, and whether its exponential is a perplexity."""

    scale: tuple[float, float] | None = (0.0, 1.0)
    better: Literal["higher", "lower"] | None = "higher"
    tax: bool = False
    perplexity: bool = False

    @property
    def difference_scale(self) -> tuple[float, float] | None:
        """The least and the most that the difference of two models can be."""
        return None if self.scale is None else (self.scale[0] - self.scale[1], self.scale[1] - self.scale[0])


@dataclass(frozen=True)
class Task:
    """A benchmark: a reader of its file, a score for each item's responses, its measures, and how many items the
    published file can have (none if any number will do)."""

    read: Callable[[str, BenchmarkConfig], list[Item]]
    scores: Callable[[Item, Sequence[Response]], Scores]
    measures: Mapping[str, Measure]
    published: frozenset[int] = field(default=frozenset())


# Files


def table(source: str, *columns: str) -> list[tuple[str, dict[str, str]]]:
    """Rows of a CSV, TSV or JSON-lines file, each with its place, and with these columns as texts.

    Raises:
        DataError: naming file and line, if a column is missing or holds no text, or the file is broken or empty.
    """
    rows = []
    for place, row in _tab_rows(source) if source.removesuffix(".gz").endswith(".tsv") else rows_of(source):
        for name in columns:
            if not isinstance(row, dict) or not isinstance(row.get(name), str) or not row[name].strip():
                held = short(row.get(name)) if isinstance(row, dict) else short(row)
                raise DataError(f"{place}: {name} is {held}; expected a text; columns: {', '.join(columns)}")
        rows.append((place, row))
    if not rows:
        raise DataError(f"{source}: empty file")
    return rows


def _text(source: str) -> str:
    path = Path(source)
    try:
        return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: cannot be read: {reason(error)}") from None


def _tab_rows(source: str) -> list[tuple[str, dict[str, str]]]:
    header, *lines = list(csv.reader(io.StringIO(_text(source)), delimiter="\t", quoting=csv.QUOTE_NONE)) or [[]]
    rows = []
    for number, cells in enumerate(lines, start=2):
        if len(cells) != len(header):
            raise DataError(f"{source}:{number}: {len(cells)} cells under {len(header)} column names; is it cut short?")
        rows.append((f"{source}:{number}", dict(zip(header, cells, strict=True))))
    return rows


def content(source: str) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: if it is no JSON, as where it is cut short.
    """
    try:
        return loads(_text(source))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{source}: not valid JSON: {reason(error)}; is it cut short?") from None
