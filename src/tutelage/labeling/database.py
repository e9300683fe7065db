"""A labeling workspace: a folder with a secret key and a database, SQLite beside the key or PostgreSQL by URL.

Writers queue up, one at a time, on both databases (`BEGIN IMMEDIATE`, or an advisory lock): a write takes milliseconds,
and rules such as "no more labelers than wanted" hold without retries. Readers never wait.
"""

from __future__ import annotations

import hmac
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, insert, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from tutelage.labeling.schema import events

MIGRATIONS = Path(__file__).parent / "migrations"
_RECORD = insert(events)
WRITERS = 0x7475_7465  # the advisory lock's number, any that nobody else uses
_LOCK = text(f"SELECT pg_advisory_xact_lock({WRITERS})")
CONNECTIONS = 40  # as many as the web server has threads


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
    """An open workspace. `read()` and `write()` give connections; close it when done."""

    def __init__(self, folder: Path, engine: Engine, key: bytes) -> None:
        self.folder = folder
        self.engine = engine
        postgres = engine.dialect.name == "postgresql"  # where each statement would else see a state of its own
        self._reader = engine.execution_options(isolation_level="REPEATABLE READ") if postgres else engine
        self._key = key
        self._writers = _Queue()  # SQLite's own waiting is a poll, and a lock of Python's lets the last come first

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database and changes nothing."""
        with self._reader.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that no other writer runs beside: kept whole at the end, undone whole on an error."""
        with self._writers, _begin_write(self.engine) as connection:
            yield connection

    def pseudonym(self, kind: str, name: str) -> str:
        """What exports and the audit call a person: the same within a workspace, unguessable without its key."""
        return f"{kind}-{hmac.digest(self._key, f'{kind}/{name}'.encode(), 'sha256').hex()[:12]}"

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def open_workspace(folder: Path, database: str | None = None) -> Workspace:
    """Open a workspace, making or upgrading what is missing.

    Args:
        folder: where key, SQLite file and the database's URL are kept, readable by the owner alone.
        database: an SQLAlchemy URL; remembered in the folder, so that it need be said once.

    Raises:
        ValueError: if the folder holds something else, or the database cannot be reached.
    """
    key, place = folder / "secret.key", folder / "database.url"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"workspace: {folder} is a file; choose a folder")
    if folder.exists() and any(folder.iterdir()) and not key.exists():
        raise ValueError(f"workspace: {folder} holds files that are not a labeling workspace; choose another folder")
    own = f"sqlite:///{(folder / 'labeling.db').absolute()}"
    before = place.read_text() if place.exists() else own if key.exists() else None
    if database and before and database != before:
        raise ValueError(f"database: {folder} keeps its work in {make_url(before)!r}; another needs another workspace")
    engine = _engine(database or before or own)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        _upgrade(engine)
    except OperationalError as error:
        reason = " ".join(str(error.orig).split())
        raise ValueError(f"database: cannot open {engine.url!r}: {reason}") from None
    if database and not place.exists():
        _write_private(place, database.encode())
    if not key.exists():
        _write_private(key, secrets.token_bytes(32))
    return Workspace(folder, engine, key.read_bytes())


def existing_workspace(folder: Path) -> Workspace:
    """Open a workspace that is there already.

    Raises:
        ValueError: if there is none.
    """
    if not (folder / "secret.key").exists():
        raise ValueError(f"workspace: {folder} is no labeling workspace; `tutelage label serve {folder}` makes one")
    return open_workspace(folder)


def record(
    connection: Connection, kind: str, *, person: int | None = None, subject: Any = None, now: float | None = None,
    **detail: Any,
) -> float:  # fmt: skip
    """Append an event to the audit, in the transaction of the act that it tells of; returns its time."""
    at = time.time() if now is None else now
    told = None if subject is None else str(subject)
    connection.execute(_RECORD, {"at": at, "person": person, "kind": kind, "subject": told, "detail": detail})
    return at


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)


def _engine(url: str) -> Engine:
    try:
        dialect = make_url(url).get_backend_name()
        if dialect not in ("sqlite", "postgresql"):
            raise ValueError(f"database: {dialect!r} is not supported; use sqlite:///FILE or postgresql+psycopg://…")
        engine = create_engine(url, pool_size=CONNECTIONS, max_overflow=10)
    except ArgumentError:
        raise ValueError(
            "database: not a URL; expected sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"
        ) from None
    except ModuleNotFoundError as error:
        raise ValueError(f"database: {error}; pip install 'tutelage[postgres]'") from None
    if dialect == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by us, below
    # FULL: an acknowledged answer outlives a power cut, not only a crash of this process. secure_delete: what is erased
    # is overwritten in the file.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=20000", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("tutelage_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def _begin_write(engine: Engine) -> Iterator[Connection]:
    with engine.connect().execution_options(tutelage_write=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(_LOCK)
        yield connection


def _upgrade(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with _begin_write(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
