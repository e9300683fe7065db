"""What a claim rests on: numbers with 95 % intervals, and whether each lies where the claim says.

The unit is the prompt (the document, of losses on text; the bandit, of bandits), pooled over seeds, each of which has
its own world, people and models. Such an interval says how well the prompts measure these trained models. It does not
say how another seed would train; that is what the seeds' own values are for. So a part is shown only if the pooled
interval lies inside the region that was expected, and every seed's own value does, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.stats.intervals import between, estimate

Array = NDArray[np.float64]
Region = tuple[float, float]  # an open interval
DRAWS = 1000
MOST_UNDEFINED = 0.05  # share of resamples


def above(bound: float = 0.0) -> Region:
    """Greater than the bound."""
    return (bound, math.inf)


def below(bound: float = 0.0) -> Region:
    """Less than the bound."""
    return (-math.inf, bound)


def within(margin: float) -> Region:
    """No further from 0 than the margin: the same, for all that matters here."""
    return (-margin, margin)


@dataclass(frozen=True)
class Part:
    """One number of a claim. `counts` is false of what is told beside it, and decides nothing."""

    name: str
    region: Region
    mean: float | None
    low: float | None
    high: float | None
    units: int
    by_seed: Mapping[int, float | None]
    counts: bool = True

    @property
    def shown(self) -> bool:
        """Whether the interval, and every seed's own value, lies inside the region."""
        if self.mean is None or self.low is None or self.high is None:
            return False
        least, most = self.region
        values = [self.low, self.high, *self.by_seed.values()]
        return all(value is not None and least < value < most for value in values)

    @property
    def otherwise(self) -> bool:
        """Whether the interval, and every seed's own value, lies outside the region, all on one side."""
        if self.mean is None or self.low is None or self.high is None:
            return False
        least, most = self.region
        values = [self.low, self.high, *(value for value in self.by_seed.values() if value is not None)]
        return max(values) < least or min(values) > most

    def as_json(self) -> dict[str, Any]:
        """The part as claims.json has it: an open end of the region is null."""
        least, most = (bound if math.isfinite(bound) else None for bound in self.region)
        return {
            "name": self.name, "above": least, "below": most, "mean": self.mean, "low": self.low, "high": self.high,
            "units": self.units, "by_seed": {str(s): v for s, v in self.by_seed.items()}, "counts": self.counts,
            "shown": self.shown, "otherwise": self.otherwise,
        }  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came out of a claim's experiment: its parts, and the points of its figure (`series`, `seed`, `x`, `y`)."""

    parts: Sequence[Part]
    points: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    @property
    def shown(self) -> bool:
        """Whether every part that counts is."""
        counting = [part.shown for part in self.parts if part.counts]
        return bool(counting) and all(counting)


@dataclass(frozen=True)
class Column:
    """One seed's observations: m values, what each is out of (1 if left out), and the unit that each belongs to."""

    units: Sequence[Hashable]
    values: Array
    out_of: Array | None = None

    @property
    def weights(self) -> Array:
        return np.ones(len(self.values)) if self.out_of is None else self.out_of


def average(
    name: str, columns: Mapping[int, Column], region: Region, counts: bool = True,
    scale: tuple[float, float] | None = None,
) -> Part:  # fmt: skip
    """A mean, or ratio of sums, over all seeds' units; a unit that several seeds have is one.

    Args:
        scale: the least and most that one observation can be, as `estimate` has it.
    """
    every = list(columns.values())
    values, weights = np.concatenate([c.values for c in every]), np.concatenate([c.weights for c in every])
    units = [unit for column in every for unit in column.units]
    by_seed = {s: float(c.values.sum() / c.weights.sum()) if c.weights.sum() else None for s, c in columns.items()}
    if not weights.sum():
        return Part(name, region, None, None, None, 0, by_seed, counts)
    rate = estimate(values, weights, prompts=units, scale=scale, draws=DRAWS)
    return Part(name, region, rate["mean"], rate["low"], rate["high"], int(rate["prompts"]), by_seed, counts)


Statistic = Callable[[Sequence[Array]], float]  # of the mean row of each table


def resampled(
    name: str, tables: Mapping[int, Sequence[Array]], statistic: Statistic, region: Region, counts: bool = True
) -> Part:
    """A statistic of means, averaged over seeds; its interval is a percentile bootstrap over units within each seed.

    Args:
        tables: by seed one or more tables (units, columns); the units of different tables are drawn by themselves.
        statistic: of the tables' mean rows; nan where it is not defined.

    A seed in which it is not defined is left out of the mean, and keeps the part from being shown; so does a statistic
    that is not defined in a twentieth of the resamples, which has no interval.
    """
    generator = np.random.default_rng(0)
    by_seed: dict[int, float | None] = {}
    drawn = []
    for seed, of in tables.items():
        own = statistic([table.mean(0) for table in of])
        by_seed[seed] = own if math.isfinite(own) else None
        if by_seed[seed] is not None:
            picks = [generator.integers(len(table), size=(DRAWS, len(table))) for table in of]
            means = [table[pick].mean(1) for table, pick in zip(of, picks, strict=True)]
            drawn.append([statistic([mean[i] for mean in means]) for i in range(DRAWS)])
    units = sum(min(map(len, of)) for of in tables.values())
    defined = [value for value in by_seed.values() if value is not None]
    if not defined:
        return Part(name, region, None, None, None, units, by_seed, counts)
    mean, values = sum(defined) / len(defined), np.array(drawn).mean(0)  # nan where some seed's is
    if np.isnan(values).mean() > MOST_UNDEFINED:
        return Part(name, region, mean, None, None, units, by_seed, counts)
    low, high = between(mean, values, units, units, None)
    return Part(name, region, mean, low, high, units, by_seed, counts)


def point(series: str, seed: int, x: float, y: float) -> dict[str, Any]:
    """A point of a claim's figure."""
    return {"series": series, "seed": seed, "x": float(x), "y": float(y)}
