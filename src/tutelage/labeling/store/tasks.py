"""What is to be done: tasks on prompts, with the completions that they ask about, are queued here."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, insert, select

from tutelage.data.draws import fraction
from tutelage.data.records import Arm, Completion, Prompt, by_text
from tutelage.labeling.store.answers import TaskKind, read_answer
from tutelage.labeling.store.database import record
from tutelage.labeling.store.prompts import add_prompts
from tutelage.labeling.store.schema import completions, events, tasks

HELD_OUT_SPLITS = ("valid", "test")
EVERYBODY = 1_000_000  # labelers wanted for a task that each should meet
_COMPLETIONS = insert(completions).returning(completions.c.id, sort_by_parameter_order=True)
_TASK = insert(tasks).returning(tasks.c.id)


@dataclass(frozen=True)
class Terms:
    """For what a task is, for whom, and how many labelers are wanted."""

    purpose: str = "work"  # or `screening` and `gold`, which have a `reference` answer by researchers
    arm: Arm | None = None  # whose task it is; anybody's if left out
    capacity: int = 1  # how many labelers are wanted
    rate: bool = True  # whether completions of a ranking are rated too
    reference: dict[str, Any] | None = None


WORK = Terms()


def add_completions(connection: Connection, prompt: str, new: Sequence[Completion]) -> list[int]:
    """Store a prompt's completions; identical texts become one, which names every policy that wrote it. Their ids."""
    texts = [c.text.encode("utf-8", "replace").decode() for c in new]  # a byte-level model may write half a character
    rows = []
    for text, equal in by_text(texts).items():
        policies = sorted({policy for i in equal if (policy := new[i].policy)})
        rows.append({"prompt": prompt, "text": text, "policies": policies, "finish": new[equal[0]].finish})
    if not rows:
        return []
    return list(connection.execute(_COMPLETIONS, rows).scalars())


def add_task(
    connection: Connection, kind: TaskKind, prompt: Prompt, new: Sequence[Completion] = (), terms: Terms = WORK
) -> int:
    """Queue a task on a prompt that is stored; returns its id.

    The new completions are those to rank or compare; identical ones are merged.

    Raises:
        ValueError: if a ranking has fewer than two distinct completions or a comparison not two, or the reference is
            no answer to this task.
    """
    ids = add_completions(connection, prompt.id, new)
    wanted = {"ranking": len(ids) >= 2, "comparison": len(ids) == 2}.get(kind, not ids)
    if not wanted:
        raise ValueError(f"prompt {prompt.id!r}: a {kind} task cannot have {len(ids)} distinct completions")
    reference = terms.reference
    if reference is not None and kind != "demonstration":
        try:
            reference = read_answer(kind, len(ids), False, reference).model_dump(mode="json")
        except ValueError as error:
            raise ValueError(f"prompt {prompt.id!r}: its known answer: {error}") from None
    return _insert_task(
        connection, kind=kind, purpose=terms.purpose, prompt=prompt.id, completions=ids,
        rate=terms.rate and kind == "ranking", reference=reference, arm=terms.arm, capacity=terms.capacity, open=True,
    )  # fmt: skip


def queue_prompts(
    connection: Connection, kind: TaskKind, asked: Sequence[Prompt], *, purpose: str = "work", arm: Arm = "training",
    labelers: int = 1,
) -> int:  # fmt: skip
    """Queue a demonstration to write, or labels to give, for each prompt that has no such task; returns how many."""
    alike = select(tasks.c.prompt).where(tasks.c.kind == kind, tasks.c.purpose == purpose)
    had = set(connection.execute(alike).scalars())
    new = {p.id: p for p in asked if p.id not in had}
    add_prompts(connection, new.values())
    for prompt in new.values():
        add_task(connection, kind, prompt, terms=Terms(purpose, arm, labelers))
    record(connection, "tasks queued", subject=kind, tasks=len(new))
    return len(new)


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
            wanted = labelers + doubly_labeled(prompt.id, overlap)
            add_task(connection, "ranking", prompt, written, Terms(arm=arm, capacity=wanted, rate=rate))
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
        terms = Terms(purpose, capacity=EVERYBODY, rate=rate, reference=reference)
        add_task(connection, kind, prompt, written, terms)
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
                add_task(connection, "comparison", prompt, two, Terms(arm=arm, capacity=labelers))
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
    return fraction(prompt) < overlap
