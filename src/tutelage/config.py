"""Settings of a stage: a frozen pydantic model filled from a YAML file and command-line overrides.

Unknown keys are errors that name the nearest known key. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class StageConfig(BaseModel):
    """What every stage has: where its run goes, and the seed of all its randomness."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    output: Path
    """Run folder to write."""
    seed: int = 0
    """Seed of everything random in this stage."""
    overwrite: bool = False
    """Replace a run in that folder that was made with other settings or inputs, instead of refusing. It is kept beside
    the new one until that is done."""
    dry_run: bool = False
    """Check all that can be known before the first step, say what would be done, and write nothing."""


# Settings that say where and how to run, and change no result: one may resume with others.
NO_RESULT = {"output", "overwrite", "dry_run", "checkpoint_seconds", "micro_batch_tokens"}
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
        raise ValueError("\n".join(f"{source}: unknown key {k!r}; {nearest(k, known)}" for k in unknown))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"]) or "settings"
            if problem["type"] == "missing":
                lines.append(f"{source}: {key} is required: {kind.model_fields[str(problem['loc'][0])].description}")
            else:
                lines.append(f"{source}: {key}={problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}")
        raise ValueError("\n".join(lines)) from None


def is_hub_id(source: str) -> bool:
    """Whether a source is a hub id: of the form org/name, not named like a data file, and no path that begins here."""
    if Path(source).exists() or Path(source.split("/")[0]).exists():
        return False
    suffix = Path(source.removesuffix(".gz")).suffix
    return bool(HUB_ID.fullmatch(source)) and suffix not in DATA_SUFFIXES


def parse_yaml(source: str, text: str) -> Any:
    """The value that a text is in YAML.

    Raises:
        ValueError: if it is none.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}={text!r}: not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: if the file is missing, is not YAML, or holds no mapping.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping of settings, found {type(content).__name__}")
    return content


def to_plain(config: BaseModel) -> dict[str, Any]:
    """The effective settings as plain values, without those that only say where or how to run."""
    return config.model_dump(mode="json", exclude=NO_RESULT)
