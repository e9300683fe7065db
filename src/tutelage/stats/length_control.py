"""The win rate that would be seen if both answers were equally long (Dubois et al. 2024, AlpacaEval 2)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from tutelage.stats.intervals import FEW, RARE, between
from tutelage.stats.logistic import fit_logistic, logistic, resampled

PRIOR_SD = 5.0
BLOCK = 2_000_000  # numbers of a table of draws by observations


def length_controlled(
    wins: ArrayLike, differences: ArrayLike, prompts: Sequence[Hashable], draws: int = 2000, seed: int = 0
) -> dict[str, float]:
    """σ(θ), where P(win_i) = σ(θ + β·tanh(Δ_i / s)) is fitted by logistic regression: the prediction at Δ = 0.

    Δ_i is the length of the model's answer less that of the baseline's, in characters, and s the standard deviation of
    Δ. AlpacaEval 2 has the same two terms and a third, the difficulty of the prompt times a coefficient; difficulties
    come from many models' answers to its own prompts, and other prompts have none, so it is left out here. θ and β have
    a normal prior of standard deviation 5, which keeps separable data finite and has next to no weight otherwise. With
    β = 0, σ(θ) is the plain win rate.

    It is not meaningful where the answers of one model are nearly always the longer ones: Δ = 0 then lies outside what
    was seen, and `shorter` or `longer` says so. It also takes length for a cause alone: a model that is better because
    it says more loses what it earned.

    Args:
        wins: (n,) the share that the model won, ties half.
        differences: (n,) Δ.
        prompts: (n,) the prompt of each comparison, the unit of the interval.

    Returns:
        `mean`, `low`, `high`, `n`, `prompts`; `effect` (β: by how many nats of log-odds a much longer answer wins more
        often); `longer` and `shorter`, the shares of comparisons in which the model's answer is that. Empty with fewer
        than 30 prompts, or where fewer than five comparisons have an answer that is longer, or one that is shorter.
    """
    y, delta = np.asarray(wins, dtype=float), np.asarray(differences, dtype=float)
    numbers: dict[Hashable, int] = {}
    unit = np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts], dtype=int)
    longer, shorter = int((delta > 0).sum()), int((delta < 0).sum())
    if len(numbers) < FEW or min(longer, shorter) < RARE:
        return {}
    x = np.column_stack([np.ones_like(delta), np.tanh(delta / delta.std())])
    counts = np.vstack([np.ones(len(numbers)), resampled(len(numbers), draws, seed)])
    size = max(1, BLOCK // len(y))
    blocks = [counts[start : start + size][:, unit] for start in range(0, len(counts), size)]
    theta = np.vstack([fit_logistic(x, weights * y, weights, PRIOR_SD) for weights in blocks])
    rates = logistic(theta[:, 0])
    low, high = between(float(rates[0]), rates[1:], len(numbers), len(numbers), (0.0, 1.0))
    return {
        "mean": float(rates[0]), "low": low, "high": high, "n": len(y), "prompts": len(numbers),
        "effect": float(theta[0, 1]), "longer": longer / len(y), "shorter": shorter / len(y),
    }  # fmt: skip
