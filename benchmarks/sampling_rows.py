"""Rows of sampling: our sampler beside transformers' `generate` and its continuous batching, in this process.

The peer makes batches as is best for it: the warm-up tries batch sizes, both caches and continuous batching.
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from results import Row
from roof import sampling
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from work import TURN, Work, end_token, make_models, prompt_ids

from tutelage.data.records import Request
from tutelage.models.loading import load_policy
from tutelage.models.precision import has_bf16_units
from tutelage.models.tokens import load_tokenizer
from tutelage.sampling.local import LocalSampler
from tutelage.sampling.seeds import request_seed

Completions = list[tuple[int, ...]]
Call = Callable[[int], Completions]  # of a seed


@dataclass(frozen=True)
class Batch:
    """What both sides are asked: `copies` completions of each prompt, ended by end-of-text or at `most` tokens."""

    prompts: list[list[int]]
    most: int
    end: int | None
    copies: int = 1

    def ours(self, sampler: LocalSampler, seed: int, temperature: float = 1.0) -> Completions:
        """Completions."""
        stops = () if self.end is None else (self.end,)
        requests = [
            Request(tuple(ids), request_seed(seed, 0, str(i), k), self.most, stops, temperature)
            for i, ids in enumerate(self.prompts)
            for k in range(self.copies)
        ]
        return [s.completion_ids for s in sampler.sample(requests)]

    def settings(self, temperature: float) -> dict[str, object]:
        """Of the peer, however it makes batches."""
        drawn = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        return {
            "do_sample": temperature > 0, **drawn, "pad_token_id": 0, "eos_token_id": self.end,
            "max_new_tokens": self.most, "num_return_sequences": self.copies,
        }  # fmt: skip

    def generate(
        self, model: PreTrainedModel, size: int, cache: str, seed: int, temperature: float = 1.0
    ) -> Completions:
        """The same by `generate`, `size` prompts at once, from short to long, padded on the left."""
        torch.manual_seed(seed)
        order = sorted(range(len(self.prompts)), key=lambda i: len(self.prompts[i]))
        found: dict[int, list[tuple[int, ...]]] = {}
        config = GenerationConfig(cache_implementation=cache, **self.settings(temperature))
        model.generation_config.eos_token_id = self.end
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            width = max(len(self.prompts[i]) for i in rows)
            ids = torch.tensor([[0] * (width - len(self.prompts[i])) + self.prompts[i] for i in rows])
            mask = (torch.arange(width) >= torch.tensor([[width - len(self.prompts[i])] for i in rows])).long()
            out = model.generate(ids, attention_mask=mask, generation_config=config)[:, width:].tolist()
            for place, i in enumerate(rows):
                found[i] = [self.cut(ids) for ids in out[place * self.copies : (place + 1) * self.copies]]
        return [ids for i in range(len(self.prompts)) for ids in found[i]]

    def cut(self, ids: list[int]) -> tuple[int, ...]:
        """A row up to its end token."""
        return tuple(ids[: ids.index(self.end) + 1] if self.end in ids else ids)

    def continuous(self, model: PreTrainedModel, page: int, tokens: int, seed: int) -> Completions:
        """The same by transformers' continuous batching, its cache as large as all requests want and kept for the next.

        Raises:
            RuntimeError: if its thread has not finished all requests.
        """
        torch.manual_seed(seed)
        slots = max(map(len, self.prompts)) + self.most
        blocks = (-(-slots // page) + 1) * len(self.prompts) * self.copies
        config = ContinuousBatchingConfig(page_size=page, num_blocks=blocks, max_batch_tokens=tokens, seed=seed)
        settings = GenerationConfig(**self.settings(1.0))
        out = model.generate_batch(self.prompts, settings, config, persistent_manager=True, warmup=False)
        if len(out) < len(self.prompts) * self.copies or any(answer.error for answer in out.values()):
            raise RuntimeError("not all requests were finished")
        return [tuple(answer.generated_tokens) for answer in out.values()]


def peers(batch: Batch, model: PreTrainedModel) -> Iterator[tuple[str, Call]]:
    """All ways in which the peer could do it."""
    for size in sorted({min(64, len(batch.prompts)), len(batch.prompts)}):
        for cache in ("dynamic", "static"):
            yield f"`generate` {size} × {cache} cache", partial(batch.generate, model, size, cache)
    for page, tokens in ((32, 512), (128, 2048)):
        call = partial(batch.continuous, copy.deepcopy(model), page, tokens)
        yield f"continuous batching, pages of {page}", call


def rate(call: Call, seeds: Sequence[int], lengths: list[int]) -> float:
    """Tokens per second over one call per seed; the completions' lengths are kept."""
    began = time.perf_counter()
    made = [len(ids) for seed in seeds for ids in call(seed)]
    took = time.perf_counter() - began
    lengths += made
    return sum(made) / took


def fastest(batch: Batch, model: PreTrainedModel) -> tuple[str, Call, str]:
    """The peer's best way with its name, and what was tried. One that is far behind is not tried twice."""
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
    calls, speeds, failed = dict(peers(batch, model)), dict[str, float](), []
    if has_bf16_units():
        rounded = peers(batch, copy.deepcopy(model).bfloat16())
        calls |= {f"{name}, bf16": call for name, call in rounded}
    for name, call in calls.items():
        try:
            speeds[name] = rate(call, (0,), [])
            if speeds[name] > 0.8 * max(speeds.values()):
                speeds[name] = max(speeds[name], rate(call, (0,), []))
        except Exception as error:  # of whatever kind: a peer that cannot is no reason to stop
            failed.append(f"{name} failed: {str(error).splitlines()[0]}")
    best = max(speeds, key=speeds.__getitem__)
    return best, calls[best], "; ".join([*(f"{n} {s:,.0f}" for n, s in speeds.items()), *failed])


def sampling_row(folder: Path, work: Work, rounds: int, copies: int = 1) -> Row:
    """Our sampler against the best of transformers'."""
    make_models(folder, work)
    batch = Batch(prompt_ids(folder), work.most, end_token(folder) if work.mean else None, copies)
    policy = load_policy(folder / "policy", load_tokenizer(folder / "policy"))
    sampler = LocalSampler(policy, bf16=True)  # as in reinforcement learning
    model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32).eval()
    each = f" × {copies} samples" if copies > 1 else ""
    row = Row(f"sampling, {work.shape}, {work.number} prompts{each}, {work}", "tokens/s")
    row.flops = sampling(work, copies) / (work.number * copies * work.tokens)

    few = Batch(batch.prompts[:16], work.most, batch.end)
    both = zip(few.ours(LocalSampler(policy), 0, 0.0), few.generate(model, 16, "dynamic", 0, 0.0), strict=True)
    same = sum(a == b for a, b in both)
    row.notes.append(f"greedily in fp32, {same} of {len(few.prompts)} prompts get the same tokens on both sides")

    best, peer, tried = fastest(batch, model)
    own = "bf16" if sampler.bf16 else "fp32"
    row.notes.append(f"ours in {own}; peer is {best} (in the warm-up, tokens/s, fp32 unless said: {tried})")
    ours = partial(batch.ours, sampler)
    ours(0)
    lengths: tuple[list[int], list[int]] = ([], [])
    turn = TURN if work.number * copies <= 64 else 1
    for r in range(rounds):
        seeds = range(1 + turn * r, 1 + turn * (r + 1))
        row.ours.append(rate(ours, seeds, lengths[0]))
        row.peer.append(rate(peer, seeds, lengths[1]))
    row.notes.append("mean completion: ours {:.1f} tokens, peer {:.1f}".format(*map(statistics.fmean, lengths)))
    return row
