"""Simulated labelers at work: rank candidates for training, and judge the finished models' answers.

Training labelers alone produce training rankings. Both arms rank the held-out candidates, several people each, so that
their agreement, and the ceiling that a noise-free reader reaches against them, can be measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from tutelage.datasets import read_prompts, read_rows, write_jsonl
from tutelage.labeling.agreement import pairwise_agreement
from tutelage.records import Completion, Prompt, Ranking
from tutelage.runs import inputs_of, open_run
from tutelage.world import gold, kinds, people
from tutelage.world.config import JudgeConfig, RankConfig


def read_candidates(path: str) -> list[tuple[Prompt, tuple[Completion, ...]]]:
    """Prompts with unranked completions, as `tutelage collect` writes them."""
    rows = read_rows(path, "prompt", "completions")
    prompts = read_prompts(path).records
    return [(p, tuple(Completion(**c) for c in row["completions"])) for p, row in zip(prompts, rows, strict=True)]


def rank(judge: people.Judge, prompt: Prompt, completions: tuple[Completion, ...], rng: Random) -> Ranking:
    """One labeler's ranking."""
    ranks = judge.rank(prompt, [c.text for c in completions], rng)
    return Ranking(prompt=prompt, completions=completions, ranks=tuple(ranks), labeler=judge.labeler.id)


def gold_accuracy(rankings: Sequence[Ranking]) -> float:
    """Share of the labelers' ordered pairs that the noise-free gold preference orders alike (equal values: half)."""
    right = total = 0.0
    for r in rankings:
        values = [gold.value(gold.parts(r.prompt, c.text)) for c in r.completions]
        for i, j in r.pairs:
            right += 0.5 if values[i] == values[j] else values[i] > values[j]
            total += 1
    return right / total


def run_rank(config: RankConfig) -> None:
    """Write rankings.jsonl (training labelers) and rankings_{training,heldout}_labelers.jsonl (held-out prompts)."""
    run = open_run("rank", config, inputs_of(config, "candidates", "valid_candidates"))
    if run is None:
        return
    pools = {
        "training": people.hire("training", config.training_labelers, 0),
        "heldout": people.hire("heldout", config.heldout_labelers, 0),
    }
    rng = Random(f"rank/{config.seed}")
    rankings = [rank(rng.choice(pools["training"]), p, c, rng) for p, c in read_candidates(config.candidates)]
    write_jsonl(run.folder / "rankings.jsonl", rankings)
    results: dict[str, Any] = {"rankings": len(rankings)}
    held_out = read_candidates(config.valid_candidates)
    for arm, pool in pools.items():
        overlapping = [rank(j, p, c, rng) for p, c in held_out for j in rng.sample(pool, config.overlap)]
        write_jsonl(run.folder / f"rankings_{arm}_labelers.jsonl", overlapping)
        results[f"{arm}_labelers"] = {
            "agreement": pairwise_agreement(overlapping, config.seed),
            "gold_ceiling": gold_accuracy(overlapping),
            "tie_rate": 1
            - sum(len(r.pairs) for r in overlapping) / sum(len(r.ranks) * (len(r.ranks) - 1) / 2 for r in overlapping),
        }
    run.finish(**results)


def run_judge(config: JudgeConfig) -> None:
    """Write judgments.jsonl: for each prompt and model, the share of votes won from the baseline, and gold's parts."""
    run = open_run("judge", config, inputs_of(config, "answers"))
    if run is None:
        return
    pool = people.hire("heldout", config.heldout_labelers, 0)
    rng = Random(f"judge/{config.seed}")
    prompts = read_prompts(config.answers).records
    rows = read_rows(config.answers, "prompt", "answers")
    with (run.folder / "judgments.jsonl").open("w", encoding="utf-8") as stream:
        for prompt, row in zip(prompts, rows, strict=True):
            answers: dict[str, str] = row["answers"]
            if config.baseline not in answers:
                raise ValueError(f"baseline={config.baseline!r} is not among the answers' models {sorted(answers)}")
            against = answers[config.baseline]
            task = gold.task_of(prompt)
            judged = {}
            for name, text in answers.items():
                voters = rng.sample(pool, config.votes)
                found = gold.parts(prompt, text)
                mine, theirs = gold.value(found), gold.value(gold.parts(prompt, against))
                judged[name] = {
                    "wins": sum(v.prefers(prompt, text, against, rng) for v in voters) / config.votes,
                    "gold_wins": 0.5 if mine == theirs else float(mine > theirs),
                    "hallucination": float(found.truthful < 1) if kinds.KINDS[task.kind].closed_domain else None,
                    "constraint": found.constraint if task.constraint else None,
                    "toxicity": 1 - found.harmless,
                    "parts": vars(found),
                }
            stream.write(
                json.dumps(
                    {"id": prompt.id, "use_case": prompt.use_case, "baseline": config.baseline, "models": judged}
                )
                + "\n"
            )
    run.finish(prompts=len(rows), baseline=config.baseline, votes=config.votes)
