"""From prompts to completions as people read them: encode, sample, decode; with worked examples for a base model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.data.records import Completion, Demonstration, Prompt, Request
from tutelage.models.architecture import context_length, stop_ids
from tutelage.models.forward import completion_logprobs
from tutelage.models.precision import full_precision
from tutelage.models.tokens import (
    decode_answer,
    decode_completion,
    encode_prompt,
    encode_text,
    line_breaks,
    render,
    render_turn,
)
from tutelage.objectives.kl import k1
from tutelage.sampling.engines import open_sampler
from tutelage.sampling.seeds import request_seed
from tutelage.settings.sampler import Sampling


@dataclass(frozen=True)
class Writer:
    """A policy under a name, asked plainly or after worked examples."""

    name: str
    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    examples: tuple[Demonstration, ...] = ()

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids of the prompt; worked examples go before it, one turn a line, as one text with one beginning."""
        if not self.examples:
            return encode_prompt(self.tokenizer, prompt.text)
        shown = [
            render(self.tokenizer, e.prompt.text)
            + render_turn(self.tokenizer, e.prompt.text, e.completion, ended=False)
            for e in self.examples
        ]
        start = self.tokenizer.bos_token or ""
        texts = [text.removeprefix(start) for text in (*shown, render(self.tokenizer, prompt.text))]
        return encode_text(self.tokenizer, "\n".join(texts))

    def stop_ids(self) -> tuple[int, ...]:
        """What ends a text; after worked examples also each token with a line break, which would open the next turn."""
        ends = stop_ids(self.policy)
        return tuple(dict.fromkeys((*ends, *line_breaks(self.tokenizer)))) if self.examples else ends


def number_copies(prompts: Iterable[Prompt]) -> list[int]:
    """How often each prompt's id came before: a file may hold a prompt twice, and wants other samples then."""
    seen: Counter[str] = Counter()
    numbers = []
    for prompt in prompts:
        numbers.append(seen[prompt.id])
        seen[prompt.id] += 1
    return numbers


@dataclass(frozen=True)
class Answer:
    """A completion as people read it, with the ids behind it: those of the prompt, and those that were sampled."""

    prompt: Prompt
    completion: Completion
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def ids(self) -> list[int]:
        """The whole, as it was sampled."""
        return [*self.prompt_ids, *self.completion_ids]


def complete(
    writer: Writer, prompts: Sequence[Prompt], seed: int, sampling: Sampling, copies: Sequence[int] | None = None
) -> list[Answer]:
    """One answer per prompt.

    `copies` numbers the samples of each prompt, so that each gets a seed of its own; by default in their order here.
    """
    numbers = number_copies(prompts) if copies is None else copies
    stops, most, temperature = writer.stop_ids(), sampling.max_new_tokens, sampling.temperature
    requests = [
        Request(tuple(writer.prompt_ids(p)), request_seed(seed, 0, p.id, k), most, stops, temperature)
        for p, k in zip(prompts, numbers, strict=True)
    ]
    samples = open_sampler(sampling, writer.policy).sample(requests)
    answers = []
    for prompt, request, sample in zip(prompts, requests, samples, strict=True):
        if writer.examples:
            text = decode_completion(writer.tokenizer, sample.completion_ids).split("\n")[0].strip()
        else:
            text = decode_answer(writer.tokenizer, prompt.text, request.prompt_ids, sample.completion_ids)
        completion = Completion(text=text, policy=writer.name, finish=sample.finish)
        answers.append(Answer(prompt, completion, request.prompt_ids, sample.completion_ids))
    return answers


def log_ratios(
    reference: PreTrainedModel, policy: PreTrainedModel, answers: Sequence[Answer], temperature: float = 1.0
) -> torch.Tensor:
    """(n,) the summed log(policy/reference) of each completion at a temperature; over samples of the policy at that
    temperature the mean is an unbiased estimate of KL(policy‖reference)."""
    sequences, lengths = [a.ids for a in answers], [len(a.prompt_ids) for a in answers]
    with full_precision():
        ours, theirs = (completion_logprobs(m, sequences, lengths, temperature) for m in (policy, reference))
    return k1(ours, theirs).sum(1)  # zero on padding, where both are zero


def fits(writer: Writer, prompt: Prompt, max_new_tokens: int) -> bool:
    """Whether a prompt leaves room for a completion in the model's context."""
    return len(writer.prompt_ids(prompt)) + max_new_tokens <= context_length(writer.policy)
