"""Win rates and rates of faults from judgments: means with 95 % intervals over prompts (ties count half).

The paper's protocol (section 3.6): every model against the SFT baseline, judged by held-out labelers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat

from tutelage.data.datasets import one_line, read_rows
from tutelage.data.sources import DataError, rows_of
from tutelage.data.strict_json import dumps
from tutelage.runs import inputs_of, open_run
from tutelage.settings.evaluation import EvaluateConfig
from tutelage.stats.intervals import estimate
from tutelage.terminal import short

FAULTS = ("hallucination", "constraint", "toxicity")
Share = Annotated[
    float,
    Field(strict=True, ge=0, le=1, allow_inf_nan=False),
    BeforeValidator(lambda value: float(value) if isinstance(value, bool) else value),
]
Name = Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]


class Verdict(BaseModel):
    """What was said of a model's answer; None where nobody has judged it."""

    wins: Share | None = None
    gold_wins: Share | None = None
    hallucination: Share | None = None
    constraint: Share | None = None
    toxicity: Share | None = None
    parts: dict[str, FiniteFloat] | None = None


class Judgment(BaseModel):
    """A row of a judgments file."""

    id: Name | None = None
    prompt: Any = None
    baseline: Name
    use_case: Annotated[str, Field(coerce_numbers_to_str=True)] | None
    models: dict[str, Verdict]


def read_judgments(source: str) -> list[dict[str, Any]]:
    """Judgments as `Judgment` has them; `id` says which prompt: its text if the row has it, else its id, else the row.

    Raises:
        DataError: if the file is missing or empty, a row is malformed, or rows are of different baselines.
    """
    read_rows(source, "baseline", "models", "use_case")
    rows: list[dict[str, Any]] = []
    for place, given in rows_of(source):
        try:
            row = Judgment.model_validate(given).model_dump()
        except ValueError as error:
            raise DataError(f"{place}: {one_line(error)}") from None
        if rows and row["baseline"] != rows[0]["baseline"]:
            raise DataError(
                f"{place}: baseline is {short(row['baseline'])}, and {short(rows[0]['baseline'])} before; wins against "
                "two baselines cannot be added up: give each a file of its own"
            )
        if row["prompt"] is not None:
            row["id"] = ("prompt", dumps(row["prompt"], sort_keys=True))
        elif row["id"] is None:
            row["id"] = ("row", len(rows))
        rows.append(row)
    return rows


def run(config: EvaluateConfig) -> None:
    """Write the rates into done.json, under `win_rate`, `gold_win_rate`, each of `FAULTS`, and by use case.

    `greedy_gain` is the paired difference of win rates, prompt by prompt, between a model's greedy answers and the
    baseline's greedy answers: what is left of a gain once sharpening is taken out.
    """
    run = open_run("evaluate", config, inputs_of(config, *config.INPUTS))
    if run is None:
        return
    rows = read_judgments(config.judgments)
    names = list({name: None for row in rows for name in row["models"]})  # people may not have judged all of them yet
    baseline = rows[0]["baseline"]
    run.begin(f"{len(rows):,} judgments of {', '.join(names)} against {baseline}")

    def ids(chosen: Sequence[dict]) -> list[Any]:
        return [r["id"] for r in chosen]

    def rate(key: str, name: str, chosen: Sequence[dict]) -> dict[str, float]:
        if name == baseline and key in ("wins", "gold_wins"):  # against itself: half, by definition
            return {"mean": 0.5, "low": 0.5, "high": 0.5, "n": len(chosen), "prompts": len(set(ids(chosen)))}
        judged = [r for r in chosen if r["models"].get(name, {}).get(key) is not None]
        values = [r["models"][name][key] for r in judged]
        return estimate(values, prompts=ids(judged), draws=config.draws, seed=config.seed) if values else {}

    by_use_case = {
        use_case: {n: rate("wins", n, [r for r in rows if r["use_case"] == use_case]) for n in names}
        for use_case in sorted({r["use_case"] for r in rows if r["use_case"]})
    }
    explained = {n: [own for r in rows if (own := r["models"].get(n, {}).get("parts"))] for n in names}
    parts = {
        n: {k: float(np.mean([p[k] for p in of if k in p])) for k in dict.fromkeys(k for p in of for k in p)}
        for n, of in explained.items()
    }
    base = f"{baseline}_greedy"

    def gain(key: str, name: str) -> dict[str, float]:
        both = [r for r in rows if all(r["models"].get(n, {}).get(key) is not None for n in (name, base))]
        differences = [r["models"][name][key] - r["models"][base][key] for r in both]
        if not both:
            return {}
        return estimate(differences, prompts=ids(both), scale=(-1, 1), draws=config.draws, seed=config.seed)

    greedy = [n for n in names if n.endswith("_greedy") and n != base and gain("wins", n)]
    run.finish(
        prompts=len(rows),
        baseline=baseline,
        greedy_gain={n: {"labelers": gain("wins", n), "gold": gain("gold_wins", n)} for n in greedy},
        win_rate={n: rate("wins", n, rows) for n in names},
        gold_win_rate={n: rate("gold_wins", n, rows) for n in names},
        win_rate_by_use_case=by_use_case,
        gold_parts=parts,
        **{fault: {n: rate(fault, n, rows) for n in names} for fault in FAULTS},
    )
