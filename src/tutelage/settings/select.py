"""Settings of selection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import StringConstraints

from tutelage.settings.common import Count, Model, Source, StageConfig


class SelectConfig(StageConfig):
    """Rank candidates by a reward model, and keep the best of each prompt: best of n as data. `sft` learns from
    `demonstrations.jsonl` (rejection-sampling fine-tuning), `dpo` from `rankings.jsonl`."""

    INPUTS: ClassVar[Mapping[str, str]] = {"candidates": "candidates", "reward_model": "model"}

    candidates: Source
    """Prompts with K completions each, from `tutelage collect`."""
    reward_model: Model
    """Model folder or hub id of the reward model that scores them, in its own template."""
    labeler: Annotated[str, StringConstraints(min_length=1)] = "reward_model"
    """What the reward model is called as the labeler of what is written."""
    micro_batch_tokens: Count = 2048
    """Tokens of one pass. It changes memory and speed, never a result."""
