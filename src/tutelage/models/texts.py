"""Plain text as rows to predict the next token in: for pretraining, SFT's mixture and PPO-ptx."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.models.forward import pass_tokens
from tutelage.models.packing import MicroBatch
from tutelage.models.tokens import encode_documents
from tutelage.objectives.sft import nll_sum


def text_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> torch.Tensor:
    """(rows, length) token ids: whole documents after each other, the tail that fills no row dropped.

    Raises:
        ValueError: if the texts do not fill one row.
    """
    ids = [i for document in encode_documents(tokenizer, texts, keep=True) for i in document]
    count = len(ids) // length
    if not count:
        raise ValueError(f"the pretraining text has {len(ids)} tokens, fewer than one row of {length}")
    return torch.tensor(ids[: count * length]).view(count, length)


def text_nll(model: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    """Sum of next-token losses over rows (n, length), which have n·(length − 1) targets."""
    batch = MicroBatch(list(range(len(rows))), rows, torch.full((len(rows),), rows.shape[1])).to(model.device)
    mask = batch.completion_mask([1] * len(rows))
    logprobs, _ = model.token_logprobs(batch, mask)
    return nll_sum(logprobs, torch.ones_like(logprobs, dtype=torch.bool))


def draw_rows(rows: torch.Tensor, number: int, seed: int, draw: int) -> torch.Tensor:
    """(number, length) rows at random with replacement: a function of the seed and of which draw it is."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + draw)
    return rows[torch.randint(len(rows), (number,), generator=generator)]


def text_backward(model: PreTrainedModel, rows: torch.Tensor, max_tokens: int, weight: float = 1.0) -> float:
    """Add the gradient of `weight` times the mean loss per token of rows (n, length); returns that mean, in nats."""
    targets, total = rows.shape[0] * (rows.shape[1] - 1), 0.0
    for group in rows.split(max(1, max_tokens // rows.shape[1])):
        nll = text_nll(model, group) / targets
        (weight * nll).backward()
        total += nll.item()
    return total


@torch.inference_mode()
def text_loss(model: PreTrainedModel, rows: torch.Tensor, max_tokens: int | None = None) -> float:
    """Mean next-token loss over rows, in nats; the model is left in evaluation mode."""
    model.eval()
    groups = rows.split(max(1, (max_tokens or pass_tokens(model)) // rows.shape[1]))
    return float(sum(text_nll(model, group) for group in groups)) / (rows.shape[0] * (rows.shape[1] - 1))
