"""What a judge is: two answers to a prompt in, the share that the first wins out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from tutelage.data.records import Prompt
from tutelage.terminal import short

Pair = tuple[Prompt, str, str]  # a prompt, and two answers to it that differ
Share = float | dict[str, float] | None  # of the first answer; by voter, if it is known who voted; None: no verdict


class Judge(Protocol):
    """Anybody who compares answers. `about` says who it is, for the report."""

    about: str

    def compare(self, pairs: Sequence[Pair]) -> Sequence[Share]:
        """For each pair the share that the first answer wins: 1, 0, or 0.5 for a tie; None if there is no verdict.

        Raises:
            ValueError: naming the judge, if no later pair could have a verdict either.
        """
        ...


@runtime_checkable
class Rater(Protocol):
    """A judge that can also say something of one answer alone, as a `Verdict` has it (`hallucination`, `parts`, …)."""

    def rate(self, prompt: Prompt, text: str) -> dict[str, Any]:
        """What it says of an answer."""
        ...


def checked_shares(returned: Any, number: int, judge: str) -> list[Share]:
    """What somebody else's code returned, as shares.

    Raises:
        ValueError: naming the judge, unless it is a share, shares by voter or None for each of so many pairs.
    """
    listed = (
        hasattr(returned, "__len__") and hasattr(returned, "__getitem__") and getattr(returned, "shape", None) != ()
    )
    if isinstance(returned, str | bytes | Mapping) or not listed:
        raise ValueError(f"{judge} returned {short(returned)}; expected a list of {number} shares, one per prompt")
    if len(returned) != number:
        raise ValueError(f"{judge} returned {len(returned)} shares for {number} prompts; return one for each")
    return [
        {str(voter): _share(value, place, judge) for voter, value in share.items()} or None
        if isinstance(share, Mapping)
        else None if share is None else _share(share, place, judge)
        for place, share in enumerate(returned)
    ]  # fmt: skip


def _share(value: Any, place: int, judge: str) -> float:
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        share = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last of a tensor of several
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(
            f"{judge} returned {short(value)} for prompt {place}; expected the share that the first answer wins, from "
            "0 to 1, or None"
        )
    return share
