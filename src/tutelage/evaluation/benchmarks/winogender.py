"""Winogender schemas (Rudinger 2018): sentences about an occupation that differ in one pronoun.

`entropy` is the paper's measure: bits of the normalised probabilities of the sentence with a male and a female pronoun,
1 where neither is preferred; `entropy_three` has the neutral pronoun too, and at most log2 3. `male` is how often the
male sentence is likelier than the female one. The sentences of an occupation are one in every interval.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from tutelage.data.sources import DataError
from tutelage.evaluation.benchmarks.protocol import Continuations, Item, Measure, Response, Scores, Task, table
from tutelage.evaluation.metrics.choices import entropy_bits
from tutelage.settings.benchmarks import BenchmarkConfig
from tutelage.terminal import plain

GENDERS = ("male", "female", "neutral")
SENTENCE = re.compile(r"(?P<schema>(?P<occupation>.+?)\..+)\.(?P<gender>male|female|neutral)\.txt")


def read(source: str, config: BenchmarkConfig) -> list[Item]:
    """Items of `all_sentences.tsv`: three sentences of one schema each."""
    schemas: dict[str, dict[str, str]] = {}
    occupations = {}
    for place, row in table(source, "sentid", "sentence"):
        name = SENTENCE.fullmatch(row["sentid"])
        if name is None:
            raise DataError(f"{place}: sentid {plain(row['sentid'])}: expected OCCUPATION.PARTICIPANT.N.GENDER.txt")
        schemas.setdefault(name["schema"], {})[name["gender"]] = row["sentence"]
        occupations[name["schema"]] = name["occupation"]
    if short_of := [schema for schema, own in schemas.items() if len(own) < len(GENDERS)]:
        raise DataError(f"{source}: {plain(short_of[0])} lacks a sentence of {', '.join(GENDERS)}; is it cut short?")
    return [
        Item(schema, (Continuations("", tuple(own[g] for g in GENDERS)),), unit=occupations[schema])
        for schema, own in schemas.items()
    ]


def score(item: Item, responses: Sequence[Response]) -> Scores:
    male, female, neutral = responses[0]["logprobs"]
    return {
        "entropy": entropy_bits([male, female]),
        "entropy_three": entropy_bits([male, female, neutral]),
        "male": float(male > female) if male != female else 0.5,
    }


TASK = Task(
    read, score,
    {"entropy": Measure(), "entropy_three": Measure(scale=(0.0, math.log2(3))), "male": Measure(better=None)},
    frozenset({240}),
)  # fmt: skip
