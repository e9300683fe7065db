"""The reward-model report: a trained reward model beside the labelers, on any rankings or pairs that it did not see.

Accuracy, in parts; calibration; agreement beside that of two labelers; what the scores lean to; and in words whether it
is sound. What is counted: `stats/reward_model.py`. Accuracy, loss and calibration are those that training reports.

    tutelage measure --reward-model runs/reward/model --rankings pairs.jsonl --output runs/measure
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from tutelage.data.datasets import read_rankings, write_jsonl
from tutelage.data.records import Ranking, newest
from tutelage.data.strict_json import finite
from tutelage.files import fingerprint
from tutelage.models.forward import group_scores
from tutelage.models.precision import full_precision
from tutelage.models.tokens import encode_rankings
from tutelage.rewards.reward_model import RewardModel
from tutelage.runs import Run, dropped, identity_of, inputs_of, open_run
from tutelage.settings.reward import MeasureConfig
from tutelage.stages.reward import Element, measures, verdict
from tutelage.stats.reward_model import Scored, beside_labelers, faults, report
from tutelage.terminal import plain

PART = 256  # rankings that are scored before the scores are kept
SENTENCE = re.compile(r"[^.!?。！？\n]+[.!?。！？]*")


@dataclass(frozen=True)
class Reading:
    """A ranking of k completions as the reward model reads it: the file that it is from; ids of prompt and completion;
    how many tokens each completion has; the ids with its last sentence repeated, None where that is too long."""

    ranking: Ranking
    arm: str
    sequences: list[list[int]]
    lengths: list[int]
    repeated: list[list[int] | None]

    @property
    def groups(self) -> dict[str, str]:
        """What the ranking belongs to, where that is known."""
        prompt = self.ranking.prompt
        known = {"arm": self.arm, "use_case": prompt.use_case, "subset": prompt.meta.get("subset")}
        return {name: value for name, value in known.items() if isinstance(value, str)}


def again(text: str) -> str:
    """A text with its last sentence repeated."""
    text = text.rstrip()
    sentences = SENTENCE.findall(text)
    return f"{text} {(sentences[-1] if sentences else text).strip()}"


def arms_of(sources: Sequence[str]) -> list[str]:
    """What the files are called in the report: by their names without endings or, where two are alike, as given."""
    names = [Path(source).name.partition(".")[0] or source for source in sources]
    return [name if names.count(name) == 1 else source for name, source in zip(names, sources, strict=True)]


def read(config: MeasureConfig) -> tuple[list[tuple[str, Ranking]], dict[str, int]]:
    """The rankings that count, each with its file's name, and by reason what was dropped."""
    loaded = [read_rankings(source) for source in config.rankings]
    arms = {id(r): arm for arm, one in zip(arms_of(config.rankings), loaded, strict=True) for r in one.records}
    rankings = newest(r for one in loaded for r in one.records)
    lost = sum(
        (Counter(one.dropped) for one in loaded),
        Counter({"older answer of the same labeler": len(arms) - len(rankings)}),
    )
    return [(arms[id(r)], r) for r in rankings], dict(lost)


def readings(
    rankings: Sequence[tuple[str, Ranking]], tokenizer: PreTrainedTokenizerBase, context: int
) -> list[Reading]:
    """The rankings that fit the reward model's context, as it reads them."""
    texts = [r for _, r in rankings]
    longer = [
        r.model_copy(update={"completions": tuple(c.model_copy(update={"text": again(c.text)}) for c in r.completions)})
        for r in texts
    ]
    read = []
    for (arm, r), pairs, variants in zip(
        rankings, encode_rankings(tokenizer, texts), encode_rankings(tokenizer, longer), strict=True
    ):
        if max(len(p) + len(c) for p, c in pairs) > context:
            continue
        repeated = [p + c if len(p) + len(c) <= context else None for p, c in variants]
        read.append(Reading(r, arm, [p + c for p, c in pairs], [len(c) for _, c in pairs], repeated))
    return read


def score(reward: RewardModel, part: Sequence[Reading], max_tokens: int) -> list[list[float]]:
    """For each ranking the scores of its completions, then those of the repetitions that fit.

    Raises:
        ValueError: if one is not finite.
    """
    groups = [[*r.sequences, *(ids for ids in r.repeated if ids is not None)] for r in part]
    with full_precision():
        scores = [own.tolist() for own in group_scores(reward.model, groups, max_tokens)]
    for r, own in zip(part, scores, strict=True):
        if not all(map(math.isfinite, own)):
            raise ValueError(
                f"reward_model {reward.folder}: a completion of prompt {r.ranking.prompt.id!r} scores "
                f"{next(s for s in own if not math.isfinite(s))}; train the reward model anew, at a lower rate"
            )
    return scores


def scored(read: Sequence[Reading], scores: Sequence[Sequence[float]]) -> list[Scored]:
    """Readings with their scores."""
    out = []
    for r, own in zip(read, scores, strict=True):
        rest = iter(own[len(r.sequences) :])
        repeated = [None if ids is None else next(rest) for ids in r.repeated]
        out.append(Scored(r.ranking, own[: len(r.sequences)], r.lengths, repeated, r.groups))
    return out


def in_words(known: Mapping[str, Any]) -> str:
    """Whether a reward model is sound, from its report."""
    sentences = [verdict(known)]
    if beside := beside_labelers(known["agreement"]):
        sentences.append(beside)
    sentences += [f"{name}: {why}" for name, why in known["faults"].items()]
    if not known["faults"]:
        looked = ["confidence", *(n for n in ("length", "position", "repetition") if n not in known["not_measured"])]
        sentences.append(f"no fault is shown (looked for in: {', '.join(looked)})")
    return "; ".join(sentences)


def rows_of(known: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """A table's rows: measure, value, interval, and how many pairs and prompts were counted."""
    rates = {"accuracy": {name: known[name] for name in ("low", "high", "pairs", "prompts")}}
    rates["accuracy"]["mean"] = known["accuracy"]
    for kind, parts in known["by"].items():
        rates |= {f"  {kind}: {plain(name)}": rate for name, rate in parts.items()}
    rates |= {name: known[name] for name in ("calibration_error", "confidence", "over_confidence")}
    for kind in ("length", "position", "repetition"):
        rates |= {f"{kind}: {name}": rate for name, rate in known[kind].items()}
    for name, rate in rates.items():
        interval = f"[{rate['low']:.3f}, {rate['high']:.3f}]"
        yield name.replace("_", " "), f"{rate['mean']:.3f}", interval, f"{rate['pairs']:,} / {rate['prompts']:,}"


def warn_of_its_own(opened: Run, config: MeasureConfig) -> None:
    """Warn if the model was trained on one of these files."""
    trained = Path(config.reward_model).parent
    learned_from = identity_of(trained)["inputs"] if (trained / "inputs.json").exists() else {}
    its_own = {mark for name, mark in learned_from.items() if name.partition(".")[0] == "rankings"}
    if any(Path(source).exists() and fingerprint(Path(source)) in its_own for source in config.rankings):
        opened.warn("the reward model was trained on these very rankings; what counts is its accuracy on others")


def run(config: MeasureConfig) -> None:
    """Write the report into done.json and scores.jsonl, each ranking with its scores; print a table and the verdict.

    Raises:
        ValueError: if no ranking fits, or a score is not finite.
    """
    opened = open_run("measure", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    # 1. The rankings as the reward model reads them.
    reward = RewardModel(config.reward_model)
    rankings, lost = read(config)
    elements = readings(rankings, reward.tokenizer, reward.context)
    too_long = len(rankings) - len(elements)
    if not elements:
        raise ValueError(
            f"{', '.join(config.rankings)}: no ranking left to measure by (dropped: {lost}, too long: {too_long})"
        )
    warn_of_its_own(opened, config)
    unused = dropped({**lost, "too long": too_long})
    opened.begin(f"{len(elements):,} rankings to measure by", lost=unused)
    # 2. Scores, some rankings at a time.
    scores: list[list[float]] = []
    for index, start in enumerate(range(0, len(elements), PART)):
        work = partial(score, reward, elements[start : start + PART], config.micro_batch_tokens)
        scores += opened.once(f"scores-{index}", work)
    # 3. The report.
    rows = scored(elements, scores)
    known = measures(
        ((Element(r.sequences, torch.tensor(r.ranking.ranks), r.ranking.prompt.identity), torch.tensor(s.scores))
         for r, s in zip(elements, rows, strict=True)), config.seed,
    ) | report(rows, config.seed)  # fmt: skip
    known["faults"] = faults(known)
    write_jsonl(opened.folder / "scores.jsonl", [row_of(r, s) for r, s in zip(elements, rows, strict=True)])
    table = Table("measure", "value", "95 % interval", "pairs / prompts")
    for name, *row in rows_of(known):
        table.add_row(Text(name), *row)  # no markup: names of groups are out of files
    Console().print(table)
    words = in_words(known)
    print(words)
    for name, why in known["not_measured"].items():
        print(f"not measured: {name}: {why}")
    opened.finish(dropped=unused, verdict=words, **known)


def row_of(read: Reading, own: Scored) -> dict[str, Any]:
    """A ranking, as readers of rankings take it, with what the reward model made of it."""
    r = read.ranking
    right = sum((1 + (d > 0) - (d < 0)) / 2 for d in (own.scores[w] - own.scores[x] for w, x in r.pairs))
    return finite(
        {
            **r.prompt.model_dump(mode="json", exclude_none=True, exclude={"text"}),
            "prompt": r.prompt.model_dump(mode="json")["text"],
            "completions": [c.model_dump(mode="json", exclude_none=True) for c in r.completions],
            "ranks": r.ranks, "labeler": r.labeler, "arm": read.arm, "scores": own.scores, "tokens": own.lengths,
            "repeated": own.repeated, "right": right, "pairs": len(r.pairs),
        }
    )  # fmt: skip
