"""The alignment tax: what fine-tuning costs elsewhere, measured in fp32 as loss on held-out pretraining text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.models.architecture import context_length
from tutelage.models.forward import completion_logprobs
from tutelage.models.precision import full_precision
from tutelage.models.tokens import encode_documents


@torch.inference_mode()
def document_losses(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int | None = None
) -> list[tuple[float, int]]:
    """Of each document the sum of next-token losses in nats, and over how many tokens, end-of-text included.

    Documents are read whole, but cut at the model's context; one of a single token has nothing to predict.
    """
    limit = min(context_length(policy), 1024)
    documents = [ids[:limit] for ids in encode_documents(tokenizer, texts)]
    with full_precision():
        logprobs = completion_logprobs(policy, documents, [1] * len(documents), max_tokens=max_tokens)
    return [(-float(row.sum()), len(ids) - 1) for row, ids in zip(logprobs, documents, strict=True)]
