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
    names = list({name: None for row in rows for name in row["models"]})  # people may not have judged all of them yet

    def rate(key: str, name: str, chosen: Sequence[dict]) -> dict[str, float]:
        values = [m[name][key] for m in (r["models"] for r in chosen) if m.get(name, {}).get(key) is not None]
        return bootstrap(values, draws=config.draws, seed=config.seed) if values else {}

    by_use_case = {
        use_case: {n: rate("wins", n, [r for r in rows if r["use_case"] == use_case]) for n in names}
        for use_case in sorted({r["use_case"] for r in rows if r["use_case"]})
    }
    explained = {n: [r["models"][n]["parts"] for r in rows if "parts" in r["models"].get(n, {})] for n in names}
    parts = {n: {k: float(np.mean([p[k] for p in of])) for k in (of[0] if of else {})} for n, of in explained.items()}
    base = f"{rows[0]['baseline']}_greedy"

    def gain(key: str, name: str) -> dict[str, float]:
        both = [m for m in (r["models"] for r in rows) if key in m.get(name, {}) and key in m.get(base, {})]
        differences = [m[name][key] - m[base][key] for m in both]
        return bootstrap(differences, draws=config.draws, seed=config.seed) if differences else {}

    greedy = [n for n in names if n.endswith("_greedy") and n != base and gain("wins", n)]
    run.finish(
        prompts=len(rows),
        greedy_gain={n: {"labelers": gain("wins", n), "gold": gain("gold_wins", n)} for n in greedy},
        win_rate={n: rate("wins", n, rows) for n in names},
        gold_win_rate={n: rate("gold_wins", n, rows) for n in names},
        win_rate_by_use_case=by_use_case,
        gold_parts=parts,
        **{fault: {n: rate(fault, n, rows) for n in names} for fault in FAULTS},
    )
