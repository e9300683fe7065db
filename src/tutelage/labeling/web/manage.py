"""The owner's pages: people, prompts, instructions and the audit.

Every change is a POST that writes its event in the same transaction; what cannot be undone asks twice.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, get_args

from fastapi import APIRouter, HTTPException, Query, Request
from starlette.datastructures import FormData
from starlette.responses import RedirectResponse, Response

from tutelage.data.records import Arm
from tutelage.labeling.store import accounts, assignment, instructions, overview, prompts, screening
from tutelage.labeling.store.answers import KINDS, Mistake
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
        everybody = accounts.everybody(connection)
        work = overview.work_by_person(connection)
        pending = accounts.pending_invites(connection)
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
        who = accounts.person_of(connection, person)
        scores = screening.scores(connection, person)
        warnings = [w for w in screening.warnings(connection) if w.person == person]
        recent = assignment.recent(connection, person, 20, corrected=True)
        work = overview.work_by_person(connection)[person]
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
        scores = {c.name: {"score": c.score, "n": c.n} for c in screening.scores(connection, person)}
        accounts.change_person(
            connection, person, owner.id, status="working" if decision == "admit" else "paused", decision=decision,
            screening=scores,
        )  # fmt: skip
    return RedirectResponse(f"/people/{person}", 303)


@router.post("/people/{person}/sign-out")
def sign_out(request: Request, owner: Owner, person: Id) -> Response:
    with request.app.state.workspace.write() as connection:
        accounts.person_of(connection, person)
        accounts.end_sessions(connection, person, by=owner.id)
    return RedirectResponse(f"/people/{person}", 303)


@router.post("/people/{person}/password")
def new_password(request: Request, owner: Owner, person: Id) -> Response:
    with request.app.state.workspace.write() as connection:
        who = accounts.person_of(connection, person)
        token = accounts.invite(connection, who.role, who.arm, who.status, person=person, by=owner.id)
    return _people(request, owner, link=_link(request, token), link_for=f"for {who.name} to set a new password")


def _chosen(fields: FormData, name: str) -> str:
    value = str(fields.get(name, ""))
    if value not in CHOICES[name]:
        raise Mistake(f"{name}: one of {', '.join(CHOICES[name])}, please")
    return value


def _link(request: Request, token: str) -> str:
    return f"{request.base_url}join/{token}"


# Prompts


@router.get("/prompts")
def prompts_page(request: Request, owner: Owner) -> Response:
    return _prompts(request, owner)


def _prompts(request: Request, owner: Any, *, read: str | None = None, content: Any = None) -> Response:
    workspace = request.app.state.workspace
    with workspace.read() as connection:
        counts = overview.prompt_counts(connection)
        kinds = overview.task_counts(connection)
        first, all_held = prompts.quarantined_prompts(connection, SHOWN)
    # As JSON an id survives a form whatever characters it has.
    held = [(row.id, json.dumps(row.id), row.quarantine) for row in first]
    return page(
        request, "manage_prompts.html.j2", owner, counts=counts, kinds=kinds, held=held,
        all_held=all_held, read=read, content=content, keeps_erased=workspace.keeps_erased,
    )  # fmt: skip


@router.post("/prompts/read")
def read_prompt(request: Request, owner: Owner, fields: Form) -> Response:
    """Show the text of a prompt in quarantine. A POST, as it is an act: the audit says who read it."""
    with request.app.state.workspace.write() as connection:
        row = prompts.read_quarantined(connection, _prompt_id(fields), owner.id)
    return _prompts(request, owner, read=row.id, content=row.text)


@router.post("/prompts/release")
def release(request: Request, owner: Owner, fields: Form) -> Response:
    with request.app.state.workspace.write() as connection:
        prompts.release_prompt(connection, _prompt_id(fields), owner.id)
    return RedirectResponse("/prompts", 303)


@router.post("/prompts/erase")
def erase(request: Request, owner: Owner, fields: Form) -> Response:
    _confirmed(fields)
    with request.app.state.workspace.erase() as connection:
        row = prompts.quarantined_prompt(connection, _prompt_id(fields))
        prompts.erase_prompt(connection, row.id, owner.id)
    return RedirectResponse("/prompts", 303)


@router.post("/prompts/erase-user")
def erase_user(request: Request, owner: Owner, fields: Form) -> Response:
    _confirmed(fields)
    user = str(fields.get("user", "")).strip()
    with request.app.state.workspace.erase() as connection:
        prompts.erase_user(connection, user, owner.id)
    return RedirectResponse("/prompts", 303)


def _confirmed(fields: FormData) -> None:
    if fields.get("sure") != "yes":
        raise Mistake("erasing cannot be undone: tick the box that says so")


def _prompt_id(fields: FormData) -> str | None:
    """The id of the prompt that a form names; None if it is none."""
    try:
        name = json.loads(str(fields.get("prompt", "")))
    except (ValueError, RecursionError):  # the second of nothing but brackets
        return None
    return name if isinstance(name, str) and storable(name) == name else None  # as JSON it may be anything


# Instructions


@router.get("/instructions")
def instructions_page(request: Request, owner: Owner) -> Response:
    with request.app.state.workspace.read() as connection:
        history = instructions.instruction_history(connection)
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
            newest = instructions.current_instruction(connection, kind)
            if fields.get("base") == str(newest.version):
                instructions.add_instruction(connection, newest.kind, text, owner.id)
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
            return instructions.current_instruction(connection, kind)
        return instructions.instruction_version(connection, kind, version)


# Audit


@router.get("/audit")
def audit_page(
    request: Request, owner: Owner, kind: str = "", before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None
) -> Response:
    kind = storable(kind)
    with request.app.state.workspace.read() as connection:
        kinds = overview.event_kinds(connection)
        rows = overview.latest_events(connection, SHOWN + 1, kind, before)
    older = rows[SHOWN - 1].id if len(rows) > SHOWN else None
    return page(
        request, "manage_audit.html.j2", owner, rows=rows[:SHOWN], kinds=kinds, kind=kind, older=older,
        before=before, dumps=lambda detail: json.dumps(detail, ensure_ascii=False),
    )  # fmt: skip
