"""What items ask, asked of a model: log-probabilities in fp32, and texts from the sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tutelage.data.records import Message, Request
from tutelage.evaluation.benchmarks.protocol import Ask, Continuations, Generation, Item
from tutelage.models.architecture import context_length, stop_ids
from tutelage.models.forward import logprob_sums_by_group, pass_tokens
from tutelage.models.precision import full_precision
from tutelage.models.tokens import decode_answer, encode_pairs, encode_prompt, encode_text
from tutelage.sampling.completions import Writer
from tutelage.sampling.engines import open_sampler
from tutelage.sampling.seeds import request_seed
from tutelage.settings.benchmarks import BenchmarkConfig


@dataclass(frozen=True)
class Group:
    """A context with several texts after it, as ids; `cut` where the context lost its first tokens to fit."""

    context: list[int]
    texts: list[list[int]]
    cut: bool = False


def encode_group(writer: Writer, ask: Continuations) -> Group | None:
    """The ids of a context and of the texts after it; None if a text fills the model's context by itself.

    A context that is too long loses its first tokens, but not the token that begins a text. A text without a context
    follows that token or, where the tokenizer has none, end-of-text, as a document follows another.
    """
    beginning = encode_text(writer.tokenizer, "") or [writer.tokenizer.eos_token_id]
    if ask.context:
        pairs = encode_pairs(writer.tokenizer, [(ask.context, text, False) for text in ask.texts])
        context, texts = list(pairs[0][0]), [list(ids) for _, ids in pairs]
    else:
        context = beginning
        texts = [_without(beginning, encode_text(writer.tokenizer, text)) for text in ask.texts]
    room = context_length(writer.policy) - max(map(len, texts))
    if len(context) <= room:
        return Group(context, texts)
    head = beginning if context[: len(beginning)] == beginning else []
    if room <= len(head):
        return None
    return Group(head + context[len(context) - room + len(head) :], texts, True)


def _without(beginning: list[int], ids: list[int]) -> list[int]:
    return ids[len(beginning) :] if ids[: len(beginning)] == beginning else ids


def encode_generation(writer: Writer, ask: Generation, chat: bool) -> list[int] | None:
    """The ids that a text goes on from; None if they leave no room for it."""
    prompt = (Message(role="user", content=ask.text),) if chat and ask.instruction else ask.text
    ids = encode_prompt(writer.tokenizer, prompt)
    return list(ids) if 0 < len(ids) < context_length(writer.policy) else None


def fits(writer: Writer, item: Item, chat: bool) -> bool:
    """Whether a model can read all that an item asks."""
    return all(
        (encode_group(writer, a) if isinstance(a, Continuations) else encode_generation(writer, a, chat)) is not None
        for a in item.asks
    )


def ask(writer: Writer, task: str, items: Sequence[Item], chat: bool, config: BenchmarkConfig) -> dict[str, Any]:
    """A model's responses to each item, one for each of its asks, and in how many items a context was cut."""
    places = [(i, j) for i, item in enumerate(items) for j in range(len(item.asks))]
    asks: list[Ask] = [items[i].asks[j] for i, j in places]
    responses: dict[tuple[int, int], Mapping[str, Any]] = {}
    scored = [(place, each) for place, each in zip(places, asks, strict=True) if isinstance(each, Continuations)]
    groups = [g for _, each in scored if (g := encode_group(writer, each)) is not None]
    assert len(groups) == len(scored)  # of items that fit
    for (place, _), response in zip(
        scored, logprobs(writer, groups, [a.greedy for _, a in scored], config), strict=True
    ):
        responses[place] = response
    written = [(place, each) for place, each in zip(places, asks, strict=True) if isinstance(each, Generation)]
    names = [f"{task}/{items[i].id}/{j}" for (i, j), _ in written]
    for (place, _), texts in zip(written, generate(writer, names, [a for _, a in written], chat, config), strict=True):
        responses[place] = {"texts": texts}
    cut = {i for ((i, _), _), group in zip(scored, groups, strict=True) if group.cut}
    return {"responses": [[responses[i, j] for j in range(len(o.asks))] for i, o in enumerate(items)], "cut": len(cut)}


@torch.inference_mode()
def logprobs(
    writer: Writer, groups: Sequence[Group], greedy: Sequence[bool], config: BenchmarkConfig
) -> list[dict[str, Any]]:
    """Of each group the summed log-probabilities of its texts, in nats; and, where asked, whether greedy sampling gives
    the first text."""
    policy = writer.policy
    sums: list[list[float]] = [[] for _ in groups]
    whole = [[g.context + text for text in g.texts] for g in groups]
    with full_precision():
        lengths = [len(g.context) for g in groups]
        for part in logprob_sums_by_group(policy, whole, lengths, pass_tokens(policy)):
            for number, values in part:
                sums[number] = values.tolist()
    wanted = [number for number, each in enumerate(greedy) if each]
    requests = [
        Request(tuple(groups[n].context), 0, len(groups[n].texts[0]), stop_ids(policy), temperature=0.0) for n in wanted
    ]
    samples = open_sampler(config.sampler, policy).sample(requests)
    likeliest = {n: list(s.completion_ids) == groups[n].texts[0] for n, s in zip(wanted, samples, strict=True)}
    return [{"logprobs": own, "greedy": likeliest.get(number)} for number, own in enumerate(sums)]


def generate(
    writer: Writer, names: Sequence[str], asks: Sequence[Generation], chat: bool, config: BenchmarkConfig
) -> list[list[str]]:
    """Of each ask its texts; `names` tell asks apart, so that each has seeds of its own."""
    limit, stops, requests, prompts = context_length(writer.policy), stop_ids(writer.policy), [], []
    for name, each in zip(names, asks, strict=True):
        ids = encode_generation(writer, each, chat)
        assert ids is not None  # of items that fit
        most = min(each.most or config.sampler.max_new_tokens, limit - len(ids))
        requests += [
            Request(tuple(ids), request_seed(config.seed, 0, name, k), most, stops, each.temperature, each.top_p)
            for k in range(each.samples)
        ]
        prompts += [each] * each.samples
    samples = open_sampler(config.sampler, writer.policy).sample(requests)
    texts = []
    for request, each, sample in zip(requests, prompts, samples, strict=True):
        prompt = (Message(role="user", content=each.text),) if chat and each.instruction else each.text
        text = decode_answer(writer.tokenizer, prompt, request.prompt_ids, sample.completion_ids)
        ends = [at for stop in each.stops if (at := text.lstrip().find(stop)) >= 0]
        texts.append(text.lstrip()[: min(ends)].rstrip() if ends else text)
    iterator = iter(texts)
    return [[next(iterator) for _ in range(each.samples)] for each in asks]
