"""All settings of all stages on one page, torch-free, so that the command line parses before torch is imported.

A default is the paper's where it states one (section C of its appendix), else Stiennon 2020's or Ziegler 2019's, else
ours; the comment on the right says which. `recipes/paper.yaml` has the paper's full table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from tutelage.settings.common import Count, Fraction, Number, StageConfig, Whole
from tutelage.terminal import short

Length = Annotated[Count, Field(ge=2)]  # of a row to predict the next token in
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Source = str  # a path or a hub id
LARGEST = 10**10  # weights of a model to be trained from nothing


def _number_or_range(value: object) -> str:
    if not re.fullmatch(r"[0-9]{1,4}(\.\.[0-9]{1,4})?", str(value)):
        raise ValueError("expected a number or a range, such as 6 or 4..9")
    return str(value)


class Training(StageConfig):
    """What all gradient training shares."""

    learning_rate: Positive
    """Peak learning rate of AdamW."""
    weight_decay: Number = 0.0
    """AdamW's decoupled weight decay."""
    adam_betas: tuple[Share, Share] = (0.9, 0.95)
    """Adam's decay rates (the paper's)."""
    adam_epsilon: Positive = 1e-8
    """Adam's epsilon (the usual one; the paper is silent)."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm (ours; the paper is silent)."""
    micro_batch_tokens: Count = 2048
    """Tokens of one forward and backward pass, padding included. It changes memory and speed, never a result.

    The default suits processors' caches; accelerators want 16384 and more."""
    checkpoint_seconds: Positive = 20.0
    """A resumable checkpoint is written about this often."""


class PretrainConfig(Training):
    """Train a small base model and its tokenizer from plain text (next-token prediction)."""

    INPUTS: ClassVar[Mapping[str, str]] = {"texts": "texts", "valid_texts": "texts"}

    texts: Source
    """Training text: any file or hub id with a `text` column, or a .txt file."""
    valid_texts: Source | None = None
    """Held-out text, for the validation loss."""
    vocab_size: Count = 1024
    """Byte-level BPE tokens at the most."""
    hidden_size: Count = 128
    """Width of the Llama model."""
    layers: Count = 4
    """Decoder layers."""
    heads: Count = 4
    """Attention heads."""
    intermediate_size: Count = 344
    """Width inside the feed-forward blocks."""
    context: Count = 512
    """Most tokens of a sequence the model is said to take."""
    sequence_length: Length = 128
    """Tokens of a training row; documents are joined by end-of-text."""
    batch_tokens: Count = 1024
    """Tokens of an update."""
    total_tokens: Count = 2_400_000
    """Tokens to train on, passing over the text again if it is shorter."""
    warmup_steps: Whole = 100
    """Updates of linear warm-up before the cosine."""
    learning_rate: Positive = 3e-3
    """Peak learning rate of AdamW."""
    weight_decay: Number = 0.1
    """AdamW's decoupled weight decay."""

    @model_validator(mode="after")
    def _shape_is_sound(self) -> PretrainConfig:
        width, heads = self.hidden_size, self.heads
        if width % (2 * heads):
            raise ValueError(
                f"hidden_size={width} is not divided by heads={heads} into even parts, as rotary positions need; "
                f"take {2 * heads * max(1, round(width / (2 * heads)))}"
            )
        if self.sequence_length > self.context:
            raise ValueError(
                f"sequence_length={self.sequence_length} is more than context={self.context}; raise context to it"
            )
        weights = self.vocab_size * width + self.layers * width * (4 * width + 3 * self.intermediate_size)
        if weights > LARGEST:
            raise ValueError(
                f"vocab_size, hidden_size, layers and intermediate_size make {weights:.1e} weights; at the most "
                f"{LARGEST:.0e} are trained here: take smaller ones"
            )
        return self


class SftConfig(Training):
    """Supervised fine-tuning: imitate demonstrations (paper, section 3.5)."""

    INPUTS: ClassVar[Mapping[str, str]] = {
        "model": "model", "demonstrations": "demonstrations", "valid_demonstrations": "demonstrations",
        "reward_model": "model", "pretraining_texts": "texts",
    }  # fmt: skip

    model: Source
    """Base model: a Hugging Face folder or hub id."""
    demonstrations: Source
    """Prompts with completions, in any accepted format."""
    valid_demonstrations: Source | None = None
    """Held-out demonstrations; without them those of a tenth of the prompts are held out."""
    reward_model: Source | None = None
    """If given, the checkpoint is chosen by its mean score on completions to held-out prompts (the paper's way),
    else by validation loss."""
    epochs: Count = 16
    """Passes over the demonstrations (paper: 16)."""
    batch_size: Count = 32
    """Demonstrations of an update (paper: 32)."""
    learning_rate: Positive = 9.65e-6
    """Peak learning rate (paper: 9.65e-6 at 1.3B and 6B), cosine to a tenth, no warm-up."""
    residual_dropout: Fraction = 0.0
    """Dropout in attention and residual, where the architecture has it (paper: 0.2)."""
    pretraining_texts: Source | None = None
    """Plain text to mix in (the paper's RL initialisation mixes 10 %)."""
    pretraining_share: Fraction = 0.1
    """Share of an update's loss weight that is pretraining text, if given."""
    max_prompt_tokens: Count = 1024
    """Longer prompts are dropped and counted (paper: 1,024)."""
    max_completion_tokens: Count = 1024
    """Longer completions are dropped and counted (paper: 1,024)."""
    score_samples: Count = 128
    """Held-out prompts that are sampled and scored when a reward model chooses."""


class CollectConfig(StageConfig):
    """Sample K completions per prompt for labelers to rank (paper, section 3.4)."""

    INPUTS: ClassVar[Mapping[str, str]] = {
        "prompts": "prompts", "policy": "model", "policies": "model", "examples": "demonstrations",
    }  # fmt: skip

    prompts: Source
    """Prompts, in any accepted format."""
    policy: Source | None = None
    """Model folder of the one policy that writes; for several give `policies`."""
    policies: dict[str, str] = {}
    """Name and model folder of each policy."""
    weights: dict[str, Number] = {}
    """How often a policy writes a completion, relative to the others; 1 where not named."""
    few_shot: list[str] = []
    """Policies that get worked examples before the prompt, as a base model should."""
    examples: Source | None = None
    """Demonstrations to take the worked examples from."""
    shots: Count = 3
    """How many worked examples."""
    off_prompt: Fraction = 0.0
    """Share of completions taken from another prompt, so that a reward model learns to read the instruction."""
    k: Annotated[str, BeforeValidator(_number_or_range)] = "4..9"
    """Completions of a prompt, as a number or a range (paper: 4..9)."""
    temperature: Number = 1.0
    """Sampling temperature."""
    max_new_tokens: Count = 256
    """Most tokens of a completion."""

    @model_validator(mode="after")
    def _policies_are_known(self) -> CollectConfig:
        if (self.policy is None) == (not self.policies):
            raise ValueError("give either policy, a model folder, or policies, a mapping of names to model folders")
        policies = self.policies or {"policy": str(self.policy)}
        for name in [*self.weights, *self.few_shot]:
            if name not in policies:
                raise ValueError(f"{short(name)} is not among the policies {short(sorted(policies))}")
        if self.few_shot and not self.examples:
            raise ValueError("few_shot needs `examples`, demonstrations to take the worked examples from")
        fewest, _, most = self.k.partition("..")
        if not 2 <= int(fewest) <= int(most or fewest):
            raise ValueError(f"k={short(self.k)}: expected a number or range from 2, such as 6 or 4..9")
        return self


class RewardConfig(Training):
    """Fit a reward model to K-way rankings by Bradley–Terry (paper, equation 1)."""

    INPUTS: ClassVar[Mapping[str, str]] = {
        "model": "model", "rankings": "rankings", "valid": "rankings", "demonstrations": "demonstrations",
    }  # fmt: skip

    model: Source
    """The SFT policy whose weights start the reward model."""
    rankings: Source
    """Rankings: `prompt`, `completions`, `ranks`; or chosen and rejected pairs."""
    valid: dict[str, str] = {}
    """Named sets of held-out rankings, each reported by itself, as `heldout_labelers`."""
    held_out: Share = 0.1
    """Share of the prompts whose rankings measure the reward model instead of training it, if `valid` names no set."""
    demonstrations: Source | None = None
    """Scores are shifted so that these average 0 (paper, section 3.5)."""
    epochs: Count = 1
    """Passes over the rankings (paper: 1; more overfits)."""
    batch_size: Count = 64
    """Rankings of an update (paper: 64); each is one element with all its pairs."""
    learning_rate: Positive = 9e-6
    """Peak learning rate (paper: 9e-6), cosine to a tenth."""
    warmup_steps: Whole = 0
    """Updates of linear warm-up."""
    max_prompt_tokens: Count = 1024
    """Longer prompts are dropped and counted."""


class MeasureConfig(StageConfig):
    """Measure a trained reward model on any rankings or pairs: how many it puts into the labelers' order."""

    INPUTS: ClassVar[Mapping[str, str]] = {"reward_model": "model", "rankings": "rankings"}

    reward_model: Source
    """Model folder or hub id of the reward model."""
    rankings: Source
    """Rankings or pairs that it did not learn from, in any accepted format."""
    micro_batch_tokens: Count = 2048
    """Tokens of one pass. It changes memory and speed, never a result."""


class OnlineConfig(Training):
    """Reinforcement learning against a reward model (paper, section 3.5, equation 2)."""

    INPUTS: ClassVar[Mapping[str, str]] = {
        "model": "model", "reward_model": "model", "prompts": "prompts", "pretraining_texts": "texts",
    }  # fmt: skip

    model: Source
    """The SFT policy: where the policy starts, and the reference of the KL penalty."""
    reward_model: Source
    """Scores completions; the value model starts from it."""
    prompts: Source
    """Prompts to practise on."""
    algorithm: Literal["ppo"] = "ppo"
    """How credit is assigned and which loss is taken."""
    total_episodes: Count = 256_000
    """Completions sampled in all (paper: 256k)."""
    batch_size: Count = 512
    """Episodes of an iteration (paper: 512)."""
    mini_batch_size: Count = 64
    """Episodes of an update (paper: 64)."""
    num_ppo_epochs: Count = 1
    """Passes over an iteration's episodes (paper: 1)."""
    learning_rate: Positive = 9.65e-6
    """Policy's constant rate after warm-up (the paper does not state its final value; its SFT peak stands here)."""
    adam_epsilon: Positive = 1e-5
    """Adam's epsilon (Stiennon 2020; the paper is silent)."""
    value_learning_rate: Positive = 9e-6
    """Value model's learning rate (paper: 9e-6)."""
    warmup_iterations: Whole = 10
    """Iterations over which the rate rises from a tenth (paper: 10)."""
    max_prompt_tokens: Count = 1024
    """Longer prompts are dropped and counted (paper: 1,024)."""
    max_completion_length: Count = 1024
    """Most tokens of a completion (paper: 1,024)."""
    temperature: Positive = 1.0
    """In sampling and in every log-probability (paper: 1)."""
    kl_coef: Number = 0.02
    """Weight of the per-token KL penalty, beta (paper: 0.02)."""
    kl_target: Positive | None = None
    """Sum of KL per completion to steer to (Ziegler 2019: 6); without it kl_coef stays fixed, as in the paper."""
    kl_horizon: Count = 10_000
    """Episodes over which the adaptive coefficient moves (Ziegler 2019: 10,000)."""
    gamma: Fraction = 1.0
    """Discount per token (paper: none)."""
    lam: Fraction = 0.95
    """GAE's lambda (Stiennon 2020)."""
    cliprange: Positive = 0.2
    """Clip of the importance ratio (paper: 0.2)."""
    cliprange_value: Positive = 0.2
    """Clip of the value's change (Ziegler 2019's code)."""
    vf_coef: Number = 0.1
    """Weight of the value loss (Ziegler 2019's code). The value model has an optimizer of its own, so the weight
    matters only where gradients are clipped."""
    whiten_advantages: bool = True
    """Standardise advantages over the iteration's tokens (Ziegler 2019's code)."""
    whiten_rewards: bool = False
    """Scale rewards to unit variance, mean kept (Ziegler 2019's code: off)."""
    missing_eos_penalty: Number = 1.0
    """Taken off the score of a completion that was cut off (Ziegler 2019's code: 1)."""
    ema_decay: Fraction | None = None
    """Per iteration, of the averaged policy in `model/` (paper: 0.992 over its 500 iterations). If not set, it follows
    the run's length: the average spans the same share of it. 0 takes the last weights, which `last/` has anyway."""
    pretraining_texts: Source | None = None
    """The mixture of PPO-ptx; without it, plain PPO."""
    ptx_coef: Number = 0.5
    """gamma of equation 2, in our normalisation: policy loss and ptx loss are both means per token (the paper's 27.8
    belongs to another, and drowns the policy loss here)."""
    ptx_per_episode: Positive = 1
    """Pretraining rows of an episode; more give a smoother gradient, not a heavier one (paper: 8)."""
    ptx_length: Length = 128
    """Tokens of a pretraining row."""
    sample_every: Count = 10
    """Iterations between samples kept for the report."""

    @model_validator(mode="after")
    def _batches_divide(self) -> OnlineConfig:
        if self.batch_size % self.mini_batch_size:
            raise ValueError(f"mini_batch_size={self.mini_batch_size} does not divide batch_size={self.batch_size}")
        return self
