"""Claims about whom people prefer. The judges are simulated labelers who took no part in training; the noise-free gold
preference is told beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data.datasets import read_rows
from tutelage.lab.claims.evidence import Column, Outcome, above, average, below, point, resampled, within
from tutelage.lab.claims.reading import read_gauge
from tutelage.settings.claims import Scale

Seeds = Mapping[int, Path]
EQUAL = 0.05  # "about equal", of win rates
ORDER = ("base", "prompted", "sft", "ppo", "ppo_ptx")


def wins(rows: list[dict[str, Any]], name: str, judge: str) -> np.ndarray:
    """By prompt the share of votes that a model won from the baseline; one half of the baseline itself."""
    if name == rows[0]["baseline"]:
        return np.full(len(rows), 0.5)
    return np.array([row["models"][name]["wins"][judge] for row in rows], dtype=float)


def gap(rows: list[dict[str, Any]], better: str, worse: str, judge: str = "labelers") -> Column:
    """By prompt, by how much one model wins more from the baseline than another."""
    return Column([row["id"] for row in rows], wins(rows, better, judge) - wins(rows, worse, judge))


def ordering(seeds: Seeds, scale: Scale) -> Outcome:
    """Each step of base < prompted base < SFT < PPO ≈ PPO-ptx, in win rates against SFT."""
    rows = {s: read_rows(f / "judgments" / "judgments.jsonl", "models", "baseline") for s, f in seeds.items()}
    steps = (("prompted", "base"), ("sft", "prompted"), ("ppo", "sft"))

    def part(better: str, worse: str, judge: str, region: tuple[float, float], counts: bool) -> Any:
        name = f"win rate of {better}, less that of {worse}" + ("" if judge == "labelers" else ", by gold")
        columns = {s: gap(of, better, worse, judge) for s, of in rows.items()}
        return average(name, columns, region, counts=counts, scale=(-1, 1))

    parts = [part(*step, "labelers", above(), True) for step in steps]
    parts.append(part("ppo_ptx", "ppo", "labelers", within(EQUAL), True))
    parts += [part(*step, "gold", above(), False) for step in (*steps, ("ppo_ptx", "ppo"))]
    points = [
        point(judge, s, x, float(wins(of, name, judge).mean()))
        for s, of in rows.items()
        for x, name in enumerate(ORDER)
        for judge in ("labelers", "gold")
    ]
    return Outcome(parts, points)


def small_beats_large(seeds: Seeds, scale: Scale) -> Outcome:
    """The win rate of the small PPO against the large base, less one half; plain, and after worked examples.

    A large base that predicts text no better than the small one would make a cheap win, so that counts, too.
    """
    parts, points = [], []
    for counts, judge in ((True, "labelers"), (False, "gold")):
        for x, baseline in enumerate(("large", "large_prompted")):
            files = {s: f / f"judgments_{baseline}" / "judgments.jsonl" for s, f in seeds.items()}
            rows = {s: read_rows(file, "models", "baseline") for s, file in files.items()}
            how = "after worked examples" if baseline == "large_prompted" else "asked plainly"
            name = f"win rate against the large base {how}, less one half, by {judge}"
            columns = {s: gap(of, "ppo", baseline, judge) for s, of in rows.items()}
            parts.append(average(name, columns, above(), counts=counts, scale=(-1, 1)))
            points += [point(judge, s, x, float(wins(of, "ppo", judge).mean())) for s, of in rows.items()]
    tables = {
        s: [np.stack([read_gauge(f, "large").nats, read_gauge(f, "base").nats], axis=1)] for s, f in seeds.items()
    }
    name = "nats of a held-out document: the large base's share of the small one's, less one"
    parts.append(resampled(name, tables, lambda means: means[0][0] / means[0][1] - 1, below()))
    return Outcome(parts, points)
