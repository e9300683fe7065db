"""How well scores tell two kinds apart: the area under the ROC curve."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.stats.intervals import between


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]


def _area(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """(rank sum of the positives − m(m + 1)/2) / (m · n) of m positives and n negatives; NaN without both."""
    m, n = int(positive.sum()), int((~positive).sum())
    return float((_ranks(scores)[positive].sum() - m * (m + 1) / 2) / (m * n)) if m and n else float("nan")


def roc_auc(
    scores: ArrayLike,
    positive: ArrayLike,
    *,
    prompts: Sequence[Hashable] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """How often a positive scores higher than a negative, ties half (Mann and Whitney 1947), with its 95 % interval.

    Args:
        scores: (n,) higher for what is likelier positive.
        positive: (n,) true or false.
        prompts: (n,) what each hangs together with, as the document that it is from; by itself if left out.
        draws: resamples of the prompts with replacement.

    Returns:
        `mean` (the area), `low`, `high`, `n`, `prompts`, and how many `positive` there are.

    Raises:
        ValueError: if all are positive, or none is.
    """
    values, kinds = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    if kinds.all() or not kinds.any():
        raise ValueError(
            f"all {len(kinds)} texts have the same label, so nothing tells them apart; give texts of both kinds"
        )
    numbers: dict[Hashable, int] = {}
    unit = np.array([numbers.setdefault(p, len(numbers)) for p in (prompts or range(len(values)))])
    rows = np.split(np.argsort(unit, kind="stable"), np.cumsum(np.bincount(unit))[:-1])
    generator, drawn = np.random.default_rng(seed), []
    for _ in range(draws):
        picked = np.concatenate([rows[i] for i in generator.integers(len(rows), size=len(rows))])
        drawn.append(_area(values[picked], kinds[picked]))
    area, effective = _area(values, kinds), float(min(kinds.sum(), (~kinds).sum()))
    low, high = between(area, np.array(drawn), len(rows), effective, (0.0, 1.0))
    return {
        "mean": area, "low": low, "high": high, "n": len(values), "prompts": len(rows), "positive": int(kinds.sum()),
    }  # fmt: skip
