"""Kernels for processors: what lies between the matrix products, each in one pass over memory (kernels.cpp).

`available()` says whether there is a compiler to make them; callers have a way without. Tensors are on the processor,
in fp32 or bf16; the dtype of the first argument decides. Shapes: n tokens of d channels, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.models.cpu.build import function, library, signatures
from tutelage.models.packing import Trees

SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
POINTERS = {"float*": torch.float32, "i64*": torch.int64, "bool*": torch.bool}
LANES = 16  # as in attention.h: keys of a cache lie in blocks of so many slots


def available() -> bool:
    """Whether the kernels are there, or could be compiled."""
    return library() is not None


def _call(name: str, dtypes: Sequence[torch.dtype], *arguments: Any) -> None:
    """A kernel for such dtypes: of its templates' parameters T and X are the first, Y is the last."""
    wanted = {**POINTERS, "T*": dtypes[0], "X*": dtypes[0], "Y*": dtypes[-1]}
    passed = []
    for kind, x in zip(signatures()[name], arguments, strict=True):
        if kind in wanted and x is not None:
            assert x.dtype is wanted[kind], (name, kind, x.dtype)
            assert x.is_contiguous(), (name, x.stride())
            assert x.is_cpu, (name, x.device)
            x = x.data_ptr()
        passed.append(x)
    function(name, "_".join(SUFFIX[dtype] for dtype in dtypes))(*passed)


class _Forgetful:
    """In place of autograd's context, whose making costs more than a small kernel, where no gradient is wanted."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        pass

    def set_materialize_grads(self, value: bool) -> None:
        pass


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Its forward pass, with what its backward pass needs only where that can come."""
    return function.apply(*arguments) if torch.is_grad_enabled() else function.forward(_Forgetful(), *arguments)


# --- normalisation ----------------------------------------------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x / sqrt(mean x² + eps) · weight over the last dimension, in `dtype` (Zhang & Sennrich 2019)."""
    return _apply(_RmsNorm, x, None, weight, eps, dtype)[1]


def add_rms_norm(x: Tensor, more: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x + more of one shape, in the dtype of x, and its `rms_norm`."""
    assert more.shape == x.shape, (x.shape, more.shape)
    return _apply(_RmsNorm, x, more.to(x.dtype), weight, eps, dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, more: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor]:
        d, x, more = x.shape[-1], x.contiguous(), None if more is None else more.contiguous()
        assert weight.shape == (d,), (x.shape, weight.shape)
        y, scale = torch.empty_like(x, dtype=dtype), x.new_empty(x.numel() // d, dtype=torch.float32)
        w, total = weight.float().contiguous(), None if more is None else torch.empty_like(x)
        _call("rms_norm", (x.dtype, dtype), x, more, w, len(scale), d, eps, total, y, scale)
        ctx.save_for_backward(x if total is None else total, w, scale)
        ctx.set_materialize_grads(False)  # None, not zeros, for the one of the two that nothing asks for
        ctx.dtype = dtype
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        t, weight, scale = ctx.saved_tensors
        dy = torch.zeros_like(t, dtype=ctx.dtype) if dy is None else dy.contiguous()
        dtotal = None if dtotal is None else dtotal.contiguous()
        parts = torch.get_num_threads()
        dx, dw = torch.empty_like(t), weight.new_zeros(parts, len(weight))
        given = (t, weight, scale, dtotal, dy, len(scale), len(weight), dx, dw, parts)
        _call("rms_norm_backward", (t.dtype, dy.dtype), *given)
        return dx, dx if ctx.needs_input_grad[1] else None, dw.sum(0), None, None


# --- gated activation -------------------------------------------------------------------------------------------------


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up (Shazeer 2020)."""
    return _apply(_Swiglu, gate, up)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        assert gate.shape == up.shape, (gate.shape, up.shape)
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        _call("swiglu", (gate.dtype,), gate, up, gate.numel(), out)
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        _call("swiglu_backward", (gate.dtype,), gate, up, grad.contiguous(), gate.numel(), dgate, dup)
        return dgate, dup


# --- attention --------------------------------------------------------------------------------------------------------


def attention(
    query: Tensor, key: Tensor, value: Tensor, angles: tuple[Tensor, Tensor] | None, trees: Trees, scale: float
) -> Tensor:
    """(n, h, d) causal attention within trees; query (n, h, d), key and value (n, h', d) with h' dividing h.

    `angles` are cosines and sines (n, d) in fp32 by which queries and keys are turned first (Su et al. 2021, the two
    halves of a head's channels being the pairs), or None where they are ready.
    """
    return _apply(_Attention, query, key, value, angles, trees, scale)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, angles: Any, trees: Trees, scale: float) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        n, h, d = query.shape
        # A token in no tree gets nothing, nor a gradient.
        like = torch.empty_like if trees.tokens == n else torch.zeros_like
        out, lse = like(query), query.new_empty(n, h, dtype=torch.float32)
        shape = (trees.bounds, trees.first, len(trees.first) - 1, h, key.shape[1], d, scale)
        _call("attention", (query.dtype,), query, key, value, *(angles or (None, None)), *shape, out, lse)
        ctx.save_for_backward(query, key, value, lse)
        ctx.angles, ctx.how, ctx.like = angles, shape, like
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, lse = ctx.saved_tensors
        grads = [ctx.like(x) for x in (query, key, value)]
        given = (query, key, value, *(ctx.angles or (None, None)), *ctx.how, lse, grad.contiguous())
        _call("attention_backward", (query.dtype,), *given, *grads)
        return *grads, None, None, None


@dataclass(frozen=True)
class Cache:
    """Keys and values of one layer by place and slot: values (places, h', slots, d), keys in blocks of LANES slots."""

    keys: Tensor  # (places, h', slots / LANES, d, LANES)
    values: Tensor  # (places, h', slots, d)

    @staticmethod
    def empty(places: int, heads: int, slots: int, d: int, dtype: torch.dtype) -> Cache:
        """Room for `places` sequences of at most `slots` tokens."""
        blocks = -(-slots // LANES)
        keys = torch.empty(places, heads, blocks, d, LANES, dtype=dtype)
        return Cache(keys, torch.empty(places, heads, blocks * LANES, d, dtype=dtype))

    def remember(
        self, key: Tensor, value: Tensor, angles: tuple[Tensor, Tensor], source: Tensor, place: Tensor, slot: Tensor
    ) -> None:
        """Keep token `source[i]` of key and value (n, h', d) at `place[i]`, `slot[i]`; keys are turned here."""
        _, heads, slots, d = self.values.shape
        where = (source, place, slot, len(source), heads, d, slots)
        _call("remember", (key.dtype,), key, value, *angles, *where, self.keys, self.values)

    def recall(
        self,
        query: Tensor,
        angles: tuple[Tensor, Tensor],
        beginning: tuple[Tensor, Tensor],
        place: Tensor,
        length: Tensor,
        scale: float,
    ) -> Tensor:
        """(b, h, d) attention of one query a row (b, h, d), turned here, over `length` (b,) slots of its place.

        The first of these slots, as many as the second of `beginning` (b,) says, are read in the place that its first
        (b,) names: rows may share it.
        """
        out = torch.empty_like(query)
        _, heads, slots, d = self.values.shape
        shape = (len(query), query.shape[1], heads, d, slots, scale)
        _call("recall", (query.dtype,), query, *angles, *beginning, place, length, self.keys, self.values, *shape, out)
        return out


# --- tokens -----------------------------------------------------------------------------------------------------------


def logprobs(
    logits: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of softmax((logits + bias) / temperature), (n, v): log p(target), log Σ exp and entropy, (n,) each, in fp32.

    Raises:
        IndexError: if a target (n,) is not below v.
    """
    n, v = logits.shape
    bias, targets = _given(bias, targets, n, v)
    found, lse = logits.new_empty(2, n, dtype=torch.float32)
    entropy = torch.empty_like(lse if with_entropy else lse[:0])
    given = (logits, bias, targets, n, v, temperature)
    _call("logprobs", (logits.dtype,), *given, found, lse, entropy if with_entropy else None)
    return found, lse, entropy


def logprobs_backward_(
    logits: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, lse: Tensor, grad: Tensor
) -> Tensor:
    """Logits, in place, to the gradient of Σ grad · log p(target) with respect to them."""
    bias, targets = _given(bias, targets, *logits.shape)
    grad = grad.contiguous()
    _call("logprobs_backward", (logits.dtype,), logits, bias, targets, *logits.shape, temperature, lse, grad)
    return logits


def _given(bias: Tensor | None, targets: Tensor, n: int, v: int) -> tuple[Tensor | None, Tensor]:
    assert targets.shape == (n,)
    assert bias is None or bias.shape == (v,)
    if n and not 0 <= int(targets.min()) <= int(targets.max()) < v:
        raise IndexError(f"targets are from {int(targets.min())} to {int(targets.max())}, logits of {v} tokens")
    return None if bias is None else bias.float().contiguous(), targets.long().contiguous()


def draw(
    logits: Tensor, temperature: Tensor, seeds: Tensor, steps: Tensor, near_tie: float, near_tie_logit: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (b,), their log-probabilities, which were close calls: `choose` of sampling/local.py without filters."""
    b, v = logits.shape
    chosen, found = torch.empty_like(seeds), torch.empty(b)
    near = torch.empty(b, dtype=torch.bool)
    _call(
        "draw", (logits.dtype,), logits, temperature, seeds, steps, b, v, near_tie, near_tie_logit, chosen, found, near
    )
    return chosen, found, near
