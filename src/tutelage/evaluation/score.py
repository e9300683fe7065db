"""Scores of anybody's samples against references, by model and setting. No model is loaded, nor torch.

    tutelage score samples.csv --task squad_v2 --output runs/score

Rows have `sample` and `reference`, and may have `model`, `setting` and `context`. A reference's alternatives are
separated by `|`; in JSON lines it may also be a list of them and, for `drop`, each of these a list of spans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tutelage.data.sources import DataError, rows_of
from tutelage.evaluation.metrics import overlap
from tutelage.evaluation.metrics.answers import drop_scores, squad_normal, squad_scores
from tutelage.runs import inputs_of, open_run
from tutelage.settings.benchmarks import ScoreConfig
from tutelage.stats.intervals import between, estimate
from tutelage.terminal import listed, printable, short

COLUMNS = ("model", "setting", "context", "sample", "reference")


@dataclass(frozen=True)
class Row:
    """A sample with the alternatives of its reference, each a list of spans; `unit` is its context, or the row."""

    model: str
    setting: str
    unit: str
    sample: list[str]
    references: list[list[str]]


def read(source: str, task: str) -> list[Row]:
    """The rows of a file.

    Raises:
        DataError: naming file and line, if a row lacks a column, or holds something that is no text.
    """
    rows = []
    for place, row in rows_of(source):
        if not isinstance(row, dict) or not {"sample", "reference"} <= set(row):
            columns = listed(row) if isinstance(row, dict) else short(row)
            raise DataError(f"{place}: has {columns}; expected the columns {', '.join(COLUMNS)}")
        names = {name: row.get(name) or "" for name in ("model", "setting", "context")}
        if bad := [name for name, value in names.items() if not isinstance(value, str)]:
            raise DataError(f"{place}: {bad[0]} is {short(names[bad[0]])}; expected a text")
        sample = _spans(place, "sample", row["sample"], task)
        alternatives = row["reference"] if isinstance(row["reference"], list) else _split(place, row["reference"])
        references = [_spans(place, "reference", each, task) for each in alternatives]
        filled = [r for r in references if "".join(r).strip()]
        if not filled and task not in ("squad_v2", "exact_match", "f1"):
            raise DataError(f"{place}: reference is empty, and {task} knows no question without an answer")
        rows.append(Row(names["model"], names["setting"], names["context"] or place, sample, filled))
    if not rows:
        raise DataError(f"{source}: empty file")
    return rows


def _split(place: str, reference: Any) -> list[str]:
    if not isinstance(reference, str):
        raise DataError(f"{place}: reference is {short(reference)}; expected a text, its alternatives separated by |")
    return [part.strip() for part in reference.split("|")]


def _spans(place: str, name: str, value: Any, task: str) -> list[str]:
    """A text as a list of one span; for `drop` also a list of several."""
    spans = value if isinstance(value, list) and task == "drop" else [value]
    if bad := [each for each in spans if not isinstance(each, str)]:
        raise DataError(f"{place}: {name} is {short(bad[0])}; expected a text")
    return list(spans)


def scorer(task: str) -> Callable[[Row], dict[str, float]]:
    """What a task gives for a row: measures by name."""
    if task == "drop":
        return lambda row: drop_scores(row.sample, row.references)
    if task == "rouge_l":
        best = overlap.rouge_l()
        return lambda row: {"rouge_l": best(row.sample[0], [r[0] for r in row.references])}
    wanted = ("exact_match", "f1") if task == "squad_v2" else (task,)

    def squad(row: Row) -> dict[str, float]:
        scores = squad_scores(row.sample[0], [r[0] for r in row.references])
        return {name: scores[name] for name in wanted}

    return squad


def measured(rows: Sequence[Row], config: ScoreConfig) -> dict[str, dict[str, float]]:
    """Each measure of these rows with its interval over contexts."""
    units = [row.unit for row in rows]
    if config.task == "bleu":
        return {"bleu": corpus_bleu(rows, units, config)}
    score = scorer(config.task)
    scores = [score(row) for row in rows]
    return {
        name: estimate([s[name] for s in scores], prompts=units, draws=config.draws, seed=config.seed)
        for name in scores[0]
    }


def corpus_bleu(rows: Sequence[Row], units: Sequence[str], config: ScoreConfig) -> dict[str, float]:
    """BLEU of all samples together, from 0 to 100, with a bootstrap interval over contexts."""
    counts = overlap.bleu_counts([row.sample[0] for row in rows], [[r[0] for r in row.references] for row in rows])
    numbers: dict[str, int] = {}
    unit = [numbers.setdefault(each, len(numbers)) for each in units]
    sums = np.zeros((len(numbers), counts.shape[1]))
    np.add.at(sums, unit, counts)
    picks = np.random.default_rng(config.seed).integers(len(sums), size=(config.draws, len(sums)))
    drawn = np.array([overlap.bleu(sums[own].sum(0)) for own in picks])
    mean = overlap.bleu(sums.sum(0))
    low, high = between(mean, drawn, len(sums), len(sums), (0.0, 100.0))
    return {"mean": mean, "low": low, "high": high, "n": len(rows), "prompts": len(sums)}


def run(config: ScoreConfig) -> None:
    """Write `scores`, by model, setting and measure, into done.json, and print them.

    Raises:
        DataError: naming file and line, if a row cannot be read.
    """
    opened = open_run("score", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    rows = read(config.samples, config.task)
    arms: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        arms.setdefault(row.model, {}).setdefault(row.setting, []).append(row)
    opened.begin(f"{len(rows):,} samples by {config.task}; models: {len(arms)}")
    scores = {m: {s: measured(own, config) for s, own in settings.items()} for m, settings in arms.items()}
    empty = {m: sum(not squad_normal("".join(r.sample)) for own in s.values() for r in own) for m, s in arms.items()}
    opened.finish(task=config.task, samples=len(rows), scores=scores, empty=empty)
    table = Table("model", "setting", "measure", "value", "95 % interval", "samples", "contexts")
    for model, settings in scores.items():
        for setting, measures in settings.items():
            for name, e in measures.items():
                interval, counts = f"[{e['low']:.3f}, {e['high']:.3f}]", (f"{e['n']:,}", f"{e['prompts']:,}")
                table.add_row(printable(model), printable(setting), name, f"{e['mean']:.3f}", interval, *counts)
    Console().print(table)
