"""Prompts: stored once, set apart while they hold personal data, and erased at their author's wish."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, insert, select, update

from tutelage.data.records import Prompt
from tutelage.data.strict_json import finite
from tutelage.labeling.store.database import record
from tutelage.labeling.store.schema import answers, assignments, completions, prompts, tasks

VISIBLE = and_(prompts.c.quarantine.is_(None), prompts.c.text.is_not(None))  # to labelers, and in exports
# Answers joined with what they belong to, down to the prompt, to select from.
ANSWERED = answers.join(assignments).join(tasks, tasks.c.id == assignments.c.task).join(prompts)
_QUARANTINED = and_(prompts.c.quarantine.is_not(None), prompts.c.erased.is_(None))
_PROMPT = select(prompts.c.text, prompts.c.user, prompts.c.split, prompts.c.erased).where(
    prompts.c.id == bindparam("id")
)


def add_prompts(
    connection: Connection, new: Iterable[Prompt], quarantine: dict[str, dict[str, int]] | None = None
) -> int:
    """Store prompts that are not there yet; returns how many were new.

    Args:
        quarantine: by prompt id, the kinds of personal data found and how often; these are shown to no labeler.

    Raises:
        ValueError: if an id is there with another text, or holds a character that no text column does.
    """
    added = 0
    for prompt in new:
        for name in ("id", "user", "use_case"):
            if "\0" in (getattr(prompt, name) or ""):  # PostgreSQL refuses it
                raise ValueError(f"prompt {prompt.id!r}: {name} holds a null character; leave it out")
        row = prompt.model_dump(mode="json")
        row["meta"] = finite(row["meta"])  # NaN is no JSON
        before = connection.execute(_PROMPT, {"id": prompt.id}).first()
        if before is None:
            connection.execute(insert(prompts), row | {"quarantine": (quarantine or {}).get(prompt.id)})
            added += 1
        elif before.erased is not None:
            raise ValueError(f"prompt {prompt.id!r} was erased at its author's wish and cannot come back")
        elif before.text != row["text"]:
            raise ValueError(f"prompt {prompt.id!r} is there already with another text; give it another id")
        else:
            _complete(connection, prompt, before)
    return added


def _complete(connection: Connection, prompt: Prompt, before: Any) -> None:
    """Take over a user or split that is not known yet: what belongs to whom, and what may train, hangs on them."""
    for name in ("user", "split"):
        now, then = getattr(prompt, name), getattr(before, name)
        if now is not None and then is None:
            connection.execute(update(prompts).where(prompts.c.id == prompt.id).values({name: now}))
        elif now is not None and now != then:
            raise ValueError(f"prompt {prompt.id!r} is there already with {name} {then!r}, not {now!r}")


def stored_prompts(connection: Connection, coming: Iterable[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts here that new ones are compared with, and the new ones, in the splits that they are in if they are
    here already; those that were erased are left out.

    Among the `coming`, one that the owner released from quarantine, and that has no task yet, is compared with others
    as if it were new.
    """
    stored = connection.execute(select(prompts)).all()
    erased = {row.id for row in stored if row.text is None}
    with_task = set(connection.execute(select(tasks.c.prompt)).scalars())
    new = [prompt for prompt in coming if prompt.id not in erased]
    waiting = {prompt.id for prompt in new} - with_task
    fields = ("id", "text", "user", "split", "use_case", "meta")
    known = [
        Prompt.model_validate({name: row._mapping[name] for name in fields})
        for row in stored
        if row.id not in erased and (row.quarantine or row.id not in waiting)
    ]
    splits = {row.id: row.split for row in stored if row.split}
    return known, [p.model_copy(update={"split": p.split or splits.get(p.id)}) for p in new]


def quarantined_prompts(connection: Connection, most: int) -> tuple[Sequence[Any], int]:
    """The first prompts in quarantine, `id` and what was found (`quarantine`), and how many there are in all."""
    first = select(prompts.c.id, prompts.c.quarantine).where(_QUARANTINED).order_by(prompts.c.id).limit(most)
    number = select(func.count()).select_from(prompts).where(_QUARANTINED)
    return connection.execute(first).all(), connection.execute(number).scalar_one()


def quarantined_prompt(connection: Connection, prompt: str | None) -> Any:
    """The row of a prompt that is in quarantine.

    Raises:
        LookupError: if there is none with this id.
    """
    row = connection.execute(select(prompts).where(prompts.c.id == prompt, _QUARANTINED)).first()
    if row is None:
        raise LookupError("no such prompt in quarantine; somebody may have decided about it already")
    return row


def read_quarantined(connection: Connection, prompt: str | None, by: int) -> Any:
    """The row of a `quarantined_prompt` whose text somebody reads: the audit says who."""
    row = quarantined_prompt(connection, prompt)
    record(connection, "quarantine read", person=by, subject=row.id)
    return row


def release_prompt(connection: Connection, prompt: str | None, by: int) -> None:
    """Let labelers see a `quarantined_prompt`."""
    row = quarantined_prompt(connection, prompt)
    connection.execute(update(prompts).where(prompts.c.id == row.id).values(quarantine=None))
    record(connection, "quarantine released", person=by, subject=row.id, found=row.quarantine)


def erase_prompt(connection: Connection, prompt: str, by: int | None = None) -> None:
    """Remove a prompt's text, its completions and all answers to it; a tombstone with its id stays.

    Raises:
        LookupError: if there is no such prompt.
    """
    if connection.execute(select(prompts.c.id).where(prompts.c.id == prompt)).first() is None:
        raise LookupError(f"no prompt {prompt!r}")
    its = select(assignments.c.id).join(tasks).where(tasks.c.prompt == prompt)
    connection.execute(update(answers).where(answers.c.assignment.in_(its)).values(body=None))
    connection.execute(update(assignments).where(assignments.c.id.in_(its)).values(draft=None, skipped=None))
    connection.execute(update(completions).where(completions.c.prompt == prompt).values(text=None))
    connection.execute(update(tasks).where(tasks.c.prompt == prompt).values(open=False, reference=None))
    now = record(connection, "erased", person=by, subject=prompt)
    connection.execute(
        update(prompts)
        .where(prompts.c.id == prompt)
        .values(text=None, user=None, meta={}, use_case=None, quarantine=None, erased=now)
    )


def erase_user(connection: Connection, user: str, by: int | None = None) -> int:
    """Remove everything that a prompts' author has written, as `erase_prompt`; returns how many prompts.

    Raises:
        LookupError: if no prompt is of this user.
    """
    theirs = list(connection.execute(select(prompts.c.id).where(prompts.c.user == user)).scalars())
    if not theirs:
        raise LookupError(f"no prompt here is by user {user!r}")
    for prompt in theirs:
        erase_prompt(connection, prompt, by)
    return len(theirs)
