"""Answers of several models to the same prompts, as `tutelage answer` or AlpacaEval writes them.

ours         `prompt` and `answers`: {model: text}, one row a prompt
AlpacaEval   `instruction` (and `input`), `output` and `generator`, one row an answer; a list in `model_outputs.json`

Rows of one prompt are joined by its text, over all files.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.data.datasets import read_asked
from tutelage.data.records import Prompt
from tutelage.data.sources import DataError
from tutelage.data.strict_json import dumps
from tutelage.terminal import short

OWN = {*Prompt.model_fields, "prompt", "messages", "instruction", "input", "answers", "output", "generator"}


@dataclass(frozen=True)
class Answered:
    """A prompt with its answers by model."""

    prompt: Prompt
    texts: dict[str, str]


def read_answers(sources: Sequence[str]) -> list[Answered]:
    """The answers of all files, in the order in which prompts first appear. A model's second answer to a prompt is
    joined with the others' second answers; an answer that is null counts as not there.

    Raises:
        DataError: if a file is missing or malformed, or a row holds no answers.
        ValueError: if a prompt is empty.
    """
    joined: dict[tuple[Any, int], Answered] = {}
    seen: Counter[tuple[Any, str]] = Counter()
    for source in sources:
        for number, (prompt, row) in enumerate(read_asked(source), start=1):
            further = {name: value for name, value in row.items() if name not in OWN}
            prompt = prompt.model_copy(update={"meta": {**further, **prompt.meta}})  # for a judge who knows what it is
            for model, text in _texts(f"{source}: row {number}", row).items():
                copy = seen[prompt.identity, model]
                seen[prompt.identity, model] += 1
                prompt_and_texts = joined.setdefault((prompt.identity, copy), Answered(prompt, {}))
                prompt_and_texts.texts[model] = text
    return list(joined.values())


def _texts(place: str, row: Mapping[str, Any]) -> dict[str, str]:
    if "answers" in row:
        texts = row["answers"]
        if not (isinstance(texts, dict) and all(isinstance(text, str | None) for text in texts.values())):
            raise DataError(f"{place}: answers is {short(texts)}; expected names of models with texts")
        return {model: text for model, text in texts.items() if text is not None}
    if "output" not in row:
        raise DataError(f"{place}: no field 'answers'; expected prompt, answers, or instruction, output, generator")
    if not isinstance(row.get("generator"), str) or not row["generator"]:
        raise DataError(f"{place}: generator is {short(row.get('generator'))}; expected the name of the model")
    if not isinstance(row["output"], str | None):
        raise DataError(f"{place}: output is {short(row['output'])}; expected a text")
    return {} if row["output"] is None else {row["generator"]: row["output"]}


def instruction_of(prompt: Prompt) -> str:
    """A prompt as one text, which is all that AlpacaEval's files can hold.

    Raises:
        ValueError: if it has several turns.
    """
    if isinstance(prompt.text, str):
        return prompt.text
    if len(prompt.text) > 1:
        raise ValueError(f"prompt {short(prompt.id)} has {len(prompt.text)} turns; AlpacaEval's files hold one text")
    return prompt.text[0].content


def write_model_outputs(path: Path, generator: str, answers: Iterable[tuple[Prompt, str]]) -> None:
    """One model's answers as AlpacaEval's `model_outputs.json`. `dataset` is a prompt's use case.

    Raises:
        ValueError: if a prompt has several turns.
    """
    write_list(
        path,
        [
            {"instruction": instruction_of(p), "output": text, "generator": generator, "dataset": p.use_case or ""}
            for p, text in answers
        ],
    )


def write_list(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A JSON list, one row a line; the file appears whole or not at all."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text("[\n" + ",\n".join(dumps(row, ensure_ascii=False) for row in rows) + "\n]\n", encoding="utf-8")
    os.replace(scratch, path)
