"""The workspace: migrations say what the tables say, events stay, secrets are private, one writer at a time."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from tutelage.labeling.store.database import Workspace, existing_workspace, open_workspace, record
from tutelage.labeling.store.schema import events, metadata, sessions


def test_migrations_make_the_tables(workspace: Workspace) -> None:
    with workspace.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


@pytest.mark.parametrize("act", ["UPDATE events SET kind = 'x'", "DELETE FROM events"])
def test_events_are_append_only(workspace: Workspace, act: str) -> None:
    with pytest.raises(DBAPIError, match="append-only"), workspace.write() as connection:
        connection.execute(text(act))


def test_a_failed_write_leaves_nothing(workspace: Workspace) -> None:
    count = select(func.count()).select_from(events)
    with workspace.read() as connection:
        before = connection.execute(count).scalar_one()

    def fail() -> None:
        with workspace.write() as connection:
            record(connection, "tried")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with workspace.read() as connection:
        assert connection.execute(count).scalar_one() == before


def test_foreign_keys_hold(workspace: Workspace) -> None:
    with pytest.raises(IntegrityError) as refused, workspace.write() as connection:
        connection.execute(insert(sessions).values(token_hash="a secret", person=99, created=0, expires=0))
    assert "a secret" not in str(refused.value)  # errors end up in the server's log


def test_writers_come_one_after_the_other(workspace: Workspace) -> None:
    """Read, then write what was read plus one, from eight threads and two openings of one workspace: none is lost."""
    second = open_workspace(workspace.folder)
    with workspace.write() as connection:
        connection.execute(text("CREATE TABLE tally (n integer)"))
        connection.execute(text("INSERT INTO tally VALUES (0)"))

    def count(opened: Workspace) -> None:
        for _ in range(10):
            with opened.write() as connection:
                n = connection.execute(text("SELECT n FROM tally")).scalar_one()
                connection.execute(text("UPDATE tally SET n = :n"), {"n": n + 1})

    threads = [threading.Thread(target=count, args=((workspace, second)[i % 2],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    second.close()
    with workspace.read() as connection:
        assert connection.execute(text("SELECT n FROM tally")).scalar_one() == 80


def test_secrets_are_private_and_pseudonyms_are_the_workspaces_own(tmp_path: Path) -> None:
    one, two = open_workspace(tmp_path / "one"), open_workspace(tmp_path / "two")
    assert one.pseudonym("labeler", "ann") == existing_workspace(tmp_path / "one").pseudonym("labeler", "ann")
    assert one.pseudonym("labeler", "ann") != two.pseudonym("labeler", "ann")
    assert stat.S_IMODE((tmp_path / "one" / "secret.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o700


def test_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a labeling workspace"):
        open_workspace(tmp_path)
    with pytest.raises(ValueError, match="label serve"):
        existing_workspace(tmp_path / "none")
    with pytest.raises(ValueError, match="not supported"):
        open_workspace(tmp_path / "w", "mysql://x")
    with pytest.raises(ValueError, match="not a URL"):
        open_workspace(tmp_path / "x", "my database")
    with pytest.raises(ValueError, match="cannot use"):
        open_workspace(tmp_path / "y", "postgresql+psycopg://tutelage:hunter2@127.0.0.1:1/x")
    open_workspace(tmp_path / "z")
    with pytest.raises(ValueError, match="keeps its work in"):
        open_workspace(tmp_path / "z", f"sqlite:///{tmp_path}/other.db")
