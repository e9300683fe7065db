"""The owner's pages: people, prompts, instructions and the audit.

Every change is a POST that writes its event in the same transaction; what cannot be undone asks twice.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter, defaultdict
from typing import Annotated, Any, get_args

from fastapi import APIRouter, HTTPException, Query, Request
from sqlalchemy import Connection, and_, case, func, select, update
from starlette.datastructures import FormData
from starlette.responses import RedirectResponse, Response

from tutelage.data.records import Arm
from tutelage.labeling import accounts, exchange, queue, screening
from tutelage.labeling.answers import KINDS, Mistake
from tutelage.labeling.database import record
from tutelage.labeling.schema import answers, assignments, events, instructions, invites, people, prompts, tasks
from tutelage.labeling.web import review
from tutelage.labeling.web.render import page
from tutelage.labeling.web.security import Form, Id, Owner, storable

router = APIRouter()
INSTRUCTION_CHARACTERS = 50_000
SHOWN = 100  # rows of a long list on one page
CHOICES: dict[str, tuple[str, ...]] = {
    "role": get_args(accounts.Role), "arm": get_args(Arm), "status": get_args(accounts.Status),
}  # fmt: skip


# People


@router.get("/people")
def people_page(request: Request, owner: Owner) -> Response:
    return _people(request, owner)


def _people(request: Request, owner: Any, *, link: str = "", link_for: str = "") -> Response:
    with request.app.state.workspace.read() as connection:
        everybody = connection.execute(select(people).order_by(people.c.sign_in)).all()
        work = _work(connection)
        pending = connection.execute(
            select(invites, people.c.name)
            .outerjoin(people)
            .where(invites.c.used.is_(None), invites.c.expires > time.time())
            .order_by(invites.c.created.desc())
        ).all()
    return page(
        request, "manage_people.html.j2", owner, everybody=everybody, work=work, pending=pending, link=link,
        link_for=link_for, choices=CHOICES,
    )  # fmt: skip


@router.post("/people/invite")
def invite(request: Request, owner: Owner, fields: Form) -> Response:
    chosen = {name: _chosen(fields, name) for name in CHOICES}
    if chosen["status"] == "paused":
        raise Mistake("status: nobody joins paused; choose working or screening")
    with request.app.state.workspace.write() as connection:
        token = accounts.invite(connection, **chosen, by=owner.id)  # type: ignore[arg-type]
    return _people(request, owner, link=_link(request, token), link_for=f"to join as {chosen['role']}")


@router.post("/people/invite/revoke")
def revoke_invite(request: Request, owner: Owner, fields: Form) -> Response:
    with request.app.state.workspace.write() as connection:
        accounts.revoke_invite(connection, str(fields.get("link", "")), owner.id)
    return RedirectResponse("/people", 303)


@router.get("/people/{person}")
def person_page(request: Request, owner: Owner, person: Id) -> Response:
    agreement = review.insight(request.app)  # computed before, not within, the transaction below
    with request.app.state.workspace.read() as connection:
        who = _person(connection, person)
        scores = screening.scores(connection, person)
        warnings = [w for w in screening.warnings(connection) if w.person == person]
        recent = connection.execute(
            select(answers, tasks.c.kind, tasks.c.purpose, tasks.c.prompt)
            .select_from(answers.join(assignments).join(tasks, tasks.c.id == assignments.c.task))
            .where(assignments.c.person == person)
            .order_by(answers.c.id.desc())
            .limit(20)
        ).all()
        work = _work(connection, person)[person]
    return page(
        request, "manage_person.html.j2", owner, who=who, scores=scores, warnings=warnings, recent=recent, work=work,
        agreement=agreement.labelers.get(who.name, {}), choices=CHOICES,
    )  # fmt: skip


@router.post("/people/{person}")
def change(request: Request, owner: Owner, person: Id, fields: Form) -> Response:
    chosen = {name: _chosen(fields, name) for name in CHOICES if name in fields}
    with request.app.state.workspace.write() as connection:
        accounts.change_person(connection, person, owner.id, **chosen)  # type: ignore[arg-type]
    return RedirectResponse(f"/people/{person}", 303)


@router.post("/people/{person}/screening")
def decide(request: Request, owner: Owner, person: Id, fields: Form) -> Response:
    """Admit or decline; the scores that the decision was made on go into the audit."""
    decision = str(fields.get("decision", ""))
    if decision not in ("admit", "decline"):
        raise Mistake("decision: admit or decline, please")
    with request.app.state.workspace.write() as connection:
        _person(connection, person)
        scores = {c.name: {"score": c.score, "n": c.n} for c in screening.scores(connection, person)}
        accounts.change_person(
            connection, person, owner.id, status="working" if decision == "admit" else "paused", decision=decision,
            screening=scores,
        )  # fmt: skip
    return RedirectResponse(f"/people/{person}", 303)


@router.post("/people/{person}/sign-out")
def sign_out(request: Request, owner: Owner, person: Id) -> Response:
    with request.app.state.workspace.write() as connection:
        _person(connection, person)
        accounts.end_sessions(connection, person, by=owner.id)
    return RedirectResponse(f"/people/{person}", 303)


@router.post("/people/{person}/password")
def new_password(request: Request, owner: Owner, person: Id) -> Response:
    with request.app.state.workspace.write() as connection:
        who = _person(connection, person)
        token = accounts.invite(connection, who.role, who.arm, who.status, person=person, by=owner.id)
    return _people(request, owner, link=_link(request, token), link_for=f"for {who.name} to set a new password")


def _chosen(fields: FormData, name: str) -> str:
    value = str(fields.get(name, ""))
    if value not in CHOICES[name]:
        raise Mistake(f"{name}: one of {', '.join(CHOICES[name])}, please")
    return value


def _person(connection: Connection, person: int) -> Any:
    who = connection.execute(select(people).where(people.c.id == person)).first()
    if who is None:
        raise LookupError(f"no person {person}")
    return who


def _link(request: Request, token: str) -> str:
    return f"{request.base_url}join/{token}"


def _work(connection: Connection, person: int | None = None) -> dict[int, dict[str, Any]]:
    """By person: answers done, tasks skipped, median seconds of an answer, when they last did anything."""
    chosen = assignments.c.person == person if person is not None else assignments.c.person.is_not(None)
    seconds: dict[int, list[float]] = defaultdict(list)
    first = select(assignments.c.person, answers.c.seconds).select_from(answers.join(assignments))
    for who, one in connection.execute(first.where(answers.c.number == 1, chosen)):
        seconds[who].append(one)  # 0 where an answer was imported: nobody measured it
    skipped = select(assignments.c.person, func.count()).where(assignments.c.state == "skipped", chosen)
    skips: dict[int, int] = dict(connection.execute(skipped.group_by(assignments.c.person)).all())
    last = select(events.c.person, func.max(events.c.at)).group_by(events.c.person)
    active: dict[int | None, float] = dict(connection.execute(last).all())
    found: dict[int, dict[str, Any]] = {}
    for who in connection.execute(select(people.c.id)).scalars():
        spent = seconds.get(who, [])
        found[who] = {
            "done": len(spent), "skipped": skips.get(who, 0), "active": active.get(who),
            "median": statistics.median(measured) if (measured := [s for s in spent if s > 0]) else None,
        }  # fmt: skip
    return found


# Prompts


@router.get("/prompts")
def prompts_page(request: Request, owner: Owner) -> Response:
    return _prompts(request, owner)


def _prompts(request: Request, owner: Any, *, read: str | None = None, content: Any = None) -> Response:
    now = time.time()
    state = case((prompts.c.erased.is_not(None), "erased"), (prompts.c.quarantine.is_not(None), "held"), else_="ready")
    leased = select(func.count()).where(
        assignments.c.task == tasks.c.id, assignments.c.state == "leased", assignments.c.expires > now
    )
    with request.app.state.workspace.read() as connection:
        counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        grouped = select(prompts.c.split, prompts.c.use_case, state, func.count())
        for split, use_case, name, n in connection.execute(
            grouped.group_by(prompts.c.split, prompts.c.use_case, state)
        ):
            counts[split or "", use_case or ""][name] += n
        per_task = select(
            tasks.c.kind, tasks.c.purpose, tasks.c.open, leased.scalar_subquery().label("leased")
        ).subquery()
        kinds = connection.execute(
            select(
                per_task.c.kind, per_task.c.purpose, func.count().label("all"),
                func.sum(case((per_task.c.open, 1), else_=0)).label("open"),
                func.sum(per_task.c.leased).label("leased"),
            )
            .group_by(per_task.c.kind, per_task.c.purpose)
            .order_by(per_task.c.kind, per_task.c.purpose)
        ).all()  # fmt: skip
        is_held = and_(prompts.c.quarantine.is_not(None), prompts.c.erased.is_(None))
        first = select(prompts.c.id, prompts.c.quarantine).where(is_held).order_by(prompts.c.id).limit(SHOWN)
        # As JSON an id survives a form whatever characters it has.
        held = [(row.id, json.dumps(row.id), row.quarantine) for row in connection.execute(first)]
        all_held = connection.execute(select(func.count()).select_from(prompts).where(is_held)).scalar_one()
    return page(
        request, "manage_prompts.html.j2", owner, counts=sorted(counts.items()), kinds=kinds, held=held,
        all_held=all_held, read=read, content=content, keeps_erased=request.app.state.workspace.keeps_erased,
    )  # fmt: skip


@router.post("/prompts/read")
def read_prompt(request: Request, owner: Owner, fields: Form) -> Response:
    """Show the text of a prompt in quarantine. A POST, as it is an act: the audit says who read it."""
    with request.app.state.workspace.write() as connection:
        row = _held(connection, fields)
        record(connection, "quarantine read", person=owner.id, subject=row.id)
    return _prompts(request, owner, read=row.id, content=row.text)


@router.post("/prompts/release")
def release(request: Request, owner: Owner, fields: Form) -> Response:
    with request.app.state.workspace.write() as connection:
        row = _held(connection, fields)
        connection.execute(update(prompts).where(prompts.c.id == row.id).values(quarantine=None))
        record(connection, "quarantine released", person=owner.id, subject=row.id, found=row.quarantine)
    return RedirectResponse("/prompts", 303)


@router.post("/prompts/erase")
def erase(request: Request, owner: Owner, fields: Form) -> Response:
    _confirmed(fields)
    with request.app.state.workspace.erase() as connection:
        exchange.erase_prompt(connection, _held(connection, fields).id, owner.id)
    return RedirectResponse("/prompts", 303)


@router.post("/prompts/erase-user")
def erase_user(request: Request, owner: Owner, fields: Form) -> Response:
    _confirmed(fields)
    user = str(fields.get("user", "")).strip()
    with request.app.state.workspace.erase() as connection:
        exchange.erase_user(connection, user, owner.id)
    return RedirectResponse("/prompts", 303)


def _confirmed(fields: FormData) -> None:
    if fields.get("sure") != "yes":
        raise Mistake("erasing cannot be undone: tick the box that says so")


def _held(connection: Connection, fields: FormData) -> Any:
    """The quarantined prompt that a form names."""
    try:
        name = json.loads(str(fields.get("prompt", "")))
    except (ValueError, RecursionError):  # the second of nothing but brackets
        name = None
    is_held = and_(prompts.c.quarantine.is_not(None), prompts.c.erased.is_(None))
    sound = isinstance(name, str) and storable(name) == name  # as JSON it may be anything
    row = sound and connection.execute(select(prompts).where(prompts.c.id == name, is_held)).first()
    if not row:
        raise LookupError("no such prompt in quarantine; somebody may have decided about it already")
    return row


# Instructions


@router.get("/instructions")
def instructions_page(request: Request, owner: Owner) -> Response:
    with request.app.state.workspace.read() as connection:
        pinned = select(answers.c.instruction, func.count().label("n")).group_by(answers.c.instruction).subquery()
        rows = connection.execute(
            select(instructions, people.c.name, func.coalesce(pinned.c.n, 0).label("answers"))
            .outerjoin(people, people.c.id == instructions.c.author)
            .outerjoin(pinned, pinned.c.instruction == instructions.c.id)
            .order_by(instructions.c.version.desc())
        ).all()
    history = {kind: [row for row in rows if row.kind == kind] for kind in KINDS}
    return page(request, "manage_instructions.html.j2", owner, history=history)


@router.get("/instructions/{kind}")
def instruction_page(
    request: Request, owner: Owner, kind: str, version: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None
) -> Response:
    """Edit the current version, or start from an earlier one."""
    newest = _newest(request, kind)
    shown = newest if version is None else _newest(request, kind, version)
    return _edit(request, owner, newest, shown.text, shown.version)


@router.post("/instructions/{kind}")
def edit_instruction(request: Request, owner: Owner, kind: str, fields: Form) -> Response:
    """Preview, or publish a new version, unless somebody else has published one since the form was opened."""
    newest = _newest(request, kind)
    text = str(fields.get("text", "")).replace("\r\n", "\n").strip()
    problem = ""
    if not 0 < len(text) <= INSTRUCTION_CHARACTERS:
        problem = f"The page needs 1 to {INSTRUCTION_CHARACTERS} characters; this has {len(text)}."
    elif fields.get("act") == "publish":
        with request.app.state.workspace.write() as connection:
            newest = queue.current_instruction(connection, kind)
            if fields.get("base") == str(newest.version):
                queue.add_instruction(connection, newest.kind, text, owner.id)
                return RedirectResponse("/instructions", 303)
        problem = (
            f"Version {newest.version} was published since you opened this page. Your text is below and is not lost: "
            f"compare, then publish again to put it in place of version {newest.version}."
        )
    return _edit(request, owner, newest, text, newest.version, problem=problem, status=400 if problem else 200)


def _edit(
    request: Request, owner: Any, newest: Any, text: str, version: int, *, problem: str = "", status: int = 200
) -> Response:
    return page(
        request, "manage_instruction.html.j2", owner, status, newest=newest, text=text, version=version,
        problem=problem, most=INSTRUCTION_CHARACTERS,
    )  # fmt: skip


def _newest(request: Request, kind: str, version: int | None = None) -> Any:
    if kind not in KINDS:
        raise HTTPException(404, "There are no instructions of that name.")
    with request.app.state.workspace.read() as connection:
        if version is None:
            return queue.current_instruction(connection, kind)
        chosen = and_(instructions.c.kind == kind, instructions.c.version == version)
        row = connection.execute(select(instructions).where(chosen)).first()
    if row is None:
        raise LookupError(f"no version {version} of these instructions")
    return row


# Audit


@router.get("/audit")
def audit_page(
    request: Request, owner: Owner, kind: str = "", before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None
) -> Response:
    kind = storable(kind)
    with request.app.state.workspace.read() as connection:
        kinds = connection.execute(select(events.c.kind).distinct().order_by(events.c.kind)).scalars().all()
        query = (
            select(events, people.c.name)
            .outerjoin(people, people.c.id == events.c.person)
            .order_by(events.c.id.desc())
            .limit(SHOWN + 1)
        )
        if kind:
            query = query.where(events.c.kind == kind)
        if before is not None:
            query = query.where(events.c.id < before)
        rows = connection.execute(query).all()
    older = rows[SHOWN - 1].id if len(rows) > SHOWN else None
    return page(
        request, "manage_audit.html.j2", owner, rows=rows[:SHOWN], kinds=kinds, kind=kind, older=older,
        before=before, dumps=lambda detail: json.dumps(detail, ensure_ascii=False),
    )  # fmt: skip
