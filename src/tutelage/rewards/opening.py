"""From settings to rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.rewards.classifier import classifier_reward
from tutelage.rewards.endpoint import endpoint_reward
from tutelage.rewards.function import function_reward
from tutelage.rewards.reward import Answers, Reward, Scores, score_all
from tutelage.rewards.reward_model import RewardModel
from tutelage.settings.rewards import ClassifierReward, Combination, EndpointReward, FunctionReward, RewardModelReward
from tutelage.settings.rewards import Reward as Settings


@dataclass(frozen=True)
class Rewards:
    """Rewards by name with their weights, and how they become one; `models` are those of them that are reward models,
    by name."""

    named: Mapping[str, tuple[float, Reward]]
    combination: Combination
    models: Mapping[str, RewardModel]

    def scores(self, answers: Answers) -> Scores:
        """What they say of completions.

        Raises:
            ValueError: naming the reward, if it fails or says something that is no score.
        """
        return score_all(self.named, self.combination, answers)


def open_rewards(
    settings: Mapping[str, Settings],
    combination: Combination,
    tokenizer: PreTrainedTokenizerBase,
    policy: PreTrainedModel | None = None,
) -> Rewards:
    """The rewards of these settings, for completions that this tokenizer's policy samples; a reward model that is an
    adapter of the same base shares the policy's weights.

    Raises:
        ValueError: naming the reward, if it cannot be opened.
    """
    named: dict[str, tuple[float, Reward]] = {}
    models: dict[str, RewardModel] = {}
    for name, each in settings.items():
        match each:
            case RewardModelReward():
                models[name] = RewardModel(each.model, beside=policy)
                reward = _reading(models[name], tokenizer)
            case ClassifierReward():
                reward = classifier_reward(each, name)
            case FunctionReward():
                reward = function_reward(each, name)
            case EndpointReward():
                reward = endpoint_reward(each, name)
        named[name] = (each.weight, reward)
    return Rewards(named, combination, models)


def _reading(model: RewardModel, policy: PreTrainedTokenizerBase) -> Reward:
    return lambda answers: model.score_answers(answers, policy)
