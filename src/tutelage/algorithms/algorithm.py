"""What an algorithm of reinforcement learning is to the loop: samples per prompt, credit per token, losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from tutelage.algorithms.clipped import clipped_loss
from tutelage.sampling.rollout import Episodes, Rollout
from tutelage.settings.algorithms import PolicyGradient

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]  # to be divided by an update's `divisor`; and sums to log by metric


class Credit(Protocol):
    """Advantages (n, t) and, of a value model, returns (n, t), from rewards and values (n, t)."""

    def __call__(
        self, episodes: Episodes, rewards: torch.Tensor, values: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]: ...


class PolicyLoss(Protocol):
    """The loss of new log-probabilities (n, t) on a rollout, with the KL penalty's weight if it stands in the loss."""

    def __call__(self, settings: PolicyGradient, logprobs: torch.Tensor, rollout: Rollout, kl_coef: float) -> Loss: ...


class ValueLoss(Protocol):
    """The loss of new values (n, t) on a rollout."""

    def __call__(self, values: torch.Tensor, rollout: Rollout) -> Loss: ...


@dataclass(frozen=True)
class Algorithm:
    """An algorithm with its settings. `value_loss` is None where it has no value model; then none is loaded. `refill`
    says how often groups without a signal are replaced."""

    settings: PolicyGradient
    credit: Credit
    samples_per_prompt: int = 1
    refill: int = 0
    policy_loss: PolicyLoss = clipped_loss
    value_loss: ValueLoss | None = None
    value_learning_rate: float = 0.0
