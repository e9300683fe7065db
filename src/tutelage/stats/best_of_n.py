"""Best of n samples: what choosing by one score brings in another, and how far it moves from a single sample."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def best_of_n(proxy: ArrayLike, gold: ArrayLike, n: int) -> NDArray[np.float64]:
    """Mean gold score of the best of n by proxy, over all ways to draw n of a prompt's N samples.

    With S sorted by proxy: Σ_{i=n}^{N} C(i−1, n−1) / C(N, n) · gold(S_i), which is unbiased (Nakano et al. 2021).
    Samples of equal proxy score are equally likely to be chosen.

    Args:
        proxy: (prompts, N) the scores that are chosen by.
        gold: (prompts, N) the scores of what is chosen; the proxy itself gives the mean of the maximum.
        n: 1 to N.

    Returns:
        (prompts,)

    Raises:
        ValueError: if n is not from 1 to N.
    """
    by, of = np.atleast_2d(np.asarray(proxy, dtype=float)), np.atleast_2d(np.asarray(gold, dtype=float))
    samples = by.shape[1]
    if not 1 <= n <= samples:
        raise ValueError(f"the best of n={n} cannot be taken of {samples} samples")
    weights = np.zeros(samples)
    weights[-1] = n / samples
    for i in range(samples - 1, n - 1, -1):  # C(i−1, n−1) / C(i, n−1) = (i − n + 1) / i
        weights[i - 1] = weights[i] * (i - n + 1) / i
    best = np.empty(len(by))
    for row, (scores, values) in enumerate(zip(by, of, strict=True)):
        order = np.argsort(scores, kind="stable")
        _, equal = np.unique(scores[order], return_inverse=True)
        means = np.bincount(equal, values[order]) / np.bincount(equal)
        best[row] = weights @ means[equal]
    return best


def kl_bound(n: int) -> float:
    """The most that the best of n is from one sample, as KL in nats: log n − (n − 1)/n; exact without equal scores."""
    return math.log(n) - (n - 1) / n


def kl_with_ties(proxy: ArrayLike, n: int) -> NDArray[np.float64]:
    """`kl_bound` of each prompt, lowered by the equal scores among its N samples: nobody chooses between those.

    A group of m > 1 equal scores with a share F of the samples at or below it is chosen with probability
    Δ = F^n − (F − m/N)^n in place of m/N and adds Δ log(Δ N/m). A score that no other sample has adds the integral of
    n u^(n−1) log(n u^(n−1)) over its 1/N, as a continuous score would. Without equal scores this is `kl_bound`.

    Args:
        proxy: (prompts, N) the scores that are chosen by.
        n: 1 or more.

    Returns:
        (prompts,) nats.
    """
    by = np.atleast_2d(np.asarray(proxy, dtype=float))
    samples = by.shape[1]

    def integral(u: NDArray[np.float64]) -> NDArray[np.float64]:
        return u**n * (math.log(n) + (n - 1) * np.log(np.maximum(u, 1e-300)) - (n - 1) / n)

    nats = np.empty(len(by))
    for row, scores in enumerate(by):
        _, counts = np.unique(scores, return_counts=True)
        above = np.cumsum(counts) / samples
        below = above - counts / samples
        below[0] = 0.0  # not what rounding leaves
        chosen = above**n - below**n
        ratio = np.maximum(chosen * samples / counts, 1e-300)
        nats[row] = np.where(counts > 1, chosen * np.log(ratio), integral(above) - integral(below)).sum()
    return nats
