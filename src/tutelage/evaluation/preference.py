"""Win rates and rates of faults from judgments: means with 95 % bootstrap intervals over prompts (ties count half).

The paper's protocol (section 3.6): every model against the SFT baseline, judged by held-out labelers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tutelage.datasets import read_rows
from tutelage.evaluation.config import EvaluateConfig
from tutelage.intervals import bootstrap
from tutelage.runs import inputs_of, open_run

FAULTS = ("hallucination", "constraint", "toxicity")


def run(config: EvaluateConfig) -> None:
    """Write the rates into done.json, under `win_rate`, `gold_win_rate`, each of `FAULTS`, and by use case.

    `greedy_gain` is the paired difference of win rates, prompt by prompt, between a model's greedy answers and the
    baseline's greedy answers: what is left of a gain once sharpening is taken out.
    """
    run = open_run("evaluate", config, inputs_of(config, "judgments"))
    if run is None:
        return
    rows = read_rows(config.judgments, "baseline", "models", "use_case")
    names = list(rows[0]["models"])

    def rate(key: str, name: str, chosen: Sequence[dict]) -> dict[str, float]:
        values = [r["models"][name][key] for r in chosen if r["models"][name].get(key) is not None]
        return bootstrap(values, draws=config.draws, seed=config.seed) if values else {}

    by_use_case = {
        use_case: {n: rate("wins", n, [r for r in rows if r["use_case"] == use_case]) for n in names}
        for use_case in sorted({r["use_case"] for r in rows if r["use_case"]})
    }
    parts = {
        n: {
            k: float(np.mean([r["models"][n]["parts"][k] for r in rows])) for k in rows[0]["models"][n].get("parts", {})
        }
        for n in names
    }
    base = f"{rows[0]['baseline']}_greedy"

    def gain(key: str, name: str) -> dict[str, float]:
        differences = [r["models"][name][key] - r["models"][base][key] for r in rows]
        return bootstrap(differences, draws=config.draws, seed=config.seed)

    greedy = [n for n in names if n.endswith("_greedy") and n != base] if base in names else []
    run.finish(
        prompts=len(rows),
        greedy_gain={n: {"labelers": gain("wins", n), "gold": gain("gold_wins", n)} for n in greedy},
        win_rate={n: rate("wins", n, rows) for n in names},
        gold_win_rate={n: rate("gold_wins", n, rows) for n in names},
        win_rate_by_use_case=by_use_case,
        gold_parts=parts,
        **{fault: {n: rate(fault, n, rows) for n in names} for fault in FAULTS},
    )
