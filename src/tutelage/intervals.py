"""Bootstrap intervals: every rate that is printed carries one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap(
    numerators: Sequence[float], denominators: Sequence[float] | None = None, draws: int = 2000, seed: int = 0
) -> dict[str, float]:
    """A mean, or a ratio of sums, over units (prompts, rankings) with its 95 % percentile interval.

    Args:
        numerators: one number per unit.
        denominators: what each unit's number is out of; one each if left out, which gives the mean.
        draws: resamples of the units with replacement.

    Returns:
        `mean`, `low`, `high`, and `n`, the sum of the denominators.
    """
    a = np.asarray(numerators, dtype=float)
    b = np.ones_like(a) if denominators is None else np.asarray(denominators, dtype=float)
    picks = np.random.default_rng(seed).integers(len(a), size=(draws, len(a)))
    low, high = np.quantile(a[picks].sum(1) / np.maximum(b[picks].sum(1), 1e-9), [0.025, 0.975])
    return {"mean": float(a.sum() / b.sum()), "low": float(low), "high": float(high), "n": float(b.sum())}
