"""Settings of the paper's claims, checked in the miniature world: how large the experiments are, and the runs that
they need beside the recipe's stages.

All sizes were fixed before the first full run. None is changed because of what a claim turned out to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from tutelage.settings.common import Count, Model, Number, Seed, Settings, Source, StageConfig, Whole, nearest
from tutelage.settings.sampler import LocalSampling, Sampling
from tutelage.terminal import short

NAMES = (
    "one_element", "epochs", "data", "heldout_labelers", "ordering", "small_beats_large", "tax", "ptx_not_kl",
    "interior_beta", "overoptimization", "penalty_is_stopping", "kl_spent", "optimal_policy",
)  # fmt: skip
BETA, GAMMA = 0.06, 0.5  # of the main PPO and PPO-ptx runs: the demo's


class Scale(Settings):
    """How large the experiments are. `sizes`, `betas` and the like are the points of a sweep, in rising order."""

    demonstrations: Count = 2500
    rankings: Count = 3200
    valid_prompts: Count = 400
    prompts: Count = 4000
    test_prompts: Count = 600
    documents: Count = 12_000
    valid_documents: Count = 300
    sft_epochs: Count = 3
    sizes: tuple[Count, ...] = (50, 100, 200, 400, 800, 1600, 3200)
    """Rankings that reward models learn from; the last is the main reward model's."""
    overfit: Count = 800
    """Rankings for the epochs, and for shuffled pairs; one of `sizes`."""
    pairs_per_ranking: Count = 13
    """Ordered pairs of a ranking, about: so many times the batch of rankings is the batch of pairs."""
    epochs: tuple[Count, ...] = (1, 2, 4, 8)
    folds: Count = 5
    fold_rankings: Count = 1600
    episodes: Count = 5120
    betas: tuple[Number, ...] = (0.0, 0.02, BETA, 0.2, 0.6, 2.0)
    gammas: tuple[Number, ...] = (0.1, GAMMA, 2.0)
    stops: tuple[Count, ...] = (640, 1280, 2560, 5120, 10_240)
    """Episodes after which PPO without a KL penalty is stopped."""
    proxies: tuple[Count, ...] = (100, 800, 3200)
    """Rankings of the reward models that are optimised too far; each one of `sizes`."""
    best_of_prompts: Count = 64
    best_of: Count = 1000
    bandits: Count = 5
    large_tokens: Whole = 6_000_000
    """Tokens that the large base is pretrained on; 0 leaves it out, and with it the claim."""


FULL = Scale()
FAST = Scale(
    demonstrations=1200, rankings=600, valid_prompts=150, prompts=1000, test_prompts=200, documents=3000,
    valid_documents=100, sft_epochs=2, sizes=(75, 150, 300, 600), overfit=300, epochs=(1, 2, 4), folds=5,
    fold_rankings=300, episodes=1536, betas=(0.0, BETA, 2.0), gammas=(GAMMA,), stops=(768, 1536, 3072),
    proxies=(75, 600), best_of_prompts=25, best_of=200, bandits=3, large_tokens=0,
)  # fmt: skip


class ClaimsConfig(StageConfig):
    """Check the paper's claims in the miniature world: run the experiments at several seeds, and say for each claim
    whether it shows."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds, each with a world, people, SFT policy and reward models of its own."""
    claims: list[str] = []
    """Claims to check by name; without any, all of them. The verdict is of these alone, and what is done stays done."""
    fast: bool = False
    """About ten minutes in place of hours: the first seed alone, and everything smaller. It shows that all of it works;
    most claims need the whole."""

    @property
    def scale(self) -> Scale:
        """How large the experiments are."""
        return FAST if self.fast else FULL

    @property
    def wanted(self) -> tuple[str, ...]:
        """The claims to check, in the registry's order."""
        return tuple(name for name in NAMES if not self.claims or name in self.claims)

    @property
    def used_seeds(self) -> tuple[int, ...]:
        """The seeds to run."""
        return self.seeds[:1] if self.fast else self.seeds

    @model_validator(mode="after")
    def _are_known(self) -> ClaimsConfig:
        for name in self.claims:
            if name not in NAMES:
                raise ValueError(f"no claim {short(name)}; {nearest(name, list(NAMES))}")
        if self.seed:
            raise ValueError(f"seed={self.seed}: claims are checked at several seeds; give `seeds`")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is named twice; leave one out")
        return self


class SubsetsConfig(StageConfig):
    """Write the rankings that the reward models of the claims learn from: the first of them, shuffled pairs, folds."""

    INPUTS: ClassVar[Mapping[str, str]] = {"rankings": "rankings"}

    rankings: Source
    """Training rankings, each with its labeler."""
    sizes: tuple[Count, ...]
    """How many rankings `first_N.jsonl` holds; each holds those of the smaller ones."""
    pairs_of: Count
    """Of how many rankings `pairs.jsonl` holds all ordered pairs, shuffled."""
    folds: Count
    """Groups of labelers; `fold_K.jsonl` leaves out the rankings of group K."""
    fold_rankings: Count
    """Rankings that the folds are made of."""


class MarksConfig(StageConfig):
    """Measure a reward model on each held-out ranking by itself."""

    INPUTS: ClassVar[Mapping[str, str]] = {"reward_model": "model", "rankings": "rankings"}

    reward_model: Model
    """Model folder."""
    rankings: dict[str, str]
    """Held-out rankings by the name of their set."""


class GaugeConfig(StageConfig):
    """Measure a policy prompt by prompt: gold score, reward model's score, KL from a reference; and document by
    document its loss on text."""

    INPUTS: ClassVar[Mapping[str, str]] = {
        "policy": "model", "reference": "model", "reward_model": "model", "prompts": "prompts", "texts": "texts",
    }  # fmt: skip

    policy: Model
    """Model folder."""
    reference: Model | None = None
    """Model that KL is measured from."""
    reward_model: Model | None = None
    """Scores the answers."""
    prompts: Source | None = None
    """Prompts that no model was trained on; each is answered once."""
    texts: Source | None = None
    """Held-out pretraining text."""
    sampler: Sampling = LocalSampling(max_new_tokens=40)
    """What samples, and how."""


class SamplesConfig(StageConfig):
    """Sample a policy many times per prompt, and score every sample by several reward models and by gold."""

    INPUTS: ClassVar[Mapping[str, str]] = {"policy": "model", "reward_models": "model", "prompts": "prompts"}

    policy: Model
    """Model folder."""
    reward_models: dict[str, Model]
    """Name and folder of each reward model."""
    prompts: Source
    """Prompts that no model was trained on."""
    first: Count
    """How many of them are asked."""
    n: Count = 1000
    """Samples of each."""
    sampler: Sampling = LocalSampling(max_new_tokens=40)
    """What samples, and how."""


class BanditConfig(StageConfig):
    """Train each algorithm on bandits small enough to enumerate, and measure how far it ends from the optimum."""

    bandits: Count = 5
    """Bandits of each shape, each with a reference policy and rewards of its own."""


class VerdictConfig(StageConfig):
    """Say of each claim whether it shows, from run folders alone."""

    runs: Path
    """Folder with the seeds' folders."""
    seeds: tuple[Seed, ...]
    """Which of them count."""
    claims: tuple[str, ...]
    """Which claims."""
    fast: bool = False
    """Whether the runs are the small ones."""
    scale: Scale
    """How large the experiments were."""
