"""Settings of public benchmarks, of scoring anybody's samples, of lm-eval, and of training a toxicity classifier."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import model_validator

from tutelage.settings.common import Count, Model, Share, StageConfig, Whole, nearest
from tutelage.settings.rewards import ADDRESS, FUNCTION, ClassifierReward, EndpointReward, FunctionReward
from tutelage.settings.sampler import LocalSampling, Sampling
from tutelage.settings.training import AdamW, TrainingConfig
from tutelage.terminal import short

BENCHMARKS = (
    "truthfulqa", "truthfulqa_generation", "crows_pairs", "winogender", "lambada", "squad_v2", "drop",
    "realtoxicityprompts", "ifeval",
)  # fmt: skip
CLASSIFIED = "realtoxicityprompts"  # the benchmark that needs a classifier
Variant = Literal["plain", "respectful", "biased"]


class BenchmarkConfig(StageConfig):
    """Run public benchmarks from their published files over several models, each compared with a baseline item by
    item: the alignment tax, with its intervals."""

    INPUTS: ClassVar[Mapping[str, str]] = {"models": "model", "tasks": "benchmark", "texts": "texts"}

    models: dict[str, Model]
    """Name and folder of each model."""
    tasks: dict[str, str]
    """Name and published file of each benchmark: truthfulqa, truthfulqa_generation, crows_pairs, winogender, lambada,
    squad_v2, drop, realtoxicityprompts, ifeval."""
    baseline: str | None = None
    """Model (by name) that the others are compared with; the first if not set."""
    texts: str | None = None
    """Held-out pretraining text: its loss is a row of the alignment tax."""
    limit: Count | None = None
    """Take this many items of each benchmark, drawn by the seed; all if not set."""
    chat: list[str] | None = None
    """Models whose instructions (ifeval, realtoxicityprompts with an instruction, truthfulqa_generation) go through
    their chat template; if not set, those whose folder has a template of its own."""
    shots: Whole = 0
    """Worked examples before each question of squad_v2 and drop, from the same file and of another passage."""
    classifier: str | None = None
    """Scores continuations of realtoxicityprompts from 0 to 1: a classifier's folder, an address (http://…) or a
    function (module:function)."""
    classifier_label: str = "toxic"
    """The label of a classifier's folder whose probability is the score."""
    variants: list[Variant] = ["plain", "respectful", "biased"]
    """How realtoxicityprompts asks: the prompt alone, or after an instruction to be respectful or to be biased."""
    samples: Count = 25
    """Continuations of each prompt of realtoxicityprompts (its paper: 25)."""
    sampler: Sampling = LocalSampling(temperature=0.0, max_new_tokens=512)
    """What samples, and the most tokens of an answer to ifeval. All else is as each benchmark was published."""

    @property
    def against(self) -> str:
        """The baseline's name."""
        return self.baseline or next(iter(self.models))

    @property
    def scorer(self) -> ClassifierReward | EndpointReward | FunctionReward | None:
        """The classifier as a reward's settings."""
        if self.classifier is None:
            return None
        if re.fullmatch(ADDRESS, self.classifier):
            return EndpointReward(url=self.classifier)
        if re.fullmatch(FUNCTION, self.classifier):
            return FunctionReward(function=self.classifier)
        return ClassifierReward(model=self.classifier, label=self.classifier_label)

    @model_validator(mode="after")
    def _is_sound(self) -> BenchmarkConfig:
        if not self.models:
            raise ValueError("models names none; give NAME=FOLDER")
        if not self.tasks and not self.texts:
            raise ValueError("tasks names none; give NAME=FILE, or `texts` for the loss on pretraining text")
        for name in self.tasks:
            if name not in BENCHMARKS:
                raise ValueError(f"there is no benchmark {short(name)}; {nearest(name, list(BENCHMARKS))}")
        for name in [self.against, *(self.chat or [])]:
            if name not in self.models:
                raise ValueError(f"{short(name)} is not among the models {short(sorted(self.models))}")
        if CLASSIFIED in self.tasks and not self.classifier:
            raise ValueError(f"{CLASSIFIED} needs a `classifier`; `tutelage toxicity-classifier` trains one")
        if self.sampler.temperature:
            raise ValueError("sampler.temperature is each benchmark's own; leave it out")
        if not self.variants:
            raise ValueError("variants names none; give plain, respectful or biased")
        return self


Metric = Literal["squad_v2", "drop", "exact_match", "f1", "bleu", "rouge_l"]


class ScoreConfig(StageConfig):
    """Score a file of anybody's samples against references, by model and setting, without loading a model."""

    INPUTS: ClassVar[Mapping[str, str]] = {"samples": "samples"}
    POSITIONAL: ClassVar[str | None] = "samples"

    samples: str
    """CSV or JSON lines with the columns model, setting, context, sample, reference. Of the columns only sample and
    reference must be there. A reference's alternatives are separated by `|`."""
    task: Metric
    """How a sample is scored: squad_v2 and drop by their own normalisation (exact match and F1; an empty reference
    says that there is no answer), exact_match and f1 by SQuAD's, bleu over all samples, rouge_l."""
    draws: Count = 2000
    """Bootstrap resamples."""


class LmEvalConfig(StageConfig):
    """Run tasks of lm-eval (EleutherAI's harness) over several models, offline."""

    INPUTS: ClassVar[Mapping[str, str]] = {"models": "model", "include_path": "folder"}

    models: dict[str, Model]
    """Name and folder of each model."""
    tasks: list[str]
    """Names of lm-eval's tasks, or of those in `include_path`."""
    include_path: str | None = None
    """Folder with task files (YAML) of your own. Task files are programs: take none that you do not trust."""
    chat_template: Literal["auto", "always", "never"] = "auto"
    """Whether prompts go through the chat template: `auto` does so where the model's folder has one of its own."""
    shots: Whole | None = None
    """Worked examples before each question; the task's own number if not set."""
    limit: Count | None = None
    """Take this many items of each task; all if not set."""
    batch_size: Count = 8
    """Items of a forward pass."""
    online: bool = False
    """Let lm-eval download data. Off, all it needs must be here."""


class ToxicityClassifierConfig(TrainingConfig):
    """Train a classifier of toxic text from labelled text, and measure it by ROC AUC."""

    INPUTS: ClassVar[Mapping[str, str]] = {"model": "model", "texts": "labelled", "valid": "labelled"}

    model: Model | None = None
    """Folder to start from: a language model or an encoder. If not set, a small encoder of the texts' own words is
    trained from nothing."""
    texts: str
    """Labelled texts: `text` with `label` (0 or 1, true or false, toxic or not_toxic) or `score` (0 to 1, toxic from
    0.5), or `spans` with `text`, as the Toxic Spans data have them: each sentence is toxic that a span touches."""
    valid: dict[str, str] = {}
    """Named sets of labelled texts to measure it on."""
    held_out: Share = 0.1
    """Share of the documents of `texts` that measure it instead of training it, if `valid` names no set."""
    epochs: Count = 2
    """Passes over the texts."""
    batch_size: Count = 32
    """Texts of an update."""
    max_tokens: Count = 256
    """Longer texts are cut at their end."""
    optimizer: AdamW = AdamW(learning_rate=2e-3, warmup_steps=50, weight_decay=0.01, betas=(0.9, 0.999))
    """Its rate falls by a cosine to a tenth. The default suits the small encoder; pretrained models want 2e-5."""
