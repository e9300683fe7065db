"""What an iteration of reinforcement learning samples, and what it then learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Self

import torch
from transformers import PreTrainedTokenizerBase

from tutelage.data.records import Prompt, Request, Sample
from tutelage.models.tokens import decode_answer


@dataclass(frozen=True)
class Episodes:
    """n prompts with a sampled completion each, right-padded to t tokens.

    `group` (n,): episodes of equal number were sampled together from one prompt. `sequences` are ids of prompt and
    completion, of which the first `prompt_lengths` are the prompt's. `mask` (n, t) is true on completion tokens,
    `logprobs` (n, t) are theirs under the policy that sampled them, in nats, 0 on padding. `ended` (n,) is false where
    a completion was cut off.
    """

    prompts: Sequence[Prompt]
    group: torch.Tensor
    sequences: Sequence[list[int]]
    prompt_lengths: Sequence[int]
    mask: torch.Tensor
    logprobs: torch.Tensor
    ended: torch.Tensor

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The completions as people read them."""
        rows = zip(self.prompts, self.sequences, self.prompt_lengths, strict=True)
        return [decode_answer(tokenizer, prompt.text, ids[:n], ids[n:]) for prompt, ids, n in rows]

    def take(self, rows: Sequence[int]) -> Self:
        """The same of some of the episodes."""
        return type(self)(**{name: _take(value, rows) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Rollout(Episodes):
    """Episodes with their scores and the credit of every token; immutable.

    `scores` (n,) are the reward's own; `ref_logprobs`, `rewards` and `advantages` (n, t); `values` and `returns` (n, t)
    where the algorithm has a value model, else None.
    """

    scores: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor | None
    rewards: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor | None

    def to(self, device: torch.device) -> Rollout:
        """The same with its tensors on a device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)


def joined_episodes(parts: Sequence[Episodes]) -> Episodes:
    """Episodes of several rounds as one, right-padded to the longest completion that is among them: a longer one may
    have been left out of its round, whose tensors are as wide as it was."""
    width = max(int(part.mask.any(0).sum()) for part in parts)

    def padded(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x, (0, width - x.shape[1]))  # a negative number of columns is cut off

    starts = accumulate((int(part.group.max()) + 1 if len(part.group) else 0 for part in parts), initial=0)
    return Episodes(
        prompts=[p for part in parts for p in part.prompts],
        group=torch.cat([part.group + start for part, start in zip(parts, starts, strict=False)]),
        sequences=[ids for part in parts for ids in part.sequences],
        prompt_lengths=[n for part in parts for n in part.prompt_lengths],
        mask=torch.cat([padded(part.mask) for part in parts]),
        logprobs=torch.cat([padded(part.logprobs) for part in parts]),
        ended=torch.cat([part.ended for part in parts]),
    )


def _take(value: Any, rows: Sequence[int]) -> Any:
    if isinstance(value, torch.Tensor):
        return value[rows]
    return None if value is None else [value[row] for row in rows]


def episodes_of(
    prompts: Sequence[Prompt], requests: Sequence[Request], samples: Sequence[Sample], samples_per_prompt: int = 1
) -> Episodes:
    """Episodes of what was asked and answered, in the order of the requests; `prompts` repeats each prompt
    `samples_per_prompt` times in a row.

    Raises:
        ValueError: if a sampler broke its word: no tokens, or not one log-probability for each.
    """
    for number, sample in enumerate(samples):
        tokens, logprobs = len(sample.completion_ids), len(sample.logprobs)
        if not tokens or tokens != logprobs:
            raise ValueError(f"sampler: answer {number} has {tokens} tokens and {logprobs} log-probabilities")
    lengths = torch.tensor([len(s.completion_ids) for s in samples])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    flat = torch.tensor([logprob for s in samples for logprob in s.logprobs])
    return Episodes(
        prompts=prompts,
        group=torch.arange(len(prompts)) // samples_per_prompt,
        sequences=[[*r.prompt_ids, *s.completion_ids] for r, s in zip(requests, samples, strict=True)],
        prompt_lengths=[len(r.prompt_ids) for r in requests],
        mask=mask,
        logprobs=torch.zeros(mask.shape).masked_scatter(mask, flat),
        ended=torch.tensor([s.finish == "stop" for s in samples]),
    )
