"""Backup and restore: everything comes back, from either database into either, while people work.

What is damaged or made to do harm is refused, and leaves nothing.
"""

from __future__ import annotations

import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import func, select

from tutelage.cli import main
from tutelage.data.records import Prompt
from tutelage.labeling.store import accounts, assignment, exchange
from tutelage.labeling.store.backup import LEFT_OUT, TABLES, _digest, backup, restore
from tutelage.labeling.store.database import Workspace, existing_workspace, open_workspace
from tutelage.labeling.store.instructions import ensure_instructions
from tutelage.labeling.store.prompts import erase_prompt
from tutelage.labeling.store.schema import answers, assignments, events, invites, metadata, people, sessions
from tutelage.labeling.store.tasks import queue_prompts

from .conftest import add
from .filling import fill

NAMES = sorted(table.name for table in TABLES)


def rows(workspace: Workspace) -> dict[str, list[Any]]:
    with workspace.read() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
            for table in metadata.sorted_tables
        }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of a filled workspace."""
    folder = tmp_path_factory.mktemp("made")
    with closing(open_workspace(folder / "w")) as workspace:
        with workspace.write() as connection:
            ensure_instructions(connection)
        fill(workspace)
        backup(workspace, folder / "backup")
    return folder / "backup"


@pytest.mark.parametrize("into", ["sqlite", "postgresql"])
def test_everything_comes_back(
    workspace: Workspace, into: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = fill(workspace)
    with workspace.write() as connection:
        accounts.start_session(connection, ids["Tess"])
        accounts.invite(connection, person=ids["Tom"])
        erase_prompt(connection, "p3")
    before = rows(workspace)
    file, folder = tmp_path / "backup", tmp_path / "restored"
    database = [] if into == "sqlite" else ["--database", request.getfixturevalue("new_database")()]
    assert main(["label", "backup", str(workspace.folder), str(file)]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert main(["label", "restore", str(file), str(folder), *database]) == 0
    assert "7 people" in capsys.readouterr().out
    with closing(existing_workspace(folder)) as restored:
        assert rows(restored) == before | {name: [] for name in LEFT_OUT}
        assert restored.engine.dialect.name == into
        assert restored.key == workspace.key
        for one, other in ((workspace, "one"), (restored, "two")):
            exchange.export(one, tmp_path / other, pairs=True, table=True)
        for path in (tmp_path / "one").iterdir():
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        new = add(restored, "Nora")  # numbers go on where they ended
        with restored.write() as connection:
            prompt = Prompt(id="new", text="new")
            queue_prompts(connection, "demonstration", [prompt])
            mine = assignment.next_task(connection, new)
            assert assignment.submit(connection, new, mine, {"completion": "x"}, "k" * 20) > before["answers"][-1][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "one", "restored", "two", "workspace"]


def test_one_moment_while_people_work(workspace: Workspace, tmp_path: Path) -> None:
    """Every backup has whole answers only, each with its event, and all that were acknowledged before it began."""
    with workspace.write() as connection:
        queue_prompts(connection, "demonstration", [Prompt(id=f"p{i}", text=f"q{i}") for i in range(3000)])
    labelers = [add(workspace, f"Labeler {i}") for i in range(3)]
    acknowledged: list[int] = []
    stop = threading.Event()

    def work(person: int) -> None:
        while not stop.is_set():
            with workspace.write() as connection:
                mine = assignment.next_task(connection, person)
                body = {"completion": "word " * 500}
                answer = assignment.submit(connection, person, mine, body, f"{person}-{mine}-{'k' * 20}")
            acknowledged.append(answer)

    threads = [threading.Thread(target=work, args=[person]) for person in labelers]
    for thread in threads:
        thread.start()
    try:
        for i in range(3):
            while len(acknowledged) < 20 * (i + 1):
                assert any(thread.is_alive() for thread in threads)
            told = set(acknowledged)
            backup(workspace, tmp_path / f"backup{i}")
            restore(tmp_path / f"backup{i}", tmp_path / f"restored{i}")
            with closing(existing_workspace(tmp_path / f"restored{i}")) as restored, restored.read() as connection:
                stored = set(connection.execute(select(answers.c.id)).scalars())
                done = select(func.count()).select_from(assignments).where(assignments.c.state == "submitted")
                noted = select(events.c.detail).where(events.c.kind == "submitted")
                assert told <= stored
                assert connection.execute(done).scalar_one() == len(stored)
                assert {detail["answer"] for detail in connection.execute(noted).scalars()} == stored
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def refused(file: Path, folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What `restore` says in refusing; it leaves nothing."""
    before = sorted(folder.parent.rglob("*"))
    assert main(["label", "restore", str(file), str(folder), *options]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1, told
    assert sorted(folder.parent.rglob("*")) == before
    return told


def test_nothing_is_overwritten(
    made: Path, tmp_path: Path, new_database: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    assert "not empty" in refused(made, tmp_path / "full", capsys)
    assert "not empty" in refused(made, tmp_path / "file", capsys)
    assert "no file" in refused(tmp_path, tmp_path / "w", capsys)
    assert "no file" in refused(tmp_path / "none", tmp_path / "w", capsys)
    url = new_database()
    open_workspace(tmp_path / "used", url).close()
    (tmp_path / "empty").mkdir()
    restore(made, tmp_path / "empty", url)  # tables without rows are empty enough
    assert "not empty" in refused(made, tmp_path / "w", capsys, "--database", url)
    assert main(["label", "backup", str(tmp_path / "empty"), str(tmp_path / "file")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_any_byte_that_is_wrong_is_noticed(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut short, or changed anywhere or within the key: refused, or, where SQLite keeps nothing, restored as it was."""
    whole, chance = made.read_bytes(), Random(0)
    restore(made, tmp_path / "good")
    with closing(existing_workspace(tmp_path / "good")) as workspace:
        good, key = rows(workspace), workspace.key
    start = whole.index(key.hex().encode())
    places = range(len(whole)), range(len(whole)), range(start, start + 2 * len(key))
    refusals = 0
    for i in range(36):
        content, at = bytearray(whole), chance.choice(places[i % 3])
        content[at] ^= 1 << chance.randrange(8)
        file, folder = tmp_path / f"b{i}", tmp_path / f"w{i}"
        file.write_bytes(whole[:at] if i % 3 == 0 else content)
        if main(["label", "restore", str(file), str(folder)]) == 0:
            with closing(existing_workspace(folder)) as workspace:
                assert rows(workspace) == good, at
                assert workspace.key == key, at
        else:
            refusals += 1
            told = capsys.readouterr().err
            assert file.name in told
            assert told.count("\n") == 1
            assert not folder.exists()
    assert refusals >= 20
    assert not list(tmp_path.glob(".*"))


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"
HARM = {
    "endless view": f"ALTER TABLE reviews RENAME TO r; CREATE VIEW reviews AS {ENDLESS} i AS id, 1 AS answer, "
    "1 AS reviewer, 1 AS quality, 1.0 AS created FROM n",
    "view of itself": f"ALTER TABLE backup RENAME TO b; CREATE VIEW backup AS {ENDLESS} i AS name, i AS value FROM n",
    "computed column": "ALTER TABLE reviews ADD COLUMN big TEXT AS (zeroblob(1000000000))",
    "virtual table": "DROP TABLE reviews; CREATE VIRTUAL TABLE reviews USING "
    "fts5(id, answer, reviewer, quality, created)",
    "column too many": "ALTER TABLE people ADD COLUMN motto TEXT",
    "table missing": "DROP TABLE reviews",
    "wrong key": "UPDATE backup SET value = 'abcd' WHERE name = 'key'",
    "no key": "DELETE FROM backup WHERE name = 'key'",
    "newer": "UPDATE backup SET value = '0099' WHERE name = 'revision'",
    "path for a revision": "UPDATE backup SET value = '../../x' WHERE name = 'revision'",
    "nobody's answer": "UPDATE answers SET assignment = 99999 WHERE id = 1",
    "nobody's role": "PRAGMA ignore_check_constraints=ON; UPDATE people SET role = 'king' WHERE id = 1",
    "time that is none": "UPDATE answers SET created = 'soon' WHERE id = 1",
    "time without end": "UPDATE answers SET created = 9e999 WHERE id = 1",
    "text that is none": "UPDATE people SET name = x'00ff' WHERE id = 1",
    "body that is no JSON": "UPDATE answers SET body = '{' WHERE id = 1",
    "deep JSON": f"UPDATE answers SET body = '{'[' * 100_000}' WHERE id = 1",
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_hostile_backups(harm: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "hostile"
    shutil.copy(made, file)
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(HARM[harm])
        if harm not in ("endless view", "view of itself", "computed column", "table missing"):
            about = dict(connection.execute("SELECT name, value FROM backup"))
            digest = _digest(connection, about, NAMES)  # made right again, as somebody who means harm would
            connection.execute("UPDATE backup SET value = ? WHERE name = 'digest'", [digest])
        connection.commit()
    assert "backup: " in refused(file, tmp_path / "w", capsys)


def test_other_files_are_no_backups(tmp_path: Path, capsys: pytest.CaptureFixture[str], sqlite: Workspace) -> None:
    (tmp_path / "text").write_text("no database")
    (tmp_path / "nothing").write_bytes(b"")
    add(sqlite, "Ann")
    shutil.copytree(sqlite.folder, tmp_path / "copy")
    for file in (tmp_path / "text", tmp_path / "nothing", tmp_path / "copy" / "labeling.db"):
        assert "no backup" in refused(file, tmp_path / "w", capsys)


def test_triggers_of_a_backup_are_not_run(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "hostile"
    shutil.copy(made, file)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TRIGGER t AFTER INSERT ON people BEGIN DELETE FROM answers; END")
        connection.commit()
    restore(file, tmp_path / "w")
    with closing(existing_workspace(tmp_path / "w")) as workspace:
        add(workspace, "Nora")
        with workspace.read() as connection:
            assert connection.execute(select(func.count()).select_from(answers)).scalar_one() > 0


def test_who_was_signed_out_stays_out(workspace: Workspace, tmp_path: Path) -> None:
    lena = add(workspace, "Lena")
    with workspace.write() as connection:
        session, link = accounts.start_session(connection, lena), accounts.invite(connection)
    backup(workspace, tmp_path / "backup")
    with workspace.write() as connection:
        accounts.end_sessions(connection, lena)
        accounts.join(connection, workspace, link, "Nora", "a long password")
    restore(tmp_path / "backup", tmp_path / "w")
    with closing(existing_workspace(tmp_path / "w")) as restored, restored.read() as connection:
        assert accounts.whose_session(connection, session) is None
        assert accounts.open_invite(connection, link) is None
        assert connection.execute(select(people.c.name)).scalars().all() == ["Lena"]
        assert not connection.execute(select(sessions)).all()
        assert not connection.execute(select(invites)).all()
