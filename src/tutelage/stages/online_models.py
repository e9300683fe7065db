"""The models of the online loop: the policy, its two copies, the rewards and, where one is needed, a value model."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.algorithms import Algorithm
from tutelage.models.adapters import (
    adapter_of,
    add_adapter,
    beside,
    is_adapter,
    load_adapter,
    own_parameters,
    scalar_beside,
    without_adapter,
)
from tutelage.models.loading import load_policy, new_scalar
from tutelage.models.tokens import load_tokenizer, require_same_tokens
from tutelage.rewards.opening import Rewards, open_rewards
from tutelage.rewards.reward_model import RewardModel, covered_kl
from tutelage.sampling.engines import open_sampler
from tutelage.sampling.protocol import Sampler
from tutelage.settings.online import OnlineConfig


@dataclass(frozen=True)
class Models:
    """What the loop works with. `value_model` is None where the algorithm needs none, `heldout` without a second judge;
    `average` holds the averaged weights; `covered` is logged: how far the reward models' rankings reach, if known."""

    tokenizer: PreTrainedTokenizerBase
    policy: PreTrainedModel
    reference: PreTrainedModel
    rewards: Rewards
    value_model: PreTrainedModel | None
    average: PreTrainedModel
    sampler: Sampler
    heldout: RewardModel | None = None
    covered: dict[str, float] = field(default_factory=dict)

    @property
    def readers(self) -> list[RewardModel]:
        """All reward models that read samples."""
        return [*self.rewards.models.values(), *([self.heldout] if self.heldout else [])]


def load_models(config: OnlineConfig, algorithm: Algorithm) -> Models:
    """The policy, its two copies, the rewards and, if the algorithm needs one, a value model, at first a copy of the
    reward model or, without one, of the policy.

    Raises:
        ValueError: if a reward cannot be opened, or a value model is to read the policy's tokens as other ones.
    """
    tokenizer, has_values = load_tokenizer(config.model), algorithm.value_loss is not None
    if config.reward_model is not None and has_values:
        require_same_tokens(load_tokenizer(config.reward_model), tokenizer, f"reward_model {config.reward_model}")
    policy = load_policy(config.model, tokenizer, config.adapter, config.seed)
    if config.adapter is None:
        reference, average = load_policy(config.model, tokenizer), copy.deepcopy(policy)
    else:  # the adapter off, or as it was
        reference = beside(policy) if is_adapter(config.model) else without_adapter(policy)
        average = beside(policy)
    rewards = open_rewards(config.all_rewards, config.combination, tokenizer, policy)
    value_model = new_value_model(config, policy, rewards, tokenizer) if has_values else None
    for model in (reference, average):
        for parameter in own_parameters(model).values():
            parameter.requires_grad_(False)
    sampler = open_sampler(config.sampler, policy, bf16=True)  # the ratio divides by what was sampled with
    heldout = RewardModel(config.heldout_reward_model, beside=policy) if config.heldout_reward_model else None
    reach = covered_kl(rewards.models.values())
    covered = {} if reach is None else {"objective/kl_covered": reach}
    return Models(tokenizer, policy, reference, rewards, value_model, average, sampler, heldout, covered)


def new_value_model(
    config: OnlineConfig, policy: PreTrainedModel, rewards: Rewards, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """A copy of the reward model or, without one, of the policy with a new head; with an adapter, on their weights."""
    own = rewards.models.get("reward_model")
    if config.adapter is None:
        return copy.deepcopy(own.model) if own else new_scalar(config.model, tokenizer, config.seed)
    if own is None:
        scalar = scalar_beside(policy, config.seed)
        if is_adapter(config.model):
            return load_adapter(scalar, config.model)
        return add_adapter(scalar, config.adapter, config.model, config.seed)
    model = beside(own.model)
    if adapter_of(model) is None:
        return add_adapter(model, config.adapter, own.folder, config.seed)
    for parameter in own_parameters(model).values():
        parameter.requires_grad_(True)
    return model
