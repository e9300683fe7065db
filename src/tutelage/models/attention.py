"""Attention as our passes need it, registered with transformers under `NAME`: torch's own on accelerators, and on
processors matrix products over blocks that stay in the cache.

On processors torch's fused attention spends three to four times as long in the backward pass in bf16, and on single
queries beside a cache (docs/performance.md). Here the weights of a block are made again in the backward pass instead of
being kept. Products are in autocast's dtype, or the inputs'; in bf16 so are scores and weights, as in transformers'
eager attention, and sums over blocks are in fp32.

Trees (`models/packing.py`) are the reason for the second half: completions look at their shared prompt in one product
and at themselves in another, so that no completion is multiplied with another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "tutelage"
BLOCK = 2**20  # attention weights in one block: 2 MiB in bf16, which stay in the cores' caches
QUERIES = 128  # of a row in one block, so that most of what a query must not see is not computed
UNUSUAL = ("softcap", "position_bias", "s_aux", "sinks")  # arguments of some architectures that torch's own must handle


# Of single queries: which rows, the first key that any of them sees, and true where each of them sees a key from there
# on (rows, keys), None if all see all.
Window = tuple[slice, int, Tensor | None]


@dataclass(frozen=True)
class Slots:
    """Where a tree's tokens stand among slots: `shared` of them for the beginning, then `branches` of `width` each.

    `token` (b, shared + branches * width) is the position in its row of the token in a slot, -1 in an empty one; `slot`
    (b, l) is the slot of a token, -1 for padding.
    """

    shared: int
    branches: int
    width: int
    token: Tensor
    slot: Tensor

    def to(self, device: torch.device) -> Slots:
        return Slots(self.shared, self.branches, self.width, self.token.to(device), self.slot.to(device))


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    slots: Slots | None = None,
    windows: Sequence[Window] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: query (b, h, q, d), key and value (b, h', k, d) to (b, q, h, d).

    `attention_mask` (b, 1, q, k) is true where a query may look; None is causal. With `slots` the rows are trees,
    with `windows` single queries beside a cache; the mask, which says the same, is then not read.
    """
    queries, keys = query.shape[2], key.shape[2]
    under_autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if under_autocast else value.dtype
    rows = attention_mask is None and queries == keys and dtype == torch.bfloat16  # in fp32 torch's own is as fast
    usual = not dropout and kwargs.get("is_causal") is not False and key.shape[-1] == value.shape[-1]
    usual &= attention_mask is None or (attention_mask.dtype == torch.bool and attention_mask.shape[1] == 1)
    usual &= not any(kwargs.get(name) is not None for name in UNUSUAL)
    if query.device.type != "cpu" or not usual or not (queries == 1 or rows or slots is not None):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    with torch.autocast("cpu", enabled=False):
        if queries == 1:
            mask = None if attention_mask is None else attention_mask[:, 0, 0]
            return _one_query(query, key, value, windows or [(slice(None), 0, mask)]), None
        groups = query.shape[1] // key.shape[1]
        q, k, v = (x.to(dtype) for x in (query, repeat_kv(key, groups), repeat_kv(value, groups)))
        return (_Rows.apply(q, k, v) if slots is None else _Trees.apply(q, k, v, slots)), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _one_query(query: Tensor, key: Tensor, value: Tensor, windows: Sequence[Window]) -> Tensor:
    """(b, 1, h, d) of one query a row beside a cache, whose keys are read where they lie."""
    out = torch.empty_like(query.transpose(1, 2))
    for rows, start, mask in windows:
        q, k, v = query[rows], key[rows, :, start:], value[rows, :, start:]
        number, heads, n, d = k.shape
        # A cache's rows and heads lie evenly after each other, so that they can be read as they lie.
        k, v = (x.view(-1, n, d) if x.stride(0) == heads * x.stride(1) else _heads_first(x) for x in (k, v))
        weights = torch.bmm(q.to(k.dtype).reshape(number * heads, -1, d), k.transpose(1, 2))
        if mask is not None:
            weights.view(number, -1, n).masked_fill_(~mask[:, None], -torch.inf)
        out[rows] = torch.bmm(weights.softmax(-1).to(v.dtype), v).view(number, 1, -1, d)
    return out


def _heads_first(x: Tensor) -> Tensor:
    """(b, h, l, d) as contiguous (b * h, l, d)."""
    return x.flatten(0, 1).contiguous()


def _heads_last(x: Tensor, b: int) -> Tensor:
    """(b * h, l, d) as (b, l, h, d)."""
    return x.unflatten(0, (b, -1)).transpose(1, 2).contiguous()


# Causal rows. Queries come scaled; in what follows n = b * h.


def _blocks(n: int, length: int) -> Iterator[tuple[slice, slice, slice]]:
    """Blocks of causal rows: which rows, their queries, and the keys that those see."""
    for start in range(0, length, QUERIES):
        end = min(length, start + QUERIES)
        step = max(1, BLOCK // ((end - start) * end))
        for row in range(0, n, step):
            yield slice(row, row + step), slice(start, end), slice(0, end)


def _future(x: Tensor, queries: int, keys: int) -> Tensor:
    """(q, k) -inf where one of the last q of k tokens must not look, else 0."""
    return x.new_full((queries, keys), -torch.inf).triu_(1 + keys - queries)


def _causal_weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ) (n, q, k) of the last q of k tokens, each of which sees itself and those before it."""
    return torch.baddbmm(_future(q, q.shape[1], k.shape[1]), q, k.transpose(1, 2)).softmax(-1)


def _through_softmax(grad: Tensor, weights: Tensor) -> Tensor:
    """Gradient of the scores from that of their softmax p: p · (g − Σ p g)."""
    return torch._softmax_backward_data(grad, weights, -1, weights.dtype)


def _rows_forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.empty_like(v)
    for n, queries, keys in _blocks(*q.shape[:2]):
        out[n, queries] = torch.bmm(_causal_weights(q[n, queries], k[n, keys]), v[n, keys])
    return out


def _rows_backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sums = torch.promote_types(k.dtype, torch.float32)  # over blocks of queries
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k, dtype=sums), torch.zeros_like(v, dtype=sums)
    for n, queries, keys in _blocks(*q.shape[:2]):
        weights = _causal_weights(q[n, queries], k[n, keys])
        grad_v[n, keys] += torch.bmm(weights.transpose(1, 2), grad[n, queries])
        grad_scores = _through_softmax(torch.bmm(grad[n, queries], v[n, keys].transpose(1, 2)), weights)
        grad_q[n, queries] = torch.bmm(grad_scores, k[n, keys])
        grad_k[n, keys] += torch.bmm(grad_scores.transpose(1, 2), q[n, queries])
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


class _Rows(torch.autograd.Function):
    """Causal attention of (b, h, l, d), as (b, l, h, d)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = map(_heads_first, (query, key, value))
        ctx.save_for_backward(q, k, v)
        ctx.batch = len(query)
        return _heads_last(_rows_forward(q, k, v), len(query))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v = ctx.saved_tensors
        grads = _rows_backward(q, k, v, _heads_first(grad.transpose(1, 2)))
        return tuple(g.view(ctx.batch, -1, *g.shape[1:]) for g in grads)


# Trees. The shared beginnings are causal rows (n, s, d). Branches are (n, t, w, d); each looks at its beginning and at
# itself.


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """x (b, m, …) at index (b, k) in the second dimension, zero where the index is -1."""
    b, m = x.shape[:2]
    flat = (index.clamp(min=0) + m * torch.arange(b)[:, None]).flatten()
    out = x.flatten(2).flatten(0, 1).index_select(0, flat)
    if (index < 0).any():
        out.masked_fill_((index < 0).view(-1, 1), 0)
    return out.view(*index.shape, *x.shape[2:])


def _into_slots(x: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
    """(b, l, h, d) as beginnings (n, s, d) and branches (n, t, w, d), zero where a slot is empty."""
    at_shared, at_own = slots.token.split([slots.shared, slots.branches * slots.width], 1)
    shared, own = (_heads_first(_gather(x, token).transpose(1, 2)) for token in (at_shared, at_own))
    return shared, own.view(len(own), slots.branches, slots.width, x.shape[-1])


def _out_of_slots(shared: Tensor, branches: Tensor, slots: Slots) -> Tensor:
    """The way back: (b, l, h, d), zero at padding."""
    return _gather(_heads_last(torch.cat([shared, branches.flatten(1, 2)], 1), len(slots.slot)), slots.slot)


def _tree_blocks(slots: Slots, q: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of branches: which of n, and what is added to their scores (n, 1, w, s + w): -inf at what is not seen."""
    absent = q.new_zeros(len(slots.token), 1, slots.shared)
    absent.masked_fill_(slots.token[:, None, : slots.shared] < 0, -torch.inf)
    future = _future(q, slots.width, slots.width)
    unseen = torch.cat([absent.expand(-1, slots.width, -1), future.expand(len(absent), -1, -1)], -1)
    row = torch.arange(len(q)) // (len(q) // len(unseen))
    step = max(1, BLOCK // max(1, slots.branches * slots.width * (slots.shared + slots.width)))
    for n in range(0, len(q) if slots.branches else 0, step):
        yield slice(n, n + step), unseen[row[n : n + step], None]


def _products(x: Tensor, shared: Tensor, own: Tensor, added: Tensor) -> Tensor:
    """x · y of branch tokens with the y of their beginning and of their own branch, plus `added`: (n, t, w, s + w)."""
    n, t, w, _ = x.shape
    out = added.expand(n, t, w, shared.shape[1] + w).clone(memory_format=torch.contiguous_format)
    with_shared, with_own = out.view(n, t * w, -1)[..., :-w], out.view(n * t, w, -1)[..., -w:]
    with_shared.baddbmm_(x.flatten(1, 2), shared.transpose(1, 2))
    with_own.baddbmm_(x.flatten(0, 1), own.flatten(0, 1).transpose(1, 2))
    return out


def _halves(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (n, t, w, s + w) at the beginning (n, t * w, s) and at the own branch (n * t, w, w)."""
    w = weights.shape[2]
    return weights[..., :-w].flatten(1, 2).contiguous(), weights[..., -w:].flatten(0, 1).contiguous()


def _weighted(weights: Tensor, shared: Tensor, own: Tensor) -> Tensor:
    """Σ weight · y over the beginning and the own branch: (n, t, w, d)."""
    at_shared, at_own = _halves(weights)
    out = torch.bmm(at_own, own.flatten(0, 1)).view(len(own), -1, own.shape[-1])
    return out.baddbmm_(at_shared, shared).view_as(own)


def _sent_back(weights: Tensor, x: Tensor, to_shared: Tensor, to_own: Tensor) -> None:
    """Σ weight · x over the branch tokens that looked, added to what they looked at."""
    at_shared, at_own = _halves(weights)
    to_shared.baddbmm_(at_shared.transpose(1, 2), x.flatten(1, 2))
    to_own.flatten(0, 1).baddbmm_(at_own.transpose(1, 2), x.flatten(0, 1))


class _Trees(torch.autograd.Function):
    """Attention of trees (b, h, l, d), as (b, l, h, d)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, slots: Slots) -> Tensor:
        (q0, q), (k0, k), (v0, v) = (_into_slots(x.transpose(1, 2), slots) for x in (query, key, value))
        ctx.save_for_backward(q0, q, k0, k, v0, v)
        ctx.slots = slots
        out0, out = _rows_forward(q0, k0, v0), torch.empty_like(v)
        for n, unseen in _tree_blocks(slots, q):
            weights = _products(q[n], k0[n], k[n], unseen).softmax(-1)
            out[n] = _weighted(weights, v0[n], v[n])
        return _out_of_slots(out0, out, slots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q0, q, k0, k, v0, v = ctx.saved_tensors
        g0, g = _into_slots(grad, ctx.slots)
        grad_q0, grad_k0, grad_v0 = _rows_backward(q0, k0, v0, g0)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for n, unseen in _tree_blocks(ctx.slots, q):
            weights = _products(q[n], k0[n], k[n], unseen).softmax(-1)
            grad_scores = _through_softmax(_products(g[n], v0[n], v[n], g.new_zeros(())), weights)
            grad_q[n] = _weighted(grad_scores, k0[n], k[n])
            _sent_back(weights, g[n], grad_v0[n], grad_v[n])
            _sent_back(grad_scores, q[n], grad_k0[n], grad_k[n])
        pairs = ((grad_q0, grad_q), (grad_k0, grad_k), (grad_v0, grad_v))
        return *(_out_of_slots(*pair, ctx.slots).transpose(1, 2) for pair in pairs), None
