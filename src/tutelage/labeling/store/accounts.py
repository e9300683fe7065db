"""People who work here: one-time links, passwords, sessions, and what the owner may change about them.

Tokens are random and only their hashes are stored; passwords are argon2. Who fails too often has to wait. There is no
default account: the first link is printed when the server starts without an owner.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pwdlib import PasswordHash
from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select, update

from tutelage.data.records import Arm
from tutelage.labeling.store.answers import AREAS, Mistake
from tutelage.labeling.store.database import Workspace, record
from tutelage.labeling.store.prompts import ANSWERED
from tutelage.labeling.store.schema import assignments, events, invites, people, sessions, tasks

Role = Literal["owner", "reviewer", "labeler"]
Status = Literal["screening", "working", "paused"]
LINK_SECONDS = 7 * 86400.0
SESSION_SECONDS = 30 * 86400.0
# Sign-ins that may fail within FAILURE_SECONDS before one has to wait: of a name from one address; and five times as
# many of a name from anywhere, so that a stranger does not lock its owner out, or of an address.
FAILURES = 5
FAILURE_SECONDS = 900.0
PASSWORD_CHARACTERS = (8, 200)
NAME_CHARACTERS = 80
_passwords = PasswordHash.recommended()
_NOBODY = _passwords.hash(secrets.token_hex())  # checked when the name is unknown, so that it takes as long

# Imported labelers have the status too, as they do no work here; but nobody has paused them.
PAUSED = and_(people.c.status == "paused", people.c.password.is_not(None))
_UNUSED = select(invites, people.c.name).outerjoin(people).where(invites.c.used.is_(None))
_PERSON = select(people).where(people.c.id == bindparam("person"))
_WHOSE = (  # built once, as every request asks it
    select(people)
    .join(sessions)
    .where(sessions.c.token_hash == bindparam("token_hash"), sessions.c.expires > bindparam("now"))
)


@dataclass(frozen=True)
class NewPerson:
    """Somebody to add. Without a password they cannot sign in (imported and simulated labelers)."""

    name: str
    role: Role = "labeler"
    arm: Arm = "training"
    status: Status = "working"
    password: str | None = None
    pseudonym: str | None = None  # what exports call them; made from the name if left out
    areas: tuple[str, ...] = ()  # of sensitive content that they feel able to judge


class TooOften(Mistake):
    """Too many failed sign-ins; wait."""


class Paused(Mistake):
    """This person may do and read nothing here for now."""

    def __init__(self) -> None:
        super().__init__(
            "Your work here is paused. What you have answered is kept. The owner of this workspace can tell you more."
        )


def hash_token(token: str) -> str:
    """What is stored of a link or a session: tokens are 256 random bits, so a plain hash is enough."""
    return hashlib.sha256(token.encode()).hexdigest()


def invite(
    connection: Connection, role: Role = "labeler", arm: Arm = "training", status: Status = "working", *,
    person: int | None = None, by: int | None = None, now: float | None = None,
) -> str:  # fmt: skip
    """A token for a one-time link, valid a week: to join, or for somebody who is there, to set a new password."""
    now = time.time() if now is None else now
    token = secrets.token_urlsafe(32)
    connection.execute(
        insert(invites).values(
            token_hash=hash_token(token), role=role, arm=arm, status=status, person=person, created=now,
            expires=now + LINK_SECONDS,
        )
    )  # fmt: skip
    record(connection, "invited", person=by, subject=person, now=now, role=role, arm=arm, status=status)
    return token


def pending_invites(connection: Connection) -> Sequence[Any]:
    """Links that still work, the newest first, each with the `name` of the person it is for, if any."""
    pending = _UNUSED.where(invites.c.expires > time.time()).order_by(invites.c.created.desc())
    return connection.execute(pending).all()


def revoke_invite(connection: Connection, token_hash: str, by: int | None = None) -> None:
    """Make a link that was not used yet useless.

    Raises:
        LookupError: if there is none with this hash.
    """
    unused = delete(invites).where(invites.c.token_hash == token_hash, invites.c.used.is_(None))
    gone = connection.execute(unused.returning(invites.c.person, invites.c.role)).first()
    if gone is None:
        raise LookupError("this link was used or revoked already")
    record(connection, "invite revoked", person=by, subject=gone.person, role=gone.role)


def owner_link(connection: Connection) -> str | None:
    """A token for the first owner if nobody can sign in as one yet; earlier ones stop working."""
    if _owners(connection):
        return None
    connection.execute(delete(invites).where(invites.c.role == "owner", invites.c.used.is_(None)))
    return invite(connection, "owner")


def open_invite(connection: Connection, token: str, now: float | None = None) -> Any:
    """The invitation of a link that is still good, with the `name` of the person it is for, if any; else None."""
    row = connection.execute(_UNUSED.where(invites.c.token_hash == hash_token(token))).first()
    return row if row is not None and row.expires > (time.time() if now is None else now) else None


def add_person(connection: Connection, workspace: Workspace, new: NewPerson, now: float | None = None) -> int:
    """Add somebody; returns their id.

    Raises:
        Mistake: if the name is empty, too long, holds control characters or is taken, or the password is too short.
    """
    name = " ".join(new.name.split())
    if not 0 < len(name) <= NAME_CHARACTERS or not name.isprintable():
        raise Mistake(f"name: 1 to {NAME_CHARACTERS} printable characters, please")
    if person_named(connection, name):
        raise Mistake(f"name: {name!r} is taken; choose another")
    standing = {"role": new.role, "arm": new.arm, "status": new.status}
    row = standing | {
        "name": name, "sign_in": sign_in_name(name), "areas": [area for area in new.areas if area in AREAS],
        "pseudonym": new.pseudonym or workspace.pseudonym("labeler", sign_in_name(name)),
        "password": None if new.password is None else hash_password(new.password),
        "created": time.time() if now is None else now,
    }  # fmt: skip
    person = connection.execute(insert(people).returning(people.c.id), row).scalar_one()
    record(connection, "joined", person=person, now=now, **standing)
    return person


def everybody(connection: Connection) -> Sequence[Any]:
    """The rows of all people, by name."""
    return connection.execute(select(people).order_by(people.c.sign_in)).all()


def person_of(connection: Connection, person: int) -> Any:
    """The row of the person with this id.

    Raises:
        LookupError: if there is no such person.
    """
    row = connection.execute(_PERSON, {"person": person}).first()
    if row is None:
        raise LookupError(f"no person {person}")
    return row


def person_named(connection: Connection, name: str) -> Any:
    """The row of the person who signs in by this name, or None."""
    return connection.execute(select(people).where(people.c.sign_in == sign_in_name(name))).first()


def paused_names(connection: Connection) -> set[str]:
    """The names of those whom the owner has paused."""
    return set(connection.execute(select(people.c.name).where(PAUSED)).scalars())


def sign_in_name(name: str) -> str:
    """What a name is compared by: case and spacing do not tell people apart."""
    return " ".join(name.split()).casefold()


def hash_password(password: str) -> str:
    """argon2 of a password.

    Raises:
        Mistake: if it is too short or too long.
    """
    least, most = PASSWORD_CHARACTERS
    if not least <= len(password) <= most:
        raise Mistake(f"password: {least} to {most} characters, please")
    return _passwords.hash(password)


def join(
    connection: Connection, workspace: Workspace, token: str, name: str, password: str,
    areas: tuple[str, ...] = (), now: float | None = None,
) -> int:  # fmt: skip
    """Use a link: become the person it invites, or give the person it is for a new password. Returns their id.

    Raises:
        LookupError: if the link is unknown, used or too old.
        Mistake: as `add_person`.
    """
    now = time.time() if now is None else now
    link = open_invite(connection, token, now)
    if link is None:
        raise LookupError("this link was used already or is too old; ask for a new one")
    if link.person is None:
        new = NewPerson(name, link.role, link.arm, link.status, password, areas=areas)
        person = add_person(connection, workspace, new, now)
    else:
        person = link.person
        connection.execute(update(people).where(people.c.id == person).values(password=hash_password(password)))
        connection.execute(delete(sessions).where(sessions.c.person == person))
        others = and_(invites.c.person == person, invites.c.used.is_(None), invites.c.token_hash != link.token_hash)
        connection.execute(delete(invites).where(others))  # an older link must not undo this
        record(connection, "password set", person=person, now=now)
    connection.execute(update(invites).where(invites.c.token_hash == link.token_hash).values(used=now))
    return person


def check_password(
    connection: Connection, workspace: Workspace, name: str, password: str, address: str, now: float | None = None
) -> int | None:
    """The id of whose name and password these are, else None. Only reads: the caller records a failure.

    Raises:
        TooOften: if this name from this address, this name or this address has failed too often.
    """
    now = time.time() if now is None else now
    for subject, limit in failure_limits(workspace, name, address).items():
        failed = select(func.count()).where(
            events.c.kind == "sign-in failed", events.c.subject == subject, events.c.at > now - FAILURE_SECONDS
        )
        if connection.execute(failed).scalar_one() >= limit:
            raise TooOften(f"too many failed attempts; wait {FAILURE_SECONDS / 60:.0f} minutes")
    who = person_named(connection, name)
    right = _passwords.verify(password[: PASSWORD_CHARACTERS[1]], who.password if who and who.password else _NOBODY)
    return who.id if right and who and who.password else None


def failure_limits(workspace: Workspace, name: str, address: str) -> dict[str, int]:
    """What a failed sign-in is recorded under, each with how many may fail.

    Keyed by the workspace's secret: people type passwords into the wrong field, and a plain hash of one can be guessed.
    """
    sign_in = sign_in_name(name)
    return {
        workspace.pseudonym("name and address", f"{sign_in}/{address}"): FAILURES,
        workspace.pseudonym("name", sign_in): 5 * FAILURES,
        workspace.pseudonym("address", address): 5 * FAILURES,
    }


def record_failure(
    connection: Connection, workspace: Workspace, name: str, address: str, now: float | None = None
) -> None:
    """Note a failed sign-in of a name from an address."""
    for subject in failure_limits(workspace, name, address):
        record(connection, "sign-in failed", subject=subject, now=now)


def start_session(connection: Connection, person: int, now: float | None = None) -> str:
    """A session's token, for a cookie.

    Raises:
        Paused: if this person is paused.
    """
    now = time.time() if now is None else now
    if person_of(connection, person).status == "paused":
        raise Paused
    token = secrets.token_urlsafe(32)
    connection.execute(
        insert(sessions).values(token_hash=hash_token(token), person=person, created=now, expires=now + SESSION_SECONDS)
    )
    record(connection, "signed in", person=person, now=now)
    return token


def whose_session(connection: Connection, token: str, now: float | None = None) -> Any:
    """The row of the person whose session this is, or None."""
    at = time.time() if now is None else now
    return connection.execute(_WHOSE, {"token_hash": hash_token(token), "now": at}).first()


def end_sessions(connection: Connection, person: int, token: str | None = None, by: int | None = None) -> None:
    """End one session of a person, or all of them."""
    query = delete(sessions).where(sessions.c.person == person)
    connection.execute(query if token is None else query.where(sessions.c.token_hash == hash_token(token)))
    record(connection, "signed out", person=by or person, subject=person, all=token is None)


def change_person(
    connection: Connection, person: int, by: int, *, status: Status | None = None, arm: Arm | None = None,
    role: Role | None = None, **detail: Any,
) -> None:  # fmt: skip
    """The owner's decision about somebody; `detail` goes into the audit (screening's scores, for one).

    Raises:
        LookupError: if there is no such person.
        Mistake: if the arm of somebody who has answered would change, or no owner would be left who can sign in.
    """
    who = person_of(connection, person)
    wanted = {"status": status, "arm": arm, "role": role}
    values: dict[str, Any] = {k: v for k, v in wanted.items() if v is not None and v != who._mapping[k]}
    if "arm" in values:
        worked = select(func.count()).select_from(ANSWERED)
        worked = worked.where(assignments.c.person == person, tasks.c.purpose == "work")
        if connection.execute(worked).scalar_one():
            raise Mistake(f"{who.name} has answered tasks as {who.arm}: an arm is for good, as exports go by it")
    if ("role" in values or status == "paused") and _owners(connection) == {person}:
        raise Mistake(f"{who.name} is the only owner; make somebody else one first")
    if values:
        connection.execute(update(people).where(people.c.id == person).values(**values))
    if values or detail:  # a decision that changes nothing is a decision
        record(connection, "changed", person=by, subject=person, **values, **detail)


def _owners(connection: Connection) -> set[int]:
    """The ids of all owners who are not paused."""
    owners = select(people.c.id).where(people.c.role == "owner", people.c.status != "paused")
    return set(connection.execute(owners).scalars())
