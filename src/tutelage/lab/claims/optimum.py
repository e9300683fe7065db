"""The claim about the optimal policy, on bandits that can be enumerated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tutelage.data.datasets import read_rows
from tutelage.lab.claims.evidence import Column, Outcome, Part, Region, above, average, below, point
from tutelage.settings.claims import Scale

Seeds = Mapping[int, Path]
REACHED, ELSEWHERE = 0.02, 0.05  # nats of KL from the optimum


def optimal_policy(seeds: Seeds, scale: Scale) -> Outcome:
    """KL from the optimal policy after training, in nats, by algorithm; the unit is the bandit."""
    rows = {s: read_rows(f / "bandit" / "bandits.jsonl", "start") for s, f in seeds.items()}

    def part(algorithm: str, region: Region, counts: bool = True) -> Part:
        columns = {
            s: Column([f"{s}/{i}" for i in range(len(of))], np.array([row[algorithm] for row in of], dtype=float))
            for s, of in rows.items()
        }
        return average(f"KL of {algorithm} from the optimum (nats)", columns, region, counts)

    parts = [part(name, below(REACHED)) for name in ("ppo", "rloo", "dpo")]
    parts += [part("grpo", above(ELSEWHERE)), part("start", above(REACHED), counts=False)]
    names = ("ppo", "rloo", "dpo", "grpo")
    return Outcome(
        parts, [point("bandits", s, x, row[n]) for s, of in rows.items() for row in of for x, n in enumerate(names)]
    )
