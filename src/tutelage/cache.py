"""The user's cache: what can be made again, such as compiled kernels and ids of texts. May be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder for things of one kind, made if it is not there, that nobody else can write to.

    Raises:
        OSError: if there is no home for it, it cannot be made, or others could put something there.
    """
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tutelage"
    except RuntimeError as error:  # a user without a home
        raise OSError(str(error)) from None
    for folder in (home, home / name):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
            raise OSError(f"{folder}: belongs to somebody else, or others may write there; set XDG_CACHE_HOME")
    return home / name
