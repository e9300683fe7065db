"""Settings of evaluation: answer held-out prompts with every model, count what judges said, and how far they agree."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

from pydantic import model_validator

from tutelage.settings.common import Count, Model, Sources, StageConfig
from tutelage.settings.sampler import LocalSampling, Sampling
from tutelage.terminal import listed, short


class AnswerConfig(StageConfig):
    """Answer held-out prompts with every model, sampled and greedy, and measure KL and pretraining loss on the way."""

    INPUTS: ClassVar[Mapping[str, str]] = {
        "prompts": "prompts", "models": "model", "examples": "demonstrations", "reward_model": "model",
        "texts": "texts",
    }  # fmt: skip

    prompts: str
    """Prompts that no model was trained on."""
    models: dict[str, Model]
    """Name and folder of each model."""
    prompted: dict[str, str] = {}
    """New name -> model that is asked after worked examples, as `{prompted: base}`."""
    examples: str | None = None
    """Demonstrations to take the worked examples from."""
    shots: Count = 3
    """How many worked examples."""
    greedy: list[str] = []
    """Models that also answer without chance, as `NAME_greedy`."""
    best_of: str | None = None
    """Adds a row with the best of this model's `best_of_n` samples, chosen by the reward model: `best_of_N`."""
    best_of_n: Count = 8
    """Samples of it."""
    reward_model: Model | None = None
    """Scores every answer, and picks the best of n."""
    reference: str | None = None
    """Model (by name) that KL is measured from."""
    texts: str | None = None
    """Held-out pretraining text, for the alignment tax."""
    model_outputs: bool = False
    """Also write each row of answers as AlpacaEval's `model_outputs_NAME.json`."""
    sampler: Sampling = LocalSampling()
    """What samples, and how."""

    @property
    def labels(self) -> list[str]:
        """The names of the rows of answers."""
        best_of = [f"best_of_{self.best_of_n}"] if self.best_of else []
        return [*self.models, *self.prompted, *(f"{name}_greedy" for name in self.greedy), *best_of]

    @model_validator(mode="after")
    def _is_sound(self) -> AnswerConfig:
        if not self.sampler.temperature:
            raise ValueError("sampler.temperature=0 is greedy; name models under `greedy` instead, and set it above 0")
        for name in [*self.prompted.values(), *self.greedy, *(n for n in (self.best_of, self.reference) if n)]:
            if name not in self.models:
                raise ValueError(f"{short(name)} is not among the models {short(sorted(self.models))}")
        if self.prompted and not self.examples:
            raise ValueError("prompted needs `examples`, demonstrations to take the worked examples from")
        if self.best_of and not self.reward_model:
            raise ValueError("best_of needs a reward_model to choose by")
        if self.model_outputs and (odd := [name for name in self.labels if not re.fullmatch(r"[\w.-]+", name)]):
            raise ValueError(
                f"model_outputs: {short(odd[0])} can be no file's name; use letters, digits, `-`, `_`, `.`"
            )
        if twice := [label for label, number in Counter(self.labels).items() if number > 1]:
            raise ValueError(
                f"two rows of answers would be called {short(twice[0])}, among {listed(self.labels)}; rename a model, "
                "or what is asked for under that name"
            )
        return self


class EvaluateConfig(StageConfig):
    """Turn judgments into win rates, ratings of models and rates of faults, each with a 95 % interval over prompts."""

    INPUTS: ClassVar[Mapping[str, str]] = {"judgments": "judgments"}

    judgments: Sources
    """Judgments, as `tutelage judge` and `tutelage label export` write them; AlpacaEval's `annotations.json`; or
    exported rankings whose completions name their policies. One or several files."""
    baseline: str | None = None
    """Model that the others are compared with, where judgments have several baselines."""
    draws: Count = 2000
    """Bootstrap resamples."""


class AgreementConfig(StageConfig):
    """Measure how far labelers agree on the same prompts, and a reward model with them on the same pairs."""

    INPUTS: ClassVar[Mapping[str, str]] = {"rankings": "rankings", "reward_model": "model"}

    rankings: str
    """Rankings with a `labeler` each, several for a prompt; one arm of labelers a file."""
    reward_model: Model | None = None
    """Scores the ranked completions, to be compared with the labelers."""
    draws: Count = 1000
    """Bootstrap resamples of prompts."""
