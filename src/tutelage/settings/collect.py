"""Settings of collection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, model_validator

from tutelage.settings.common import Count, Fraction, Model, Number, Source, StageConfig
from tutelage.settings.sampler import LocalSampling, Sampling
from tutelage.terminal import short


def _number_or_range(value: object) -> str:
    if not re.fullmatch(r"[0-9]{1,4}(\.\.[0-9]{1,4})?", str(value)):
        raise ValueError("expected a number or a range, such as 6 or 4..9")
    return str(value)


class CollectConfig(StageConfig):
    """Sample K completions per prompt for labelers to rank (paper, section 3.4)."""

    INPUTS: ClassVar[Mapping[str, str]] = {
        "prompts": "prompts", "policy": "model", "policies": "model", "examples": "demonstrations",
    }  # fmt: skip

    prompts: Source
    """Prompts, in any accepted format."""
    policy: Model | None = None
    """Model folder of the one policy that writes; for several give `policies`."""
    policies: dict[str, Model] = {}
    """Name and model folder of each policy."""
    weights: dict[str, Number] = {}
    """How often a policy writes a completion, relative to the others; 1 where not named."""
    few_shot: list[str] = []
    """Policies that get worked examples before the prompt: for base models."""
    examples: Source | None = None
    """Demonstrations to take the worked examples from."""
    shots: Count = 3
    """How many worked examples."""
    off_prompt: Fraction = 0.0
    """Share of completions taken from another prompt, so that a reward model learns to read the instruction."""
    k: Annotated[str, BeforeValidator(_number_or_range)] = "4..9"
    """Completions of a prompt, as a number or a range (paper: 4..9)."""
    sampler: Sampling = LocalSampling()
    """What samples, and how."""

    @property
    def writers(self) -> dict[str, str]:
        """Name and model folder of each policy."""
        return self.policies or {"policy": str(self.policy)}

    @model_validator(mode="after")
    def _policies_are_known(self) -> CollectConfig:
        if (self.policy is None) == (not self.policies):
            raise ValueError("give either policy, a model folder, or policies, a mapping of names to model folders")
        for name in [*self.weights, *self.few_shot]:
            if name not in self.writers:
                raise ValueError(f"{short(name)} is not among the policies {short(sorted(self.writers))}")
        if self.few_shot and not self.examples:
            raise ValueError("few_shot needs `examples`, demonstrations to take the worked examples from")
        fewest, _, most = self.k.partition("..")
        if not 2 <= int(fewest) <= int(most or fewest):
            raise ValueError(f"k={short(self.k)}: expected a number or range from 2, such as 6 or 4..9")
        return self
