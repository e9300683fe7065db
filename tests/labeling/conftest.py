"""Real things for the labeling tests: SQLite and PostgreSQL workspaces, a running server, Chromium.

A missing PostgreSQL or Chromium is a visible skip, and an error where `CI` is set.
`apt-get install chromium postgresql` brings both.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import create_engine, text

from tutelage.labeling.store import accounts
from tutelage.labeling.store.accounts import NewPerson
from tutelage.labeling.store.database import Workspace, open_workspace
from tutelage.labeling.store.instructions import ensure_instructions
from tutelage.labeling.web.app import create_app

PASSWORD = "correct horse battery"
PATIENCE = 60.0  # seconds for a server to answer, as the machine may be busy with other tests


def missing(what: str) -> None:
    message = f"{what} is not installed: apt-get install chromium postgresql"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL server of our own."""

    url: str
    restart: Callable[[str], None]  # by a mode of pg_ctl: fast ends all connections, immediate is a crash


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL on loopback, without durability (it dies with the tests)."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = str(found[-1]) if found else shutil.which("initdb")
    if initdb is None:
        missing("PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="tutelage-postgres-"))  # pytest's own folders are closed to other users
    user = None
    if os.geteuid() == 0:  # it refuses to run as root
        user = "postgres"
        shutil.chown(folder, user)
    home = folder / "cluster"
    port = free_port()
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(folder)}

    def run(program: str, *arguments: str) -> None:
        command = [str(Path(initdb).with_name(program)), *arguments]
        subprocess.run(command, check=True, user=user, cwd=folder, env=environment, stdout=subprocess.DEVNULL)

    run("initdb", "--pgdata", str(home), "--username", "tutelage", "--auth", "trust", "--encoding", "UTF8", "--no-sync")
    options = (
        f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories= -c fsync=off -c max_connections=200"
    )
    run("pg_ctl", "--pgdata", str(home), "--log", str(folder / "log"), "--wait", "--options", options, "start")

    def restart(mode: str) -> None:
        run("pg_ctl", "--pgdata", str(home), "--mode", mode, "--wait", "stop")
        run("pg_ctl", "--pgdata", str(home), "--log", str(folder / "log"), "--wait", "--options", options, "start")

    try:
        yield Postgres(f"postgresql+psycopg://tutelage@127.0.0.1:{port}", restart)
    finally:
        run("pg_ctl", "--pgdata", str(home), "--mode", "immediate", "--wait", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def new_database(postgres: Postgres) -> Callable[[], str]:
    """A maker of empty PostgreSQL databases' URLs."""
    made = 0

    def make() -> str:
        nonlocal made
        made += 1
        name = f"test{made}"
        engine = create_engine(f"{postgres.url}/postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return f"{postgres.url}/{name}"

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workspace]:
    """An empty workspace, on each database."""
    url = None if request.param == "sqlite" else request.getfixturevalue("new_database")()
    opened = open_workspace(tmp_path / "workspace", url)
    with opened.write() as connection:
        ensure_instructions(connection)
    yield opened
    opened.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Workspace]:
    """An empty workspace on SQLite, for what has nothing to do with the database."""
    opened = open_workspace(tmp_path / "workspace")
    with opened.write() as connection:
        ensure_instructions(connection)
    yield opened
    opened.close()


def add(workspace: Workspace, name: str, role: str = "labeler", arm: str = "training", status: str = "working") -> int:
    """A person with `PASSWORD`; returns their id."""
    with workspace.write() as connection:
        return accounts.add_person(connection, workspace, NewPerson(name, role, arm, status, password=PASSWORD))


def session_of(workspace: Workspace, person: int) -> str:
    """A session's token, as the cookie holds it."""
    with workspace.write() as connection:
        return accounts.start_session(connection, person)


class Server:
    """An application on a loopback port, in a thread."""

    def __init__(self, app: FastAPI) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        settings = uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="warning", server_header=False)
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)


@pytest.fixture
def serve() -> Iterator[Callable[[Workspace], Server]]:
    """A starter of servers, all stopped at the end."""
    running: list[Server] = []

    def start(workspace: Workspace) -> Server:
        running.append(Server(create_app(workspace)).__enter__())
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Debian's Chromium, headless."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        missing("Chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()
