"""The algorithms of the online loop, which knows none by name.

To add one, write its file beside `rloo.py` and its settings in `settings/algorithms.py`, and name both in `ALGORITHMS`
(docs/add-an-algorithm.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tutelage.algorithms.algorithm import Algorithm
from tutelage.algorithms.grpo import grpo
from tutelage.algorithms.ppo import ppo
from tutelage.algorithms.reinforce_pp import reinforce_pp
from tutelage.algorithms.rloo import rloo
from tutelage.settings import algorithms as settings
from tutelage.settings.common import Group

__all__ = ["ALGORITHMS", "Algorithm", "grpo", "make_algorithm", "ppo", "reinforce_pp", "rloo"]

ALGORITHMS: Mapping[type[Group], Callable[[Any], Algorithm]] = {
    settings.PPO: ppo, settings.RLOO: rloo, settings.GRPO: grpo, settings.ReinforcePP: reinforce_pp,
}  # fmt: skip


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
