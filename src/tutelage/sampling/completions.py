"""From prompts to completions as people read them: encode, sample, decode; with worked examples for a base model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.data.records import Completion, Demonstration, Prompt, Request, Sample
from tutelage.models.loading import context_length, stop_ids
from tutelage.models.tokens import (
    decode_answer,
    decode_completion,
    encode_pairs,
    encode_prompt,
    encode_text,
    line_breaks,
    render,
    render_turn,
    same_reading,
)
from tutelage.sampling.local import LocalSampler
from tutelage.sampling.protocol import Sampler
from tutelage.sampling.seeds import request_seed


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
    """Of each prompt how often it (by id) came before: a file may hold a prompt twice, and wants other samples then."""
    seen: Counter[str] = Counter()
    numbers = []
    for prompt in prompts:
        numbers.append(seen[prompt.id])
        seen[prompt.id] += 1
    return numbers


def complete(
    writer: Writer,
    prompts: Sequence[Prompt],
    seed: int,
    *,
    temperature: float,
    max_new_tokens: int,
    copies: Sequence[int] | None = None,
    sampler: Sampler | None = None,
) -> tuple[list[Completion], list[Request], list[Sample]]:
    """One completion per prompt, with the requests and samples behind it.

    `copies` numbers the samples of each prompt, so that each gets a seed of its own; by default in their order here.
    """
    if temperature < 0 or max_new_tokens < 1:
        raise ValueError(f"temperature={temperature} must be 0 or more, max_new_tokens={max_new_tokens} 1 or more")
    numbers = number_copies(prompts) if copies is None else copies
    stops = writer.stop_ids()
    requests = [
        Request(tuple(writer.prompt_ids(p)), request_seed(seed, 0, p.id, k), max_new_tokens, stops, temperature)
        for p, k in zip(prompts, numbers, strict=True)
    ]
    samples = (sampler or LocalSampler(writer.policy)).sample(requests)
    completions = []
    for prompt, request, sample in zip(prompts, requests, samples, strict=True):
        if writer.examples:
            text = decode_completion(writer.tokenizer, sample.completion_ids).split("\n")[0].strip()
        else:
            text = decode_answer(writer.tokenizer, prompt.text, request.prompt_ids, sample.completion_ids)
        completions.append(Completion(text=text, policy=writer.name, finish=sample.finish))
    return completions, requests, samples


def scored_ids(
    writer: Writer,
    reader: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    requests: Sequence[Request],
    samples: Sequence[Sample],
) -> list[list[int]]:
    """What a reward model with tokenizer `reader` reads: the sampled ids where tokens and template are the
    writer's, else the texts in its own.

    After worked examples it reads the prompt without them.
    """
    if not writer.examples and same_reading(writer.tokenizer, reader):
        return [[*r.prompt_ids, *s.completion_ids] for r, s in zip(requests, samples, strict=True)]
    pairs = [(p.text, c.text, c.finish != "length") for p, c in zip(prompts, completions, strict=True)]
    return [a + b for a, b in encode_pairs(reader, pairs)]


def leaves_room(
    writer: Writer, reader: PreTrainedTokenizerBase, prompts: Sequence[Prompt], max_new_tokens: int, context: int
) -> list[bool]:
    """Whether what `scored_ids` gives of each prompt and a completion of so many tokens fits a reward model's context.

    Where the two have other tokens a completion may be of more of the reader's than of the writer's: see `require_fit`.
    """
    if not writer.examples and same_reading(writer.tokenizer, reader):
        lengths = [len(writer.prompt_ids(p)) for p in prompts]
    else:
        lengths = [len(a) + len(b) for a, b in encode_pairs(reader, [(p.text, "", True) for p in prompts])]
    return [length + max_new_tokens <= context for length in lengths]


def require_fit(sequences: Sequence[Sequence[int]], context: int, name: str) -> None:
    """Raises ValueError if a reward model cannot read a sequence whole."""
    longest = max(map(len, sequences), default=0)
    if longest > context:
        raise ValueError(
            f"reward_model {name}: an answer and its prompt are {longest} of its tokens, more than its context of "
            f"{context}; lower max_new_tokens, or leave reward_model out"
        )


def fits(writer: Writer, prompt: Prompt, max_prompt_tokens: int, max_new_tokens: int) -> bool:
    """Whether a prompt is within its limit and leaves room for a completion in the model's context."""
    length = len(writer.prompt_ids(prompt))
    return length <= max_prompt_tokens and length + max_new_tokens <= context_length(writer.policy)
