"""The interface of an algorithm of reinforcement learning: samples per prompt, credit per token, losses.

The loop knows none by name. To add one, write its file beside `ppo.py` and its settings in `settings/algorithms.py`,
and name both in `ALGORITHMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from tutelage.algorithms.ppo import PPO
from tutelage.sampling.rollout import Episodes, Rollout
from tutelage.settings import algorithms as settings
from tutelage.settings.common import Group

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]  # a sum over tokens, and sums to log by metric


class Algorithm(Protocol):
    """An algorithm of the online loop."""

    samples_per_prompt: int
    """How many completions of a prompt an iteration samples."""
    needs_values: bool
    """Whether a value model is loaded and trained."""
    value_learning_rate: float
    """Of the value model; asked only of an algorithm that needs one, as `value_loss` is."""

    def credit(
        self, episodes: Episodes, rewards: torch.Tensor, values: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Advantages (n, t) and, of a value model, returns (n, t), from rewards and values (n, t)."""
        ...

    def policy_loss(self, logprobs: torch.Tensor, rollout: Rollout) -> Loss:
        """The loss of new log-probabilities (n, t) on a rollout: a sum over its tokens."""
        ...

    def value_loss(self, values: torch.Tensor, rollout: Rollout) -> Loss:
        """Likewise of new values (n, t); asked only of an algorithm that needs them."""
        ...


ALGORITHMS: Mapping[type[Group], Callable[[Any], Algorithm]] = {settings.PPO: PPO}


def make_algorithm(settings: Group, batch_size: int) -> Algorithm:
    """The algorithm of these settings.

    Raises:
        ValueError: if an iteration's episodes are no whole number of its groups of samples.
    """
    algorithm = ALGORITHMS[type(settings)](settings)
    if batch_size % algorithm.samples_per_prompt:
        raise ValueError(
            f"batch_size={batch_size} is no multiple of the {algorithm.samples_per_prompt} samples of a prompt that "
            "the algorithm takes; change one of the two"
        )
    return algorithm
