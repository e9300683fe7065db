"""Who answers what: leases, drafts, submissions, skips and corrections.

A task is leased to a labeler for a while; capacity counts live leases and submissions, so that no more labelers work on
a task than are wanted. A labeler meets a task once, never sees another's answer, and a held-out labeler never meets
a task of the training arm. An answer that comes after its lease has ended is kept all the same: no work is lost. Who is
paused gets, reads and sends nothing; their drafts and leases wait.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random, SystemRandom
from typing import Any

from sqlalchemy import Connection, and_, bindparam, exists, func, insert, not_, or_, select, update

from tutelage.labeling.store.accounts import Paused, person_of
from tutelage.labeling.store.answers import KINDS, SKIP_REASONS, Answer, Mistake, Note, TaskKind, read_answer
from tutelage.labeling.store.database import record
from tutelage.labeling.store.instructions import current_instruction
from tutelage.labeling.store.prompts import ANSWERED, VISIBLE
from tutelage.labeling.store.schema import answers, assignments, completions, instructions, people, prompts, tasks

LEASE_SECONDS = 3600.0
SECRET = SystemRandom()
GOLD_EVERY = 20  # about one answer in so many is to an item whose answer is known, while there are any
PURPOSES = {"screening": ("screening",), "working": ("work", "gold"), "paused": ()}


class Conflict(Mistake):
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

    @property
    def correcting(self) -> bool:
        """Whether what is sent next corrects an answer."""
        return self.state == "submitted"


# Statements are built once: building one takes longer than running it. `person`, `now` and so on are parameters.
_IN_PURPOSES = tasks.c.purpose.in_(bindparam("purposes", expanding=True))
_FOR_ARM = or_(tasks.c.arm.is_(None), tasks.c.arm == bindparam("arm"))
_LEASED = (  # what a person has in hand, leases that ran out included
    select(assignments.c.id, assignments.c.task, assignments.c.expires, tasks.c.kind)
    .select_from(assignments.join(tasks).join(prompts, prompts.c.id == tasks.c.prompt))
    .where(assignments.c.person == bindparam("person"), assignments.c.state == "leased")
    .where(_IN_PURPOSES, _FOR_ARM, VISIBLE)
    .order_by(assignments.c.id)
)
_LIVE = and_(assignments.c.state == "leased", assignments.c.expires > bindparam("now"))
_OTHERS = select(func.count()).where(
    assignments.c.task == tasks.c.id,
    assignments.c.person != bindparam("person"),
    or_(assignments.c.state == "submitted", _LIVE),
)
_MET = exists().where(
    assignments.c.task == tasks.c.id,
    assignments.c.person == bindparam("person"),
    or_(assignments.c.state != "leased", _LIVE),
)
_FREE = (  # tasks that a person may take now, the oldest first
    select(tasks)
    .select_from(tasks.join(prompts))
    .where(
        tasks.c.open, _IN_PURPOSES, _FOR_ARM, VISIBLE, ~_MET, _OTHERS.scalar_subquery() < tasks.c.capacity
    )
    .order_by(tasks.c.id)
)  # fmt: skip
_FREE_OF = {None: _FREE.limit(1)} | {kind: _FREE.where(tasks.c.kind == kind).limit(1) for kind in KINDS}
_MINE = (
    select(
        assignments, tasks.c.kind, tasks.c.completions, tasks.c.rate, tasks.c.capacity,
        prompts.c.text.label("prompt_text"), prompts.c.quarantine, people.c.status,
    )
    .select_from(
        assignments.join(tasks)
        .join(prompts, prompts.c.id == tasks.c.prompt)
        .join(people, people.c.id == assignments.c.person)
    )
    .where(assignments.c.id == bindparam("assignment"), assignments.c.person == bindparam("person"))
)  # fmt: skip
_COUNT = select(func.count()).where(assignments.c.person == bindparam("person"), assignments.c.state == bindparam("is"))
_RENEW = update(assignments).where(assignments.c.id == bindparam("assignment")).values(expires=bindparam("until"))
_ASSIGN = insert(assignments).returning(assignments.c.id)
_TEXTS = select(completions.c.id, completions.c.text).where(completions.c.id.in_(bindparam("ids", expanding=True)))
_INSTRUCTION = select(instructions).where(instructions.c.id == bindparam("id"))
_BY_KEY = select(answers.c.id, answers.c.assignment).where(answers.c.key == bindparam("key"))
_ANSWER = insert(answers).returning(answers.c.id)
_NEWEST = select(answers).where(answers.c.assignment == bindparam("of")).order_by(answers.c.number.desc()).limit(1)
_DRAFT = (
    update(assignments)
    .where(assignments.c.id == bindparam("assignment"))
    .values(draft=bindparam("unfinished"), expires=bindparam("until"))
)
_TODAY = (
    select(func.count())
    .select_from(answers.join(assignments))
    .where(assignments.c.person == bindparam("person"), answers.c.number == 1, answers.c.created > bindparam("since"))
)
_SUBMITTED = (
    update(assignments).where(assignments.c.id == bindparam("assignment")).values(state="submitted", draft=None)
)
_SUBMISSIONS = select(func.count()).where(assignments.c.task == bindparam("task_"), assignments.c.state == "submitted")
_CLOSE = update(tasks).where(tasks.c.id == bindparam("task_")).values(open=False)


def next_task(
    connection: Connection, person: int, kind: TaskKind | None = None, now: float | None = None, rng: Random = SECRET
) -> int | None:
    """Lease the next task for a person, or renew the one they hold; the assignment's id, or None if nothing is left.

    `rng` shuffles what is shown; from the outside nobody can tell how, unless a simulation asks for its own.

    Raises:
        LookupError: if there is no such person.
    """
    now = time.time() if now is None else now
    who = person_of(connection, person)
    purposes = PURPOSES[who.status]
    mine = connection.execute(_LEASED, {"person": person, "arm": who.arm, "purposes": purposes}).all()
    held = [a for a in mine if a.expires > now and kind in (None, a.kind)]
    if held:
        connection.execute(_RENEW, {"assignment": held[0].id, "until": now + LEASE_SECONDS})
        return held[0].id
    done = connection.execute(_COUNT, {"person": person, "is": "submitted"}).scalar_one()
    gold_now = "gold" in purposes and done % GOLD_EVERY == GOLD_EVERY - 1
    work = tuple(p for p in purposes if p != "gold")
    for chosen in (("gold",), work) if gold_now else (work, ("gold",)):
        wanted = {"person": person, "arm": who.arm, "now": now, "purposes": set(chosen) & set(purposes)}
        task = connection.execute(_FREE_OF[kind], wanted).first()
        if task is not None:
            break
    else:
        return None
    record(connection, "leased", person=person, subject=task.id, now=now)
    lease = {"state": "leased", "leased": now, "expires": now + LEASE_SECONDS}
    ended = next((a.id for a in mine if a.task == task.id), None)  # a lease of mine that ran out
    if ended is not None:
        connection.execute(update(assignments).where(assignments.c.id == ended).values(**lease))
        return ended
    order = list(range(len(task.completions)))
    rng.shuffle(order)
    page = current_instruction(connection, task.kind).id
    row = {"task": task.id, "person": person, "order": order, "instruction": page, **lease}
    return connection.execute(_ASSIGN, row).scalar_one()


def show(connection: Connection, person: int, assignment: int) -> Shown:
    """A task as its labeler sees it; once submitted, with their own answer as the draft to correct.

    Raises:
        LookupError: if the assignment is not this person's, or its prompt was erased or put into quarantine.
    """
    row = _mine(connection, person, assignment)
    if row.quarantine is not None:
        raise LookupError("this prompt was withdrawn")
    texts = dict(connection.execute(_TEXTS, {"ids": row.completions}).all())
    draft = row.draft
    if row.state == "submitted":
        body = _newest(connection, assignment).body
        draft = _as_shown(body, row.order) if body else None
    page = connection.execute(_INSTRUCTION, {"id": row.instruction}).one()
    return Shown(
        assignment=assignment, kind=row.kind, prompt=row.prompt_text,
        texts=tuple(texts[row.completions[i]] for i in row.order), rate=row.rate, state=row.state, draft=draft,
        instruction=page.text, version=page.version, expires=row.expires,
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
    until = (time.time() if now is None else now) + LEASE_SECONDS
    connection.execute(_DRAFT, {"assignment": assignment, "unfinished": draft, "until": until})


def submit(
    connection: Connection, person: int, assignment: int, body: dict[str, Any], key: str, *,
    active_seconds: float | None = None, now: float | None = None,
) -> int:  # fmt: skip
    """Store an answer whole; returns its id. `body` is in the order shown; what is stored is in the task's own.

    Args:
        key: of the form that is sent: the same key again changes nothing and returns the first answer's id.
        active_seconds: how long the page was in view, if the browser says so.

    Raises:
        LookupError: if the assignment is not this person's.
        Conflict: if the task was answered or skipped already.
        Mistake: if the answer is incomplete, naming what is missing.
    """
    return _store(connection, _mine(connection, person, assignment), "leased", body, key, active_seconds, now)


def correct(
    connection: Connection, person: int, assignment: int, body: dict[str, Any], key: str, *,
    active_seconds: float | None = None, now: float | None = None,
) -> int:  # fmt: skip
    """Store a newer answer to a task that was submitted; returns its id. Arguments and errors are those of `submit`."""
    return _store(connection, _mine(connection, person, assignment), "submitted", body, key, active_seconds, now)


def skip(
    connection: Connection, person: int, assignment: int, reason: str, note: Note = "", now: float | None = None
) -> None:
    """Give a task back for good, saying why; somebody else may take it.

    Raises:
        LookupError: if the assignment is not this person's.
        Conflict: if it was answered already.
        Mistake: if the reason is none of `SKIP_REASONS`.
    """
    row = _mine(connection, person, assignment)
    if row.state == "skipped":
        return
    if row.state != "leased":
        raise Conflict(f"this task is {row.state} already")
    if reason not in SKIP_REASONS:
        raise Mistake(f"choose a reason: {', '.join(SKIP_REASONS)}")
    skipped = {"reason": reason, "note": note[:2000]}
    connection.execute(
        update(assignments).where(assignments.c.id == assignment).values(state="skipped", skipped=skipped, draft=None)
    )
    record(connection, "skipped", person=person, subject=row.task, now=now, reason=reason)


def progress(connection: Connection, person: int, now: float | None = None) -> dict[str, Any]:
    """How much a person has done in all and in the last day, and how many tasks of each kind they can have now."""
    now = time.time() if now is None else now
    who = person_of(connection, person)
    purposes = PURPOSES[who.status]
    wanted = {"person": person, "arm": who.arm, "now": now, "purposes": purposes}
    free = _FREE.order_by(None).subquery()
    counts = select(free.c.kind, func.count()).group_by(free.c.kind)
    left: dict[str, int] = dict(connection.execute(counts, wanted).all())
    for held in connection.execute(_LEASED, {"person": person, "arm": who.arm, "purposes": purposes}):
        if held.expires > now:
            left[held.kind] = left.get(held.kind, 0) + 1
    return {
        "done": connection.execute(_COUNT, {"person": person, "is": "submitted"}).scalar_one(),
        "skipped": connection.execute(_COUNT, {"person": person, "is": "skipped"}).scalar_one(),
        "today": done_today(connection, person, now), "left": left,
    }  # fmt: skip


def done_today(connection: Connection, person: int, now: float | None = None) -> int:
    """How many tasks a person has answered in the last day; corrections do not count."""
    now = time.time() if now is None else now
    return connection.execute(_TODAY, {"person": person, "since": now - 86400}).scalar_one()


def recent(connection: Connection, person: int, most: int, corrected: bool = False) -> Sequence[Any]:
    """A person's newest answers, those that they `corrected` since only if asked for: each with `kind`, `purpose` and
    `prompt` of its task, and `withdrawn` if that prompt may be shown no more."""
    query = (
        select(answers, tasks.c.kind, tasks.c.purpose, tasks.c.prompt, not_(VISIBLE).label("withdrawn"))
        .select_from(ANSWERED)
        .where(assignments.c.person == person)
    )
    if not corrected:
        newest = select(func.max(answers.c.id)).join(assignments).where(assignments.c.person == person)
        query = query.where(answers.c.id.in_(newest.group_by(answers.c.assignment)))
    return connection.execute(query.order_by(answers.c.id.desc()).limit(most)).all()


def _store(
    connection: Connection, row: Any, state: str, body: dict[str, Any], key: str, active_seconds: float | None,
    now: float | None,
) -> int:  # fmt: skip
    """Store an answer to an assignment that is in this state: the first if it is leased, else a correction."""
    before = connection.execute(_BY_KEY, {"key": key}).first()
    if before is not None:
        if before.assignment != row.id:
            raise Conflict("this form was sent for another task")
        return before.id
    if row.state != state:
        raise Conflict(f"this task is {row.state} already")
    now = time.time() if now is None else now
    answer = read_answer(row.kind, len(row.completions), row.rate, body)
    number = 1 if state == "leased" else _newest(connection, row.id).number + 1
    values = {
        "assignment": row.id, "number": number, "body": _as_stored(answer, row.order), "instruction": row.instruction,
        "seconds": max(0.0, now - row.leased), "active_seconds": active_seconds, "key": key, "created": now,
    }  # fmt: skip
    stored = connection.execute(_ANSWER, values).scalar_one()
    connection.execute(_SUBMITTED, {"assignment": row.id})
    if row.capacity == 1 or connection.execute(_SUBMISSIONS, {"task_": row.task}).scalar_one() >= row.capacity:
        connection.execute(_CLOSE, {"task_": row.task})
    kind = "submitted" if number == 1 else "corrected"
    record(connection, kind, person=row.person, subject=row.task, now=now, answer=stored)
    return stored


def _mine(connection: Connection, person: int, assignment: int) -> Any:
    row = connection.execute(_MINE, {"person": person, "assignment": assignment}).first()
    if row is None:
        raise LookupError("no such task of yours")
    if row.status == "paused":  # pages ask as well, but in a transaction that is over
        raise Paused
    if row.prompt_text is None:  # erased: nothing that may quote it comes back by a page that was open meanwhile
        raise LookupError("this prompt was withdrawn")
    return row


def _newest(connection: Connection, assignment: int) -> Any:
    return connection.execute(_NEWEST, {"of": assignment}).one()


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
