"""Accounts on both databases: links, passwords, sessions, waiting after failures, and what an owner may change."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pwdlib import PasswordHash
from sqlalchemy import func, insert, select

from tutelage.data.records import Prompt
from tutelage.labeling.store import accounts, assignment
from tutelage.labeling.store.accounts import FAILURE_SECONDS, FAILURES, LINK_SECONDS, SESSION_SECONDS, NewPerson
from tutelage.labeling.store.database import Workspace
from tutelage.labeling.store.prompts import add_prompts
from tutelage.labeling.store.schema import events, invites, metadata, people, sessions
from tutelage.labeling.store.tasks import Terms, add_task

from .conftest import PASSWORD, add

NOW = 1_700_000_000.0


def rows(workspace: Workspace, query: Any) -> list[Any]:
    with workspace.read() as connection:
        return list(connection.execute(query).all())


def invite(workspace: Workspace, **options: Any) -> str:
    with workspace.write() as connection:
        return accounts.invite(connection, now=NOW, **options)


def join(workspace: Workspace, token: str, name: str = "Nora", password: str = PASSWORD, now: float = NOW) -> int:
    with workspace.write() as connection:
        return accounts.join(connection, workspace, token, name, password, ("health", "nonsense"), now)


def whose(workspace: Workspace, token: str, now: float | None = None) -> Any:
    with workspace.read() as connection:
        return accounts.whose_session(connection, token, now)


def check(workspace: Workspace, name: str, password: str, address: str = "10.0.0.1", now: float = NOW) -> int | None:
    with workspace.read() as connection:
        return accounts.check_password(connection, workspace, name, password, address, now)


def fail(workspace: Workspace, name: str, times: int, address: str = "10.0.0.1", now: float = NOW) -> None:
    with workspace.write() as connection:
        for _ in range(times):
            accounts.record_failure(connection, workspace, name, address, now)


def kinds(workspace: Workspace) -> list[str]:
    return [row.kind for row in rows(workspace, select(events.c.kind).order_by(events.c.id))][4:]  # less instructions


# Links


def test_link_makes_the_person_it_was_made_for(workspace: Workspace) -> None:
    token = invite(workspace, role="reviewer", arm="heldout", status="screening")
    new = join(workspace, token, "  Nora   B. ")
    row = rows(workspace, select(people))[0]
    assert (row.id, row.name, row.sign_in, row.role, row.arm, row.status, row.areas) == (
        new, "Nora B.", "nora b.", "reviewer", "heldout", "screening", ["health"],
    )  # fmt: skip
    assert kinds(workspace) == ["invited", "joined"]


def test_link_works_once(workspace: Workspace) -> None:
    token = invite(workspace)
    join(workspace, token)
    with pytest.raises(LookupError, match="used already"):
        join(workspace, token, "Nils")
    assert len(rows(workspace, select(people))) == 1


def test_link_is_not_used_up_by_a_mistake(workspace: Workspace) -> None:
    token = invite(workspace)
    with pytest.raises(ValueError, match="password"):
        join(workspace, token, password="short")
    assert join(workspace, token)


@pytest.mark.parametrize(("after", "good"), [(LINK_SECONDS - 1, True), (LINK_SECONDS, False)])
def test_link_expires(workspace: Workspace, after: float, good: bool) -> None:
    token = invite(workspace)
    with workspace.read() as connection:
        assert (accounts.open_invite(connection, token, NOW + after) is not None) == good
    if not good:
        with pytest.raises(LookupError):
            join(workspace, token, now=NOW + after)


def test_links_are_random_and_stored_hashed(workspace: Workspace) -> None:
    tokens = {invite(workspace) for _ in range(20)}
    assert len(tokens) == 20
    assert all(re.fullmatch(r"[\w-]{43}", token) for token in tokens)  # 256 bits in base 64
    stored = {row.token_hash for row in rows(workspace, select(invites))}
    assert len(stored) == 20
    assert not stored & tokens
    whole = str([rows(workspace, select(table)) for table in metadata.sorted_tables])
    assert not [token for token in tokens if token in whole]


def test_link_for_a_new_password(workspace: Workspace) -> None:
    """It replaces the password and nothing else, ends all sessions, and earlier such links stop working."""
    tess = add(workspace, "Tess")
    before = rows(workspace, select(people))[0]
    with workspace.write() as connection:
        session = accounts.start_session(connection, tess)
    older, token = invite(workspace, role="owner", person=tess), invite(workspace, role="owner", person=tess)
    other = invite(workspace)
    assert join(workspace, token, "Somebody else", "another long one") == tess
    after = rows(workspace, select(people))[0]
    assert before._asdict() | {"password": None} == after._asdict() | {"password": None}
    assert (check(workspace, "Tess", PASSWORD), check(workspace, "Tess", "another long one")) == (None, tess)
    assert whose(workspace, session) is None
    with pytest.raises(LookupError):
        join(workspace, older, password="the old link's")
    assert join(workspace, other)


def test_revoked_link(workspace: Workspace) -> None:
    token, kept = invite(workspace), invite(workspace)
    with workspace.write() as connection:
        accounts.revoke_invite(connection, accounts.hash_token(token))
    with pytest.raises(LookupError):
        join(workspace, token)
    assert join(workspace, kept)
    assert kinds(workspace) == ["invited", "invited", "invite revoked", "joined"]
    for gone in (token, kept, "nothing"):
        with pytest.raises(LookupError, match="used or revoked"), workspace.write() as connection:
            accounts.revoke_invite(connection, accounts.hash_token(gone))


def test_first_owner(workspace: Workspace) -> None:
    with workspace.write() as connection:
        first, second = accounts.owner_link(connection), accounts.owner_link(connection)
        assert first is not None
        assert second is not None
        assert accounts.open_invite(connection, first) is None
        owner = accounts.join(connection, workspace, second, "Olga", PASSWORD)
        assert accounts.owner_link(connection) is None
    assert rows(workspace, select(people.c.id, people.c.role)) == [(owner, "owner")]


# Names and passwords


@pytest.mark.parametrize("name", ["", "   ", "n" * 81, "a\x00b", "a\u202eb", "a\x1bb", "\ud800", "a\u200bb"])
def test_name_refused(workspace: Workspace, name: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        add(workspace, name)


def test_names_differ_by_more_than_case(workspace: Workspace) -> None:
    add(workspace, "Straße")
    with pytest.raises(ValueError, match="taken"):
        add(workspace, "  STRASSE ")


@pytest.mark.parametrize(("length", "good"), [(7, False), (8, True), (200, True), (201, False)])
def test_length_of_a_password(length: int, good: bool) -> None:
    if good:
        assert accounts.hash_password("p" * length)
    else:
        with pytest.raises(ValueError, match="8 to 200"):
            accounts.hash_password("p" * length)


def test_passwords_are_argon2(workspace: Workspace) -> None:
    add(workspace, "Tess")
    add(workspace, "Tom")
    first, second = (row.password for row in rows(workspace, select(people)))
    assert first.startswith("$argon2id$")
    assert first != second  # salted
    assert PasswordHash.recommended().verify(PASSWORD, first)


def test_password_checked(workspace: Workspace) -> None:
    tess = add(workspace, "Tess")
    with workspace.write() as connection:
        accounts.add_person(connection, workspace, NewPerson("Simulated"))
    assert check(workspace, " tESS ", PASSWORD) == tess
    for name, password in (("Tess", "wrong horse"), ("Tom", PASSWORD), ("Simulated", ""), ("Simulated", PASSWORD)):
        assert check(workspace, name, password) is None


def test_an_unknown_name_costs_the_same_check(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time must not tell which names exist: argon2 is computed once either way."""
    add(workspace, "Tess")
    checked = []
    monkeypatch.setattr(accounts, "_passwords", type("Spy", (), {"verify": lambda _, *pair: checked.append(pair)})())
    check(workspace, "Tess", "wrong horse")
    check(workspace, "Nobody", "wrong horse")
    assert [hash.split("$")[1:4] for _, hash in checked] == [checked[0][1].split("$")[1:4]] * 2


# Waiting after failures


def test_a_name_has_to_wait_where_it_failed(workspace: Workspace) -> None:
    """Elsewhere it need not: a stranger who knows a name does not keep its owner out."""
    tess = add(workspace, "Tess")
    fail(workspace, "TESS", FAILURES - 1)
    assert check(workspace, "Tess", PASSWORD) == tess
    fail(workspace, "tess ", 1)
    with pytest.raises(accounts.TooOften, match="15 minutes"):
        check(workspace, "Tess", PASSWORD)
    assert check(workspace, "Tess", PASSWORD, "10.9.9.9") == tess
    assert check(workspace, "Tom", PASSWORD) is None  # others need not
    assert check(workspace, "Tess", PASSWORD, now=NOW + FAILURE_SECONDS) == tess


def test_a_name_has_to_wait_everywhere_in_the_end(workspace: Workspace) -> None:
    tess = add(workspace, "Tess")
    for i in range(5):
        assert check(workspace, "Tess", PASSWORD, "10.9.9.9") == tess
        fail(workspace, "Tess", FAILURES, f"10.0.0.{i}")
    with pytest.raises(accounts.TooOften):
        check(workspace, "Tess", PASSWORD, "10.9.9.9")


def test_an_address_has_to_wait(workspace: Workspace) -> None:
    tess = add(workspace, "Tess")
    for i in range(5 * FAILURES - 1):
        fail(workspace, f"name {i}", 1)
    assert check(workspace, "Tess", PASSWORD) == tess
    fail(workspace, "one more", 1)
    with pytest.raises(accounts.TooOften):
        check(workspace, "Tess", PASSWORD)
    assert check(workspace, "Tess", PASSWORD, "10.0.0.2") == tess


def test_failures_are_recorded_without_what_was_typed(workspace: Workspace) -> None:
    fail(workspace, "my secret password", 1, "10.0.0.77")
    stored = str(rows(workspace, select(events)))
    for typed in ("my secret password", "10.0.0.77"):
        assert typed not in stored
        assert accounts.hash_token(typed)[:12] not in stored  # nor what a list of common passwords would be found by


# Sessions


def test_sessions_end_one_by_one_or_all(workspace: Workspace) -> None:
    tess, tom = add(workspace, "Tess"), add(workspace, "Tom")
    with workspace.write() as connection:
        first, second = accounts.start_session(connection, tess), accounts.start_session(connection, tess)
        other = accounts.start_session(connection, tom)
        accounts.end_sessions(connection, tess, other)  # not hers to end
        accounts.end_sessions(connection, tess, first)
    assert whose(workspace, first) is None
    assert whose(workspace, second).name == "Tess"
    with workspace.write() as connection:
        accounts.end_sessions(connection, tess, by=tom)
    assert whose(workspace, second) is None
    assert whose(workspace, other).name == "Tom"
    last = rows(workspace, select(events).order_by(events.c.id.desc()).limit(1))[0]
    assert (last.kind, last.person, last.subject, last.detail) == ("signed out", tom, str(tess), {"all": True})


def test_sessions_expire_and_are_stored_hashed(workspace: Workspace) -> None:
    tess = add(workspace, "Tess")
    with workspace.write() as connection:
        token = accounts.start_session(connection, tess, NOW)
    assert whose(workspace, token, NOW + SESSION_SECONDS - 1).id == tess
    assert whose(workspace, token, NOW + SESSION_SECONDS) is None
    stored = rows(workspace, select(sessions.c.token_hash))[0][0]
    assert stored != token
    assert whose(workspace, stored, NOW) is None  # what a thief of the database has opens nothing


# What an owner may change


def answered(workspace: Workspace, person: int, purpose: str) -> None:
    prompt = Prompt(id=f"p-{purpose}", text="Why?")
    with workspace.write() as connection:
        add_prompts(connection, [prompt])
        add_task(connection, "labels", prompt, terms=Terms(purpose=purpose))
        mine = assignment.next_task(connection, person)
        assert mine is not None
        assignment.submit(connection, person, mine, {"use_case": "chat"}, f"key-{purpose}")


def test_arm_is_for_good_after_work(workspace: Workspace) -> None:
    """Screening is no work yet."""
    owner, sina = add(workspace, "Olga", "owner"), add(workspace, "Sina", status="screening")
    answered(workspace, sina, "screening")
    with workspace.write() as connection:
        accounts.change_person(connection, sina, owner, arm="heldout", status="working", scores=[1])
    answered(workspace, sina, "work")
    with pytest.raises(ValueError, match="for good"), workspace.write() as connection:
        accounts.change_person(connection, sina, owner, arm="training", status="paused")
    row = rows(workspace, select(people).where(people.c.id == sina))[0]
    assert (row.arm, row.status) == ("heldout", "working")
    changed = rows(workspace, select(events).where(events.c.kind == "changed"))
    assert [(e.person, e.subject, e.detail) for e in changed] == [
        (owner, str(sina), {"arm": "heldout", "status": "working", "scores": [1]})
    ]


def test_an_owner_remains(workspace: Workspace) -> None:
    olga = add(workspace, "Olga", "owner")
    with pytest.raises(ValueError, match="only owner"), workspace.write() as connection:
        accounts.change_person(connection, olga, olga, role="labeler")
    add(workspace, "Otto", "owner")
    with workspace.write() as connection:
        accounts.change_person(connection, olga, olga, role="labeler")
    assert [row.role for row in rows(workspace, select(people).order_by(people.c.id))] == ["labeler", "owner"]


def test_nothing_changed_nothing_recorded(workspace: Workspace) -> None:
    olga = add(workspace, "Olga", "owner")
    before = rows(workspace, select(func.count()).select_from(events))
    with workspace.write() as connection:
        accounts.change_person(connection, olga, olga, role="owner", arm="training")
    assert rows(workspace, select(func.count()).select_from(events)) == before
    with pytest.raises(LookupError), workspace.write() as connection:
        accounts.change_person(connection, 99, olga, role="owner")


def test_database_knows_the_words(workspace: Workspace) -> None:
    """What the functions let through by a mistake, the tables refuse."""
    row = dict(rows(workspace, select(people))[0]._mapping) if add(workspace, "Tess") else {}
    for column in ("role", "arm", "status"):
        wrong = row | {"id": 99, "sign_in": "x", "pseudonym": "x", column: "king"}
        with pytest.raises(Exception, match=r"(?i)check"), workspace.write() as connection:
            connection.execute(insert(people).values(wrong))
