"""PPO: credit by GAE over a value model, and clipped losses.

Paper, section 3.5: token rewards with a KL penalty, GAE (lambda of Stiennon 2020), clipped ratio, separate value model.
"""

from __future__ import annotations

import torch

from tutelage.objectives.advantages import gae
from tutelage.objectives.masked import whiten
from tutelage.objectives.policy import clipped_policy_loss, clipped_value_loss
from tutelage.sampling.rollout import Episodes, Rollout
from tutelage.settings import algorithms as settings


class PPO:
    """Proximal policy optimisation with these settings."""

    samples_per_prompt = 1
    needs_values = True

    def __init__(self, settings: settings.PPO) -> None:
        self.settings = settings
        self.value_learning_rate = settings.value_learning_rate

    def credit(
        self, episodes: Episodes, rewards: torch.Tensor, values: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages and returns (n, t); advantages are standardised after the returns are formed."""
        assert values is not None
        s, mask = self.settings, episodes.mask
        if s.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = gae(rewards, values, mask, s.gamma, s.lam)
        return (whiten(advantages, mask) if s.whiten_advantages else advantages), returns

    def policy_loss(self, logprobs: torch.Tensor, rollout: Rollout) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The clipped surrogate, as a loss."""
        loss, sums = clipped_policy_loss(
            logprobs, rollout.logprobs, rollout.advantages, rollout.mask, self.settings.cliprange
        )
        return loss, {
            "policy/approxkl": sums["approxkl"], "policy/clipfrac": sums["clipfrac"], "val/ratio": sums["ratio"],
        }  # fmt: skip

    def value_loss(self, values: torch.Tensor, rollout: Rollout) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The clipped error of the value model, times `vf_coef`."""
        assert rollout.values is not None
        assert rollout.returns is not None
        loss, sums = clipped_value_loss(
            values, rollout.values, rollout.returns, rollout.mask, self.settings.cliprange_value
        )
        return self.settings.vf_coef * loss, {"loss/value": loss, "val/clipfrac": sums["clipfrac"]}
