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


class Lora(Group):
    """LoRA (Hu 2022): the model stays as it is, and small matrices beside its linear layers are trained."""

    name: Literal["lora"] = "lora"
    """`lora` trains an adapter; without any of these settings the whole model is trained."""
    rank: Count = 16
    """Rank of the matrices."""
    alpha: Count = 32
    """Their product counts alpha / rank times."""
    dropout: Share = 0.0
    """Dropout before them, in supervised stages."""
    targets: list[str] = []
    """Linear layers that get them, by the last part of their names, as q_proj,v_proj; all if none is named. The output
    head has none."""


class TrainingConfig(StageConfig):
    """What all gradient training shares."""

    optimizer: AdamW
    """Optimizer of the model."""
    micro_batch_tokens: Count = 2048
    """Tokens of one forward and backward pass, padding included. It changes memory and speed, never a result.

    The default suits processors' caches; accelerators want 16384 and more."""
    checkpoint_seconds: Positive = 20.0
    """A resumable checkpoint is written about this often."""


class FineTuningConfig(TrainingConfig):
    """What all training of a model that exists shares."""

    adapter: Lora | None = None
    """Train an adapter in place of the whole model. What it is put on is frozen, and shared: in reinforcement learning
    one base serves policy, reference, average and value model."""
