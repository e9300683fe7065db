"""What is to be done: prompts, completions and tasks are added here; instructions are kept by version."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, bindparam, func, insert, select, update

from tutelage.data.candidates import read_candidates
from tutelage.data.records import Arm, Completion, Prompt
from tutelage.data.strict_json import finite
from tutelage.files import fingerprint
from tutelage.labeling.answers import KINDS, TaskKind, read_answer
from tutelage.labeling.database import record
from tutelage.labeling.schema import completions, events, instructions, prompts, tasks

HELD_OUT_SPLITS = ("valid", "test")
EVERYBODY = 1_000_000  # labelers wanted for a task that each should meet
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
_PROMPT = select(prompts.c.text, prompts.c.user, prompts.c.split, prompts.c.erased).where(
    prompts.c.id == bindparam("id")
)
_COMPLETIONS = insert(completions).returning(completions.c.id, sort_by_parameter_order=True)
_TASK = insert(tasks).returning(tasks.c.id)


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


def add_completions(connection: Connection, prompt: str, new: Sequence[Completion]) -> list[int]:
    """Store a prompt's completions; identical texts become one, which names every policy that wrote it. Their ids."""
    same: dict[str, list[Completion]] = {}
    for completion in new:
        whole = completion.text.encode("utf-8", "replace").decode()  # a byte-level model may write half a character
        same.setdefault(whole, []).append(completion)
    rows = [
        {
            "prompt": prompt, "text": text, "policies": sorted({c.policy for c in written if c.policy}),
            "finish": written[0].finish,
        }
        for text, written in same.items()
    ]  # fmt: skip
    if not rows:
        return []
    return list(connection.execute(_COMPLETIONS, rows).scalars())


def add_task(
    connection: Connection, kind: TaskKind, prompt: Prompt, new: Sequence[Completion] = (), *,
    purpose: str = "work", arm: Arm | None = None, capacity: int = 1, rate: bool = True,
    reference: dict[str, Any] | None = None,
) -> int:  # fmt: skip
    """Queue a task on a prompt that is stored; returns its id.

    Args:
        new: the completions to rank or compare; identical ones are merged.
        purpose: `work`, or `screening` and `gold`, which have a `reference` answer by researchers.
        arm: whose task it is; anybody's if left out.
        capacity: how many labelers are wanted.
        rate: whether completions of a ranking are rated too.

    Raises:
        ValueError: if a ranking has fewer than two distinct completions or a comparison not two, or the reference is
            no answer to this task.
    """
    ids = add_completions(connection, prompt.id, new)
    wanted = {"ranking": len(ids) >= 2, "comparison": len(ids) == 2}.get(kind, not ids)
    if not wanted:
        raise ValueError(f"prompt {prompt.id!r}: a {kind} task cannot have {len(ids)} distinct completions")
    rate = rate and kind == "ranking"
    if reference is not None and kind != "demonstration":
        try:
            reference = read_answer(kind, len(ids), False, reference).model_dump(mode="json")
        except ValueError as error:
            raise ValueError(f"prompt {prompt.id!r}: its known answer: {error}") from None
    return _insert_task(
        connection, kind=kind, purpose=purpose, prompt=prompt.id, completions=ids, rate=rate, reference=reference,
        arm=arm, capacity=capacity, open=True,
    )  # fmt: skip


def queue_prompts(
    connection: Connection, kind: TaskKind, asked: Sequence[Prompt], *, purpose: str = "work", arm: Arm = "training",
    labelers: int = 1,
) -> int:  # fmt: skip
    """Queue a demonstration to write, or labels to give, for each prompt that has no such task; returns how many."""
    had = set(
        connection.execute(select(tasks.c.prompt).where(tasks.c.kind == kind, tasks.c.purpose == purpose)).scalars()
    )
    new = {p.id: p for p in asked if p.id not in had}
    add_prompts(connection, new.values())
    for prompt in new.values():
        add_task(connection, kind, prompt, purpose=purpose, arm=arm, capacity=labelers)
    record(connection, "tasks queued", subject=kind, tasks=len(new))
    return len(new)


def queue_candidates(
    connection: Connection, path: Path, rate: bool = True, overlap: float = 0.0, labelers: int = 1
) -> int:
    """Queue a candidates file as ranking tasks; a file of the same content is queued once. Returns how many tasks.

    Raises:
        ValueError: if it is malformed.
    """
    candidates = read_candidates(path)
    if queued_already(connection, fingerprint(path), "ranking"):
        return 0
    return queue_rankings(connection, candidates, rate=rate, overlap=overlap, labelers=labelers)


def queue_rankings(
    connection: Connection, candidates: Iterable[tuple[Prompt, Sequence[Completion]]], *, rate: bool = True,
    labelers: int = 1, overlap: float = 0.0,
) -> int:  # fmt: skip
    """Queue a ranking for each prompt, and for prompts of a held-out split one for each arm; returns how many.

    Prompts of the train split, or of none, go to the training arm alone.

    Args:
        labelers: how many labelers of an arm rank a prompt.
        overlap: share of the prompts that one labeler more ranks, so that agreement can be measured.
    """
    number = 0
    for prompt, written in candidates:
        add_prompts(connection, [prompt])
        arms: tuple[Arm, ...] = ("training", "heldout") if prompt.split in HELD_OUT_SPLITS else ("training",)
        for arm in arms:
            more = doubly_labeled(prompt.id, overlap)
            add_task(connection, "ranking", prompt, written, arm=arm, capacity=labelers + more, rate=rate)
            number += 1
    record(connection, "tasks queued", subject="ranking", tasks=number)
    return number


def queue_known(
    connection: Connection, kind: TaskKind, items: Iterable[tuple[Prompt, Sequence[Completion], dict[str, Any] | None]],
    purpose: Literal["screening", "gold"], rate: bool = False,
) -> int:  # fmt: skip
    """Queue tasks whose answer researchers know, for every labeler; returns how many.

    Gold items look like the work they are mixed into, so `rate` should be what it is there.
    """
    number = 0
    for prompt, written, reference in items:
        add_prompts(connection, [prompt])
        add_task(connection, kind, prompt, written, purpose=purpose, capacity=EVERYBODY, rate=rate, reference=reference)
        number += 1
    record(connection, "tasks queued", subject=kind, tasks=number, purpose=purpose)
    return number


def queue_comparisons(
    connection: Connection, answered: Iterable[tuple[Prompt, dict[str, str]]], baseline: str, *,
    arm: Arm = "heldout", labelers: int = 1,
) -> int:  # fmt: skip
    """Queue a blind comparison of every model's answer with the baseline's; returns how many are to be judged.

    Equal answers are a tie without anybody's help: their task is stored, but wants no labeler.

    Raises:
        ValueError: if the baseline is not among a prompt's answers.
    """
    number = 0
    for prompt, texts in answered:
        if baseline not in texts:
            raise ValueError(f"prompt {prompt.id!r}: baseline {baseline!r} is not among {sorted(texts)}")
        add_prompts(connection, [prompt])
        for model, text in texts.items():
            if model == baseline:
                continue
            two = [Completion(text=texts[baseline], policy=baseline), Completion(text=text, policy=model)]
            if text == texts[baseline]:
                ids = [i for one in two for i in add_completions(connection, prompt.id, [one])]
                _insert_task(connection, kind="comparison", prompt=prompt.id, completions=ids, arm=arm, open=False)
            else:
                add_task(connection, "comparison", prompt, two, arm=arm, capacity=labelers)
                number += 1
    record(connection, "tasks queued", subject="comparison", tasks=number)
    return number


def _insert_task(connection: Connection, **values: Any) -> int:
    row = {"purpose": "work", "rate": False, "reference": None, "capacity": 0, "created": time.time()} | values
    return connection.execute(_TASK, row).scalar_one()


def queued_already(connection: Connection, source: str, kind: str) -> bool:
    """Whether a file of this fingerprint was queued as this kind of task before; if not, note that it is now."""
    before = select(events.c.detail).where(events.c.kind == "file queued", events.c.subject == source)
    if any(detail["tasks"] == kind for detail in connection.execute(before).scalars()):
        return True
    record(connection, "file queued", subject=source, tasks=kind)
    return False


def doubly_labeled(prompt: str, overlap: float) -> bool:
    """Whether a prompt is among the share that two labelers answer: fixed by its id."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:6], "big") / 2**48 < overlap
