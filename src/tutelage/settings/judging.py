"""Settings of judging: who compares the answers of models. One class for each kind of judge, chosen by `name`, or by
the setting that only it has.

A text alone stands for the kind that it looks like: `world`, `module:function`, else a reward model's folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from tutelage.settings.common import Count, Group, Model, Positive, Sources, StageConfig, Whole
from tutelage.settings.rewards import ADDRESS, FUNCTION

QUESTION = (
    "Which answer would the person who wrote the prompt prefer? Truthful and harmless answers come first, "
    "then answers that do what the prompt asks. Length by itself is no merit."
)


class WorldJudge(Group):
    """A reader of the miniature world, who knows its prompts alone."""

    name: Literal["world"] = "world"
    """Which kind of judge."""
    reader: Literal["labelers", "gold"] = "labelers"
    """Simulated held-out labelers, who vote; or the gold preference, which has no noise and also rates each answer."""
    heldout_labelers: Count = 8
    """Size of the pool of labelers; the same people as in ranking."""
    votes: Count = 3
    """Labelers who judge each pair of answers."""

    @model_validator(mode="after")
    def _votes_are_had(self) -> WorldJudge:
        if self.votes > self.heldout_labelers:
            raise ValueError(f"votes={self.votes} are more than heldout_labelers={self.heldout_labelers}; hire as many")
        return self


class RewardModelJudge(Group):
    """A reward model, as `tutelage reward` writes it: the answer with the higher score wins."""

    INPUT: ClassVar[str] = "reward_model"

    name: Literal["reward_model"] = "reward_model"
    """Which kind of judge."""
    reward_model: Model
    """Its folder. It reads prompts and answers in its own template."""


class FunctionJudge(Group):
    """A Python function `f(prompts, first, second, **columns)` that returns, for each prompt, the share that the first
    answer wins: 1, 0, 0.5 for a tie, or None where it cannot say. A mapping of labelers to their shares says who voted.
    Columns are those of the answers' rows that it names, or all if it takes `**columns`."""

    name: Literal["function"] = "function"
    """Which kind of judge."""
    function: Annotated[str, StringConstraints(pattern=f"^{FUNCTION}$")]
    """`module:function`, where the module is installed or lies in the folder that the command is given in."""
    timeout_seconds: Positive = 300.0
    """How long a call with up to 256 comparisons may take. A longer one ends the run, which can be resumed."""


class EndpointJudge(Group):
    """A language model behind any chat endpoint that speaks OpenAI's protocol. It is asked in both orders; a changed
    mind is a tie."""

    INPUT: ClassVar[str] = ""  # its `model` is no folder here

    name: Literal["endpoint"] = "endpoint"
    """Which kind of judge."""
    endpoint: Annotated[str, StringConstraints(pattern=f"^{ADDRESS}$")]
    """Base address, as `https://host/v1`; `/chat/completions` below it is asked."""
    model: Annotated[str, StringConstraints(min_length=1)]
    """The model's name there."""
    question: Annotated[str, StringConstraints(min_length=1)] = QUESTION
    """What it is asked of the two answers."""
    parameters: dict[str, Any] = {"temperature": 0, "max_tokens": 16}
    """Further fields of each request, as this server wants them; a model that thinks first needs more tokens."""
    token_variable: str | None = None
    """Environment variable that holds the API key; the key itself is written nowhere."""
    concurrency: Count = 4
    """Requests at a time."""
    timeout_seconds: Positive = 60.0
    """How long an answer may take."""
    retries: Whole = 4
    """Further tries where there is no answer, or none that can be read, each after twice the wait (1, 2, 4 … s)."""

    @model_validator(mode="after")
    def _holds_no_key(self) -> EndpointJudge:
        if re.match(r"https?://[^/]*@", self.endpoint):
            raise ValueError(
                "the address holds a key, which would be written into config.yaml; name a variable in token_variable"
            )
        return self


ONLY = ("reward_model", "function", "endpoint")  # settings of which each makes one kind


def _kind(value: Any) -> Any:
    if isinstance(value, dict) and "name" not in value:
        return {**next(({"name": only} for only in ONLY if only in value), {}), **value}
    if not isinstance(value, str):
        return value
    if value == "world":
        return {"name": "world"}
    if re.fullmatch(FUNCTION, value):
        return {"name": "function", "function": value}
    if re.fullmatch(ADDRESS, value):
        return {"name": "endpoint", "endpoint": value}
    return {"name": "reward_model", "reward_model": value}


Judge = Annotated[
    Annotated[WorldJudge | RewardModelJudge | FunctionJudge | EndpointJudge, Field(discriminator="name")],
    BeforeValidator(_kind),
]
JudgeName = Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")]
WORLD: Mapping[str, WorldJudge] = {"labelers": WorldJudge(), "gold": WorldJudge(reader="gold")}


class JudgeConfig(StageConfig):
    """Let judges compare each model's answers with the baseline's: a reward model, a language model behind an endpoint,
    a Python function, or the miniature world's simulated labelers. People judge through `tutelage label`."""

    INPUTS: ClassVar[Mapping[str, str]] = {"answers": "answers", "judges": "model"}

    answers: Sources
    """Answers of all models: `answers.jsonl` of `tutelage answer`, or AlpacaEval's `model_outputs.json`; one or several
    files."""
    baseline: str = "sft"
    """Model that all others are compared with (the paper's is SFT)."""
    every_pair: bool = False
    """Compare every two models, not only each with the baseline: for ratings of many models."""
    judges: dict[JudgeName, Judge] = {}
    """Name -> judge, as `{mine: my_judges:f, rm: FOLDER, llm: {endpoint: URL, model: NAME}}`; the one called `labelers`
    counts, else the first. Without any: the miniature world's labelers and its gold preference."""
    annotations: bool = False
    """Also write `annotations.json`, as AlpacaEval has it."""

    @property
    def readers(self) -> Mapping[str, Judge]:
        """The judges that are asked."""
        return self.judges or WORLD
