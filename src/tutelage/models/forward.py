"""One forward method per model, and passes over micro-batches: log-probabilities, scores and values.

No other room calls a base model or reads a head's weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from tutelage.models.architecture import context_length, output_head, window
from tutelage.models.cpu import llama
from tutelage.models.logprobs import token_logprobs as chunked_logprobs
from tutelage.models.packing import (
    MicroBatch,
    Predictions,
    TreeBatch,
    group_batches,
    micro_batches,
    rounded,
    tree_batches,
    tree_size,
)
from tutelage.models.precision import autocast


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
    tree, ids = {}, batch.ids
    if isinstance(batch, TreeBatch):
        tree = {
            "position_ids": batch.positions, "attention_mask": as_read(model, batch.mask()),
            "trees": batch.padded_trees(),
        }  # fmt: skip
    else:
        ids = _widened(model, ids)
    return model.base_model(input_ids=ids, use_cache=False, **tree).last_hidden_state[row, column]


def _widened(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Rows (b, l) with padding up to a number of tokens that comes often, where products are in bf16 on a processor."""
    width = min(rounded(ids.shape[1], 16), context_length(model))
    if width <= ids.shape[1] or model.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return ids
    return torch.nn.functional.pad(ids, (0, width - ids.shape[1]))


def as_read(model: PreTrainedModel, mask: torch.Tensor) -> torch.Tensor:
    """A mask, true where a token may look, as the model's attention takes it: "eager" adds it to the scores."""
    if model.config._attn_implementation != "eager":
        return mask
    return torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill_(
        ~mask, torch.finfo(model.dtype).min
    )


_reads_trees: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@torch.no_grad()
def reads_trees(model: PreTrainedModel) -> bool:
    """Whether a tree gives what its sequences give as rows: tried once, as architectures that ignore a mask or carry a
    state from token to token do so without a word."""
    if llama.supports(model):
        return True
    if model not in _reads_trees:
        ids = [token % model.get_input_embeddings().num_embeddings for token in range(2, 24)]
        group = [ids[:8] + ids[start:end] for start, end in ((8, 11), (11, 16), (16, 22))]
        training = model.training
        model.eval()
        (tree,) = tree_batches([group], 1000, 0)
        (rows,) = micro_batches(group, 1000, 0)
        try:
            batch = rows.to(model.device)
            expected = hidden_at(model, batch, torch.arange(3, device=model.device), batch.lengths - 1).cpu()
            places = tree.ends[0, rows.rows].to(model.device)
            found = hidden_at(model, tree.to(model.device), torch.zeros_like(places), places).cpu()
            _reads_trees[model] = bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())
        except Exception:  # of any kind: a mask of this shape is not what every architecture takes
            _reads_trees[model] = False
        model.train(training)
    return _reads_trees[model]


def token_logprobs(
    self: PreTrainedModel,
    batch: MicroBatch | TreeBatch,
    predicts: torch.Tensor | Predictions,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (m,) of what m tokens predict, and entropies (m,) if wanted.

    The tokens are given as a mask (b, l), in rows where each predicts the one after it, or as the batch's predictions.
    """
    if isinstance(predicts, torch.Tensor):
        assert isinstance(batch, MicroBatch)
        predicts = batch.predictions(predicts)
    with autocast(self):
        hidden = hidden_at(self, batch, predicts.row, predicts.column)
        head = output_head(self)
        return chunked_logprobs(
            hidden, head.weight, predicts.targets, bias=head.bias, scale=head.scale, cap=head.cap,
            temperature=temperature, with_entropy=with_entropy,
        )  # fmt: skip


def token_scores(
    self: PreTrainedModel, batch: MicroBatch | TreeBatch, row: torch.Tensor, column: torch.Tensor
) -> torch.Tensor:
    """The scalar head's outputs (…) at the batch's tokens at rows (…) and columns (…): a score at a sequence's last
    token, a value at the token before the one that is chosen."""
    with autocast(self):
        hidden = hidden_at(self, batch, row, column)
    return self.score(hidden.float()).squeeze(-1)


def with_forward(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its one way through as a method of its own: `token_logprobs`, or `token_scores` of a scalar one.

    All training and scoring goes through it, so that what wraps a model's methods, as sharding does, sees every pass.
    It is put on the class: a bound method on the model would refer to the model, and keep it in memory.
    """
    name, method = ("token_scores", token_scores) if hasattr(model, "score") else ("token_logprobs", token_logprobs)
    setattr(type(model), name, method)
    return model


def next_logits(policy: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """(b, v) logits of the tokens after those with last hidden states (b, d): for sampling."""
    return output_head(policy).logits(hidden)


def final_scores(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """(b,) scores of whole sequences, each read at its last token."""
    rows = torch.arange(len(batch.rows), device=batch.ids.device)
    return model.token_scores(batch, rows, batch.lengths - 1)


def tree_scores(model: PreTrainedModel, batch: TreeBatch) -> torch.Tensor:
    """(b, k) scores of the sequences of each tree; what stands where `ends` is -1 means nothing."""
    rows = torch.arange(len(batch.groups), device=batch.ids.device)[:, None].expand_as(batch.ends)
    return model.token_scores(batch, rows, batch.ends)


def pass_tokens(model: PreTrainedModel) -> int:
    """Tokens of one pass without gradients: measured on a processor, where wide models want fewer, or their activations
    need much memory; on an accelerator a guess, not measured."""
    return min(2048, max(256, 2**19 // model.config.hidden_size)) if model.device.type == "cpu" else 32768


def _passes(
    model: PreTrainedModel, groups: Sequence[Sequence[Sequence[int]]], max_tokens: int
) -> Iterator[tuple[list[int], TreeBatch | MicroBatch]]:
    """Groups of sequences in micro-batches, and which groups these are.

    What a group's sequences share is read once, in a tree; where the architecture cannot read trees, or a window of its
    attention is shorter than one, every sequence is a row of its own.
    """
    pad, far = model.config.pad_token_id, window(model)
    whole = reads_trees(model)
    trees = [g for g, group in enumerate(groups) if whole and (far is None or tree_size(group) <= far)]
    for batch in tree_batches([groups[g] for g in trees], max_tokens, pad):
        yield [trees[g] for g in batch.groups], batch.to(model.device)
    rest = sorted(set(range(len(groups))) - set(trees))
    for members, rows in group_batches([groups[g] for g in rest], max_tokens, pad):
        yield [rest[g] for g in members], rows.to(model.device)


def scores_by_group(
    model: PreTrainedModel, groups: Sequence[Sequence[Sequence[int]]], max_tokens: int
) -> Iterator[list[tuple[int, torch.Tensor]]]:
    """Groups by number with the scores (k,) of their sequences, a micro-batch at a time; what they share is read once
    where that can be."""
    for members, batch in _passes(model, groups, max_tokens):
        if isinstance(batch, TreeBatch):
            scores = tree_scores(model, batch)[batch.ends >= 0]
        else:
            scores = final_scores(model, batch)
        yield list(zip(members, scores.split([len(groups[g]) for g in members]), strict=True))


def logprob_sums_by_group(
    policy: PreTrainedModel,
    groups: Sequence[Sequence[Sequence[int]]],
    prompt_lengths: Sequence[int],
    max_tokens: int,
) -> Iterator[list[tuple[int, torch.Tensor]]]:
    """Groups by number with the summed log-probabilities (k,) of their completions, a micro-batch at a time; what they
    share, of which the first `prompt_lengths[g]` tokens are group g's prompt, is read once where that can be."""
    for members, batch in _passes(policy, groups, max_tokens):
        sizes = [len(groups[g]) for g in members]
        lengths = [prompt_lengths[g] for g in members]
        if isinstance(batch, TreeBatch):
            predicts = batch.predictions(lengths)
        else:
            by_row = [n for n, k in zip(lengths, sizes, strict=True) for _ in range(k)]
            predicts = batch.predictions(batch.completion_mask(by_row))
        flat, _ = policy.token_logprobs(batch, predicts)
        # One by one: sums over a padded width would be rounded otherwise beside other rankings.
        sums = torch.stack([each.sum() for each in flat.split(predicts.counts.tolist())])
        yield list(zip(members, sums.split(sizes), strict=True))


@torch.inference_mode()
def group_scores(
    model: PreTrainedModel, groups: Sequence[Sequence[Sequence[int]]], max_tokens: int | None = None
) -> list[torch.Tensor]:
    """(k,) scores of each group's sequences, on the processor."""
    out: list[torch.Tensor] = [torch.empty(0)] * len(groups)
    for found in scores_by_group(model, groups, max_tokens or pass_tokens(model)):
        for g, s in found:
            out[g] = s.cpu()
    return out


@torch.inference_mode()
def all_scores(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], max_tokens: int | None = None
) -> torch.Tensor:
    """(n,) scores, in the order of the sequences, on the processor."""
    out = torch.empty(len(sequences))
    for batch in micro_batches(sequences, max_tokens or pass_tokens(model), model.config.pad_token_id):
        out[batch.rows] = final_scores(model, batch.to(model.device)).cpu()
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
        flat, _ = policy.token_logprobs(moved, mask, temperature)
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
        flat = value_model.token_scores(moved, *mask.nonzero(as_tuple=True))
        out[batch.rows] = spread(batch.rows, mask, flat, width).cpu()
    return out
