"""docs/api.md is true: what it names is there, and rooms export what it lists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
_, *SECTIONS = re.split(r"^## `(\S+)`$", PAGE, flags=re.MULTILINE)
NAMES = {
    room: re.findall(r"^\| `([\w.]+)` \|", section, flags=re.MULTILINE)
    for room, section in zip(SECTIONS[::2], SECTIONS[1::2], strict=True)
}


@pytest.mark.parametrize("name", [f"{room}:{name}" for room, names in NAMES.items() for name in names])
def test_what_the_page_names_is_there(name: str) -> None:
    room, _, path = name.partition(":")
    module, _, attribute = f"{room}.{path}".rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("room", NAMES)
def test_a_room_exports_what_the_page_lists(room: str) -> None:
    exported = getattr(importlib.import_module(room), "__all__", None)
    own = [name for name in NAMES[room] if "." not in name]
    assert exported is None or sorted(exported) == sorted(own)
    assert len(NAMES[room]) == len(set(NAMES[room])) > 0


def test_the_loop_on_the_page_learns(capsys: pytest.CaptureFixture[str]) -> None:
    """It is run as it stands there."""
    torch.set_num_threads(1)
    (loop,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(loop, "docs/api.md", "exec"), {"__name__": "loop"})
    scores = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(scores) == 12
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.5
