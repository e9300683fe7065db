"""Candidates: prompts with completions that nobody has ranked yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from tutelage.data.datasets import one_line, read_asked, write_jsonl
from tutelage.data.records import Completion, Prompt
from tutelage.terminal import short

Candidates = tuple[Prompt, tuple[Completion, ...]]


@dataclass(frozen=True)
class Samples:
    """A prompt with its completions, and how many were sampled before equal ones were merged."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    sampled: int


def read_candidates(path: str | PathLike[str]) -> list[Candidates]:
    """Prompts with unranked completions, as `tutelage collect` writes them.

    Raises:
        DataError: if the file is missing or malformed.
        ValueError: if a prompt is empty, or has fewer than two distinct completions.
    """
    return [(prompt, completions) for prompt, completions, _ in _read(path, read_completions)]


def read_samples(path: str | PathLike[str]) -> list[Samples]:
    """The same, but any number of completions, and how many were sampled, where the row does not say as many as it has.

    Raises:
        DataError: if the file is missing or malformed.
        ValueError: if a prompt is empty, or fewer were sampled than there are.
    """
    return [Samples(*each) for each in _read(path, any_completions)]


def _read(
    path: str | PathLike[str], read: Callable[[Any], tuple[Completion, ...]]
) -> list[tuple[Prompt, tuple[Completion, ...], int]]:
    rows = []
    for number, (prompt, row) in enumerate(read_asked(path, "completions"), start=1):
        try:
            completions = read(row["completions"])
            sampled = len(completions) if row.get("sampled") is None else row["sampled"]
            if not isinstance(sampled, int) or isinstance(sampled, bool) or sampled < len(completions):
                raise ValueError(
                    f"sampled is {short(sampled)}; expected how many completions were sampled for the prompt, of which "
                    f"{len(completions)} are here, or no such field"
                )
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {one_line(error)}") from None
        rows.append((prompt, completions, sampled))
    return rows


def read_completions(given: Any) -> tuple[Completion, ...]:
    """The completions of a row that are to be ranked: a list of strings or of {text, policy, finish}.

    Raises:
        ValueError: if they are something else, or fewer than two distinct ones.
    """
    completions = any_completions(given)
    if (distinct := len({c.text for c in completions})) < 2:
        raise ValueError(f"a ranking needs two distinct completions, here are {distinct}")
    return completions


def any_completions(given: Any) -> tuple[Completion, ...]:
    """The completions of a row, however many.

    Raises:
        ValueError: if they are no list of strings or of {text, policy, finish}.
    """
    if not isinstance(given, list):
        raise ValueError(f"completions is {short(given)}; expected a list of strings or of {{text, policy, finish}}")
    return tuple(Completion(text=c) if isinstance(c, str) else Completion.model_validate(c) for c in given)


def write_candidates(
    path: Path, candidates: Iterable[tuple[Prompt, Sequence[Completion]]], sampled: Iterable[int] | None = None
) -> None:
    """Write what `read_candidates` reads; with how many completions of each prompt were sampled, before equal ones were
    merged, if that is known."""
    rows = []
    for prompt, written in candidates:
        row = prompt.model_dump(mode="json", exclude_none=True)
        row["prompt"] = row.pop("text")
        rows.append(row | {"completions": [c.model_dump(mode="json", exclude_none=True) for c in written]})
    if sampled is not None:
        rows = [row | {"sampled": number} for row, number in zip(rows, sampled, strict=True)]
    write_jsonl(path, rows)
