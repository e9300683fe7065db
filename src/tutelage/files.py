"""Files that are written whole or not at all, what they hold as one number, and one process at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from tutelage.data.strict_json import dumps

CHECKPOINTS = ("state", "state.tmp", "state.old")  # folders of a run that only its resume reads


def fingerprint(path: Path) -> str:
    """sha256 over the bytes of a file, or over names and bytes of the files of a folder (checkpoints left out)."""
    digest = hashlib.sha256()
    files = {path.name: path}
    if path.is_dir():
        within = {p.relative_to(path): p for p in sorted(path.rglob("*")) if p.is_file()}
        files = {inner.as_posix(): p for inner, p in within.items() if not set(CHECKPOINTS).intersection(inner.parts)}
    for name, file in files.items():
        digest.update(name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, never half of it."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    sync(scratch)
    os.replace(scratch, path)


def read_json(path: Path) -> Any:
    """What a JSON file of a run folder holds.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path}: is damaged, no JSON; delete it, or the folder, and run the stage again") from None


def sync(path: Path) -> None:
    """Have the disk hold a file's bytes, or a folder's names, before what comes next."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():  # else not even tried, as a disk may be read-only
        path.unlink()


_locked: dict[Path, int] = {}  # folders that this process works in, and the descriptors that hold their locks


def lock(folder: Path) -> None:
    """Keep other processes out of a folder until this one ends, or unlocks it.

    Raises:
        ValueError: if another process is at work there.
    """
    place = folder.resolve()
    if place in _locked and os.fstat(_locked[place]).st_ino == place.stat().st_ino:
        return
    unlock(folder)  # of a folder that was deleted since
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):  # else a file system without locks
            os.close(descriptor)
            raise ValueError(
                f"output: another process is at work in {folder}; wait until it ends, or choose another folder"
            ) from None
    _locked[place] = descriptor


def unlock(folder: Path) -> None:
    """Let other processes in."""
    descriptor = _locked.pop(folder.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)
