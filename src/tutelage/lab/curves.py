"""Curves of over-optimisation out of scores: of the best of n, and of policies; their fits, the frontier, the best run.

Every score here is a gain: that of a choice or a policy less the initial policy's mean on the same prompt. A row is a
point, a column a prompt; NaN is a score that nobody gave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.lab.policies import Point
from tutelage.stats.best_of_n import best_of_n, kl_bound, kl_with_ties
from tutelage.stats.intervals import estimate
from tutelage.stats.overoptimization import Form, best_choice, fit

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Bootstrap:
    """How intervals over prompts are drawn, and who is told where there can be none."""

    draws: int
    seed: int
    warn: Callable[[str], None]

    def mean(self, gains: Array) -> dict[str, float] | None:
        """The mean of (prompts,) with its 95 % interval; None if nobody gave a score."""
        known = gains[np.isfinite(gains)]
        return estimate(known, scale=None, draws=self.draws, seed=self.seed) if len(known) else None

    def fit(self, form: Form, kl: Array, gold: Array, curve: str) -> dict[str, Any] | None:
        """The form's fit to the points that have a gold score, over the prompts that all of them have one for."""
        scored = np.isfinite(gold).any(1)
        common = np.isfinite(gold[scored]).all(0)
        nats = kl[scored] if kl.ndim == 1 else kl[scored][:, common]
        try:
            return fit(form, nats, gold[scored][:, common], self.draws, self.seed)
        except ValueError as error:
            self.warn(f"{curve}: no fit: {error}")
            return None


def powers(samples: int) -> list[int]:
    """1, 2, 4, … up to the number of samples, and that number."""
    return sorted({*(2**k for k in range(samples.bit_length())), samples})


def best_of_n_curve(
    proxy: Array, gold: Callable[[int], Array] | None, bootstrap: Bootstrap, curve: str = "best_of_n"
) -> dict[str, Any]:
    """The curve of choosing the best of n by a proxy.

    Args:
        proxy: (prompts, N) the scores that are chosen by.
        gold: of n, (prompts,) the gains in gold of the best of n, as `gains_of` gives them; None if there is no gold.

    Returns:
        `points`, each with `n`, `kl_bound` and `kl` (the bound, and lowered by equal scores) in nats, `d` = √kl_bound,
        the gains `proxy` and `gold`; and the `fit` of the best-of-n form to gold over d, None where there can be none.
    """
    numbers = powers(proxy.shape[1])
    bounds = [kl_bound(n) for n in numbers]
    chosen = gains_of(proxy, proxy)
    judged = np.stack([gold(n) for n in numbers]) if gold else None
    points = [
        {
            "n": n, "kl_bound": bound, "kl": float(kl_with_ties(proxy, n).mean()), "d": math.sqrt(bound),
            "proxy": bootstrap.mean(chosen(n)), "gold": None if judged is None else bootstrap.mean(judged[i]),
        }
        for i, (n, bound) in enumerate(zip(numbers, bounds, strict=True))
    ]  # fmt: skip
    fitted = None if judged is None else bootstrap.fit("best_of_n", np.array(bounds), judged, curve)
    return {"points": points, "fit": fitted}


def gains_of(proxy: Array, gold: Array, unit: float = 1.0) -> Callable[[int], Array]:
    """Of n, (prompts,) how far the gold score of the best of n by proxy is above a single sample's, in `unit`s.

    Args:
        proxy, gold: (prompts, N) of the same samples.
    """
    return lambda n: (best_of_n(proxy, gold, n) - gold.mean(1)) / unit


def policies_curve(
    points: Sequence[Point],
    kl: Array,
    proxies: Mapping[str, Array],
    gold: Array | None,
    bootstrap: Bootstrap,
    curve: str = "policies",
) -> dict[str, Any]:
    """The curve of policies over their KL from the initial one.

    Args:
        kl: (points, prompts) nats, an estimate that noise may make negative.
        proxies: by name (points, prompts) gains.
        gold: likewise; None if there is none.

    Returns:
        `points`, each with its `point` and `settings`, `kl`, `d` = √KL (None where the mean is not above 0: d is then
        not defined, and the point is in no fit), the gains by `proxies` and `gold`; and the `fit` of the RL form to
        gold over d, which runs of a sweep have only if they differ in one setting.
    """
    rows = []
    for i, point in enumerate(points):
        nats = bootstrap.mean(kl[i])
        mean = nats["mean"] if nats else 0.0
        rows.append(
            {
                "point": point.label, "settings": point.settings, "kl": nats,
                "d": math.sqrt(mean) if mean > 0 else None,
                "proxies": {name: bootstrap.mean(gains[i]) for name, gains in proxies.items()},
                "gold": None if gold is None else bootstrap.mean(gold[i]),
            }
        )  # fmt: skip
    along = not any(point.settings for point in points)
    return {"points": rows, "fit": bootstrap.fit("rl", kl, gold, curve) if along and gold is not None else None}


def best_run(points: Sequence[Point], gold: Array, bootstrap: Bootstrap, curve: str) -> dict[str, Any] | None:
    """Which of a sweep's values is best by gold, runs that differ in their seed alone taken together.

    Returns:
        `setting` and `value` of the best, its `gold` gain; `shares` by value, in how many resamples of prompts each is
        best; where the values are numbers `low` and `high`, between which the best is in 95 % of them, `spans_grid` and
        `at_edge`. Or `settings`, if several were varied. None if there is nothing to choose between.
    """
    groups: dict[tuple[tuple[str, Any], ...], list[int]] = {}
    for i, point in enumerate(points):
        groups.setdefault(point.values, []).append(i)
    common = np.isfinite(gold).all(0)
    if len(groups) < 2 or not common.any():
        return None
    means = np.stack([gold[rows][:, common].mean(0) for rows in groups.values()])
    names = {name for values in groups for name, _ in values}
    single = [values[0][1] for values in groups] if len(names) == 1 else []
    numbers = [float(v) for v in single if isinstance(v, int | float) and not isinstance(v, bool)]
    try:
        found = best_choice(means, numbers if len(numbers) == len(groups) else None, bootstrap.draws, bootstrap.seed)
    except ValueError as error:
        bootstrap.warn(f"{curve}: no best run: {error}")
        return None
    choice, shares = found.pop("choice"), found.pop("shares")
    labels = [", ".join(f"{name}={value}" for name, value in values) for values in groups]
    out = {
        "best": labels[choice],
        "gold": bootstrap.mean(means[choice]),
        "shares": dict(zip(labels, shares, strict=True)),
    }
    if single:
        out |= {"setting": next(iter(names)), "value": single[choice]}
    if "low" in found:
        out |= found | {"at_edge": numbers[choice] in (min(numbers), max(numbers))}
        if found["spans_grid"]:
            bootstrap.warn(
                f"{curve}: which {out['setting']} is best cannot be told: the interval spans all values that were "
                "tried; measure on more prompts, or try values further apart"
            )
    return out


def frontier(curves: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The policies of all curves that no other one beats: none has a higher gold score at no more KL."""
    known = [
        {"curve": name, "point": point["point"], "kl": point["kl"]["mean"], "gold": point["gold"]["mean"]}
        for name, curve in curves.items()
        for point in curve["points"]
        if point["gold"] and point["kl"]
    ]
    best, front = -math.inf, []
    for each in sorted(known, key=lambda p: (p["kl"], -p["gold"])):
        if each["gold"] > best:
            best = each["gold"]
            front.append(each)
    return front
