"""The local engine: samples from any Hugging Face causal model, on this machine, without its `generate`.

A preallocated cache, one uniform number per row and step, finished rows dropped, requests of like length together.

A request gives the same tokens in any batch. Matrix products differ in their last bits with the shape of the batch, so
wherever a choice hangs on less than `NEAR_TIE`, the row is computed once more by itself and that result decides. This
holds in fp32; differences in bf16 exceed the margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from tutelage.models.forward import hidden_states
from tutelage.models.loading import context_length, output_head
from tutelage.records import Request, Sample
from tutelage.sampling.random import uniforms

NEAR_TIE = 1e-5  # of probability; measured differences stay below 2e-6
NEAR_TIE_LOGIT = 2e-5  # between the two best logits; measured differences stay below 4e-6
KEEP = 0.75  # drop finished rows once fewer than this share of the rows go on


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, (b, heads, capacity, d), of which the first `length` are filled."""

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys = key_states.new_empty(*key_states.shape[:2], self.capacity, key_states.shape[-1])
        self.values = value_states.new_empty(*value_states.shape[:2], self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        assert self.keys is not None
        assert self.values is not None
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with some of the rows only."""
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys[rows], self.values[rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


@dataclass
class _Rows:
    """The requests under way in one batch. Prompts are padded on the left, so that all rows end in the same slot."""

    index: torch.Tensor  # (b,) which request
    seeds: torch.Tensor  # (b,)
    temperature: torch.Tensor  # (b,) zero is greedy
    top_p: torch.Tensor
    top_k: torch.Tensor
    budget: torch.Tensor  # (b,) most new tokens
    position: torch.Tensor  # (b,) of the token to be fed next
    visible: torch.Tensor  # (b, capacity) false on padding
    unpadded: bool  # no row has padding: attention needs no mask

    def keep(self, rows: torch.Tensor) -> _Rows:
        kept = {name: value[rows] for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return _Rows(**kept, unpadded=self.unpadded)


class LocalSampler:
    """Samples from a policy on its own device.

    Args:
        policy: any causal language model whose logits are linear in its last hidden states.
        batch_tokens: bound on rows x (prompt + completion) under way at once; it sets the cache's size.
    """

    def __init__(self, policy: PreTrainedModel, batch_tokens: int = 32768) -> None:
        if policy.config._attn_implementation != "sdpa":  # others read the boolean mask as numbers to add
            name = type(policy).__name__
            raise ValueError(f"{name}: sampling needs sdpa attention, not {policy.config._attn_implementation}")
        self.policy = policy
        self.batch_tokens = batch_tokens

    def sample(self, requests: Sequence[Request]) -> list[Sample]:
        """One sample per request, in their order.

        Raises:
            ValueError: if a prompt is empty or, with its completion, would not fit the model's context.
        """
        limit = context_length(self.policy)
        for r in requests:
            if not r.prompt_ids or len(r.prompt_ids) + r.max_new_tokens > limit:
                raise ValueError(
                    f"a prompt of {len(r.prompt_ids)} tokens with {r.max_new_tokens} new ones "
                    f"does not fit the context of {limit}"
                )
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt_ids), requests[i].max_new_tokens))
        answers: list[Sample | None] = [None] * len(requests)
        while order:
            batch = self._next_batch(requests, order)
            for i, answer in zip(batch, self._run([requests[i] for i in batch]), strict=True):
                answers[i] = answer
        return [a for a in answers if a is not None]

    def _next_batch(self, requests: Sequence[Request], order: list[int]) -> list[int]:
        """Take requests from the long end while rows x longest fits the budget."""
        batch: list[int] = []
        width = depth = 0
        while order:
            r = requests[order[-1]]
            width, depth = max(width, len(r.prompt_ids)), max(depth, r.max_new_tokens)
            if batch and (len(batch) + 1) * (width + depth) > self.batch_tokens:
                break
            batch.append(order.pop())
        return batch

    @torch.inference_mode()
    def _run(self, requests: list[Request]) -> list[Sample]:
        device = self.policy.device
        ids, rows = _start(requests, device)
        depth = max(r.max_new_tokens for r in requests)
        layers = [_Layer(ids.shape[1] + depth) for _ in range(self.policy.config.num_hidden_layers)]
        cache = Cache(layers=layers)
        tokens = torch.zeros(len(requests), depth, dtype=torch.long, device=device)
        logprobs = torch.zeros(len(requests), depth, device=device)
        stops = sorted({stop for r in requests for stop in r.stop_ids})
        is_stop = torch.zeros(len(requests), self.policy.config.vocab_size, dtype=torch.bool)
        for i, r in enumerate(requests):
            is_stop[i, list(r.stop_ids)] = True
        is_stop = is_stop.to(device) if stops else is_stop[:, :0]

        hidden = self._prefill(ids, rows, cache)
        for step in range(depth):
            logits = self._logits(hidden)
            chosen, near_tie = choose(logits, rows, step)
            for k in (near_tie & (rows.budget > 0)).nonzero().flatten().tolist():
                chosen[k] = self._alone(
                    requests[int(rows.index[k])], tokens[rows.index[k], :step], rows.keep(torch.tensor([k])), step
                )
            scale = torch.where(rows.temperature > 0, rows.temperature, 1.0)
            tokens[rows.index, step] = chosen
            scaled = logits / scale[:, None]
            logprobs[rows.index, step] = scaled.gather(1, chosen[:, None]).squeeze(1) - scaled.logsumexp(1)

            ended = step + 1 >= rows.budget
            if stops:
                ended |= is_stop[rows.index, chosen]
            if ended.all():
                break
            # Finished rows keep computing until enough have finished to be worth moving the cache; what they write
            # after their end is cut off below.
            going = (~ended & (rows.budget > 0)).nonzero().flatten()
            rows.budget[ended] = 0
            if len(going) <= KEEP * len(rows.index):
                rows, chosen = rows.keep(going), chosen[going]
                for layer in layers:
                    layer.keep(going)
            hidden = self._decode(chosen, rows, cache, layers[0].length)
            rows.position += rows.budget > 0  # a finished row stays: the model may have no position after its last
        return [_finish(r, t, lp) for r, t, lp in zip(requests, tokens.tolist(), logprobs.tolist(), strict=True)]

    def _prefill(self, ids: torch.Tensor, rows: _Rows, cache: Cache) -> torch.Tensor:
        length = ids.shape[1]
        seen = rows.visible[:, :length]
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        mask = seen[:, None, None, :] & causal
        mask |= torch.eye(length, dtype=torch.bool, device=ids.device)  # padding attends to itself: no empty softmax
        positions = (seen.long().cumsum(1) - 1).clamp(min=0)
        out = self.policy.base_model(
            input_ids=ids,
            attention_mask=None if rows.unpadded else mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        return out.last_hidden_state[:, -1]

    def _decode(self, chosen: torch.Tensor, rows: _Rows, cache: Cache, length: int) -> torch.Tensor:
        seen = None if rows.unpadded else rows.visible[:, None, None, : length + 1]
        out = self.policy.base_model(
            input_ids=chosen[:, None],
            attention_mask=seen,
            position_ids=rows.position[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        return out.last_hidden_state[:, -1]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        weight, bias = output_head(self.policy)
        return torch.nn.functional.linear(hidden, weight, bias).float()

    def _alone(self, request: Request, written: torch.Tensor, row: _Rows, step: int) -> torch.Tensor:
        """The token that this request gets when computed by itself, whole and without a cache."""
        ids = torch.tensor([[*request.prompt_ids, *written.tolist()]], device=self.policy.device)
        chosen, _ = choose(self._logits(hidden_states(self.policy, ids)[:, -1]), row, step)
        return chosen[0]


def _start(requests: list[Request], device: torch.device) -> tuple[torch.Tensor, _Rows]:
    """Left-padded prompts, and the rows' state before the first token."""
    lengths = torch.tensor([len(r.prompt_ids) for r in requests])
    width = int(lengths.max())
    capacity = width + max(r.max_new_tokens for r in requests)
    ids = torch.zeros(len(requests), width, dtype=torch.long)
    for i, r in enumerate(requests):
        ids[i, width - len(r.prompt_ids) :] = torch.tensor(r.prompt_ids)
    rows = _Rows(
        index=torch.arange(len(requests)),
        seeds=torch.tensor([r.seed for r in requests]),
        temperature=torch.tensor([r.temperature for r in requests]),
        top_p=torch.tensor([r.top_p for r in requests]),
        top_k=torch.tensor([r.top_k for r in requests]),
        budget=torch.tensor([r.max_new_tokens for r in requests]),
        position=lengths.clone(),
        visible=torch.arange(capacity) >= (width - lengths)[:, None],
        unpadded=bool((lengths == width).all()),
    )
    moved = {name: value.to(device) for name, value in vars(rows).items() if isinstance(value, torch.Tensor)}
    return ids.to(device), _Rows(**moved, unpadded=rows.unpadded)


def choose(logits: torch.Tensor, rows: _Rows, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Next tokens (b,) by inverse transform sampling, and where the choice was too close to trust the last bits.

    The vocabulary is cut into about sqrt(v) blocks; one uniform number picks the block, a second the token in it. A
    small change of probabilities moves a boundary a little, and only a draw beside a boundary changes; two levels leave
    each draw about sqrt(v) boundaries to be beside, instead of v.
    """
    greedy = rows.temperature == 0
    best = logits.topk(2, dim=1) if greedy.any() else None
    if best is not None and greedy.all():
        return best.indices[:, 0], best.values[:, 0] - best.values[:, 1] < NEAR_TIE_LOGIT
    probs = (logits / torch.where(greedy, 1.0, rows.temperature)[:, None]).softmax(1)
    near = torch.zeros_like(greedy)
    if (rows.top_k > 0).any() or (rows.top_p < 1).any():
        probs, near = _filter(probs, rows)
    side = math.isqrt(probs.shape[1] - 1) + 1
    blocks = torch.nn.functional.pad(probs, (0, side * side - probs.shape[1])).view(-1, side, side)
    block, near_block = _draw(blocks.sum(2), uniforms(rows.seeds, 2 * step))
    row = torch.arange(len(block), device=block.device)
    inside, near_inside = _draw(blocks[row, block], uniforms(rows.seeds, 2 * step + 1))
    chosen, near = block * side + inside, near | near_block | near_inside
    if best is not None:
        chosen = torch.where(greedy, best.indices[:, 0], chosen)
        near = torch.where(greedy, best.values[:, 0] - best.values[:, 1] < NEAR_TIE_LOGIT, near)
    return chosen, near


def _draw(weights: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index (b,) that each uniform number picks by weights (b, k), and whether it fell beside a boundary."""
    cdf = weights.cumsum(1, dtype=torch.float64)
    total = cdf[:, -1:]
    point = uniform[:, None] * total
    picked = torch.searchsorted(cdf, point, right=True).clamp(max=weights.shape[1] - 1)
    above = cdf.gather(1, picked) - point
    below = torch.where(picked > 0, point - cdf.gather(1, (picked - 1).clamp(min=0)), total)
    return picked.squeeze(1), (torch.minimum(above, below) < NEAR_TIE * total).squeeze(1)


def _filter(probs: torch.Tensor, rows: _Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities outside top-k, then outside the smallest set of mass top-p, set to 0; and if a cut was close."""
    ordered, index = probs.sort(1, descending=True)
    place = torch.arange(probs.shape[1], device=probs.device)
    top_k = torch.where(rows.top_k > 0, rows.top_k, probs.shape[1])[:, None]
    kept = place < top_k
    ordered = torch.where(kept, ordered, 0.0)
    mass_before = (ordered.cumsum(1) - ordered) / ordered.sum(1, keepdim=True)
    kept &= (mass_before < rows.top_p[:, None]) | (rows.top_p == 1)[:, None]
    last = kept.sum(1, keepdim=True) - 1
    after = (last + 1).clamp(max=probs.shape[1] - 1)
    gap = probs.sort(1, descending=True).values
    near = ((gap.gather(1, last) - gap.gather(1, after)) < NEAR_TIE) & (after > last)
    near |= ((mass_before - rows.top_p[:, None]).abs() < NEAR_TIE).any(1, keepdim=True) & (rows.top_p < 1)[:, None]
    filtered = torch.zeros_like(probs).scatter(1, index, torch.where(kept, ordered, 0.0))
    return filtered, near.squeeze(1)


def _finish(request: Request, tokens: list[int], logprobs: list[float]) -> Sample:
    """Cut a row after its first stop token, or at its budget."""
    for i, token in enumerate(tokens[: request.max_new_tokens]):
        if token in request.stop_ids:
            return Sample(tuple(tokens[: i + 1]), tuple(logprobs[: i + 1]), "stop")
    finish: Literal["length"] = "length"
    return Sample(tuple(tokens[: request.max_new_tokens]), tuple(logprobs[: request.max_new_tokens]), finish)
