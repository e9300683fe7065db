"""Rows of tokens into micro-batches by token budget: sorted by length, right-padded to their own longest.

Causal attention never looks right, so right padding needs no mask and changes no real token's result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MicroBatch:
    """`rows`: which of the sequences these are, in order; `ids` (b, l) right-padded; `lengths` (b,)."""

    rows: list[int]
    ids: torch.Tensor
    lengths: torch.Tensor

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(self.rows, self.ids.to(device), self.lengths.to(device))

    def completion_mask(self, prompt_lengths: Sequence[int]) -> torch.Tensor:
        """(b, l) true where the *next* token is a completion token: the positions that predict what is trained on."""
        starts = torch.tensor([prompt_lengths[r] for r in self.rows], device=self.ids.device)
        position = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (position >= starts[:, None] - 1) & (position < self.lengths[:, None] - 1)


def micro_batches(sequences: Sequence[Sequence[int]], max_tokens: int, pad_id: int) -> list[MicroBatch]:
    """Group sequences so that rows x longest stays within `max_tokens` (a longer single row gets its own batch)."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    batches: list[list[int]] = []
    rows: list[int] = []
    for i in order:
        if rows and (len(rows) + 1) * len(sequences[i]) > max_tokens:
            batches.append(rows)
            rows = []
        rows.append(i)
    if rows:
        batches.append(rows)
    return [_pad(sequences, rows, pad_id) for rows in batches]


def _pad(sequences: Sequence[Sequence[int]], rows: list[int], pad_id: int) -> MicroBatch:
    lengths = [len(sequences[r]) for r in rows]
    ids = torch.full((len(rows), max(lengths)), pad_id)
    for k, r in enumerate(rows):
        ids[k, : lengths[k]] = torch.tensor(sequences[r])
    return MicroBatch(rows, ids, torch.tensor(lengths))
