"""Opening a workspace: a first start cut short can be repeated, what is damaged is refused in words, files are private,
and what was erased is in none of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from tutelage.cli import main
from tutelage.data.records import Prompt
from tutelage.labeling.store import accounts, assignment, database
from tutelage.labeling.store.database import Workspace, existing_workspace, open_workspace
from tutelage.labeling.store.instructions import ensure_instructions
from tutelage.labeling.store.tasks import queue_prompts
from tutelage.labeling.web.app import create_app

from .conftest import PASSWORD, PATIENCE, add
from .test_durability import serving

# Opens workspaces in children, each killed before its nth call that could reach a disk or a database.
KILLS = """
import os, signal, sys
from pathlib import Path
from tutelage.labeling.store.database import open_workspace
import sqlalchemy.dialects.sqlite, sqlalchemy.dialects.postgresql.psycopg
CALLS = {"connect", "execute", "commit", "mkdir", "open", "fsync", "replace", "chmod", "write", "close"}
folder, step, urls = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
for n in range(1, 10_000, step):
    child = os.fork()
    if not child:
        left = n
        def count(frame, event, what):
            global left
            name = getattr(what, "__name__", "") if event == "c_call" else frame.f_code.co_name
            if event in ("c_call", "call") and name in CALLS:
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.setprofile(count)
        open_workspace(folder / str(n), *urls[n // step : n // step + 1])
        sys.setprofile(None)
        os._exit(0)
    if not os.waitpid(child, 0)[1]:
        break
"""


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_first_start_that_was_killed_is_repeated(
    tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    urls: list[str] = []
    if database == "postgresql":
        new = request.getfixturevalue("new_database")
        urls = [new() for _ in range(20)]
    step = 25 if urls else 10
    subprocess.run([sys.executable, "-c", KILLS, str(tmp_path), str(step), *urls], check=True)
    kills = sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name))
    unfinished = 0
    for folder in kills:
        unfinished += not (folder / "secret.key").exists()
        url = urls[int(folder.name) // step : int(folder.name) // step + 1]
        with closing(open_workspace(folder, *url)) as workspace:
            name = workspace.pseudonym("labeler", "ann")
            add(workspace, "Ann")
        with closing(existing_workspace(folder)) as workspace:
            assert workspace.pseudonym("labeler", "ann") == name
        assert len((folder / "secret.key").read_bytes()) == 32
    assert unfinished > 5, len(kills)


def file_of(folder: Path) -> Path:
    return folder / "labeling.db"


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def newer(folder: Path) -> None:
    with closing(sqlite3.connect(file_of(folder))) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0099'")


def other_tables(folder: Path) -> None:
    file_of(folder).unlink()
    with closing(sqlite3.connect(file_of(folder))) as connection, connection:
        connection.execute("CREATE TABLE recipes (cake text)")


def flip(folder: Path) -> None:
    content = bytearray(file_of(folder).read_bytes())
    content[4096:4100] = b"\xff" * 4  # the head of the second page
    file_of(folder).write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "database cut short": (lambda w: cut(file_of(w), 50_000), "damaged"),
    "database of zeros": (lambda w: file_of(w).write_bytes(bytes(50_000)), "damaged"),
    "database with a broken page": (flip, "damaged"),
    "database empty": (lambda w: cut(file_of(w), 0), "is empty"),
    "database missing": (lambda w: file_of(w).unlink(), "is missing"),
    "database a folder": (lambda w: (file_of(w).unlink(), file_of(w).mkdir()), "labeling.db"),
    "database newer": (newer, "newer tutelage"),
    "database of something else": (other_tables, "holds no workspace"),
    "key empty": (lambda w: cut(w / "secret.key", 0), "has 0 bytes"),
    "key cut short": (lambda w: cut(w / "secret.key", 31), "has 31 bytes"),
    "key missing": (lambda w: (w / "secret.key").unlink(), "secret.key is missing"),
    "URL empty": (lambda w: (w / "database.url").write_text(""), "database.url is empty"),
    "URL no URL": (lambda w: (w / "database.url").write_bytes(b"\xff\xfe"), "not a URL"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_in_words(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command that makes workspaces too, and nothing is made anew or thrown away."""
    folder = tmp_path / "w"
    with closing(open_workspace(folder)) as workspace:
        add(workspace, "Ann", "owner")
    break_it, words = DAMAGE[damage]
    break_it(folder)
    before = {path.name: path.stat().st_size for path in folder.iterdir()}
    verbs = ["serve"] if damage == "key missing" else ["serve", "status"]
    for verb in verbs:
        assert main(["label", verb, str(folder)]) == 2
        told = capsys.readouterr().err
        assert words in told
        assert told.count("\n") == 1
    after = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert {name: after[name] for name in before} == before


def test_a_log_outlives_an_empty_file(tmp_path: Path) -> None:
    """SQLite would delete the write-ahead log, which may still hold everything."""
    folder = tmp_path / "w"
    workspace = open_workspace(folder)
    add(workspace, "Ann")
    shutil.copytree(folder, tmp_path / "copy")
    cut(file_of(tmp_path / "copy"), 0)
    size = (tmp_path / "copy" / "labeling.db-wal").stat().st_size
    assert size > 0
    with pytest.raises(ValueError, match="is empty"):
        open_workspace(tmp_path / "copy")
    assert (tmp_path / "copy" / "labeling.db-wal").stat().st_size == size
    workspace.close()


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_files_are_private_whatever_the_folder(tmp_path: Path) -> None:
    """In a folder that others may enter, and where an earlier version left them readable."""
    folder = tmp_path / "w"
    folder.mkdir(mode=0o755)
    before = os.umask(0o022)
    try:
        workspace = open_workspace(folder)
        add(workspace, "Ann")
        names = {"labeling.db", "labeling.db-wal", "labeling.db-shm", "secret.key"}
        assert modes(folder) == dict.fromkeys(names, 0o600)
        shutil.copytree(folder, tmp_path / "old")
        workspace.close()
        for path in (tmp_path / "old").iterdir():
            path.chmod(0o644)
        workspace = open_workspace(tmp_path / "old")
        add(workspace, "Ben")
        assert modes(tmp_path / "old") == dict.fromkeys(names, 0o600)
        workspace.close()
    finally:
        os.umask(before)


# Erasure


def with_texts(folder: Path) -> None:
    """A workspace with ten prompts of user u, answered by Lena; Olga owns it."""
    with closing(open_workspace(folder)) as workspace:
        add(workspace, "Olga", "owner")
        lena = add(workspace, "Lena")
        with workspace.write() as connection:
            ensure_instructions(connection)
            asked = [Prompt(id=f"p{i}", text=f"MARK prompt {i}", user="u") for i in range(10)]
            queue_prompts(connection, "demonstration", asked)
            for i in range(10):
                mine = assignment.next_task(connection, lena)
                body = {"completion": f"MARK answer {i} " + "y" * 2000}
                assignment.submit(connection, lena, mine, body, f"{i:020d}")


def holding(folder: Path, text: bytes = b"MARK") -> list[str]:
    return [path.name for path in folder.iterdir() if text in path.read_bytes()]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_erased_is_erased_at_once_and_however_the_server_ends(tmp_path: Path, end: signal.Signals) -> None:
    folder = tmp_path / "w"
    with_texts(folder)
    assert holding(folder)
    with serving(folder) as (url, server), httpx.Client(base_url=url, timeout=PATIENCE) as web:
        web.post("/sign-in", data={"name": "Olga", "password": PASSWORD})
        assert web.post("/prompts/erase-user", data={"user": "u", "sure": "yes"}).status_code == 303
        assert holding(folder) == []
        server.send_signal(end)
        assert server.wait(60) == (-9 if end == signal.SIGKILL else 0)
    assert holding(folder) == []
    if end != signal.SIGKILL:
        assert not (folder / "labeling.db-wal").exists()  # the workspace was closed


def test_erased_by_a_process_that_died_is_erased_at_the_next_opening(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    with_texts(folder)
    script = """
import os, sys
from pathlib import Path
from tutelage.labeling.store.database import existing_workspace
from tutelage.labeling.store.prompts import erase_user
workspace = existing_workspace(Path(sys.argv[1]))
with workspace.write() as connection:
    erase_user(connection, "u")
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script, str(folder)], check=False).returncode == 9
    assert "labeling.db" in holding(folder)
    with closing(open_workspace(folder)):
        assert holding(folder) == []


def test_texts_that_a_reader_keeps_are_told_of_and_go_after_the_reading(
    sqlite: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By page, they go with the next write; by command, it waits for the reading to end."""
    monkeypatch.setattr(database, "BUSY_MILLISECONDS", 100)
    asked = [Prompt(id=f"p{user}", text=f"MARK prompt of {user}", user=user) for user in ("u", "v")]
    add(sqlite, "Olga", "owner")
    with sqlite.write() as connection:
        queue_prompts(connection, "demonstration", asked)
    browser = TestClient(create_app(sqlite))
    browser.post("/sign-in", data={"name": "Olga", "password": PASSWORD})
    words = "Texts that were erased may still be"
    with sqlite.read() as reading:
        accounts.whose_session(reading, "x")
        assert words in browser.post("/prompts/erase-user", data={"user": "u", "sure": "yes"}).text
        add(sqlite, "Lena")
        assert words in browser.get("/prompts").text
        assert "labeling.db-wal" in holding(sqlite.folder, b"of u")
    add(sqlite, "Lea")
    assert holding(sqlite.folder, b"of u") == []
    assert words not in browser.get("/prompts").text
    with sqlite.read() as reading:
        accounts.whose_session(reading, "x")
        eraser = threading.Thread(target=main, args=[["label", "erase", str(sqlite.folder), "--user", "v"]])
        eraser.start()
        eraser.join(3)
        assert eraser.is_alive()
        assert "1 prompts erased" in (output := capsys.readouterr().out)
        assert "somebody is reading the database" in output
        assert holding(sqlite.folder, b"of v")
    eraser.join(30)
    assert holding(sqlite.folder, b"of v") == []


def test_a_reader_does_not_keep_erased_texts_for_good(sqlite: Workspace) -> None:
    """While somebody reads, the log cannot be emptied; erasing waits for them."""
    lena = add(sqlite, "Lena")
    with sqlite.write() as connection:
        asked = [Prompt(id="p", text="MARK prompt", user="u")]
        queue_prompts(connection, "demonstration", asked)
        assert assignment.next_task(connection, lena)
    with sqlite.read() as reading:
        accounts.whose_session(reading, "x")
        eraser = subprocess.Popen(
            [sys.executable, "-m", "tutelage", "label", "erase", str(sqlite.folder), "--user", "u"],
            stdout=subprocess.DEVNULL,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            eraser.wait(6)
    assert eraser.wait(30) == 0
    assert holding(sqlite.folder) == []
