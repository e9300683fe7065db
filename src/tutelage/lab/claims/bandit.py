"""Bandits small enough to enumerate: which algorithms reach the optimal policy π* ∝ π_ref · exp(r/β), and which do not.

A policy is a table of logits. Its completions are all sequences of a few tokens, so KL from π* is a finite sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import permutations, product
from typing import Any

import torch
from torch import Tensor

from tutelage.algorithms import Algorithm, make_algorithm
from tutelage.algorithms.clipped import divisor
from tutelage.data.datasets import write_jsonl
from tutelage.objectives.advantages import kl_shaped_rewards
from tutelage.objectives.dpo import preference_loss
from tutelage.objectives.masked import keep
from tutelage.runs import open_run
from tutelage.sampling.rollout import Episodes, Rollout
from tutelage.settings.algorithms import GRPO, PPO, RLOO, PolicyGradient
from tutelage.settings.claims import BanditConfig

BETA, BATCH, ITERATIONS, INNER_EPOCHS, DPO_STEPS = 0.5, 512, 150, 3, 600
SHAPES = ((8, 1), (4, 2))  # vocabulary, steps
ALGORITHMS: Mapping[str, PolicyGradient] = {"ppo": PPO(), "rloo": RLOO(), "grpo": GRPO()}


def states_and_mask(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The state before a token is the token before it (0 at the start); token 0 is end-of-text and comes last."""
    states = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
    ended = torch.cat([torch.zeros_like(tokens[:, :1]), (tokens[:, :-1] == 0).cumsum(1)], dim=1)
    return states, ended == 0


def logprobs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """(n, t) log-probabilities of tokens under a table of logits by state."""
    states, _ = states_and_mask(tokens)
    return logits.log_softmax(-1)[states, tokens]


def sample(logits: Tensor, steps: int, g: torch.Generator) -> Tensor:
    """(BATCH, steps) tokens."""
    tokens = torch.zeros(BATCH, 1, dtype=torch.long)
    for _ in range(steps):
        tokens = torch.cat([tokens, torch.multinomial(logits.softmax(-1)[tokens[:, -1]], 1, generator=g)], dim=1)
    return tokens[:, 1:]


class Bandit:
    """A reference policy and rewards over all completions, and the optimum: log π* = log π_ref + r/β − log Z."""

    def __init__(self, vocabulary: int, steps: int, seed: int = 0) -> None:
        self.g, self.steps = torch.Generator().manual_seed(seed), steps
        self.states = vocabulary if steps > 1 else 1
        self.ref = torch.randn(self.states, vocabulary, generator=self.g)
        self.rewards_of = torch.randn((vocabulary,) * steps, generator=self.g)
        every = torch.tensor(list(product(range(vocabulary), repeat=steps)))
        self.every = torch.where(states_and_mask(every)[1], every, 0).unique(dim=0)
        _, self.mask = states_and_mask(self.every)
        self.reward = self.rewards_of[tuple(self.every.T)]
        self.optimum = (self.logprobs(self.ref) + self.reward / BETA).log_softmax(0)

    def logprobs(self, logits: Tensor) -> Tensor:
        """Of every completion, in the order of `every`."""
        return keep(logprobs_of(logits, self.every), self.mask).sum(1)

    def distance(self, logits: Tensor) -> float:
        """KL of a policy from the optimum, in nats."""
        logp = self.logprobs(logits.detach())
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
        made: dict[str, Any] = {"rewards": rewards, "advantages": advantages, "returns": returns, "values": now}
        return tokens, at, Rollout(**vars(episodes), scores=scores, ref_logprobs=ref, **made)

    def learn(self, settings: PolicyGradient) -> float:
        """The distance after training from the reference: the paper's figure 2, step 3, with tables for models."""
        algorithm = make_algorithm(settings, BATCH)
        logits, values = self.ref.clone().requires_grad_(), torch.zeros(self.states, requires_grad=True)
        optimizer = torch.optim.Adam([logits, values], lr=0.05)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, ITERATIONS)
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

    def learn_from_pairs(self) -> float:
        """The distance after DPO on all pairs of completions, each preferred as often as Bradley–Terry says: infinite
        data."""
        logits = self.ref.clone().requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.05)
        start, ranks = self.logprobs(self.ref), torch.tensor([1, 2])
        pairs = torch.tensor(list(permutations(range(len(self.every)), 2)))  # winner, loser
        shares = torch.sigmoid(self.reward[pairs[:, 0]] - self.reward[pairs[:, 1]])
        loss_of = torch.vmap(lambda ratios: preference_loss(ratios, ranks, BETA))
        for _ in range(DPO_STEPS):
            loss = (shares * loss_of((self.logprobs(logits) - start)[pairs])).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return self.distance(logits)


def distances(fresh: Callable[[], Bandit]) -> dict[str, float]:
    """KL from a bandit's optimum by algorithm, each trained from the reference; `start` is the reference's own."""
    start = {"start": fresh().distance(fresh().ref), "dpo": fresh().learn_from_pairs()}
    return start | {name: fresh().learn(settings) for name, settings in ALGORITHMS.items()}


def run(config: BanditConfig) -> None:
    """Write bandits.jsonl: of each bandit its shape, and by algorithm the KL from the optimum, in nats; `start` is the
    reference's."""
    opened = open_run("bandit", config, {})
    if opened is None:
        return
    cases = [(shape, number) for shape in SHAPES for number in range(config.bandits)]
    opened.begin(f"{len(cases)} bandits, {len(ALGORITHMS) + 1} algorithms")

    rows = []
    opened.forget_after(-1)  # what is kept is logged again
    for index in opened.track(range(len(cases))):
        (vocabulary, steps), number = cases[index]
        fresh = partial(Bandit, vocabulary, steps, config.seed * 1_000 + number)
        own = opened.once(f"bandit-{index}", partial(distances, fresh))
        opened.log(index, own)
        made = dict(sorted(own.items()))  # as a resume finds them
        rows.append({"vocabulary": vocabulary, "steps": steps, "bandit": number, **made})
    write_jsonl(opened.folder / "bandits.jsonl", rows)
    opened.finish(bandits=len(rows))
