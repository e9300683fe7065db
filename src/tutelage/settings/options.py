"""Settings as options of a command line: one option per field, its docstring as help.

Values are read as YAML and checked by the settings' class; what stands on the line wins over what stands in a file.
"""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tutelage.settings.common import C, Group, groups_of, make
from tutelage.settings.strict_yaml import parse_yaml, read_yaml
from tutelage.terminal import short


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are ValueErrors."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> typing.NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def add_settings(parser: argparse.ArgumentParser, kind: type[BaseModel]) -> None:
    """An option for each field of a config, and `--config` for a file of them."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file of settings; options on the line win over it"
    )
    places = {
        name: parser.add_argument_group(name, (field.description or "").replace("%", "%%"))
        for name, field in kind.model_fields.items()
        if groups_of(field)
    }
    for name, field, preset in _options(kind):
        group = name.split(".")[0]
        place = places.get(group, parser)
        flag = "--" + name.removesuffix(".name").replace("_", "-")
        classes = groups_of(kind.model_fields[group])
        default = (
            "required" if preset is PydanticUndefined else f"default: {_shown(preset)}{_others(classes, name, preset)}"
        )
        text = f"{_whose(classes, name)}{field.description} ({default})".replace("%", "%%")
        if field.annotation is bool:
            place.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif typing.get_origin(field.annotation) is dict:
            place.add_argument(flag, dest=name, action="append", metavar="NAME=VALUE", help=text)
        else:
            one_of_many = name.endswith(".name") and len(classes) > 1
            names = [each.model_fields["name"].default for each in classes] if one_of_many else []
            metavar = f"{{{','.join(names)}}}" if names else _metavar(field.annotation)
            place.add_argument(
                flag, dest=name, metavar=metavar, help=text, action="append" if is_list(field) else "store"
            )


def _whose(classes: Sequence[type[Group]], name: str) -> str:
    """`ppo: ` before the help of what only one of several classes has."""
    having = [each.model_fields["name"].default for each in classes if name.split(".")[-1] in each.model_fields]
    return f"{', '.join(having)}: " if len(having) < len(classes) else ""


def _others(classes: Sequence[type[Group]], name: str, preset: Any) -> str:
    """What other classes of a group have by default in place of the first one's."""
    inner = name.split(".")[-1]
    fields = {each.model_fields["name"].default: each.model_fields.get(inner) for each in classes if inner != "name"}
    others = [f"; {tag}: {_shown(f.default)}" for tag, f in fields.items() if f is not None and f.default != preset]
    return "".join(others) if len(classes) > 1 else ""


def is_list(field: FieldInfo) -> bool:
    """Whether a setting takes several values."""
    return typing.get_origin(_set(field.annotation)) in (list, tuple)


def _options(kind: type[BaseModel]) -> Iterator[tuple[str, FieldInfo, Any]]:
    """Each setting's name, field and default; of a group those of its fields, with this stage's defaults.

    Where a group can be of several classes, a field that two of them have is one option.
    """
    for name, field in kind.model_fields.items():
        preset = field.get_default(call_default_factory=True)
        if not groups_of(field):
            yield name, field, preset
        fields = {inner: each for group in reversed(groups_of(field)) for inner, each in group.model_fields.items()}
        for inner, each in fields.items():
            absent = None if preset is None and inner == "name" else each.default  # of a group that need not be there
            yield f"{name}.{inner}", each, getattr(preset, inner, absent)


def checked(kind: Any) -> Callable[[str], Any]:
    """An option's type out of a setting's, which has its range."""

    def read(text: str) -> Any:
        try:
            return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False)).validate_python(text)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(f"{short(text)}: {error.errors()[0]['msg']}") from None

    return read


def _shown(default: Any) -> str:
    """A default as it would be typed."""
    return ",".join(map(str, default)) or "[]" if isinstance(default, list | tuple) else str(default)


def _set(annotation: Any) -> Any:
    """A setting's type without Optional and Annotated."""
    optional = typing.get_origin(annotation) in (types.UnionType, typing.Union)  # the latter of annotated types
    kind = typing.get_args(annotation)[0] if optional else annotation
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def _metavar(annotation: Any) -> str:
    annotation = _set(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return "{" + ",".join(map(str, typing.get_args(annotation))) + "}"
    if origin in (list, tuple):
        return "A,B"
    return str(getattr(origin or annotation, "__name__", "value")).upper()


def settings(kind: type[C], arguments: argparse.Namespace) -> C:
    """The config from file and options.

    Raises:
        ValueError: naming file or command line, setting, value and remedy.
    """
    file = read_yaml(arguments.config) if arguments.config else {}
    source = str(arguments.config or "command line")
    typed: dict[str, Any] = {}
    for name, field, _ in _options(kind):
        given = getattr(arguments, name)
        if is_list(field) and given is not None:  # the option may be repeated
            given = (
                ",".join(given) if len(given) == 1 or not any(g.lstrip().startswith("[") for g in given) else given[0]
            )
        if isinstance(given, list):
            typed[name] = _mapping(name, given)
        elif given is not None:
            # A path or name is taken as typed, also in a list, as a,b; all else is a YAML value, as in a recipe.
            annotation = _set(field.annotation)
            text = annotation in (str, Path)
            if typing.get_origin(annotation) in (list, tuple) and not given.lstrip().startswith("["):
                names = typing.get_args(annotation)[0] is str
                given = [each for part in given.split(",") if (each := part.strip())] if names else f"[{given}]"
            typed[name] = given if text or not isinstance(given, str) else _yaml(name, given)
    return make(kind, file, source, typed)


def _yaml(name: str, given: str) -> Any:
    return parse_yaml(f"command line: {name}={short(given)}", given)


def _mapping(name: str, given: Sequence[str]) -> Any:
    """`a=x,b=y`, the option once or repeated; or a YAML mapping."""
    if len(given) == 1 and given[0].lstrip().startswith("{"):
        return _yaml(name, given[0])
    pairs: dict[str, str] = {}
    for pair in (pair for text in given for pair in text.split(",")):
        key, equals, value = pair.strip().partition("=")
        if not (key and equals and value) or key in pairs:
            fault = f"{key} is named twice" if key in pairs else "expected name=value, or name=value,name=value"
            raise ValueError(f"command line: {name}={pair!r}: {fault}")
        pairs[key] = value
    return pairs
