"""Figures as inline SVG: text stays text, ink is the page's own colour, so they read in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

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


def dots(series: Mapping[str, Rates], axis: str, label: str, line: float | None = None) -> Markup:
    """Means with intervals, a row for each name and a mark for each series: {series: {name: {mean, low, high}}}.

    A mean without `low` and `high` gets no whiskers; `line` draws a vertical line, as at an even win rate.
    """
    rows = list(dict.fromkeys(name for values in series.values() for name in values))
    with rc_context(STYLE | {"svg.hashsalt": repr((label, series))}):
        figure, axes = _blank(5.0, 0.9 + 0.33 * len(rows))
        for k, (title, values) in enumerate(series.items()):
            places = [rows.index(name) + 0.26 * (k - (len(series) - 1) / 2) for name in values]
            means = [r["mean"] for r in values.values()]
            reach = [[abs(r.get(end, r["mean"]) - r["mean"]) for r in values.values()] for end in ("low", "high")]
            axes.errorbar(means, places, None, reach, MARKERS[k % 6], color=PALETTE[k % 6], ms=4.5, label=title)
        if line is not None:
            axes.axvline(line, color=INK, lw=0.8, ls=EVEN)
        axes.set(yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.4, -0.6), xlabel=axis)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        if len(series) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, handletextpad=0.3)
        return _svg(figure, label)


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, axis: str) -> Markup:
    """Curves (steps, values) by name, coloured and dashed in their order, which the page's key repeats."""
    with rc_context(STYLE | {"svg.hashsalt": repr((title, series))}):
        figure, axes = _blank(3.1, 1.9)
        for k, (steps, values) in enumerate(series.values()):
            few = "o" if len(steps) <= 8 else ""
            axes.plot(steps, values, DASHES[k % 3], color=PALETTE[k % 6], marker=few, ms=3)
        axes.locator_params(axis="x", integer=True)
        axes.set(title=title, xlabel=axis)
        axes.grid()
        return _svg(figure, f"{title}: {', '.join(series)}")


def calibration(bins: Sequence[Sequence[float]], title: str) -> Markup:
    """Reliability diagram of bins [mean prediction, share that won, pairs]; each point carries its number of pairs."""
    with rc_context(STYLE | {"svg.hashsalt": repr((title, bins))}):
        figure, axes = _blank(3.1, 2.6)
        axes.plot([0.5, 1], [0.5, 1], color=INK, lw=0.8, ls=EVEN)
        for predicted, won, pairs in bins:
            size = 2 + 8 * (pairs / max(b[2] for b in bins)) ** 0.5  # area tells how many pairs stand behind a point
            axes.plot(predicted, won, "o", color=PALETTE[0], ms=size, alpha=0.8)
            above = (0, 2 + size / 2)
            axes.annotate(f"{pairs:.0f}", (predicted, won), above, textcoords="offset points", ha="center", fontsize=7)
        axes.set(title=title, xlabel="predicted chance of winning", ylabel="share that won")
        axes.set(xlim=(0.48, 1.02), ylim=(min([0.5, *(b[1] for b in bins)]) - 0.04, 1.08))
        axes.grid()
        return _svg(figure, f"Reliability: {title}")


def _blank(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")  # no pyplot: nothing global to close
    return figure, figure.add_subplot()


def _svg(figure: Figure, label: str) -> Markup:
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
