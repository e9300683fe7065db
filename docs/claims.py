"""Writes docs/claims.md and its figure from what `tutelage claims` found.

tutelage claims --output runs/claims
python docs/claims.py runs/claims
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tutelage.files import read_json
from tutelage.lab.claims.page import page
from tutelage.report.figures import MARKERS, PALETTE, STYLE

COLUMNS = 3
LOGARITHMIC = {"rankings": "log", "epochs": "log", "beta": "symlog"}  # axes and their scales
NUMBERS = (*LOGARITHMIC, "square root of KL from SFT", "KL from SFT, nats", "score")  # axes that are no names
DOCS = Path(__file__).parent
FIGURE = Path("images") / "claims.svg"


def panel(axes: Axes, claim: Mapping[str, Any]) -> None:
    """The points of a claim: a colour for each series, a line for each seed; no lines where x are names."""
    x, y = claim["axes"]
    names, values = x.split(", ") if x not in NUMBERS else [], sorted({p["x"] for p in claim["points"]})
    series = list(dict.fromkeys(p["series"] for p in claim["points"]))
    for k, name in enumerate(series):
        for seed in dict.fromkeys(p["seed"] for p in claim["points"]):
            own = sorted((p["x"], p["y"]) for p in claim["points"] if (p["series"], p["seed"]) == (name, seed))
            label = name if seed == claim["points"][0]["seed"] else None
            style = MARKERS[k % 6] + ("" if names else "-")
            axes.plot(*zip(*own, strict=True), style, color=PALETTE[k % 6], ms=2.5, lw=0.8, alpha=0.8, label=label)
    axes.set(title=claim["name"], xlabel="" if names else x, ylabel=y)
    if x in LOGARITHMIC:
        axes.set_xscale(LOGARITHMIC[x], **({"linthresh": 0.02} if LOGARITHMIC[x] == "symlog" else {}))
        axes.set_xticks(values, [f"{value:g}" for value in values], rotation=45)
        axes.minorticks_off()
    elif names:
        axes.set_xticks(range(len(names)), names)
    axes.grid()
    if len(series) > 1:
        axes.legend(fontsize=6)


def draw(content: Mapping[str, Any], path: Path) -> None:
    """All claims as small multiples."""
    claims = [claim for claim in content["claims"] if claim["points"]]
    rows = -(-len(claims) // COLUMNS)
    with rc_context(STYLE | {"svg.hashsalt": "claims", "font.size": 7, "axes.titlesize": 8}):
        figure = Figure(figsize=(3 * COLUMNS, 2.3 * rows), layout="constrained")
        for number, claim in enumerate(claims, 1):
            panel(figure.add_subplot(rows, COLUMNS, number), claim)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/claims.py RUNS, the folder that `tutelage claims --output RUNS` wrote")
    content = read_json(Path(sys.argv[1]) / "verdict" / "claims.json")
    draw(content, DOCS / FIGURE)
    (DOCS / "claims.md").write_text(page(content, figure=FIGURE.as_posix()), encoding="utf-8")
