"""PPO as an algorithm of the online loop: which credit, and which losses.

Paper, section 3.5: token rewards with a KL penalty, GAE (lambda of Stiennon 2020), clipped ratio, separate value model.
"""

from __future__ import annotations

import torch

from tutelage.objectives.advantages import gae
from tutelage.objectives.masked import whiten
from tutelage.objectives.policy import clipped_policy_loss, clipped_value_loss
from tutelage.settings.stages import OnlineConfig


def advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, config: OnlineConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns), each (n, t); advantages are standardised after the returns are formed."""
    credit, returns = gae(rewards, values, mask, config.gamma, config.lam)
    return (whiten(credit, mask) if config.whiten_advantages else credit), returns


policy_loss = clipped_policy_loss
value_loss = clipped_value_loss
