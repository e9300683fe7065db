"""YAML for settings: plain values under names. What YAML allows beyond that is refused, with its line.

The library takes the last of two equal keys, lets a file of ten lines expand to gigabytes through aliases, and raises
whatever a broken value raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tutelage.terminal import reason, short

LARGEST_FILE = 1 << 18  # bytes of a file of settings
DEEPEST = 50  # levels of lists and mappings, with aliases written out
MOST_VALUES = 100_000  # with aliases written out
OPEN = (0, 0)  # values and depth of a node that is being counted
TOO_DEEP = f"is nested more than {DEEPEST} deep"


class Loader(yaml.SafeLoader):
    """SafeLoader that refuses deep nesting, on which PyYAML takes quadratic time."""

    def fetch_more_tokens(self) -> None:
        if self.flow_level + len(self.indents) > DEEPEST:
            raise ValueError(f"line {self.line + 1}: {TOO_DEEP}")
        super().fetch_more_tokens()


def parse_yaml(source: str, text: str) -> Any:
    """The value that a text is in YAML.

    Raises:
        ValueError: naming source, line and remedy, if it is none or no settings could look like it.
    """
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _values(node, {})
        return loader.construct_document(node)
    except Exception as error:  # what is not its own: a tag's text goes to int(), a table or a regular expression
        raise ValueError(f"{source}: not valid YAML: {reason(error)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: if the file is missing, is not YAML, or holds no mapping.
    """
    if not path.is_file():
        raise ValueError(f"{path}: {'is a folder or device; give a YAML file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{path}: is larger than {LARGEST_FILE >> 10} KiB; give a file of settings")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: not UTF-8 text; convert it") from None
    values = parse_yaml(str(path), text)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    return values


def _values(node: yaml.Node, known: dict[yaml.Node, tuple[int, int]]) -> tuple[int, int]:
    """How many values a node holds and how deep they lie, with those of its aliases counted each time.

    Raises:
        ValueError: if they are too many, too deep or without end, or a name is not text or comes twice.
    """
    line = node.start_mark.line + 1
    if known.get(node) == OPEN:
        raise ValueError(f"line {line}: holds itself; write the value out instead of an alias")
    if node not in known:
        known[node] = OPEN
        children = [_values(child, known) for child in _children(node)]
        number = 1 + sum(values for values, _ in children)
        depth = isinstance(node, yaml.CollectionNode) + max((levels for _, levels in children), default=0)
        if number > MOST_VALUES:
            raise ValueError(f"line {line}: more than {MOST_VALUES:,} values; write them out without aliases")
        if depth > DEEPEST:
            raise ValueError(f"line {line}: {TOO_DEEP}")
        known[node] = number, depth
    return known[node]


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {line}: a list or mapping stands where a name is wanted; write `name: value`")
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise ValueError(f"line {line}: the name {short(key.value)} is not read as text; put it in quotes")
            if key.value in seen:
                raise ValueError(f"line {line}: the name {short(key.value)} comes twice; keep one")
            seen.add(key.value)
            yield value
