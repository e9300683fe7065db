"""The mathematics of learning from human feedback, as pure functions of tensors: nothing here knows of models,
tokenizers or files. Each equation lives once, with its formula, its citation and its shapes; log-probabilities and KL
are in nats. Masks are True where a token counts, and whatever stands elsewhere (garbage, inf, nan) reaches neither a
value nor a gradient. Losses are *sums*: the caller divides by a global count, so micro-batches and ranks never change
the result. Cited throughout: Ouyang et al. 2022 (InstructGPT), Stiennon et al. 2020, Ziegler et al. 2019, Schulman et
al. 2016 (GAE) and 2017 (PPO), and Schulman 2020, the blog post "Approximating KL divergence"."""

from tutelage.objectives.advantages import (
    explained_variance,
    gae,
    group_relative,
    kl_shaped_rewards,
    leave_one_out,
    reward_to_go,
)
from tutelage.objectives.dpo import preference_loss
from tutelage.objectives.kl import AdaptiveKL, FixedKL, KLController, k1, k2, k3, kl_loss
from tutelage.objectives.masked import keep, masked_mean, masked_var, whiten
from tutelage.objectives.policy import clipped_policy_loss, clipped_value_loss, importance_ratios
from tutelage.objectives.reward import ranking_accuracy, ranking_loss
from tutelage.objectives.sft import nll_sum

__all__ = [
    "AdaptiveKL", "FixedKL", "KLController", "clipped_policy_loss", "clipped_value_loss", "explained_variance", "gae",
    "group_relative", "importance_ratios", "k1", "k2", "k3", "keep", "kl_loss", "kl_shaped_rewards", "leave_one_out",
    "masked_mean", "masked_var", "nll_sum", "preference_loss", "ranking_accuracy", "ranking_loss", "reward_to_go",
    "whiten",
]  # fmt: skip
