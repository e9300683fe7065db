"""Settings of supervised fine-tuning.

A default is the paper's where it states one (section C of its appendix), else Stiennon 2020's or Ziegler 2019's, else
ours; its description says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tutelage.settings.common import Count, Fraction, Model, Source
from tutelage.settings.sampler import LocalSampling, Sampling
from tutelage.settings.training import AdamW, FineTuningConfig


class SftConfig(FineTuningConfig):
    """Supervised fine-tuning: imitate demonstrations (paper, section 3.5)."""

    INPUTS: ClassVar[Mapping[str, str]] = {
        "model": "model", "demonstrations": "demonstrations", "valid_demonstrations": "demonstrations",
        "reward_model": "model", "pretraining_texts": "texts",
    }  # fmt: skip

    model: Model
    """Base model: a Hugging Face folder or hub id."""
    demonstrations: Source
    """Prompts with completions, in any accepted format."""
    valid_demonstrations: Source | None = None
    """Held-out demonstrations; without them those of a tenth of the prompts are held out."""
    reward_model: Model | None = None
    """If given, the checkpoint is chosen by its mean score on completions to held-out prompts (the paper's way),
    else by validation loss."""
    epochs: Count = 16
    """Passes over the demonstrations (paper: 16)."""
    batch_size: Count = 32
    """Demonstrations of an update (paper: 32)."""
    optimizer: AdamW = AdamW(learning_rate=9.65e-6)
    """Its rate (paper: 9.65e-6 at 1.3B and 6B) falls by a cosine to a tenth; no warm-up."""
    residual_dropout: Fraction = 0.0
    """Dropout in attention and residual, where the architecture has it (paper: 0.2)."""
    pretraining_texts: Source | None = None
    """Plain text to mix in (the paper's RL initialisation mixes 10 %)."""
    pretraining_share: Fraction = 0.1
    """Share of an update's loss weight that is pretraining text, if given."""
    max_prompt_tokens: Count = 1024
    """Longer prompts are dropped and counted (paper: 1,024)."""
    max_completion_tokens: Count = 1024
    """Longer completions are dropped and counted (paper: 1,024)."""
    score_samples: Count = 128
    """Held-out prompts that are sampled and scored when a reward model chooses."""
    sampler: Sampling = LocalSampling(max_new_tokens=1024)
    """What samples then, and how; at the most `max_completion_tokens`."""
