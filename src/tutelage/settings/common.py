"""Settings of a stage: a frozen pydantic model filled from a YAML file and command-line overrides.

Unknown keys are errors that name the nearest known key. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tutelage.terminal import plain, short

Count = Annotated[int, Field(gt=0, le=10**12)]  # the limit stops a slip of the keyboard, not a large run
Whole = Annotated[int, Field(ge=0, le=10**12)]
Number = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class StageConfig(BaseModel):
    """What every stage has: where its run goes, and the seed of all its randomness."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    INPUTS: ClassVar[Mapping[str, str]] = {}
    """The settings that say what the stage reads, and what kind of file or folder each names."""

    output: Path
    """Run folder to write."""
    seed: Seed = 0
    """Seed of everything random in this stage."""
    overwrite: bool = False
    """Replace a run in that folder that was made with other settings or inputs, instead of refusing. It is kept beside
    the new one until that is done."""
    dry_run: bool = False
    """Check all that can be known before the first step, say what would be done, and write nothing."""


# Settings that say where and how to run, and change no result: one may resume with others. (What lies in `runs` is an
# input.)
NO_RESULT = {"output", "overwrite", "dry_run", "checkpoint_seconds", "micro_batch_tokens", "runs"}
C = TypeVar("C", bound=BaseModel)
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")  # each also with .gz
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[^/]+)?")  # org/name, or org/name:split


def nearest(key: str, known: list[str]) -> str:
    """` (did you mean 'x'?)` for the closest known name, else the list of all."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def make(kind: type[C], values: dict[str, Any], source: str) -> C:
    """A validated config.

    Raises:
        ValueError: one line per problem, naming source, key, value and remedy.
    """
    known = list(kind.model_fields)
    unknown = [k for k in values if k not in known]
    if unknown:
        raise ValueError("\n".join(f"{source}: unknown key {short(k)}; {nearest(k, known)}" for k in unknown))
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = plain(".".join(str(part) for part in problem["loc"]))
            fault = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "missing":
                lines.append(f"{source}: {key} is required: {kind.model_fields[str(problem['loc'][0])].description}")
            else:
                lines.append(f"{source}: {key}={short(problem['input'])}: {fault}" if key else f"{source}: {fault}")
        raise ValueError("\n".join(lines)) from None
    inputs = config.INPUTS if isinstance(config, StageConfig) else {}
    for key, value in config:
        for path in value.values() if isinstance(value, dict) else [value]:
            if isinstance(path, str | Path) and is_endless(path):
                raise ValueError(f"{source}: {key}={short(str(path))}: {ENDLESS}")
            if (isinstance(path, Path) or key in inputs) and path and (why := _no_path(path)):
                raise ValueError(f"{source}: {key}={short(str(path))}: {why}; give another path")
    return config


ENDLESS = "is a pipe or device, which may have no end; write it to a file and give that"


def is_endless(path: str | Path) -> bool:
    """Whether a path is a pipe, socket or device: reading it may never end."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def _no_path(path: str | Path) -> str | None:
    """Why a path can be none on this machine, whether or not something is there."""
    try:
        os.stat(path)
    except OSError as error:
        return "is too long for a file's name" if error.errno == errno.ENAMETOOLONG else None
    except ValueError:
        return "holds a character that no file's name can have"
    return None


def is_hub_id(source: str) -> bool:
    """Whether a source is a hub id: of the form org/name, not named like a data file, and no path that begins here."""
    if Path(source).exists() or Path(source.split("/")[0]).exists():
        return False
    suffix = Path(source.removesuffix(".gz")).suffix
    return bool(HUB_ID.fullmatch(source)) and suffix not in DATA_SUFFIXES


def to_plain(config: BaseModel) -> dict[str, Any]:
    """The effective settings as plain values, without those that only say where or how to run."""
    return config.model_dump(mode="json", exclude=NO_RESULT)
