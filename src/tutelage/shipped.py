"""The base model that comes with the package, and its name."""

from __future__ import annotations

from pathlib import Path

BASE = Path(__file__).parent / "lab" / "world" / "base"


def resolve_model(source: str) -> str:
    """A model's folder or hub id; `base` is the shipped model, unless there is a folder of that name here."""
    return str(BASE) if source == "base" and not Path(source).is_dir() else source
