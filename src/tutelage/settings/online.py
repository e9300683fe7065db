"""Settings of reinforcement learning.

A default is the paper's where it states one (section C of its appendix), else Stiennon 2020's or Ziegler 2019's, else
ours; its description says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import model_validator

from tutelage.settings.algorithms import PPO, Algorithm
from tutelage.settings.common import Count, Model, Number, Positive, Share, Source
from tutelage.settings.rewards import Combination, Reward, RewardModelReward, RewardName
from tutelage.settings.sampler import LocalSampling, Sampling
from tutelage.settings.training import AdamW, FineTuningConfig, Length

MOST_SURPRISE = 0.2  # share by which the adaptive coefficient moves at the most over its horizon (Ziegler 2019)


class OnlineConfig(FineTuningConfig):
    """Reinforcement learning against a reward model (paper, section 3.5, equation 2), or any other reward."""

    INPUTS: ClassVar[Mapping[str, str]] = {
        "model": "model", "reward_model": "model", "rewards": "model", "heldout_reward_model": "model",
        "prompts": "prompts", "pretraining_texts": "texts",
    }  # fmt: skip

    model: Model
    """The SFT policy: where the policy starts, and the reference of the KL penalty."""
    reward_model: Model | None = None
    """Scores completions; PPO's value model starts from it, without it from the policy."""
    rewards: dict[RewardName, Reward] = {}
    """Other rewards by name: `module:function`, `http://…`, a reward model's folder, or in full, as {name: classifier,
    model: …, label: …}. Each is logged by itself."""
    combination: Combination = Combination()
    """How the scores of several rewards become one."""
    heldout_reward_model: Model | None = None
    """A second judge of all samples, from which nothing is learned: a reward model of other labelers, or of another
    seed. The run warns where the reward keeps rising and its scores fall."""
    prompts: Source
    """Prompts to practise on."""
    algorithm: Algorithm = PPO()
    """Which algorithm, by name, and its own settings."""
    optimizer: AdamW = AdamW(learning_rate=9.65e-6, warmup_steps=10, epsilon=1e-5)
    """Of the policy and, except for the rate, of the value model. The rate rises from a tenth over the first
    iterations, then stays (paper: 10 iterations; it does not state the final value, its SFT peak stands here).
    Epsilon is Stiennon 2020's; the paper is silent."""
    sampler: Sampling = LocalSampling(max_new_tokens=1024)
    """What samples, and how (paper: temperature 1, 1,024 tokens at the most)."""
    total_episodes: Count = 256_000
    """Completions sampled in all, rounded up to whole iterations (paper: 256k)."""
    batch_size: Count = 512
    """Episodes of an iteration (paper: 512)."""
    mini_batch_size: Count = 64
    """Episodes of an update (paper: 64)."""
    inner_epochs: Count = 1
    """Passes over an iteration's episodes (paper: 1)."""
    max_prompt_tokens: Count = 1024
    """Longer prompts are dropped and counted (paper: 1,024)."""
    kl_coef: Number = 0.02
    """Weight of the per-token KL penalty, beta (paper: 0.02)."""
    kl_target: Positive | None = None
    """Sum of KL per completion to steer to (Ziegler 2019: 6); without it kl_coef stays fixed, as in the paper."""
    kl_horizon: Count = 10_000
    """Episodes over which the adaptive coefficient moves (Ziegler 2019: 10,000)."""
    missing_eos_penalty: Number = 1.0
    """Taken off the score of a completion that was cut off (Ziegler 2019's code: 1)."""
    ema_decay: Share | None = None
    """Per iteration, of the averaged policy in `model/` (paper: 0.992 over its 500 iterations). If not set, it follows
    the run's length: the average spans the same share of it. 0 takes the last weights, which `last/` has anyway."""
    pretraining_texts: Source | None = None
    """The mixture of PPO-ptx; without it, plain PPO."""
    ptx_coef: Number = 0.5
    """gamma of equation 2, in our normalisation: policy loss and ptx loss are both means per token (the paper's 27.8
    belongs to another, and drowns the policy loss here)."""
    ptx_per_episode: Positive = 1
    """Pretraining rows per episode; more reduce the gradient's noise, not its weight (paper: 8)."""
    ptx_length: Length = 128
    """Tokens of a pretraining row."""
    sample_every: Count = 10
    """Iterations between samples kept for the report."""
    policy_every: Count | None = None
    """Iterations between policies kept in `policy-ITERATION/`, for `tutelage overoptimize`; none by default."""

    @property
    def all_rewards(self) -> dict[str, Reward]:
        """The reward model, if there is one, and the others, by name."""
        own = {} if self.reward_model is None else {"reward_model": RewardModelReward(model=self.reward_model)}
        return own | self.rewards

    @model_validator(mode="after")
    def _is_sound(self) -> OnlineConfig:
        if not self.all_rewards:
            raise ValueError("nothing scores completions; give a reward_model, or rewards={name: module:function}")
        if self.reward_model is not None and "reward_model" in self.rewards:
            raise ValueError("rewards.reward_model: reward_model is set too; call one of them by another name")
        if self.combination.name == "mean_less_std" and len(self.all_rewards) < 2:
            raise ValueError("combination=mean_less_std takes an ensemble; give at least two rewards")
        if self.adapter and self.adapter.dropout:
            raise ValueError(
                f"adapter.dropout={self.adapter.dropout}: reinforcement learning has no dropout, as ratios compare the "
                "policy with itself; leave it out"
            )
        if not self.sampler.temperature:
            raise ValueError("sampler.temperature=0 explores nothing, and has no log-probabilities; set it above 0")
        if self.batch_size % self.mini_batch_size:
            raise ValueError(f"mini_batch_size={self.mini_batch_size} does not divide batch_size={self.batch_size}")
        if self.kl_target and self.kl_horizon <= MOST_SURPRISE * self.batch_size:
            raise ValueError(
                f"kl_horizon={self.kl_horizon} is so short that one iteration of batch_size={self.batch_size} could "
                "make the KL coefficient negative; raise it"
            )
        return self
