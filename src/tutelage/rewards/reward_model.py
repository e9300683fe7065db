"""A reward model, which scores sampled ids if tokenizers and templates agree, else texts in its own template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.data.records import Prompt
from tutelage.models.architecture import context_length
from tutelage.models.forward import all_scores
from tutelage.models.loading import load_scalar
from tutelage.models.tokens import encode_pairs, load_tokenizer, require_same_tokens, same_reading
from tutelage.rewards.reward import Answers
from tutelage.runs import done
from tutelage.stats.best_of_n import kl_bound


class RewardModel:
    """The reward model in a folder, with its tokenizer.

    Args:
        policy: the tokenizer of a policy whose tokens it must share, which is seen before its weights are loaded.
        beside: a policy whose weights it shares if both are adapters of one base.

    Raises:
        ValueError: if the tokens differ, or as `load_scalar` does.
    """

    def __init__(
        self, folder: str, policy: PreTrainedTokenizerBase | None = None, beside: PreTrainedModel | None = None
    ) -> None:
        self.folder = folder
        self.tokenizer = load_tokenizer(folder)
        if policy is not None:
            require_same_tokens(self.tokenizer, policy, f"reward_model {folder}")
        self.model = load_scalar(folder, self.tokenizer, beside)
        self.context = context_length(self.model)

    def reads(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether it reads this tokenizer's ids as they are: the tokens and the chat template are its own."""
        return same_reading(tokenizer, self.tokenizer)

    def encode(self, prompts: Sequence[Prompt], texts: Iterable[str], ended: Iterable[bool]) -> list[list[int]]:
        """Ids of prompts with completions in its own template; `ended` says which completions were not cut off."""
        triples = [(p.text, text, end) for p, text, end in zip(prompts, texts, ended, strict=True)]
        return [a + b for a, b in encode_pairs(self.tokenizer, triples)]

    def leaves_room(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[bool]:
        """Whether each prompt, in its template, leaves room for `max_new_tokens` of its tokens."""
        empty = self.encode(prompts, [""] * len(prompts), [True] * len(prompts))
        return [len(ids) + max_new_tokens <= self.context for ids in empty]

    def scores(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """(n,) scores of whole sequences of ids."""
        return all_scores(self.model, sequences)

    def score_answers(self, answers: Answers, policy: PreTrainedTokenizerBase) -> list[float | None]:
        """Scores of completions that this tokenizer's policy sampled: of the ids or, if it reads others, of the texts.

        Such a text may be longer than what was sampled, as bytes that are no characters are; it is cut at the context.
        """
        if self.reads(policy):
            return self.scores(answers.sequences).tolist()
        encoded = self.encode(answers.prompts, answers.texts, answers.ended)
        return self.scores([ids[: self.context] for ids in encoded]).tolist()


def covered_kl(models: Iterable[RewardModel]) -> float | None:
    """How far a policy can go from the reference, in nats of KL a completion, before no reward model has learned from
    anything like its samples; the least of several, None where no model's run says what it learned from.

    A set of completions that the reference writes with probability e^−d is expected once among e^d of its samples. So
    of the n completions that were ranked, the best is log n − (n − 1)/n nats away at the most, and a policy that has
    gone further writes what nobody ranked. It is taken for granted that the reference, or a policy close to it, wrote
    them, as in the paper.
    """
    runs = [done(Path(model.folder).parent) or {} for model in models]
    known = [kl_bound(run["completions"]) for run in runs if run.get("stage") == "reward" and run.get("completions")]
    return min(known, default=None)
