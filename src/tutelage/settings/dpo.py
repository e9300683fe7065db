"""Settings of direct preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from tutelage.settings.common import Count, Model, Positive, Share, Source, Sources
from tutelage.settings.training import AdamW, FineTuningConfig


class DpoConfig(FineTuningConfig):
    """Direct preference optimisation (Rafailov 2023): fit a policy to rankings or pairs, without a reward model."""

    INPUTS: ClassVar[Mapping[str, str]] = {"model": "model", "rankings": "rankings", "valid_rankings": "rankings"}

    model: Model
    """The SFT policy: where the policy starts, and the reference."""
    rankings: Sources
    """Rankings: `prompt`, `completions`, `ranks`; or chosen and rejected pairs. One file or several, as of all rounds
    so far."""
    valid_rankings: Source | None = None
    """Held-out rankings; without them those of a share of the prompts are held out."""
    held_out: Share = 0.1
    """Share of the prompts whose rankings measure the policy instead of training it, without `valid_rankings`."""
    beta: Positive = 0.1
    """How strongly the policy is held to the reference."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """DPO's loss, or IPO's (Azar 2024), which stops at a margin instead of pushing on."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels taken to be wrong (cDPO); of the sigmoid loss alone."""
    epochs: Count = 1
    """Passes over the rankings."""
    batch_size: Count = 64
    """Rankings or pairs of an update (usual: 64)."""
    optimizer: AdamW = AdamW(learning_rate=1e-6, warmup_steps=10)
    """Its rate (usual: 5e-7 to 1e-6 for large models) falls by a cosine to a tenth."""
    max_prompt_tokens: Count = 1024
    """Longer prompts are dropped and counted."""

    @model_validator(mode="after")
    def _is_sound(self) -> DpoConfig:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(
                f"label_smoothing={self.label_smoothing} belongs to loss=sigmoid; leave it out of {self.loss}"
            )
        return self
