"""Who is paused or declined is out: nothing to read, nothing to send, no way in; what they did is kept and marked."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from tutelage.data.records import Prompt
from tutelage.labeling.store import accounts, assignment, exchange
from tutelage.labeling.store.database import Workspace
from tutelage.labeling.store.schema import answers, assignments, events, invites, people
from tutelage.labeling.store.tasks import queue_prompts
from tutelage.labeling.web.app import create_app

from .conftest import PASSWORD, add
from .test_security import MATRIX, filled_in

SAID = "Your work here is paused."
Client = Callable[[str], TestClient]


@pytest.fixture
def ids(workspace: Workspace) -> dict[str, int]:
    """Olga owns, Rafi reviews, Lena labels; three demonstrations are asked for."""
    with workspace.write() as connection:
        queue_prompts(connection, "demonstration", [Prompt(id=f"p{i}", text=f"q{i}") for i in range(3)])
    return {name: add(workspace, name, role) for name, role in
            (("Olga", "owner"), ("Rafi", "reviewer"), ("Lena", "labeler"))}  # fmt: skip


@pytest.fixture
def client(workspace: Workspace, ids: dict[str, int]) -> Client:
    """A maker of clients who have signed in."""
    app = create_app(workspace)

    def come(name: str) -> TestClient:
        browser = TestClient(app, follow_redirects=False)
        assert sign_in(browser, name).status_code == 303
        return browser

    return come


def sign_in(browser: TestClient, name: str) -> Any:
    return browser.post("/sign-in", data={"name": name, "password": PASSWORD})


def write(browser: TestClient, text: str) -> str:
    """Lease a demonstration and write it; its address."""
    place = browser.post("/next", data={"kind": "demonstration"}).headers["location"]
    form = {"completion": text, "key": place[6:] + "k" * 20}
    assert browser.post(f"{place}/submit", data=form).status_code == 303
    return place


def everything(workspace: Workspace) -> list[Any]:
    with workspace.read() as connection:
        return [connection.execute(select(table)).all() for table in (answers, assignments, events)]


def test_every_page_is_closed(workspace: Workspace, client: Client, ids: dict[str, int]) -> None:
    """A session from before, on every address that asks who is there, for each role; nothing is written."""
    first = write(client("Lena"), "good")
    browsers = {name: client(name) for name in ("Rafi", "Lena")}
    for name in browsers:
        with workspace.write() as connection:
            accounts.change_person(connection, ids[name], ids["Olga"], status="paused")
    before = everything(workspace)
    for place in MATRIX:
        method, path = place.split()
        if path.split("/")[1] in ("sign-in", "join", "static"):
            continue
        for browser in browsers.values():
            for address in {filled_in(path), filled_in(path).replace("/task/9", first)}:
                reply = browser.request(method, address, data={"completion": "POISON", "key": "m" * 20})
                assert (reply.status_code, SAID in reply.text) == (403, True), (place, reply.status_code)
                assert "good" not in reply.text
    assert everything(workspace) == before


def test_no_way_in(workspace: Workspace, client: Client, ids: dict[str, int]) -> None:
    """Neither by password nor by a link for a new one; the wrong password tells nothing."""
    owner = client("Olga")
    link = owner.post(f"/people/{ids['Lena']}/password").text
    token = re.search(r"/join/([A-Za-z0-9_-]+)", link)
    owner.post(f"/people/{ids['Lena']}/screening", data={"decision": "decline"})
    stranger = TestClient(client("Olga").app, follow_redirects=False)
    refused = sign_in(stranger, "Lena")
    assert (refused.status_code, SAID in refused.text) == (403, True)
    wrong = stranger.post("/sign-in", data={"name": "Lena", "password": "not hers at all"})
    assert SAID not in wrong.text
    joined = stranger.post(f"/join/{token[1]}", data={"password": "another password"})
    assert (joined.status_code, SAID in joined.text) == (400, True)
    assert not stranger.cookies
    owner.post(f"/people/{ids['Lena']}", data={"status": "working"})
    assert sign_in(stranger, "Lena").status_code == 303  # with the old password


def test_a_pause_between_check_and_write(workspace: Workspace, ids: dict[str, int]) -> None:
    """A page asks who is there in one transaction and writes in the next; the second asks again."""
    with workspace.write() as connection:
        mine = assignment.next_task(connection, ids["Lena"])
        accounts.change_person(connection, ids["Lena"], ids["Olga"], status="paused")
    acts = [
        lambda c: assignment.submit(c, ids["Lena"], mine, {"completion": "late"}, "k" * 20),
        lambda c: assignment.save_draft(c, ids["Lena"], mine, {"completion": "late"}),
        lambda c: assignment.skip(c, ids["Lena"], mine, "other"),
        lambda c: assignment.show(c, ids["Lena"], mine),
    ]
    for act in acts:
        with pytest.raises(accounts.Paused), workspace.write() as connection:
            act(connection)
    with workspace.write() as connection:
        accounts.change_person(connection, ids["Lena"], ids["Olga"], status="working")
        assert assignment.next_task(connection, ids["Lena"]) == mine  # the lease has waited


def test_what_they_did_is_kept_and_marked(
    workspace: Workspace, client: Client, ids: dict[str, int], tmp_path: Path
) -> None:
    write(client("Lena"), "from Lena")
    with workspace.write() as connection:
        accounts.change_person(connection, ids["Lena"], ids["Olga"], status="paused")
    imported = {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "elsewhere"}
    (tmp_path / "r.jsonl").write_text(json.dumps(imported) + "\n")
    exchange.import_rankings(workspace, str(tmp_path / "r.jsonl"))
    exchange.export(workspace, tmp_path / "out", table=True)
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "demonstrations.jsonl").read_text().splitlines()]
    assert (row["completion"], row["paused"]) == ("from Lena", True)
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "rankings.jsonl").read_text().splitlines()]
    assert "paused" not in row  # they cannot sign in, but nobody has paused them
    with (tmp_path / "out" / "answers.csv").open(newline="") as stream:
        assert [r["paused"] for r in csv.DictReader(stream)] == ["", "", "yes"]
    page = client("Rafi").get("/review").text
    assert re.search(r"<bdi>Lena</bdi> <span class=\"tag\">paused</span>", page)


def test_an_owner_who_can_sign_in_remains(workspace: Workspace, client: Client, ids: dict[str, int]) -> None:
    owner = client("Olga")
    assert owner.post(f"/people/{ids['Olga']}", data={"status": "paused"}).status_code == 400
    assert owner.post(f"/people/{ids['Olga']}/screening", data={"decision": "decline"}).status_code == 400
    add(workspace, "Otto", "owner", status="paused")
    assert owner.post(f"/people/{ids['Olga']}", data={"role": "labeler"}).status_code == 400
    with workspace.write() as connection:
        assert accounts.owner_link(connection) is None
        connection.execute(people.update().values(status="paused"))  # as an earlier version let happen
        assert accounts.owner_link(connection) is not None


def test_nobody_is_invited_paused(workspace: Workspace, client: Client) -> None:
    chosen = {"role": "labeler", "arm": "training", "status": "paused"}
    assert client("Olga").post("/people/invite", data=chosen).status_code == 400
    with workspace.read() as connection:
        assert connection.execute(select(invites)).all() == []
