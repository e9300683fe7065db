"""From one score per completion to one advantage per token: the KL penalty in the reward, then GAE or a baseline.

A row of a mask is one run of True: a completion's tokens, with padding after it (or before). Everything here is
detached.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .kl import k1
from .masked import keep, masked_var


@torch.no_grad()
def kl_shaped_rewards(
    scores: Float[Tensor, " n"],
    logprobs: Float[Tensor, "n t"],
    ref_logprobs: Float[Tensor, "n t"],
    mask: Bool[Tensor, "n t"],
    kl_coef: float,
) -> Float[Tensor, "n t"]:
    """R_t = −β (log π − log π_ref)_t, plus the score at the last generated token; 0 outside mask.

    Summed over a row it is r(x, y) − β log(π(y|x) / π_ref(y|x)): Ouyang 2022, eq. 2; per token as in Ziegler 2019,
    §2.2.

    Args:
        scores: (n,), r(x, y), one per completion.
        logprobs: (n, t), log π of the sampled tokens under the policy that sampled them, in nats.
        ref_logprobs: (n, t), the same under the reference (the SFT model), in nats.
        mask: (n, t), True on generated tokens; a row without any loses its score.
        kl_coef: β, in units of score per nat.
    """
    still_to_come = mask.flip(-1).cumsum(-1).flip(-1)
    last = mask & (still_to_come == 1)
    return keep(-kl_coef * k1(logprobs, ref_logprobs), mask) + keep(scores[:, None].expand(mask.shape), last)


@torch.no_grad()
def gae(
    rewards: Float[Tensor, "n t"],
    values: Float[Tensor, "n t"],
    mask: Bool[Tensor, "n t"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "n t"], Float[Tensor, "n t"]]:
    """A_t = δ_t + γλ A_{t+1} with δ_t = R_t + γ V_{t+1} − V_t and V = A = 0 past the end; returns = A + V.

    Schulman 2016, eq. 16. At γ = λ = 1 it is reward-to-go − value. The paper has γ = 1 and leaves λ unsaid; Stiennon
    2020 has λ = 0.95.

    Args:
        rewards, values: (n, t), R_t and V(s_t), V before the token is chosen; both in units of score.
        mask: (n, t), True on generated tokens.
        gamma, lam: γ discounts rewards, λ trades bias (0) for variance (1).

    Returns:
        advantages and returns, (n, t) each, 0 outside mask.
    """
    rewards, values = keep(rewards, mask), keep(values, mask)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * next_values - values
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return keep(advantages, mask), keep(advantages + values, mask)


@torch.no_grad()
def leave_one_out(returns: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """R_i − mean of the other R of its group: RLOO, Ahmadian 2024, eq. 9. [1, 0, 0] gives [1, −½, −½].

    The baseline does not depend on its own sample, so REINFORCE with it is unbiased.

    Args:
        returns: (n,), R, one number per completion.
        group: (n,), completions of one prompt have one number; a group of one gives 0.
    """
    above = _above_one_of(returns, group)
    total, size = _by_group(above, group)
    return above - (total - above) / (size - 1).clamp(min=1)


@torch.no_grad()
def group_relative(scores: Float[Tensor, " n"], group: Int[Tensor, " n"], scale: bool = True) -> Float[Tensor, " n"]:
    """(r_i − mean) / (std + 1e-4) over its group: GRPO, Shao 2024, §4.1.2 (std with n − 1, as TRL has it).

    Without the division it is Dr. GRPO's (Liu 2025), n/(n − 1) times smaller than RLOO's. Where a group agrees it is 0.

    Args:
        scores: (n,), r, one number per completion.
        group: (n,), completions of one prompt have one number; a group of one gives 0.
        scale: whether to divide by the standard deviation, which weighs prompts that all but agree the most.
    """
    above = _above_one_of(scores, group)
    total, size = _by_group(above, group)
    centred = above - total / size
    if not scale:
        return centred
    squares, _ = _by_group(centred**2, group)
    return centred / ((squares / (size - 1).clamp(min=1)).sqrt() + 1e-4)


@torch.no_grad()
def reward_to_go(rewards: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """Σ of R from t on, 0 outside mask: the return of REINFORCE++ (Hu 2025, eq. 5), without discount."""
    return keep(keep(rewards, mask).flip(-1).cumsum(-1).flip(-1), mask)


def flat_groups(scores: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> float:
    """The share of groups whose scores are all equal: comparing them teaches nothing."""
    return len(group[in_flat_group(scores, group)].unique()) / len(group.unique())


def in_flat_group(scores: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """(n,) whether the scores of a completion's group are all equal, as those of a group of one are."""
    return ~torch.isin(group, group[_above_one_of(scores, group) != 0])


def _above_one_of(x: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Each element less one element of its group, the same for all of it: exactly 0 where a group agrees, which a value
    less a rounded mean is not."""
    _, place, sizes = group.unique(return_inverse=True, return_counts=True)
    return x - x.new_empty(len(sizes)).index_copy(0, place, x)[place]


def _by_group(x: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Of each element its group's sum and size."""
    _, place, sizes = group.unique(return_inverse=True, return_counts=True)
    return x.new_zeros(len(sizes)).index_add(0, place, x)[place], sizes.to(x.dtype)[place]


def explained_variance(values: Float[Tensor, "n t"], returns: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> float:
    """1 − Var(returns − values) / Var(returns) over the tokens that count: 1 is perfect, 0 no better than the mean.

    Not finite where all returns are equal.
    """
    return float(1 - masked_var(returns - values, mask) / masked_var(returns, mask))
