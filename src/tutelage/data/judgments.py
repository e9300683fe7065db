"""Judgments: what was said of each model's answer to a prompt, against a baseline's."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat

from tutelage.data.datasets import one_line, read_rows
from tutelage.data.sources import DataError, rows_of
from tutelage.data.strict_json import dumps
from tutelage.terminal import short

FAULTS = {"hallucination": "hallucination", "constraint": "constraint met", "toxicity": "toxicity"}  # and their titles
Share = Annotated[
    float,
    Field(strict=True, ge=0, le=1, allow_inf_nan=False),
    BeforeValidator(lambda value: float(value) if isinstance(value, bool) else value),
]
Name = Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]
LABELERS = "labelers"


def _by_judge(wins: Any) -> Any:
    by_judge = wins if isinstance(wins, dict) else {LABELERS: wins}
    return {judge: share for judge, share in by_judge.items() if share is not None}


class Verdict(BaseModel):
    """What was said of a model's answer; None where nobody has judged it.

    `wins` is the share of votes won from the baseline, by judge; a number alone is of the judge `labelers`.
    """

    wins: Annotated[dict[Name, Share], BeforeValidator(_by_judge)] = {}
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
