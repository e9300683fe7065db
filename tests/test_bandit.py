"""The algorithms reach π* ∝ π_ref · exp(r/β) on bandits small enough to enumerate."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.algorithms import Algorithm, make_algorithm
from tutelage.algorithms.clipped import divisor
from tutelage.objectives.advantages import kl_shaped_rewards
from tutelage.objectives.masked import keep
from tutelage.sampling.rollout import Episodes, Rollout
from tutelage.settings.algorithms import GRPO, PPO, RLOO, PolicyGradient, ReinforcePP

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


class Bandit:
    """A reference policy and rewards over all completions, and the optimum: log π* = log π_ref + r/β − log Z."""

    def __init__(self, vocabulary: int, steps: int) -> None:
        self.g, self.steps = torch.Generator().manual_seed(0), steps
        self.states = vocabulary if steps > 1 else 1
        self.ref = torch.randn(self.states, vocabulary, generator=self.g)
        self.rewards_of = torch.randn((vocabulary,) * steps, generator=self.g)
        every = torch.tensor(list(product(range(vocabulary), repeat=steps)))
        self.every = torch.where(states_and_mask(every)[1], every, 0).unique(dim=0)
        _, self.mask = states_and_mask(self.every)
        ref_logp = keep(logprobs_of(self.ref, self.every), self.mask).sum(1)
        self.optimum = (ref_logp + self.rewards_of[tuple(self.every.T)] / BETA).log_softmax(0)

    def distance(self, logits: Tensor) -> float:
        """KL of a policy from the optimum, in nats."""
        logp = keep(logprobs_of(logits.detach(), self.every), self.mask).sum(1)
        return (logp.exp() * (logp - self.optimum)).sum().item()

    def rollout(self, algorithm: Algorithm, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Rollout]:
        """Tokens, the states before them, and a rollout with the algorithm's credit."""
        tokens = sample(logits, self.steps, self.g)
        at, mask = states_and_mask(tokens)
        old, ref = logprobs_of(logits, tokens), logprobs_of(self.ref, tokens)
        scores = self.rewards_of[tuple(torch.where(mask, tokens, 0).T)]
        beta = BETA if algorithm.settings.kl == "reward" else 0.0
        rewards = kl_shaped_rewards(scores, old, ref, mask, beta)
        group = torch.arange(BATCH) // algorithm.samples_per_prompt
        none: list[Any] = [None] * BATCH
        episodes = Episodes(none, group, none, none, mask, old, mask.any(1))
        now = values[at] if algorithm.value_loss else None
        advantages, returns = algorithm.credit(episodes, rewards, now)
        made = {"rewards": rewards, "advantages": advantages, "returns": returns, "values": now}
        return tokens, at, Rollout(**vars(episodes), scores=scores, ref_logprobs=ref, **made)

    def learn(self, settings: PolicyGradient) -> float:
        """The distance after training from the reference: the paper's figure 2, step 3, with tables for models."""
        algorithm = make_algorithm(settings, BATCH)
        logits, values = self.ref.clone().requires_grad_(), torch.zeros(self.states, requires_grad=True)
        optimizer = torch.optim.Adam([logits, values], lr=0.05)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, ITERATIONS)
        assert self.distance(logits) > 0.2
        for _ in range(ITERATIONS):
            with torch.no_grad():
                tokens, at, rollout = self.rollout(algorithm, logits, values)
            for _ in range(INNER_EPOCHS):
                loss, _ = algorithm.policy_loss(settings, logprobs_of(logits, tokens), rollout, BETA)
                loss = loss / divisor(settings, rollout.mask, self.steps)
                if algorithm.value_loss:
                    loss = loss + 10 * algorithm.value_loss(values[at], rollout)[0] / rollout.mask.sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
        return self.distance(logits)


SHAPES = [(8, 1), (4, 2)]  # vocabulary, steps


@pytest.mark.parametrize(("vocabulary", "steps"), SHAPES)
@pytest.mark.parametrize(
    "settings",
    [
        PPO(whiten_advantages=False, cliprange_value=0.2), PPO(), PPO(aggregation="constant"), RLOO(),
        RLOO(num_generations=2, aggregation="constant"), ReinforcePP(), GRPO(kl="reward", scale_rewards=False),
    ],
    ids=repr,
)  # fmt: skip
def test_they_reach_the_optimal_policy(settings: PolicyGradient, vocabulary: int, steps: int) -> None:
    torch.set_num_threads(1)
    assert Bandit(vocabulary, steps).learn(settings) < 0.02


@pytest.mark.parametrize(("vocabulary", "steps"), SHAPES)
def test_where_a_kl_loss_leads(vocabulary: int, steps: int) -> None:
    """k2 is right for one token. Of several it leaves out what each does to the KL of those that come after it."""
    torch.set_num_threads(1)
    distance = Bandit(vocabulary, steps).learn(RLOO(kl="k2"))
    assert distance < 0.02 if steps == 1 else 0.03 < distance < 0.1


@pytest.mark.parametrize(("vocabulary", "steps"), SHAPES)
def test_where_grpo_ends(vocabulary: int, steps: int) -> None:
    """Elsewhere: the standard deviation changes the trade with KL, and k3 as a loss is the other direction's KL."""
    torch.set_num_threads(1)
    assert Bandit(vocabulary, steps).learn(GRPO()) > 0.05
