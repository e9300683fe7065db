"""The local engine: samples from any Hugging Face causal model, on this machine, without its `generate`.

A prompt is read once for all its samples that start together. Rows then go on together, one token each: a
finished row's place is taken by a waiting request (continuous batching), in a cache that is allocated once. One pair of
uniform numbers a row and step decides.

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

import torch
from transformers import PreTrainedModel

from tutelage.data.records import Request, Sample
from tutelage.models import memory
from tutelage.models.adapters import adapter_of
from tutelage.models.architecture import context_length
from tutelage.models.cpu import kernels, llama
from tutelage.models.forward import hidden_at, next_logits, pass_tokens
from tutelage.models.packing import micro_batches
from tutelage.models.precision import trains_in_bf16
from tutelage.sampling.seeds import uniforms

NEAR_TIE = 1e-5  # of probability; measured differences stay below 2e-6
NEAR_TIE_LOGIT = 2e-5  # between the two best logits; measured differences stay below 4e-6
ADMIT = 0.75  # let waiting requests in once fewer than this share of the places are taken


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
    place: torch.Tensor  # (b,) in the cache

    def keep(self, rows: torch.Tensor) -> _Rows:
        return _Rows(**{name: value[rows] for name, value in vars(self).items()})

    def join(self, other: _Rows) -> _Rows:
        return _Rows(**{name: torch.cat([value, getattr(other, name)]) for name, value in vars(self).items()})


class LocalSampler:
    """Samples from a policy on its own device.

    Args:
        policy: any causal language model that `load_policy` takes.
        batch_tokens: bound on rows x slots of the cache, which is how many requests are under way at once.
        bf16: sample from the policy rounded to bf16, where that gains (`trains_in_bf16`).
    """

    def __init__(self, policy: PreTrainedModel, batch_tokens: int = 32768, bf16: bool = False) -> None:
        self.policy = policy
        self.batch_tokens = batch_tokens
        # With an adapter no second copy of the base is made.
        self.bf16 = bf16 and trains_in_bf16(policy) and adapter_of(policy) is None
        self.kind = memory.Memory if memory.remembers(policy) else memory.Rereading

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
        kind = llama.Memory if llama.supports(policy) else self.kind
        return _Session(policy, requests, self.batch_tokens, kind).run()


class _Session:
    """One call of `sample`: the rows under way, those waiting, and the cache."""

    def __init__(
        self,
        policy: PreTrainedModel,
        requests: Sequence[Request],
        batch_tokens: int,
        kind: type[llama.Memory | memory.Memory | memory.Rereading],
    ) -> None:
        self.policy, self.requests, self.device = policy, requests, policy.device
        self.exact = policy.dtype == torch.float32
        # Taken from the end: those with the longest way to go first, so that the last are not left alone, and samples
        # of a prompt together, so that it is read once.
        order = [(r.max_new_tokens, len(r.prompt_ids), r.prompt_ids) for r in requests]
        self.waiting = sorted(range(len(requests)), key=order.__getitem__)
        slots = max(len(r.prompt_ids) + r.max_new_tokens for r in requests)
        self.places = min(len(requests), max(1, batch_tokens // slots))
        self.memory = kind(policy, self.places, slots)
        depth = max(r.max_new_tokens for r in requests)
        self.tokens = torch.zeros(len(requests), depth, dtype=torch.long, device=self.device)
        self.logprobs = torch.zeros(len(requests), depth, device=self.device)
        stops = max(len(r.stop_ids) for r in requests)
        padded = [[*r.stop_ids, *[-1] * (stops - len(r.stop_ids))] for r in requests]
        self.stop_ids = torch.tensor(padded, device=self.device).view(len(requests), stops)

    def run(self) -> list[Sample]:
        """Draw, drop who has ended, feed, admit; until nobody is under way and nobody waits."""
        rows, hidden = self._admit(list(range(self.places)))
        while True:
            chosen = self._draw(rows, hidden)
            going = self._count(rows, chosen)
            if not self.waiting and not going.any():
                return self._finish()
            if not going.all() and int(going.sum()) <= self.memory.keep * len(going):
                rows, chosen = rows.keep(going), chosen[going]
                rows.place = self.memory.close_ranks(rows.place)
            hidden = self._feed(rows, chosen, hidden)
            room = self.waiting and len(rows.index) <= ADMIT * self.places
            if room and (free := self.memory.free(rows.place)):
                new, first_hidden = self._admit(free)
                rows, hidden = rows.join(new), torch.cat([hidden, first_hidden])

    def _draw(self, rows: _Rows, hidden: torch.Tensor) -> torch.Tensor:
        """Each row's next token (b,), written down where the row is still going; close calls are decided alone."""
        chosen, logprobs, near_tie = choose(next_logits(self.policy, hidden), rows)
        going = rows.budget > 0
        for k in (near_tie & going).nonzero().flatten().tolist() if self.exact else ():
            chosen[k], logprobs[k] = self._alone(rows.keep(torch.tensor([k], device=self.device)))
        self.tokens[rows.index[going], rows.step[going]] = chosen[going]
        self.logprobs[rows.index[going], rows.step[going]] = logprobs[going]
        return chosen

    def _count(self, rows: _Rows, chosen: torch.Tensor) -> torch.Tensor:
        """Count the tokens drawn; which rows (b,) go on, having neither stopped nor spent their budget."""
        going = rows.budget > 0
        rows.step += going
        rows.budget -= going.long()
        rows.budget[(self.stop_ids[rows.index] == chosen[:, None]).any(1)] = 0
        return rows.budget > 0

    def _feed(self, rows: _Rows, chosen: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (b, d) after the tokens drawn. Rows that have ended compute on until enough are worth dropping
        (`memory.keep`), but stay in their place: the model may have no position after their last."""
        if not len(rows.index):
            return hidden[:0]
        after = self.memory.step(chosen, rows.position, rows.place)
        rows.position += rows.budget > 0
        return after

    def _admit(self, free: list[int]) -> tuple[_Rows, torch.Tensor]:
        """Requests into free places, each distinct prompt read once; and the hidden states (b, d) that predict their
        first tokens."""
        new = [self.waiting.pop() for _ in free[: len(self.waiting)]]
        members: dict[tuple[int, ...], list[int]] = {}
        for k, i in enumerate(new):
            members.setdefault(self.requests[i].prompt_ids, []).append(k)
        prompts = list(members)
        hidden = None
        for batch in micro_batches(prompts, pass_tokens(self.policy), self.policy.config.pad_token_id or 0):
            copies = [members[prompts[r]] for r in batch.rows]
            last = self.memory.read(batch.to(self.device), [[free[k] for k in of] for of in copies])
            hidden = last.new_empty(len(new), last.shape[-1]) if hidden is None else hidden
            for row, of in zip(last, copies, strict=True):
                hidden[of] = row
        assert hidden is not None
        asked = [self.requests[i] for i in new]
        columns = {
            "index": new, "seeds": [r.seed for r in asked], "temperature": [float(r.temperature) for r in asked],
            "top_p": [r.top_p for r in asked], "top_k": [r.top_k for r in asked],
            "budget": [r.max_new_tokens for r in asked], "step": [0] * len(new),
            "position": [len(r.prompt_ids) for r in asked], "place": free[: len(new)],
        }  # fmt: skip
        return _Rows(**{name: torch.tensor(column, device=self.device) for name, column in columns.items()}), hidden

    def _alone(self, row: _Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Token and log-probability that this row's request gets when computed by itself, whole and without a cache."""
        index, step = int(row.index), int(row.step)
        ids = [[*self.requests[index].prompt_ids, *self.tokens[index, :step].tolist()]]
        (batch,) = micro_batches(ids, len(ids[0]), 0)
        hidden = hidden_at(self.policy, batch.to(self.device), torch.tensor([0]), batch.lengths - 1)
        chosen, logprobs, _ = choose(next_logits(self.policy, hidden), row)
        return chosen[0], logprobs[0]

    def _finish(self) -> list[Sample]:
        samples = []
        for request, tokens, logprobs in zip(self.requests, self.tokens.tolist(), self.logprobs.tolist(), strict=True):
            made = tokens[: request.max_new_tokens]
            end = next((i + 1 for i, t in enumerate(made) if t in request.stop_ids), None)
            cut = len(made) if end is None else end
            samples.append(Sample(tuple(made[:cut]), tuple(logprobs[:cut]), "length" if end is None else "stop"))
        return samples


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
    filters = bool((rows.top_k > 0).any() or (rows.top_p < 1).any())
    if logits.device.type == "cpu" and logits.dtype in kernels.SUFFIX and not filters and kernels.available():
        return kernels.draw(logits, rows.temperature, rows.seeds, rows.step, NEAR_TIE, NEAR_TIE_LOGIT)
    logits = logits.float()
    greedy = rows.temperature == 0
    best = logits.topk(2, dim=1) if greedy.any() else None
    logprobs = (logits / torch.where(greedy, 1.0, rows.temperature)[:, None]).log_softmax(1)
    if best is not None and greedy.all():
        chosen, near = best.indices[:, 0], best.values[:, 0] - best.values[:, 1] < NEAR_TIE_LOGIT
        return chosen, logprobs.gather(1, chosen[:, None]).squeeze(1), near
    probs = logprobs.exp()
    near = torch.zeros_like(greedy)
    if filters:
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
