"""Labelers' pages: what is left to do, one task at a time, the guides, and one's own answers.

Forms name completions by the position shown; `assignment` alone knows which position is which completion.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from starlette.datastructures import FormData
from starlette.responses import RedirectResponse, Response

from tutelage.labeling.store import assignment
from tutelage.labeling.store.answers import DEMONSTRATION_CHARACTERS, KINDS, NOTE_CHARACTERS, Mistake, TaskKind
from tutelage.labeling.store.database import Connection
from tutelage.labeling.store.instructions import current_instruction
from tutelage.labeling.web.render import page
from tutelage.labeling.web.security import Anybody, Form, Id

router = APIRouter()
TEMPLATES: dict[TaskKind, str] = {
    "demonstration": "task_demonstration.html.j2",
    "ranking": "task_ranking.html.j2",
    "labels": "task_labels.html.j2",
    "comparison": "task_ranking.html.j2",
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
RECENT = 100  # answers on a person's own page


@router.get("/")
def home(request: Request, person: Anybody) -> Response:
    with request.app.state.workspace.read() as connection:
        progress = assignment.progress(connection, person.id)
    return page(request, "home.html.j2", person, progress=progress)


@router.post("/next")
def lease(request: Request, person: Anybody, fields: Form) -> Response:
    kind = next((kind for kind in KINDS if kind == fields.get("kind")), None)
    with request.app.state.workspace.write() as connection:
        return _to_task(assignment.next_task(connection, person.id, kind))


@router.get("/task/{number}")
def task(request: Request, person: Anybody, number: Id) -> Response:
    shown = _show(request, person, number)
    if shown.state == "skipped":
        raise LookupError("You skipped this task.")
    if shown.correcting and request.query_params.get("correct") != "1":
        return page(request, "answered.html.j2", person, shown=shown)
    return _task_page(request, person, shown, shown.draft)


@router.post("/task/{number}/draft")
def draft(request: Request, person: Anybody, number: Id, fields: Form) -> Response:
    sent = _read_draft(_show(request, person, number), fields)
    with _write(request) as connection:
        assignment.save_draft(connection, person.id, number, sent)
    # The script asks for nothing back; the button, which works without it, sends its name.
    return RedirectResponse(f"/task/{number}", 303) if "back" in fields else Response(status_code=204)


@router.post("/task/{number}/submit")
def submit(request: Request, person: Anybody, number: Id, fields: Form) -> Response:
    shown = _show(request, person, number)
    sent = _read_draft(shown, fields)
    try:
        with _write(request) as connection:
            _store(connection, person, shown, sent, fields)
            return _to_task(assignment.next_task(connection, person.id, shown.kind))
    except Mistake as problem:
        with _write(request) as connection:
            assignment.save_draft(connection, person.id, number, sent)
        return _task_page(request, person, shown, sent, problem)


@router.post("/task/{number}/correct")
def correct(request: Request, person: Anybody, number: Id, fields: Form) -> Response:
    shown = _show(request, person, number)
    sent = _read_draft(shown, fields)
    try:
        with _write(request) as connection:
            _store(connection, person, shown, sent, fields, correct=True)
    except Mistake as problem:
        return _task_page(request, person, shown, sent, problem)
    return RedirectResponse("/mine", 303)


@router.post("/task/{number}/skip")
def skip(request: Request, person: Anybody, number: Id, fields: Form) -> Response:
    shown = _show(request, person, number)
    note = _text(fields, "skip_note")
    try:
        with _write(request) as connection:
            assignment.skip(connection, person.id, number, _text(fields, "reason"), note)
            return _to_task(assignment.next_task(connection, person.id, shown.kind))
    except Mistake as problem:
        return _task_page(request, person, shown, shown.draft, problem, skip_note=note)


@router.get("/mine")
def mine(request: Request, person: Anybody) -> Response:
    with request.app.state.workspace.read() as connection:
        rows = assignment.recent(connection, person.id, RECENT)
    return page(request, "mine.html.j2", person, rows=rows, most=RECENT)


@router.get("/guide/{kind}")
def guide(request: Request, person: Anybody, kind: str) -> Response:
    if kind not in KINDS:
        raise LookupError(f"There are guides to: {', '.join(KINDS)}.")
    with request.app.state.workspace.read() as connection:
        instruction = current_instruction(connection, kind)
    return page(request, "guide.html.j2", person, kind=kind, instruction=instruction)


def seconds_in_view(text: str) -> float | None:
    """Seconds that a page was in view, as its script says: None unless that makes sense."""
    return float(text) if re.fullmatch(r"[0-9]{1,5}(\.[0-9]+)?", text) and float(text) <= 86400 else None


def _to_task(number: int | None) -> Response:
    return RedirectResponse("/" if number is None else f"/task/{number}", 303)


@contextmanager
def _write(request: Request) -> Iterator[Connection]:
    """A write transaction; what was answered meanwhile, in another window perhaps, becomes a page that says so."""
    try:
        with request.app.state.workspace.write() as connection:
            yield connection
    except assignment.Conflict as conflict:
        refusal = f"{str(conflict).capitalize()}; nothing was changed. Your answers are under My answers."
        raise HTTPException(409, refusal) from None


def _show(request: Request, person: Any, number: int) -> assignment.Shown:
    with request.app.state.workspace.read() as connection:
        return assignment.show(connection, person.id, number)


def _task_page(
    request: Request, person: Any, shown: assignment.Shown, draft: dict[str, Any] | None,
    problem: Mistake | None = None, skip_note: str = "",
) -> Response:  # fmt: skip
    with request.app.state.workspace.read() as connection:
        today = assignment.done_today(connection, person.id)
    return page(
        request, TEMPLATES[shown.kind], person, 200 if problem is None else 400, shown=shown,
        draft=_read_draft(shown, FormData()) | (draft or {}), problem="" if problem is None else str(problem),
        letters=LETTERS, today=today, key=secrets.token_urlsafe(), skip_note=skip_note,
        most={"completion": DEMONSTRATION_CHARACTERS, "note": NOTE_CHARACTERS},
    )  # fmt: skip


def _store(
    connection: Connection, person: Any, shown: assignment.Shown, sent: dict[str, Any], fields: FormData,
    correct: bool = False,
) -> None:  # fmt: skip
    """Store what was sent, if it is whole.

    Raises:
        Conflict: if the task was answered or skipped already.
        Mistake: naming what is missing.
    """
    key = _text(fields, "key")
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,100}", key):
        raise Mistake("something was wrong with this page; send it once more")
    body = {name: value for name, value in sent.items() if name != "active_seconds"}
    if "ranks" in body:  # gaps are left out, so that fewer than all are counted and refused
        body["ranks"] = [rank for rank in body["ranks"] if rank is not None]
    if "ratings" in body:
        body["ratings"] = [rating for rating in body["ratings"] if rating["quality"] is not None]
    if shown.kind == "labels" and not body["use_case"]:
        raise Mistake("choose a kind of request")
    store = assignment.correct if correct else assignment.submit
    store(connection, person.id, shown.assignment, body, key, active_seconds=sent["active_seconds"])


def _read_draft(shown: assignment.Shown, fields: FormData) -> dict[str, Any]:
    """A form as it was sent, in the order shown: None where nothing was chosen."""
    sent: dict[str, Any] = {
        "annotations": _texts(fields, "annotations"), "note": _text(fields, "note"),
        "active_seconds": seconds_in_view(_text(fields, "active_seconds")),
    }  # fmt: skip
    if shown.kind == "demonstration":
        return sent | {"completion": _text(fields, "completion")}
    if shown.kind == "labels":
        return sent | {"use_case": _text(fields, "use_case") or None}
    places = range(1, len(shown.texts) + 1)
    sent["ranks"] = [_whole(_text(fields, f"rank_{i}")) for i in places]
    if shown.rate:
        sent["ratings"] = [
            {"quality": _whole(_text(fields, f"quality_{i}")), "flags": _texts(fields, f"flags_{i}")} for i in places
        ]
    return sent


def _text(fields: FormData, name: str) -> str:
    # Browsers send every line break of a text field as CR LF; a demonstration should have what was typed.
    return str(fields.get(name, "")).replace("\r\n", "\n")


def _texts(fields: FormData, name: str) -> list[str]:
    return [str(value) for value in fields.getlist(name)]


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,3}", text) else None
