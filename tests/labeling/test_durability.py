"""The real server, killed in the middle of people's work: what it acknowledged is there just once."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from tutelage.data.records import Completion, Prompt
from tutelage.labeling.store.database import Workspace, open_workspace
from tutelage.labeling.store.instructions import ensure_instructions
from tutelage.labeling.store.schema import answers, assignments, events, tasks
from tutelage.labeling.store.tasks import queue_rankings

from .conftest import PASSWORD, PATIENCE, Postgres, Server, add, free_port

LABELERS = 6
ENOUGH = 25  # acknowledged answers after which the server is killed


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`tutelage label serve` in a process of its own: its URL, and the process."""
    port = free_port()
    command = [sys.executable, "-m", "tutelage", "label", "serve", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            assert server.poll() is None
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.kill()
        server.wait()


class Client(threading.Thread):
    """A labeler who answers one task after the other until the connection breaks.

    `sent` holds every form by its task's address, before it is sent; `acknowledged` the addresses that the server took.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.person = name
        self.cookies: dict[str, str] = {}
        self.sent: dict[str, dict[str, str]] = {}
        self.acknowledged: list[str] = []
        self.surprises: list[str] = []

    def at(self, url: str) -> Client:
        self.url = url
        return self

    def run(self) -> None:
        with httpx.Client(base_url=self.url, cookies=self.cookies, timeout=PATIENCE) as web:
            try:
                if not self.cookies:
                    web.post("/sign-in", data={"name": self.person, "password": PASSWORD})
                    self.cookies = dict(web.cookies)
                while (place := web.post("/next").headers["location"]) != "/":
                    page = web.get(place).text
                    key = re.search(r'name="key" value="([^"]+)"', page)
                    self.sent[place] = {"key": key[1], "rank_1": "1", "rank_2": "2", "rank_3": "2"}
                    self.submit(web, place)
            except httpx.TransportError:
                pass  # the server is gone
            except Exception as error:
                self.surprises.append(repr(error))

    def submit(self, web: httpx.Client, place: str) -> None:
        answer = web.post(f"{place}/submit", data=self.sent[place])
        if answer.status_code == 303:
            self.acknowledged.append(place)
        else:
            self.surprises.append(f"{place}: {answer.status_code}")

    def send_again(self) -> None:
        """All that was sent, acknowledged or not."""
        with httpx.Client(base_url=self.url, cookies=self.cookies, timeout=PATIENCE) as web:
            for place in self.sent:
                self.submit(web, place)


def number(place: str) -> int:
    return int(place.rsplit("/", 1)[1])


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_acknowledged_answers_outlive_the_server(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    new: Callable[[], str] | None = None if database == "sqlite" else request.getfixturevalue("new_database")
    workspace = open_workspace(tmp_path / "w", new and new())
    texts = [Completion(text=text) for text in ("one", "two", "three")]
    with workspace.write() as connection:
        ensure_instructions(connection)
        asked = [(Prompt(id=f"p{i}", text=f"q{i}"), texts) for i in range(400)]
        queue_rankings(connection, asked, rate=False)
    people = [Client(f"Labeler {i}") for i in range(LABELERS)]
    for person in people:
        add(workspace, person.person)

    with serving(tmp_path / "w") as (url, server):
        for person in people:
            person.at(url).start()
        while sum(len(person.acknowledged) for person in people) < ENOUGH:
            assert any(person.is_alive() for person in people)
            time.sleep(0.001)
        os.kill(server.pid, signal.SIGKILL)
        for person in people:
            person.join(60)
    assert [person.surprises for person in people] == [[]] * LABELERS
    acknowledged = {number(place) for person in people for place in person.acknowledged}
    sent = {number(place) for person in people for place in person.sent}
    after_crash = stored(workspace)
    assert acknowledged <= set(after_crash) <= sent  # a few may have been stored without anybody being told

    with serving(tmp_path / "w") as (url, _):
        for person in people:
            person.at(url).send_again()
    assert [person.surprises for person in people] == [[]] * LABELERS
    counted = Counter(stored(workspace))
    assert counted == dict.fromkeys(sent, 1)
    with workspace.read() as connection:
        told = connection.execute(select(events.c.detail).where(events.c.kind == "submitted")).scalars()
        assert len({detail["answer"] for detail in told}) == len(sent)
        held = connection.execute(select(assignments.c.task)).scalars().all()
    assert max(Counter(held).values()) == 1  # no task was leased twice
    workspace.close()


def test_a_restarted_postgresql_costs_nobody_a_page(
    tmp_path: Path, postgres: Postgres, new_database: Callable[[], str], serve: Callable[[Workspace], Server]
) -> None:
    """It ends every connection twice, idle ones and those at work; people wait, and go on."""
    workspace = open_workspace(tmp_path / "w", new_database())
    texts = [Completion(text=text) for text in ("one", "two", "three")]
    with workspace.write() as connection:
        ensure_instructions(connection)
        asked = [(Prompt(id=f"p{i}", text=f"q{i}"), texts) for i in range(2000)]
        queue_rankings(connection, asked, rate=False)
    people = [Client(f"Labeler {i}") for i in range(4)]
    for person in people:
        add(workspace, person.person)
    server = serve(workspace)
    for person in people:
        person.at(server.url).start()

    def go_on(more: int) -> None:
        wanted = sum(len(person.acknowledged) for person in people) + more
        while sum(len(person.acknowledged) for person in people) < wanted:
            assert all(person.is_alive() for person in people), [person.surprises for person in people]
            time.sleep(0.01)

    go_on(10)
    for mode in ("fast", "immediate", "fast"):
        postgres.restart(mode)
        go_on(10)
    with workspace.write() as connection:
        connection.execute(tasks.update().values(open=False))  # that is all for today
    for person in people:
        person.join(60)
    assert [person.surprises for person in people] == [[]] * len(people)
    acknowledged = {number(place) for person in people for place in person.acknowledged}
    assert Counter(stored(workspace)) == dict.fromkeys(acknowledged, 1)
    workspace.close()


def stored(workspace: Workspace) -> list[int]:
    with workspace.read() as connection:
        return list(connection.execute(select(answers.c.assignment)).scalars())
