"""Settings of the over-optimisation lab."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, TypeAdapter, model_validator

from tutelage.settings.common import DATA_SUFFIXES, Count, Model, Source, StageConfig
from tutelage.settings.rewards import ADDRESS, FUNCTION, Combination, Reward, RewardName
from tutelage.settings.sampler import LocalSampling, Sampling

WORLD = "world"
REWARD: TypeAdapter[Reward] = TypeAdapter(Reward)
TAKEN = ("gold", "ensemble")


class OveroptimizeConfig(StageConfig):
    """Measure how a gold score rises and falls while a proxy is optimised, by the best of n and by policies on their
    way (Gao 2022)."""

    INPUTS: ClassVar[Mapping[str, str]] = {
        "policy": "model", "prompts": "prompts", "proxies": "model", "curves": "run",
    }  # fmt: skip

    policy: Model
    """The policy before it was optimised: n samples are its own, and KL is measured from it."""
    prompts: Source
    """Prompts that no model was trained on."""
    limit: Count = 100
    """Prompts at the most: the first of the file. Intervals need 30."""
    proxies: Annotated[dict[RewardName, Reward], Field(min_length=1)]
    """What is optimised, by name: a reward model's folder, `module:function`, `http://…`, or in full as `rewards` of
    `online`. Each gets a curve of the best of n."""
    combination: Combination | None = None
    """Adds a curve of all proxies as one, called `ensemble`, as with mean_less_std."""
    gold: str | None = None
    """What should have been optimised: `world`, the miniature world's noise-free preference; a reward model's folder,
    as of a larger one; `module:function`; `http://…`; or a file of people's judgments. Without it the proxies are
    measured alone."""
    curves: dict[RewardName, str] = {}
    """Name and run folder of policies to measure: of `online` with `policy_every`, a curve along the run; of `sweep`,
    its runs' policies."""
    samples: Count = 1000
    """Samples of each prompt for the best of n, N."""
    policy_samples: Count = 4
    """Samples of each prompt from each policy of a curve."""
    draws: Count = 2000
    """Bootstrap resamples of prompts."""
    sampler: Sampling = LocalSampling()
    """What samples, and how."""

    @property
    def gold_reward(self) -> Reward | None:
        """The gold score as a reward; None if it is the world's, people's, or not there."""
        if self.gold in (None, WORLD) or self.gold_judgments:
            return None
        return REWARD.validate_python(self.gold)

    @property
    def gold_judgments(self) -> str | None:
        """The file of people's judgments, if that is what counts."""
        gold = self.gold or ""
        is_reward = re.fullmatch(FUNCTION, gold) or re.fullmatch(ADDRESS, gold)
        return None if is_reward or not gold.removesuffix(".gz").endswith(DATA_SUFFIXES) else gold

    @model_validator(mode="after")
    def _is_sound(self) -> OveroptimizeConfig:
        if not self.sampler.temperature:
            raise ValueError("sampler.temperature=0 gives every sample alike, and no KL; set it above 0")
        if self.combination is not None and len(self.proxies) < 2:
            raise ValueError("combination is of an ensemble; give two proxies at least")
        if wrong := [name for name in self.proxies if name in TAKEN]:
            raise ValueError(f"proxies: {wrong[0]} is another column's name; call it otherwise")
        return self
