"""What scores completions in the lab: the proxies, all of them as one, and gold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.data.records import Prompt
from tutelage.lab.world import gold as world
from tutelage.models.precision import full_precision
from tutelage.rewards.opening import Rewards, open_rewards
from tutelage.rewards.reward import Answers
from tutelage.sampling.completions import Answer
from tutelage.settings.overoptimization import WORLD, OveroptimizeConfig
from tutelage.settings.rewards import Combination

GOLD, ENSEMBLE = "gold", "ensemble"
Column = list[float | None]


@dataclass(frozen=True)
class Judges:
    """The proxies, whether they also score as one, and the gold score of completions, if there is one."""

    proxies: Rewards
    ensemble: bool
    gold: Callable[[Answers], Column] | None

    @property
    def names(self) -> list[str]:
        """The names of the proxies' columns."""
        return [*self.proxies.named, *([ENSEMBLE] if self.ensemble else [])]

    def scores(self, answers: Sequence[Answer]) -> dict[str, Column]:
        """What each says of the answers, by name, and `gold`; None where it says nothing. Equal answers are scored
        once.

        Raises:
            ValueError: naming the reward, if it fails.
        """
        first: dict[object, Answer] = {}
        for answer in answers:
            first.setdefault((answer.prompt.identity, answer.completion_ids), answer)
        place = {key: i for i, key in enumerate(first)}
        rows, distinct = [place[a.prompt.identity, a.completion_ids] for a in answers], [*first.values()]
        asked = Answers(
            [a.prompt for a in distinct], [a.completion.text for a in distinct],
            [a.completion.finish != "length" for a in distinct], [a.ids for a in distinct],
        )  # fmt: skip
        with full_precision():
            found = self.proxies.scores(asked)
            columns = {n: _column(s, c) for n, s, c in zip(found.names, found.each, found.counts, strict=True)}
            if self.ensemble:
                columns[ENSEMBLE] = _column(found.total, found.known)
            if self.gold is not None:
                columns[GOLD] = self.gold(asked)
        return {name: [column[row] for row in rows] for name, column in columns.items()}


def _column(scores: torch.Tensor, counts: torch.Tensor) -> Column:
    return [score if known else None for score, known in zip(scores.tolist(), counts.tolist(), strict=True)]


def open_judges(
    config: OveroptimizeConfig, tokenizer: PreTrainedTokenizerBase, policy: PreTrainedModel, prompts: Sequence[Prompt]
) -> Judges:
    """What the settings name.

    Raises:
        ValueError: if a reward cannot be opened, or the world's preference is asked about prompts of another world.
    """
    proxies = open_rewards(config.proxies, config.combination or Combination(), tokenizer, policy)
    gold: Callable[[Answers], Column] | None = None
    if config.gold == WORLD:
        for prompt in prompts:
            try:
                world.task_of(prompt)
            except ValueError as error:
                raise ValueError(f"gold={WORLD} cannot judge {config.prompts}: {error}; give another gold") from None
        gold = _of_the_world
    elif config.gold_reward is not None:
        judge = open_rewards({GOLD: config.gold_reward}, Combination(), tokenizer, policy)

        def gold(answers: Answers) -> Column:
            scores = judge.scores(answers)
            return _column(scores.total, scores.known)

    return Judges(proxies, config.combination is not None, gold)


def _of_the_world(answers: Answers) -> Column:
    return [world.value(world.parts(p, t)) for p, t in zip(answers.prompts, answers.texts, strict=True)]
