"""Many samples of one policy per prompt, all scored by several reward models and by gold: the best of n for any n.

Equal completions of a prompt are scored once.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tutelage.data.datasets import read_prompts, write_jsonl
from tutelage.data.records import Prompt
from tutelage.lab.claims.gauge import as_answers
from tutelage.lab.world import gold
from tutelage.models.loading import load_policy
from tutelage.models.precision import full_precision
from tutelage.models.tokens import load_tokenizer
from tutelage.rewards.reward_model import RewardModel
from tutelage.runs import inputs_of, open_run
from tutelage.sampling.completions import Answer, Writer, complete
from tutelage.settings.claims import SamplesConfig

PART = 10  # prompts that are sampled before the scores are kept


def rows_of(
    config: SamplesConfig, writer: Writer, rewards: dict[str, RewardModel], prompts: list[Prompt]
) -> list[dict[str, Any]]:
    """Of each prompt the gold scores of its samples, and their scores by reward model."""
    asked = [p for p in prompts for _ in range(config.n)]
    answers = complete(writer, asked, config.seed, config.sampler)
    keys = [(a.prompt.id, tuple(a.completion_ids)) for a in answers]
    distinct: dict[Any, Answer] = dict(zip(keys, answers, strict=True))
    place = {key: i for i, key in enumerate(distinct)}
    read = as_answers(list(distinct.values()))
    golden = [gold.value(gold.parts(a.prompt, a.completion.text)) for a in distinct.values()]
    with full_precision():
        scores = {name: reward.score_answers(read, writer.tokenizer) for name, reward in rewards.items()}
    rows = []
    for i, prompt in enumerate(prompts):
        places = [place[key] for key in keys[i * config.n : (i + 1) * config.n]]
        row = {"prompt": prompt.id, "gold": [golden[k] for k in places]}
        rows.append(row | {"scores": {name: [own[k] for k in places] for name, own in scores.items()}})
    return rows


def run(config: SamplesConfig) -> None:
    """Write samples.jsonl: for each prompt the `gold` scores of its n samples and, by reward model, their `scores`."""
    opened = open_run("samples", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    tokenizer = load_tokenizer(config.policy)
    writer = Writer("policy", load_policy(config.policy, tokenizer), tokenizer)
    rewards = {name: RewardModel(folder) for name, folder in config.reward_models.items()}
    prompts = list(read_prompts(config.prompts).records[: config.first])
    opened.begin(f"{len(prompts):,} prompts, {config.n:,} samples of each, {len(rewards)} reward models")
    rows: list[dict[str, Any]] = []  # names in order, as a resume finds them
    starts = range(0, len(prompts), PART)
    opened.forget_after(-1)  # what is kept is logged again
    for index in opened.track(range(len(starts))):
        part = prompts[starts[index] : starts[index] + PART]
        made = opened.once(f"part-{index}", partial(rows_of, config, writer, rewards, part))
        rows += [{k: dict(sorted(v.items())) if k == "scores" else v for k, v in sorted(row.items())} for row in made]
        opened.log(index, {"samples": float(len(part) * config.n)})
    write_jsonl(opened.folder / "samples.jsonl", rows)
    opened.finish(prompts=len(prompts), n=config.n)
