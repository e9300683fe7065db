"""The policy loss that all algorithms share: clipped ratios and, where it stands in the loss, the KL penalty."""

from __future__ import annotations

import torch

from tutelage.objectives.kl import kl_loss
from tutelage.objectives.policy import clipped_policy_loss
from tutelage.sampling.rollout import Rollout
from tutelage.settings.algorithms import PolicyGradient


def clipped_loss(
    settings: PolicyGradient, logprobs: torch.Tensor, rollout: Rollout, kl_coef: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of new log-probabilities (n, t), to be divided by `divisor`; and sums to log by metric."""
    weights = None
    if settings.aggregation == "sequence":
        weights = (1 / rollout.mask.sum(1, keepdim=True).clamp(min=1)).expand(rollout.mask.shape)
    loss, sums = clipped_policy_loss(
        logprobs, rollout.logprobs, rollout.advantages, rollout.mask, settings.cliprange,
        cliprange_high=settings.cliprange_high, dual_clip=settings.dual_clip, weights=weights,
    )  # fmt: skip
    metrics = {"policy/approxkl": sums["approxkl"], "policy/clipfrac": sums["clipfrac"], "val/ratio": sums["ratio"]}
    if settings.kl != "reward":
        penalty = kl_loss(logprobs, rollout.logprobs, rollout.ref_logprobs, rollout.mask, settings.kl, weights)
        loss, metrics["loss/kl"] = loss + kl_coef * penalty, penalty
    return loss, metrics


def divisor(settings: PolicyGradient, mask: torch.Tensor, max_new_tokens: int) -> int:
    """What an update's summed loss is divided by: its tokens, its completions, or completions times a length."""
    match settings.aggregation:
        case "token":
            return int(mask.sum())
        case "sequence":
            return len(mask)
        case "constant":
            return len(mask) * max_new_tokens
