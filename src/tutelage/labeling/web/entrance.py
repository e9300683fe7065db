"""Signing in and out, and joining by a one-time link."""

from __future__ import annotations

import threading

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from tutelage.labeling.store import accounts
from tutelage.labeling.store.answers import Mistake
from tutelage.labeling.web.render import page
from tutelage.labeling.web.security import COOKIE, Anybody, Form, set_session

router = APIRouter()
_one_by_one = threading.Lock()


@router.get("/sign-in")
def sign_in_page(request: Request) -> Response:
    return page(request, "sign_in.html.j2", problem="")


@router.post("/sign-in")
def sign_in(request: Request, fields: Form) -> Response:
    name, password = str(fields.get("name", "")), str(fields.get("password", ""))
    address = request.client.host if request.client else ""
    workspace = request.app.state.workspace
    with _one_by_one:  # or many guesses at once would all be checked before the first failure is noted
        try:
            with workspace.read() as connection:  # argon2 takes a while: no writer should wait for it
                person = accounts.check_password(connection, workspace, name, password, address)
        except accounts.TooOften as problem:
            return page(request, "sign_in.html.j2", status=429, problem=str(problem))
        with workspace.write() as connection:
            if person is None:
                accounts.record_failure(connection, workspace, name, address)
            else:
                token = accounts.start_session(connection, person)
    if person is None:
        return page(request, "sign_in.html.j2", status=403, problem="Name or password is wrong.")
    response = RedirectResponse("/", 303)
    set_session(response, request, token)
    return response


@router.get("/join/{token}")
def join_page(request: Request, token: str) -> Response:
    with request.app.state.workspace.read() as connection:
        link = accounts.open_invite(connection, token)
    if link is None:
        text = "It was used already, or is older than a week. Ask the person who sent it for a new one."
        return page(request, "message.html.j2", status=404, title="This link does not work any more", text=text)
    return page(request, "join.html.j2", link=link, name=link.name or "", problem="")


@router.post("/join/{token}")
def join(request: Request, token: str, fields: Form) -> Response:
    name, password = str(fields.get("name", "")), str(fields.get("password", ""))
    areas = tuple(str(area) for area in fields.getlist("areas"))
    workspace = request.app.state.workspace
    try:
        with workspace.write() as connection:
            person = accounts.join(connection, workspace, token, name, password, areas)
            session = accounts.start_session(connection, person)
    except LookupError:
        return join_page(request, token)
    except Mistake as problem:
        with workspace.read() as connection:
            link = accounts.open_invite(connection, token)
        return page(request, "join.html.j2", status=400, link=link, name=name, problem=str(problem))
    response = RedirectResponse("/", 303)
    set_session(response, request, session)
    return response


@router.post("/sign-out")
def sign_out(request: Request, person: Anybody) -> Response:
    with request.app.state.workspace.write() as connection:
        accounts.end_sessions(connection, person.id, request.cookies.get(COOKIE))
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(COOKIE)
    return response
