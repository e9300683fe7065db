"""LAMBADA (Paperno 2016): the last word of a passage, which only the whole passage tells.

As GPT-2's authors and lm-eval measure it: a word counts as right if its tokens are the likeliest ones, each after the
ones before; `nats` is the word's negative log-probability, and perplexity the exponential of its mean. Nothing filters
stop words.
"""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.data.sources import DataError
from tutelage.evaluation.benchmarks.protocol import Continuations, Item, Measure, Response, Scores, Task, table
from tutelage.settings.benchmarks import BenchmarkConfig


def read(source: str, config: BenchmarkConfig) -> list[Item]:
    items = []
    for number, (place, row) in enumerate(table(source, "text")):
        context, _, word = row["text"].rstrip().rpartition(" ")
        if not context.strip():
            raise DataError(f"{place}: text is a single word; expected a passage")
        items.append(Item(str(number), (Continuations(context, (f" {word}",), greedy=True),)))
    return items


def score(item: Item, responses: Sequence[Response]) -> Scores:
    return {"accuracy": float(responses[0]["greedy"]), "nats": -responses[0]["logprobs"][0]}


TASK = Task(
    read, score,
    {"accuracy": Measure(tax=True), "nats": Measure(scale=None, better="lower", tax=True, perplexity=True)},
    frozenset({5153}),
)  # fmt: skip
