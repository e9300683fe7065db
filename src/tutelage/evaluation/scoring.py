"""Scores of written answers by a reward model, which may have tokens or a template of its own."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.data.records import Prompt
from tutelage.rewards.reward_model import RewardModel
from tutelage.sampling.completions import Answer, Writer


def readings(reward: RewardModel, writer: Writer, answers: Sequence[Answer]) -> list[list[int]]:
    """What the reward model reads: the sampled ids where tokens and template are its own, else the texts in its own.

    After worked examples it reads the prompt without them.

    Raises:
        ValueError: if it cannot read an answer whole.
    """
    if _reads_ids(reward, writer):
        sequences = [answer.ids for answer in answers]
    else:
        texts, ended = [a.completion.text for a in answers], [a.completion.finish != "length" for a in answers]
        sequences = reward.encode([a.prompt for a in answers], texts, ended)
    longest = max(map(len, sequences), default=0)
    if longest > reward.context:
        raise ValueError(
            f"reward_model {reward.folder}: an answer and its prompt are {longest} of its tokens, more than its "
            f"context of {reward.context}; lower the sampler's max_new_tokens, or leave reward_model out"
        )
    return sequences


def leaves_room(reward: RewardModel, writer: Writer, prompts: Sequence[Prompt], max_new_tokens: int) -> list[bool]:
    """Whether what is read of each prompt and a completion of so many tokens fits the reward model's context.

    Where the two have other tokens a completion may be of more of the reader's than of the writer's: see `readings`.
    """
    if _reads_ids(reward, writer):
        return [len(writer.prompt_ids(p)) + max_new_tokens <= reward.context for p in prompts]
    return reward.leaves_room(prompts, max_new_tokens)


def _reads_ids(reward: RewardModel, writer: Writer) -> bool:
    return not writer.examples and reward.reads(writer.tokenizer)
