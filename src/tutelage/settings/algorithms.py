"""Settings of each algorithm of reinforcement learning: one class each, chosen by `name`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.settings.common import Count, Fraction, Group, Number, Positive, Whole

Groups = Annotated[Count, Field(ge=2)]  # completions of a prompt that are compared with each other


class PolicyGradient(Group):
    """What all algorithms share: a clipped policy loss (Schulman 2017), and where the KL penalty stands."""

    cliprange: Positive = 0.2
    """Clip of the importance ratio (paper: 0.2)."""
    cliprange_high: Positive | None = None
    """Clip of the ratio upwards, if it is to be another: 0.28 lets rare tokens grow (DAPO)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bounds the loss of tokens with a negative advantage whose ratio runs away: 3 is usual (Ye 2020)."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """How tokens' losses become one: the mean over an update's tokens; the mean of completions' means, in which long
    completions count less for each token (GRPO); or the sum over a constant length, `sampler.max_new_tokens`
    (Dr. GRPO)."""
    kl: Literal["reward", "k2", "k3"] = "reward"
    """Where `kl_coef` weighs: in the reward of each token (k1, as in the paper: the gradient of a completion's KL from
    the reference); or as a loss of each token, k2 (the same gradient, but for what a token does to the KL of those
    after it) or k3 (the gradient of KL in the other direction, as GRPO has it)."""


class PPO(PolicyGradient):
    """Proximal policy optimisation, as Ziegler 2019, Stiennon 2020 and the paper use it: a value model gives credit."""

    name: Literal["ppo"] = "ppo"
    """How credit is assigned and which loss is taken."""
    gamma: Fraction = 1.0
    """Discount per token (paper: none)."""
    lam: Fraction = 0.95
    """GAE's lambda (Stiennon 2020)."""
    value_learning_rate: Positive = 9e-6
    """Value model's learning rate (paper: 9e-6)."""
    cliprange_value: Positive = 0.2
    """Clip of the value's change (Ziegler 2019's code)."""
    vf_coef: Number = 0.1
    """Weight of the value loss (Ziegler 2019's code). The value model has an optimizer of its own, so the weight
    matters only where gradients are clipped."""
    whiten_rewards: bool = False
    """Scale rewards to unit variance, mean kept (Ziegler 2019's code: off)."""
    whiten_advantages: bool = True
    """Standardise advantages over the iteration's tokens (Ziegler 2019's code)."""


class RLOO(PolicyGradient):
    """REINFORCE leave-one-out (Ahmadian 2024): a completion's return over the mean of the others of its prompt."""

    name: Literal["rloo"] = "rloo"
    """How credit is assigned and which loss is taken."""
    num_generations: Groups = 4
    """Completions of a prompt."""
    refill: Whole = 0
    """How often prompts whose completions all have one score are dropped and others asked in their place (DAPO: up to
    10); 0 keeps them, and they teach nothing."""


class GRPO(PolicyGradient):
    """Group-relative policy optimisation (Shao 2024): a completion's score in standard deviations of its group.

    With `scale_rewards` off and `aggregation` constant it is Dr. GRPO (Liu 2025)."""

    name: Literal["grpo"] = "grpo"
    """How credit is assigned and which loss is taken."""
    num_generations: Groups = 8
    """Completions of a prompt."""
    refill: Whole = 0
    """How often prompts whose completions all have one score are dropped and others asked in their place (DAPO: up to
    10); 0 keeps them, and they teach nothing."""
    scale_rewards: bool = True
    """Divide by the group's standard deviation, which weighs prompts that all but agree the most."""
    aggregation: Literal["token", "sequence", "constant"] = "sequence"
    """How tokens' losses become one (GRPO: the mean of completions' means); see PPO's."""
    kl: Literal["reward", "k2", "k3"] = "k3"
    """Where `kl_coef` weighs (GRPO: k3 in the loss); see PPO's."""


class ReinforcePP(PolicyGradient):
    """REINFORCE++ (Hu 2025): rewards to go, KL penalty included, standardised over the iteration."""

    name: Literal["reinforce_pp"] = "reinforce_pp"
    """How credit is assigned and which loss is taken."""
    num_generations: Count = 1
    """Completions of a prompt; they are not compared with each other."""


Algorithm = Annotated[PPO | RLOO | GRPO | ReinforcePP, Field(discriminator="name")]
