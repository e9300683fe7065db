"""PPO composed from the objectives reaches π* ∝ π_ref · exp(r/β) on bandits small enough to enumerate."""

from itertools import product

import pytest
import torch
from torch import Tensor

from tutelage.objectives.advantages import gae, kl_shaped_rewards
from tutelage.objectives.masked import keep, whiten
from tutelage.objectives.policy import clipped_policy_loss, clipped_value_loss

BETA, BATCH, ITERATIONS, INNER_EPOCHS = 0.5, 512, 150, 3


def states_and_mask(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The state before a token is the token before it (0 at the start); token 0 is end-of-text and comes last."""
    states = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
    ended = torch.cat([torch.zeros_like(tokens[:, :1]), (tokens[:, :-1] == 0).cumsum(1)], dim=1)
    return states, ended == 0


def logprobs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    states, _ = states_and_mask(tokens)
    return logits.log_softmax(-1)[states, tokens]


def sample(logits: Tensor, steps: int, g: torch.Generator) -> Tensor:
    tokens = torch.zeros(BATCH, 1, dtype=torch.long)
    for _ in range(steps):
        tokens = torch.cat([tokens, torch.multinomial(logits.softmax(-1)[tokens[:, -1]], 1, generator=g)], dim=1)
    return tokens[:, 1:]


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize(("vocabulary", "steps"), [(8, 1), (4, 2)])
def test_ppo_reaches_the_optimal_policy(vocabulary: int, steps: int, whitened: bool) -> None:
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    states = vocabulary if steps > 1 else 1
    ref_logits = torch.randn(states, vocabulary, generator=g)
    rewards_of = torch.randn((vocabulary,) * steps, generator=g)

    # 1. Enumerate all completions y, and with them the optimum: log π* = log π_ref + r/β − log Z.
    every = torch.tensor(list(product(range(vocabulary), repeat=steps)))
    every = torch.where(states_and_mask(every)[1], every, 0).unique(dim=0)
    _, every_mask = states_and_mask(every)
    ref_logp = keep(logprobs_of(ref_logits, every), every_mask).sum(1)
    optimum = (ref_logp + rewards_of[tuple(every.T)] / BETA).log_softmax(0)

    def distance(logits: Tensor) -> float:
        logp = keep(logprobs_of(logits.detach(), every), every_mask).sum(1)
        return (logp.exp() * (logp - optimum)).sum().item()

    # 2. PPO from the reference: the paper's figure 2, step 3, with tables for models.
    logits, values = ref_logits.clone().requires_grad_(), torch.zeros(states, requires_grad=True)
    optimizer = torch.optim.Adam([logits, values], lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, ITERATIONS)
    assert distance(logits) > 0.2
    for _ in range(ITERATIONS):
        with torch.no_grad():
            tokens = sample(logits, steps, g)
            at, mask = states_and_mask(tokens)
            old_logprobs, old_values = logprobs_of(logits, tokens), values[at]
            scores = rewards_of[tuple(torch.where(mask, tokens, 0).T)]
            rewards = kl_shaped_rewards(scores, old_logprobs, logprobs_of(ref_logits, tokens), mask, BETA)
            advantages, returns = gae(rewards, old_values, mask, 1.0, 0.95)
            if whitened:
                advantages = whiten(advantages, mask)
        for _ in range(INNER_EPOCHS):
            policy_loss, _ = clipped_policy_loss(logprobs_of(logits, tokens), old_logprobs, advantages, mask, 0.2)
            value_loss, _ = clipped_value_loss(values[at], old_values, returns, mask, 0.2)
            optimizer.zero_grad()
            ((policy_loss + value_loss) / mask.sum()).backward()
            optimizer.step()
        schedule.step()
    assert distance(logits) < 0.02
