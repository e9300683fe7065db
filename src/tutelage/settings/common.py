"""Settings of a stage: a frozen pydantic model filled from a YAML file and command-line overrides.

What belongs together is a group, as `optimizer` is: nested in a file, dotted on the command line
(`optimizer.learning_rate`). Unknown keys are errors that name the nearest known key. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from tutelage.shipped import resolve_model
from tutelage.terminal import plain, short


def _no_switch(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _one_or_several(value: object) -> object:
    sources = [str(value)] if isinstance(value, str | Path) else value
    if not isinstance(sources, list | tuple):
        raise ValueError("expected a path or hub id, or a list of them")
    if twice := [each for i, each in enumerate(sources) if each in sources[:i]]:
        raise ValueError(f"names {short(twice[0])} twice; leave one out")
    return sources


Count = Annotated[int, BeforeValidator(_no_switch), Field(gt=0, le=10**12)]  # stops a slip of the keyboard, not a run
Whole = Annotated[int, BeforeValidator(_no_switch), Field(ge=0, le=10**12)]
Number = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Source = str  # a path or a hub id
Sources = Annotated[tuple[Source, ...], BeforeValidator(_one_or_several), Field(min_length=1)]  # read in this order
Model = Annotated[str, AfterValidator(resolve_model)]  # likewise, or `base` for the shipped one


class Settings(BaseModel):
    """Frozen settings, whose fields' docstrings are their help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _complete_groups(cls, values: Any) -> Any:
        """Where a group is set in part, the rest is as this stage has it by default, not as the group's class does."""
        if not isinstance(values, dict):
            return values
        defaults = {name: field.default for name, field in cls.model_fields.items() if isinstance(field.default, Group)}
        return values | {name: default.with_(values[name]) for name, default in defaults.items() if name in values}


class Group(Settings):
    """Settings that belong together; where there is a choice of classes, `name` chooses.

    An instance that is given to a stage counts for what was set in it, as a mapping of these settings would.
    """

    INPUT: ClassVar[str] = "model"
    """The setting in it that names a model folder, if it has such a one."""

    def with_(self, given: Any) -> Any:
        """These settings with those that are set in `given`: a mapping, a group, or a name alone."""
        values = given.model_dump(exclude_unset=True) if type(given) is type(self) else given
        if isinstance(values, str) and "name" in type(self).model_fields:
            values = {"name": values}
        if not isinstance(values, dict):
            return given
        mine = self.model_dump()
        return values if values.get("name", mine.get("name")) != mine.get("name") else mine | values


class StageConfig(Settings):
    """What every stage has: where its run goes, and the seed of all its randomness."""

    INPUTS: ClassVar[Mapping[str, str]] = {}
    """The settings that say what the stage reads, and what kind of file or folder each names."""
    POSITIONAL: ClassVar[str | None] = None
    """The setting that may stand on the command line without its name."""

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
NO_RESULT = {"output", "overwrite", "dry_run", "checkpoint_seconds", "micro_batch_tokens", "runs", "jobs"}
C = TypeVar("C", bound=BaseModel)
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")  # each also with .gz
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[^/]+)?")  # org/name, or org/name:split


# What other tools call a setting, and what it is called here: the first that the stage has.
PEERS: Mapping[str, tuple[str, ...]] = {
    "model_name_or_path": ("model", "policy"), "output_dir": ("output",), "num_train_epochs": ("epochs",),
    "per_device_train_batch_size": ("batch_size",), "train_dataset": ("rankings", "demonstrations", "prompts"),
    "dataset_name": ("rankings", "demonstrations", "prompts"), "dataset": ("rankings", "demonstrations", "prompts"),
    "beta": ("kl_coef",), "init_kl_coef": ("kl_coef",), "reward_funcs": ("rewards",),
    "max_prompt_length": ("max_prompt_tokens",),
    "max_completion_length": ("sampler.max_new_tokens",), "response_length": ("sampler.max_new_tokens",),
    "num_generations": ("algorithm.num_generations", "k"), "epsilon": ("algorithm.cliprange",),
    "epsilon_high": ("algorithm.cliprange_high",), "loss_type": ("algorithm.aggregation", "loss"),
    "use_peft": ("adapter",), "lora_r": ("adapter.rank",), "lora_rank": ("adapter.rank",),
    "lora_alpha": ("adapter.alpha",), "lora_dropout": ("adapter.dropout",), "lora_target_modules": ("adapter.targets",),
    "ref_model": ("model",), "reference": ("model",),
}  # fmt: skip


def nearest(key: str, known: list[str]) -> str:
    """`did you mean 'x'?` for the closest known name, which may be one in a group, else the list of all."""
    asked = key.lstrip("-").replace("-", "_").split(".")[-1]
    for theirs in PEERS.get(asked, ()):
        if ours := [name for name in known if name.lstrip("-").replace("-", "_") == theirs]:
            return f"did you mean {ours[0]!r}?"
    inside = [name for name in known if name.split(".")[-1] == key.lstrip("-")]
    group = [name for name in known if name.startswith(key.rpartition(".")[0] + ".")]
    short_for = [name for name in group or known if _initials(name) == key.lstrip("-").split(".")[-1]]  # lr, bs
    close = inside or short_for or difflib.get_close_matches(key, group or known, n=1, cutoff=0.5)
    if not close:
        return f"known: {', '.join(sorted(group or known))}"
    return f"did you mean {' or '.join(map(repr, close))}?"


def _initials(name: str) -> str:
    return "".join(word[:1] for word in re.split("[_-]", name.lstrip("-").split(".")[-1]))


def make(kind: type[C], values: Mapping[str, Any], source: str, over: Mapping[str, Any] | None = None) -> C:
    """A validated config of these values and, winning over them, others.

    Raises:
        ValueError: one line per problem, naming source, key, value and remedy.
    """
    known, values = names_of(kind), _layered(kind, values, over or {})
    if unknown := [name for name in _names_in(kind, values) if name not in known]:
        raise ValueError("\n".join(f"{source}: unknown key {short(k)}; {nearest(k, known)}" for k in unknown))
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        lines = []
        classes = [group for field in kind.model_fields.values() for group in _groups_in(field.annotation)]
        tags = {group.model_fields["name"].default: group for group in classes if "name" in group.model_fields}
        unnamed = {problem["loc"][0] for problem in error.errors() if problem["loc"][-1:] == ("name",)}
        for problem in error.errors():
            if problem["type"] == "missing" and len(problem["loc"]) > 1 and problem["loc"][0] in unnamed:
                continue  # of a class that was not meant
            key, tag = _place(kind, problem["loc"], tags)
            fault = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "missing" and len(problem["loc"]) > 1:
                lines.append(f"{source}: {key} is required")
            elif problem["type"] == "union_tag_invalid":
                wrong, expected = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
                lines.append(f"{source}: {key}.name={short(wrong)}: expected one of {expected}")
            elif problem["type"] == "extra_forbidden" and tag is not None:
                inner = str(problem["loc"][-1])
                others = [name for name, group in tags.items() if inner in group.model_fields]
                remedy = (
                    f"it is a setting of {', '.join(others)}" if others else nearest(inner, [*tags[tag].model_fields])
                )
                lines.append(f"{source}: {key} is no setting of {tag}; {remedy}")
            elif problem["type"] == "missing":
                lines.append(f"{source}: {key} is required: {kind.model_fields[str(problem['loc'][0])].description}")
            else:
                lines.append(f"{source}: {key}={short(problem['input'])}: {fault}" if key else f"{source}: {fault}")
        raise ValueError("\n".join(lines)) from None
    inputs = config.INPUTS if isinstance(config, StageConfig) else {}
    for key, value in config:
        for path in named(key, value).values():
            if isinstance(path, str | Path) and is_endless(path):
                raise ValueError(f"{source}: {key}={short(str(path))}: {ENDLESS}")
            if isinstance(path, Path if key not in inputs else Path | str) and path and (why := _no_path(path)):
                raise ValueError(f"{source}: {key}={short(str(path))}: {why}; give another path")
    return config


def _place(kind: type[BaseModel], loc: tuple[int | str, ...], tags: Collection[str]) -> tuple[str, str | None]:
    """A problem's setting as people name it, and the class chosen there, which pydantic puts among its parts."""
    path = [str(part) for part in loc]
    at = 2 if path and typing.get_origin(kind.model_fields[path[0]].annotation) is dict else 1
    tag = path.pop(at) if len(path) > at and path[at] in tags else None
    return plain(".".join(path)), tag


def groups_of(field: FieldInfo) -> tuple[type[Group], ...]:
    """The classes that a field's group can be of; none if it holds no group."""
    kinds = typing.get_args(field.annotation) or (field.annotation,)
    return tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Group))


def _groups_in(annotation: Any) -> list[type[Group]]:
    """All classes of groups that a setting may hold, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, Group):
        return [annotation]
    return [group for part in typing.get_args(annotation) for group in _groups_in(part)]


def names_of(kind: type[BaseModel]) -> list[str]:
    """The settings by name, those in groups as `optimizer.learning_rate`."""
    names = []
    for name, field in kind.model_fields.items():
        inner = [f"{name}.{each}" for group in groups_of(field) for each in group.model_fields]
        names += [name, *dict.fromkeys(inner)]
    return names


def _names_in(kind: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """Names of the values, those in groups too."""
    groups = {name for name, field in kind.model_fields.items() if groups_of(field)}
    inner = (f"{k}.{each}" for k, value in values.items() if k in groups and isinstance(value, dict) for each in value)
    return [*values, *inner]


def _layered(kind: type[BaseModel], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping of several, the later ones winning; a group that is set in part leaves the rest of it.

    In each layer `optimizer.learning_rate` sets one value within `optimizer`, wherever it stands. What is no group, as
    `optimizer: 5`, is kept, to be refused.
    """
    groups = {name for name, field in kind.model_fields.items() if groups_of(field)}
    values: dict[str, Any] = {}
    for layer in layers:
        for name, value in sorted(layer.items(), key=lambda item: "." in str(item[0])):  # whole groups first
            group, _, inner = str(name).partition(".")
            if group not in groups:
                values[name] = value
                continue
            new = {inner: value} if inner else {"name": value} if isinstance(value, str) else value
            before = values.get(group, {})
            if not isinstance(before, dict):
                continue
            values[group] = before | new if isinstance(new, dict) else new
    return values


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by name, those in groups as `optimizer.learning_rate`."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        inner = flat(value) if isinstance(value, dict) else {}
        out |= {f"{name}.{each}": v for each, v in inner.items()} or {name: value}
    return out


def named(name: str, value: Any) -> dict[str, Any]:
    """A setting's values by name: those of a mapping as `valid.NAME`, several of a list as `rankings.1` onwards; of
    groups of settings the models that these name, as `rewards.NAME.model`."""
    if isinstance(value, Group):
        model = getattr(value, value.INPUT, None)
        return {} if model is None else {f"{name}.{value.INPUT}": model}
    if isinstance(value, dict):
        return {path: inner for key, each in value.items() for path, inner in _inner(f"{name}.{key}", each).items()}
    if isinstance(value, list | tuple) and len(value) != 1:
        return {f"{name}.{number}": each for number, each in enumerate(value, 1)}
    return {name: value[0] if isinstance(value, list | tuple) else value}


def _inner(name: str, value: Any) -> dict[str, Any]:
    return named(name, value) if isinstance(value, Group) else {name: value}


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
