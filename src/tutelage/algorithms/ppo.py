"""PPO: credit by GAE over a value model, and clipped losses.

Paper, section 3.5: token rewards with a KL penalty, GAE (lambda of Stiennon 2020), clipped ratio, separate value model.
"""

from __future__ import annotations

import torch

from tutelage.algorithms.algorithm import Algorithm, Loss
from tutelage.objectives.advantages import gae
from tutelage.objectives.masked import whiten
from tutelage.objectives.policy import clipped_value_loss
from tutelage.sampling.rollout import Episodes, Rollout
from tutelage.settings.algorithms import PPO


def ppo(settings: PPO) -> Algorithm:
    """Proximal policy optimisation."""

    def credit(
        episodes: Episodes, rewards: torch.Tensor, values: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages are standardised after the returns are formed."""
        assert values is not None
        mask = episodes.mask
        if settings.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = gae(rewards, values, mask, settings.gamma, settings.lam)
        return (whiten(advantages, mask) if settings.whiten_advantages else advantages), returns

    def value_loss(values: torch.Tensor, rollout: Rollout) -> Loss:
        """The clipped error of the value model, times `vf_coef`."""
        assert rollout.values is not None
        assert rollout.returns is not None
        loss, sums = clipped_value_loss(values, rollout.values, rollout.returns, rollout.mask, settings.cliprange_value)
        return settings.vf_coef * loss, {"loss/value": loss, "val/clipfrac": sums["clipfrac"]}

    return Algorithm(settings, credit, value_loss=value_loss, value_learning_rate=settings.value_learning_rate)
