"""The user's cache: what can be made again, such as compiled kernels and ids of texts. May be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder for things of one kind, made if it is not there, which nobody else may read."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tutelage"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / name).mkdir(mode=0o700, exist_ok=True)
    return home / name
