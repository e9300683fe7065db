"""A labeling workspace: a folder with a secret key and a database, SQLite beside the key or PostgreSQL by URL.

The key is made last, so it tells a workspace from one whose making was cut short: without it, opening goes on where it
stopped; with it, a database that is missing, empty, damaged or newer is refused, never made anew.

Writers queue up, one at a time, on both databases (`BEGIN IMMEDIATE`, or an advisory lock): a write takes milliseconds,
and rules such as "no more labelers than wanted" hold without retries. Readers never wait.
"""

from __future__ import annotations

import hmac
import os
import secrets
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, insert, select
from sqlalchemy.engine import make_url

from tutelage.labeling.store import engines
from tutelage.labeling.store.engines import BUSY_MILLISECONDS, Unavailable, begin_write, deadline
from tutelage.labeling.store.schema import events

_RECORD = insert(events)
KEY, URL, FILE = "secret.key", "database.url", "labeling.db"
KEY_BYTES = 32
OURS = {name + end for name in (KEY, URL, FILE) for end in ("", ".new", "-wal", "-shm", "-journal")}


class _Queue:
    """A lock that is handed on in the order of asking."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._taken = False

    def __enter__(self) -> None:
        turn = threading.Lock()
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


class Workspace:
    """An open workspace. `read()` and `write()` give connections; close it when done.

    After `rehearse()` all writes are undone at their end: what a dry run tells is what would happen.
    """

    _rehearsal = False

    def __init__(self, folder: Path, engine: Engine, key: bytes) -> None:
        self.folder = folder
        self.engine = engine
        postgres = engine.dialect.name == "postgresql"  # where each statement would else see a state of its own
        self._reader = engine.execution_options(isolation_level="REPEATABLE READ") if postgres else engine
        self.key = key
        self._writers = _Queue()  # SQLite's own waiting is a poll, and a lock of Python's lets the last come first
        self._file = engines.sqlite_file(engine)
        self._inodes: dict[Path, int] = {}  # of SQLite's file, and of its log, which stays while a connection is open
        self._require_file()
        self.keeps_erased = False  # whether what was erased may still be in SQLite's files, as somebody reads

    def rehearse(self) -> None:
        """Keep nothing of what is written from now on."""
        self._rehearsal = True

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database and changes nothing."""
        self._require_file()
        with engines.connected(self._reader, deadline()) as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that no other writer runs beside: kept whole at the end, undone whole on an error."""
        until = deadline()
        with self._writers:
            self._require_file()
            with begin_write(self.engine, until) as connection:
                yield connection
                if self._rehearsal:
                    connection.rollback()
            self._require_file()  # deleted meanwhile? Then nobody is told that this was stored
            self._require_file("-wal", "stop the server now, which saves what it wrote there")
            if self.keeps_erased:
                with suppress(sqlite3.OperationalError):  # what was written is kept, in the log
                    self.empty_log()

    @contextmanager
    def erase(self) -> Iterator[Connection]:
        """A write whose old texts are gone from SQLite's files when it ends, its write-ahead log included.

        If somebody reads on for longer than SQLite waits, `keeps_erased` says that they are still there. They go with
        the first write after the reading, or when the workspace is closed.
        """
        with self.write() as connection:
            yield connection
        if not self._rehearsal:
            with self._writers:
                self.empty_log(waiting=True)

    def _require_file(self, end: str = "", remedy: str = "stop the server and restore a backup") -> None:
        """SQLite would go on writing into a file that was deleted, and all of it would be lost with this process.

        Raises:
            Unavailable: if SQLite's file (or with an `end` to its name, one beside it) is gone, or is another than at
                the first look.
        """
        if self._file is None:
            return
        path = self._file.with_name(self._file.name + end)
        try:
            inode = path.stat().st_ino
        except OSError:
            inode = None
        if inode is None or inode != self._inodes.setdefault(path, inode):
            raise Unavailable(f"database: {path} was deleted or replaced; {remedy}")

    def empty_log(self, waiting: bool = False) -> None:
        """Move SQLite's write-ahead log into the database and truncate it; unless `waiting`, only if nobody reads."""
        if self._file is None:
            return
        self.keeps_erased = True  # also where it fails, as on a full disk
        connection = self.engine.raw_connection()
        cursor = connection.cursor()
        try:
            cursor.execute(f"PRAGMA busy_timeout={BUSY_MILLISECONDS if waiting else 0}")
            busy, *_ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self.keeps_erased = bool(busy)
        finally:
            cursor.execute(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}")
            connection.close()

    def pseudonym(self, kind: str, name: str) -> str:
        """What exports and the audit call a person: the same within a workspace, unguessable without its key."""
        return f"{kind}-{hmac.digest(self.key, f'{kind}/{name}'.encode(), 'sha256').hex()[:12]}"

    def close(self) -> None:
        """Give all connections back, with nothing left in SQLite's log."""
        try:
            with suppress(Unavailable):
                self._require_file()
                self.empty_log()
        finally:
            self.engine.dispose()


def open_workspace(folder: Path, database: str | None = None) -> Workspace:
    """Open a workspace, making or upgrading what is missing.

    Args:
        folder: where key, SQLite file and the database's URL are kept, readable by the owner alone.
        database: an SQLAlchemy URL; remembered in the folder, so that it need be said once.

    Raises:
        ValueError: if the folder holds something else, the database cannot be reached, is damaged, empty after it was
            in use, or newer than this version, or the key is missing or damaged.
    """
    key, place = folder / KEY, folder / URL
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"workspace: {folder} is a file; choose a folder")
    complete = key.exists()
    if folder.exists() and not complete and not OURS.issuperset(entry.name for entry in folder.iterdir()):
        raise ValueError(f"workspace: {folder} holds files that are not a labeling workspace; choose another folder")
    secret = _read_key(key) if complete else b""
    own = f"sqlite:///{(folder / FILE).absolute()}"
    before = _read_url(place) if place.exists() else own if complete else None
    if database and before and database != before:
        raise ValueError(f"database: {folder} keeps its work in {make_url(before)!r}; another needs another workspace")
    engine = engines.make_engine(database or before or own)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with engines.in_words(engine):
            engines.prepare_file(engine, complete)
            engines.check(engine)
            engines.upgrade(engine, complete)
            if not complete:
                secret = _make_key(engine, key, place, database)
            for path in (key, place, *engines.files_of(engine)):
                engines.make_private(path)
            workspace = Workspace(folder, engine, secret)
            workspace.empty_log()  # what was erased before a crash may still be in it
    except BaseException:
        engine.dispose()
        raise
    return workspace


def existing_workspace(folder: Path) -> Workspace:
    """Open a workspace that is there already.

    Raises:
        ValueError: if there is none.
    """
    if not (folder / KEY).exists():
        raise ValueError(f"workspace: {folder} is no labeling workspace; `tutelage label serve {folder}` makes one")
    return open_workspace(folder)


def record(
    connection: Connection, kind: str, *, person: int | None = None, subject: Any = None, now: float | None = None,
    **detail: Any,
) -> float:  # fmt: skip
    """Append an event to the audit, in the transaction of the act that it tells of; returns its time."""
    at = time.time() if now is None else now
    name = None if subject is None else str(subject)
    connection.execute(_RECORD, {"at": at, "person": person, "kind": kind, "subject": name, "detail": detail})
    return at


def write_private(path: Path, content: bytes) -> None:
    """Write a file that the owner alone can read, whole or not at all."""
    scratch = path.with_name(path.name + ".new")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(scratch, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_key(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise ValueError(
            f"workspace: {path} has {len(key)} bytes, not {KEY_BYTES}; put the right one back, as pseudonyms hang on it"
        )
    return key


def _read_url(path: Path) -> str:
    url = path.read_bytes().decode(errors="replace").strip()
    if not url:
        raise ValueError(f"workspace: {path} is empty; write the URL of the workspace's database into it")
    return url


def _make_key(engine: Engine, key: Path, place: Path, database: str | None) -> bytes:
    """The last step of making a workspace. Who starts a second server meanwhile waits, and gets the same key."""
    with begin_write(engine) as connection:
        if not key.exists():
            if connection.execute(select(events.c.id).limit(1)).first():
                raise ValueError(
                    f"workspace: {engine.url!r} holds work already, but {key} is missing; put back the one that "
                    "belongs to it, or choose an empty database"
                )
            if database:
                write_private(place, database.encode())
            write_private(key, secrets.token_bytes(KEY_BYTES))
    return _read_key(key)
