"""The plots of the agreement page, as SVG without style attributes, which the content security policy refuses."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator

COLORS = {"training": "#1f5fa8", "heldout": "#b3541e"}
MARKERS = {"training": "o", "heldout": "s"}
NAMES = {"training": "training", "heldout": "held-out"}
DAYS = 60  # how far back
EPOCH = date(1970, 1, 1)
ALTS = {
    "labelers": "For each labeler a dot and a 95 % interval: agreement with everybody else. The table below has them.",
    "times": "Histogram of minutes from opening a ranking to submitting it, with the median as a line.",
    "days": f"Bars: answers submitted on each day (UTC), over at most {DAYS} days.",
}


def labelers(rates: Mapping[str, Mapping[str, float]], arms: Mapping[str, str]) -> bytes:
    """Strict agreement of each labeler {mean, low, high} with its interval, the lowest first."""
    names = sorted(rates, key=lambda name: rates[name]["mean"])
    figure, axes = _blank(0.9 + 0.3 * len(names))
    for arm, color in COLORS.items():
        rows = [i for i, name in enumerate(names) if arms.get(name, "training") == arm]
        if rows:
            means, lows, highs = (
                np.array([100 * rates[names[i]][end] for i in rows]) for end in ("mean", "low", "high")
            )
            axes.errorbar(
                means, rows, xerr=np.abs([means - lows, highs - means]), fmt=MARKERS[arm], color=color, ms=5,
                label=NAMES[arm],
            )  # fmt: skip
    axes.set_yticks(range(len(names)), [_drawable(name) for name in names], parse_math=False)  # a name is no formula
    axes.set(xlabel="agreement with others on pairs that both ordered, %", ylim=(-0.6, len(names) - 0.4), xlim=(0, 102))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return _svg(figure)


def times(seconds: Sequence[float]) -> bytes:
    """How long a ranking takes; the longest hundredth, pages left open, is drawn into the last bar."""
    minutes = np.array(seconds) / 60
    most = max(float(np.quantile(minutes, 0.99)), 0.1)
    figure, axes = _blank(2.6)
    axes.hist(np.minimum(minutes, most), bins=30, range=(0, most), color=COLORS["training"])
    axes.axvline(float(np.median(minutes)), color=COLORS["heldout"], ls="--", label="median")
    axes.set(xlabel="minutes from opening to submission", ylabel="rankings")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return _svg(figure)


def days(counts: Mapping[int, int]) -> bytes:
    """Answers by day since 1970."""
    last = max(counts)
    first = max(min(counts), last - DAYS + 1)
    figure, axes = _blank(2.6)
    spread = range(first, last + 1)
    at, heights = date2num([EPOCH + timedelta(d) for d in spread]), [counts.get(d, 0) for d in spread]
    axes.bar(at, heights, color=COLORS["training"])
    locator = AutoDateLocator(minticks=1, maxticks=8)
    locator.intervald[3] = [1, 2, 4, 7, 14]  # DAILY: at least a whole day between ticks
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlim(date2num(EPOCH + timedelta(first - 1)), date2num(EPOCH + timedelta(last + 1)))
    axes.set_ylabel("answers")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _svg(figure)


def _blank(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, height), layout="constrained", facecolor="white")  # no pyplot: nothing global
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _drawable(name: str) -> str:
    font = get_font(findfont(FontProperties()))
    short = name if len(name) <= 24 else name[:23] + "…"
    return "".join(c if font.get_char_index(ord(c)) else "□" for c in short)


def _svg(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = re.sub(r"<style.*?</style>", "", stream.getvalue().decode(), flags=re.S)
    text = re.sub(r' style="([^"]*)"', _attributes, text)
    return text.replace("<svg ", '<svg stroke-linejoin="round" stroke-linecap="butt" ', 1).encode()


def _attributes(style: re.Match[str]) -> str:
    pairs = (part.split(":", 1) for part in style[1].split(";") if part.strip())
    return "".join(f' {name.strip()}="{value.strip()}"' for name, value in pairs)
