"""95 % intervals: every rate that is printed carries one, and the prompt is the unit of each.

What labelers, rankings and pairs say of one prompt hangs together, so all of it is summed before anything is resampled;
resampling rankings, or pairs, would take the same evidence for new and give intervals that are too narrow. The rule:

- a percentile bootstrap over prompts, if there are at least `FEW` of them and at least `RARE` of them speak against
  either end of the scale, its percentiles a little further out than 2.5 % and 97.5 % (`tail`);
- Wilson's interval (1927) otherwise, with the effective number of prompts as its n; also where all resamples are alike.
  So no interval is without width, such as [1, 1].

Labelers are not resampled inside the resampled prompts. What they add to the variance is in the prompts' values
already; to resample them as well counts it twice, unless prompts differ much more than labelers do. 2,000 simulated
experiments with three labelers a prompt, whose chances differ much (ICC 0.5) or little (0.09) between prompts, the true
rate being 0.65; how often a 95 % interval held it:

    COVERAGE-TABLE

The interval answers: what would these labelers have said of other prompts? What other labelers would have said, who
differ in taste from these, it does not hold; only a larger pool answers that.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEW, RARE = 30, 5
Z = 1.959964  # of a normal distribution's middle 95 %


def estimate(
    numerators: ArrayLike,
    denominators: ArrayLike | None = None,
    *,
    prompts: Sequence[Hashable] | None = None,
    scale: tuple[float, float] | None = (0.0, 1.0),
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """A mean, or a ratio of sums, with its 95 % interval over prompts.

    Args:
        numerators: (m,) a number per observation.
        denominators: (m,) what each number is out of; one each if left out, which gives the mean.
        prompts: (m,) the prompt of each observation; each is of a prompt of its own if left out.
        scale: the least and the most that an observation's ratio can be: (-1, 1) for a difference of two rates; None if
            it can be anything, which gives the bootstrap's interval in any case.
        draws: resamples of the prompts with replacement.

    Returns:
        `mean`, `low`, `high`, `n` (the sum of the denominators) and `prompts` (how many there are).

    Raises:
        ValueError: if there is no observation.
    """
    a = np.asarray(numerators, dtype=float)
    b = np.ones_like(a) if denominators is None else np.asarray(denominators, dtype=float)
    if prompts is not None:
        numbers: dict[Hashable, int] = {}
        unit = [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]
        a, b = np.bincount(unit, a), np.bincount(unit, b)
    if not b.sum():
        raise ValueError("nothing was observed, so there is no mean and no interval")
    mean, n = float(a.sum() / b.sum()), float(b.sum() ** 2 / (b**2).sum())
    value = a / np.maximum(b, 1e-9)
    if scale is not None and min((value > scale[0]).sum(), (value < scale[1]).sum()) < RARE:
        low, high = wilson(mean, n, scale)
    else:
        picks = np.random.default_rng(seed).integers(len(a), size=(draws, len(a)))
        low, high = between(mean, a[picks].sum(1) / np.maximum(b[picks].sum(1), 1e-9), len(a), n, scale)
    return {"mean": mean, "low": low, "high": high, "n": whole(b.sum()), "prompts": len(a)}


def between(
    mean: float, drawn: NDArray[np.float64], prompts: int, n: float, scale: tuple[float, float] | None = (-1.0, 1.0)
) -> tuple[float, float]:
    """The 95 % interval of any statistic from its values in resamples of prompts; n is their effective number."""
    low, high = np.nanquantile(drawn, [tail(prompts), 1 - tail(prompts)])
    if scale is not None and (prompts < FEW or low == high):
        return wilson(mean, n, scale)
    return float(low), float(high)


def tail(prompts: int) -> float:
    """The percentile that a 95 % interval begins at: Φ(−√(n/(n − 1))·t), t being Student's 97.5 % for n − 1 degrees.

    A resample varies by √((n − 1)/n) too little, and the normal distribution's tails are too light for so few prompts
    (Hesterberg 2015, What teachers should know about the bootstrap, section 4: the expanded percentile interval). 1.9 %
    for 30 prompts, 2.5 % for many. Below `FEW` it is 2.5 %, as t is taken from its expansion in 1/(n − 1).
    """
    if prompts < FEW:
        return 0.025
    degrees = prompts - 1
    t = Z + (Z**3 + Z) / (4 * degrees) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * degrees**2)
    return 0.5 * (1 - math.erf(t * math.sqrt(prompts / degrees) / math.sqrt(2)))


def standard_error(values: ArrayLike, prompts: Sequence[Hashable]) -> float | None:
    """Standard error of the mean of (m,) values, those of a prompt taken together; None if there is one prompt only."""
    value = np.asarray(values, dtype=float)
    sums: dict[Hashable, float] = {}
    for prompt, rest in zip(prompts, value - value.mean(), strict=True):
        sums[prompt] = sums.get(prompt, 0.0) + float(rest)
    n = len(sums)
    return float((n / (n - 1) * sum(s**2 for s in sums.values())) ** 0.5 / len(value)) if n > 1 else None


def wilson(mean: float, n: float, scale: tuple[float, float] = (0.0, 1.0)) -> tuple[float, float]:
    """Wilson's score interval of a mean of n independent values on a scale.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n) for a share p (Wilson 1927, equation 4.2). No distribution on a
    scale varies more than one that takes its two ends alone, so for all others the interval is on the safe side.
    """
    least, most = scale
    p = min(1.0, max(0.0, (mean - least) / (most - least)))
    middle, reach = p + Z**2 / (2 * n), Z * (p * (1 - p) / n + Z**2 / (4 * n**2)) ** 0.5
    low, high = (middle - reach) / (1 + Z**2 / n), (middle + reach) / (1 + Z**2 / n)
    low, high = max(0.0, min(p, low)), min(1.0, max(p, high))  # rounding may put an end on the wrong side
    return least + (most - least) * low, least + (most - least) * high


def whole(count: float) -> int | float:
    """A count as an integer, where it is one."""
    return int(count) if count == int(count) else float(count)
