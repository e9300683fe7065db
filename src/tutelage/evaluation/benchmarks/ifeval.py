"""IFEval (Zhou et al. 2023): instructions that a program can check; the figure for the paper's "explicit constraints".

Strict and loose accuracy, by prompt (all its instructions kept) and by instruction. Answers are greedy.
"""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.data.sources import DataError, rows_of
from tutelage.evaluation.benchmarks.protocol import Generation, Item, Measure, Response, Scores, Task
from tutelage.evaluation.metrics.constraints import followed, require_arguments
from tutelage.settings.benchmarks import BenchmarkConfig
from tutelage.terminal import short


def read(source: str, config: BenchmarkConfig) -> list[Item]:
    """Items of `input_data.jsonl`: key, prompt, instruction_id_list, kwargs."""
    items: list[Item] = []
    for place, row in rows_of(source):
        prompt, kinds, arguments = (
            (row.get(name) for name in ("prompt", "instruction_id_list", "kwargs"))
            if isinstance(row, dict)
            else (None, None, None)
        )
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(f"{place}: prompt is {short(prompt)}; expected a text")
        if not isinstance(kinds, list) or not kinds or not isinstance(arguments, list) or len(kinds) != len(arguments):
            raise DataError(f"{place}: instruction_id_list and kwargs must be two lists of equal length")
        instructions = []
        for kind, own in zip(kinds, arguments, strict=True):
            own = own if isinstance(own, dict) else {}
            try:
                require_arguments(str(kind), own)
            except ValueError as error:
                raise DataError(f"{place}: {error}") from None
            instructions.append((str(kind), own))
        asks = (Generation(prompt, instruction=True),)
        items.append(Item(str(row.get("key", len(items))), asks, instructions))
    if not items:
        raise DataError(f"{source}: empty file")
    return items


def score(item: Item, responses: Sequence[Response]) -> Scores:
    return followed(responses[0]["texts"][0], item.expects)


NAMES = [f"{level}_{way}" for level in ("prompt", "instruction") for way in ("strict", "loose")]
TASK = Task(read, score, {name: Measure(tax=True) for name in NAMES}, frozenset({541}))
