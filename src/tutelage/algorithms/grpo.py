"""GRPO: a completion's score relative to its group's, in standard deviations (Shao 2024); or not, as Dr. GRPO.

No value model. The KL penalty is a loss of its own unless `kl` puts it into the reward. Every token of a completion
gets the same credit.
"""

from __future__ import annotations

import torch

from tutelage.algorithms.algorithm import Algorithm
from tutelage.objectives.advantages import group_relative
from tutelage.objectives.masked import keep
from tutelage.sampling.rollout import Episodes
from tutelage.settings.algorithms import GRPO


def grpo(settings: GRPO) -> Algorithm:
    """Group-relative policy optimisation."""

    def credit(episodes: Episodes, rewards: torch.Tensor, values: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        advantages = group_relative(rewards.sum(1), episodes.group, settings.scale_rewards)
        return keep(advantages[:, None].expand(rewards.shape), episodes.mask), None

    return Algorithm(settings, credit, settings.num_generations, settings.refill)
