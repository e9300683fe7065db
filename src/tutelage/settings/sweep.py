"""Settings of a sweep: one stage, run at several values of its settings."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from tutelage.settings.common import Count, StageConfig
from tutelage.terminal import short

LABEL = re.compile(r"(?!\.+$)[\w.+-]{1,80}")  # a part of a folder's name


def _plain(value: Any) -> Any:
    """A value that YAML can hold, at any depth."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected finite numbers")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is not None and not isinstance(value, str | int | float | bool):
        raise ValueError(f"{short(value)} is no number, text, list or mapping")
    return value


def _labelled(values: Any) -> Any:
    """Values by the label that their runs get: a number's or word's is itself."""
    if isinstance(values, dict):
        pairs = [(str(label), each) for label, each in values.items()]
    else:
        pairs = [(str(each), each) for each in (values if isinstance(values, list | tuple) else [values])]
    labels = [label for label, _ in pairs]
    if twice := [label for i, label in enumerate(labels) if label in labels[:i]]:
        raise ValueError(f"names {short(twice[0])} twice; leave one out")
    if wrong := [label for label in labels if not LABEL.fullmatch(label)]:
        raise ValueError(f"{short(wrong[0])} cannot name a folder; give the value a name, as {{small: …}}")
    return {label: _plain(each) for label, each in pairs}


Any_ = Annotated[Any, AfterValidator(_plain)]
Values = Annotated[dict[str, Any], BeforeValidator(_labelled), Field(min_length=1)]
Setting = Annotated[str, StringConstraints(pattern=r"^[a-z_]+(\.[\w-]+)*$")]


class SweepConfig(StageConfig):
    """Run a stage at several values of one or more of its settings, several runs at a time."""

    command: str
    """The stage, by its command, as `online`."""
    settings: dict[Setting, Any_] = {}
    """Its settings that all runs share."""
    over: Annotated[dict[Setting, Values], Field(min_length=1)]
    """Settings and their values: {kl_coef: [0, 0.02, 0.1]}, or by a name, {reward_model: {small: PATH, large: PATH}}.
    Of several settings, all combinations are run; {seed: [0, 1, 2]} repeats each run."""
    jobs: Count | None = None
    """Runs at a time, each with its share of the processor's threads; by default one for each core, one alone on a
    GPU."""

    @property
    def points(self) -> Mapping[str, dict[str, Any]]:
        """The values of each run, by the name of its folder."""
        return dict(self._points())

    def _points(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for chosen in product(*(values.items() for values in self.over.values())):
            yield (
                "_".join(f"{setting}-{label}" for setting, (label, _) in zip(self.over, chosen, strict=True)),
                {setting: value for setting, (_, value) in zip(self.over, chosen, strict=True)},
            )
