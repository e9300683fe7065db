"""The nouns of the project, validated: what people write and rank, what a sampler is asked and answers.

Nothing here imports torch. A text is either a plain string (used as it is) or a list of chat messages (put through the
tokenizer's template). Files of these records are read and written by `datasets.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from tutelage.terminal import short

if TYPE_CHECKING:
    Json = Any  # whoever reads it knows what it is
else:
    from pydantic import JsonValue as Json

NonEmpty = Annotated[str, StringConstraints(min_length=1)]
Arm = Literal["training", "heldout"]
Split = Literal["train", "valid", "test"]
LARGEST_RANK = 10**6


class Record(BaseModel):
    """A frozen, validated row; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a conversation."""

    role: NonEmpty
    content: str


Text = NonEmpty | Annotated[tuple[Message, ...], Field(min_length=1)]


class Labeler(Record):
    """A person (or a simulated one) who writes, ranks or rates. Held-out labelers never produce training data."""

    id: NonEmpty
    arm: Arm = "training"


class Prompt(Record):
    """What a user asks. `meta` carries whatever came with it (use case, constraint, passage); no stage reads it."""

    id: NonEmpty
    text: Text
    user: str | None = None
    split: Split | None = None
    use_case: str | None = None
    meta: dict[str, Json] = Field(default_factory=dict)

    @property
    def identity(self) -> Text:
        """Which prompt this is: rows with the same text ask the same, whatever their ids, and others do not."""
        return self.text


class Completion(Record):
    """One answer: its text, the policy that wrote it, and why it ended (`stop`: end token, `length`: cut off)."""

    text: str
    policy: str | None = None
    finish: Literal["stop", "length"] | None = None


def by_text(texts: Iterable[str]) -> dict[str, list[int]]:
    """At which places each text stands: completions of equal texts are one answer, whoever wrote them."""
    places: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        places.setdefault(text, []).append(i)
    return places


class Demonstration(Record):
    """A prompt with the answer a labeler wrote for it (paper, section 3.2)."""

    prompt: Prompt
    completion: NonEmpty
    labeler: str | None = None


class Comparison(Record):
    """A chosen/rejected pair derived from a Ranking."""

    prompt: Prompt
    chosen: str
    rejected: str
    labeler: str | None = None


class Ranking(Record):
    """One labeler's order of K completions; 1 is best and equal ranks are ties (paper, section 3.5).

    Never aggregated over labelers: each ranking is one training element. `order` holds the places of the completions,
    from 0, in the order in which they were shown, where that is known.

    Raises:
        ValueError: if ranks and completions differ in number, a rank is below 1 or absurd, or the order is none.
    """

    prompt: Prompt
    completions: Annotated[tuple[Completion, ...], Field(min_length=2)]
    ranks: tuple[int, ...]
    labeler: str | None = None
    order: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _ranks_match(self) -> Ranking:
        if len(self.ranks) != len(self.completions):
            raise ValueError(f"ranks has {len(self.ranks)} entries for {len(self.completions)} completions")
        if min(self.ranks) < 1:
            raise ValueError(f"ranks start at 1 (best), found {min(self.ranks)}")
        if max(self.ranks) > LARGEST_RANK:
            raise ValueError(f"ranks end at {LARGEST_RANK:,}, found {short(max(self.ranks))}; number them anew")
        if self.order is not None and sorted(self.order) != list(range(len(self.completions))):
            raise ValueError(f"order is {short(self.order)}; expected the places 0 to {len(self.completions) - 1}")
        return self

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Indices (winner, loser) of all pairs that are not tied."""
        ordered = (
            (i, j) if self.ranks[i] < self.ranks[j] else (j, i) for i, j in combinations(range(len(self.ranks)), 2)
        )
        return [(i, j) for i, j in ordered if self.ranks[i] != self.ranks[j]]

    @property
    def best_ranks(self) -> dict[str, int]:
        """The rank of each distinct text: equal texts are one answer, under their best rank."""
        equals = by_text(c.text for c in self.completions)
        return {text: min(self.ranks[i] for i in equal) for text, equal in equals.items()}

    def comparisons(self) -> list[Comparison]:
        """The ranking as chosen/rejected pairs, ties dropped."""
        texts = [c.text for c in self.completions]
        return [
            Comparison(prompt=self.prompt, chosen=texts[i], rejected=texts[j], labeler=self.labeler)
            for i, j in self.pairs
        ]


def newest(rankings: Iterable[Ranking]) -> list[Ranking]:
    """The rankings that count: of a labeler's several of the same completions of a prompt, the last.

    Rankings without a labeler are each by somebody else.
    """
    kept: dict[object, Ranking] = {}
    for number, r in enumerate(rankings):
        texts = frozenset(c.text for c in r.completions)
        key = number if r.labeler is None else (r.labeler, r.prompt.identity, texts)
        kept.pop(key, None)
        kept[key] = r
    return list(kept.values())


class Rating(Record):
    """One labeler's judgement of one completion: overall quality 1–7 and yes/no flags (paper, table 3)."""

    prompt: Prompt
    completion: Completion
    quality: Annotated[int, Field(ge=1, le=7)]
    flags: dict[str, bool] = Field(default_factory=dict)
    labeler: str | None = None


@dataclass(frozen=True)
class Request:
    """One completion to sample. The seed belongs to the request, so its tokens do not depend on its neighbours.

    `temperature` 0 means greedy; `top_k` 0 and `top_p` 1 mean no filter.
    """

    prompt_ids: tuple[int, ...]
    seed: int
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Sample:
    """What a sampler answers: ids with the stop token included, their log-probabilities (nats) and why it ended.

    `logprobs` are of the distribution at the request's temperature before top-k/top-p; at temperature 0, of the
    model's own distribution.
    """

    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]
