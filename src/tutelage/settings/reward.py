"""Settings of the reward model, and of measuring one.

A default is the paper's where it states one (section C of its appendix), else Stiennon 2020's or Ziegler 2019's, else
ours; its description says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tutelage.settings.common import Count, Model, Share, Source, Sources, StageConfig
from tutelage.settings.training import AdamW, FineTuningConfig


class RewardConfig(FineTuningConfig):
    """Fit a reward model to K-way rankings by Bradley–Terry (paper, equation 1)."""

    INPUTS: ClassVar[Mapping[str, str]] = {
        "model": "model", "rankings": "rankings", "valid": "rankings", "demonstrations": "demonstrations",
    }  # fmt: skip

    model: Model
    """The SFT policy whose weights start the reward model."""
    rankings: Sources
    """Rankings: `prompt`, `completions`, `ranks`; or chosen and rejected pairs. One file or several, as of all rounds
    so far."""
    valid: dict[str, str] = {}
    """Named sets of held-out rankings, each reported by itself, as `heldout_labelers`."""
    held_out: Share = 0.1
    """Share of the prompts whose rankings measure the reward model instead of training it, if `valid` names no set."""
    demonstrations: Source | None = None
    """Scores are shifted so that these average 0 (paper, section 3.5)."""
    epochs: Count = 1
    """Passes over the rankings (paper: 1; more overfits)."""
    batch_size: Count = 64
    """Rankings of an update (paper: 64); each is one element with all its pairs."""
    optimizer: AdamW = AdamW(learning_rate=9e-6)
    """Its rate (paper: 9e-6) falls by a cosine to a tenth."""
    max_prompt_tokens: Count = 1024
    """Longer prompts are dropped and counted."""


class MeasureConfig(StageConfig):
    """Measure a trained reward model on any rankings or pairs: how many it puts into the labelers' order."""

    INPUTS: ClassVar[Mapping[str, str]] = {"reward_model": "model", "rankings": "rankings"}

    reward_model: Model
    """Model folder or hub id of the reward model."""
    rankings: Source
    """Rankings or pairs that it did not learn from, in any accepted format."""
    micro_batch_tokens: Count = 2048
    """Tokens of one pass. It changes memory and speed, never a result."""
