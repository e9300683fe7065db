"""Figures as inline SVG with the numbers they show: text stays text, ink is the page's own colour, so they read in
light and in dark; series differ by dash or mark as well as by colour."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#777777"  # stands for the page's text colour until the SVG is written
PALETTE = ("#2E86D1", "#D9701A", "#16A085", "#B565A7", "#8A8D0F", "#C0392B")  # from Okabe and Ito's, for light and dark
MARKERS, DASHES = "osD^vP", ("-", "--", ":")
EVEN = (0, (4, 3))
STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "axes.titlesize": 9, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "lines.linewidth": 1.3,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "grid.color": INK, "grid.alpha": 0.25, "grid.linewidth": 0.5, "legend.frameon": False, "legend.borderpad": 0,
}  # fmt: skip
Rates = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Plot:
    """A figure as an `<svg>` element, and the numbers it shows as a table."""

    title: str
    svg: Markup
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def __html__(self) -> Markup:
        return self.svg


def alone(plot: Plot) -> str:
    """The figure as a file of its own: black on white, and in a common font."""
    head = '<svg xmlns="http://www.w3.org/2000/svg" style="background: white; color: #333; font-family: sans-serif" '
    return head + str(plot.svg).removeprefix("<svg ")


def colour(k: int) -> str:
    """Of the k-th series of a figure, as in the page's keys."""
    return PALETTE[k % len(PALETTE)]


def dash(k: int) -> str:
    """Of the k-th series: no two of the first eighteen share both colour and dash."""
    return DASHES[(k + k // len(PALETTE)) % len(DASHES)]


def dots(series: Mapping[str, Rates], axis: str, label: str, line: float | None = None) -> Plot:
    """Means with intervals, a row for each name and a mark for each series: {series: {name: {mean, low, high}}}.

    A mean without `low` and `high` gets no whiskers; `line` draws a vertical line, as at an even win rate.
    """
    names = list(dict.fromkeys(name for values in series.values() for name in values))
    with rc_context(STYLE | {"svg.hashsalt": repr((label, series))}):
        figure, axes = blank(5.0, 0.9 + 0.33 * len(names))
        for k, (title, values) in enumerate(series.items()):
            places = [names.index(name) + 0.26 * (k - (len(series) - 1) / 2) for name in values]
            means = [r["mean"] for r in values.values()]
            axes.errorbar(means, places, None, _reach(values), MARKERS[k % 6], color=colour(k), ms=4.5, label=title)
        if line is not None:
            axes.axvline(line, color=INK, lw=0.8, ls=EVEN)
        axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6), xlabel=axis)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        if len(series) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, handletextpad=0.3)
        rows = [
            (title, name, *(r.get(key) for key in ("mean", "low", "high")))
            for title, values in series.items()
            for name, r in values.items()
        ]
        return Plot(label, svg(figure, label), ("series", "name", "mean", "low", "high"), rows)


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, axis: str) -> Plot:
    """Curves (steps, values) by name, coloured and dashed in their order, which the page's key repeats."""
    with rc_context(STYLE | {"svg.hashsalt": repr((title, axis, series))}):
        figure, axes = blank(3.1, 1.9)
        for k, (steps, values) in enumerate(series.values()):
            few = MARKERS[k % 6] if len(steps) <= 8 else ""
            axes.plot(steps, values, dash(k), color=colour(k), marker=few, ms=3)
        axes.locator_params(axis="x", integer=True)
        axes.set(title=title, xlabel=axis)
        axes.grid()
        rows = [(name, *point) for name, curve in series.items() for point in zip(*curve, strict=True)]
        return Plot(f"{title} by {axis}", svg(figure, f"{title}: {', '.join(series)}"), ("run", axis, title), rows)


def against_kl(models: Mapping[str, Mapping[str, Any]], scored: str, judged: str) -> Plot:
    """Mean score, and below it preference if anybody judged, of finished models against their KL from the reference.

    `models` are {name: {kl, score, wins: {judge: {mean, low, high}}}}; the axes are called `scored` and `judged`.
    """
    judges = list(dict.fromkeys(judge for model in models.values() for judge in model["wins"]))
    with rc_context(STYLE | {"svg.hashsalt": repr((scored, judged, models))}):
        figure = Figure(figsize=(5.0, 4.6 if judges else 2.6), layout="constrained")
        above, *below = figure.subplots(2 if judges else 1, 1, sharex=True, squeeze=False)[:, 0]
        for k, model in enumerate(models.values()):
            above.plot(model["kl"], model["score"], MARKERS[k % 6], color=colour(k), ms=5)
        above.set(ylabel=scored)
        _name_points(above, {name: (model["kl"], model["score"]) for name, model in models.items()})
        for axes in below:
            _preference(axes, models, judges)
            axes.set(ylabel=judged)
        for axes in (above, *below):
            axes.grid()
        (above, *below)[-1].set(xlabel="KL from the reference, nats per answer")
        rows = [
            (name, model["kl"], model["score"], judge, *(rate.get(key) for key in ("mean", "low", "high")))
            for name, model in models.items()
            for judge, rate in (model["wins"] or {"": {}}).items()
        ]
        label = f"{scored} and {judged} against KL" if judges else f"{scored} against KL"
        return Plot(label, svg(figure, label), ("model", "kl", "score", "judge", "mean", "low", "high"), rows)


def _preference(axes: Axes, models: Mapping[str, Mapping[str, Any]], judges: Sequence[str]) -> None:
    """Win rates with their whiskers over KL, filled marks for the first judge."""
    for k, judge in enumerate(judges):
        rates = {name: model["wins"][judge] for name, model in models.items() if judge in model["wins"]}
        at, means = [models[name]["kl"] for name in rates], [r["mean"] for r in rates.values()]
        face = "none" if k else INK
        axes.errorbar(at, means, _reach(rates), None, MARKERS[k % 6], color=INK, mfc=face, ms=4.5, label=judge)
    axes.axhline(0.5, color=INK, lw=0.8, ls=EVEN)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, handletextpad=0.3)


def calibration(bins: Sequence[Sequence[float]], title: str) -> Plot:
    """Reliability diagram of bins [mean prediction, share that won, pairs]; each point carries its number of pairs."""
    with rc_context(STYLE | {"svg.hashsalt": repr((title, bins))}):
        figure, axes = blank(3.1, 2.6)
        axes.plot([0.5, 1], [0.5, 1], color=INK, lw=0.8, ls=EVEN)
        for predicted, won, pairs in bins:
            size = 2 + 8 * (pairs / max(b[2] for b in bins)) ** 0.5  # area tells how many pairs stand behind a point
            axes.plot(predicted, won, "o", color=PALETTE[0], ms=size, alpha=0.8)
            above = (0, 2 + size / 2)
            axes.annotate(f"{pairs:.0f}", (predicted, won), above, textcoords="offset points", ha="center", fontsize=7)
        axes.set(title=title, xlabel="predicted chance of winning", ylabel="share that won")
        axes.set(xlim=(0.48, 1.02), ylim=(min([0.5, *(b[1] for b in bins)]) - 0.04, 1.08))
        axes.grid()
        label = f"Reliability: {title}"
        return Plot(label, svg(figure, label), ("predicted", "won", "pairs"), bins)


def _reach(rates: Rates) -> list[list[float]]:
    """How far whiskers go below and above each mean."""
    return [[abs(r.get(end, r["mean"]) - r["mean"]) for r in rates.values()] for end in ("low", "high")]


def _name_points(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Each point's name at the right edge, as near to its height as the others allow, with a thin line to it."""
    low, high = axes.get_ylim()
    step, order = (high - low) / 14, sorted(points.items(), key=lambda item: item[1][1])
    heights = [y for _, (_, y) in order]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + step)
    heights[-1] = min(heights[-1], high)
    for i in reversed(range(len(heights) - 1)):
        heights[i] = min(heights[i], heights[i + 1] - step)
    for (name, (x, y)), height in zip(order, heights, strict=True):
        edge = (1.02, (height - low) / (high - low))
        axes.annotate(
            name, (x, y), edge, textcoords="axes fraction", va="center", fontsize=7.5,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": INK, "alpha": 0.6, "shrinkA": 0, "shrinkB": 3},
            annotation_clip=False,
        )  # fmt: skip


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")  # no pyplot: nothing global to close
    return figure, figure.add_subplot()


def svg(figure: Figure, label: str) -> Markup:
    """The figure as an `<svg>` element that scales with the page and shares no id with another."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", stream.getvalue(), flags=re.S)
    head, body = text[text.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    body = re.sub(r' id="(?!(?:[mp]|C\w+_)[0-9a-f]{10}")[^"]*"', "", body).replace("xlink:href", "href")
    body = re.sub(r"\s*\n\s*", "\n", body.replace(INK, "currentColor"))
    return Markup(f'<svg role="img" aria-label="{escape(label)}" {box[0]}>{body}')  # matplotlib has escaped all names
