"""Shift a reward model's scores so that demonstrations average 0 (paper, section 3.5), inside its head's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from tutelage.models.forward import hidden_at
from tutelage.models.packing import micro_batches
from tutelage.models.precision import autocast


@torch.inference_mode()
def centre(
    model: PreTrainedModel, demonstrations: Sequence[Sequence[int]], others: Sequence[Sequence[int]], max_tokens: int
) -> dict[str, float]:
    """Take the mean score of demonstrations off all scores; returns that `offset`, and the `offset_residual` it leaves.

    Classification heads of the ecosystem have no bias, so the offset is folded into the weight: find u with h·u ≈ 1 on
    the final hidden states h of demonstrations and other completions (ridge regression), scale it so that it is 1 on
    average over demonstrations, and take mean(score)·u off the head. The average is then 0 exactly, differences move by
    the fit's residual only, and any tool that opens the folder reads the shifted scores.
    """
    h, rest = (_final_hidden(model, sequences, max_tokens).double() for sequences in (demonstrations, others))
    every = torch.cat([h, rest])
    gram = every.T @ every
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    u = torch.linalg.solve(gram + ridge, every.sum(0))
    u = u / (h @ u).mean()
    weight = model.score.weight[0]
    offset = float((h @ weight.double()).mean())
    weight.sub_((offset * u).to(weight.dtype))
    return {"offset": offset, "offset_residual": abs(offset) * float((every @ u - 1).std())}


def _final_hidden(model: PreTrainedModel, sequences: Sequence[Sequence[int]], max_tokens: int) -> torch.Tensor:
    """(n, d) hidden states of the sequences' final tokens, from short to long."""
    states = []
    for batch in micro_batches(sequences, max_tokens, model.config.pad_token_id):
        moved = batch.to(model.device)
        rows = torch.arange(len(batch.rows), device=model.device)
        with autocast(model):
            states.append(hidden_at(model, moved, rows, moved.lengths - 1).float())
    return torch.cat(states)
