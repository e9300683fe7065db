"""RLOO: a completion's whole return, KL penalty included, over the mean of the others of its prompt (Ahmadian 2024).

No value model: the other samples are the baseline. Every token of a completion gets the same credit.
"""

from __future__ import annotations

import torch

from tutelage.algorithms.algorithm import Algorithm
from tutelage.objectives.advantages import leave_one_out
from tutelage.objectives.masked import keep
from tutelage.sampling.rollout import Episodes
from tutelage.settings.algorithms import RLOO


def rloo(settings: RLOO) -> Algorithm:
    """REINFORCE leave-one-out."""

    def credit(episodes: Episodes, rewards: torch.Tensor, values: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        advantages = leave_one_out(rewards.sum(1), episodes.group)
        return keep(advantages[:, None].expand(rewards.shape), episodes.mask), None

    return Algorithm(settings, credit, settings.num_generations, settings.refill)
