"""What the claims' run folders hold, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data.datasets import read_rows
from tutelage.lab.claims.evidence import Array, Column


@dataclass(frozen=True)
class Marks:
    """A reward model on held-out rankings, one row each; all reward models of a seed have the same rows in order."""

    rows: list[dict[str, Any]]

    def of(self, name: str) -> Marks:
        """Those of one set."""
        return Marks([row for row in self.rows if row["set"] == name])

    def column(self, key: str) -> Array:
        """`loss` (nats, summed over pairs), `right` (pairs in order) or `pairs`, by ranking."""
        return np.array([row[key] for row in self.rows], dtype=float)

    @property
    def prompts(self) -> list[str]:
        return [row["prompt"] for row in self.rows]

    @property
    def labelers(self) -> list[str]:
        return [row["labeler"] for row in self.rows]

    def less(self, other: Marks, key: str) -> Column:
        """By how much `key` per pair is more than the other's, on the same rankings."""
        return Column(self.prompts, self.column(key) - other.column(key), self.column("pairs"))

    def rate(self, key: str) -> float:
        """`key` per pair."""
        return float(self.column(key).sum() / self.column("pairs").sum())


def read_marks(seed: Path, reward_model: str, name: str) -> Marks:
    """How a reward model of a seed marks the held-out rankings of one set."""
    return Marks(read_rows(seed / f"marks_{reward_model}" / "marks.jsonl", "set")).of(name)


@dataclass(frozen=True)
class Gauge:
    """A policy measured on prompts and documents; all policies of a seed have the same in order."""

    answers: list[dict[str, Any]]
    documents: list[dict[str, Any]]

    def column(self, key: str) -> Array:
        """`gold`, `score` or `kl`, by prompt."""
        return np.array([row[key] for row in self.answers], dtype=float)

    @property
    def prompts(self) -> list[str]:
        return [row["prompt"] for row in self.answers]

    @cached_property
    def nats(self) -> Array:
        """Summed loss of each document."""
        return np.array([row["nats"] for row in self.documents], dtype=float)

    @cached_property
    def tokens(self) -> Array:
        """Tokens of each document that the loss is over."""
        return np.array([row["tokens"] for row in self.documents], dtype=float)

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.nats.sum() / self.tokens.sum())

    def mean(self, key: str) -> float:
        """The mean of `gold`, `score` or `kl` over prompts."""
        return float(self.column(key).mean())


def read_gauge(seed: Path, policy: str) -> Gauge:
    """The measurements of a policy of a seed."""
    folder = seed / f"gauge_{policy}"
    answers, documents = (folder / name for name in ("answers.jsonl", "documents.jsonl"))
    return Gauge(*(read_rows(p) if p.stat().st_size else [] for p in (answers, documents)))


@dataclass(frozen=True)
class Samples:
    """Many samples of each prompt: (prompts, n) gold scores, and scores by reward model."""

    gold: Array
    scores: dict[str, Array]


def read_samples(seed: Path) -> Samples:
    """The samples of a seed's SFT policy."""
    rows = read_rows(seed / "samples" / "samples.jsonl", "gold", "scores")
    names = rows[0]["scores"]
    return Samples(
        np.array([row["gold"] for row in rows]), {n: np.array([row["scores"][n] for row in rows]) for n in names}
    )
