"""Whether each claim shows, from run folders alone: claims.json, the figures' points as points.csv, and a page.

tutelage claims --output runs/claims
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.files import write_json
from tutelage.lab.claims.page import page
from tutelage.lab.claims.registry import BY_NAME, Claim, stages_for
from tutelage.runs import done, open_run
from tutelage.settings.claims import Scale, VerdictConfig

HEADER = ("claim", "series", "seed", "x", "y")


def measured(claim: Claim, seeds: Mapping[int, Path], scale: Scale) -> dict[str, Any]:
    """A claim with what came of it, as claims.json has it; `shown` is null where it was left out."""
    words = {
        key: getattr(claim, key) for key in ("name", "sentence", "figure", "place", "experiment", "expected", "judge")
    }
    why = claim.left_out(scale)
    if why is not None:
        return {**words, "axes": list(claim.axes), "shown": None, "left_out": why, "parts": [], "points": []}
    outcome = claim.measure(seeds, scale)
    parts = [part.as_json() for part in outcome.parts]
    points = [dict(point) for point in outcome.points]
    return {
        **words, "axes": list(claim.axes), "shown": outcome.shown, "left_out": None, "parts": parts, "points": points,
    }  # fmt: skip


def run(config: VerdictConfig) -> None:
    """Write claims.json, points.csv and claims.md into the run folder.

    Raises:
        ValueError: naming the run that is missing, if one is.
    """
    seeds = {seed: config.runs / f"seed-{seed}" for seed in config.seeds}
    read = {
        f"runs.{seed}.{name}": folder / name / "done.json"
        for seed, folder in seeds.items()
        for name in stages_for(config.claims, config.scale)
    }
    opened = open_run("verdict", config, read)
    if opened is None:
        return
    opened.begin(f"claims: {', '.join(config.claims)}; seeds: {', '.join(map(str, config.seeds))}")
    claims = [measured(BY_NAME[name], seeds, config.scale) for name in config.claims]
    shared = [config.runs / "large" / name / "done.json" for name in ("corpus", "base")]
    seconds = sum((done(path.parent) or {}).get("seconds", 0.0) for path in (*read.values(), *shared))
    content = {
        "fast": config.fast, "seeds": list(config.seeds), "scale": config.scale.model_dump(mode="json"),
        "run_seconds": round(seconds), "claims": claims,
    }  # fmt: skip
    write_json(opened.folder / "claims.json", content)
    (opened.folder / "points.csv").write_text(as_csv(claims), encoding="utf-8")
    (opened.folder / "claims.md").write_text(page(content), encoding="utf-8")
    for claim in claims:
        verdict = {True: "shown", False: "not shown", None: f"left out: {claim['left_out']}"}[claim["shown"]]
        opened.say(f"{claim['name']}: {verdict}")
    opened.finish(shown={claim["name"]: claim["shown"] for claim in claims}, seeds=list(config.seeds), fast=config.fast)


def as_csv(claims: list[dict[str, Any]]) -> str:
    """The points of all figures, one a row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for claim in claims:
        writer.writerows([claim["name"], p["series"], p["seed"], p["x"], p["y"]] for p in claim["points"])
    return text.getvalue()
