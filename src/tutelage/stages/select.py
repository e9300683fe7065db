"""Selection: a reward model ranks the candidates of each prompt, and the best becomes its demonstration.

This is best of n as data: `sft` on the demonstrations is rejection-sampling fine-tuning, or a step of expert iteration;
`dpo` can learn from the rankings. A completion that was cut off is scored without an end. It is ranked, but becomes no
demonstration, as fine-tuning would teach that the text ends there.

    tutelage select --candidates runs/candidates/candidates.jsonl --reward-model runs/reward/model --output runs/select
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from statistics import fmean

from tutelage.data.candidates import Samples, read_samples
from tutelage.data.datasets import write_jsonl
from tutelage.data.records import Completion, Demonstration, Prompt, Ranking, by_text
from tutelage.models.forward import group_scores
from tutelage.models.precision import full_precision
from tutelage.rewards.reward_model import RewardModel
from tutelage.runs import dropped, inputs_of, open_run
from tutelage.settings.select import SelectConfig
from tutelage.stats.best_of_n import kl_bound

PART = 256  # prompts that are scored before the scores are kept


@dataclass(frozen=True)
class Group:
    """A prompt with two or more distinct completions, the ids that the reward model reads of each, and of how many
    samples they are."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    sequences: list[list[int]]
    sampled: int

    def best(self, scores: Sequence[float]) -> int | None:
        """Which completion scores highest of those that were not cut off, the first of equals; None if all were."""
        whole = [i for i, completion in enumerate(self.completions) if completion.finish != "length"]
        return max(whole, key=scores.__getitem__, default=None)

    def ranking(self, scores: Sequence[float], labeler: str) -> Ranking:
        """All of them by score; equal scores are ties."""
        order = sorted(set(scores), reverse=True)
        ranks = tuple(order.index(score) + 1 for score in scores)
        return Ranking(prompt=self.prompt, completions=self.completions, ranks=ranks, labeler=labeler)


def usable(samples: Sequence[Samples], reward: RewardModel) -> tuple[list[Group], dict[str, int]]:
    """The prompts with two or more distinct completions that are not empty and fit the reward model's context, and what
    was dropped: completions of either kind, equal ones, and prompts."""
    written = [[c for c in each.completions if c.text.strip()] for each in samples]
    distinct = [[own[places[0]] for places in by_text(c.text for c in own).values()] for own in written]
    flat = [
        (each.prompt, c.text, c.finish != "length") for each, own in zip(samples, distinct, strict=True) for c in own
    ]
    ids = iter(reward.encode(*zip(*flat, strict=True)) if flat else [])
    groups, whole, short = [], sum(map(len, distinct)), 0
    for each, own in zip(samples, distinct, strict=True):
        fitting = [(c, read) for c, read in zip(own, islice(ids, len(own)), strict=True) if len(read) <= reward.context]
        whole -= len(fitting)
        if len(fitting) < 2:
            short += 1
            continue
        completions, sequences = zip(*fitting, strict=True)
        groups.append(Group(each.prompt, completions, list(sequences), each.sampled))
    lost = {
        "empty completion": sum(len(each.completions) for each in samples) - sum(map(len, written)),
        "duplicate completions merged": sum(map(len, written)) - sum(map(len, distinct)),
        "completion too long for the reward model": whole,
        "fewer than two completions": short,
    }
    return groups, lost


def scores_of(reward: RewardModel, groups: Sequence[Group], max_tokens: int) -> list[list[float]]:
    """The scores of each group's completions.

    Raises:
        ValueError: if one is not finite.
    """
    with full_precision():
        scores = [own.tolist() for own in group_scores(reward.model, [g.sequences for g in groups], max_tokens)]
    for group, own in zip(groups, scores, strict=True):
        if not all(map(math.isfinite, own)):
            raise ValueError(
                f"reward_model {reward.folder}: a completion of prompt {group.prompt.id!r} scores "
                f"{next(s for s in own if not math.isfinite(s))}; train the reward model anew, at a lower rate"
            )
    return scores


def measures(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """By prompt: the mean score of its completions, that of the best, where one was not cut off, and the KL bound."""
    pairs = list(zip(groups, scores, strict=True))
    best = [own[place] for group, own in pairs if (place := group.best(own)) is not None]
    return {
        "score": [fmean(own) for own in scores],
        "best": best,
        "kl_bound": [kl_bound(group.sampled) for group in groups],
    }


def run(config: SelectConfig) -> None:
    """Write demonstrations.jsonl, each prompt with its best completion, and rankings.jsonl, all of them by score.

    Raises:
        ValueError: if no prompt is left with two completions to choose from.
    """
    opened = open_run("select", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    # 1. The candidates as the reward model reads them.
    samples, reward = read_samples(config.candidates), RewardModel(config.reward_model)
    groups, lost = usable(samples, reward)
    if not groups:
        raise ValueError(
            f"{config.candidates}: none of {len(samples):,} prompts has two distinct completions that are not empty "
            f"and fit the reward model's context of {reward.context} tokens; sample more for each (collect --k)"
        )
    number = sum(len(g.completions) for g in groups)
    opened.begin(f"{len(groups):,} prompts, {number:,} completions to score", lost=dropped(lost))
    # 2. Their scores, some prompts at a time.
    scores: list[list[float]] = []
    starts = range(0, len(groups), PART)
    opened.forget_after(-1)  # what is kept is logged again
    for index in opened.track(range(len(starts))):
        part = groups[starts[index] : starts[index] + PART]
        own = opened.once(f"scores-{index}", partial(scores_of, reward, part, config.micro_batch_tokens))
        opened.log(index, {f"select/{name}": fmean(values) for name, values in measures(part, own).items() if values})
        scores += own
    # 3. The best of each prompt, and all in order.
    pairs = list(zip(groups, scores, strict=True))
    chosen = [(g, g.completions[best]) for g, s in pairs if (best := g.best(s)) is not None]
    lost["prompt without a demonstration, as all its completions were cut off"] = len(groups) - len(chosen)
    demonstrations = [Demonstration(prompt=g.prompt, completion=c.text, labeler=config.labeler) for g, c in chosen]
    write_jsonl(opened.folder / "demonstrations.jsonl", demonstrations)
    write_jsonl(opened.folder / "rankings.jsonl", [g.ranking(s, config.labeler) for g, s in pairs])
    results = {name: fmean(values) for name, values in measures(groups, scores).items() if values}
    opened.finish(
        prompts=len(groups), completions=number, demonstrations=len(demonstrations), dropped=dropped(lost), **results
    )
