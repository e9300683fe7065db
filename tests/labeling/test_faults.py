"""Faults under a server at work, and under every command: no acknowledged label is lost, and nobody meets a traceback.

Full disks are small file systems in memory, which need root: a visible skip elsewhere.
"""

from __future__ import annotations

import json
import logging
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from sqlalchemy import event, select
from starlette.testclient import TestClient

from tutelage.cli import main
from tutelage.data.records import Completion, Prompt
from tutelage.labeling.store import accounts, assignment, exchange, schema
from tutelage.labeling.store.accounts import NewPerson
from tutelage.labeling.store.database import Workspace, existing_workspace, open_workspace
from tutelage.labeling.store.engines import Unavailable
from tutelage.labeling.store.instructions import ensure_instructions
from tutelage.labeling.store.tasks import queue_prompts, queue_rankings
from tutelage.labeling.web import security
from tutelage.labeling.web.app import Printable, create_app

from .conftest import PASSWORD, PATIENCE, add, free_port
from .test_durability import Client, number, stored

LABELERS = 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A maker of small file systems, of a size such as 2m; the same again makes it as large as is said."""
    place = tmp_path / "disk"

    def make(size: str) -> Path:
        options = f"{'remount,' if place.is_mount() else ''}size={size}"
        place.mkdir(exist_ok=True)
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True)
        if made.returncode:
            pytest.skip(f"a small file system needs root: {made.stderr.decode().strip()}")
        return place

    yield make
    if place.is_mount():
        subprocess.run(["umount", "--lazy", str(place)], check=True)


class Patient(Client):
    """Goes on after an outage, and sends again what was not acknowledged."""

    outages = 0
    stop = False

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as web:
            self.until(web, "/sign-in", {"name": self.person, "password": PASSWORD})
            while not self.stop:
                place = self.until(web, "/next", {}).headers["location"]
                try:
                    page = web.get(place)
                except httpx.TransportError:
                    continue
                if page.status_code == 200:
                    key = re.search(r'name="key" value="([^"]+)"', page.text)
                    form = {"key": key[1], "rank_1": "1", "rank_2": "2", "rank_3": "2"}
                    self.until(web, f"{place}/submit", form)
                    self.acknowledged.append(place)

    def until(self, web: httpx.Client, place: str, form: dict[str, str]) -> httpx.Response:
        """Send until it is taken. A server that is restarted breaks connections."""
        while True:
            try:
                reply = web.post(place, data=form)
            except httpx.TransportError:
                reply = None
            if reply is not None and reply.status_code == 303:
                return reply
            if reply is not None and reply.status_code != 503:
                self.surprises.append(f"{place}: {reply.status_code} {reply.text[:200]}")
            self.outages += 1
            time.sleep(0.05)


@contextmanager
def serving(folder: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tutelage", "label", "serve", str(folder), "--port", str(port)]
    with log.open("ab") as stream:
        server = subprocess.Popen(command, stderr=stream)
    try:
        for _ in range(900):
            assert server.poll() is None
            try:
                httpx.get(f"http://127.0.0.1:{port}/sign-in")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield server
    finally:
        server.kill()
        server.wait()


def to_rank(folder: Path, prompts: int) -> None:
    """A workspace with labelers and rankings for them."""
    with closing(open_workspace(folder)) as workspace:
        texts = [Completion(text=text) for text in ("one", "two", "three")]
        with workspace.write() as connection:
            ensure_instructions(connection)
            asked = [(Prompt(id=f"p{i}", text=f"q{i}"), texts) for i in range(prompts)]
            queue_rankings(connection, asked, rate=False)
        for i in range(LABELERS):
            add(workspace, f"Labeler {i}")


def filled_up(disk: Path, free: int) -> Callable[[], None]:
    """Use up a disk but for some bytes."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as stream:  # others write meanwhile
        while (left := shutil.disk_usage(disk).free - free) > 0:
            stream.write(bytes(left))
    return ballast.unlink


def moved(path: Path) -> Callable[[], None]:
    aside = path.with_name(path.name + ".aside")
    path.rename(aside)
    return lambda: aside.rename(path) and None


def no_longer_files(server: subprocess.Popen[bytes], most: int) -> Callable[[], None]:
    """Let a process write no file beyond a length: SQLite sees an input/output error."""
    before = resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    return lambda: resource.prlimit(server.pid, resource.RLIMIT_FSIZE, before) and None


def stopped(server: subprocess.Popen[bytes]) -> Callable[[], None]:
    server.send_signal(signal.SIGSTOP)
    return lambda: server.send_signal(signal.SIGCONT)


def test_a_server_at_work(small_disk: Callable[[str], Path], tmp_path: Path) -> None:
    disk, log, port = small_disk("24m"), tmp_path / "log", free_port()
    folder = disk / "w"
    to_rank(folder, 3000)
    people = [Patient(f"Labeler {i}").at(f"http://127.0.0.1:{port}") for i in range(LABELERS)]

    def outages() -> int:
        return sum(person.outages for person in people)

    def go_on(more: int) -> None:
        wanted = sum(len(person.acknowledged) for person in people) + more
        until = time.monotonic() + 120
        while sum(len(person.acknowledged) for person in people) < wanted:
            assert all(person.is_alive() for person in people), [person.surprises for person in people]
            assert time.monotonic() < until, [person.surprises for person in people]
            time.sleep(0.01)

    with serving(folder, port, log) as server:
        for person in people:
            person.start()
        go_on(10)
        faults: list[Callable[[], Callable[[], None]]] = [
            *(lambda free=free: filled_up(disk, free) for free in (0, 0, 4096, 20_000, 100_000)),
            lambda: moved(folder),
            lambda: moved(folder / "labeling.db"),
            lambda: moved(folder / "secret.key"),
            *(lambda most=most: no_longer_files(server, most) for most in (0, 4096, 50_000)),
            lambda: stopped(server),
        ]  # fmt: skip
        for fault in faults:
            before = outages()
            undo = fault()
            time.sleep(0.7)
            undo()
            go_on(5)
            print(f"outages: {outages() - before}")
        assert outages() > 10
        server.send_signal(signal.SIGKILL)
        server.wait()
    for _ in range(2):
        with serving(folder, port, log) as server:
            go_on(10)
            server.send_signal(signal.SIGKILL)
            server.wait()
    with serving(folder, port, log):
        for person in people:
            person.stop = True
        for person in people:
            person.join(60)
    assert [person.surprises for person in people] == [[]] * LABELERS
    assert "Traceback" not in log.read_text()
    acknowledged = Counter(number(place) for person in people for place in person.acknowledged)
    with closing(open_workspace(folder)) as workspace:
        counted = Counter(stored(workspace))
    assert counted == acknowledged
    assert set(counted.values()) == {1}


@pytest.mark.parametrize("gone", ["folder", "database"])
def test_what_cannot_be_kept_is_not_acknowledged(gone: str, tmp_path: Path) -> None:
    """SQLite goes on writing into a deleted file; nobody is told that an answer was stored there."""
    folder, log, port = tmp_path / "w", tmp_path / "log", free_port()
    to_rank(folder, 50)
    with (
        serving(folder, port, log) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as web,
    ):
        web.post("/sign-in", data={"name": "Labeler 0", "password": PASSWORD})
        place = web.post("/next").headers["location"]
        key = re.search(r'name="key" value="([^"]+)"', web.get(place).text)
        form = {"key": key[1], "rank_1": "1", "rank_2": "2", "rank_3": "2"}
        if gone == "folder":
            shutil.rmtree(folder)
        else:
            (folder / "labeling.db").unlink()
        for method, address in (("POST", f"{place}/submit"), ("POST", "/next"), ("GET", "/"), ("POST", "/sign-in")):
            reply = web.request(method, address, data=form if method == "POST" else None)
            assert (reply.status_code, "nothing was stored" in reply.text) == (503, True), address
        server.terminate()
        assert server.wait(60) == 0
    assert "Traceback" not in log.read_text()
    assert "was deleted or replaced" in log.read_text()


def test_the_servers_log_tells_no_secrets(sqlite: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an outage it names page and cause: no answer, no link that lets somebody in, nothing a terminal obeys."""
    add(sqlite, "Ann")
    with sqlite.write() as connection:
        queue_prompts(connection, "demonstration", [Prompt(id="p", text="q")])
    lines: list[str] = []
    monkeypatch.setattr(security.log, "error", lines.append)
    browser = TestClient(create_app(sqlite), follow_redirects=False)
    browser.post("/sign-in", data={"name": "Ann", "password": PASSWORD})
    place = browser.post("/next", data={"kind": "demonstration"}).headers["location"]
    event.listen(sqlite.engine, "connect", lambda raw, _: raw.execute("PRAGMA max_page_count=1"))  # a full disk
    sqlite.engine.dispose()
    form = {"completion": "my private answer " * 9999, "key": "k" * 20}
    assert browser.post(f"{place}/submit", data=form).status_code == 503
    (sqlite.folder / "labeling.db").unlink()
    assert browser.get("/join/SECRETLINK%1b]0;OWNED%07").status_code == 503
    assert lines[0] == "POST /task/{number}/submit: database or disk is full"
    assert lines[1].startswith("GET /join/{token}: database: ")
    assert "SECRET" not in lines[1]
    assert "was deleted" in lines[1]
    assert Printable("%(message)s").format(logging.makeLogRecord({"msg": "a\x1b]0;OWNED\x07"})) == "a\\x1b]0;OWNED\\x07"


def test_deleted_while_it_is_written(sqlite: Workspace) -> None:
    def write() -> None:
        with sqlite.write() as connection:
            accounts.add_person(connection, sqlite, NewPerson("Ann"))
            (sqlite.folder / "labeling.db").unlink()

    with pytest.raises(Unavailable, match="was deleted"):
        write()


def test_a_log_deleted_under_a_server_is_noticed(sqlite: Workspace) -> None:
    """SQLite goes on writing into the deleted log: acknowledged there, work would be lost with the process."""
    with sqlite.write() as connection:
        accounts.add_person(connection, sqlite, NewPerson("Ann"))
    (sqlite.folder / "labeling.db-wal").unlink()
    for name in ("Ben", "Cid"):
        with pytest.raises(Unavailable, match="wal was deleted"), sqlite.write() as connection:
            accounts.add_person(connection, sqlite, NewPerson(name))
    sqlite.close()  # saves what the log held
    with closing(existing_workspace(sqlite.folder)) as again, again.read() as connection:
        assert set(connection.scalars(select(schema.people.c.name))) >= {"Ann"}


def in_one_line(capsys: pytest.CaptureFixture[str], *words: object) -> int:
    """Run a command: it succeeds, or says in one line why not."""
    capsys.readouterr()
    code = main(["label", *map(str, words)])
    told = capsys.readouterr().err
    assert (code, told.count("\n")) in ((0, 0), (2, 1)), told
    return code


@pytest.fixture
def commands(tmp_path: Path) -> Callable[[Path, Path], list[tuple[object, ...]]]:
    """Every command on a workspace, writing into a folder."""
    source = tmp_path / "rows.jsonl"
    row = {"completions": ["a" * 3000, "b"], "ranks": [1, 2], "labeler": "ann"}
    rows = [row | {"prompt": f"new {i} {'x' * 3000}", "user": f"u{i}"} for i in range(100)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def of(folder: Path, out: Path) -> list[tuple[object, ...]]:
        return [
            ("status", folder), ("invite", folder), ("export", folder, "--output", out / "export", "--table"),
            ("prompts", folder, source, "--no-personal-data"), ("queue", folder, source), ("import", folder, source),
            ("queue", folder, source, "--kind", "demonstration"), ("erase", folder, "--user", "u1"),
            ("backup", folder, out / "backup"), ("restore", out / "backup", out / "restored"),
        ]  # fmt: skip

    return of


def worked(folder: Path) -> None:
    """A workspace with two answers of 400,000 characters, and a prompt of user u1."""
    with closing(open_workspace(folder)) as workspace, workspace.write() as connection:
        ensure_instructions(connection)
        ann = accounts.add_person(connection, workspace, NewPerson("Ann"))
        asked = [Prompt(id=f"p{i}", text=f"{i} " + "y" * 400_000, user=f"u{i}") for i in range(2)]
        queue_prompts(connection, "demonstration", asked)
        for i in range(2):
            assignment.submit(connection, ann, assignment.next_task(connection, ann), {"completion": "z"}, f"{i:020d}")


def test_commands_on_a_full_disk(
    small_disk: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    commands: Callable[[Path, Path], list[tuple[object, ...]]],
) -> None:  # fmt: skip
    """The workspace's, or only the one that is written to; then all is as it was, and works once there is room."""
    disk = small_disk("8m")
    for folder, least in ((disk / "w", 5), (tmp_path / "w", 3)):
        worked(folder)
        refusals = 0
        for command in commands(folder, disk):
            free = filled_up(disk, 0)
            refusals += in_one_line(capsys, *command) == 2
            free()
            assert not list(disk.glob(".*"))
        assert refusals >= least
        assert not (disk / "restored").exists()
        with closing(open_workspace(folder)) as workspace:
            assert stored(workspace)[:2] == [1, 2]
        for command in commands(folder, tmp_path / f"out{least}"):
            (tmp_path / f"out{least}").mkdir(exist_ok=True)
            assert in_one_line(capsys, *command) in (0, 2)
        shutil.rmtree(folder)


def test_commands_on_a_disk_that_is_read_only(
    small_disk: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    commands: Callable[[Path, Path], list[tuple[object, ...]]],
) -> None:  # fmt: skip
    disk = small_disk("8m")
    worked(disk / "w")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    codes = [in_one_line(capsys, *command) for command in commands(disk / "w", disk)]
    assert codes == [2] * len(codes)
    assert in_one_line(capsys, "serve", disk / "new") == 2


@pytest.mark.parametrize("size", ["4k", "8k", "32k", "64k", "96k", "128k", "160k"])
def test_a_first_start_on_a_disk_that_is_too_small(
    size: str, small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is repeated once there is room."""
    folder = small_disk(size) / "w"
    with pytest.raises(ValueError, match="database: "):
        open_workspace(folder)
    small_disk("8m")
    with closing(open_workspace(folder)) as workspace:
        add(workspace, "Ann")


@pytest.mark.parametrize("jump", [-86400.0, -1.7e9, 30 * 86400.0, 2.3e9, 1e12], ids=str)
def test_a_clock_that_jumps(jump: float, sqlite: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Back by a day, to 1970, forward beyond all leases, sessions and years: nothing is lost, the newest counts."""
    ann = add(sqlite, "Ann", "owner")
    with sqlite.write() as connection:
        queue_prompts(connection, "demonstration", [Prompt(id=f"p{i}", text=f"q{i}") for i in range(3)])
    browser = TestClient(create_app(sqlite), follow_redirects=False)

    def sign_in() -> None:
        assert browser.post("/sign-in", data={"name": "Ann", "password": PASSWORD}).status_code == 303

    sign_in()
    place = browser.post("/next", data={"kind": "demonstration"}).headers["location"]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    sign_in()
    for act, text in (("submit", "first"), ("correct", "second")):
        form = {"completion": text, "key": (act + "k" * 20)}
        assert browser.post(f"{place}/{act}", data=form).status_code == 303
    monkeypatch.setattr(time, "time", real)
    sign_in()
    browser.post(f"{place}/correct", data={"completion": "third", "key": "t" * 20})
    pages = ("/", "/mine", place, "/people", f"/people/{ann}", "/prompts", "/review", "/agreement", "/audit")
    for page in pages:
        assert browser.get(page).status_code == 200, page
    assert browser.get("/agreement/days.svg").status_code in (200, 404)  # no day, if no answer took any time
    exchange.export(sqlite, tmp_path / "out", table=True)
    assert '"third"' in (tmp_path / "out" / "demonstrations.jsonl").read_text()
    assert len(stored(sqlite)) == 3
