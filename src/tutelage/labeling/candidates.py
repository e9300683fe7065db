"""Candidates: prompts with completions that nobody has ranked yet, as files and as tasks of a workspace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

from tutelage.datasets import read_prompts, read_rows, write_jsonl
from tutelage.labeling import queue
from tutelage.labeling.database import Workspace
from tutelage.records import Completion, Prompt
from tutelage.runs import fingerprint

Candidates = tuple[Prompt, tuple[Completion, ...]]


def read_candidates(path: str | PathLike[str]) -> list[Candidates]:
    """Prompts with unranked completions, as `tutelage collect` writes them.

    Raises:
        DataError: if the file is missing or malformed.
        ValueError: if a prompt is empty.
    """
    rows = read_rows(path, "prompt", "completions")
    prompts = read_prompts(path).records
    if len(prompts) != len(rows):
        raise ValueError(f"{path}: {len(rows) - len(prompts)} rows have an empty prompt; leave them out")
    return [
        (p, tuple(Completion(text=c) if isinstance(c, str) else Completion(**c) for c in row["completions"]))
        for p, row in zip(prompts, rows, strict=True)
    ]


def write_candidates(path: Path, candidates: Iterable[tuple[Prompt, Sequence[Completion]]]) -> None:
    """Write what `read_candidates` reads."""
    rows = []
    for prompt, written in candidates:
        row = prompt.model_dump(mode="json", exclude_none=True)
        row["prompt"] = row.pop("text")
        rows.append(row | {"completions": [c.model_dump(mode="json", exclude_none=True) for c in written]})
    write_jsonl(path, rows)


def queue_candidates(workspace: Workspace, path: Path, rate: bool, overlap: float, labelers: int = 1) -> int:
    """Queue a candidates file as ranking tasks; a file of the same content is queued once. Returns how many tasks."""
    candidates = read_candidates(path)
    with workspace.write() as connection:
        if queue.queued_already(connection, fingerprint(path), "ranking"):
            return 0
        return queue.queue_rankings(connection, candidates, rate=rate, overlap=overlap, labelers=labelers)
