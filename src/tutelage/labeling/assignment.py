"""Who answers what: leases, drafts, submissions, skips and corrections.

A task is leased to a labeler for a while; capacity counts live leases and submissions, so that no more labelers work on
a task than are wanted. A labeler meets a task once, never sees another's answer, and a held-out labeler never meets
a task of the training arm. An answer that comes after its lease has ended is kept all the same: no work is lost.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from random import Random
from typing import Any

from sqlalchemy import Connection, and_, exists, func, insert, or_, select, update

from tutelage.labeling.answers import SKIP_REASONS, Answer, Note, TaskKind, read_answer
from tutelage.labeling.database import record
from tutelage.labeling.queue import current_instruction
from tutelage.labeling.schema import answers, assignments, completions, instructions, people, prompts, tasks

LEASE_SECONDS = 3600.0
GOLD_EVERY = 20  # about one answer in so many is to an item whose answer is known, while there are any
PURPOSES = {"screening": ("screening",), "working": ("work", "gold"), "paused": ()}


class Conflict(ValueError):
    """The task was answered or skipped already."""


@dataclass(frozen=True)
class Shown:
    """A task as a labeler meets it: texts in the order shown, nothing of who wrote them."""

    assignment: int
    kind: TaskKind
    prompt: Any  # a string or a list of messages
    texts: tuple[str, ...]
    rate: bool
    state: str
    draft: dict[str, Any] | None
    instruction: str
    version: int
    expires: float
    correcting: bool = False


def next_task(
    connection: Connection, person: int, kind: TaskKind | None = None, now: float | None = None
) -> int | None:
    """Lease the next task for a person, or renew the one they hold; the assignment's id, or None if nothing is left.

    Raises:
        LookupError: if there is no such person.
    """
    now = time.time() if now is None else now
    who = connection.execute(select(people).where(people.c.id == person)).first()
    if who is None:
        raise LookupError(f"no person {person}")
    purposes = PURPOSES[who.status]
    held = connection.execute(_held(person, kind, purposes).where(assignments.c.expires > now)).first()
    if held is not None:
        _renew(connection, held.id, now)
        return held.id
    done = _count(connection, person, "submitted")
    gold_now = "gold" in purposes and done % GOLD_EVERY == GOLD_EVERY - 1
    for chosen in (("gold",), ("work",)) if gold_now else (tuple(p for p in purposes if p != "gold"), ("gold",)):
        task = connection.execute(_free(person, who.arm, kind, tuple(set(chosen) & set(purposes)), now)).first()
        if task is not None:
            break
    else:
        return None
    record(connection, "leased", person=person, subject=task.id, now=now)
    lease = {"state": "leased", "leased": now, "expires": now + LEASE_SECONDS}
    mine = and_(assignments.c.task == task.id, assignments.c.person == person)  # a lease of mine that had ended
    again = connection.execute(update(assignments).where(mine).values(**lease).returning(assignments.c.id)).first()
    if again is not None:
        return again.id
    order = list(range(len(task.completions)))
    Random(f"{task.id}/{person}").shuffle(order)
    page = current_instruction(connection, task.kind)
    row = {"task": task.id, "person": person, "order": order, "instruction": page.id, **lease}
    return connection.execute(insert(assignments).values(row).returning(assignments.c.id)).scalar_one()


def show(connection: Connection, person: int, assignment: int) -> Shown:
    """A task as its labeler sees it; once submitted, with their own answer as the draft to correct.

    Raises:
        LookupError: if the assignment is not this person's, or its prompt was erased or put into quarantine.
    """
    row = _mine(connection, person, assignment)
    if row.prompt_text is None or row.quarantine is not None:
        raise LookupError("this prompt was withdrawn")
    found = connection.execute(
        select(completions.c.id, completions.c.text).where(completions.c.id.in_(row.completions))
    ).all()
    texts = {c.id: c.text for c in found}
    draft = row.draft
    if row.state == "submitted":
        body = _newest(connection, assignment).body
        draft = _as_shown(body, row.order) if body else None
    page = connection.execute(select(instructions).where(instructions.c.id == row.instruction)).one()
    return Shown(
        assignment=assignment, kind=row.kind, prompt=row.prompt_text,
        texts=tuple(texts[row.completions[i]] for i in row.order), rate=row.rate, state=row.state, draft=draft,
        instruction=page.text, version=page.version, expires=row.expires, correcting=row.state == "submitted",
    )  # fmt: skip


def save_draft(
    connection: Connection, person: int, assignment: int, draft: dict[str, Any], now: float | None = None
) -> None:
    """Keep an unfinished answer, in the order shown, and renew the lease. Not an answer, hence no event.

    Raises:
        LookupError: if the assignment is not this person's.
        Conflict: if it was answered or skipped already.
    """
    row = _mine(connection, person, assignment)
    if row.state != "leased":
        raise Conflict(f"this task is {row.state} already")
    connection.execute(update(assignments).where(assignments.c.id == assignment).values(draft=draft))
    _renew(connection, assignment, time.time() if now is None else now)


def submit(
    connection: Connection, person: int, assignment: int, body: dict[str, Any], key: str, *,
    active_seconds: float | None = None, now: float | None = None, correct: bool = False,
) -> int:  # fmt: skip
    """Store an answer whole; returns its id. `body` is in the order shown; what is stored is in the task's own.

    Args:
        key: of the form that is sent: the same key again changes nothing and returns the first answer's id.
        correct: add a newer answer to a task that was submitted.

    Raises:
        LookupError: if the assignment is not this person's.
        Conflict: if the task was answered or skipped already.
        ValueError: if the answer is incomplete, naming what is missing.
    """
    now = time.time() if now is None else now
    row = _mine(connection, person, assignment)
    before = connection.execute(select(answers.c.id, answers.c.assignment).where(answers.c.key == key)).first()
    if before is not None:
        if before.assignment != assignment:
            raise Conflict("this form was sent for another task")
        return before.id
    if row.state != ("submitted" if correct else "leased"):
        raise Conflict(f"this task is {row.state} already")
    answer = read_answer(row.kind, len(row.completions), row.rate, body)
    number = _newest(connection, assignment).number + 1 if correct else 1
    stored = connection.execute(
        insert(answers)
        .values(
            assignment=assignment, number=number, body=_as_stored(answer, row.order), instruction=row.instruction,
            seconds=max(0.0, now - row.leased), active_seconds=active_seconds, key=key, created=now,
        )
        .returning(answers.c.id)
    ).scalar_one()  # fmt: skip
    connection.execute(update(assignments).where(assignments.c.id == assignment).values(state="submitted", draft=None))
    submitted = select(func.count()).where(assignments.c.task == row.task, assignments.c.state == "submitted")
    if connection.execute(submitted).scalar_one() >= row.capacity:
        connection.execute(update(tasks).where(tasks.c.id == row.task).values(open=False))
    record(connection, "corrected" if correct else "submitted", person=person, subject=row.task, now=now, answer=stored)
    return stored


def skip(
    connection: Connection, person: int, assignment: int, reason: str, note: Note = "", now: float | None = None
) -> None:
    """Give a task back for good, saying why; somebody else may take it.

    Raises:
        LookupError: if the assignment is not this person's.
        Conflict: if it was answered already.
        ValueError: if the reason is none of `SKIP_REASONS`.
    """
    row = _mine(connection, person, assignment)
    if row.state == "skipped":
        return
    if row.state != "leased":
        raise Conflict(f"this task is {row.state} already")
    if reason not in SKIP_REASONS:
        raise ValueError(f"choose a reason: {', '.join(SKIP_REASONS)}")
    told = {"reason": reason, "note": note[:2000]}
    connection.execute(
        update(assignments).where(assignments.c.id == assignment).values(state="skipped", skipped=told, draft=None)
    )
    record(connection, "skipped", person=person, subject=row.task, now=now, reason=reason)


def progress(connection: Connection, person: int, now: float | None = None) -> dict[str, Any]:
    """How much a person has done in all and in the last day, and how many tasks of each kind they can have now."""
    now = time.time() if now is None else now
    who = connection.execute(select(people.c.arm, people.c.status).where(people.c.id == person)).one()
    today = select(func.count()).select_from(answers.join(assignments)).where(
        assignments.c.person == person, answers.c.number == 1, answers.c.created > now - 86400
    )  # fmt: skip
    free = _free(person, who.arm, None, PURPOSES[who.status], now).subquery()
    left: dict[str, int] = dict(
        connection.execute(select(free.c.kind, func.count()).group_by(free.c.kind)).tuples().all()
    )
    held = connection.execute(_held(person, None, PURPOSES[who.status]).where(assignments.c.expires > now)).first()
    if held is not None:
        left[held.kind] = left.get(held.kind, 0) + 1
    return {
        "done": _count(connection, person, "submitted"), "skipped": _count(connection, person, "skipped"),
        "today": connection.execute(today).scalar_one(), "left": left,
    }  # fmt: skip


def _free(person: int, arm: str, kind: str | None, purposes: tuple[str, ...], now: float) -> Any:
    """Tasks that this person may take now, the oldest first."""
    others = select(func.count()).where(
        assignments.c.task == tasks.c.id,
        assignments.c.person != person,
        or_(assignments.c.state == "submitted", and_(assignments.c.state == "leased", assignments.c.expires > now)),
    )
    met = exists().where(
        assignments.c.task == tasks.c.id,
        assignments.c.person == person,
        or_(assignments.c.state != "leased", assignments.c.expires > now),
    )
    query = (
        select(tasks)
        .select_from(tasks.join(prompts))
        .where(
            tasks.c.open, tasks.c.purpose.in_(purposes), or_(tasks.c.arm.is_(None), tasks.c.arm == arm),
            prompts.c.quarantine.is_(None), prompts.c.text.is_not(None), ~met,
            others.scalar_subquery() < tasks.c.capacity,
        )
        .order_by(tasks.c.id)
    )  # fmt: skip
    return query if kind is None else query.where(tasks.c.kind == kind)


def _held(person: int, kind: str | None, purposes: tuple[str, ...]) -> Any:
    query = (
        select(assignments.c.id, tasks.c.kind)
        .select_from(assignments.join(tasks).join(prompts, prompts.c.id == tasks.c.prompt))
        .where(assignments.c.person == person, assignments.c.state == "leased", tasks.c.purpose.in_(purposes))
        .where(prompts.c.quarantine.is_(None), prompts.c.text.is_not(None))
        .order_by(assignments.c.id)
    )
    return query if kind is None else query.where(tasks.c.kind == kind)


def _mine(connection: Connection, person: int, assignment: int) -> Any:
    query = (
        select(
            assignments, tasks.c.kind, tasks.c.completions, tasks.c.rate, tasks.c.capacity,
            prompts.c.text.label("prompt_text"), prompts.c.quarantine,
        )
        .select_from(assignments.join(tasks).join(prompts, prompts.c.id == tasks.c.prompt))
        .where(assignments.c.id == assignment, assignments.c.person == person)
    )  # fmt: skip
    row = connection.execute(query).first()
    if row is None:
        raise LookupError("no such task of yours")
    return row


def _newest(connection: Connection, assignment: int) -> Any:
    query = select(answers).where(answers.c.assignment == assignment).order_by(answers.c.number.desc()).limit(1)
    return connection.execute(query).one()


def _count(connection: Connection, person: int, state: str) -> int:
    query = select(func.count()).where(assignments.c.person == person, assignments.c.state == state)
    return connection.execute(query).scalar_one()


def _renew(connection: Connection, assignment: int, now: float) -> None:
    connection.execute(update(assignments).where(assignments.c.id == assignment).values(expires=now + LEASE_SECONDS))


def _as_stored(answer: Answer, order: list[int]) -> dict[str, Any]:
    """An answer in the order shown -> in the task's own order."""
    body = answer.model_dump(mode="json")
    for field in ("ranks", "ratings"):
        if body.get(field):
            body[field] = [body[field][order.index(i)] for i in range(len(order))]
    return body


def _as_shown(body: dict[str, Any], order: list[int]) -> dict[str, Any]:
    """A stored answer -> in the order shown."""
    return body | {field: [body[field][i] for i in order] for field in ("ranks", "ratings") if body.get(field)}
