"""Claims about optimising a reward model too far. Gold, the noise-free preference, stands in for people, as Gao et al.
2022 let a large reward model do; its unit is a point of the weighted parts (`lab/world/gold.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage.data.draws import fraction
from tutelage.lab.claims import experiments as runs
from tutelage.lab.claims.evidence import Array, Column, Outcome, Part, above, average, below, point, resampled, within
from tutelage.lab.claims.reading import Gauge, Samples, read_gauge, read_samples
from tutelage.settings.claims import Scale
from tutelage.stats.best_of_n import best_of_n, kl_bound

Seeds = Mapping[int, Path]
ALIKE = 0.1  # standard deviations of SFT's gold scores: curves that are no further apart overlap


def halves(prompts: Sequence[str]) -> NDArray[np.bool_]:
    """True for the prompts that a best point is chosen on; the others measure it. A prompt's half never changes."""
    return np.array([fraction(f"half/{prompt}") < 0.5 for prompt in prompts])


def chosen_best(curve: Mapping[float, Array], choosing: NDArray[np.bool_]) -> float:
    """The point of a curve with the highest mean over the choosing prompts, the first of equals."""
    return max(curve, key=lambda x: float(curve[x][choosing].mean()))


def interior_beta(seeds: Seeds, scale: Scale) -> Outcome:
    """Gold at the best beta less that at either end. The best of all but the ends is chosen on half of the prompts."""
    gauges = {s: {b: read_gauge(f, runs.beta_name(b)) for b in scale.betas} for s, f in seeds.items()}
    inner, ends = scale.betas[1:-1], (scale.betas[0], scale.betas[-1])
    prompts = {s: of[scale.betas[0]].prompts for s, of in gauges.items()}
    choosing = np.concatenate([halves(p) for p in prompts.values()])
    best = chosen_best({b: np.concatenate([of[b].column("gold") for of in gauges.values()]) for b in inner}, choosing)

    def gain(key: str, more: float, less: float, measuring: bool = True) -> dict[int, Column]:
        columns = {}
        for s, of in gauges.items():
            keep = ~halves(prompts[s]) if measuring else np.full(len(prompts[s]), True)
            units = [p for p, k in zip(prompts[s], keep, strict=True) if k]
            columns[s] = Column(units, (of[more].column(key) - of[less].column(key))[keep])
        return columns

    parts = [average(f"gold at beta {best:g}, less that at {e:g}", gain("gold", best, e), above()) for e in ends]
    fall = gain("score", ends[1], ends[0], measuring=False)
    parts.append(average(f"reward model's score at beta {ends[1]:g}, less that at {ends[0]:g}", fall, below()))
    points = [
        point(key, s, b, g.mean(key) - of[ends[0]].mean(key))
        for s, of in gauges.items()
        for b, g in of.items()
        for key in ("gold", "score")
    ]
    return Outcome(parts, points)


def grid(most: int) -> list[int]:
    """1, 2, 4 … and the most itself."""
    return [*(2**k for k in range(most.bit_length()) if 2**k < most), most]


def overoptimization(seeds: Seeds, scale: Scale) -> Outcome:
    """How far gold falls from its peak, for best of n and for PPO without a KL penalty, by the weakest reward model and
    by the strongest; peaks are chosen on half of the prompts."""
    samples = {s: read_samples(f) for s, f in seeds.items()}
    ns, points = grid(scale.best_of), []
    by_size: dict[int, dict[int, dict[float, Array]]] = {}
    for size in scale.proxies:
        by_size[size] = {s: {n: best_of_n(of.scores[str(size)], of.gold, n) for n in ns} for s, of in samples.items()}
        points += [
            point(f"best of n, {size} rankings", s, kl_bound(int(n)) ** 0.5, values.mean())
            for s, curve in by_size[size].items()
            for n, values in curve.items()
        ]
    sample_units = {s: [f"{i}" for i in range(len(of.gold))] for s, of in samples.items()}
    weak, strong = scale.proxies[0], scale.proxies[-1]
    parts = [
        fall(f"best of n by {size:,} rankings", by_size[size], sample_units, counts=size == weak)
        for size in (weak, strong)
    ]
    last, alone = ns[-1], 1
    lower = {
        s: Column(
            [f"{s}/{u}" for u in sample_units[s]],
            (by_size[strong][s][last] - by_size[strong][s][alone]) - (by_size[weak][s][last] - by_size[weak][s][alone]),
        )
        for s in seeds
    }
    name = f"gold that best of {last:,} gains by {strong:,} rankings, less by {weak:,}"
    parts.append(average(name, lower, above()))
    for size in (weak, strong):
        gauges = {
            s: {float(e): read_gauge(f, runs.stop_name(scale, size, e)) for e in scale.stops} for s, f in seeds.items()
        }
        curves = {s: {e: g.column("gold") for e, g in of.items()} for s, of in gauges.items()}
        units = {s: next(iter(of.values())).prompts for s, of in gauges.items()}
        parts.append(fall(f"PPO without a penalty by {size:,} rankings", curves, units, counts=size == weak))
        points += [
            point(f"PPO, {size} rankings", s, max(0.0, g.mean("kl")) ** 0.5, g.mean("gold"))
            for s, of in gauges.items()
            for g in of.values()
        ]
    return Outcome(parts, points)


def fall(
    name: str, curves: Mapping[int, Mapping[float, Array]], units: Mapping[int, Sequence[str]], counts: bool
) -> Part:
    """Gold at the peak less gold at the end; the peak is chosen on half of the prompts, and both are measured on the
    others. A peak at the end is no fall: 0."""
    choosing = {s: halves([f"{s}/{u}" for u in of]) for s, of in units.items()}
    ends = list(next(iter(curves.values())))
    pooled = {x: np.concatenate([curve[x] for curve in curves.values()]) for x in ends}
    peak = chosen_best(pooled, np.concatenate(list(choosing.values())))
    columns = {
        s: Column(
            [f"{s}/{u}" for u, c in zip(units[s], choosing[s], strict=True) if not c],
            (curve[peak] - curve[ends[-1]])[~choosing[s]],
        )
        for s, curve in curves.items()
    }
    text = f"{name}: gold at the peak ({peak:,.0f}), less that at {ends[-1]:,.0f}"
    return average(text, columns, above(), counts=counts)


def penalty_is_stopping(seeds: Seeds, scale: Scale) -> Outcome:
    """Gold of PPO with a KL penalty less that of PPO without, stopped at the same KL: the mean over the betas whose KL
    lies on the stopped curve, in standard deviations of SFT's gold scores."""
    stops = [runs.stop_name(scale, scale.sizes[-1], e) for e in scale.stops]
    betas = [runs.beta_name(b) for b in scale.betas if b > 0]
    names = ["sft", *stops, *betas]
    gauges = {s: {n: read_gauge(f, n) for n in dict.fromkeys(names)} for s, f in seeds.items()}
    parts = [_gap("gold with the penalty, less stopped early (SD of SFT's gold)", gauges, stops, betas, within(ALIKE))]
    points = [
        point("KL penalty" if n in betas else "stopped early", s, max(0.0, _kl(n, g)) ** 0.5, g.mean("gold"))
        for s, of in gauges.items()
        for n, g in of.items()
    ]
    return Outcome(parts, points)


def _kl(name: str, gauge: Gauge) -> float:
    return 0.0 if name == "sft" else gauge.mean("kl")


def _gap(
    name: str, gauges: Mapping[int, Mapping[str, Gauge]], stops: Sequence[str], betas: Sequence[str],
    region: tuple[float, float],
) -> Part:  # fmt: skip
    order = ["sft", *stops, *betas]
    first = 1 + len(stops)

    def gap(means: Sequence[Array]) -> float:
        golds, kls, squares = np.split(means[0], [len(order), 2 * len(order)])
        d = np.sqrt(np.maximum(kls, 0.0))
        d[0] = 0.0  # SFT is where KL is measured from
        along = np.argsort(d[:first], kind="stable")
        on = d[first:] <= d[:first].max()
        deviation = float(np.sqrt(max(0.0, squares[0] - golds[0] ** 2)))
        if not (on.any() and deviation):
            return float("nan")
        stopped = np.interp(d[first:], d[:first][along], golds[:first][along])
        return float((golds[first:] - stopped)[on].mean()) / deviation

    tables = {}
    for s, of in gauges.items():
        columns = [of[n].column("gold") for n in order] + [of[n].column("kl") for n in order]
        tables[s] = [np.stack([*columns, of["sft"].column("gold") ** 2], axis=1)]
    return resampled(name, tables, gap, region)


def kl_spent(seeds: Seeds, scale: Scale) -> Outcome:
    """The KL of PPO over the KL of the best of n that gains as much by the main reward model: the geometric mean over
    the policies that the best of 2 or more can match. Gains are over a single sample of SFT on the same prompts. Best
    of n's KL is the bound log n − (n − 1)/n: the ratio is no less."""
    stops = [runs.stop_name(scale, scale.sizes[-1], e) for e in scale.stops]
    names = list(dict.fromkeys([*(runs.beta_name(b) for b in scale.betas), *stops]))
    ns = grid(scale.best_of)
    gauges = {s: {n: read_gauge(f, n) for n in ("sft", *names)} for s, f in seeds.items()}
    tables = {
        s: [_gains_by_n(read_samples(f), scale, ns), _gains_by_policy(gauges[s], names)] for s, f in seeds.items()
    }
    part = resampled("KL of PPO over that of best of n at the same score, less one", tables, ratio_of(ns), above())
    points = []
    for s, (best, of) in tables.items():
        gains, kls = np.split(of.mean(0), 2)
        points += [point("PPO", s, kl, gain) for kl, gain in zip(kls, gains, strict=True)]
        points += [point("best of n", s, kl_bound(n), gain) for n, gain in zip(ns, best.mean(0), strict=True)]
    return Outcome([part], points)


def _gains_by_n(samples: Samples, scale: Scale, ns: Sequence[int]) -> Array:
    scores = samples.scores[str(scale.proxies[-1])]
    return np.stack([best_of_n(scores, scores, n) - scores.mean(1) for n in ns], axis=1)


def _gains_by_policy(gauges: Mapping[str, Gauge], names: Sequence[str]) -> Array:
    gains = [gauges[n].column("score") - gauges["sft"].column("score") for n in names]
    return np.stack([*gains, *(gauges[n].column("kl") for n in names)], axis=1)


def ratio_of(ns: Sequence[int]) -> Callable[[Sequence[Array]], float]:
    """The statistic of `kl_spent`: of mean gains of the best of each n (1, 2, …); of policies' mean gains and KL."""
    logs = np.log(ns)

    def ratio(means: Sequence[Array]) -> float:
        best, (gains, kls) = means[0], np.split(means[1], 2)
        inside = (gains >= best[1]) & (gains <= best[-1]) & (kls > 0)
        if not inside.any():
            return float("nan")
        n = np.exp(np.interp(gains[inside], best, logs))
        return float(np.exp(np.mean(np.log(kls[inside] / (np.log(n) - (n - 1) / n))))) - 1

    return ratio
