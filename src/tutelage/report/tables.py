"""The report's tables: cells as text, by column and row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.report import summary as numbers
from tutelage.report.summary import Folder

Columns = dict[str, dict[str, str]]


def interval(rate: Mapping[str, float]) -> str:
    """`61 % (55–67)`; `50 %` where it is so by definition, as the baseline's wins over itself are."""
    known = f"{100 * rate['mean']:.0f} %"
    if rate["low"] == rate["high"]:
        return known
    return f"{known} ({100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def points(difference: Mapping[str, float]) -> str:
    """`-1.2 (-3.5 to +0.0)`: a difference of two rates."""
    mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def counted(title: str, rates: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, str]]:
    """A column of rates by model: the number of prompts is in its title, or in each cell where models differ in it."""
    numbers = {rate["n"] for rate in rates.values()}
    if len(numbers) == 1:
        return of(title, numbers.pop()), {name: interval(rate) for name, rate in rates.items()}
    return title, {name: of(interval(rate), rate["n"]) for name, rate in rates.items()}


def of(what: str, n: int | None) -> str:
    """`toxicity, n = 1,200`."""
    return what if n is None else f"{what}, n\u00a0=\u00a0{n:,}"


def models_table(summary: Mapping[str, Any], wins: Mapping[str, Mapping[str, dict[str, float]]]) -> Columns:
    """What was measured on each model, by column and model; empty columns left out."""
    errors, n = summary["kl_standard_error"], summary["answered"]
    doubt = {name: f" ± {errors[name]:.2f}" for name in errors}
    judge = next(iter(wins), "")
    columns = {
        **dict(counted(f"wins, {judge}", rates) for judge, rates in wins.items()),
        "greedy gain, points": {name: points(of[judge]) for name, of in summary["greedy_gain"].items()},
        of("mean score", n): {name: f"{v:z.2f}" for name, v in summary["scores"].items()},
        of("KL, nats", n): {name: f"{v:z.2f}{doubt.get(name, '')}" for name, v in summary["kl"].items()},
        "loss on text, nats": {name: f"{v:.3f}" for name, v in summary["pretraining_loss"].items()},
    }
    return {title: cells for title, cells in columns.items() if cells}


def rates_table(rates: Mapping[str, Mapping[str, Any]], folders: Sequence[Folder]) -> Columns:
    """Rates by column and model; empty columns left out."""
    ordered = {title: numbers.in_order(column, folders) for title, column in rates.items()}
    return dict(counted(title, column) for title, column in ordered.items() if column)


def rankings_table(valid: Mapping[str, Any], arms: Mapping[str, Any]) -> Columns:
    """The reward model's accuracy by set of held-out rankings, beside what the labelers' own noise allows."""
    arms = {name: arm for name, arm in arms.items() if name in valid}
    return {
        "accuracy": {name: interval(v | {"mean": v["accuracy"]}) for name, v in valid.items()},
        "pairs": {name: str(v["pairs"]) for name, v in valid.items()},
        "rankings": {name: str(v["rankings"]) for name, v in valid.items()},
        "noise-free reader, the same pairs": {
            name: f"{100 * share:.0f} %" for name, arm in arms.items() for share in arm.get("readers", {}).values()
        },
        "two labelers agree": {name: interval(arm["agreement"]) for name, arm in arms.items()},
        "pairs that two ordered": {name: str(arm["agreement"]["pairs"]) for name, arm in arms.items()},
    }


def ratings_table(evaluated: Mapping[str, Any]) -> Columns:
    """Ratings of many models, people's scores from 1 to 7, and wins at equal length; empty columns left out."""
    plain = {
        "rating, nats": evaluated.get("ratings", {}),
        "quality, 1–7": evaluated.get("likert", {}),
        "wins at equal length": evaluated.get("length_controlled_win_rate", {}),
        "wins, had others judged": evaluated.get("win_rate_for_other_labelers", {}),
    }
    columns = {
        title: {name: interval(v) if "wins" in title else spread(v) for name, v in column.items() if v}
        for title, column in plain.items()
    }
    return {title: cells for title, cells in columns.items() if cells}


def spread(estimate: Mapping[str, float | None], digits: int = 2) -> str:
    """`0.52 (0.44–0.60)`, or `0.52` where there is no interval."""
    mean, low, high = (estimate.get(key) for key in ("mean", "low", "high"))
    if low is None or high is None or mean is None:
        return "–" if mean is None else f"{mean:z.{digits}f}"
    return f"{mean:z.{digits}f} ({low:z.{digits}f} to {high:z.{digits}f})"


def benchmarks_table(folders: Sequence[Folder]) -> tuple[str, Columns]:
    """The baseline's name, and each benchmark's measures by model: value, interval, and ▲ where it is better than the
    baseline by a paired difference that is clear of noise, ▼ where it is worse."""
    runs = [f for f in folders if f.stage == "benchmark"]
    marks = {"better": " ▲", "worse": " ▼"}
    columns: dict[str, dict[str, str]] = {}
    for row in (row for f in runs for row in f.done["tax"]):
        place = f"{row['task']}, {row['measure'].replace('_', ' ')}"
        for model, value in row["values"].items():
            columns.setdefault(model, {})[place] = spread(value, 3) + marks.get(row["verdict"].get(model, ""), "")
    return (runs[0].done["baseline"] if runs else ""), columns


PARTS = {  # how `measure` takes pairs apart, and what the report calls it
    "arm": "labelers", "use_case": "use case", "subset": "subset", "apart": "levels between the ranks",
    "score_margin": "nats between the scores", "length": "the chosen one is", "shown": "the chosen one was shown",
}  # fmt: skip


def parts_table(done: Mapping[str, Any]) -> Columns:
    """A reward model's accuracy by part of the pairs, with their number."""
    rates = {
        f"{title}: {name}": rate for kind, title in PARTS.items() for name, rate in done["by"].get(kind, {}).items()
    }
    return {
        "accuracy": {name: interval(rate) for name, rate in rates.items()},
        "pairs": {name: f"{rate['pairs']:,}" for name, rate in rates.items()},
    }


def selections_table(folders: Sequence[Folder]) -> Columns:
    """What each selection had to choose from, and what it chose."""
    runs = {f.name: f.done for f in folders if f.stage == "select"}
    shown = {"score": "mean score", "best": "of the best", "kl_bound": "KL of the best, at most"}
    columns = {
        "prompts": {name: f"{done['prompts']:,}" for name, done in runs.items()},
        "completions": {name: f"{done['completions']:,}" for name, done in runs.items()},
        **{title: {n: f"{d[key]:z.2f}" for n, d in runs.items() if key in d} for key, title in shown.items()},
    }
    return {title: cells for title, cells in columns.items() if cells}


AGREEMENT = {  # of the measures of an agreement run, those shown, by their place in done.json
    "two labelers agree": ("labelers", "strict"),
    "ties": ("labelers", "tie_rate"),
    "reward model, the same pairs": ("reward_model", "model_shared"),
    "the most anybody could": ("reward_model", "majority_shared"),
    "Kendall's tau-b": ("labelers", "kendall_tau_b"),
    "Krippendorff's alpha, ordinal": ("labelers", "alpha_ordinal"),
}


def agreement_table(folders: Sequence[Folder]) -> Columns:
    """Labelers' agreement, and the reward model's on the pairs that two of them ordered, by agreement run."""
    runs = {f.name: f.done for f in folders if f.stage == "agreement"}
    columns = {}
    for title, (part, measure) in AGREEMENT.items():
        measures = {name: done[part][measure] for name, done in runs.items() if measure in done[part]}
        share = part == "reward_model" or measure in ("strict", "tie_rate")
        columns[title] = {
            name: interval(v) if share else f"{v['mean']:.2f} ({v['low']:.2f}–{v['high']:.2f})"
            for name, v in measures.items()
        }
    return {title: cells for title, cells in columns.items() if cells}
