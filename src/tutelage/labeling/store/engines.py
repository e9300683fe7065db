"""Engines for the two databases of a workspace: how they are set up, waited for, checked, upgraded, and what they say.

SQLite is in WAL mode and private to its owner; PostgreSQL may be restarted under a running server.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, OperationalError

from tutelage.terminal import reason

MIGRATIONS = Path(__file__).parent / "migrations"
WRITERS = 0x7475_7465  # the advisory lock's number, any that nobody else uses
_LOCK = text(f"SELECT pg_advisory_xact_lock({WRITERS})")
BUSY_MILLISECONDS = 20_000
CONNECTIONS = 40  # as many as the web server has threads
WAIT_SECONDS = 20.0  # for a database that is being restarted


class Unavailable(OSError):
    """The database cannot be used just now, and nothing was stored; the request itself was all right."""


@contextmanager
def in_words(engine: Engine | None = None) -> Iterator[None]:
    """Turn what a database says of itself (full, damaged, out of reach) into one line.

    Raises:
        ValueError: instead of the database's own errors.
    """
    try:
        yield
    except (DatabaseError, sqlite3.DatabaseError) as error:
        if not is_outage(error):
            raise
        cause = cause_of(error)
        broken = "malformed" in cause or "not a database" in cause
        remedy = "; it is damaged: restore a backup into another folder" if broken else ""
        subject = f"cannot use {engine.url!r}: " if engine else ""
        raise ValueError(f"database: {subject}{cause}{remedy}") from None


def is_outage(error: BaseException) -> bool:
    """Whether an error tells of the database's state (down, full, damaged, read-only), not of a statement of ours."""
    plain = (DatabaseError, sqlite3.DatabaseError)
    return isinstance(error, OperationalError | sqlite3.OperationalError | Unavailable) or type(error) in plain


def is_broken_off(error: Exception) -> bool:
    """Whether PostgreSQL ended the connection, and so undid what was not committed."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def cause_of(error: Exception) -> str:
    """What the database said, in one line, without the statement that it said it of."""
    return reason(getattr(error, "orig", None) or error)


def make_engine(url: str) -> Engine:
    """An engine for one of the two databases, set up as the workspace needs it.

    Raises:
        ValueError: if this is no URL, or one of another database.
    """
    try:
        dialect = make_url(url).get_backend_name()
        if dialect not in ("sqlite", "postgresql"):
            raise ValueError(f"database: {dialect!r} is not supported; use sqlite:///FILE or postgresql+psycopg://…")
        if dialect == "sqlite" and make_url(url).database in (None, "", ":memory:"):
            raise ValueError("database: a workspace in memory would be lost; use sqlite:///FILE")
        # The ping costs a round trip, and saves whoever comes first after PostgreSQL was restarted.
        # No error quotes what somebody wrote, as errors go to the server's log.
        engine = create_engine(
            url, pool_size=CONNECTIONS, max_overflow=10, pool_pre_ping=dialect == "postgresql", hide_parameters=True
        )
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


def sqlite_file(engine: Engine) -> Path | None:
    """The database's file, if it is SQLite's."""
    return Path(str(engine.url.database)) if engine.dialect.name == "sqlite" else None


def files_of(engine: Engine) -> list[Path]:
    """SQLite's file and those beside it."""
    file = sqlite_file(engine)
    return [] if file is None else [file.with_name(file.name + end) for end in ("", "-wal", "-shm")]


def make_private(path: Path) -> None:
    """Take away what others may do with a file, as SQLite and earlier versions went by the folder and the umask."""
    if path.exists() and path.stat().st_mode & 0o077:
        path.chmod(0o600)


def prepare_file(engine: Engine, complete: bool) -> None:
    """Make SQLite's file, private from the start, unless it should be there already."""
    file = sqlite_file(engine)
    if file is None:
        return
    if complete and not (file.exists() and file.stat().st_size):  # SQLite would make a new one, and delete the log
        state = "empty" if file.exists() else "missing"
        raise ValueError(f"database: {file} is {state}, though it held work; restore a backup into another folder")
    for path in files_of(engine):
        make_private(path)
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by us, below
    # FULL: an acknowledged answer outlives a power cut, not only a crash of this process. secure_delete: what is erased
    # is overwritten in the file.
    for pragma in (
        f"busy_timeout={BUSY_MILLISECONDS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON",
        "secure_delete=ON", "trusted_schema=OFF",
    ):  # fmt: skip
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("tutelage_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def deadline() -> float:
    """Until when to wait for a connection, for who asks now."""
    return time.monotonic() + WAIT_SECONDS


def connected(engine: Engine, until: float) -> Connection:
    """A connection; waits for a PostgreSQL that is being restarted."""
    while True:
        try:
            return engine.connect()
        except OperationalError:
            if engine.dialect.name == "sqlite" or time.monotonic() > until:
                raise
        time.sleep(0.2)


@contextmanager
def begin_write(engine: Engine, until: float = 0.0) -> Iterator[Connection]:
    """A transaction that no other writer runs beside."""
    with connected(engine, until).execution_options(tutelage_write=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(_LOCK)
        yield connection


def check(engine: Engine) -> None:
    """Read an SQLite file through.

    Raises:
        ValueError: if it is damaged.
    """
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            state = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if state != "ok":
            raise ValueError(
                f"database: {engine.url!r} is damaged: {reason(state)}; restore a backup into another folder"
            )


def _scripts() -> tuple[Config, ScriptDirectory]:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config, ScriptDirectory.from_config(config)


def head() -> str:
    """The newest revision of the tables."""
    return str(_scripts()[1].get_current_head())


def known() -> set[str]:
    """Every revision of the tables that this version can upgrade from."""
    return {script.revision for script in _scripts()[1].walk_revisions()}


def upgrade(engine: Engine, complete: bool = False, revision: str = "head") -> None:
    """Bring a database to a revision of the tables, all in one transaction.

    Raises:
        ValueError: if it is of a revision that this version does not know, or should be `complete` and has no tables.
    """
    config, scripts = _scripts()
    with begin_write(engine) as connection:
        now = MigrationContext.configure(connection).get_current_revision()
        if now is None and complete:
            raise ValueError(f"database: {engine.url!r} holds no workspace, though it did; restore a backup")
        if now is not None and now not in known():
            raise ValueError(
                f"database: {engine.url!r} was made by a newer tutelage (revision {now!r}); update tutelage to open it"
            )
        if now != scripts.get_current_head():
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
