"""The local engine: samples from any Hugging Face causal model, on this machine, without its `generate`.

Each distinct prompt is read once, among prompts of like length, whatever the number of its samples. Rows then go on
together, one token each: a finished row's place is taken by a waiting request (continuous batching), in a cache that is
allocated once. One pair of uniform numbers a row and step decides.

A request gives the same tokens in any batch. Matrix products differ in their last bits with the shape of the batch, so
wherever a choice hangs on less than `NEAR_TIE`, the row is computed once more by itself and that result decides. This
holds in fp32. In bf16 the same batch gives the same tokens, and log-probabilities are those that the tokens were drawn
with: a loop of reinforcement learning, whose ratio accounts for them, samples in bf16 where that is faster.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from tutelage.models import attention
from tutelage.models.attention import Window
from tutelage.models.forward import hidden_states, pass_tokens
from tutelage.models.loading import context_length, output_head, trains_in_bf16
from tutelage.models.packing import micro_batches
from tutelage.records import Request, Sample
from tutelage.sampling.random import uniforms

NEAR_TIE = 1e-5  # of probability; measured differences stay below 2e-6
NEAR_TIE_LOGIT = 2e-5  # between the two best logits; measured differences stay below 4e-6
GROUP = 32  # rows that share a window on the cache
KEEP = 0.75  # give the places of finished rows away once fewer than this share of the rows go on
SLACK = 128  # slots beyond the longest sequence, so that the window need not move at every step


@dataclass
class _Window:
    """The slots [start, end) of the cache that are in use. All rows end in the same slot, the next token goes to `end`,
    and a row with n tokens has the last n slots."""

    start: int
    end: int


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, (places, heads, slots, d), of which the first rows and a window are in use."""

    is_sliding = False

    def __init__(self, window: _Window, places: int, slots: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.window, self.places, self.slots, self.dtype = window, places, slots, dtype

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        # Zeros, as a masked slot still enters the sums, times 0: what memory held before may be no number.
        self.keys, self.values = (
            x.new_zeros(self.places, x.shape[1], self.slots, x.shape[3], dtype=self.dtype)
            for x in (key_states, value_states)
        )
        self.is_initialized = True

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def admit(
        self, keys: torch.Tensor, values: torch.Tensor, copies: Sequence[Sequence[int]], lengths: list[int]
    ) -> None:
        """Add rows: of prompts (u, heads, l, d), right-padded, the u-th into the places `copies[u]`."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        end = self.window.end
        for mine, given in zip(self.tensors, (keys, values), strict=True):
            for places, length, prompt in zip(copies, lengths, given, strict=True):
                mine[places, :, end - length : end] = prompt[:, :length].to(mine.dtype)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.tensors
        start, end, rows = self.window.start, self.window.end, len(key_states)
        keys[:rows, :, end] = key_states[:, :, 0]
        values[:rows, :, end] = value_states[:, :, 0]
        return keys[:rows, :, start : end + 1], values[:rows, :, start : end + 1]

    def keep(self, places: torch.Tensor, first: int) -> None:
        """Let the rows at these places stand after each other, from place `first` on."""
        for mine in self.tensors:
            used = mine[:, :, self.window.start : self.window.end]
            used[first : first + len(places)] = used[places]

    def shift(self, rows: int) -> None:
        """Bring the window to the front."""
        start, end = self.window.start, self.window.end
        for mine in self.tensors:
            mine[:rows, :, : end - start] = mine[:rows, :, start:end].clone()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.window.end - self.window.start

    def get_max_length(self) -> int:
        return self.slots


@dataclass
class _Rows:
    """The requests under way."""

    index: torch.Tensor  # (b,) which request
    seeds: torch.Tensor  # (b,)
    temperature: torch.Tensor  # (b,) zero is greedy
    top_p: torch.Tensor
    top_k: torch.Tensor
    budget: torch.Tensor  # (b,) new tokens still to come at the most; 0 once finished
    step: torch.Tensor  # (b,) new tokens so far
    position: torch.Tensor  # (b,) of the token to be fed next: how many tokens the cache holds of the row

    def keep(self, rows: torch.Tensor) -> _Rows:
        return _Rows(**{name: value[rows] for name, value in vars(self).items()})

    def join(self, other: _Rows) -> _Rows:
        return _Rows(**{name: torch.cat([value, getattr(other, name)]) for name, value in vars(self).items()})


class LocalSampler:
    """Samples from a policy on its own device.

    Args:
        policy: any causal language model whose logits are linear in its last hidden states.
        batch_tokens: bound on rows x slots of the cache, which is how many requests are under way at once.
        bf16: sample from the policy rounded to bf16, where that gains (`trains_in_bf16`).
    """

    def __init__(self, policy: PreTrainedModel, batch_tokens: int = 65536, bf16: bool = False) -> None:
        if policy.config._attn_implementation not in (attention.NAME, "sdpa"):  # others add the boolean mask up
            name = type(policy).__name__
            raise ValueError(f"{name}: sampling needs sdpa attention, not {policy.config._attn_implementation}")
        self.policy = policy
        self.batch_tokens = batch_tokens
        self.bf16 = bf16 and trains_in_bf16(policy)

    @torch.inference_mode()
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
        if not requests:
            return []
        policy = in_bf16(self.policy) if self.bf16 else self.policy
        return _Session(policy, requests, self.batch_tokens).run()


class _Session:
    """One call of `sample`: the rows under way, those waiting, and the cache."""

    def __init__(self, policy: PreTrainedModel, requests: Sequence[Request], batch_tokens: int) -> None:
        self.policy, self.requests, self.device = policy, requests, policy.device
        self.exact = policy.dtype == torch.float32
        # From the end, the longest prompts are taken first: then every waiting prompt fits the window in use.
        sizes = [(len(r.prompt_ids), r.max_new_tokens) for r in requests]
        self.waiting = sorted(range(len(requests)), key=sizes.__getitem__)
        longest = max(prompt + new for prompt, new in sizes)
        self.slots = longest + SLACK
        self.places = min(len(requests), max(1, batch_tokens // self.slots))
        self.window = _Window(0, 0)
        # On processors products of a matrix with one vector are slower in bf16 than in fp32 (docs/performance.md).
        ours = self.device.type == "cpu" and policy.config._attn_implementation == attention.NAME
        dtype = torch.float32 if ours else policy.dtype
        number = policy.config.num_hidden_layers
        self.layers = [_Layer(self.window, self.places, self.slots, dtype) for _ in range(number)]
        self.cache = Cache(layers=self.layers)
        depth = max(r.max_new_tokens for r in requests)
        self.tokens = torch.zeros(len(requests), depth, dtype=torch.long, device=self.device)
        self.logprobs = torch.zeros(len(requests), depth, device=self.device)
        stops = max(len(r.stop_ids) for r in requests)
        padded = [[*r.stop_ids, *[-1] * (stops - len(r.stop_ids))] for r in requests]
        self.stop_ids = torch.tensor(padded, device=self.device).view(len(requests), stops)

    def run(self) -> list[Sample]:
        rows, hidden = self._admit(0)
        while True:
            # 1. Everybody's next token.
            weight, bias = output_head(self.policy)
            logits = torch.nn.functional.linear(hidden, weight, bias).float()
            chosen, logprobs, near_tie = choose(logits, rows)
            for k in (near_tie & (rows.budget > 0)).nonzero().flatten().tolist() if self.exact else ():
                chosen[k], logprobs[k] = self._alone(rows.keep(torch.tensor([k], device=self.device)))
            going = rows.budget > 0
            self.tokens[rows.index[going], rows.step[going]] = chosen[going]
            self.logprobs[rows.index[going], rows.step[going]] = logprobs[going]
            # 2. Who has ended? They keep computing until enough places are worth giving away.
            rows.step += going
            rows.budget -= going.long()
            rows.budget[(self.stop_ids[rows.index] == chosen[:, None]).any(1)] = 0
            going = rows.budget > 0
            number = int(going.sum())
            if number == 0 and not self.waiting:
                return [self._finish(i) for i in range(len(self.requests))]
            if number <= KEEP * len(rows.index):
                rows, chosen = self._close_ranks(rows, chosen, going)
            # 3. Their tokens are fed; new requests come in beside them.
            hidden = self._decode(rows, chosen) if len(rows.index) else hidden[:0]
            if self.waiting and len(rows.index) <= KEEP * self.places:
                new, first_hidden = self._admit(len(rows.index))
                rows, hidden = rows.join(new), torch.cat([hidden, first_hidden])

    def _admit(self, there: int) -> tuple[_Rows, torch.Tensor]:
        """Fill the free places beside the rows that are there: read each distinct prompt once; the hidden states (b, d)
        that predict the first tokens."""
        new = [self.waiting.pop() for _ in range(min(len(self.waiting), self.places - there))]
        places: dict[tuple[int, ...], list[int]] = {}
        for k, i in enumerate(new):
            places.setdefault(self.requests[i].prompt_ids, []).append(k)
        prompts = list(places)
        longest = max(map(len, prompts))
        if not there:
            self.window.start, self.window.end = 0, longest
        self.window.start = min(self.window.start, self.window.end - longest)
        hidden = None
        for batch in micro_batches(prompts, pass_tokens(self.policy), self.policy.config.pad_token_id or 0):
            batch = batch.to(self.device)
            read = DynamicCache()
            out = self.policy.base_model(input_ids=batch.ids, past_key_values=read, use_cache=True).last_hidden_state
            last = out[torch.arange(len(out), device=self.device), batch.lengths - 1]
            hidden = out.new_empty(len(new), out.shape[-1]) if hidden is None else hidden
            copies = [places[prompts[r]] for r in batch.rows]
            for row, of in zip(last, copies, strict=True):
                hidden[of] = row
            cells = [[there + k for k in of] for of in copies]
            for layer, given in zip(self.layers, read.layers, strict=True):
                layer.admit(given.keys, given.values, cells, batch.lengths.tolist())
        assert hidden is not None
        asked = [self.requests[i] for i in new]
        columns = {
            "index": new, "seeds": [r.seed for r in asked], "temperature": [r.temperature for r in asked],
            "top_p": [r.top_p for r in asked], "top_k": [r.top_k for r in asked],
            "budget": [r.max_new_tokens for r in asked], "step": [0] * len(new),
            "position": [len(r.prompt_ids) for r in asked],
        }  # fmt: skip
        return _Rows(**{name: torch.tensor(column, device=self.device) for name, column in columns.items()}), hidden

    def _close_ranks(self, rows: _Rows, chosen: torch.Tensor, going: torch.Tensor) -> tuple[_Rows, torch.Tensor]:
        """Drop finished rows; the others stay in their order, from long to short, and move up."""
        places = going.nonzero().flatten()
        first = int(going.logical_not().nonzero()[0])
        for layer in self.layers:
            layer.keep(places[first:], first)
        return rows.keep(places), chosen[places]

    def _decode(self, rows: _Rows, chosen: torch.Tensor) -> torch.Tensor:
        going = rows.budget > 0
        counts = rows.position[going] if going.any() else rows.position
        self.window.start = self.window.end - int(counts.max())
        if self.window.end == self.slots:
            for layer in self.layers:
                layer.shift(len(rows.index))
            self.window.start, self.window.end = 0, self.window.end - self.window.start
        mask, windows = self._seen(rows.position)
        out = self.policy.base_model(
            input_ids=chosen[:, None], attention_mask=mask, position_ids=rows.position[:, None],
            past_key_values=self.cache, use_cache=True, windows=windows,
        )  # fmt: skip
        self.window.end += 1
        rows.position += going  # a finished row stays: the model may have no position after its last
        return out.last_hidden_state[:, -1]

    def _seen(self, position: torch.Tensor) -> tuple[torch.Tensor | None, list[Window] | None]:
        """Which slots of the window, the next one included, each row sees: as a mask (b, 1, 1, n), None if all, and by
        groups where our own attention reads them."""
        n = self.window.end + 1 - self.window.start
        first = (n - 1 - position).clamp(min=0)  # rows that have finished may have had more than the window holds
        if not first.any():
            return None, None
        mask = torch.arange(n, device=self.device) >= first[:, None]
        if self.device.type != "cpu":
            return mask[:, None, None], None
        windows: list[Window] = []
        for start in range(0, len(first), GROUP):
            rows = slice(start, start + GROUP)
            least, most = int(first[rows].min()), int(first[rows].max())
            windows.append((rows, least, mask[rows, least:] if least < most else None))
        return mask[:, None, None], windows

    def _alone(self, row: _Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Token and log-probability that this row's request gets when computed by itself, whole and without a cache."""
        index, step = int(row.index), int(row.step)
        ids = torch.tensor(
            [[*self.requests[index].prompt_ids, *self.tokens[index, :step].tolist()]], device=self.device
        )
        weight, bias = output_head(self.policy)
        logits = torch.nn.functional.linear(hidden_states(self.policy, ids)[:, -1], weight, bias).float()
        chosen, logprobs, _ = choose(logits, row)
        return chosen[0], logprobs[0]

    def _finish(self, index: int) -> Sample:
        request = self.requests[index]
        tokens, logprobs = self.tokens[index].tolist(), self.logprobs[index].tolist()
        end = next((i + 1 for i, t in enumerate(tokens[: request.max_new_tokens]) if t in request.stop_ids), None)
        cut = request.max_new_tokens if end is None else end
        return Sample(tuple(tokens[:cut]), tuple(logprobs[:cut]), "length" if end is None else "stop")


def in_bf16(policy: PreTrainedModel) -> PreTrainedModel:
    """A copy with its parameters in bf16. Buffers stay: rotary frequencies need their digits."""
    rounded = {
        id(p): torch.nn.Parameter(p.detach().to(torch.bfloat16, copy=True), requires_grad=False)
        for p in policy.parameters()
    }
    return copy.deepcopy(policy, rounded)


def choose(logits: torch.Tensor, rows: _Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Next tokens (b,) by inverse transform sampling, their log-probabilities at the rows' temperatures, and where the
    choice was too close to trust the last bits.

    The vocabulary is cut into about sqrt(v) blocks; one uniform number picks the block, a second the token in it. A
    small change of probabilities moves a boundary a little, and only a draw beside a boundary changes; two levels leave
    each draw about sqrt(v) boundaries to be beside, instead of v.
    """
    greedy = rows.temperature == 0
    best = logits.topk(2, dim=1) if greedy.any() else None
    logprobs = (logits / torch.where(greedy, 1.0, rows.temperature)[:, None]).log_softmax(1)
    if best is not None and greedy.all():
        chosen, near = best.indices[:, 0], best.values[:, 0] - best.values[:, 1] < NEAR_TIE_LOGIT
        return chosen, logprobs.gather(1, chosen[:, None]).squeeze(1), near
    probs = logprobs.exp()
    near = torch.zeros_like(greedy)
    if (rows.top_k > 0).any() or (rows.top_p < 1).any():
        probs, near = _filter(probs, rows)
    side = math.isqrt(probs.shape[1] - 1) + 1
    blocks = torch.nn.functional.pad(probs, (0, side * side - probs.shape[1])).view(-1, side, side)
    block, near_block = _draw(blocks.sum(2), uniforms(rows.seeds, 2 * rows.step))
    row = torch.arange(len(block), device=block.device)
    inside, near_inside = _draw(blocks[row, block], uniforms(rows.seeds, 2 * rows.step + 1))
    chosen, near = block * side + inside, near | near_block | near_inside
    if best is not None:
        chosen = torch.where(greedy, best.indices[:, 0], chosen)
        near = torch.where(greedy, best.values[:, 0] - best.values[:, 1] < NEAR_TIE_LOGIT, near)
    return chosen, logprobs.gather(1, chosen[:, None]).squeeze(1), near


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
