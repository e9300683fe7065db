"""What an over-optimisation run measured: gold beside proxy over the KL spent, the fitted forms, the best of sweeps.

*Gold* is Gao et al.'s (2022) word for the judge that no stage has seen, whoever that is in a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context

from tutelage.report.figures import DASHES, INK, MARKERS, STYLE, Plot, blank, colour, dash, svg
from tutelage.report.summary import Folder
from tutelage.report.tables import Columns, spread


def curves_of(done: Mapping[str, Any]) -> list[Plot]:
    """Gold beside proxy, for the best of n by each proxy and for policies on their way."""
    plots = []
    for name, curve in done["best_of_n"].items():
        points = [(p["kl_bound"], p["proxy"], p["gold"]) for p in curve["points"]]
        axis = "KL, nats (the bound for the best of n)"
        plots.append(gold_beside_proxy(points, f"Best of n by {name}", axis, curve["fit"]))
    for name, curve in done["curves"].items():
        points = [
            (p["kl"]["mean"], next(iter(p["proxies"].values()), None), p["gold"]) for p in curve["points"] if p["kl"]
        ]
        points.sort(key=lambda point: point[0])
        if points:
            plots.append(gold_beside_proxy(points, f"Policies of {name}", "KL, nats", curve["fit"]))
    return plots


def gold_beside_proxy(points: Sequence[tuple[float, Any, Any]], title: str, axis: str, fitted: Any = None) -> Plot:
    """Gains in a proxy and in gold, with their intervals, over KL, and the form that was fitted to gold over d = √KL.

    Points are (KL in nats, proxy {mean, low, high}, gold likewise or None); `fitted` is a fit of Gao et al.'s forms.
    """
    with rc_context(STYLE | {"svg.hashsalt": repr((title, axis, points))}):
        figure, axes = blank(5.0, 2.6)
        for k, name in enumerate(("proxy", "gold")):
            known = [(kl, rate) for kl, *rates in points if (rate := rates[k])]
            if not known:
                continue
            at, means = [kl for kl, _ in known], [rate["mean"] for _, rate in known]
            low, high = ([rate[end] for _, rate in known] for end in ("low", "high"))
            axes.fill_between(at, low, high, color=colour(k), alpha=0.18, lw=0)
            axes.plot(at, means, dash(k), color=colour(k), marker=MARKERS[k], ms=3.5)
            axes.annotate(name, (at[-1], means[-1]), (6, 0), textcoords="offset points", va="center", fontsize=8)
        if fitted:
            d = [max(kl for kl, *_ in points) ** 0.5 * i / 60 for i in range(1, 61)]
            alpha, beta = fitted["alpha"]["mean"], fitted["beta"]["mean"]
            bent = [x if fitted["form"] == "best_of_n" else math.log(x) for x in d]
            curve = [x * (alpha - beta * b) for x, b in zip(d, bent, strict=True)]
            axes.plot([x**2 for x in d], curve, color=INK, lw=0.8, ls=DASHES[2])
        axes.axhline(0, color=INK, lw=0.6)
        axes.set(title=title, xlabel=axis, ylabel="gain")
        axes.grid()
        ends = ("mean", "low", "high")
        rows = [(kl, *((rate or {}).get(end) for rate in rates for end in ends)) for kl, *rates in points]
        columns = ("kl", *(f"{name}_{end}" for name in ("proxy", "gold") for end in ends))
        return Plot(title, svg(figure, f"{title}: proxy and gold"), columns, rows)


def fits_table(folders: Sequence[Folder]) -> Columns:
    """Of each curve of over-optimisation: the fitted form, where gold is highest, and whether the form predicts."""
    columns: Columns = {"α": {}, "β": {}, "gold highest at d": {}, "gold there": {}, "predicts better by": {}}
    for run in (f for f in folders if f.stage == "overoptimize"):
        for name, curve in {**run.done["best_of_n"], **run.done["curves"]}.items():
            fit = curve["fit"]
            if not fit:
                continue
            held_out = (fit["held_out"] or {}).get("gain")
            cells = (fit["alpha"], fit["beta"], fit["peak"]["d"], fit["peak"]["gold"], held_out)
            for column, cell in zip(columns.values(), cells, strict=True):
                column[name] = spread(cell) if cell else "–"
            columns["gold highest at d"][name] += "" if fit["peak"]["inside"] else ", beyond what was measured"
    return {title: cells for title, cells in columns.items() if cells}


def best_table(folders: Sequence[Folder]) -> Columns:
    """The best value of each sweep, by gold, and between which values it lies."""
    best = {
        name: choice
        for run in folders
        if run.stage == "overoptimize"
        for name, choice in run.done.get("best", {}).items()
        if choice
    }
    return {
        "best": {name: choice["best"] for name, choice in best.items()},
        "its gold": {name: spread(choice["gold"]) for name, choice in best.items()},
        "95 % of the time from, to": {
            name: f"{c['low']:g}, {c['high']:g}" + (" (all that was tried)" if c["spans_grid"] else "")
            for name, c in best.items()
            if "low" in c
        },
    }
