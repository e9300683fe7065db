"""What every stage that trains is told: its optimizer, and how its passes and checkpoints go."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.settings.common import Count, Group, Number, Positive, Share, StageConfig, Whole

Length = Annotated[Count, Field(ge=2)]  # of a row to predict the next token in


class AdamW(Group):
    """AdamW (Loshchilov 2019), and the schedule of its rate."""

    name: Literal["adamw"] = "adamw"
    """Which optimizer."""
    learning_rate: Positive
    """Peak learning rate."""
    warmup_steps: Whole = 0
    """Steps over which the rate rises: updates, or iterations of reinforcement learning."""
    weight_decay: Number = 0.0
    """Decoupled weight decay."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """Decay rates of the two moments (the paper's)."""
    epsilon: Positive = 1e-8
    """Added to the root of the second moment (the usual one; the paper is silent)."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm (ours; the paper is silent)."""


class TrainingConfig(StageConfig):
    """What all gradient training shares."""

    optimizer: AdamW
    """Optimizer of the model."""
    micro_batch_tokens: Count = 2048
    """Tokens of one forward and backward pass, padding included. It changes memory and speed, never a result.

    The default suits processors' caches; accelerators want 16384 and more."""
    checkpoint_seconds: Positive = 20.0
    """A resumable checkpoint is written about this often."""
