"""Attention for transformers' own modules, registered under `NAME`: our kernel on processors, else torch's.

Rows are causal and right-padded; trees (`models/packing.py`) are said twice, as a mask for torch and as cuts for ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from tutelage.models.cpu import kernels
from tutelage.models.packing import Trees

NAME = "tutelage"
UNUSUAL = ("softcap", "position_bias", "s_aux", "sinks")  # arguments of some architectures that torch's own must handle


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    trees: Trees | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: query (b, h, q, d), key and value (b, h', k, d) to (b, q, h, d).

    `attention_mask` (b, 1, q, k) is true where a query may look; None is causal. With `trees`, which say the same of
    tokens (b · q,), the mask is not read.
    """
    b, _, length, d = query.shape
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    is_causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    usual = not dropout and causal and d == value.shape[-1]
    usual &= not any(kwargs.get(name) is not None for name in UNUSUAL)
    usual &= trees is not None or (attention_mask is None and 1 < length == key.shape[2])
    if query.device.type != "cpu" or dtype not in kernels.SUFFIX or not usual or not kernels.available():
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    rows = trees or Trees.of([[row * length, (row + 1) * length] for row in range(b)])
    q, k, v = (x.transpose(1, 2).to(dtype).reshape(b * length, -1, d) for x in (query, key, value))
    return kernels.attention(q, k, v, None, rows, d**-0.5 if scaling is None else scaling).view(b, length, -1, d), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
