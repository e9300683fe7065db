"""Forward passes over micro-batches: a policy's token log-probabilities, scalar models' scores and token values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from tutelage.models import llama
from tutelage.models.loading import autocast, output_head
from tutelage.models.packing import MicroBatch, TreeBatch, micro_batches, tree_batches
from tutelage.objectives.logprobs import token_logprobs


def hidden_at(
    model: PreTrainedModel, batch: MicroBatch | TreeBatch, row: torch.Tensor, column: torch.Tensor
) -> torch.Tensor:
    """(…, d) last hidden states, final norm included, of the batch's tokens at rows (…) and columns (…)."""
    if llama.supports(model):
        if isinstance(batch, MicroBatch):
            batch = batch.until(row, column)  # the last token of a text predicts nothing
        flat = batch.flat()
        wanted = flat.index[row, column]
        return llama.hidden_states(model, flat, wanted.flatten()).unflatten(0, wanted.shape)
    tree = {}
    if isinstance(batch, TreeBatch):
        tree = {"position_ids": batch.positions, "attention_mask": batch.mask(), "trees": batch.padded_trees()}
    return model.base_model(input_ids=batch.ids, use_cache=False, **tree).last_hidden_state[row, column]


def selected_logprobs(
    policy: PreTrainedModel,
    batch: MicroBatch,
    mask: torch.Tensor,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (m,) of the tokens after the m masked positions, row by row, and entropies (m,) if wanted."""
    with autocast(policy):
        hidden = hidden_at(policy, batch, *mask.nonzero(as_tuple=True))
        weight, bias = output_head(policy)
        targets = batch.ids.roll(-1, 1)[mask]
        return token_logprobs(hidden, weight, targets, bias=bias, temperature=temperature, with_entropy=with_entropy)


def selected_values(value_model: PreTrainedModel, batch: MicroBatch, mask: torch.Tensor) -> torch.Tensor:
    """Values (m,) of the states at the masked positions, those before each completion token."""
    with autocast(value_model):
        hidden = hidden_at(value_model, batch, *mask.nonzero(as_tuple=True))
    return value_model.score(hidden.float()).squeeze(-1)


def final_hidden(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """(b, d) hidden states of each row's final token: what a scalar head reads."""
    rows = torch.arange(len(batch.rows), device=batch.ids.device)
    with autocast(model):
        return hidden_at(model, batch, rows, batch.lengths - 1).float()


def scores(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """(b,) scores of whole sequences."""
    return model.score(final_hidden(model, batch)).squeeze(-1)


def tree_scores(model: PreTrainedModel, batch: TreeBatch) -> torch.Tensor:
    """(b, k) scores of the sequences of each tree; what stands where `ends` is -1 means nothing."""
    rows = torch.arange(len(batch.groups), device=batch.ids.device)[:, None].expand_as(batch.ends)
    with autocast(model):
        hidden = hidden_at(model, batch, rows, batch.ends)
    return model.score(hidden.float()).squeeze(-1)


def pass_tokens(model: PreTrainedModel) -> int:
    """Tokens of one pass without gradients: measured on a processor; on an accelerator a guess, not measured."""
    return 2048 if model.device.type == "cpu" else 32768


@torch.inference_mode()
def group_scores(
    model: PreTrainedModel, groups: Sequence[Sequence[Sequence[int]]], max_tokens: int | None = None
) -> list[torch.Tensor]:
    """(k,) scores of each group's sequences, on the processor; what a group's sequences share is read once."""
    out: list[torch.Tensor] = [torch.empty(0)] * len(groups)
    for batch in tree_batches(groups, max_tokens or pass_tokens(model), model.config.pad_token_id):
        for g, found in zip(batch.groups, tree_scores(model, batch.to(model.device)).cpu(), strict=True):
            out[g] = found[: len(groups[g])]
    return out


@torch.inference_mode()
def all_scores(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], max_tokens: int | None = None
) -> torch.Tensor:
    """(n,) scores, in the order of the sequences, on the processor."""
    out = torch.empty(len(sequences))
    for batch in micro_batches(sequences, max_tokens or pass_tokens(model), model.config.pad_token_id):
        out[batch.rows] = scores(model, batch.to(model.device)).cpu()
    return out


def spread(rows: Sequence[int], mask: torch.Tensor, flat: torch.Tensor, width: int) -> torch.Tensor:
    """(b, width): the flat values of each row's masked positions, moved to the left and zero-padded."""
    counts = mask.sum(1)
    inside = torch.arange(width, device=mask.device) < counts[:, None]
    return flat.new_zeros(len(rows), width).masked_scatter(inside, flat)


@torch.inference_mode()
def completion_logprobs(
    policy: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    temperature: float = 1.0,
    max_tokens: int | None = None,
) -> torch.Tensor:
    """(n, t) log-probabilities of completion tokens, right-padded with zeros, on the processor."""
    width = max(len(s) - p for s, p in zip(sequences, prompt_lengths, strict=True))
    out = torch.zeros(len(sequences), width)
    for batch in micro_batches(sequences, max_tokens or pass_tokens(policy), policy.config.pad_token_id):
        moved = batch.to(policy.device)
        mask = moved.completion_mask(prompt_lengths)
        flat, _ = selected_logprobs(policy, moved, mask, temperature)
        out[batch.rows] = spread(batch.rows, mask, flat, width).cpu()
    return out


@torch.inference_mode()
def completion_values(
    value_model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    max_tokens: int | None = None,
) -> torch.Tensor:
    """(n, t) values of the state before each completion token, right-padded with zeros, on the processor."""
    width = max(len(s) - p for s, p in zip(sequences, prompt_lengths, strict=True))
    out = torch.zeros(len(sequences), width)
    for batch in micro_batches(sequences, max_tokens or pass_tokens(value_model), value_model.config.pad_token_id):
        moved = batch.to(value_model.device)
        mask = moved.completion_mask(prompt_lengths)
        out[batch.rows] = spread(batch.rows, mask, selected_values(value_model, moved, mask), width).cpu()
    return out
