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

GOLD, ENDS = "gold", ("mean", "low", "high")


def curves_of(run: Folder) -> list[Plot]:
    """Gold beside proxy, for the best of n by each proxy and for policies on their way."""
    plots = []
    for name, curve in run.done["best_of_n"].items():
        points = [(p["kl_bound"], {name: p["proxy"], GOLD: p["gold"]}) for p in curve["points"]]
        title = f"Best of n by {name}, {run.name}"
        plots.append(gold_beside_proxies(points, title, "KL, nats (the bound for the best of n)", curve["fit"]))
    for name, curve in run.done["curves"].items():
        points = [(p["kl"]["mean"], {**p["proxies"], GOLD: p["gold"]}) for p in curve["points"] if p["kl"]]
        if points:
            points.sort(key=lambda point: point[0])
            plots.append(gold_beside_proxies(points, f"Policies of {name}, {run.name}", "KL, nats", curve["fit"]))
    return plots


def gold_beside_proxies(
    points: Sequence[tuple[float, Mapping[str, Any]]], title: str, axis: str, fitted: Any = None
) -> Plot:
    """Gains by each proxy and in gold, with their intervals, over KL, and the form that was fitted to gold over √KL.

    Points are (KL in nats, {name: {mean, low, high}, or None where it is not known}); `fitted` is a fit of Gao et al.'s
    forms.
    """
    names = list(dict.fromkeys(name for _, rates in points for name in rates))
    known = {name: [(kl, rate) for kl, rates in points if (rate := rates.get(name))] for name in names}
    with rc_context(STYLE | {"svg.hashsalt": repr((title, axis, points))}):
        figure, axes = blank(3.6, 2.3)
        for k, (name, row) in enumerate((name, row) for name, row in known.items() if row):
            at, (means, low, high) = [kl for kl, _ in row], ([rate[end] for _, rate in row] for end in ENDS)
            axes.fill_between(at, low, high, color=colour(k), alpha=0.18, lw=0)
            axes.plot(at, means, dash(k), color=colour(k), marker=MARKERS[k % 6], ms=3)
            axes.annotate(name, (at[-1], means[-1]), (6, 0), textcoords="offset points", va="center", fontsize=8)
        if fitted:
            d = [max(kl for kl, _ in points) ** 0.5 * i / 60 for i in range(1, 61)]
            alpha, beta = fitted["alpha"]["mean"], fitted["beta"]["mean"]
            bent = [x if fitted["form"] == "best_of_n" else math.log(x) for x in d]
            curve = [x * (alpha - beta * b) for x, b in zip(d, bent, strict=True)]
            axes.plot([x**2 for x in d], curve, color=INK, lw=0.8, ls=DASHES[2])
        axes.axhline(0, color=INK, lw=0.6)
        axes.set(title=title, xlabel=axis, ylabel="gain")
        axes.grid()
        rows = [(kl, name, *(rate[end] for end in ENDS)) for name, row in known.items() for kl, rate in row]
        return Plot(title, svg(figure, f"{title}: {', '.join(names)}"), ("kl", "score", *ENDS), rows)


def falls(folders: Sequence[Folder]) -> dict[str, dict[str, Any]]:
    """Curves whose gold ends below its best, by intervals that do not touch -> `kl` of the best, `best`, `last`."""
    out = {}
    for run in (f for f in folders if f.stage == "overoptimize"):
        for name, curve in {**run.done["best_of_n"], **run.done["curves"]}.items():
            kls = [p["kl_bound"] if "kl_bound" in p else (p["kl"] or {}).get("mean") for p in curve["points"]]
            known = [(kl, p[GOLD]) for kl, p in zip(kls, curve["points"], strict=True) if kl is not None and p[GOLD]]
            if not known:
                continue
            kl, best = max(known, key=lambda point: point[1]["mean"])
            last = max(known, key=lambda point: point[0])[1]
            if last["high"] < best["low"]:
                out[f"{name}, {run.name}"] = {"kl": kl, "best": best, "last": last}
    return out


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
                column[f"{name}, {run.name}"] = spread(cell) if cell else "–"
            columns["gold highest at d"][f"{name}, {run.name}"] += (
                "" if fit["peak"]["inside"] else ", beyond what was measured"
            )
    return {title: cells for title, cells in columns.items() if cells}


def best_table(folders: Sequence[Folder]) -> Columns:
    """The best value of each sweep, by gold, and between which values it lies."""
    best = {
        f"{name}, {run.name}": choice
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
