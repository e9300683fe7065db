"""The alignment tax: what fine-tuning costs elsewhere, measured as loss on held-out pretraining text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.models.forward import pass_tokens, selected_logprobs
from tutelage.models.loading import context_length
from tutelage.models.packing import micro_batches
from tutelage.models.tokens import encode_documents
from tutelage.objectives.sft import nll_sum


@torch.inference_mode()
def pretraining_loss(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int | None = None
) -> float:
    """Mean next-token loss in nats over whole documents, end-of-text included, each cut at the model's context."""
    limit = min(context_length(policy), 1024)
    documents = [ids[:limit] for ids in encode_documents(tokenizer, texts)]
    total, count = 0.0, 0
    for batch in micro_batches(
        [d for d in documents if len(d) > 1], max_tokens or pass_tokens(policy), policy.config.pad_token_id
    ):
        moved = batch.to(policy.device)
        logprobs, _ = selected_logprobs(policy, moved, moved.completion_mask([1] * len(documents)))
        total += float(nll_sum(logprobs, torch.ones_like(logprobs, dtype=torch.bool)))
        count += len(logprobs)
    return total / count
