"""What owner and reviewers look at: figures and lists over the whole workspace. Nothing here writes."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, case, func, select

from tutelage.labeling.store.prompts import ANSWERED
from tutelage.labeling.store.schema import answers, assignments, events, people, prompts, tasks


def work_by_person(connection: Connection) -> dict[int, dict[str, Any]]:
    """By person: answers `done`, tasks `skipped`, `median` seconds of an answer, when they were last `active`."""
    seconds: dict[int, list[float]] = defaultdict(list)
    first = select(assignments.c.person, answers.c.seconds).select_from(answers.join(assignments))
    for person, spent in connection.execute(first.where(answers.c.number == 1)):
        seconds[person].append(spent)  # 0 where an answer was imported: nobody measured it
    skipped = select(assignments.c.person, func.count()).where(assignments.c.state == "skipped")
    skips: dict[int, int] = dict(connection.execute(skipped.group_by(assignments.c.person)).all())
    last = select(events.c.person, func.max(events.c.at)).group_by(events.c.person)
    active: dict[int | None, float] = dict(connection.execute(last).all())
    work = {}
    for person in connection.execute(select(people.c.id)).scalars():
        measured = [spent for spent in seconds[person] if spent > 0]
        work[person] = {
            "done": len(seconds[person]), "skipped": skips.get(person, 0), "active": active.get(person),
            "median": statistics.median(measured) if measured else None,
        }  # fmt: skip
    return work


def latest_skips(connection: Connection, most: int) -> Sequence[Any]:
    """The newest skipped assignments, each with the labeler's `name`, and `kind` and `prompt` of its task."""
    query = (
        select(assignments, people.c.name, tasks.c.kind, tasks.c.prompt)
        .select_from(assignments.join(tasks).join(people, people.c.id == assignments.c.person))
        .where(assignments.c.state == "skipped")
        .order_by(assignments.c.id.desc())
        .limit(most)
    )
    return connection.execute(query).all()


def prompt_counts(connection: Connection) -> list[tuple[tuple[str, str], Counter[str]]]:
    """By split and use case ("" for none), sorted: how many prompts are `ready`, `held` in quarantine and `erased`."""
    state = case((prompts.c.erased.is_not(None), "erased"), (prompts.c.quarantine.is_not(None), "held"), else_="ready")
    grouped = select(prompts.c.split, prompts.c.use_case, state, func.count())
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for split, use_case, name, number in connection.execute(
        grouped.group_by(prompts.c.split, prompts.c.use_case, state)
    ):
        counts[split or "", use_case or ""][name] += number
    return sorted(counts.items())


def task_counts(connection: Connection) -> Sequence[Any]:
    """By `kind` and `purpose`: how many tasks in `all`, `open`, `leased` just now, and how many `answers` they have."""
    its = select(func.count()).where(assignments.c.task == tasks.c.id)
    leased = its.where(assignments.c.state == "leased", assignments.c.expires > time.time()).scalar_subquery()
    answered = its.where(assignments.c.state == "submitted").scalar_subquery()
    is_open = case((tasks.c.open, 1), else_=0)
    each = select(
        tasks.c.kind, tasks.c.purpose, is_open.label("open"), leased.label("leased"), answered.label("answers")
    ).subquery()
    sums = (func.sum(each.c[name]).label(name) for name in ("open", "leased", "answers"))
    query = select(each.c.kind, each.c.purpose, func.count().label("all"), *sums).group_by(each.c.kind, each.c.purpose)
    return connection.execute(query.order_by(each.c.kind, each.c.purpose)).all()


def answer_times(connection: Connection) -> Sequence[Any]:
    """Of every first answer given in this workspace: the task's `kind`, and the answer's `seconds` and `created`."""
    query = (
        select(tasks.c.kind, answers.c.seconds, answers.c.created)
        .select_from(ANSWERED)
        .where(answers.c.number == 1, answers.c.seconds > 0)  # imported ones were given elsewhere
    )
    return connection.execute(query).all()


def state_of_answers(connection: Connection) -> tuple[int, ...]:
    """Changes with every answer, correction, erasure (rows without a body stay) and release from quarantine."""
    of_answers = connection.execute(select(func.count(answers.c.id), func.count(answers.c.body))).one()
    held = select(func.count()).where(prompts.c.quarantine.is_not(None))
    return *of_answers, connection.execute(held).scalar_one()


def event_kinds(connection: Connection) -> Sequence[str]:
    """The kinds of events in the audit, in the order of the alphabet."""
    return connection.execute(select(events.c.kind).distinct().order_by(events.c.kind)).scalars().all()


def latest_events(connection: Connection, most: int, kind: str = "", before: int | None = None) -> Sequence[Any]:
    """The audit's newest events, of one kind and older than one id if these are said, each with its person's `name`."""
    query = select(events, people.c.name).outerjoin(people, people.c.id == events.c.person)
    if kind:
        query = query.where(events.c.kind == kind)
    if before is not None:
        query = query.where(events.c.id < before)
    return connection.execute(query.order_by(events.c.id.desc()).limit(most)).all()
