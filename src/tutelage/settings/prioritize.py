"""Settings of what to label next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import model_validator

from tutelage.settings.common import Count, Source, Sources, StageConfig


class PrioritizeConfig(StageConfig):
    """Order candidates by how far reward models disagree on them (Christiano 2017, section 2.2.4), and keep the first:
    the ones to rank next. `tutelage label queue` takes what is written."""

    INPUTS: ClassVar[Mapping[str, str]] = {
        "candidates": "candidates", "reward_models": "model", "ranked": "rankings",
    }  # fmt: skip

    candidates: Source
    """Prompts with K completions each that nobody has ranked, from `tutelage collect`."""
    reward_models: list[str] = []
    """Folders of the ensemble: two reward models or more, trained on the same rankings with other seeds."""
    by: Literal["disagreement", "random"] = "disagreement"
    """`disagreement`: the variance over the ensemble of the probability that one completion beats another, averaged
    over a prompt's pairs, highest first; `random`: an order that the seed draws, to compare with."""
    number: Count | None = None
    """How many prompts to keep; all if not set."""
    ranked: Sources | None = None
    """Rankings that are there already: candidates of their prompts are left out."""
    micro_batch_tokens: Count = 2048
    """Tokens of one pass. It changes memory and speed, never a result."""

    @model_validator(mode="after")
    def _disagreement_takes_two(self) -> PrioritizeConfig:
        if self.by == "disagreement" and len(set(self.reward_models)) < 2:
            raise ValueError(
                f"by=disagreement needs two different reward_models at least, here are {len(set(self.reward_models))}; "
                "train another with another seed, or set by=random"
            )
        return self
