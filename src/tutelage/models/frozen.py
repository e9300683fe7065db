"""Linear layers whose weights are not trained: they keep no copy of the weight for the backward pass.

Under autocast torch keeps each weight in bf16 until then, half a model beside the model. Here it is rounded again.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MMAP_THRESHOLD, LARGE = -3, 2**20  # mallopt's number, and bytes


class _Product(torch.autograd.Function):
    """x · Wᵀ with gradient g · W in x alone; W is rounded to x's dtype each time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return nn.functional.linear(x, weight.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return gradient @ weight.to(gradient.dtype), None


class FrozenLinear(nn.Linear):
    """A linear layer as it was, for weights that need no gradient."""

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        if self.weight.requires_grad or not torch.is_autocast_enabled(kind):
            return super().forward(input)
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            out = _Product.apply(input.to(dtype), self.weight)
            return out if self.bias is None else out + self.bias.to(dtype)


def freeze(layer: nn.Module) -> None:
    """Make a plain linear layer one of these, in place; leave others as they are."""
    if type(layer) is nn.Linear:
        layer.__class__ = FrozenLinear


def return_large_blocks() -> None:
    """Have the C library give large blocks back when they are freed: glibc keeps them once some were used, which can
    double what a process holds. Costs a tenth of the time on models that are large, nothing on small ones."""
    try:
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE)
    except (AttributeError, OSError):  # another C library
        return
