"""REINFORCE++: a token's credit is the reward still to come, standardised over the iteration (Hu 2025).

No value model and no comparison within a prompt: one completion of each prompt is enough.
"""

from __future__ import annotations

import torch

from tutelage.algorithms.algorithm import Algorithm
from tutelage.objectives.advantages import reward_to_go
from tutelage.objectives.masked import whiten
from tutelage.sampling.rollout import Episodes
from tutelage.settings.algorithms import ReinforcePP


def reinforce_pp(settings: ReinforcePP) -> Algorithm:
    """REINFORCE++."""

    def credit(episodes: Episodes, rewards: torch.Tensor, values: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        return whiten(reward_to_go(rewards, episodes.mask), episodes.mask), None

    return Algorithm(settings, credit, settings.num_generations)
