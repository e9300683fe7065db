"""What owner and reviewers look at: demonstrations to rate, warnings and skips, and how far labelers agree."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from sqlalchemy import Connection, and_, case, exists, func, insert, or_, select
from starlette.responses import RedirectResponse, Response

from tutelage.labeling import accounts, exchange, screening
from tutelage.labeling.answers import SKIP_REASONS, Mistake
from tutelage.labeling.database import record
from tutelage.labeling.schema import answers, assignments, people, prompts, reviews, tasks
from tutelage.labeling.web import plots
from tutelage.labeling.web.render import page
from tutelage.labeling.web.security import Form, Id, Owner, Reviewer
from tutelage.stats import agreement

router = APIRouter()
SHOWN = 10  # demonstrations on one page
SKIPS = 100
DRAWS = 1000
MEASURES = {  # as `agreement.summary` names them: title, and whether it is a share
    "strict": ("Agreement on pairs that both ordered", True),
    "three_way": ("Three-way agreement (better, same, worse)", True),
    "half_credit": ("The same, a tie on one side counting half", True),
    "tie_rate": ("Pairs given as ties", True),
    "kendall_tau_b": ("Kendall's τ-b", False),
    "alpha_ordinal": ("Krippendorff's α, ordinal", False),
    "alpha_nominal": ("Krippendorff's α, nominal", False),
    "flags_kappa": ("Flags of completions, Fleiss' κ", False),
}
ARMS = {"training": "Training labelers", "heldout": "Held-out labelers"}
PAPER = {"training": "72.6 ± 1.5 %", "heldout": "77.3 ± 1.3 %"}  # section 3.4


# Demonstrations, warnings, skips


@router.get("/review")
def review_page(request: Request, reviewer: Reviewer) -> Response:
    with request.app.state.workspace.read() as connection:
        waiting = connection.execute(_waiting(reviewer.id).limit(SHOWN)).all()
        left = connection.execute(select(func.count()).select_from(_waiting(reviewer.id).subquery())).scalar_one()
        gold = screening.gold_results(connection)
        warnings = screening.warnings(connection)
        paused = set(connection.execute(select(people.c.name).where(accounts.PAUSED)).scalars())
        skips = connection.execute(
            select(assignments, people.c.name, tasks.c.kind, tasks.c.prompt)
            .select_from(assignments.join(tasks).join(people, people.c.id == assignments.c.person))
            .where(assignments.c.state == "skipped")
            .order_by(assignments.c.id.desc())
            .limit(SKIPS)
        ).all()
    return page(
        request, "manage_review.html.j2", reviewer, waiting=waiting, left=left, gold=gold, warnings=warnings,
        skips=skips, reasons=SKIP_REASONS, paused=paused,
    )  # fmt: skip


@router.post("/review/{answer}")
def rate(request: Request, reviewer: Reviewer, answer: Id, fields: Form) -> Response:
    quality = str(fields.get("quality", ""))
    if quality not in tuple("1234567"):
        raise Mistake("quality: choose a number from 1 to 7")
    with request.app.state.workspace.write() as connection:
        row = connection.execute(_demonstrations().where(answers.c.id == answer)).first()
        if row is None:
            raise LookupError("no such demonstration; it may have been corrected or withdrawn")
        if row.person == reviewer.id:
            raise HTTPException(403, "Nobody rates their own demonstration.")
        mine = and_(reviews.c.answer == answer, reviews.c.reviewer == reviewer.id)
        before = connection.execute(select(reviews.c.quality).where(mine)).scalar()
        if before is None:
            connection.execute(
                insert(reviews).values(
                    answer=answer, reviewer=reviewer.id, quality=int(quality), created=time.time()
                )
            )  # fmt: skip
            record(connection, "reviewed", person=reviewer.id, subject=answer, quality=int(quality))
        elif before != int(quality):  # the same again is a form sent twice
            raise Mistake(f"you rated this demonstration already, with {before}")
    return RedirectResponse("/review", 303)


def _demonstrations() -> Any:
    """The newest answers to demonstration tasks whose prompts may be shown."""
    newer = answers.alias()
    return (
        select(
            answers.c.id, answers.c.body, answers.c.created, assignments.c.person, tasks.c.purpose, prompts.c.text
        )
        .select_from(
            answers.join(assignments)
            .join(tasks, tasks.c.id == assignments.c.task)
            .join(prompts, prompts.c.id == tasks.c.prompt)
        )
        .where(
            tasks.c.kind == "demonstration", answers.c.body.is_not(None), prompts.c.text.is_not(None),
            prompts.c.quarantine.is_(None),
            ~exists().where(newer.c.assignment == answers.c.assignment, newer.c.number > answers.c.number),
        )
    )  # fmt: skip


def _waiting(reviewer: int) -> Any:
    rated = exists().where(reviews.c.answer == answers.c.id)
    first = case((tasks.c.purpose == "screening", 0), else_=1)
    # A task that is still open might be the reviewer's own next one, and nobody sees another's answer before their own.
    settled = or_(tasks.c.purpose == "screening", ~tasks.c.open)
    return _demonstrations().where(assignments.c.person != reviewer, settled, ~rated).order_by(first, answers.c.id)


# Agreement


@dataclass(frozen=True)
class Insight:
    """What is computed from all answers at once, and kept until there is another answer."""

    key: tuple[int, ...]
    measures: dict[str, agreement.Measures]  # of `all` and of each arm
    labelers: dict[str, agreement.Measures]
    arms: dict[str, str]
    rankings: int
    plots: dict[str, bytes] = field(repr=False)


_computing = threading.Lock()  # one at a time; matplotlib wants that too


def insight(app: FastAPI) -> Insight:
    """Agreement and plots of the work so far. Reads in a transaction of its own, computes after it."""
    with app.state.workspace.read() as connection:
        key = _answers_key(connection)
    with _computing:
        known: Insight | None = getattr(app.state, "insight", None)
        if known is None or known.key != key:
            known = app.state.insight = _compute(app)
    return known


def _answers_key(connection: Connection) -> tuple[int, ...]:
    """Changes with every answer, correction, erasure (rows without a body stay) and release from quarantine."""
    of_answers = connection.execute(select(func.count(answers.c.id), func.count(answers.c.body))).one()
    held = select(func.count()).where(prompts.c.quarantine.is_not(None))
    return *of_answers, connection.execute(held).scalar_one()


def _compute(app: FastAPI) -> Insight:
    with app.state.workspace.read() as connection:
        key = _answers_key(connection)
        rankings = exchange.stored_rankings(connection, names=True)
        given = exchange.newest_answers(connection)
        arms = dict(connection.execute(select(people.c.name, people.c.arm)).all())
        rows = connection.execute(
            select(tasks.c.kind, answers.c.seconds, answers.c.created)
            .select_from(answers.join(assignments).join(tasks, tasks.c.id == assignments.c.task))
            .where(answers.c.number == 1, answers.c.seconds > 0)  # imported ones were given elsewhere
        ).all()
    groups = {"all": rankings} | {a: [r for r in rankings if arms.get(r.labeler or "") == a] for a in ARMS}
    measures = {name: agreement.summary(group, draws=DRAWS) for name, group in groups.items()}
    for name, found in measures.items():
        votes = exchange.flag_votes([r for r in given if name in ("all", r.arm)])
        if kappa := agreement.flags_kappa(votes, draws=DRAWS):
            found["flags_kappa"] = kappa
    labelers = agreement.by_labeler(rankings, draws=DRAWS)
    rates = {name: found["strict"] for name, found in labelers.items() if found.get("strict", {}).get("pairs")}
    times = [row.seconds for row in rows if row.kind == "ranking"]
    days = Counter(int(row.created // 86400) for row in rows if 0 <= row.created < exchange.LATEST)
    drawn = {
        "labelers": plots.labelers(rates, arms) if rates else None,
        "times": plots.times(times) if times else None,
        "days": plots.days(days) if days else None,
    }
    kept = {name: svg for name, svg in drawn.items() if svg is not None}
    return Insight(key, measures, labelers, arms, len(rankings), kept)


@router.get("/agreement")
def agreement_page(request: Request, owner: Owner) -> Response:
    found = insight(request.app)
    return page(
        request, "manage_agreement.html.j2", owner, found=found, measures=MEASURES, arms=ARMS, paper=PAPER,
        version="-".join(map(str, found.key)), alts=plots.ALTS,
    )  # fmt: skip


@router.get("/agreement/{plot}.svg")
def plot(request: Request, owner: Owner, plot: str) -> Response:
    drawn = insight(request.app).plots
    if plot not in drawn:
        raise HTTPException(404, "There is no such plot, or nothing to draw yet.")
    return Response(drawn[plot], media_type="image/svg+xml")
