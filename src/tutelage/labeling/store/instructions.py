"""The pages that labelers read before they answer, kept by version: an answer pins the one that was shown."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select

from tutelage.labeling.store.answers import KINDS, TaskKind
from tutelage.labeling.store.database import record
from tutelage.labeling.store.schema import answers, instructions, people

INSTRUCTIONS: dict[TaskKind, str] = {
    "demonstration": """\
# Write a demonstration

Write what a helpful, honest and careful assistant would answer.

- **Helpful** first: do what the user wants, in the form they asked for, no longer than it needs to be.
- **Honest**: do not invent facts; where a text is given, answer from it.
- **Harmless**: decline what would hurt somebody, briefly and politely.

If you cannot tell what is wanted, skip the task and say why.""",
    "ranking": """\
# Rate and rank

Read the prompt, then every completion.

1. **Rate** each completion by itself, 1 (terrible) to 7 (excellent), and tick what is true of it.
2. **Rank** all of them: 1 is the best. **Ties are welcome** where you see no difference.

While training data is collected, **helpfulness comes first**: would this answer serve the person who asked? Between two
that serve alike, prefer the truthful and the harmless one. Length is no merit in itself.

If you cannot tell what is wanted, skip the task and say why.""",
    "labels": """\
# Label a prompt

Say what kind of request this is, and tick whatever is true of it. Do not answer it.""",
    "comparison": """\
# Compare two

Two answers to one prompt, in random order. Which would you rather give to the person who asked?

This is an evaluation: **truthfulness and harmlessness come first**, helpfulness after them. Give both the same rank if
neither is better.""",
}
_NEWEST = (
    select(instructions)
    .where(instructions.c.kind == bindparam("kind"))
    .order_by(instructions.c.version.desc())
    .limit(1)
)


def add_instruction(connection: Connection, kind: TaskKind, text: str, author: int | None = None) -> int:
    """Publish a new version of the page for a kind of task; answers from now on pin it. Returns the version."""
    newest = select(func.coalesce(func.max(instructions.c.version), 0)).where(instructions.c.kind == kind)
    version = connection.execute(newest).scalar_one() + 1
    connection.execute(
        insert(instructions).values(kind=kind, version=version, text=text, author=author, created=time.time())
    )
    record(connection, "instruction published", person=author, subject=kind, version=version)
    return version


def ensure_instructions(connection: Connection) -> None:
    """Publish the first version of every page that has none."""
    there = set(connection.execute(select(instructions.c.kind)).scalars())
    for kind in KINDS:
        if kind not in there:
            add_instruction(connection, kind, INSTRUCTIONS[kind])


def current_instruction(connection: Connection, kind: str) -> Any:
    """The row of the newest version of a kind's page."""
    return connection.execute(_NEWEST, {"kind": kind}).one()


def instruction_version(connection: Connection, kind: str, version: int) -> Any:
    """The row of one version of a kind's page.

    Raises:
        LookupError: if there is no such version.
    """
    chosen = select(instructions).where(instructions.c.kind == kind, instructions.c.version == version)
    row = connection.execute(chosen).first()
    if row is None:
        raise LookupError(f"no version {version} of these instructions")
    return row


def instruction_history(connection: Connection) -> dict[TaskKind, list[Any]]:
    """By kind, all versions, the newest first: their rows, the author's `name`, and how many `answers` pin each."""
    pinned = select(answers.c.instruction, func.count().label("n")).group_by(answers.c.instruction).subquery()
    rows = connection.execute(
        select(instructions, people.c.name, func.coalesce(pinned.c.n, 0).label("answers"))
        .outerjoin(people, people.c.id == instructions.c.author)
        .outerjoin(pinned, pinned.c.instruction == instructions.c.id)
        .order_by(instructions.c.version.desc())
    ).all()
    return {kind: [row for row in rows if row.kind == kind] for kind in KINDS}
