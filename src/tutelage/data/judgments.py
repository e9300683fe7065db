"""Judgments: what was said of each model's answer to a prompt, against a baseline's. Read are

ours         `baseline`, `use_case`, and `models`: {model: {wins, votes, ratings, length, …}}, see `Verdict`
AlpacaEval   `annotations.json`: `instruction`, `output_1`, `output_2`, `generator_1` (the baseline), `generator_2`,
             `annotator` (the judge) and `preference`, from 1 for the first to 2 for the second, 1.5 (or 0) for a tie
rankings     as `tutelage label export` writes them: each orders its `policy`s, so every two of them are compared; its
             `ratings` are Likert scores (`quality`, 1–7) and flags
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat, model_validator

from tutelage.data.candidates import any_completions
from tutelage.data.datasets import one_line
from tutelage.data.records import LARGEST_RANK
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
OURS = ("baseline", "models", "use_case")
ALPACA_EVAL = ("instruction", "output_1", "output_2", "generator_1", "generator_2", "preference")
RANKING = ("completions", "ranks")


def _by_judge(wins: Any) -> Any:
    by_judge = wins if isinstance(wins, dict) else {LABELERS: wins}
    return {judge: share for judge, share in by_judge.items() if share is not None}


class Vote(BaseModel):
    """One labeler's vote: the share that the model won from the baseline, 0, ½ or 1."""

    labeler: Name | None = None
    share: Share
    judge: Name = LABELERS
    arm: Name | None = None


class Rating(BaseModel):
    """One labeler's rating of one answer, on a Likert scale, and the flags that they set."""

    labeler: Name | None = None
    arm: Name | None = None
    quality: Annotated[float, Field(ge=1, le=7, allow_inf_nan=False)] | None = None
    flags: list[Name] = []


class Verdict(BaseModel):
    """What was said of a model's answer; None where nobody has judged it.

    `wins` is the share of votes won from the baseline, by judge; a number alone is of the judge `labelers`. Where it is
    left out it is the mean of the `votes`, of which a mere number says nothing. `length` is the answer's, in
    characters.
    """

    wins: Annotated[dict[Name, Share], BeforeValidator(_by_judge)] = {}
    votes: Annotated[list[Vote], BeforeValidator(lambda votes: votes if isinstance(votes, list) else [])] = []
    ratings: list[Rating] = []
    length: Annotated[FiniteFloat, Field(ge=0)] | None = None
    hallucination: Share | None = None
    constraint: Share | None = None
    toxicity: Share | None = None
    parts: dict[str, FiniteFloat] | None = None

    @model_validator(mode="after")
    def _count(self) -> Verdict:
        for judge in dict.fromkeys(vote.judge for vote in self.votes if vote.judge not in self.wins):
            shares = [vote.share for vote in self.votes if vote.judge == judge]
            self.wins[judge] = sum(shares) / len(shares)
        return self


class Judgment(BaseModel):
    """A row of a judgments file."""

    id: Name | None = None
    prompt: Any = None
    baseline: Name
    use_case: Annotated[str, Field(coerce_numbers_to_str=True)] | None
    models: dict[str, Verdict]


def read_judgments(sources: str | Sequence[str], several: bool = False) -> list[dict[str, Any]]:
    """Judgments as `Judgment` has them; `id` says which prompt: its text if the row has it, else its id, else the row.

    Args:
        several: whether rows may be of different baselines.

    Raises:
        DataError: if a file is missing or empty, or a row is malformed or of another baseline than those before it.
    """
    rows: list[dict[str, Any]] = []
    for source in [sources] if isinstance(sources, str) else sources:
        before = len(rows)
        for number, (place, content) in enumerate(rows_of(source)):
            try:
                judged = [Judgment.model_validate(each).model_dump() for each in _ours(content)]
            except ValueError as error:
                raise DataError(f"{place}: {one_line(error)}") from None
            for row in judged:
                if not several and rows and row["baseline"] != rows[0]["baseline"]:
                    raise DataError(
                        f"{place}: baseline is {short(row['baseline'])}, and {short(rows[0]['baseline'])} before; wins "
                        "against two baselines cannot be added up: name the one that counts (baseline), or give each a "
                        "file of its own"
                    )
                if row["prompt"] is not None:
                    row["id"] = ("prompt", dumps(row["prompt"], sort_keys=True))
                elif row["id"] is None:
                    row["id"] = ("row", source, number)
                rows.append(row)
        if len(rows) == before:
            raise DataError(f"{source}: empty file")
    return rows


def _ours(row: Any) -> Iterator[Any]:
    """A row of any of the layouts as rows of ours."""
    columns = set(row) if isinstance(row, dict) else set()
    if columns.issuperset(ALPACA_EVAL):
        yield _annotation(row)
    elif columns.issuperset(RANKING):
        yield from _ranking(row)
    elif missing := [name for name in OURS if name not in columns]:
        raise ValueError(f"no field {missing[0]!r}; expected {', '.join(OURS)}")
    else:
        yield row


def _annotation(row: dict[str, Any]) -> dict[str, Any]:
    texts = [row["instruction"], row.get("input") or "", row["output_1"], row["output_2"]]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"instruction, input, output_1 and output_2 are {short(texts)}; expected strings")
    baseline, model, preference = row["generator_1"], row["generator_2"], row["preference"]
    judge = row.get("annotator") or "annotator"
    if not all(isinstance(name, str) and name for name in (baseline, model, judge)):
        raise ValueError(
            f"generator_1, generator_2 and annotator are {short([baseline, model, judge])}; expected names"
        )
    if baseline == model:
        raise ValueError(f"generator_1 and generator_2 are both {short(model)}; a model is not compared with itself")
    known = isinstance(preference, int | float) and not isinstance(preference, bool)
    if preference is not None and not (known and (preference == 0 or 1 <= preference <= 2)):
        raise ValueError(f"preference is {short(preference)}; expected a number from 1 to 2, 0 for a tie, or null")
    share = None if preference is None else 0.5 if preference == 0 else preference - 1.0
    return {
        "prompt": "\n\n".join(text for text in texts[:2] if text), "baseline": baseline,
        "use_case": row.get("use_case") or row.get("dataset") or None,
        "models": {
            baseline: {"length": len(texts[2])}, model: {"wins": {judge: share}, "length": len(texts[3])},
        },
    }  # fmt: skip


def _ranking(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A labeler's ranking as comparisons of every two policies. Where one wrote several of the completions, its vote is
    the mean over the pairs."""
    completions, ranks, ratings = any_completions(row["completions"]), row["ranks"], row.get("ratings") or []
    sound = isinstance(ranks, list) and all(type(rank) is int and 1 <= rank <= LARGEST_RANK for rank in ranks)
    if not sound or len(ranks) != len(completions):
        raise ValueError(f"ranks is {short(ranks)}; expected a rank from 1 for each of {len(completions)} completions")
    rated = isinstance(ratings, list) and all(isinstance(rating, dict) for rating in ratings)
    if not rated or len(ratings) not in (0, len(completions)):
        raise ValueError(f"ratings is {short(ratings)}; expected {{quality, flags}} for each of {len(completions)}")
    by = {name: row[name] for name in ("labeler", "arm") if row.get(name) is not None}
    written: dict[str, list[int]] = defaultdict(list)
    for i, completion in enumerate(completions):
        if not completion.policy:
            raise ValueError(f"completions[{i}] does not say which policy wrote it, so nobody wins by this ranking")
        for policy in completion.policy.split(", "):  # equal texts are one completion, of several policies
            written[policy].append(i)
    about = {"id": row.get("id"), "prompt": row.get("prompt"), "use_case": row.get("use_case")}
    alone = {
        policy: {
            "length": sum(len(completions[i].text) for i in places) / len(places),
            "ratings": [{**ratings[i], **by} for i in places if ratings],
        }
        for policy, places in written.items()
    }
    policies = list(written)
    for k, baseline in enumerate(policies[:-1] or policies):
        models = {policy: {"length": alone[policy]["length"]} for policy in policies[k:]} if k else alone
        for policy in policies[k + 1 :]:
            pairs = [(ranks[i], ranks[j]) for i, j in product(written[policy], written[baseline])]
            share = sum(0.5 if mine == theirs else float(mine < theirs) for mine, theirs in pairs) / len(pairs)
            models = {**models, policy: {**models[policy], "votes": [{**by, "share": share}]}}
        yield {**about, "baseline": baseline, "models": models}
