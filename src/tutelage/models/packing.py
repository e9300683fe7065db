"""Rows of tokens into micro-batches by token budget: sorted by length, right-padded to their own longest.

Causal attention never looks right, so right padding needs no mask and changes no real token's result. A processor is
as fast per token with 2,048 at a time as with more, and small batches hold rows of like length; an accelerator wants
larger ones.

Sequences that begin alike, such as the K completions of one prompt, can be packed into one row, a *tree*: the shared
beginning once, then each branch. Positions go on from the end of the beginning in every branch, and a mask lets a token
see the beginning and its own branch, so that each result is that of its sequence by itself. At a prompt of 128 and
nine completions of 64 tokens that is 704 tokens instead of 1,728.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

STEP = 64  # tokens to which passes with bf16 products are rounded up on processors; see `rounded`


def rounded(tokens: int, step: int) -> int:
    """A number of tokens, up to a multiple of step: processors build a new bf16 product for each new shape, which takes
    longer than the product itself, so shapes come from a small set (`STEP`)."""
    return -(-tokens // step) * step


@dataclass(frozen=True)
class Trees:
    """Which tokens of a flat (n,) axis belong together: tree t is cut at `bounds[first[t]:first[t + 1]]`.

    A token sees what is before it in its part and the whole first part of its tree; a row is a tree of one part.
    """

    bounds: torch.Tensor  # (m,) int64, rising within a tree; the end of one tree and the start of the next are two
    first: torch.Tensor  # (trees + 1,) int64
    tokens: int  # in all trees, which do not overlap

    @staticmethod
    def of(cuts: Sequence[Sequence[int]]) -> Trees:
        """By the cuts of each tree, those of its parts: beginning, end of the first part, …, end of the last."""
        first = [0]
        for each in cuts:
            first.append(first[-1] + len(each))
        tokens = sum(each[-1] - each[0] for each in cuts)
        return Trees(torch.tensor([b for each in cuts for b in each]), torch.tensor(first), tokens)


@dataclass(frozen=True)
class Flat:
    """The tokens of a batch after each other, without padding.

    `ids` and `positions` (n,); `trees` says what sees what; `index` (b, l) is where a token of the padded rows went.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    trees: Trees
    index: torch.Tensor


def _flat(ids: torch.Tensor, positions: torch.Tensor, real: torch.Tensor, cuts: list[list[int]]) -> Flat:
    """Of padded rows (b, l), by where each row is cut."""
    shifted, start = [], 0
    for each in cuts:
        shifted.append([start + cut for cut in each])
        start = shifted[-1][-1]
    index = real.flatten().cumsum(0).view(real.shape) - 1
    return Flat(ids[real], positions[real], Trees.of(shifted), index)


@dataclass(frozen=True)
class Predictions:
    """Which of a batch's tokens predict which: `row` and `column` (m,) of those that predict, and `targets` (m,), the
    ids that come next. The m belong to n sequences, one after the other: `counts` (n,) of them to each.
    """

    row: torch.Tensor
    column: torch.Tensor
    targets: torch.Tensor
    counts: torch.Tensor


@dataclass(frozen=True)
class MicroBatch:
    """`rows`: which of the sequences these are, in order; `ids` (b, l) right-padded; `lengths` (b,)."""

    rows: list[int]
    ids: torch.Tensor
    lengths: torch.Tensor

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(self.rows, self.ids.to(device), self.lengths.to(device))

    def flat(self) -> Flat:
        """The same without padding."""
        positions = torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids)
        cuts = [[0, n] for n in self.lengths.tolist()]
        return _flat(self.ids, positions, positions < self.lengths[:, None], cuts)

    def until(self, row: torch.Tensor, column: torch.Tensor) -> MicroBatch:
        """Each row up to the last of its tokens at these rows and columns; what comes after does not change them."""
        return MicroBatch(
            self.rows, self.ids, torch.zeros_like(self.lengths).scatter_reduce(0, row, column + 1, "amax")
        )

    def completion_mask(self, prompt_lengths: Sequence[int]) -> torch.Tensor:
        """(b, l) true where the *next* token is a completion token: the positions that predict what is trained on."""
        starts = torch.tensor([prompt_lengths[r] for r in self.rows], device=self.ids.device)
        position = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (position >= starts[:, None] - 1) & (position < self.lengths[:, None] - 1)

    def predictions(self, mask: torch.Tensor) -> Predictions:
        """Each masked token (b, l) predicts the one after it in its row."""
        row, column = mask.nonzero(as_tuple=True)
        return Predictions(row, column, self.ids[row, column + 1], mask.sum(1))


def micro_batches(sequences: Sequence[Sequence[int]], max_tokens: int, pad_id: int) -> list[MicroBatch]:
    """Group sequences so that rows x longest stays within `max_tokens` (a longer single row gets its own batch)."""
    return [_pad(sequences, rows, pad_id) for rows in _within([len(s) for s in sequences], max_tokens)]


def _pad(sequences: Sequence[Sequence[int]], rows: list[int], pad_id: int) -> MicroBatch:
    lengths = [len(sequences[r]) for r in rows]
    ids = torch.full((len(rows), max(lengths)), pad_id)
    for k, r in enumerate(rows):
        ids[k, : lengths[k]] = torch.tensor(sequences[r])
    return MicroBatch(rows, ids, torch.tensor(lengths))


def group_batches(
    groups: Sequence[Sequence[Sequence[int]]], max_tokens: int, pad_id: int
) -> list[tuple[list[int], MicroBatch]]:
    """Groups of sequences as plain rows, a group never cut: which groups these are, and their sequences in order."""
    out = []
    for members in _within([len(group) * max(map(len, group)) for group in groups], max_tokens):
        sequences = [s for g in members for s in groups[g]]
        out.append((members, _pad(sequences, list(range(len(sequences))), pad_id)))
    return out


@dataclass(frozen=True)
class TreeBatch:
    """Trees as rows: `groups` says which they are; `ids`, `positions` and `branch` (b, l).

    `branch` is 0 on the shared beginning, 1, 2, … on the branches and -1 on padding. `ends` (b, k) are the positions of
    each sequence's last token in its row, -1 where a tree has fewer than k sequences; `cuts` are where each tree's
    beginning starts and ends, and then each branch.
    """

    groups: list[int]
    ids: torch.Tensor
    positions: torch.Tensor
    branch: torch.Tensor
    ends: torch.Tensor
    cuts: list[list[int]]

    def to(self, device: torch.device) -> TreeBatch:
        ids, positions, branch, ends = (x.to(device) for x in (self.ids, self.positions, self.branch, self.ends))
        return TreeBatch(self.groups, ids, positions, branch, ends, self.cuts)

    def flat(self) -> Flat:
        """The same without padding."""
        return _flat(self.ids, self.positions, self.branch >= 0, self.cuts)

    def padded_trees(self) -> Trees:
        """What sees what, for tokens that lie with their padding."""
        width = self.ids.shape[1]
        return Trees.of([[row * width + cut for cut in each] for row, each in enumerate(self.cuts)])

    def mask(self) -> torch.Tensor:
        """(b, 1, l, l) true where a token may look: to its left, at the shared beginning or its own branch."""
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.ids.device).tril()
        key, query = self.branch[:, None, :], self.branch[:, :, None]
        return (causal & ((key == 0) | (key == query)))[:, None]

    def predictions(self, prompt_lengths: Sequence[int]) -> Predictions:
        """Of all completions, sequence after sequence; `prompt_lengths` are those of the trees, row by row.

        The last token that all share predicts the first token of every branch.
        """
        row, column, after, counts = [], [], [], []
        for r, (cuts, length) in enumerate(zip(self.cuts, prompt_lengths, strict=True)):
            for start, end in pairwise(cuts[1:]):
                path = [*range(length - 1, cuts[1]), *range(start, end)]
                row += [r] * (len(path) - 1)
                column += path[:-1]
                after += path[1:]
                counts.append(len(path) - 1)
        rows, columns, next_ones, each = (torch.tensor(x, device=self.ids.device) for x in (row, column, after, counts))
        return Predictions(rows, columns, self.ids[rows, next_ones], each)


def tree_batches(groups: Sequence[Sequence[Sequence[int]]], max_tokens: int, pad_id: int) -> list[TreeBatch]:
    """Groups of sequences as trees, those of like size together, rows x longest within `max_tokens`."""
    shared = [_shared(group) for group in groups]
    sizes = [tree_size(group) for group in groups]
    out = []
    for rows in _within(sizes, max_tokens):
        length, k = max(sizes[g] for g in rows), max(len(groups[g]) for g in rows)
        ids = torch.full((len(rows), length), pad_id)
        positions, branch = torch.zeros_like(ids), torch.full_like(ids, -1)
        ends = torch.full((len(rows), k), -1)
        cuts = [[0, shared[g]] for g in rows]
        for row, g in enumerate(rows):
            start = shared[g]
            ids[row, :start] = torch.tensor(groups[g][0][:start], dtype=torch.long)
            positions[row, :start] = torch.arange(start)
            branch[row, :start] = 0
            for i, sequence in enumerate(groups[g]):
                end = start + len(sequence) - shared[g]
                ids[row, start:end] = torch.tensor(sequence[shared[g] :], dtype=torch.long)
                positions[row, start:end] = torch.arange(shared[g], len(sequence))
                branch[row, start:end] = i + 1
                ends[row, i] = end - 1 if end > start else shared[g] - 1
                cuts[row].append(end)
                start = end
        out.append(TreeBatch(rows, ids, positions, branch, ends, cuts))
    return out


def tree_size(group: Sequence[Sequence[int]]) -> int:
    """Tokens of a group's tree."""
    shared = _shared(group)
    return shared + sum(len(s) - shared for s in group)


def _shared(group: Sequence[Sequence[int]]) -> int:
    """How many first tokens all sequences share."""
    low, high = min(map(tuple, group)), max(map(tuple, group))  # in dictionary order: what these two share, all share
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))


def _within(sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices from short to long, cut so that number x longest stays within `max_tokens` (a longer one goes alone)."""
    batches: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=sizes.__getitem__):
        if not batches or (len(batches[-1]) + 1) * sizes[i] > max_tokens:
            batches.append([])
        batches[-1].append(i)
    return batches
