"""Candidates: prompts with completions that nobody has ranked yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from tutelage.data.datasets import one_line, read_asked, write_jsonl
from tutelage.data.records import Completion, Prompt

Candidates = tuple[Prompt, tuple[Completion, ...]]


def read_candidates(path: str | PathLike[str]) -> list[Candidates]:
    """Prompts with unranked completions, as `tutelage collect` writes them.

    Raises:
        DataError: if the file is missing or malformed.
        ValueError: if a prompt is empty, or has fewer than two distinct completions.
    """
    read = []
    for number, (prompt, row) in enumerate(read_asked(path, "completions"), start=1):
        try:
            read.append((prompt, read_completions(row["completions"])))
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {one_line(error)}") from None
    return read


def read_completions(given: Any) -> tuple[Completion, ...]:
    """The completions of a row that are to be ranked: a list of strings or of {text, policy, finish}.

    Raises:
        ValueError: if they are something else, or fewer than two distinct ones.
    """
    if not isinstance(given, list):
        raise ValueError(f"completions is {given!r}; expected a list of strings or of {{text, policy, finish}}")
    completions = tuple(Completion(text=c) if isinstance(c, str) else Completion.model_validate(c) for c in given)
    if (distinct := len({c.text for c in completions})) < 2:
        raise ValueError(f"a ranking needs two distinct completions, here are {distinct}")
    return completions


def write_candidates(path: Path, candidates: Iterable[tuple[Prompt, Sequence[Completion]]]) -> None:
    """Write what `read_candidates` reads."""
    rows = []
    for prompt, written in candidates:
        row = prompt.model_dump(mode="json", exclude_none=True)
        row["prompt"] = row.pop("text")
        rows.append(row | {"completions": [c.model_dump(mode="json", exclude_none=True) for c in written]})
    write_jsonl(path, rows)
