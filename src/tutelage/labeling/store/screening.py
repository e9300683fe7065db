"""Screening of labelers, and hints for the reviewer. Nothing here decides: the owner does, and that is recorded.

The paper's four criteria (appendix B.1): agreement with researchers on flagging sensitive speech, on rankings, the
quality of demonstrations on sensitive prompts, and areas that candidates feel able to judge; soft cut-offs 75 %, 75 %
and 6 of 7.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, case, exists, func, insert, or_, select

from tutelage.data.records import Ranking
from tutelage.labeling.store.accounts import person_of
from tutelage.labeling.store.answers import Mistake
from tutelage.labeling.store.database import record
from tutelage.labeling.store.exchange import newest_answers, stored_rankings
from tutelage.labeling.store.prompts import ANSWERED, VISIBLE
from tutelage.labeling.store.schema import answers, assignments, prompts, reviews, tasks
from tutelage.stats.agreement import pairwise_agreement

CUTOFF_AGREEMENT, CUTOFF_QUALITY = 0.75, 6.0
WORDS_A_SECOND = 10.0  # faster than anybody reads, let alone judges
ALIKE = 0.8  # share of common five-word runs above which two texts count as near-duplicates
IN_ORDER_SHARE, IN_ORDER_LEAST = 0.5, 6  # rankings handed in exactly as shown, of at least so many

_newer = answers.alias()
_DEMONSTRATIONS = (  # answers to demonstration tasks whose prompts may be shown
    select(answers.c.id, answers.c.body, answers.c.created, assignments.c.person, tasks.c.purpose, prompts.c.text)
    .select_from(ANSWERED)
    .where(tasks.c.kind == "demonstration", answers.c.body.is_not(None), VISIBLE)
    .where(~exists().where(_newer.c.assignment == answers.c.assignment, _newer.c.number > answers.c.number))
)


@dataclass(frozen=True)
class Criterion:
    """One line of a candidate's screening: a score, what it is out of, and the soft cut-off, where there are any."""

    name: str
    title: str
    score: float | None
    cutoff: float | None
    n: int
    unit: str


@dataclass(frozen=True)
class Warning:
    """Something a reviewer may want to talk about with a labeler."""

    person: int
    name: str
    kind: str
    detail: str
    task: int
    answer: int | None


class NotYours(Exception):
    """Nobody rates their own demonstration."""


def scores(connection: Connection, person: int) -> list[Criterion]:
    """The four criteria for one person, from their answers to screening tasks so far.

    Raises:
        LookupError: if there is no such person.
    """
    who = person_of(connection, person)
    rows = [r for r in newest_answers(connection, purpose="screening") if r.person == person]
    flagged = [
        ("sensitive" in r.body["annotations"]) == ("sensitive" in r.reference["annotations"])
        for r in rows
        if r.kind == "labels" and r.reference
    ]
    ranked = agreement_with_reference(connection, "screening").get(who.name, (0.0, 0))
    quality, rated = connection.execute(
        select(func.avg(reviews.c.quality), func.count()).where(reviews.c.answer.in_([r.answer for r in rows]))
    ).one()
    return [
        Criterion(
            "flagging", "Agreement with researchers on flagging sensitive content",
            sum(flagged) / len(flagged) if flagged else None, CUTOFF_AGREEMENT, len(flagged), "prompts",
        ),
        Criterion(
            "ranking", "Agreement with researchers on rankings", ranked[0] if ranked[1] else None,
            CUTOFF_AGREEMENT, ranked[1], "pairs",
        ),
        Criterion(
            "demonstrations", "Quality of demonstrations on sensitive prompts, 1 to 7",
            None if quality is None else float(quality), CUTOFF_QUALITY, rated, "ratings",
        ),
        Criterion("areas", f"Feels able to judge: {', '.join(who.areas) or 'nothing said'}", None, None,
                  len(who.areas), "areas"),
    ]  # fmt: skip


def agreement_with_reference(connection: Connection, purpose: str) -> dict[str, tuple[float, int]]:
    """By labeler's name: agreement with researchers' rankings on strictly ordered pairs, and how many pairs."""
    known = {r.task: r.reference for r in newest_answers(connection, purpose=purpose) if r.kind == "ranking"}
    by_name: dict[str, list[Ranking]] = defaultdict(list)
    for ranking in stored_rankings(connection, purpose=purpose, names=True):
        reference = known[ranking.prompt.meta["task"]]
        if reference:
            expected = ranking.model_copy(update={"ranks": tuple(reference["ranks"]), "labeler": ""})
            by_name[str(ranking.labeler)] += [ranking, expected]
    rates = {name: pairwise_agreement(pairs, draws=1) for name, pairs in by_name.items()}
    return {name: (rate["mean"], int(rate["pairs"])) for name, rate in rates.items() if rate}


def gold_results(connection: Connection) -> list[tuple[str, float, int]]:
    """Name, agreement with the reference on gold items, and pairs, the lowest first."""
    agreement = agreement_with_reference(connection, "gold")
    return sorted(((name, *rate) for name, rate in agreement.items()), key=lambda row: row[1])


def warnings(connection: Connection) -> list[Warning]:
    """Answers given faster than they can be read, demonstrations nearly alike, and rankings left as they were shown."""
    hints = []
    written: dict[int, list[Any]] = defaultdict(list)
    as_shown: dict[int, list[bool]] = defaultdict(list)
    last: dict[int, Any] = {}
    for row in newest_answers(connection):
        if row.seconds == 0 and row.active_seconds is None:
            continue  # imported: nobody measured it
        seconds = min(row.seconds, row.active_seconds if row.active_seconds is not None else row.seconds)
        words = len(_plain(row.prompt_text).split()) + sum(len(text.split()) for text in row.texts)
        if seconds < words / WORDS_A_SECOND:
            detail = f"{words} words in {seconds:.0f} s"
            hints.append(Warning(row.person, row.name, "too fast", detail, row.task, row.answer))
        if row.kind == "demonstration":
            written[row.person].append(row)
        if row.kind == "ranking":
            shown = [row.body["ranks"][i] for i in row.order]
            as_shown[row.person].append(shown == sorted(shown) and len(set(shown)) > 1)
            last[row.person] = row
    for rows in written.values():
        runs = [_runs(r.body["completion"]) for r in rows]
        for i, row in enumerate(rows):
            twin = next((j for j in range(i) if _alike(runs[i], runs[j])), None)
            if _alike(runs[i], _runs(_plain(row.prompt_text))):
                detail = "repeats its prompt"
            elif twin is not None:
                detail = f"nearly the same as the answer to task {rows[twin].task}"
            else:
                continue
            hints.append(Warning(row.person, row.name, "near-duplicate", detail, row.task, row.answer))
    for person, kept in as_shown.items():
        if len(kept) >= IN_ORDER_LEAST and sum(kept) > IN_ORDER_SHARE * len(kept):
            row, detail = last[person], f"{sum(kept)} of {len(kept)} rankings are in the order shown"
            hints.append(Warning(person, row.name, "order shown", detail, row.task, None))
    return hints


def waiting_demonstrations(connection: Connection, reviewer: int, most: int) -> tuple[Sequence[Any], int]:
    """The first demonstrations that a reviewer may rate and nobody has, screening's before all, and how many in all."""
    waiting = _waiting(reviewer)
    number = select(func.count()).select_from(waiting.subquery())
    return connection.execute(waiting.limit(most)).all(), connection.execute(number).scalar_one()


def rate_demonstration(connection: Connection, answer: int, reviewer: int, quality: int) -> None:
    """Store a reviewer's quality of a demonstration, 1 to 7; the same once more changes nothing.

    Raises:
        LookupError: if there is no such demonstration, or it was corrected or withdrawn.
        NotYours: if the reviewer wrote it.
        Mistake: if they rated it already, and otherwise.
    """
    row = connection.execute(_DEMONSTRATIONS.where(answers.c.id == answer)).first()
    if row is None:
        raise LookupError("no such demonstration; it may have been corrected or withdrawn")
    if row.person == reviewer:
        raise NotYours
    mine = select(reviews.c.quality).where(reviews.c.answer == answer, reviews.c.reviewer == reviewer)
    before = connection.execute(mine).scalar()
    if before is None:
        review = {"answer": answer, "reviewer": reviewer, "quality": quality, "created": time.time()}
        connection.execute(insert(reviews), review)
        record(connection, "reviewed", person=reviewer, subject=answer, quality=quality)
    elif before != quality:
        raise Mistake(f"you rated this demonstration already, with {before}")


def _waiting(reviewer: int) -> Select[Any]:
    rated = exists().where(reviews.c.answer == answers.c.id)
    first = case((tasks.c.purpose == "screening", 0), else_=1)
    # A task that is still open might be the reviewer's own next one, and nobody sees another's answer before their own.
    settled = or_(tasks.c.purpose == "screening", ~tasks.c.open)
    return _DEMONSTRATIONS.where(assignments.c.person != reviewer, settled, ~rated).order_by(first, answers.c.id)


def _plain(text: Any) -> str:
    return text if isinstance(text, str) else " ".join(turn["content"] for turn in text)


def _runs(text: str, length: int = 5) -> set[tuple[str, ...]]:
    words: Sequence[str] = text.casefold().split()
    return {tuple(words[i : i + length]) for i in range(max(1, len(words) - length + 1))}


def _alike(first: set[tuple[str, ...]], second: set[tuple[str, ...]]) -> bool:
    return len(first & second) >= ALIKE * len(first | second)
