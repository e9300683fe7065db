"""Settings of the world's two acts: build the data, rank candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tutelage.settings.common import Count, StageConfig


class WorldConfig(StageConfig):
    """Write the miniature world's data: corpus, prompts by users, demonstrations."""

    documents: Count = 12_000
    """Documents of the pretraining corpus."""
    valid_documents: Count = 400
    """Held-out documents."""
    users: Count = 300
    """People who type prompts; each belongs to one split."""
    sft_prompts: Count = 2500
    """Prompts with demonstrations."""
    reward_prompts: Count = 4000
    """Prompts whose completions training labelers rank."""
    reward_valid_prompts: Count = 300
    """Prompts whose completions training and held-out labelers rank, to measure the reward model."""
    ppo_prompts: Count = 4000
    """Prompts to practise on."""
    valid_prompts: Count = 250
    """Prompts with demonstrations, held out of fine-tuning."""
    test_prompts: Count = 1200
    """Prompts for the final judgement; none shares its text with any other set."""


class RankConfig(StageConfig):
    """Let simulated labelers rank candidates: training ones the training set, both arms the held-out set."""

    INPUTS: ClassVar[Mapping[str, str]] = {"candidates": "candidates", "valid_candidates": "candidates"}

    candidates: str
    """Candidates for training, from `tutelage collect`."""
    valid_candidates: str | None = None
    """Candidates whose prompts are in no training set; without them, as in a second round, nothing is measured."""
    training_labelers: Count = 12
    """Labelers who produce training data."""
    heldout_labelers: Count = 8
    """Labelers who produce none."""
    overlap: Count = 2
    """Labelers of each arm who rank each held-out prompt, so that their agreement can be measured."""
