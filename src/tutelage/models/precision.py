"""On which device, and in which precision: weights and sums in fp32, products in bf16 where that gains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from transformers import PreTrainedModel


def device() -> torch.device:
    """CUDA if present, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def trains_in_bf16(model: PreTrainedModel) -> bool:
    """Whether bf16 products gain: on CUDA, and on processors with bf16 units once the model is wide enough.

    Below about 128 channels the casts cost what the products save (LOG.md has the measurement).
    """
    if model.device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return has_bf16_units() and model.config.hidden_size >= 128


def has_bf16_units() -> bool:
    """Whether this processor multiplies in bf16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


_exact = False


@contextmanager
def full_precision() -> Iterator[None]:
    """Within it `autocast` casts nothing: for figures that are reported, and compared with other tools'."""
    global _exact
    before, _exact = _exact, True
    try:
        yield
    finally:
        _exact = before


def autocast(model: PreTrainedModel) -> AbstractContextManager[None]:
    """bf16 matrix products where they gain; weights, sums and softmaxes stay in fp32."""
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=trains_in_bf16(model) and not _exact)
