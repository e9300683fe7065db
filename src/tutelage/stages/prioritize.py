"""What to label next: candidates ordered by how far an ensemble of reward models disagrees on them, or at random.

Christiano et al. 2017 (section 2.2.4) ask people about the pairs whose predicted preference varies most over an
ensemble. Here a labeler ranks K completions, so a prompt counts with the mean over its K(K − 1)/2 pairs.

    tutelage prioritize --candidates runs/candidates/candidates.jsonl --reward-models runs/rm1/model,runs/rm2/model \
        --number 500 --output runs/next
    tutelage label queue WORKSPACE runs/next/candidates.jsonl
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from random import Random

import numpy as np
from numpy.typing import ArrayLike

from tutelage.data.candidates import Candidates, read_candidates, write_candidates
from tutelage.data.datasets import read_rankings, write_jsonl
from tutelage.models.forward import group_scores
from tutelage.models.precision import full_precision
from tutelage.rewards.reward_model import RewardModel
from tutelage.runs import dropped, inputs_of, open_run
from tutelage.settings.prioritize import PrioritizeConfig
from tutelage.stats.intervals import estimate

PART = 256  # prompts that are scored before the scores are kept


def disagreement(scores: ArrayLike) -> float:
    """Variance over an ensemble of the probability that one completion beats another, averaged over pairs.

    1/C(k, 2) · Σ_{i<j} Var_m σ(r_mi − r_mj), the variance with 1/m (Christiano 2017, section 2.2.4). At most 1/4; 0 if
    all members agree, whether they are sure or not.

    Args:
        scores: (m, k) of k completions by m reward models. A constant that a model adds to all changes nothing.
    """
    r = np.asarray(scores, dtype=float)
    first, second = np.triu_indices(r.shape[1], 1)
    wins = np.exp(-np.logaddexp(0, r[:, second] - r[:, first]))
    return float(wins.var(0).mean())


def encoded(reward: RewardModel, candidates: Sequence[Candidates]) -> list[list[list[int]]]:
    """The ids that a reward model reads of each prompt's completions."""
    return [
        reward.encode([prompt] * len(written), [c.text for c in written], [c.finish != "length" for c in written])
        for prompt, written in candidates
    ]


def fits(folder: str, candidates: Sequence[Candidates]) -> list[bool]:
    """Whether a reward model can read all completions of each prompt."""
    reward = RewardModel(folder)
    return [max(map(len, group)) <= reward.context for group in encoded(reward, candidates)]


def scores_of(reward: RewardModel, part: Sequence[Candidates], max_tokens: int) -> list[list[float]]:
    """A reward model's scores of each prompt's completions.

    Raises:
        ValueError: if one is not finite.
    """
    with full_precision():
        scores = [own.tolist() for own in group_scores(reward.model, encoded(reward, part), max_tokens)]
    for (prompt, _), own in zip(part, scores, strict=True):
        if not all(map(math.isfinite, own)):
            raise ValueError(
                f"reward_models: {reward.folder}: a completion of prompt {prompt.id!r} scores "
                f"{next(s for s in own if not math.isfinite(s))}; train the reward model anew, at a lower rate"
            )
    return scores


def read(config: PrioritizeConfig) -> tuple[list[Candidates], dict[str, int]]:
    """The candidates that can be ranked next, and by reason how many others there are.

    Raises:
        ValueError: if none is left.
    """
    candidates = read_candidates(config.candidates)
    ranked = {r.prompt.identity for r in read_rankings(config.ranked, ties=True).records} if config.ranked else set()
    fresh = [each for each in candidates if each[0].identity not in ranked]
    lost = {"ranked already": len(candidates) - len(fresh)}
    for folder in config.reward_models if config.by == "disagreement" and fresh else ():
        before = len(fresh)
        fresh = [each for each, ok in zip(fresh, fits(folder, fresh), strict=True) if ok]
        lost["too long for a reward model"] = lost.get("too long for a reward model", 0) + before - len(fresh)
    if not fresh:
        raise ValueError(
            f"{config.candidates}: none of {len(candidates):,} prompts is left to rank ({dropped(lost)}); sample "
            "completions of others (collect), or leave out `ranked`"
        )
    return fresh, lost


def run(config: PrioritizeConfig) -> None:
    """Write candidates.jsonl, the prompts to rank next, the first first; and priorities.jsonl, all of them in order.

    Raises:
        ValueError: if no candidate is left, or a score is not finite.
    """
    opened = open_run("prioritize", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    # 1. The candidates that nobody has ranked.
    candidates, lost = read(config)
    number = min(config.number or len(candidates), len(candidates))
    opened.begin(f"{number:,} of {len(candidates):,} prompts to keep, by {config.by}", lost=dropped(lost))
    # 2. Their order: by chance, where equals stay, and by what the ensemble makes of them.
    order = list(range(len(candidates)))
    Random(f"prioritize/{config.seed}").shuffle(order)
    values: list[float] = []
    if config.by == "disagreement":
        members = []
        for m, folder in enumerate(config.reward_models):  # one after the other: they need not fit together
            reward, scores = RewardModel(folder), list[list[float]]()
            for start in range(0, len(candidates), PART):
                part = candidates[start : start + PART]
                scores += opened.once(
                    f"scores-{m}-{start // PART}", partial(scores_of, reward, part, config.micro_batch_tokens)
                )
            members.append(scores)
        values = [disagreement(own) for own in zip(*members, strict=True)]
        order.sort(key=lambda i: -values[i])
    # 3. The first of them.
    taken = order[:number]
    write_candidates(opened.folder / "candidates.jsonl", [candidates[i] for i in taken])
    rows = [{"id": candidates[i][0].id, "taken": place < number} for place, i in enumerate(order)]
    if values:
        rows = [row | {"disagreement": values[i]} for row, i in zip(rows, order, strict=True)]
    write_jsonl(opened.folder / "priorities.jsonl", rows)
    identity = [prompt.identity for prompt, _ in candidates]
    sets = {"taken": taken, "all": order} if values else {}
    opened.say(f"to have them ranked: tutelage label queue WORKSPACE {opened.folder / 'candidates.jsonl'}")
    opened.finish(
        prompts=number, completions=sum(len(candidates[i][1]) for i in taken), candidates=len(candidates),
        by=config.by, members=len(config.reward_models) if values else 0, dropped=dropped(lost),
        disagreement={
            name: estimate([values[i] for i in places], prompts=[identity[i] for i in places], scale=(0.0, 0.25))
            for name, places in sets.items()
        },
    )  # fmt: skip
