"""Chunked log-probabilities against dense ones: values, gradients, dtypes, and that no (n, v) tensor is made."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from tutelage.models import logprobs
from tutelage.models.cpu import kernels
from tutelage.models.logprobs import token_logprobs

torch.set_num_threads(1)


@pytest.fixture(params=["kernels", "torch alone"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to compute: by our kernels, and by torch, as on an accelerator or without a compiler."""
    if request.param == "torch alone":
        monkeypatch.setattr(kernels, "available", lambda: False)
    elif not kernels.available() and not os.environ.get("CI"):
        pytest.skip("no compiler")


def problem(n: int = 13, d: int = 5, v: int = 11, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*s, generator=g, dtype=dtype, requires_grad=True) for s in ((n, d), (v, d), (v,))
    )
    return hidden, weight, bias, torch.randint(v, (n,), generator=g), torch.randn(n, generator=g, dtype=dtype)


def dense(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = hidden @ weight.T
    logp = ((logits if bias is None else logits + bias).float() / temperature).log_softmax(-1)
    return logp[torch.arange(len(targets)), targets], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 13, 100, None])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_dense(chunk_tokens: int | None, temperature: float, with_bias: bool) -> None:
    hidden, weight, bias, targets, upstream = problem()
    inputs = [hidden, weight, bias] if with_bias else [hidden, weight]
    b = bias if with_bias else None
    logp, entropy = token_logprobs(hidden, weight, targets, bias=b, temperature=temperature, chunk_tokens=chunk_tokens)
    expected, expected_entropy = dense(hidden, weight, targets, b, temperature)
    assert_close(logp, expected, rtol=1e-5, atol=1e-6)
    assert_close(entropy, expected_entropy.detach(), rtol=1e-5, atol=1e-6)
    alone, none = token_logprobs(hidden, weight, targets, bias=b, temperature=temperature, with_entropy=False)
    assert_close(alone, logp)
    assert none.shape == (0,)
    grads = torch.autograd.grad(logp, inputs, upstream)
    for actual, wanted in zip(grads, torch.autograd.grad(expected, inputs, upstream), strict=True):
        assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


def test_gradcheck() -> None:
    hidden, weight, bias, targets, _ = problem(n=5, d=3, v=4, dtype=torch.float64)

    def f(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return token_logprobs(h, w, targets, bias=b, temperature=1.7, chunk_tokens=2)[0]

    assert torch.autograd.gradcheck(f, (hidden, weight, bias))


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_gradients_of_frozen_inputs_are_not_made(wanted: int) -> None:
    *inputs, targets, upstream = problem()
    for i, x in enumerate(inputs):
        x.requires_grad_(i == wanted)
    logp, _ = token_logprobs(inputs[0], inputs[1], targets, bias=inputs[2], chunk_tokens=3)
    expected, _ = dense(inputs[0], inputs[1], targets, inputs[2], 1.0)
    logp.backward(upstream)
    (grad,) = torch.autograd.grad(expected, inputs[wanted], upstream)
    assert_close(inputs[wanted].grad, grad, rtol=1e-5, atol=1e-5)
    assert all(x.grad is None for i, x in enumerate(inputs) if i != wanted)


def test_by_hand() -> None:
    hidden, weight = torch.tensor([[1.0], [0.0]]), torch.tensor([[math.log(3.0)], [0.0]])
    logp, entropy = token_logprobs(hidden, weight, torch.tensor([0, 1]))
    assert_close(logp, torch.tensor([math.log(0.75), math.log(0.5)]))
    assert_close(entropy, torch.tensor([math.log(4) - 0.75 * math.log(3), math.log(2)]))
    cold, _ = token_logprobs(hidden, weight, torch.tensor([0, 1]), temperature=0.5)  # logits/T: 3² against 1
    assert_close(cold, torch.tensor([math.log(0.9), math.log(0.5)]))


def test_entropy_carries_no_gradient() -> None:
    hidden, weight, _, targets, _ = problem()
    logp, entropy = token_logprobs(hidden, weight, targets)
    assert logp.requires_grad
    assert not entropy.requires_grad


def test_no_tokens_is_no_error() -> None:
    weight = torch.randn(7, 3, requires_grad=True)
    logp, entropy = token_logprobs(torch.zeros(0, 3, requires_grad=True), weight, torch.zeros(0, dtype=torch.long))
    logp.sum().backward()
    assert logp.shape == entropy.shape == (0,)
    assert_close(weight.grad, torch.zeros(7, 3))


def test_a_token_ruled_out_by_the_bias() -> None:
    hidden, weight, bias, targets, upstream = problem()
    shut = bias.detach().clone()
    shut[3] = -math.inf
    targets[targets == 3] = 4
    logp, entropy = token_logprobs(hidden, weight, targets, bias=shut, chunk_tokens=4)
    logp.backward(upstream)
    assert logp.isfinite().all()
    assert entropy.isfinite().all()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    assert (weight.grad[3] == 0).all()


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_as_the_models_own_head_does(weight_dtype: torch.dtype, hidden_dtype: torch.dtype) -> None:
    hidden, weight, _, targets, upstream = problem(n=40, d=16, v=30)
    h, w = hidden.detach().to(hidden_dtype).requires_grad_(), weight.detach().to(weight_dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp, entropy = token_logprobs(h, w, targets, chunk_tokens=7)
        expected, expected_entropy = dense(h, w, targets, None, 1.0)
    assert logp.dtype == entropy.dtype == torch.float32
    assert_close(logp, expected, rtol=1e-5, atol=1e-6)
    assert_close(entropy, expected_entropy.detach(), rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(logp, (h, w), upstream)
    assert [g.dtype for g in grads] == [hidden_dtype, weight_dtype]
    for actual, wanted in zip(grads, torch.autograd.grad(expected, (h, w), upstream), strict=True):
        assert (actual - wanted).norm() < 0.02 * wanted.norm()


def test_bf16_without_autocast_returns_fp32() -> None:
    hidden, weight, _, targets, _ = problem(dtype=torch.bfloat16)
    logp, entropy = token_logprobs(hidden, weight, targets)
    assert logp.dtype == entropy.dtype == torch.float32
    logp.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16


def test_gradients_in_bf16_are_summed_in_fp32() -> None:
    """Half a unit from each of 32,768 tokens is 16,384; chunks of 64 added in bf16 would stop at 8,192."""
    weight, bias = (torch.zeros(*s, dtype=torch.bfloat16, requires_grad=True) for s in ((2, 1), (2,)))
    hidden, targets = torch.ones(32_768, 1, dtype=torch.bfloat16), torch.zeros(32_768, dtype=torch.long)
    logp, _ = token_logprobs(hidden, weight, targets, bias=bias, chunk_tokens=1)
    logp.sum().backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert weight.grad.flatten().tolist() == bias.grad.tolist() == [16_384, -16_384]


class LargestOutput(TorchDispatchMode):
    """Remembers the most elements that any operation put out."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@contextmanager
def saved() -> Iterator[list[Tensor]]:
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield kept


def test_tokens_by_vocabulary_is_never_made() -> None:
    n, d, v, chunk = 512, 8, 300, 16
    hidden, weight, bias, targets, upstream = problem(n, d, v)
    with LargestOutput() as largest, saved() as kept:
        logp, _ = token_logprobs(hidden, weight, targets, bias=bias, temperature=0.9, chunk_tokens=chunk)
        logp.backward(upstream)
    assert largest.numel == max(chunk * v, n * d, v * d) < n * v / 10
    assert {tuple(x.shape) for x in kept} == {(n, d), (v, d), (v,), (n,)}
    assert len(kept) == 5  # hidden, weight, bias, targets, logsumexp: nothing else outlives the forward pass
    with LargestOutput() as dense_largest:
        dense(hidden, weight, targets, bias, 0.9)[0].backward(upstream)
    assert dense_largest.numel == n * v  # the instrument sees it where it is made


@pytest.mark.parametrize(("budget", "tokens"), [(4 * 300 * 16, 16), (1, 1)])
def test_a_chunk_fits_its_budget_of_bytes(budget: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the processor; an accelerator's budget is another."""
    monkeypatch.setattr(logprobs, "CPU_CHUNK_BYTES", budget)
    monkeypatch.setattr(logprobs, "GPU_CHUNK_BYTES", 1 << 40)
    hidden, weight, _, targets, _ = problem(n=64, d=1, v=300)
    with LargestOutput() as largest:
        token_logprobs(hidden.detach(), weight.detach(), targets)
    assert largest.numel == tokens * 300


def test_kernels_are_used_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    for name in ("logprobs", "logprobs_backward_"):
        real = getattr(kernels, name)
        spy = lambda *args, name=name, real=real: (used.append(name), real(*args))[1]  # noqa: E731
        monkeypatch.setattr(kernels, name, spy)
    for dtype in (torch.float32, torch.float64):  # for the latter there are none
        hidden, weight, _, targets, upstream = problem(dtype=dtype)
        token_logprobs(hidden, weight, targets)[0].backward(upstream)
    assert used == (["logprobs", "logprobs_backward_"] if kernels.available() else [])


def test_nothing_is_saved_when_nothing_is_learned() -> None:
    hidden, weight, _, targets, _ = problem()
    with saved() as kept:
        token_logprobs(hidden.detach(), weight.detach(), targets)
    assert kept == []
