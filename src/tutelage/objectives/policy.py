"""PPO's two losses. Both, and their statistics, are sums over mask: divide by the global count of tokens."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .masked import keep


def clipped_policy_loss(
    logprobs: Float[Tensor, "*shape"],
    old_logprobs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    cliprange: float,
    *,
    cliprange_high: float | None = None,
    dual_clip: float | None = None,
    weights: Float[Tensor, "*shape"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Σ w max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε′)) with ρ = π/π_old: Schulman 2017, eq. 7, as a loss. Ouyang 2022: ε = .2.

    Args:
        logprobs, old_logprobs: (…), log π of the sampled tokens now and when they were sampled, in nats.
        advantages: (…), A; no gradient flows into it or into old_logprobs.
        mask: (…), True on generated tokens.
        cliprange: ε.
        cliprange_high: ε′, as large as ε if left out. A larger one lets rare tokens grow (DAPO, Yu 2025, §3.1).
        dual_clip: c > 1 bounds the loss at −A c where A < 0 and ρ runs away (Ye 2020, eq. 5).
        weights: (…), w, 1 if left out.

    Returns:
        the loss, and sums of: clipfrac (tokens where a clipped term rules), approxkl (½ Δlogp², nats), ratio (ρ).
    """
    delta = keep(logprobs - old_logprobs.detach(), mask)
    advantages, ratio = keep(advantages.detach(), mask), delta.exp()
    high = cliprange if cliprange_high is None else cliprange_high
    free, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + high)
    loss, rules = torch.maximum(free, clipped), clipped > free
    if dual_clip is not None:
        bound = -advantages * dual_clip
        bounded = (advantages < 0) & (bound < loss)
        loss, rules = torch.where(bounded, bound, loss), rules | bounded
    if weights is not None:
        loss = loss * keep(weights, mask)
    with torch.no_grad():
        stats = {
            "clipfrac": rules.to(delta.dtype).sum(),
            "approxkl": 0.5 * (delta**2).sum(),
            "ratio": keep(ratio, mask).sum(),
        }
    return loss.sum(), stats


def clipped_value_loss(
    values: Float[Tensor, "*shape"],
    old_values: Float[Tensor, "*shape"],
    returns: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    cliprange_value: float,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """½ Σ max((V − R)², (clip(V, V_old ± ε) − R)²): Ziegler 2019's code (ε = 0.2); the InstructGPT paper does not say.

    Args:
        values, old_values: (…), V now and when the rollout was made, in units of score.
        returns: (…), R, from `advantages.gae`.
        mask: (…), True on generated tokens.
        cliprange_value: ε, in units of score.

    Returns:
        the loss, and sums of: clipfrac (tokens where the clipped term rules), error ((V − R)²).
    """
    values, old_values, returns = keep(values, mask), keep(old_values.detach(), mask), keep(returns.detach(), mask)
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    free, clipped = (values - returns) ** 2, (near - returns) ** 2
    loss = 0.5 * torch.maximum(free, clipped).sum()
    with torch.no_grad():
        stats = {"clipfrac": (clipped > free).to(values.dtype).sum(), "error": free.sum()}
    return loss, stats


def importance_ratios(logprobs: Float[Tensor, " n"], sampler_logprobs: Float[Tensor, " n"]) -> dict[str, float]:
    """How far the policy is from what sampled: mean and maximum of the ratios w of n tokens, and the effective sample
    size (Σw)² / (n Σw²), a share: 1 where all ratios are equal, 1/n where one token has all the weight (Kong 1992)."""
    log_w = logprobs.double() - sampler_logprobs.double()
    w, relative = log_w.exp(), (log_w - log_w.max()).exp()  # the share is the same, and cannot overflow
    effective = relative.sum() ** 2 / (len(w) * (relative**2).sum())
    return {"sampler/ratio": float(w.mean()), "sampler/ratio_max": float(w.max()), "sampler/ess": float(effective)}
