"""Backup and restore of a workspace, while people work, from either database into either.

A backup is one SQLite file: the tables as a single transaction saw them, and in a table `backup` the key, the revision
of the tables and a digest of it all. Such a file names no other file and is as large as what it holds, so a hostile
one can neither write elsewhere nor grow; of its tables the rows alone are taken, into tables made here. Sessions and
links are left out: who was signed out, or has used a link, since the backup was made must not get in by it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Float, Integer, Table, Text, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from tutelage.labeling.store import schema
from tutelage.labeling.store.database import FILE, KEY, KEY_BYTES, URL, Workspace, record, write_private
from tutelage.labeling.store.engines import begin_write, head, in_words, known, make_engine, prepare_file, upgrade
from tutelage.terminal import reason

FORMAT = "tutelage workspace 2"
COVERED = ("format", "made", "revision", "key")  # by the digest, beside the rows
LEFT_OUT = ("sessions", "invites")
TABLES = [table for table in schema.metadata.sorted_tables if table.name not in LEFT_OUT]
ROWS = 1000  # copied at a time


def backup(workspace: Workspace, path: Path) -> dict[str, int]:
    """Write all of a workspace, as it is at one moment, into a file that its owner alone can read; rows by table.

    Raises:
        ValueError: if the file is there already, or cannot be written.
    """
    if path.exists():
        raise ValueError(f"backup: {path} is there already; choose another name")
    with _workplace(path) as place, _sqlite(place / FILE) as engine:
        upgrade(engine)
        with workspace.read() as source, begin_write(engine) as target:
            counts = {table.name: _copy(source, target, table) for table in TABLES}
        engine.dispose()
        with closing(sqlite3.connect(place / FILE)) as written, written:
            written.execute("PRAGMA journal_mode=DELETE")  # one file, complete by itself
            written.execute("CREATE TABLE backup (name TEXT PRIMARY KEY, value TEXT)")
            about = {"format": FORMAT, "made": str(time.time()), "revision": head(), "key": workspace.key.hex()}
            about["digest"] = _digest(written, about, sorted(counts))
            written.executemany("INSERT INTO backup VALUES (?, ?)", about.items())
        os.replace(place / FILE, path)
    with workspace.write() as connection:
        record(connection, "backed up", **counts)
    return counts


def restore(path: Path, folder: Path, database: str | None = None) -> dict[str, int]:
    """Make a workspace of a backup, in a new folder and, if `database` names one, in that; returns rows by table.

    Raises:
        ValueError: if the folder or the database is not empty, or the file is damaged, of a newer version, or no
            backup; nothing is made then.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"workspace: {folder} is not empty; restore into a new folder")
    if not path.is_file():
        raise ValueError(f"backup: {path} is no file; name one that `tutelage label backup` has written")
    with _workplace(folder) as place:
        key = _read(path, place / FILE)
        with _sqlite(place / FILE) as engine, engine.connect() as connection:
            counts = _check(connection, path)
            if database is not None:
                _fill(connection, database)
        if database is not None:
            (place / FILE).unlink()
            write_private(place / URL, database.encode())
        write_private(place / KEY, key)
        os.rename(place, folder)
    return counts


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """A private folder beside what is made, to rename it from; gone at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _sqlite(path: Path) -> Iterator[Engine]:
    engine = make_engine(f"sqlite:///{path.absolute()}")
    try:
        with in_words(engine):
            prepare_file(engine, complete=False)
            yield engine
    finally:
        engine.dispose()


def _copy(source: Connection, target: Connection, table: Table) -> int:
    """All rows of a table, some at a time; returns how many."""
    number = 0
    rows = source.execute(select(table).order_by(*table.primary_key), execution_options={"yield_per": ROWS})
    for part in rows.partitions():
        target.execute(insert(table), [dict(row._mapping) for row in part])
        number += len(part)
    return number


def _digest(connection: sqlite3.Connection, about: dict[str, str], tables: list[str]) -> str:
    """sha256 of what a backup says of itself and of all rows, as the file holds them."""
    digest = hashlib.sha256(json.dumps([about.get(name) for name in COVERED], default=bytes.hex).encode())
    for name in tables:
        for row in connection.execute(f'SELECT * FROM "{name}" ORDER BY 1'):
            digest.update(json.dumps([name, *row], default=bytes.hex).encode())
    return digest.hexdigest()


def _read(path: Path, target: Path) -> bytes:
    """Copy a backup's rows into a new SQLite file of the newest revision; returns the key."""
    try:
        source = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        with closing(source):
            source.execute("PRAGMA trusted_schema=OFF")
            if (state := source.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise ValueError(reason(state))
            about = _about(source)
            with _sqlite(target) as engine:
                upgrade(engine, revision=about["revision"])
                engine.dispose()
                with closing(sqlite3.connect(target)) as made, made:
                    tables = _take(source, made)
                if about.get("digest") != _digest(source, about, tables):
                    raise ValueError("its content is not what was written")
                upgrade(engine)
    except (sqlite3.Error, ValueError, OverflowError) as error:
        raise ValueError(f"backup: {path} is damaged, or no backup: {error}; use another one") from None
    return bytes.fromhex(about["key"])


def _about(source: sqlite3.Connection) -> dict[str, str]:
    """What a backup says of itself."""
    if _columns(source, "backup") != [("name", "TEXT"), ("value", "TEXT")]:
        raise ValueError("it has no table that says so")
    about = dict(source.execute("SELECT name, value FROM backup LIMIT 99"))
    if about.get("format") != FORMAT:
        raise ValueError(f"format is {about.get('format')!r}, not {FORMAT!r}")
    if about.get("revision") not in known():
        raise ValueError(f"revision {about.get('revision')!r} is of a newer tutelage; update tutelage")
    if len(bytes.fromhex(str(about.get("key")))) != KEY_BYTES:
        raise ValueError("its key is cut short")
    return about


def _columns(connection: sqlite3.Connection, table: str) -> list[tuple[str, str]]:
    """Names and types of a table's columns; nothing of a view or a virtual table, or if one is computed."""
    kind = connection.execute("SELECT type, sql FROM sqlite_master WHERE name = ?", [table]).fetchone()
    if kind is None or kind[0] != "table" or kind[1].upper().lstrip().startswith("CREATE VIRTUAL"):
        return []
    columns = connection.execute(f'PRAGMA table_xinfo("{table}")').fetchall()
    return [] if any(hidden for *_, hidden in columns) else [(name, kind) for _, name, kind, *_ in columns]


def _take(source: sqlite3.Connection, target: sqlite3.Connection) -> list[str]:
    """Copy the rows of all tables that the target has; returns the tables' names."""
    target.execute("PRAGMA foreign_keys=ON")
    target.execute("BEGIN")
    target.execute("PRAGMA defer_foreign_keys=ON")
    everything = target.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    tables = [name for (name,) in everything if name not in (*LEFT_OUT, "alembic_version")]
    for name in tables:
        columns = _columns(target, name)
        if _columns(source, name) != columns:
            raise ValueError(f"its table {name} has other columns")
        listed = ", ".join(f'"{column}"' for column, _ in columns)
        rows = source.execute(f'SELECT {listed} FROM "{name}"')
        target.executemany(f'INSERT INTO "{name}" ({listed}) VALUES ({", ".join("?" * len(columns))})', rows)
    return tables


def _check(connection: Connection, path: Path) -> dict[str, int]:
    """Read everything as pages will, as SQLite takes values of any type; returns rows by table."""
    kinds: dict[type, Any] = {Integer: int, Float: (int, float), Text: str}
    counts = {}
    for table in TABLES:
        wanted = [(c.name, next((kinds[k] for k in kinds if isinstance(c.type, k)), object)) for c in table.columns]
        counts[table.name] = 0
        try:
            for row in connection.execute(select(table), execution_options={"yield_per": ROWS}):
                counts[table.name] += 1
                for value, (column, kind) in zip(row, wanted, strict=True):
                    sound = value is None or isinstance(value, kind)
                    if not sound or (isinstance(value, float) and not math.isfinite(value)):
                        raise ValueError(f"{column} is {str(value)[:40]!r}")
        except (ValueError, RecursionError) as error:
            where = f"table {table.name}, row {counts[table.name]}"
            raise ValueError(f"backup: {path} is damaged: {where}: {error}; use another one") from None
    return counts


def _fill(source: Connection, database: str) -> None:
    """Copy into an empty database, in one transaction."""
    engine = make_engine(database)
    try:
        with in_words(engine):
            prepare_file(engine, complete=False)
            upgrade(engine)
            with begin_write(engine) as target:
                for table in schema.metadata.sorted_tables:
                    if target.execute(select(text("1")).select_from(table).limit(1)).first():
                        raise ValueError(f"database: {make_url(database)!r} is not empty; name another")
                for table in TABLES:
                    _copy(source, target, table)
                    if engine.dialect.name == "postgresql" and isinstance(table.primary_key.columns[0].type, Integer):
                        _count_on(target, table.name)
    except DBAPIError as error:
        raise ValueError(f"database: {make_url(database)!r} refuses a row: {_first_line(error)}") from None
    finally:
        engine.dispose()


def _count_on(connection: Connection, table: str) -> None:
    """Let PostgreSQL number new rows from where the old ones end."""
    sequence, last = f"pg_get_serial_sequence('{table}', 'id')", f"(SELECT coalesce(max(id), 0) + 1 FROM {table})"
    connection.execute(text(f"SELECT setval({sequence}, {last}, false)"))


def _first_line(error: Any) -> str:
    return str(error.orig).splitlines()[0]
