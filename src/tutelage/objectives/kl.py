"""How far the policy has moved from its reference: three estimators of KL(π ‖ π_ref), and who sets its weight.

The penalty belongs inside the (detached) reward, as k1: see `advantages.kl_shaped_rewards`. As losses, on-policy, the
three differ: k1's expected gradient is zero, k2's is exactly that of KL(π ‖ π_ref), k3's is that of the other
direction, KL(π_ref ‖ π).
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from jaxtyping import Bool, Float
from torch import Tensor

from .masked import keep


def k1(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log π − log π_ref, in nats per token of a sample from π: unbiased, of either sign. Schulman 2020."""
    return logprobs - ref_logprobs


def k2(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """½ (log π − log π_ref)², in nats per token: biased, low variance, never negative. Schulman 2020."""
    return 0.5 * k1(logprobs, ref_logprobs) ** 2


def k3(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """π_ref/π − 1 − log(π_ref/π), in nats per token: unbiased, low variance, never negative. Schulman 2020."""
    log_ratio = -k1(logprobs, ref_logprobs)
    return log_ratio.expm1() - log_ratio


def kl_loss(
    logprobs: Float[Tensor, "*shape"],
    old_logprobs: Float[Tensor, "*shape"],
    ref_logprobs: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    estimator: Literal["k2", "k3"],
    weights: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, ""]:
    """Σ w ρ k over mask, ρ = π/π_old without gradient: the KL penalty as a loss, right for samples of an older policy.

    Its expected gradient is that of KL(π ‖ π_ref) for k2, and of KL(π_ref ‖ π), the other direction, for k3 (GRPO's).
    k1 is none of the choices: as a loss its expected gradient is zero.

    Args:
        logprobs, old_logprobs, ref_logprobs: (…), log π of the sampled tokens now, when they were sampled, and under
            the reference, in nats.
        mask: (…), True on generated tokens.
        weights: (…), w, 1 if left out.
    """
    logprobs, old, ref = (keep(x, mask) for x in (logprobs, old_logprobs.detach(), ref_logprobs.detach()))
    penalty = (logprobs - old).detach().exp() * (k2 if estimator == "k2" else k3)(logprobs, ref)
    return (penalty if weights is None else penalty * keep(weights, mask)).sum()


class KLController(Protocol):
    """What a training loop asks: β now, and β after n episodes that had a mean KL of `kl` nats each."""

    @property
    def value(self) -> float: ...

    def update(self, kl: float, n: int) -> float: ...


@dataclass(frozen=True)
class FixedKL:
    """β = kl_coef throughout, as in the paper (Ouyang 2022: 0.02)."""

    kl_coef: float

    @property
    def value(self) -> float:
        return self.kl_coef

    def update(self, kl: float, n: int) -> float:
        """β as it was."""
        return self.kl_coef


@dataclass
class AdaptiveKL:
    """β ← β · (1 + e·n/horizon) with e = clip(KL/target − 1, ±0.2). Ziegler 2019, §2.2.

    Ziegler's settings: β₀ = 0.15, target 6 nats per episode, horizon 10,000 episodes. `kl_coef` is all its state.
    """

    kl_coef: float
    target: float
    horizon: int

    @property
    def value(self) -> float:
        return self.kl_coef

    def update(self, kl: float, n: int) -> float:
        """The new β, kept: kl in nats per episode, n episodes since the last update."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.kl_coef *= 1 + error * n / self.horizon
        return self.kl_coef
