"""What a reward is: completions in, a number or None for each out; and how several become one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tutelage.data.records import Prompt
from tutelage.objectives.reward import combined_scores
from tutelage.settings.rewards import Combination
from tutelage.terminal import short


@dataclass(frozen=True)
class Answers:
    """n completions to be scored: their prompts, their texts, whether each ended by itself, and the ids of prompt and
    completion as they were sampled."""

    prompts: Sequence[Prompt]
    texts: Sequence[str]
    ended: Sequence[bool]
    sequences: Sequence[list[int]]


def columns_of(prompt: Prompt) -> dict[str, Any]:
    """A prompt's further columns by name."""
    carried = {name: getattr(prompt, name) for name in ("id", "user", "split", "use_case")}
    return {**prompt.meta, **{name: value for name, value in carried.items() if value is not None}}


class Reward(Protocol):
    """Anything that scores completions."""

    def __call__(self, answers: Answers) -> list[float | None]:
        """One score per completion, in their order; None where the reward says nothing of it.

        Raises:
            ValueError: naming the reward, if it fails.
        """
        ...


@dataclass(frozen=True)
class Scores:
    """n completions' scores by m rewards: `total` (n,), what they come to; `each` (m, n) by reward, where `counts` (m,
    n) is true; `names` of the m rewards."""

    total: torch.Tensor
    each: torch.Tensor
    counts: torch.Tensor
    names: Sequence[str]

    @property
    def known(self) -> torch.Tensor:
        """(n,) whether some reward says something of a completion."""
        return self.counts.any(0)

    def take(self, rows: torch.Tensor) -> Scores:
        """The same of the completions that are true in rows (n,)."""
        return Scores(self.total[rows], self.each[:, rows], self.counts[:, rows], self.names)

    def metrics(self) -> dict[str, float]:
        """The mean of each reward where it counts, if there are several, and the share of completions without any."""
        means = {} if len(self.names) == 1 else {
            f"reward/{name}": float(scores[counts].mean())
            for name, scores, counts in zip(self.names, self.each, self.counts, strict=True)
            if counts.any()
        }  # fmt: skip
        return means | ({} if self.known.all() else {"reward/left_out": float((~self.known).float().mean())})


def joined_scores(parts: Sequence[Scores]) -> Scores:
    """Scores of several rounds as one."""
    return Scores(
        torch.cat([p.total for p in parts]), torch.cat([p.each for p in parts], 1),
        torch.cat([p.counts for p in parts], 1), parts[0].names,
    )  # fmt: skip


def score_all(rewards: Mapping[str, tuple[float, Reward]], combination: Combination, answers: Answers) -> Scores:
    """What rewards, each under its name with its weight, say of completions.

    Raises:
        ValueError: naming the reward, if it fails or says something that is no score.
    """
    rows = [(weight, reward(answers)) for weight, reward in rewards.values()]
    counts = torch.tensor([[score is not None for score in scores] for _, scores in rows])
    each = torch.tensor([[weight * score if score is not None else 0.0 for score in scores] for weight, scores in rows])
    total = combined_scores(each, counts, combination.name, combination.pessimism)
    if not (each.isfinite().all() and total.isfinite().all()):
        largest = {name: float(scores.abs().max()) for name, scores in zip(rewards, each, strict=True)}
        raise ValueError(
            f"rewards: a score is too large to be added up in fp32; the largest by reward, times its weight, are "
            f"{short(largest)}; lower the weight, or scale the scores"
        )
    return Scores(total, each, counts, list(rewards))


def checked_scores(given: Any, number: int, reward: str) -> list[float | None]:
    """What somebody else's code returned, as scores.

    Raises:
        ValueError: naming the reward, unless it is a finite number or None for each of so many completions.
    """
    listed = hasattr(given, "__len__") and hasattr(given, "__getitem__") and getattr(given, "shape", None) != ()
    if isinstance(given, str | bytes | Mapping) or not listed:
        raise ValueError(f"{reward} returned {short(given)}; expected a list of {number} numbers, one per completion")
    if len(given) != number:
        raise ValueError(f"{reward} returned {len(given)} scores for {number} completions; return one for each")
    return [_score(value, place, reward) for place, value in enumerate(given)]


def _score(value: Any, place: int, reward: str) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        score = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last of a tensor of several
        raise ValueError(
            f"{reward} returned {short(value)} for completion {place}; expected a number or None"
        ) from None
    if not math.isfinite(score):
        raise ValueError(f"{reward} returned {score} for completion {place}; return None where there is no score")
    return score
