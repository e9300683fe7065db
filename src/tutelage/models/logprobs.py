"""Log-probabilities and entropies of tokens from hidden states, without ever holding all (tokens, vocabulary) logits.

Logits are made for a chunk of tokens at a time, in the forward pass and again in the backward pass: a second matrix
product is the price, a peak of one chunk is the gain. The softmax is always in fp32 (fp64 for fp64 input), whatever the
product's dtype.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.models.cpu import kernels

# Bytes of fp32 logits in one chunk. Each chunk reads the whole weight once, so an accelerator wants them larger than a
# cache does.
CPU_CHUNK_BYTES = 32 * 2**20
GPU_CHUNK_BYTES = 256 * 2**20


def token_logprobs(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    targets: Int[Tensor, " n"],
    *,
    bias: Float[Tensor, " v"] | None = None,
    scale: float = 1.0,
    cap: float | None = None,
    temperature: float = 1.0,
    with_entropy: bool = True,
    chunk_tokens: int | None = None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " m"]]:
    """log p(target) and the entropy of p = softmax(z / temperature), both in nats, with logits
    z = (hidden · weightᵀ + bias) · scale or, capped, cap · tanh(z / cap).

    The temperature divides the logits here exactly as it does in sampling (Ziegler 2019): up to rounding, the policy
    that is trained is the policy that was sampled from.

    Args:
        hidden: (n, d), the last hidden states, at the positions that predict the targets.
        weight: (v, d), the output embedding. Under autocast the product is in autocast's dtype, else in hidden's.
        targets: (n,), token ids in [0, v).
        bias: (v,), the output layer's bias, if it has one; -inf rules a token out.
        scale: of the logits, 1 for most architectures.
        cap: bends logits to within ±cap (Gemma Team 2024, §2), where the architecture does.
        temperature: divides the logits, above 0.
        with_entropy: whether to compute the entropies, which take a quarter of the pass without gradients.
        chunk_tokens: tokens per chunk; by default as many as a fixed number of bytes of logits allows. In bf16 on a
            processor it is rounded to a multiple of 64.

    Returns:
        logprobs (n,), differentiable once in hidden, weight and bias; entropy (n,), detached, or (0,) where not wanted.
        Both fp32 (fp64 for fp64 input).
    """
    device = hidden.device.type
    budget = CPU_CHUNK_BYTES if device == "cpu" else GPU_CHUNK_BYTES
    chunk = chunk_tokens or max(1, budget // (4 * weight.shape[0]))
    under_autocast = torch.is_autocast_enabled(device) and hidden.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if under_autocast else hidden.dtype
    n = len(targets)
    if device == "cpu" and dtype == torch.bfloat16:  # a product of a new shape is built first, which takes longer
        chunk = max(64, chunk // 64 * 64)
        hidden, targets = (torch.cat([x, x.new_zeros(-n % 64, *x.shape[1:])]) for x in (hidden, targets))
    how = (temperature / scale, cap, temperature, chunk, dtype, with_entropy)
    logprobs, entropy = _ChunkedLogprobs.apply(hidden, weight, bias, targets, *how)
    return logprobs[:n], entropy[:n]


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, divisor: float, cap: float | None, temperature: float
) -> Tensor:
    """(c, v) logits of one chunk over temperature, in fp32 or fp64."""
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = (logits if bias is None else logits + bias) / divisor
    return logits if cap is None else (logits * (temperature / cap)).tanh() * (cap / temperature)


def _fused(hidden: Tensor, dtype: torch.dtype, cap: float | None) -> bool:
    return hidden.device.type == "cpu" and dtype in kernels.SUFFIX and cap is None and kernels.available()


class _ChunkedLogprobs(torch.autograd.Function):
    """For logits z, p = softmax(z), target y: log p_y = z_y − logsumexp(z), and ∂ log p_y / ∂z = onehot(y) − p.

    Without a cap, scale and temperature are one divisor."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        divisor: float,
        cap: float | None,
        temperature: float,
        chunk: int,
        dtype: torch.dtype,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        logprobs, logsumexp = hidden.new_empty(2, len(targets), dtype=torch.promote_types(dtype, torch.float32))
        entropy = torch.empty_like(logprobs if with_entropy else logprobs[:0])
        with torch.autocast(hidden.device.type, enabled=False):
            product_weight = weight.to(dtype)
            for c in _chunks(len(targets), chunk):
                if _fused(hidden, dtype, cap):
                    products = hidden[c].to(dtype) @ product_weight.T
                    found = kernels.logprobs(products, bias, targets[c], divisor, with_entropy)
                    logprobs[c], logsumexp[c] = found[:2]
                    if with_entropy:
                        entropy[c] = found[2]
                    continue
                logits = _logits(hidden[c].to(dtype), product_weight, bias, divisor, cap, temperature)
                logsumexp[c] = logits.logsumexp(-1)
                logprobs[c] = logits.gather(-1, targets[c, None]).squeeze(-1) - logsumexp[c]
                if with_entropy:
                    entropy[c] = torch.special.entr((logits - logsumexp[c, None]).exp()).sum(-1)  # entr(0) = 0
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(hidden, weight, bias, targets, logsumexp)
            ctx.divisor, ctx.cap, ctx.temperature, ctx.chunk, ctx.dtype = divisor, cap, temperature, chunk, dtype
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, logsumexp = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if of_hidden else None
        # Sums over chunks are kept in fp32: thousands of bf16 additions would lose the small ones.
        grad_weight = torch.zeros_like(weight, dtype=logsumexp.dtype) if of_weight else None
        grad_bias = torch.zeros_like(bias, dtype=logsumexp.dtype) if of_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            product_weight = weight.to(ctx.dtype)
            for c in _chunks(len(targets), ctx.chunk):
                chunk = hidden[c].to(ctx.dtype)
                if _fused(hidden, ctx.dtype, ctx.cap):
                    given = (bias, targets[c], ctx.divisor, logsumexp[c], grad_logprobs[c])
                    grad_logits = kernels.logprobs_backward_(chunk @ product_weight.T, *given)
                else:
                    logits = _logits(chunk, product_weight, bias, ctx.divisor, ctx.cap, ctx.temperature)
                    g = grad_logprobs[c, None] / ctx.divisor
                    grad_logits = (logits - logsumexp[c, None]).exp().mul_(-g).scatter_add_(-1, targets[c, None], g)
                    if ctx.cap is not None:
                        grad_logits *= 1 - (logits * (ctx.temperature / ctx.cap)) ** 2  # tanh' = 1 − tanh²
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(0, dtype=grad_bias.dtype)
                grad_logits = grad_logits.to(ctx.dtype)
                if grad_hidden is not None:
                    grad_hidden[c] = grad_logits @ product_weight
                if grad_weight is not None:
                    grad_weight += grad_logits.T @ chunk
        return grad_hidden, grad_weight, grad_bias, *(None,) * 7


def _chunks(n: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n, size)]
