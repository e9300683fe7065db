"""Settings of what scores completions: one class for each kind of reward, chosen by `name`; and how several become one.

A text alone stands for the kind that it looks like: `module:function`, `http://…`, else a reward model's folder.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from tutelage.settings.common import Count, Group, Model, Number, Positive, Whole

FUNCTION = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"  # module:function
ADDRESS = r"https?://.+"
Weight = Annotated[float, Field(allow_inf_nan=False)]


class Weighed(Group):
    """What all rewards share."""

    weight: Weight = 1.0
    """What its scores are multiplied by before they are combined with the others'."""


class RewardModelReward(Weighed):
    """A reward model, as `tutelage reward` writes it: read by token ids where its tokens and template are the policy's,
    else by texts in its own template."""

    name: Literal["reward_model"] = "reward_model"
    """Which kind of reward."""
    model: Model
    """Its folder."""


class ClassifierReward(Weighed):
    """One label of a sequence classifier."""

    name: Literal["classifier"] = "classifier"
    """Which kind of reward."""
    model: Model
    """Its folder or hub id; it has a tokenizer of its own."""
    label: str
    """The label, as its config names it."""
    output: Literal["probability", "logit"] = "probability"
    """The label's probability, or its logit, which does not saturate."""
    reads: Literal["completion", "both"] = "completion"
    """The completion alone, or after the prompt, as a pair of texts."""


class FunctionReward(Weighed):
    """A Python function `f(prompts, completions, **columns)` that returns a number or None for each completion, as
    TRL's reward functions do; it may be async. Columns are those of the prompts file that it names, or all if it takes
    `**columns`."""

    name: Literal["function"] = "function"
    """Which kind of reward."""
    function: Annotated[str, StringConstraints(pattern=f"^{FUNCTION}$")]
    """`module:function`, where the module is installed or lies in the folder that the command is given in."""
    timeout_seconds: Positive = 300.0
    """Longer calls end the run, which can be resumed."""


class EndpointReward(Weighed):
    """A server that answers `POST {"prompts": […], "completions": […], "columns": {…}}` with `{"scores": […]}`: a
    number or null for each completion."""

    name: Literal["endpoint"] = "endpoint"
    """Which kind of reward."""
    url: Annotated[str, StringConstraints(pattern=f"^{ADDRESS}$")]
    """Its address."""
    batch_size: Count = 32
    """Completions of a request."""
    concurrency: Count = 4
    """Requests at a time."""
    timeout_seconds: Positive = 60.0
    """How long an answer may take."""
    retries: Whole = 5
    """Further tries where the server cannot be reached, is busy or fails, each after twice the wait (1, 2, 4 … s)."""
    token_variable: str | None = None
    """Environment variable that holds a bearer token; the token itself is written nowhere."""


def _kind(value: Any) -> Any:
    if isinstance(value, dict) and "name" not in value:
        telling = {"function": "function", "url": "endpoint", "label": "classifier"}  # what only one kind has
        return {"name": next((name for key, name in telling.items() if key in value), "reward_model")} | value
    if not isinstance(value, str):
        return value
    if re.fullmatch(FUNCTION, value):
        return {"name": "function", "function": value}
    if re.fullmatch(ADDRESS, value):
        return {"name": "endpoint", "url": value}
    return {"name": "reward_model", "model": value}


Reward = Annotated[
    Annotated[
        RewardModelReward | ClassifierReward | FunctionReward | EndpointReward,
        Field(discriminator="name"),
    ],
    BeforeValidator(_kind),
]


RewardName = Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")]


class Combination(Group):
    """How the scores of several rewards become one, each times its weight. A completion's rewards that are None do not
    count; where all are, it is left out of the loss."""

    name: Literal["sum", "minimum", "mean_less_std"] = "sum"
    """The sum; the minimum; or the mean less `pessimism` standard deviations, which makes an ensemble of reward models
    harder to exploit (Coste 2024)."""
    pessimism: Number = 1.0
    """Standard deviations (n − 1) to take off the mean."""
