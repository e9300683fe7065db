"""Settings of each algorithm of reinforcement learning: one class each, chosen by `name`."""

from __future__ import annotations

from typing import Literal

from tutelage.settings.common import Fraction, Group, Number, Positive


class PPO(Group):
    """Proximal policy optimisation (Schulman 2017), as Ziegler 2019, Stiennon 2020 and the paper use it."""

    name: Literal["ppo"] = "ppo"
    """How credit is assigned and which loss is taken."""
    cliprange: Positive = 0.2
    """Clip of the importance ratio (paper: 0.2)."""
    gamma: Fraction = 1.0
    """Discount per token (paper: none)."""
    lam: Fraction = 0.95
    """GAE's lambda (Stiennon 2020)."""
    value_learning_rate: Positive = 9e-6
    """Value model's learning rate (paper: 9e-6)."""
    cliprange_value: Positive = 0.2
    """Clip of the value's change (Ziegler 2019's code)."""
    vf_coef: Number = 0.1
    """Weight of the value loss (Ziegler 2019's code). The value model has an optimizer of its own, so the weight
    matters only where gradients are clipped."""
    whiten_rewards: bool = False
    """Scale rewards to unit variance, mean kept (Ziegler 2019's code: off)."""
    whiten_advantages: bool = True
    """Standardise advantages over the iteration's tokens (Ziegler 2019's code)."""


Algorithm = PPO  # what `algorithm` can be: of several, a union that is told apart by `name`
