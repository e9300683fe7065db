"""The miniature world's readers as judges of the finished models' answers: held-out labelers, and the gold preference.

A vote is a function of seed, prompt and answers, so neither order nor a resume changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from tutelage.data.records import Prompt
from tutelage.lab.world import gold, kinds, people
from tutelage.settings.judging import WorldJudge

Pair = tuple[Prompt, str, str]


class Labelers:
    """Simulated held-out labelers, the same people as in ranking; some of them vote on each pair."""

    about = "simulated labelers who took no part in training"

    def __init__(self, settings: WorldJudge, seed: int) -> None:
        self._pool = people.hire("heldout", settings.heldout_labelers, 0)
        self._votes, self._seed = settings.votes, seed

    def compare(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """Each voter's share of the first answer, by labeler."""
        out = []
        for prompt, first, second in pairs:
            require_known(prompt)
            rng = Random(f"judge/{self._seed}/{gold.instruction(prompt)}/{first}/{second}")
            voters = rng.sample(self._pool, self._votes)
            out.append({v.labeler.id: v.prefers(prompt, first, second, rng) for v in voters})
        return out


class Gold:
    """The gold preference, without noise."""

    about = "the noise-free preference"

    def compare(self, pairs: Sequence[Pair]) -> list[float]:
        """1, 0 or 0.5 by the value of the two answers."""
        out = []
        for prompt, first, second in pairs:
            require_known(prompt)
            mine, theirs = (gold.value(gold.parts(prompt, text)) for text in (first, second))
            out.append(0.5 if mine == theirs else float(mine > theirs))
        return out

    def rate(self, prompt: Prompt, text: str) -> dict[str, Any]:
        """Faults of an answer, and the parts of its value."""
        task, parts = gold.task_of(prompt), gold.parts(prompt, text)
        return {
            "hallucination": float(parts.truthful < 1) if kinds.KINDS[task.kind].closed_domain else None,
            "constraint": parts.constraint if task.constraint else None,
            "toxicity": 1 - parts.harmless,
            "parts": vars(parts),
        }


def require_known(prompt: Prompt) -> None:
    """Raise for a prompt that is none of this world's."""
    try:
        gold.task_of(prompt)
    except ValueError as error:
        raise ValueError(
            f"{error}; the world's readers know no others: name judges of your own, as --judges mine=module:function"
        ) from None


def open_world(settings: WorldJudge, seed: int) -> Labelers | Gold:
    """The reader that the settings name."""
    return Gold() if settings.reader == "gold" else Labelers(settings, seed)
