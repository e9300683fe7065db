"""From scores of items to results: means with intervals, paired differences to a baseline, and the alignment tax."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.evaluation.benchmarks.protocol import Item, Measure, Scores
from tutelage.stats.intervals import estimate

Estimate = dict[str, float]
ByModel = Mapping[str, Sequence[Scores]]  # of each model its scores, item by item


def _parts(value: float | Sequence[float]) -> tuple[float, float]:
    """(how much, out of how much) of a score."""
    return (float(value), 1.0) if isinstance(value, int | float) else (float(value[0]), float(value[1]))


def mean(measure: Measure, name: str, scores: Sequence[Scores], units: Sequence[str]) -> Estimate:
    """A measure's mean over the items that have it, with its interval over units; nothing if none has it."""
    rows = [(_parts(s[name]), unit) for s, unit in zip(scores, units, strict=True) if name in s]
    if not sum(out_of for (_, out_of), _ in rows):
        return {}
    much, out_of = [a for (a, _), _ in rows], [b for (_, b), _ in rows]
    return estimate(much, out_of, prompts=[unit for _, unit in rows], scale=measure.scale)


def difference(
    measure: Measure, name: str, ours: Sequence[Scores], theirs: Sequence[Scores], units: Sequence[str]
) -> Estimate:
    """Mean of the differences item by item, over the items that have the measure in both."""
    rows = [
        (_parts(a[name]), _parts(b[name]), u)
        for a, b, u in zip(ours, theirs, units, strict=True)
        if name in a and name in b
    ]
    if not sum(b for (_, b), _, _ in rows) or any(mine[1] != yours[1] for mine, yours, _ in rows):
        return {}
    gaps, out_of = [mine[0] - yours[0] for mine, yours, _ in rows], [mine[1] for mine, _, _ in rows]
    return estimate(gaps, out_of, prompts=[u for *_, u in rows], scale=measure.difference_scale)


def results_of(
    measures: Mapping[str, Measure], items: Sequence[Item], scores: ByModel, baseline: str
) -> dict[str, Any]:
    """`means` and `differences` by measure and model, and `groups` with means by group where there are several."""
    units = [item.unit or str(number) for number, item in enumerate(items)]
    means: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for name, measure in measures.items():
        own = {model: e for model, s in scores.items() if (e := mean(measure, name, s, units))}
        if own:
            means[name] = own
            differences[name] = {
                model: e
                for model, s in scores.items()
                if model != baseline and (e := difference(measure, name, s, scores[baseline], units))
            }
    for name in [n for n, measure in measures.items() if measure.perplexity and n in means]:
        means["perplexity"] = {model: exponential(e) for model, e in means[name].items()}
    names = sorted({item.group for item in items} - {""})
    groups = {}
    for group in names if len(names) > 1 else []:
        rows = [i for i, item in enumerate(items) if item.group == group]
        groups[group] = {
            name: {
                model: e
                for model, s in scores.items()
                if (e := mean(measure, name, [s[i] for i in rows], [units[i] for i in rows]))
            }
            for name, measure in measures.items()
            if name in means
        }
    return {"means": means, "differences": differences, "groups": groups}


def exponential(nats: Estimate) -> Estimate:
    """A perplexity from a mean loss, with the ends of its interval."""
    return nats | {key: math.exp(min(nats[key], 700.0)) for key in ("mean", "low", "high")}


def verdict(measure: Measure, gap: Estimate) -> str:
    """Whether a model is better or worse than the baseline, or not clearly either."""
    if gap["low"] <= 0 <= gap["high"] or measure.better is None:
        return "not clear"
    return "better" if (gap["mean"] > 0) == (measure.better == "higher") else "worse"


def tax_row(task: str, name: str, measure: Measure, result: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the alignment tax: a measure by model, the difference to the baseline, and what it says."""
    gaps = result["differences"].get(name, {})
    return {
        "task": task, "measure": name, "better": measure.better, "values": result["means"][name], "differences": gaps,
        "verdict": {model: verdict(measure, gap) for model, gap in gaps.items()},
    }  # fmt: skip
