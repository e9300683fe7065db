"""Win rates and rates of faults from judgments: means with 95 % intervals over prompts (ties count half).

The paper's protocol (section 3.6): every model against the SFT baseline, judged by held-out labelers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.data.judgments import FAULTS, LABELERS, read_judgments
from tutelage.runs import inputs_of, open_run
from tutelage.settings.evaluation import EvaluateConfig
from tutelage.stats.intervals import estimate

WINS = "wins."


@dataclass(frozen=True)
class Judged:
    """Judgments, and the rates that they give."""

    rows: list[dict[str, Any]]
    baseline: str
    draws: int
    seed: int

    def rate(self, key: str, name: str, use_case: str | None = None) -> dict[str, float]:
        """The mean of a model's verdicts, with its interval over prompts; nothing if there are none."""
        rows = [r for r in self.rows if use_case is None or r["use_case"] == use_case]
        if name == self.baseline and key.startswith(WINS):  # against itself: half, by definition
            return {"mean": 0.5, "low": 0.5, "high": 0.5, "n": len(rows), "prompts": len({r["id"] for r in rows})}
        judged = [(r["id"], value) for r in rows if (value := _said(r, name, key)) is not None]
        return self._estimate([value for _, value in judged], [i for i, _ in judged], (0, 1))

    def gain(self, key: str, name: str) -> dict[str, float]:
        """The paired difference to the baseline's greedy answers, prompt by prompt."""
        pairs = [(r["id"], _said(r, name, key), _said(r, f"{self.baseline}_greedy", key)) for r in self.rows]
        both = [(i, mine - theirs) for i, mine, theirs in pairs if mine is not None and theirs is not None]
        return self._estimate([difference for _, difference in both], [i for i, _ in both], (-1, 1))

    def _estimate(self, values: list[float], prompts: list[Any], scale: tuple[float, float]) -> dict[str, float]:
        if not values:
            return {}
        return estimate(values, prompts=prompts, scale=scale, draws=self.draws, seed=self.seed)


def _said(row: dict[str, Any], name: str, key: str) -> float | None:
    """What a judgment says of a model's answer: `wins.JUDGE`, or one of `FAULTS`."""
    verdict = row["models"].get(name, {})
    if key.startswith(WINS):
        return verdict.get("wins", {}).get(key.removeprefix(WINS))
    return verdict.get(key)


def run(config: EvaluateConfig) -> None:
    """Write the rates into done.json: `win_rate` by the judge that counts (`labelers`, if they judged),
    `JUDGE_win_rate` by others, each of `FAULTS`, and by use case.

    `greedy_gain` is the paired difference of win rates, prompt by prompt, between a model's greedy answers and the
    baseline's greedy answers: what is left of a gain once sharpening is taken out.
    """
    opened = open_run("evaluate", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    rows = read_judgments(config.judgments)
    names = list({name: None for row in rows for name in row["models"]})  # people may not have judged all of them yet
    found = {judge: None for row in rows for of in row["models"].values() for judge in of["wins"]}
    judges = [LABELERS] * (LABELERS in found or not found) + [judge for judge in found if judge != LABELERS]
    judged = Judged(rows, rows[0]["baseline"], config.draws, config.seed)
    opened.begin(f"{len(rows):,} judgments of {', '.join(names)} against {judged.baseline}")
    by_use_case = {
        use_case: {n: judged.rate(WINS + judges[0], n, use_case) for n in names}
        for use_case in sorted({r["use_case"] for r in rows if r["use_case"]})
    }
    explained = {n: [own for r in rows if (own := r["models"].get(n, {}).get("parts"))] for n in names}
    parts = {
        n: {k: float(np.mean([p[k] for p in of if k in p])) for k in dict.fromkeys(k for p in of for k in p)}
        for n, of in explained.items()
    }
    greedy = [n for n in names if n.endswith("_greedy") and n != f"{judged.baseline}_greedy"]
    gains = {n: {judge: judged.gain(WINS + judge, n) for judge in judges} for n in greedy}
    keys = {judge: f"{judge}_win_rate" if judge != judges[0] else "win_rate" for judge in judges}
    opened.finish(
        prompts=len(rows),
        baseline=judged.baseline,
        judges=judges,
        greedy_gain={n: by_judge for n, by_judge in gains.items() if by_judge[judges[0]]},
        **{key: {n: judged.rate(WINS + judge, n) for n in names} for judge, key in keys.items()},
        win_rate_by_use_case=by_use_case,
        parts=parts,
        **{fault: {n: judged.rate(fault, n) for n in names} for fault in FAULTS},
    )
