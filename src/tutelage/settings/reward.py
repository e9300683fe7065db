"""Settings of the reward model, and of measuring one.

A default is the paper's where it states one (section C of its appendix), else Stiennon 2020's or Ziegler 2019's, else
ours; its description says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from tutelage.settings.common import Count, Model, Share, Source, Sources, StageConfig
from tutelage.settings.training import AdamW, FineTuningConfig

Part = Annotated[float, Field(gt=0, le=1)]


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
    learning_curve: list[Part] = []
    """Shares of the prompts to learn from, as 0.125,0.25,0.5: a reward model is trained from the start on each as well,
    the smaller within the larger, and measured on the same held-out rankings. They lie in `curve/`."""

    @model_validator(mode="after")
    def _curve_is_measured(self) -> RewardConfig:
        if self.learning_curve and not (self.valid or self.held_out):
            raise ValueError(
                "learning_curve needs held-out rankings to measure by; set held_out above 0, or give valid"
            )
        return self


class MeasureConfig(StageConfig):
    """Report on a trained reward model by any rankings or pairs: how many it puts into the labelers' order, by what
    they are like; whether its confidence is borne out; how it compares with another labeler; and whether it leans to
    length, to repetition, or to the order in which completions were shown."""

    INPUTS: ClassVar[Mapping[str, str]] = {"reward_model": "model", "rankings": "rankings"}

    reward_model: Model
    """Model folder or hub id of the reward model."""
    rankings: Sources
    """Rankings or pairs that it did not learn from, in any accepted format. Of several files, as one for each arm of
    labelers, each is reported by itself too. Pairs with a `subset`, as RewardBench has them, are reported by subset."""
    micro_batch_tokens: Count = 2048
    """Tokens of one pass. It changes memory and speed, never a result."""
