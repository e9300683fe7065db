"""Micro-batches hold every row once within the budget, their masks are right, and padding changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from conftest import KINDS
from tutelage.models.forward import (
    all_scores,
    completion_logprobs,
    completion_values,
    final_scores,
    group_scores,
    logprob_sums_by_group,
    spread,
    tree_scores,
)
from tutelage.models.loading import new_scalar
from tutelage.models.packing import micro_batches, tree_batches

PAD = 0
SEQUENCES = st.lists(st.lists(st.integers(1, 99), min_size=2, max_size=30), min_size=1, max_size=20)


@given(sequences=SEQUENCES, budget=st.integers(1, 200))
def test_every_row_once_within_the_budget(sequences: list[list[int]], budget: int) -> None:
    batches = micro_batches(sequences, budget, PAD)
    assert sorted(r for b in batches for r in b.rows) == list(range(len(sequences)))
    for b in batches:
        assert b.ids.shape == (len(b.rows), max(len(sequences[r]) for r in b.rows))
        assert b.ids.numel() <= budget or len(b.rows) == 1
        for row, ids, length in zip(b.rows, b.ids.tolist(), b.lengths.tolist(), strict=True):
            assert ids[:length] == sequences[row]
            assert set(ids[length:]) <= {PAD}


def test_rows_of_like_length_go_together() -> None:
    lengths = [9, 1, 8, 2, 9, 1]
    batches = micro_batches([[7] * n for n in lengths], 18, PAD)
    assert [[lengths[r] for r in b.rows] for b in batches] == [[1, 1, 2], [8, 9], [9]]
    assert micro_batches([], 18, PAD) == []


@given(sequences=SEQUENCES, budget=st.integers(1, 200), data=st.data())
def test_masks_mark_what_predicts_the_completion(sequences: list[list[int]], budget: int, data: st.DataObject) -> None:
    prompts = [data.draw(st.integers(1, len(s) - 1)) for s in sequences]
    for b in micro_batches(sequences, budget, PAD):
        mask = b.completion_mask(prompts)
        predicted = b.ids.roll(-1, 1)
        for k, row in enumerate(b.rows):
            assert predicted[k][mask[k]].tolist() == sequences[row][prompts[row] :]
        # spread() moves each row's values to the left.
        width = max(len(s) - p for s, p in zip(sequences, prompts, strict=True))
        table = spread(b.rows, mask, predicted[mask], width)
        for k, row in enumerate(b.rows):
            completion = sequences[row][prompts[row] :]
            assert table[k].tolist() == completion + [0] * (width - len(completion))


def test_masks_by_hand() -> None:
    (batch,) = micro_batches([[1, 2, 3, 4, 5], [1, 2, 3]], 100, PAD)
    assert batch.rows == [1, 0]
    assert batch.completion_mask([3, 1]).int().tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(
    kind: str,
    tiny: Callable[[str], PreTrainedModel],
    folders: Callable[[str], Path],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    rng = Random(0)
    sequences = [[rng.randrange(2, 320) for _ in range(rng.randint(3, 60))] for _ in range(20)]
    prompts = [rng.randint(1, len(s) - 1) for s in sequences]
    policy, scalar = tiny(kind), new_scalar(folders(kind), tokenizer, seed=1)
    one_by_one, padded = 1, 10_000
    for compute in (
        lambda budget: completion_logprobs(policy, sequences, prompts, 1.0, budget),
        lambda budget: completion_values(scalar, sequences, prompts, budget),
        lambda budget: all_scores(scalar, sequences, budget),
    ):
        expected = compute(one_by_one)
        assert expected.abs().max() > 0.1
        for budget in (padded, 150):
            assert_close(compute(budget), expected, rtol=0, atol=1e-5)
    (batch,) = micro_batches(sequences, padded, PAD)
    assert batch.ids.numel() > 1.5 * sum(map(len, sequences))  # there was padding to ignore
    assert torch.equal(torch.sort(batch.lengths).values, batch.lengths)


GROUPS = st.lists(
    st.builds(
        lambda prompt, completions: [prompt + c for c in completions],
        st.lists(st.integers(1, 9), min_size=1, max_size=12),
        st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=1, max_size=9),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@given(groups=GROUPS, budget=st.integers(1, 300))
def test_trees_hold_every_sequence_once(groups: list[list[list[int]]], budget: int) -> None:
    batches = tree_batches(groups, budget, PAD)
    assert sorted(g for b in batches for g in b.groups) == list(range(len(groups)))
    for b in batches:
        assert b.ids.numel() <= budget or len(b.groups) == 1
        seen = b.mask()[:, 0]
        for row, g in enumerate(b.groups):
            assert (b.ends[row] >= 0).sum() == len(groups[g])
            for sequence, end in zip(groups[g], b.ends[row].tolist(), strict=False):
                looked_at = seen[row, end].nonzero().flatten()
                assert b.ids[row, looked_at].tolist() == sequence  # its last token sees itself and what came before
                assert b.positions[row, looked_at].tolist() == list(range(len(sequence)))
            distinct = len({tuple(s[:n]) for s in groups[g] for n in range(1, len(s) + 1)})
            assert int((b.branch[row] >= 0).sum()) >= distinct  # no prefix is lost


def test_a_tree_by_hand() -> None:
    (b,) = tree_batches([[[5, 6, 7, 8], [5, 6, 9], [5, 6]]], 100, PAD)
    assert b.ids.tolist() == [[5, 6, 7, 8, 9]]
    assert b.positions.tolist() == [[0, 1, 2, 3, 2]]
    assert b.branch.tolist() == [[0, 0, 1, 1, 2]]
    assert b.ends.tolist() == [[3, 4, 1]]
    assert b.mask()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_trees_score_as_their_sequences_alone(
    kind: str, folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Scores and gradients, whatever the batch."""
    model = new_scalar(folders(kind), tokenizer, seed=0)
    rng = Random(0)
    prompts = [[rng.randrange(2, 300) for _ in range(rng.randint(1, 20))] for _ in range(7)]
    groups = [
        [p + [rng.randrange(2, 300) for _ in range(rng.randint(1, 15))] for _ in range(rng.randint(2, 9))]
        for p in prompts
    ]
    groups += [groups[0][:1], groups[1][:1] * 3]  # the best of n meets these too: one sequence, and the same thrice
    alone = [torch.cat([all_scores(model, [s]) for s in group]) for group in groups]
    for budget in (1, 150, 10_000):
        for found, expected in zip(group_scores(model, groups, budget), alone, strict=True):
            assert_close(found, expected, atol=1e-5, rtol=0)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    (tree,) = tree_batches(groups[:2], 10_000, PAD)
    flat = [s for group in groups[:2] for s in group]
    (rows,) = micro_batches(flat, 10_000, PAD)
    packed = gradient(tree_scores(model, tree)[tree.ends >= 0].sum())
    assert_close(packed, gradient(final_scores(model, rows).sum()), atol=1e-4, rtol=1e-4)


def test_what_a_tree_predicts_by_hand() -> None:
    """At the branch the 6 predicts 7 of one sequence and 9 of another; the third ends with what all share."""
    (b,) = tree_batches([[[5, 6, 7, 8], [5, 6, 9], [5, 6]]], 100, PAD)
    for prompt, columns, targets, counts in (
        (2, [1, 2, 1], [7, 8, 9], [2, 1, 0]),
        (1, [0, 1, 2, 0, 1, 0], [6, 7, 8, 6, 9, 6], [3, 2, 1]),  # the completions begin alike
    ):
        p = b.predictions([prompt])
        assert (p.column.tolist(), p.targets.tolist(), p.counts.tolist()) == (columns, targets, counts)
        assert p.row.tolist() == [0] * len(columns)


def completions_of_all_kinds(rng: Random) -> tuple[list[list[list[int]]], list[int]]:
    """Groups of 2 to 9, and their prompts' lengths: some completions begin alike, are the same, or end with what all
    share."""

    def some(least: int, most: int) -> list[int]:
        return [rng.randrange(2, 300) for _ in range(rng.randint(least, most))]

    groups, lengths = [], []
    for k in range(2, 10):
        prompt, start = some(1, 20), some(0, 4) if k % 2 else []
        lengths.append(len(prompt))
        groups.append([prompt + start + some(1, 12) for _ in range(k)])
    prompt, start = some(5, 5), some(3, 3)
    groups += [
        [prompt + start, prompt + start + [7, 8], prompt + start + [7, 9]],
        [prompt + start] * 3,
        [prompt + start],
    ]
    return groups, [*lengths, 5, 5, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_trees_have_the_logprobs_of_their_sequences_alone(
    kind: str, tiny: Callable[[str], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums and gradients, whatever the batch and the order, read as trees and as rows."""
    policy, rng = tiny(kind), Random(1)
    groups, lengths = completions_of_all_kinds(rng)
    alone = [
        torch.cat([completion_logprobs(policy, [s], [n]).sum(1) for s in group])
        for group, n in zip(groups, lengths, strict=True)
    ]
    assert min(float(s.abs().min()) for s in alone) > 0.1
    gradients = []
    for trees, budget in ((True, 10_000), (True, 1), (True, 150), (False, 150)):
        monkeypatch.setattr("tutelage.models.forward.reads_trees", lambda _, trees=trees: trees)
        order, loss = rng.sample(range(len(groups)), len(groups)), torch.zeros(())
        seen = []
        for part in logprob_sums_by_group(policy, [groups[g] for g in order], [lengths[g] for g in order], budget):
            for g, sums in part:
                assert_close(sums.detach(), alone[order[g]], atol=2e-5, rtol=1e-5)
                loss = loss + (sums * (1 + torch.arange(len(sums)))).sum()
                seen.append(g)
        assert sorted(seen) == list(range(len(groups)))
        policy.zero_grad()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    for gradient in gradients[:-1]:
        assert_close(gradient, gradients[-1], atol=1e-4 * float(gradients[-1].abs().max()), rtol=1e-4)
