"""What sets one architecture apart from another: its output head, how far it can look, where it has dropout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Head:
    """How logits come from last hidden states h (…, d): z = (h · weightᵀ + bias) · scale, then cap · tanh(z / cap)."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, v); rows in bf16 on a processor are rounded up, as each new shape of such a product is built first."""
        more = -len(hidden) % 16 if hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu" else 0
        filled = torch.cat([hidden, hidden.new_zeros(more, *hidden.shape[1:])]) if more else hidden
        z = nn.functional.linear(filled, self.weight, self.bias)[: len(hidden)]
        if self.scale != 1:
            z = z.float() * self.scale
        return z if self.cap is None else torch.tanh(z.float() / self.cap) * self.cap


def output_head(policy: PreTrainedModel) -> Head:
    """A policy's output layer, with the scale (Granite, Cohere, Falcon-H1) and the soft cap (Gemma) of its logits."""
    head, config = policy.get_output_embeddings(), policy.config
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None)
    if scale is None and (divisor := getattr(config, "logits_scaling", None)):
        scale = 1 / divisor
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    return Head(head.weight, getattr(head, "bias", None), 1.0 if scale is None else float(scale), cap)


def window(model: PreTrainedModel) -> int | None:
    """How far back attention looks in the layers that do not see everything, None if all do."""
    config = model.config
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    if kinds and all(kind in ("full_attention", "global") for kind in kinds):
        return None
    widths = [getattr(config, name, None) for name in ("window_size", "attention_chunk_size")]
    if getattr(config, "use_sliding_window", True):
        widths.append(getattr(config, "sliding_window", None))
    return min((n for n in widths if isinstance(n, int)), default=None)


def context_length(model: PreTrainedModel) -> int:
    """The most tokens a sequence may have: the position table's length, and within any sliding window."""
    config = model.config
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    return min((n for n in (*limits, window(model)) if n), default=2**31)


def stop_ids(policy: PreTrainedModel) -> tuple[int, ...]:
    """All ids that end a text, as `load_policy` found them and the saved folder says."""
    ends = policy.generation_config.eos_token_id
    return tuple(ends) if isinstance(ends, list) else (ends,)


def set_dropout(model: PreTrainedModel, residual: float) -> bool:
    """Dropout of the residual stream, embeddings included, at this rate, and none in attention; whether there is any.

    Layers hold their rates as modules or as numbers.
    """
    found = False
    for place, module in model.named_modules():
        if "lora_dropout" in place:  # an adapter has its own
            continue
        for name, value in list(vars(module).items()):
            if isinstance(value, (int, float)) and not isinstance(value, bool) and "drop" in name:
                inside = "attention" in name or "attn" in name or type(module).__name__.endswith("Attention")
                inside |= "layer" in name  # whole layers left out at random are no dropout of what is in them
                setattr(module, name, 0.0 if inside else residual)
                found |= not inside
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                inside = name in ("attn_dropout", "attention_dropout")
                child.p = 0.0 if inside else residual
                found |= not inside
    return found
